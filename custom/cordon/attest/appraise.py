"""Make evidence, and judge it: the statement of ``binding`` as a signed message.

Evidence is a DSSE envelope by the prover's mTLS key over ``Evidence``; so the mTLS key certifies the attested signing
key, and the report certifies the process that holds it. ``appraise`` judges against what the *verifier* knows (its
nonce, the roster's key, its policy) and returns all checks together; README.md lists the codes.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey
from msgspec import Meta

from cordon import signing
from cordon.attest.binding import MAX_GPUS, NONCE_BYTES, Context, bundle_digest, gpu_nonce, report_data
from cordon.attest.claims import Attester, Report
from cordon.attest.keys import AttestedKeys, ProcessKeys
from cordon.attest.vendor import Trust, verify
from cordon.attest.verdict import Appraisal, Check, check, listed
from cordon.documents import Document
from cordon.errors import AttestError, ConfigError, SignatureError
from cordon.sealing import KEM_BYTES, decode_kem_key, kem_digest

EVIDENCE_TYPE = "application/vnd.cordon.evidence.v2+json"
MAX_EVIDENCE = 1024 * 1024  # characters of base64 payload looked at

MAX_ENDORSEMENTS = 8
T = TypeVar("T")

STATEMENTS = {
    "software": "software evidence: shows which participant's key answered, proves nothing about hardware",
    "snp": "AMD SEV-SNP: a measured confidential VM on a genuine AMD processor holds these keys",
    "tdx": "Intel TDX: a measured trust domain on a genuine Intel processor holds these keys",
    "sgx": "Intel SGX: a measured enclave on a genuine Intel processor holds these keys",
    "az-snp": "Azure confidential VM on AMD SEV-SNP, through Microsoft's paravisor and its virtual TPM",
    "az-tdx": "Azure confidential VM on Intel TDX, through Microsoft's paravisor and its virtual TPM",
}


class Evidence(Document, frozen=True, kw_only=True):
    """Body of the envelope. Byte strings are base64 in JSON."""

    v: Literal[2]
    type: Annotated[str, Meta(max_length=32)]
    context: Context
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    kem_public_key: Annotated[bytes, Meta(min_length=KEM_BYTES, max_length=KEM_BYTES)]
    signing_public_key: Annotated[bytes, Meta(max_length=1024)]
    report: bytes
    endorsements: Annotated[dict[str, bytes], Meta(max_length=MAX_ENDORSEMENTS)]
    gpu_evidence: Annotated[list[dict[str, Any]], Meta(max_length=MAX_GPUS)] | None


@dataclass(frozen=True)
class EvidenceAppraisal(Appraisal):
    """The verdict on a whole statement. The keys are None unless the evidence could be read."""

    signing_public_key: Ed25519PublicKey | None = None
    kem_public_key: MLKEM768X25519PublicKey | None = None
    kem_public_bytes: bytes = b""

    @property
    def statement(self) -> str:
        """For people: what this type of evidence shows."""
        return STATEMENTS.get(self.type, "evidence of a type that the policy does not accept")

    @property
    def signing_key(self) -> Ed25519PublicKey:
        """The attested signing key; only of evidence that passed."""
        return self._passed(self.signing_public_key)

    @property
    def kem_key(self) -> MLKEM768X25519PublicKey:
        """The attested KEM key; only of evidence that passed."""
        return self._passed(self.kem_public_key)

    @property
    def process_keys(self) -> AttestedKeys:
        """Both attested keys and what names them; only of evidence that passed."""
        names = signing.spki_digest(self.signing_key), kem_digest(self.kem_public_bytes)
        return AttestedKeys(self.signing_key, self.kem_key, names)

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
    made = attester.report(bound)
    evidence = Evidence(
        v=2,
        type=attester.type,
        context=ctx,
        nonce=nonce,
        kem_public_key=keys.kem_public_bytes,
        signing_public_key=keys.signing_public_bytes,
        report=made.report,
        endorsements=dict(made.endorsements),
        gpu_evidence=gpus,
    )
    return signing.sign(mtls_key, EVIDENCE_TYPE, msgspec.to_builtins(evidence))


def appraise(
    envelope: Any,
    *,
    nonce: bytes,
    context: Context,
    mtls_key: signing.PublicKey,
    trust: Trust,
    now: datetime,
) -> EvidenceAppraisal:
    """Judge ``envelope``, from anybody, against what the verifier knows. Returns a verdict also for garbage.

    Args:
        nonce: the verifier's own challenge, already taken from its ``Nonces``.
        context: what the evidence must be for. ``bundle_digest`` is the verifier's own and not compared: what the
            prover claims there is judged by the policy.
        mtls_key: of the prover, from the signed study contract; never from a message.
        trust: the verifier's policy, and what it holds of the vendors.
    """
    # 1. Authenticity first: nothing of the body is looked at, and nothing costly done, for a stranger.
    try:
        evidence = read_evidence(envelope, mtls_key, now)
    except AttestError as error:
        return EvidenceAppraisal("unknown", tuple(Check(code, "fail", why) for code, why in error.failures))
    policy = trust.policy
    checks = [Check("mtls_signature", "pass", "signed by the mTLS key in the study contract")]

    # 2. What it is for.
    want, got = msgspec.to_builtins(context), msgspec.to_builtins(evidence.context)
    for field in ("purpose", "site", "study", "job", "job_digest", "policy_digest"):
        same = got[field] == want[field]
        checks.append(
            check(f"context_{field}", same, "as expected" if same else f"{got[field]!r}, want {want[field]!r}")
        )
    fresh = hmac.compare_digest(evidence.nonce, nonce)
    checks.append(check("nonce", fresh, "answers this challenge" if fresh else "answers another challenge"))

    # 3. The keys that it is about.
    signing_key, kem_key, keys = _keys(evidence)
    checks.append(keys)

    # 4. The report: of an accepted type, genuine, and over just this statement.
    accepted = ", ".join(policy.evidence)
    checks.append(check("evidence_type", evidence.type in policy.evidence, f"{evidence.type!r}, accepted: {accepted}"))
    report, claims = _report_checks(evidence, context.site, mtls_key, trust, now)
    checks += report

    # 5. What runs there.
    checks.append(listed("bundle_digest", evidence.context.bundle_digest, policy.bundle_digest))
    checks += _gpu_checks(evidence, trust, now)
    return EvidenceAppraisal(evidence.type, tuple(checks), claims, True, signing_key, kem_key, evidence.kem_public_key)


def read_evidence(envelope: Any, mtls_key: signing.PublicKey, now: datetime) -> Evidence:
    """The statement in ``envelope``, signed by ``mtls_key``; nothing of it is looked at before the signature holds.

    Raises:
        AttestError: ``evidence_format`` or ``mtls_signature``.
    """
    payload = envelope.get("payload") if isinstance(envelope, dict) else None
    if not isinstance(payload, str) or len(payload) > MAX_EVIDENCE:
        raise AttestError([("evidence_format", f"not an envelope, or over {MAX_EVIDENCE} characters")])
    if not isinstance(envelope.get("signatures"), list) or len(envelope["signatures"]) != 1:
        # Others' signatures would be carried along unread, into fault records too, in any number and length.
        raise AttestError([("evidence_format", "want exactly one signature, the prover's")])
    try:
        body, _ = signing.verify(envelope, EVIDENCE_TYPE, [mtls_key], now)
        return msgspec.convert(body, Evidence, strict=True)
    except SignatureError as error:
        why = f"not signed by the mTLS key in the study contract: {error}"
        raise AttestError([("mtls_signature", why)]) from error
    except (msgspec.ValidationError, RecursionError) as error:
        raise AttestError([("evidence_format", str(error))]) from error


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
    evidence: Evidence, site: str, mtls_key: signing.PublicKey, trust: Trust, now: datetime
) -> tuple[list[Check], dict[str, Any]]:
    """The vendor's verdict on the report as one about this statement, and the report's claims."""
    if evidence.type not in trust.policy.evidence:
        return [Check("report_data", "not_checked", "not looked at: the policy does not accept its type")], {}
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
        return [Check("report_data", "fail", "this statement has no canonical form to cover")], {}
    vendor = verify(evidence.type, Report(evidence.report, evidence.endorsements), bound, trust, now)
    checks = list(vendor.checks)
    if "holder" in vendor.claims:  # software TEE: keys are issued to participants, a vendor certifies chips
        holder = vendor.claims["holder"]
        checks.append(check("tee_holder", holder == site, f"TEE key of {holder!r}, want {site!r}"))
    return checks, dict(vendor.claims)


def _gpu_checks(evidence: Evidence, trust: Trust, now: datetime) -> list[Check]:
    wanted, gpus = trust.policy.gpu, evidence.gpu_evidence
    if wanted == "none":
        return [check("gpu", gpus is None, "no GPU, as the policy says" if gpus is None else "GPU evidence came")]
    if wanted == "any":
        return [Check("gpu", "not_checked", "GPU evidence is not looked at: the policy says any", waived=True)]
    if not gpus:
        return [Check("gpu", "fail", "the policy wants GPU evidence and none came")]
    from cordon.attest import nvgpu

    try:
        nonce = gpu_nonce(evidence.nonce, evidence.kem_public_key)
        devices = nvgpu.verify_devices(gpus, nonce, rims=trust.collateral.rims, now=now, policy=wanted)
    except ConfigError as error:
        code, _, detail = str(error).partition(": ")
        return [Check(f"gpu_{code}", "fail", detail or str(error), "genuine")]
    return [check("gpu", True, f"evidence of {len(gpus)} devices came"), *devices]


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
