"""Our own reading of the collateral, for a quote that dcap-qvl refuses: every fault under its code, not only the first.

dcap-qvl also refuses whole classes of workloads (debug, SEPT_VE_DISABLE off as on Azure, migratable, service TD) with
no word on the platform. There this evaluation is what the platform is judged by, and the policy judges the workload.

Source: Intel PCS API v4, "TCB info V3", "Enclave Identity V2" and "How to determine the TCB level".
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cordon.attest.dcap import pck, reports
from cordon.attest.dcap.collateral import JUDGED, Collateral, Level, PlatformLevel, QeLevel, Tcb, Verified
from cordon.attest.dcap.quote import TEE_TDX, Quote
from cordon.attest.dcap.tcb_info import Components, IsvLevel, QeIdentity, TcbInfo, TcbLevel

Form = TypeVar("Form")
UP_TO_DATE, OUT_OF_DATE, REVOKED = "UpToDate", "OutOfDate", "Revoked"
WORST_LAST = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    OUT_OF_DATE,
    "OutOfDateConfigurationNeeded",
    REVOKED,
)
CONFIGURATION = ("ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")


class _Faults:
    """Faults by code. The text in ``what`` is kept where ``ok`` does not hold."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {code: [] for code in JUDGED}

    def need(self, code: str, ok: bool, what: str) -> bool:
        if not ok:
            self.found[code].append(what)
        return ok


def evaluate(
    quote: Quote,
    collateral: Collateral,
    chain: pck.Chain | None,
    platform: pck.Platform | None,
    now: datetime,
    root: x509.Certificate,
) -> tuple[dict[str, list[str]], Verified | None]:
    """The faults under each code of ``JUDGED``, and the TCB level if there is none.

    Periods of validity other than certificates' are not looked at: ``collateral_validity`` does.
    """
    faults = _Faults()
    signers = [
        _signer(text, name, now, root, faults)
        for text, name in (
            (collateral.file.tcb_info_issuer_chain, "TCB info"),
            (collateral.file.qe_identity_issuer_chain, "QE identity"),
        )
    ]
    info = _document(collateral.file.tcb_info, collateral.tcb_info_signature, signers[0], "tcb_info", TcbInfo, faults)
    identity = _document(
        collateral.file.qe_identity, collateral.qe_identity_signature, signers[1], "qe_identity", QeIdentity, faults
    )
    _crls(collateral, chain, [each for each in signers if each is not None], root, faults)
    qe = reports.sgx_report(quote.qe_report)
    verified = None
    if identity is not None:
        _qe(qe, identity, "TD_QE" if quote.tee_type == TEE_TDX else "QE", faults)
    if info is not None and identity is not None and platform is not None:
        verified = _level(quote, qe, info, identity, platform, collateral, faults)
    if platform is None:
        faults.need("tcb_level", False, "no readable PCK certificate")
    clean = not any(faults.found.values())
    return faults.found, verified if clean else None


def _signer(text: str, name: str, now: datetime, root: x509.Certificate, faults: _Faults) -> x509.Certificate | None:
    """The certificate that signs a document: issued by the root itself, valid, no CA, a P-256 key."""
    try:
        certificate = pck.load(pck.first_der(text))
        wrong = pck.chain_faults((certificate, root))
        pck.p256_key(certificate)
    except ValueError as error:
        faults.need("collateral_chain", False, f"{name} issuer chain: {error}")
        return None
    for each in wrong:
        faults.need("collateral_chain", False, f"{name} issuer chain: {each}")
    valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
    faults.need("collateral_chain", valid, f"the certificate of the {name} signer is not valid now")
    return certificate


def _document(
    text: str, signature: bytes, signer: x509.Certificate | None, code: str, form: type[Form], faults: _Faults
) -> Form | None:
    signed = signer is not None and pck.signed_by(pck.p256_key(signer), signature, text.encode())
    faults.need(code, signed, "not signed by the certificate that came with it")
    try:
        return msgspec.json.decode(text, type=form)
    except (msgspec.DecodeError, RecursionError) as error:
        faults.need(code, False, f"not the document wanted: {error}")
        return None


def _crls(
    collateral: Collateral,
    chain: pck.Chain | None,
    signers: Sequence[x509.Certificate],
    root: x509.Certificate,
    faults: _Faults,
) -> None:
    by_root = list(dict.fromkeys([root, *signers, *([chain.ca] if chain else [])]))
    lists = [("root CA CRL", collateral.root_ca_crl, root, by_root)]
    if chain is not None:
        lists.append(("PCK CRL", collateral.pck_crl, chain.ca, [chain.pck]))
    for name, data, issuer, subjects in lists:
        try:
            crl = x509.load_der_x509_crl(data)
            signed = crl.issuer == issuer.subject and crl.is_signature_valid(pck.p256_key(issuer))
            revoked = [each for each in subjects if crl.get_revoked_certificate_by_serial_number(pck.serial(each))]
        except (*pck.UNREADABLE, InvalidSignature) as error:
            faults.need("crl", False, f"{name}: {error}")
            continue
        faults.need("crl", signed, f"{name} is not signed by {pck.name(issuer)}")
        for each in revoked:
            faults.need("crl", False, f"{name} revokes {pck.name(each)}, serial {pck.serial(each):x}")


def _qe(qe: reports.SgxReport, identity: QeIdentity, wanted: str, faults: _Faults) -> None:
    kind = identity.id == wanted and identity.version in ((2, 3) if wanted == "TD_QE" else (2,))
    faults.need("qe_identity", kind, f"identity of {identity.id} version {identity.version}, want {wanted} version 2")
    for what, ok in (
        ("MRSIGNER", qe.mr_signer.hex() == identity.mrsigner.lower()),
        ("ISVPRODID", qe.isv_prod_id == identity.isvprodid),
        ("MISCSELECT", _fits(qe.misc_select, identity.miscselect, identity.miscselectMask)),
        ("ATTRIBUTES", _fits(qe.attributes, identity.attributes, identity.attributesMask)),
        ("DEBUG", not qe.flags["debug"]),
    ):
        faults.need("qe_identity", ok, f"{what} of the QE is not what its identity says")


def _level(
    quote: Quote,
    qe: reports.SgxReport,
    info: TcbInfo,
    identity: QeIdentity,
    platform: pck.Platform,
    collateral: Collateral,
    faults: _Faults,
) -> Verified | None:
    td = None if quote.body_kind == "sgx" else reports.td_report(quote.body)
    kind = "SGX" if td is None else "TDX"
    faults.need("tcb_info", info.id == kind and info.version == 3, f"{info.id} version {info.version}, want {kind} 3")
    same = (info.fmspc.lower(), info.pceId.lower()) == (platform.fmspc, platform.pce_id)
    faults.need("tcb_level", same, f"TCB info is of FMSPC {info.fmspc}, the platform is {platform.fmspc}")
    level = next((each for each in _ordered(info.tcbLevels) if _reaches(each.tcb, platform, td)), None)
    qe_level = next((each for each in _isv_ordered(identity.tcbLevels) if qe.isv_svn >= each.tcb.isvsvn), None)
    faults.need("tcb_level", level is not None, "no level of the TCB info is reached")
    faults.need("tcb_level", qe_level is not None, f"no level of the QE identity is reached by ISVSVN {qe.isv_svn}")
    module = None if td is None else _module(td, info, faults)
    if level is None or qe_level is None:
        return None
    found: list[TcbLevel | IsvLevel] = [level, qe_level, *([module] if module else [])]
    status = _converged([each.tcbStatus for each in found])
    faults.need("tcb_level", status != REVOKED, "the TCB level is revoked")
    until = calendar.timegm(min(each.until for each in collateral.periods).utctimetuple())
    return Verified(
        tcb=Tcb(status, sorted({name for each in found for name in each.advisoryIDs}), info.tcbEvaluationDataNumber),
        platform=PlatformLevel(_with_module(level, module)),
        qe=QeLevel(Level(qe_level.tcbStatus, qe_level.tcbDate), identity.tcbEvaluationDataNumber),
        earliest_expiration_date=until,
        qe_iden_earliest_expiration_date=until,
    )


def _module(td: reports.TdReport, info: TcbInfo, faults: _Faults) -> IsvLevel | None:
    """The level of the TDX module, where its version (byte 1 of TEE_TCB_SVN) has one of its own."""
    version = td.tee_tcb_svn[1]
    module = info.tdxModule
    if version and info.tdxModuleIdentities:
        wanted = f"TDX_{version:02X}"
        module = next((each for each in info.tdxModuleIdentities if each.id.upper() == wanted), None)
    if module is None:
        faults.need("tcb_level", False, f"TCB info does not know TDX module version {version}")
        return None
    ok = td.mr_signer_seam.hex() == module.mrsigner.lower()
    ok = ok and _fits(td.seam_attributes, module.attributes, module.attributesMask)
    faults.need("tcb_level", ok, "TDX module has another signer or other attributes")
    if not module.tcbLevels:
        return None
    level = next((each for each in _isv_ordered(module.tcbLevels) if td.tee_tcb_svn[0] >= each.tcb.isvsvn), None)
    faults.need("tcb_level", level is not None, f"no level of the TDX module is reached by {td.tee_tcb_svn[0]}")
    return level


def _with_module(level: TcbLevel, module: IsvLevel | None) -> Level:
    """Platform and TDX module as one: the worse status, the older date."""
    if module is None:
        return Level(level.tcbStatus, level.tcbDate)
    return Level(_converged([level.tcbStatus, module.tcbStatus]), min(level.tcbDate, module.tcbDate))


def _ordered(levels: list[TcbLevel]) -> list[TcbLevel]:
    """Highest first, so that the first level reached is the best one, however the document lists them."""

    def key(level: TcbLevel) -> tuple[list[int], int, list[int]]:
        tcb = level.tcb
        return [each.svn for each in tcb.sgxtcbcomponents], tcb.pcesvn, [each.svn for each in tcb.tdxtcbcomponents]

    return sorted(levels, key=key, reverse=True)


def _isv_ordered(levels: list[IsvLevel]) -> list[IsvLevel]:
    return sorted(levels, key=lambda each: each.tcb.isvsvn, reverse=True)


def _reaches(tcb: Components, platform: pck.Platform, td: reports.TdReport | None) -> bool:
    sgx = [each.svn for each in tcb.sgxtcbcomponents]
    cpu = bytes.fromhex(platform.cpu_svn)
    if len(sgx) != 16 or platform.pce_svn < tcb.pcesvn or any(mine < want for mine, want in zip(cpu, sgx, strict=True)):
        return False
    if td is None:
        return True
    tdx = [each.svn for each in tcb.tdxtcbcomponents]
    # From module 1.5 on, bytes 0 and 1 are its version, and its own levels judge them.
    start = 2 if td.tee_tcb_svn[1] else 0
    return len(tdx) == 16 and all(mine >= want for mine, want in zip(td.tee_tcb_svn[start:], tdx[start:], strict=True))


def _converged(statuses: list[str]) -> str:
    """The platform's status (first), worsened by those of QE and TDX module. An unknown word counts as the worst."""
    platform, *others = (each if each in WORST_LAST else REVOKED for each in statuses)
    worst = max((platform, *others), key=WORST_LAST.index)
    return "OutOfDateConfigurationNeeded" if worst == OUT_OF_DATE and platform in CONFIGURATION else worst


def _masked(value: str, mask: str) -> int:
    return int(value, 16) & int(mask, 16)


def _fits(found: bytes, wanted: str, mask: str) -> bool:
    return _masked(found.hex(), mask) == _masked(wanted, mask)
