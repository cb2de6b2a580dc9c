"""What is asked of a request and its evidence, and what is remembered of them for the receipt. Keeps no state."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from cordon import signing
from cordon.attest.appraise import MAX_EVIDENCE, EvidenceAppraisal, appraise
from cordon.attest.binding import Context
from cordon.attest.vendor import Trust
from cordon.attest.verdict import printable
from cordon.broker.gate import REQUEST_TYPE, KeyRequest
from cordon.broker.protocol import ReleaseRequest
from cordon.errors import Refused, SignatureError

MAX_REQUEST = 64 * 1024  # characters of base64 payload of a key request
MAX_DETAIL = 1000  # characters
REGISTERS = ("measurement", "mr_td", "mr_enclave", "rtmr0", "rtmr1", "rtmr2", "rtmr3")

REASON_OF = {"context_study": "wrong_study"}
"""Code of a failed check -> reason, where it is not ``evidence_refused``. The receipt lists every check."""


@dataclass
class Case:
    """What is known of a request as its decision goes on: in the end, the receipt."""

    job: str = ""
    evidence_type: str = ""
    evidence_sha256: str = ""
    request_sha256: str = ""
    verdict: str = "not_checked"
    checks: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, asked: ReleaseRequest) -> Case:
        """A request of which nothing is believed yet."""
        return cls(
            evidence_sha256=payload_sha256(asked.evidence, MAX_EVIDENCE),
            request_sha256=payload_sha256(asked.request, MAX_REQUEST),
        )

    def judged(self, appraisal: EvidenceAppraisal) -> None:
        """Take over the verdict on the evidence."""
        self.evidence_type, self.verdict = printable(appraisal.type, 128), appraisal.verdict
        self.checks = [(printable(each.code, 128), each.result) for each in appraisal.checks]

    def facts(self) -> dict[str, Any]:
        """Fields of ``gate.Receipt``."""
        return {
            "job": self.job,
            "evidence_type": self.evidence_type,
            "evidence_sha256": self.evidence_sha256,
            "request_sha256": self.request_sha256,
            "verdict": self.verdict,
            "codes": tuple(self.checks),
            "not_checked": tuple(code for code, result in self.checks if result == "not_checked"),
        }


@dataclass(frozen=True)
class Verifier:
    """By what one tenant judges: keys and digests of its signed documents. ``trust`` is asked for at each decision."""

    site: str
    study: str
    mtls_key: signing.PublicKey
    client_spki: str
    trust: Callable[[], Trust]
    policy_digest: str

    def context(self, job: str, job_digest: str) -> Context:
        """What evidence for the key of ``job`` must be for."""
        return Context(
            purpose="release",
            site=self.site,
            study=self.study,
            job=job,
            job_digest=job_digest,
            bundle_digest="",  # the prover's claim; the policy judges it
            policy_digest=self.policy_digest,
        )


def read_request(envelope: Mapping[str, Any]) -> KeyRequest:
    """The key request in ``envelope``, of which nothing is verified yet; Refused ``bad_request``."""
    payload, signatures = envelope.get("payload"), envelope.get("signatures")
    if not isinstance(payload, str) or len(payload) > MAX_REQUEST:
        raise Refused("bad_request", f"the key request is no envelope, or over {MAX_REQUEST} characters")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise Refused("bad_request", "the key request wants exactly one signature, of the attested key")
    try:
        return msgspec.convert(signing.unverified_body(envelope), KeyRequest, strict=True)
    except (SignatureError, msgspec.ValidationError, RecursionError) as error:
        raise Refused("bad_request", f"the key request does not fit its schema: {error}") from error


def judge_evidence(
    case: Case, evidence: Any, request: KeyRequest, verifier: Verifier, now: datetime
) -> EvidenceAppraisal:
    """Step 4: evidence of the tenant's own site, by its policy, for this job and answering this nonce."""
    appraisal = appraise(
        evidence,
        nonce=request.nonce,
        context=verifier.context(request.job, request.job_digest),
        mtls_key=verifier.mtls_key,
        trust=verifier.trust(),
        now=now,
    )
    case.judged(appraisal)
    if appraisal.verdict != "pass":
        codes = [each.code for each in appraisal.open]
        reason = next((REASON_OF[code] for code in codes if code in REASON_OF), "evidence_refused")
        raise Refused(reason, f"verdict {appraisal.verdict}: {', '.join(codes)}"[:MAX_DETAIL])
    return appraisal


def verify_request(
    envelope: Any, key: signing.PublicKey, request: KeyRequest, verifier: Verifier, now: datetime
) -> None:
    """Step 5: ``request`` is signed by the attested key, and is for this tenant."""
    try:
        signing.verify(envelope, REQUEST_TYPE, [key], now)
    except SignatureError as error:
        raise Refused("bad_request", "the key request is not signed by the key that the evidence binds") from error
    if request.study != verifier.study:
        raise Refused("wrong_study", f"the request is for study {request.study}, this tenant's is {verifier.study}")
    if request.site != verifier.site:
        raise Refused("bad_request", f"the request is of site {request.site}, this tenant's is {verifier.site}")


def context_of(evidence: Any) -> Context:
    """The context that evidence, which passed, was made for; with the prover's own bundle digest."""
    return msgspec.convert(signing.unverified_body(evidence)["context"], Context, strict=True)


def measurements_of(appraisal: EvidenceAppraisal, context: Context) -> set[str]:
    """What a hospital may revoke software by: measurement registers that were signed, and the package's digest."""
    signed = {str(appraisal.claims[name]) for name in REGISTERS if appraisal.claims.get(name)}
    return signed | {context.bundle_digest}


def payload_sha256(envelope: Mapping[str, Any], limit: int) -> str:
    """Hex SHA-256 of an envelope's payload text (base64, as sent); '' if it has none or one over ``limit``."""
    payload = envelope.get("payload")
    if not isinstance(payload, str) or len(payload) > limit or not payload.isascii():
        return ""
    return hashlib.sha256(payload.encode()).hexdigest()


def same(left: str, right: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(left.encode("utf-8", "replace"), right.encode("utf-8", "replace"))
