"""Intel TDX: is this quote from a trust domain on Intel hardware, and is it the one that is wanted? (dcap/README.md)"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from cordon.attest import roots
from cordon.attest.dcap import collateral as collaterals
from cordon.attest.dcap import event_log as ccel
from cordon.attest.dcap import quote as quotes
from cordon.attest.dcap import reports, tcb
from cordon.attest.dcap.genuine import establish
from cordon.attest.dcap.policy import TdxPolicy
from cordon.attest.verdict import Appraisal, Check, against, check, listed, utc

FLAGS = ("sept_ve_disable", "migratable", "pks", "kl", "lass", "perfmon")
LISTED = (
    "xfam",
    "mr_seam",
    "mr_td",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "mr_service_td",
)
STRUCTURE = ("td_attributes", "xfam_bits", "tdx_module")
NO_TD = "the quote has no TD report"


def verify(
    quote: bytes,
    *,
    collateral: bytes | None = None,
    event_log: bytes | None = None,
    now: datetime,
    policy: TdxPolicy | None = None,
    report_data: bytes | None = None,
    root: x509.Certificate | None = None,
) -> Appraisal:
    """Judge a TDX quote (version 4 or 5), binary.

    Args:
        collateral: JSON of dcap-qvl; without it no quote is shown to be genuine.
        event_log: CCEL log, to be replayed to RTMR0-3. Nobody signed it: a match says what was measured, not more.
        report_data: the 64 bytes that the quote must cover.
        root: trust anchor; for a test PKI only: no command and no kit sets it.

    Raises:
        ConfigError: ``quote_format``, ``quote_version``, ``collateral_format``, ``event_log_format``: not that format
            or too long; ``now``: no time zone, or none in UTC's calendar.
    """
    # 1. Parse everything, bounded.
    now = utc(now)
    parsed = quotes.parse(quote)
    data = None if collateral is None else collaterals.parse(collateral)
    registers = None if event_log is None else ccel.replay(ccel.parse(event_log))
    # 2. Intel hardware signed it, at a TCB level that Intel knows, with keys that nobody revoked.
    found = establish(parsed, quote, quotes.TEE_TDX, data, now, root or roots.load("intel_sgx_root"))
    # 3. The report is well-formed, and is the one that is wanted.
    td = None if parsed.body_kind == "sgx" else reports.td_report(parsed.body)
    if td is None:
        body = _without_report(policy)
        claims = reports.claims(reports.sgx_report(parsed.body))
    else:
        body = [*_structure(td), *_body(td, policy), _event_log(td, registers, policy)]
        body.append(tcb.report_data_check(td.report_data, report_data))
        claims = reports.claims(td)
    # 4. So is the platform under it.
    checks = (*found.checks, *body, *tcb.platform_checks(found, policy, now))
    claims |= {"quote_version": parsed.version, **tcb.platform_claims(found)}
    claims["measurement"] = claims["mr_enclave" if td is None else "mr_td"]
    return Appraisal("tdx", checks, claims, judged=policy is not None)


def _structure(td: reports.TdReport) -> list[Check]:
    """Bits without a meaning are zero, and Intel made the TDX module."""
    xfam = int.from_bytes(td.xfam, "little")
    fits = xfam & reports.XFAM_ALWAYS == reports.XFAM_ALWAYS and not xfam & ~reports.XFAM_KNOWN
    intel = not any(td.mr_signer_seam) and not any(td.seam_attributes)
    signer = f"signer {td.mr_signer_seam.hex()}, SEAM attributes {td.seam_attributes.hex()}"
    return [
        check("td_attributes", not td.unknown_flags, f"unknown TD attribute bits {td.unknown_flags:#x}", "genuine"),
        check("xfam_bits", fits, f"XFAM {xfam:#x}, bits known {reports.XFAM_KNOWN:#x}, always set 0x3", "genuine"),
        check("tdx_module", intel, signer if intel else f"{signer}, want zeros (Intel's module)", "genuine"),
    ]


def _body(td: reports.TdReport, policy: TdxPolicy | None) -> list[Check]:
    """One check per field of ``TdxPolicy`` that concerns the TD report."""
    flags = td.flags
    profiling = any(flags[name] for name in reports.PROFILING)
    checks = [tcb.debug_check(flags["debug"], "the TD", policy), tcb.boolean("profiling", profiling, policy)]
    checks += [tcb.boolean(name, flags[name], policy) for name in FLAGS]
    for code in LISTED:
        value: bytes | None = getattr(td, code)
        wanted = None if policy is None else getattr(policy, code)
        if wanted == "none":  # of mr_service_td: a report 1.0 has no room for one, a report 1.5 says zeros
            named = value is not None and any(value)
            checks.append(check(code, not named, f"{value.hex()}, want none" if value and named else "no service TD"))
        elif value is None:
            checks.append(tcb.unknown(code, "a TD report 1.0 does not have it", policy))
        else:
            checks.append(listed(code, value.hex(), wanted))
    for code in ("tee_tcb_svn", "tee_tcb_svn2"):
        checks.append(_least_svn(f"min_{code}", getattr(td, code), policy))
    return checks


def _least_svn(code: str, svn: bytes | None, policy: TdxPolicy | None) -> Check:
    if svn is None:
        return tcb.unknown(code, "a TD report 1.0 does not have it", policy)

    def reaches(least: str) -> bool:
        return all(mine >= wanted for mine, wanted in zip(svn, bytes.fromhex(least), strict=True))

    return against(code, svn.hex(), None if policy is None else getattr(policy, code), reaches)


def _event_log(td: reports.TdReport, registers: tuple[bytes, ...] | None, policy: TdxPolicy | None) -> Check:
    """A log that was given must fit, whatever the policy says: one that does not is a lie about this TD."""
    if registers is None:
        if policy is not None and policy.event_log == "required":
            return check("event_log", False, "no event log was given, want one")
        return tcb.unknown("event_log", "no event log was given", policy)
    wrong = [n for n, value in enumerate(registers) if value != getattr(td, f"rtmr{n}")]
    said = ", ".join(f"RTMR{n} is {getattr(td, f'rtmr{n}').hex()}, the log gives {registers[n].hex()}" for n in wrong)
    return check("event_log", not wrong, said or "the event log replays to RTMR0-3")


def _without_report(policy: TdxPolicy | None) -> list[Check]:
    checks = [Check(code, "not_checked", NO_TD, "genuine") for code in STRUCTURE]
    codes = ("debug", "profiling", *FLAGS, *LISTED, "min_tee_tcb_svn", "min_tee_tcb_svn2", "event_log")
    checks += [tcb.unknown(code, NO_TD, policy) for code in codes]
    return [*checks, Check("report_data", "not_checked", NO_TD)]
