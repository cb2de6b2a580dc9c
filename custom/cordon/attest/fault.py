"""A fault that a third party can verify: the peer's own signed statement, which does not pass.

A verifier's word is not enough to shut a site out: a coordinator could frame an honest one. So a fault is proven only
by evidence that the peer signed for this verifier's policy, and only by checks that anybody can repeat. What depends on
the verifier's word alone (the nonce it says it sent, when the answer came, silence) gives no lease but proves nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cordon import signing
from cordon.attest.appraise import appraise, read_evidence
from cordon.attest.vendor import Trust
from cordon.attest.verdict import Appraisal, Check
from cordon.documents import Document
from cordon.errors import AttestError

FAULT_TYPE = "application/vnd.cordon.fault.v1+json"

STATEMENT = frozenset(
    {
        "mtls_signature",
        "context_purpose",
        "context_site",
        "context_study",
        "context_policy_digest",
    }
)
"""Unless these pass, the statement is not about this study, peer and policy: shown to the wrong verifier, it proves
nothing against its maker."""

UNPROVEN = frozenset(
    {
        *("evidence_format", "nonce", "context_job", "context_job_digest", "internal_error"),
        *("crl", "crl_age", "crl_format", "gpu_rim_driver", "gpu_rim_vbios", "gpu_rim_format"),
        *("collateral_format", "collateral_validity", "collateral_max_age_s", "collateral_chain"),
        *("tcb_info", "qe_identity", "quote_verification"),
        *("revoked", "tcb_level", "tcb_status", "advisory_ids", "out_of_date_grace_s", "min_tcb_evaluation_number"),
    }
)
"""Fails that rest on what the verifier says it asked, or on collateral: its own may be old or broken, and a newer one
speaks against evidence that was good when it was shown (the last line)."""


class FaultRecord(Document, frozen=True, kw_only=True):
    """What a verifier signs: whose evidence, judged when and by which policy, and what failed."""

    v: Literal[1]
    verifier: Annotated[str, Meta(max_length=128)]
    peer: Annotated[str, Meta(max_length=128)]
    study: Annotated[str, Meta(max_length=128)]
    policy_digest: Annotated[str, Meta(max_length=128)]
    time: Annotated[datetime, Meta(tz=True)]
    evidence: dict[str, Any]
    failures: Annotated[list[tuple[str, str]], Meta(min_length=1, max_length=256)]


def proven(appraisal: Appraisal) -> list[tuple[str, str]]:
    """(code, detail) of the failed checks of ``appraisal`` that a third party can repeat; empty where there are none.

    Checks against the clock don't count: whoever keeps an old, once good answer could show it after its certificate
    expired.
    """
    results = {check.code: check.result for check in appraisal.checks}
    if any(results.get(code) != "pass" for code in STATEMENT):
        return []
    return [(check.code, check.detail) for check in appraisal.checks if check.result == "fail" and _repeatable(check)]


def record(
    verifier: str,
    key: signing.PrivateKey,
    peer: str,
    study: str,
    envelope: dict[str, Any],
    trust: Trust,
    appraisal: Appraisal,
    now: datetime,
) -> dict[str, Any] | None:
    """The signed record of a proven fault in ``envelope``, JSON-ready; None where nothing is proven."""
    failures = proven(appraisal)
    if not failures:
        return None
    body = FaultRecord(
        v=1,
        verifier=verifier,
        peer=peer,
        study=study,
        policy_digest=trust.policy.digest,
        time=now,
        evidence=envelope,
        failures=failures[:256],
    )
    return signing.sign(key, FAULT_TYPE, msgspec.to_builtins(body))


def verify(
    envelope: Any,
    *,
    verifier_key: signing.PublicKey,
    peer: str,
    peer_key: signing.PublicKey,
    study: str,
    trust: Trust,
    now: datetime,
) -> list[tuple[str, str]]:
    """The proven failures in a fault record, found again by whoever asks; the verifier's list is not believed.

    Args:
        verifier_key: mTLS key of who accuses; ``peer_key``: of who is accused; both from the signed study contract.
        trust: the policy that the third party knows to be in force, and its own collateral.

    Raises:
        SignatureError: not a record by ``verifier_key``.
        AttestError: ``fault_unproven``: the record does not prove a fault of ``peer``.
    """
    body, _ = signing.verify(envelope, FAULT_TYPE, [verifier_key], now)
    try:
        said = msgspec.convert(body, FaultRecord, strict=True)
        evidence = read_evidence(said.evidence, peer_key, now)
    except (msgspec.ValidationError, AttestError) as error:
        raise AttestError([("fault_unproven", f"the record holds no evidence signed by {peer}: {error}")]) from error
    if said.peer != peer or said.study != study or said.time > now:
        raise AttestError([("fault_unproven", "the record is of another peer, another study, or of the future")])
    own = evidence.context
    wanted = msgspec.structs.replace(own, site=peer, study=study, policy_digest=trust.policy.digest)
    again = appraise(said.evidence, nonce=evidence.nonce, context=wanted, mtls_key=peer_key, trust=trust, now=said.time)
    failures = proven(again)
    if not failures:
        detail = f"judged again by policy {trust.policy.name}, {peer}'s evidence shows no fault that can be repeated"
        raise AttestError([("fault_unproven", detail)])
    return failures


def _repeatable(check: Check) -> bool:
    return check.code not in UNPROVEN and not check.clock
