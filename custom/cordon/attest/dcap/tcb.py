"""Is this the platform that the policy wants? The checks that TDX and SGX share, and how a missing answer is said."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cordon.attest.dcap.collateral import Verified, stamp
from cordon.attest.dcap.genuine import NO_COLLATERAL, Established
from cordon.attest.dcap.policy import Any_, PlatformPolicy
from cordon.attest.verdict import Check, against, check, listed

AGED = 3  # of collateral.periods, the first three are issued monthly; the root CA CRL lives for a year


def platform_checks(found: Established, policy: PlatformPolicy | None, now: datetime) -> list[Check]:
    """One check per field of ``PlatformPolicy`` but ``debug``."""
    return [*_tcb(found, policy, now), *_machine(found, policy), _age(found, policy, now)]


def platform_claims(found: Established) -> dict[str, Any]:
    """What PCK certificate, QE report, TCB info and collateral state, JSON-ready."""
    claims: dict[str, Any] = {"qe": {"mr_signer": found.qe.mr_signer.hex(), "isv_svn": found.qe.isv_svn}}
    if found.platform is not None:
        claims["platform"] = {name: getattr(found.platform, name) for name in found.platform.__dataclass_fields__}
    if found.collateral is not None:
        periods = found.collateral.periods
        claims["collateral"] = {
            "issued": stamp(min(each.since for each in periods[:AGED])),
            "expires": stamp(min(each.until for each in periods)),
        }
    if found.verified is not None:
        claims["collateral"]["expires"] = stamp(found.verified.expires)  # with the certificates
        claims["tcb"] = {
            "status": found.verified.tcb.status,
            "advisory_ids": list(found.verified.tcb.advisory_ids),
            "evaluation_number": found.verified.evaluation_number,
            "date": stamp(found.verified.platform.tcb_level.tcbDate),
        }
    return claims


def unknown(code: str, why: str, policy: PlatformPolicy | None) -> Check:
    """A policy check that cannot be made; it does not count where the policy says any."""
    return Check(code, "not_checked", why, waived=policy is not None and getattr(policy, code) == "any")


def boolean(code: str, value: bool, policy: PlatformPolicy | None) -> Check:
    """A flag that must have the value in the policy."""
    return _boolean(code, value, None if policy is None else getattr(policy, code))


def _boolean(code: str, value: bool | None, wanted: bool | Any_ | None) -> Check:
    return against(code, f"{code} is {_word(value)}", wanted, lambda want: value is want)


def _tcb(found: Established, policy: PlatformPolicy | None, now: datetime) -> list[Check]:
    verified = found.verified
    if verified is None:
        why = NO_COLLATERAL if found.collateral is None else "the quote does not stand with this collateral"
        codes = ("tcb_status", "advisory_ids", "out_of_date_grace_s", "min_tcb_evaluation_number")
        return [unknown(code, why, policy) for code in codes]
    advisories = verified.tcb.advisory_ids
    late_s, late = _out_of_date(verified, now)
    number = verified.evaluation_number
    return [
        listed("tcb_status", verified.tcb.status, None if policy is None else policy.tcb_status),
        against(
            "advisory_ids",
            ", ".join(advisories) or "no open advisories",
            None if policy is None else policy.advisory_ids,
            lambda allowed: set(advisories) <= set(allowed),
        ),
        against(
            "out_of_date_grace_s",
            late,
            None if policy is None else policy.out_of_date_grace_s,
            lambda grace: late_s <= grace,
        ),
        against(
            "min_tcb_evaluation_number",
            f"TCB evaluation data number {number}",
            None if policy is None else policy.min_tcb_evaluation_number,
            lambda least: number >= least,
        ),
    ]


def _out_of_date(verified: Verified, now: datetime) -> tuple[float, str]:
    """Seconds since the date of the oldest OutOfDate level, and words for it."""
    if not verified.tcb.status.startswith("OutOfDate"):
        return 0, f"TCB status {verified.tcb.status} is not out of date"
    levels = (verified.platform.tcb_level, verified.qe.tcb_level)
    late = [each for each in levels if each.tcbStatus.startswith("OutOfDate")]
    date = min(each.tcbDate for each in late or levels)
    return (now - date).total_seconds(), f"out of date, TCB level of {date:%Y-%m-%d}"


def _machine(found: Established, policy: PlatformPolicy | None) -> list[Check]:
    platform, qe = found.platform, found.qe
    least_qe = None if policy is None else policy.min_qe_svn
    qe_check = against("min_qe_svn", f"QE has ISVSVN {qe.isv_svn}", least_qe, lambda least: qe.isv_svn >= least)
    if platform is None:
        codes = ("smt", "dynamic_platform", "cached_keys", "fmspc", "ppid", "platform_instance_id", "min_pce_svn")
        return [*(unknown(code, "no readable PCK certificate", policy) for code in codes), qe_check]
    checks = []
    for code in ("smt", "dynamic_platform", "cached_keys"):
        value = getattr(platform, code)
        wanted = None if policy is None else getattr(policy, code)
        # A certificate without the configuration shows neither value, so either wish fails.
        checks.append(_boolean(code, value, wanted))
    instance = platform.platform_instance_id or "no platform instance id"
    return [
        *checks,
        listed("fmspc", platform.fmspc, None if policy is None else policy.fmspc),
        listed("ppid", platform.ppid, None if policy is None else policy.ppid),
        listed("platform_instance_id", instance, None if policy is None else policy.platform_instance_id),
        against(
            "min_pce_svn",
            f"PCESVN {platform.pce_svn}",
            None if policy is None else policy.min_pce_svn,
            lambda least: platform.pce_svn >= least,
        ),
        qe_check,
    ]


def _age(found: Established, policy: PlatformPolicy | None, now: datetime) -> Check:
    code = "collateral_max_age_s"
    if found.collateral is None:
        return unknown(code, NO_COLLATERAL, policy)
    oldest = min(found.collateral.periods[:AGED], key=lambda each: each.since)
    age = (now - oldest.since).total_seconds()
    said = f"{oldest.name} was issued {age:.0f} s ago"
    return against(code, said, None if policy is None else policy.collateral_max_age_s, lambda most: age <= most)


def debug_check(is_debug: bool, what: str, policy: PlatformPolicy | None) -> Check:
    """A debug guest fails with and without a policy, unless the policy says any."""
    said = f"{what} is {'a debug one: its host can read it' if is_debug else 'no debug one'}"
    if policy is not None and policy.debug == "any":
        return Check("debug", "not_checked", f"{said} (the policy says any)", waived=True)
    return check("debug", not is_debug, said)


def report_data_check(found: bytes, wanted: bytes | None) -> Check:
    """Whether the quote covers the 64 bytes that the caller expects."""
    if wanted is None:
        return Check("report_data", "not_checked", "no report_data was asked for", waived=True)
    same = found == wanted
    return check("report_data", same, found.hex() if same else f"{found.hex()}, want {wanted.hex()}")


def _word(value: bool | None) -> str:
    return "undefined" if value is None else "true" if value else "false"
