"""Intel SGX: is this quote from an enclave on Intel hardware, and is it the one that is wanted? (dcap/README.md)"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from cordon.attest import roots
from cordon.attest.dcap import collateral as collaterals
from cordon.attest.dcap import quote as quotes
from cordon.attest.dcap import reports, tcb
from cordon.attest.dcap.genuine import establish
from cordon.attest.dcap.policy import SgxPolicy
from cordon.attest.verdict import Appraisal, Check, against, check, listed, utc

FLAGS = ("mode64", "provision_key", "einittoken_key", "key_separation")
LISTED = ("mr_enclave", "mr_signer", "misc_select", "isv_ext_prod_id", "isv_family_id", "config_id")
LEAST = {"min_isv_svn": "isv_svn", "min_config_svn": "config_svn"}
NO_ENCLAVE = "the quote has no enclave report"


def verify(
    quote: bytes,
    *,
    collateral: bytes | None = None,
    now: datetime,
    policy: SgxPolicy | None = None,
    report_data: bytes | None = None,
    root: x509.Certificate | None = None,
) -> Appraisal:
    """Judge an SGX quote (version 3), binary.

    Args:
        collateral: JSON of dcap-qvl; without it no quote is shown to be genuine.
        report_data: the 64 bytes that the quote must cover.
        root: trust anchor; for a test PKI only: no command and no kit sets it.

    Raises:
        ConfigError: ``quote_format``, ``quote_version``, ``collateral_format``: not that format or too long;
            ``now``: no time zone, or none in UTC's calendar.
    """
    # 1. Parse everything, bounded.
    now = utc(now)
    parsed = quotes.parse(quote)
    data = None if collateral is None else collaterals.parse(collateral)
    # 2. Intel hardware signed it, at a TCB level that Intel knows, with keys that nobody revoked.
    found = establish(parsed, quote, quotes.TEE_SGX, data, now, root or roots.load("intel_sgx_root"))
    # 3. The report is well-formed, and is the one that is wanted.
    if parsed.body_kind == "sgx":
        enclave = reports.sgx_report(parsed.body)
        body = [*_structure(enclave), *_body(enclave, policy)]
        body.append(tcb.report_data_check(enclave.report_data, report_data))
        claims = reports.claims(enclave)
        claims["measurement"] = claims["mr_enclave"]
    else:
        body = _without_report(policy)
        claims = reports.claims(reports.td_report(parsed.body))
        claims["measurement"] = claims["mr_td"]
    # 4. So is the platform under it.
    checks = (*found.checks, *body, *tcb.platform_checks(found, policy, now))
    claims |= {"quote_version": parsed.version, **tcb.platform_claims(found)}
    return Appraisal("sgx", checks, claims, judged=policy is not None)


def _structure(enclave: reports.SgxReport) -> list[Check]:
    """Bytes and bits without a meaning are zero, and the enclave was initialised."""
    reserved = sum(map(bool, enclave.reserved))
    fits = not reserved and not enclave.unknown_flags
    found = f"{reserved} reserved bytes are set, unknown attribute bits {enclave.unknown_flags:#x}"
    return [
        check("report_reserved", fits, found, "genuine"),
        check("init", enclave.flags["init"], f"INIT is {'set' if enclave.flags['init'] else 'not set'}", "genuine"),
    ]


def _body(enclave: reports.SgxReport, policy: SgxPolicy | None) -> list[Check]:
    """One check per field of ``SgxPolicy`` that concerns the enclave report."""
    flags = enclave.flags
    checks = [tcb.debug_check(flags["debug"], "the enclave", policy)]
    checks += [tcb.boolean(name, flags[name], policy) for name in FLAGS]
    for code in LISTED:
        checks.append(listed(code, getattr(enclave, code).hex(), None if policy is None else getattr(policy, code)))
    for code, raw in (("attributes", enclave.attributes[:8]), ("xfrm", enclave.attributes[8:])):
        checks.append(listed(code, raw.hex(), None if policy is None else getattr(policy, code)))
    products = None if policy is None else policy.isv_prod_id
    product = enclave.isv_prod_id
    checks.append(against("isv_prod_id", f"ISVPRODID {product}", products, lambda allowed: product in allowed))
    for code, name in LEAST.items():
        svn: int = getattr(enclave, name)
        checks.append(against(code, f"{name} {svn}", None if policy is None else getattr(policy, code), svn.__ge__))
    return checks


def _without_report(policy: SgxPolicy | None) -> list[Check]:
    checks = [Check(code, "not_checked", NO_ENCLAVE, "genuine") for code in ("report_reserved", "init")]
    codes = ("debug", *FLAGS, *LISTED, "attributes", "xfrm", "isv_prod_id", *LEAST)
    checks += [tcb.unknown(code, NO_ENCLAVE, policy) for code in codes]
    return [*checks, Check("report_data", "not_checked", NO_ENCLAVE)]
