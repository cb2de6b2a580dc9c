"""Did an Intel platform sign this quote? dcap-qvl answers with collateral, we ourselves without it or where it refuses.

Without collateral only the signatures can be checked, neither the TCB level nor revocation: nothing is established.
Where dcap-qvl refuses, our own checks and ``evaluation`` say under which codes the faults are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cordon.attest.dcap import collateral as collaterals
from cordon.attest.dcap import pck, reports
from cordon.attest.dcap.collateral import JUDGED, Collateral, Judgement, Verified
from cordon.attest.dcap.evaluation import evaluate
from cordon.attest.dcap.quote import ECDSA_P256, INTEL_QE_VENDOR_ID, PCK_CERT_CHAIN, Quote
from cordon.attest.verdict import Check, Result, check, valid_at

NO_COLLATERAL = "no collateral was given"
OWN_READING = "our own reading finds nothing wrong"
SIGNED = ("pck_chain", "qe_report_signature", "attestation_key", "quote_signature")
TEE_NAMES = {0x00: "SGX", 0x81: "TDX"}


@dataclass(frozen=True)
class Established:
    """What is known about the origin of a quote.

    ``platform`` is None if the PCK certificate cannot be read, ``verified`` if there is no collateral or it is not met.
    """

    checks: tuple[Check, ...]
    platform: pck.Platform | None
    qe: reports.SgxReport
    collateral: Collateral | None
    verified: Verified | None


def establish(
    quote: Quote, data: bytes, tee_type: int, collateral: Collateral | None, now: datetime, root: x509.Certificate
) -> Established:
    """Every check of kind genuine or revocation that does not concern the body; ``data`` is the whole quote."""
    # 1. The header says what kind of quote this is, and nothing lies behind its end.
    checks = _header(quote, tee_type)
    # 2. The PCK certificates are there, valid, and end in the pinned root.
    pinned = root.public_bytes(Encoding.DER)
    chain, chain_checks = _chain(quote, now, pinned)
    platform, platform_check = _platform(chain)
    checks += [*chain_checks, platform_check]
    # 3. Root -> PCK -> QE report -> attestation key -> quote, and what Intel says about this platform today.
    verified = None
    if collateral is None:
        signed, judged = _signatures(quote, chain, root), _unjudged()
    else:
        end = len(data) - len(quote.tail)
        judgement = collaterals.judge(data[:end], collateral, now, pinned)
        verified = judgement.verified
        if verified is not None:
            signed, judged = _accepted(verified)
        else:
            faults, verified = evaluate(quote, collateral, chain, platform, now, root)
            signed, judged = _signatures(quote, chain, root), _refused(judgement, faults)
    checks += [*signed, _validity(collateral, now), *judged]
    return Established(tuple(checks), platform, reports.sgx_report(quote.qe_report), collateral, verified)


def _header(quote: Quote, tee_type: int) -> list[Check]:
    names = [TEE_NAMES.get(each, "unknown") for each in (quote.tee_type, tee_type)]
    # Version 3 is SGX's, 4 and 5 are TDX's here: SGX quotes of versions 4 and 5 exist on paper, dcap-qvl refuses them.
    fits = (quote.version == 3) is (tee_type == 0) and (quote.body_kind == "sgx") is (tee_type == 0)
    same = quote.tee_type == tee_type and fits
    said = f"TEE type {quote.tee_type:#04x} ({names[0]}), version {quote.version}, body {quote.body_kind}"
    padding = "nothing" if not quote.tail else f"{len(quote.tail)} bytes, {'not ' if any(quote.tail) else ''}all zero"
    return [
        check("tee_type", same, said if same else f"{said}, want {tee_type:#04x} ({names[1]})", "genuine"),
        check(
            "attestation_key_type",
            quote.attestation_key_type == ECDSA_P256,
            f"attestation key type {quote.attestation_key_type}, want {ECDSA_P256} (ECDSA on P-256)",
            "genuine",
        ),
        check(
            "qe_vendor_id",
            quote.qe_vendor_id == INTEL_QE_VENDOR_ID,
            f"QE vendor {quote.qe_vendor_id}, want {INTEL_QE_VENDOR_ID} (Intel)",
            "genuine",
        ),
        # Padding is what buffers of fixed size leave; anything else is a message that nobody signed.
        check("quote_tail", not any(quote.tail), f"after the quote's end: {padding}", "genuine"),
    ]


def _chain(quote: Quote, now: datetime, pinned: bytes) -> tuple[pck.Chain | None, list[Check]]:
    fault = ""
    chain: pck.Chain | None = None
    if quote.certification_type != PCK_CERT_CHAIN:
        fault = f"certification data of type {quote.certification_type}, want {PCK_CERT_CHAIN} (certificates)"
    else:
        try:
            chain = pck.read_chain(quote.certification_data)
        except ValueError as error:
            fault = f"certification data: {error}"
    found = check("certification_data", chain is not None, fault or "PCK certificate, its CA, the root", "genuine")
    if chain is None:
        return None, [found, _unasked("pck_root", fault), _unasked("pck_validity", fault)]
    digests = [hashlib.sha256(each).hexdigest() for each in (chain.root_der, pinned)]
    since = max(each.not_valid_before_utc for each in chain[:3])
    until = min(each.not_valid_after_utc for each in chain[:3])
    return chain, [
        found,
        check("pck_root", chain.root_der == pinned, f"the root is {digests[0]}, pinned is {digests[1]}", "genuine"),
        valid_at("pck_validity", "the PCK chain", since, until, now),
    ]


def _platform(chain: pck.Chain | None) -> tuple[pck.Platform | None, Check]:
    if chain is None:
        return None, _unasked("pck_certificate", "no PCK certificate")
    try:
        platform = pck.read_platform(chain.pck)
    except ValueError as error:
        return None, check("pck_certificate", False, f"PCK certificate: {error}", "genuine")
    detail = f"platform of FMSPC {platform.fmspc}, PCESVN {platform.pce_svn}"
    return platform, check("pck_certificate", True, detail, "genuine")


def _signatures(quote: Quote, chain: pck.Chain | None, root: x509.Certificate) -> list[Check]:
    """The codes of ``SIGNED``, each checked by us."""
    if chain is None:
        first = [_unasked("pck_chain", "no PCK certificate"), _unasked("qe_report_signature", "no PCK certificate")]
    else:
        faults = pck.chain_faults((chain.pck, chain.ca, root))
        try:
            signed = pck.signed_by(pck.p256_key(chain.pck), quote.qe_report_signature, quote.qe_report)
            fault = "" if signed else "the QE report is not signed by the PCK"
        except ValueError as error:
            fault = f"PCK certificate: {error}"
        first = [
            check("pck_chain", not faults, "; ".join(faults) or "PCK certificate, its CA, the pinned root", "genuine"),
            check("qe_report_signature", not fault, fault or "the PCK signed the QE report", "genuine"),
        ]
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest() + bytes(32)
    binds = reports.sgx_report(quote.qe_report).report_data == bound
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + quote.attestation_key)
        signed = pck.signed_by(key, quote.signature, quote.signed)
        fault = "" if signed else "header and body are not signed by the attestation key"
    except ValueError:
        fault = "the attestation key is no point on P-256"
    return [
        *first,
        check(
            "attestation_key",
            binds,
            f"the QE's report names {'this' if binds else 'another'} attestation key",
            "genuine",
        ),
        check("quote_signature", not fault, fault or "the attestation key signed header and body", "genuine"),
    ]


def _validity(collateral: Collateral | None, now: datetime) -> Check:
    if collateral is None:
        return _unasked("collateral_validity", NO_COLLATERAL)
    lapsed = [each for each in collateral.periods if not each.since <= now <= each.until]
    if lapsed:
        periods = "; ".join(
            f"{each.name} is valid {collaterals.stamp(each.since)} to {collaterals.stamp(each.until)}"
            for each in lapsed
        )
        return check("collateral_validity", False, f"{periods}; now is {collaterals.stamp(now)}", "genuine")
    first = min(collateral.periods, key=lambda each: each.until)
    return check("collateral_validity", True, f"valid until {collaterals.stamp(first.until)} ({first.name})", "genuine")


def _unjudged() -> list[Check]:
    parts = [_part(code, "not_checked", NO_COLLATERAL) for code in JUDGED]
    return [*parts, _unasked("quote_verification", NO_COLLATERAL)]


def _accepted(verified: Verified) -> tuple[list[Check], list[Check]]:
    signed = [check(code, True, "dcap-qvl verified it", "genuine") for code in SIGNED]
    parts = [_part(code, "pass", "dcap-qvl found nothing wrong") for code in JUDGED]
    whole = check("quote_verification", True, f"dcap-qvl accepts the quote, status {verified.tcb.status}", "genuine")
    return signed, [*parts, whole]


def _refused(judgement: Judgement, faults: dict[str, list[str]]) -> list[Check]:
    """Our own reading says where the faults lie. dcap-qvl's no is final, unless it is to the workload alone."""
    parts = [_part(code, "fail" if faults[code] else "pass", "; ".join(faults[code]) or OWN_READING) for code in JUDGED]
    detail = f"dcap-qvl refuses the quote: {judgement.objection}"
    if judgement.of_workload:
        detail = f"dcap-qvl objects to the workload alone, which the policy judges: {judgement.objection}"
    return [*parts, check("quote_verification", judgement.of_workload, detail, "genuine")]


def _part(code: str, result: Result, detail: str) -> Check:
    return Check(code, result, detail, "revocation" if code == "crl" else "genuine")


def _unasked(code: str, why: str) -> Check:
    return Check(code, "not_checked", why, "genuine")
