"""SEV-SNP evidence: report, VEK, chain and CRL in; every check's answer out."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cordon.attest.snp import abi, certificates, revocation, validate
from cordon.attest.snp.abi import Report
from cordon.attest.snp.certificates import Anchor, Vek
from cordon.attest.snp.policy import SnpPolicy
from cordon.attest.verdict import Appraisal, Check, check, utc, valid_at
from cordon.errors import ConfigError


def verify(
    report: bytes,
    *,
    vek: bytes,
    chain: bytes | None = None,
    crl: bytes | None = None,
    now: datetime,
    policy: SnpPolicy | None = None,
    product: str | None = None,
    report_data: bytes | None = None,
    roots: Mapping[str, Anchor] | None = None,
) -> Appraisal:
    """Judge one attestation report. Asks everything that can be asked; the checks are those of README.md.

    Args:
        report: ATTESTATION_REPORT, 1184 bytes (AMD 56860 r1.58).
        vek: VCEK or VLEK, PEM or DER; PEM may go on with ASK or ASVK, and ARK.
        chain: ASK or ASVK, and ARK, as PEM, instead of the embedded ones; the VEK may stand there again. Its ARK must
            be the pinned one.
        crl: AMD's list of revoked certificates for this product, PEM or DER.
        now: with a time zone; certificates and CRL must be in force then.
        policy: what is wanted; None asks only whether AMD's hardware signed this and whether it is a debug guest.
        product: "Milan", "Genoa" or "Turin", if known from elsewhere; a version 2 report does not say it itself.
        report_data: the 64 bytes that REPORT_DATA must hold; None leaves that to the caller.
        roots: trust anchors by product; for a test PKI only: no command and no kit sets it.

    Raises:
        ConfigError: something cannot be read: ``report_format``, ``vek_format``, ``chain_format``, ``crl_format``,
            ``product``, ``report_data``, ``now``.
    """
    # 1. Read everything; what cannot be read gets no verdict.
    parsed = Report.parse(report)
    leaf, *above = certificates.load(vek, "vek")
    key = certificates.read_vek(leaf)
    given = certificates.load(chain, "chain") if chain is not None else above
    given = [each for each in given if each != leaf]  # AMD's tools write the VEK in front of its chain
    supplied = certificates.split_chain(given) if given else None
    listed = None if crl is None else revocation.load(crl)
    now = utc(now)
    if product is not None and product not in certificates.PRODUCTS:
        raise ConfigError(f"product: {product!r}, want one of {', '.join(certificates.PRODUCTS)}")
    if report_data is not None and (not isinstance(report_data, bytes) or len(report_data) != 64):
        raise ConfigError("report_data: want 64 bytes")
    anchors = certificates.pinned() if roots is None else roots

    # 2. Which product line? The VEK's issuer says which root to ask, the CPU and the VEK itself must agree with it.
    line = _line_of_issuer(key, anchors)
    anchor = anchors[line] if line else None
    asked = [_product_line(parsed, key, line, product)]

    # 3. The report's form: nothing hidden in reserved bytes, signed, by the kind of key that came with it.
    asked += _form(parsed, key, line)

    # 4. The VEK's form, then its chain up to the pinned root, each certificate in force now.
    asked.append(_vek_form(key, line))
    intermediate, answers = _chain(key, supplied, anchor, line, now)
    asked += answers

    # 5. Revocation, as far as a list was given.
    root = anchor.ark if anchor else None
    asked += revocation.checks(listed, root, tuple(each for each in (intermediate, root) if each), now, policy)

    # 6. The VEK is the one of this chip, or of this cloud, at this TCB version.
    asked += [_hardware(parsed, key, line), _tcb_binding(parsed, key, line)]

    # 7. The report is signed by it.
    asked.append(_signature(parsed, key))

    # 8. What was signed is what is wanted.
    asked += validate.checks(parsed, key, parsed.product or line, policy)
    asked.append(_report_data(parsed, report_data))
    return Appraisal("snp", tuple(asked), _claims(parsed, key, line), policy is not None)


def product_of(report: bytes, vek: bytes) -> str:
    """Product line that report or VEK name, to find its collateral; '' if they don't. Nothing is judged.

    Raises:
        ConfigError: as ``verify``.
    """
    line = Report.parse(report).product
    named = certificates.read_vek(certificates.load(vek, "vek")[0]).product_name.partition("-")[0]
    return line or certificates.LINE_OF.get(named) or ""


def _line_of_issuer(vek: Vek, anchors: Mapping[str, Anchor]) -> str | None:
    """The product line whose ASK (for a VCEK) or ASVK (for a VLEK) the VEK names as its issuer."""
    if vek.kind is None:
        return None
    issuer = vek.certificate.issuer
    return next((line for line, anchor in anchors.items() if anchor.intermediate(vek.kind).subject == issuer), None)


def _product_line(report: Report, vek: Vek, line: str | None, wanted: str | None) -> Check:
    named = certificates.LINE_OF.get(vek.product_name.partition("-")[0])
    cpu = (
        "CPU not said (version 2)" if report.cpuid is None else "CPU {:02x}h/{:02x}h stepping {}".format(*report.cpuid)
    )
    said = f"{cpu}: {report.product or 'unknown'}; issuer of the VEK: {line or 'unknown'}; VEK: {vek.product_name!r}"
    found = {line, named} if report.cpuid is None else {line, named, report.product}
    ok = len(found) == 1 and None not in found and wanted in (None, line)
    return check("product_line", ok, said if wanted is None else f"{said}; caller: {wanted}", "genuine")


def _form(report: Report, vek: Vek, line: str | None) -> list[Check]:
    nonzero = list(report.nonzero)
    layout = report.product or line
    if layout:
        for name in validate.TCBS:
            nonzero += [f"{name} byte {index}" for index in abi.reserved_tcb_bytes(getattr(report, name), layout)]
    algorithm, signer = report.signature_algo, report.signer or f"nobody or a reserved kind ({report.signing_key})"
    return [
        check("reserved_zero", not nonzero, f"not as specified: {', '.join(nonzero) or 'none'}", "genuine"),
        check(
            "signature_algorithm", algorithm == abi.ECDSA_P384_SHA384, f"{algorithm}, want 1 (ECDSA P-384)", "genuine"
        ),
        check("signing_key", report.signer == vek.kind is not None, f"report: {signer}; VEK: {vek.kind}", "genuine"),
    ]


def _vek_form(vek: Vek, line: str | None) -> Check:
    wrong = list(vek.wrong)
    if line and ("fmc" in vek.tcb) != ("fmc" in abi.TCB_LAYOUT[line]):
        wrong.append("the fmc SPL is for Turin, and only for it")
    return check("vek_certificate", not wrong, "; ".join(wrong) or f"{vek.kind} as AMD 57230 wants it", "genuine")


def _chain(
    vek: Vek,
    supplied: tuple[x509.Certificate, x509.Certificate] | None,
    anchor: Anchor | None,
    line: str | None,
    now: datetime,
) -> tuple[x509.Certificate | None, list[Check]]:
    """The chain's checks; every signature is checked with the pinned ARK, whatever the chain brings along.

    (microsoft/TEE-Attestation-Verification issue #140: an ARK from the evidence that is its own anchor proves nothing.)
    """
    if anchor is None or line is None or vek.kind is None:
        codes = ("chain_root", "chain_intermediate", "vek_signature", "ark_validity", "intermediate_validity")
        checks = [
            Check(code, "not_checked", "no ASK or ASVK has the VEK's issuer as its name", "genuine") for code in codes
        ]
        return None, [*checks, _validity("vek_validity", "VEK", vek.certificate, now)]

    intermediate, ark = supplied or (anchor.intermediate(vek.kind), anchor.ark)
    role = "ASK" if vek.kind == "vcek" else "ASVK"
    name = f"SEV-{line}" if vek.kind == "vcek" else f"SEV-VLEK-{line}"
    faults = certificates.intermediate_faults(intermediate, anchor.ark, name)
    pinned, signed = ark == anchor.ark, certificates.signed_by(vek.certificate, intermediate)
    return intermediate, [
        check("chain_root", pinned, f"the ARK is {'' if pinned else 'not '}the pinned ARK-{line}", "genuine"),
        check(
            "chain_intermediate", not faults, f"{role}: {'; '.join(faults) or 'signed by the pinned ARK'}", "genuine"
        ),
        check("vek_signature", signed, f"the VEK is {'' if signed else 'not '}signed by the {role}", "genuine"),
        _validity("ark_validity", "ARK", ark, now),
        _validity("intermediate_validity", role, intermediate, now),
        _validity("vek_validity", "VEK", vek.certificate, now),
    ]


def _validity(code: str, what: str, certificate: x509.Certificate, now: datetime) -> Check:
    return valid_at(code, what, certificate.not_valid_before_utc, certificate.not_valid_after_utc, now)


def _hardware(report: Report, vek: Vek, line: str | None) -> Check:
    """VCEK: the chip is the one that the report names. A report that hides its chip shows no such thing, and fails.

    VLEK: the key is the cloud provider's, the same on all of its chips; CHIP_ID is zero or not, and says nothing of it.
    """
    if vek.kind == "vlek":
        return check("hwid", bool(vek.csp_id), f"VLEK of CSP_ID {vek.csp_id!r}", "genuine")
    if vek.hwid is None or line is None:
        return Check("hwid", "not_checked", "the VEK has no HWID, or its product is unknown", "genuine")
    size = certificates.HWID_SIZE[line]
    same = len(vek.hwid) == size and report.chip_id == vek.hwid.ljust(64, b"\0") and any(vek.hwid)
    return check("hwid", same, f"CHIP_ID {report.chip_id.hex()}, HWID of the VCEK {vek.hwid.hex()}", "genuine")


def _tcb_binding(report: Report, vek: Vek, line: str | None) -> Check:
    if line is None:
        return Check("tcb_binding", "not_checked", "product unknown, so the layout of TCB versions too", "genuine")
    reported = abi.components(report.reported_tcb, line)
    said = f"REPORTED_TCB {reported}, VEK {dict(vek.tcb)}"
    return check("tcb_binding", reported == dict(vek.tcb), said, "genuine")


def _signature(report: Report, vek: Vek) -> Check:
    if vek.key is None:
        return Check("report_signature", "not_checked", "the VEK holds no P-384 key", "genuine")
    try:
        vek.key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return check("report_signature", False, "the VEK's key did not sign this report", "genuine")
    return check("report_signature", True, "signed by the VEK's key (ECDSA P-384, SHA-384)", "genuine")


def _report_data(report: Report, wanted: bytes | None) -> Check:
    if wanted is None:
        return Check("report_data", "not_checked", "left to the caller", waived=True)
    return check(
        "report_data", hmac.compare_digest(report.report_data, wanted), f"REPORT_DATA {report.report_data.hex()}"
    )


def _claims(report: Report, vek: Vek, line: str | None) -> dict[str, Any]:
    layout = report.product or line
    byte_fields = (
        "report_data", "measurement", "host_data", "family_id", "image_id", "id_key_digest", "author_key_digest",
        "report_id", "report_id_ma", "chip_id",
    )  # fmt: skip
    return {
        **{name: getattr(report, name).hex() for name in byte_fields},
        "product": layout,
        "report_version": report.version,
        "cpuid": list(report.cpuid) if report.cpuid else None,
        "signer": report.signer,
        "csp_id": vek.csp_id,
        "guest_svn": report.guest_svn,
        "vmpl": report.vmpl,
        "policy": {"abi": list(report.abi), **abi.bits(report.policy, abi.POLICY_BITS)},
        "platform_info": {"raw": report.platform_info, **abi.bits(report.platform_info, abi.PLATFORM_BITS)},
        "author_key_en": report.author_key_en,
        "mask_chip_key": report.mask_chip_key,
        **{
            name: abi.components(getattr(report, name), layout) if layout else getattr(report, name).hex()
            for name in validate.TCBS
        },
        "current_firmware": list(report.current_version),
        "committed_firmware": list(report.committed_version),
        "launch_mit_vector": report.launch_mit_vector,
        "current_mit_vector": report.current_mit_vector,
    }
