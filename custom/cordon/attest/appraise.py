"""Make evidence, and judge it: the statement of ``binding`` as a signed message.

Evidence is a DSSE envelope by the prover's mTLS key over ``Evidence``; so the mTLS key certifies the attested signing
key, and the report certifies the process that holds it. ``appraise`` judges against what the *verifier* knows (its
nonce, the roster's key, its policy) and returns all checks together; README.md lists the codes.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey
from msgspec import Meta

from cordon import signing
from cordon.attest.binding import MAX_GPUS, NONCE_BYTES, Context, bundle_digest, gpu_nonce, report_data
from cordon.attest.claims import Attester, Claims
from cordon.attest.keys import KEM_BYTES, ProcessKeys, decode_kem_key
from cordon.attest.policy import AttestationPolicy
from cordon.documents import Document
from cordon.errors import AttestError, ConfigError, SignatureError

EVIDENCE_TYPE = "application/vnd.cordon.evidence.v1+json"
MAX_EVIDENCE = 1024 * 1024  # characters of base64 payload looked at

Result = Literal["pass", "fail", "not_checked"]
T = TypeVar("T")

STATEMENTS = {
    "software": "software evidence: shows which participant's key answered, proves nothing about hardware",
}


class Evidence(Document, frozen=True, kw_only=True):
    """Body of the envelope. Byte strings are base64 in JSON."""

    v: Literal[1]
    type: Annotated[str, Meta(max_length=32)]
    context: Context
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    kem_public_key: Annotated[bytes, Meta(min_length=KEM_BYTES, max_length=KEM_BYTES)]
    signing_public_key: Annotated[bytes, Meta(max_length=1024)]
    report: bytes
    gpu_evidence: Annotated[list[dict[str, Any]], Meta(max_length=MAX_GPUS)] | None


@dataclass(frozen=True)
class Check:
    """One question asked of the evidence. ``waived``: the policy says ``any``, so its answer does not count."""

    code: str
    result: Result
    detail: str
    waived: bool = False


@dataclass(frozen=True)
class Appraisal:
    """The verdict on one piece of evidence, with all checks. The keys are None unless the evidence could be read."""

    type: str
    checks: tuple[Check, ...]
    signing_public_key: Ed25519PublicKey | None
    kem_public_key: MLKEM768X25519PublicKey | None

    @property
    def verdict(self) -> Result:
        """fail if any check failed; not_checked if one was not made that the policy asks for; else pass."""
        counted = [check.result for check in self.checks if not check.waived]
        if "fail" in counted:
            return "fail"
        return "not_checked" if "not_checked" in counted else "pass"

    @property
    def codes(self) -> list[tuple[str, str, str]]:
        """(code, result, detail) of every check: JSON-ready."""
        return [(check.code, check.result, check.detail) for check in self.checks]

    @property
    def statement(self) -> str:
        """For people: what this type of evidence shows."""
        return STATEMENTS.get(self.type, "evidence of a type that this version cannot judge")

    def require(self) -> None:
        """AttestError with every check that stands between this evidence and a pass."""
        if self.verdict != "pass":
            open_ = [check for check in self.checks if check.result != "pass" and not check.waived]
            raise AttestError([(check.code, f"{check.detail} ({check.result})") for check in open_])

    @property
    def signing_key(self) -> Ed25519PublicKey:
        """The attested signing key; only of evidence that passed."""
        return self._passed(self.signing_public_key)

    @property
    def kem_key(self) -> MLKEM768X25519PublicKey:
        """The attested KEM key; only of evidence that passed."""
        return self._passed(self.kem_public_key)

    def _passed(self, key: T | None) -> T:
        self.require()
        if key is None:  # a pass includes process_keys, so this cannot be: say so instead of handing out nothing
            raise AttestError([("process_keys", "the evidence holds no usable key")])
        return key


def make_evidence(
    attester: Attester, ctx: Context, nonce: bytes, keys: ProcessKeys, mtls_key: signing.PrivateKey
) -> dict[str, Any]:
    """The prover's answer to ``nonce``: a DSSE envelope, JSON-ready. ``ctx`` holds the *verifier's* policy digest."""
    gpus = attester.gpu_evidence(gpu_nonce(nonce, keys.kem_public_bytes))
    spki = signing.spki_digest(mtls_key.public_key())
    bound = report_data(ctx, nonce, spki, keys.kem_public_bytes, keys.signing_public_bytes, gpus)
    evidence = Evidence(
        v=1,
        type=attester.type,
        context=ctx,
        nonce=nonce,
        kem_public_key=keys.kem_public_bytes,
        signing_public_key=keys.signing_public_bytes,
        report=attester.report(bound),
        gpu_evidence=gpus,
    )
    return signing.sign(mtls_key, EVIDENCE_TYPE, msgspec.to_builtins(evidence))


def appraise(
    envelope: Any,
    *,
    nonce: bytes,
    context: Context,
    mtls_key: signing.PublicKey,
    policy: AttestationPolicy,
    roots: Mapping[str, x509.Certificate],
    now: datetime,
) -> Appraisal:
    """Judge ``envelope``, from anybody, against what the verifier knows. Returns a verdict also for garbage.

    Args:
        nonce: the verifier's own challenge, already taken from its ``Nonces``.
        context: what the evidence must be for. ``bundle_digest`` is the verifier's own and not compared: what the
            prover claims there is judged by the policy.
        mtls_key: of the prover, from the signed study contract; never from a message.
        roots: evidence type -> root certificate of the software TEE.
    """
    # 1. Authenticity first: nothing of the body is looked at, and nothing costly done, for a stranger.
    evidence, first = _open_envelope(envelope, mtls_key, now)
    if evidence is None:
        return Appraisal("unknown", (first,), None, None)
    checks = [first]

    # 2. What it is for.
    want, got = msgspec.to_builtins(context), msgspec.to_builtins(evidence.context)
    for field in ("purpose", "site", "study", "job", "job_digest", "policy_digest"):
        same = got[field] == want[field]
        checks.append(
            _check(f"context_{field}", same, "as expected" if same else f"{got[field]!r}, want {want[field]!r}")
        )
    fresh = hmac.compare_digest(evidence.nonce, nonce)
    checks.append(_check("nonce", fresh, "answers this challenge" if fresh else "answers another challenge"))

    # 3. The keys that it is about.
    signing_key, kem_key, keys = _keys(evidence)
    checks.append(keys)

    # 4. The report: of an accepted type, genuine, and over just this statement.
    accepted = ", ".join(policy.evidence)
    checks.append(_check("evidence_type", evidence.type in policy.evidence, f"{evidence.type!r}, accepted: {accepted}"))
    checks += _report_checks(evidence, context.site, mtls_key, policy, roots, now)

    # 5. What runs there.
    checks.append(_listed("bundle_digest", evidence.context.bundle_digest, policy.bundle_digest))
    checks.append(_gpu(evidence, policy))
    return Appraisal(evidence.type, tuple(checks), signing_key, kem_key)


def _open_envelope(envelope: Any, mtls_key: signing.PublicKey, now: datetime) -> tuple[Evidence | None, Check]:
    payload = envelope.get("payload") if isinstance(envelope, dict) else None
    if not isinstance(payload, str) or len(payload) > MAX_EVIDENCE:
        return None, Check("evidence_format", "fail", f"not an envelope, or over {MAX_EVIDENCE} characters")
    try:
        body, _ = signing.verify(envelope, EVIDENCE_TYPE, [mtls_key], now)
        evidence = msgspec.convert(body, Evidence, strict=True)
    except SignatureError as error:
        return None, Check("mtls_signature", "fail", f"not signed by the mTLS key in the study contract: {error}")
    except (msgspec.ValidationError, RecursionError) as error:
        return None, Check("evidence_format", "fail", str(error))
    return evidence, Check("mtls_signature", "pass", "signed by the mTLS key in the study contract")


def _keys(evidence: Evidence) -> tuple[Ed25519PublicKey | None, MLKEM768X25519PublicKey | None, Check]:
    try:
        signing_key = signing.load_public_key(evidence.signing_public_key)
        if not isinstance(signing_key, Ed25519PublicKey):
            raise ConfigError("the signing key is not Ed25519")
        kem_key = decode_kem_key(evidence.kem_public_key)
    except ConfigError as error:
        return None, None, Check("process_keys", "fail", f"a key in the evidence cannot be used: {error}")
    return signing_key, kem_key, Check("process_keys", "pass", "signing and KEM key are well-formed")


def _report_checks(
    evidence: Evidence,
    site: str,
    mtls_key: signing.PublicKey,
    policy: AttestationPolicy,
    roots: Mapping[str, x509.Certificate],
    now: datetime,
) -> list[Check]:
    claims = _verify_report(evidence, policy, roots, now)
    if isinstance(claims, Check):
        return [claims]
    try:
        bound = report_data(
            evidence.context,
            evidence.nonce,
            signing.spki_digest(mtls_key),
            evidence.kem_public_key,
            evidence.signing_public_key,
            evidence.gpu_evidence,
        )
    except (ConfigError, RecursionError):
        return [Check("report_data", "fail", "this statement has no canonical form to cover")]
    same = hmac.compare_digest(bound, claims.report_data)
    holder = claims.holder is None or claims.holder == site
    return [
        Check("report_genuine", "pass", f"genuine {claims.type} report"),
        _check("report_data", same, "covers this statement" if same else "was made for another statement"),
        _check("tee_holder", holder, f"TEE key of {claims.holder!r}, want {site!r}"),
        _listed("measurement", claims.measurement, policy.measurement),
    ]


def _verify_report(
    evidence: Evidence, policy: AttestationPolicy, roots: Mapping[str, x509.Certificate], now: datetime
) -> Claims | Check:
    """Claims of a genuine report of a type that the policy accepts, else the check that says why there are none."""
    if evidence.type not in policy.evidence:
        return Check("report_genuine", "not_checked", "not looked at: the policy does not accept its type")
    if evidence.type != "software":
        return Check("report_genuine", "not_checked", f"no verifier for {evidence.type} in this version")
    from cordon.attest import software  # only where a POC policy asks for it: the production image has no such file

    root = roots.get(evidence.type)
    if root is None:
        return Check("report_genuine", "not_checked", f"no root certificate for {evidence.type}")
    try:
        return software.verify_report(evidence.report, root, now)
    except AttestError as error:
        return Check("report_genuine", "fail", str(error))


def _gpu(evidence: Evidence, policy: AttestationPolicy) -> Check:
    present = evidence.gpu_evidence is not None
    if policy.gpu == "none":
        return _check("gpu", not present, "GPU evidence came" if present else "no GPU, as the policy says")
    if not present and policy.gpu == "required":
        return Check("gpu", "fail", "the policy wants GPU evidence and none came")
    detail = "no verifier for GPU evidence in this version" if present else "no GPU evidence"
    return Check("gpu", "not_checked", detail, waived=policy.gpu == "any")


def _check(code: str, ok: bool, detail: str) -> Check:
    return Check(code, "pass" if ok else "fail", detail)


def _listed(code: str, value: str, allowed: tuple[str, ...] | Literal["any"]) -> Check:
    if allowed == "any":
        return Check(code, "not_checked", f"{value} (the policy says any)", waived=True)
    return _check(code, value in allowed, f"{value}, {'listed' if value in allowed else 'not listed'} in the policy")


def parent_context(site: str, study_digest: str, policy_digest: str) -> Context:
    """Context of evidence for admission to the federation."""
    return Context(
        purpose="parent",
        site=site,
        study=study_digest,
        job="",
        job_digest="",
        bundle_digest=bundle_digest(),
        policy_digest=policy_digest,
    )
