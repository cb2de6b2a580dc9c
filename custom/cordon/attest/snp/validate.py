"""Whether what a report says is wanted: one check for each field of the policy, all of them made."""

from __future__ import annotations

from typing import Any

from cordon.attest.snp import abi
from cordon.attest.snp.abi import Report
from cordon.attest.snp.certificates import Vek
from cordon.attest.snp.policy import Firmware, GuestPolicyBits, Minima, PlatformBits, SnpPolicy
from cordon.attest.verdict import Check, against, check, listed

TCBS = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")


def checks(report: Report, vek: Vek, product: str | None, policy: SnpPolicy | None) -> list[Check]:
    """The checks of kind policy.

    Args:
        product: product line whose TCB layout the report uses; None if it is not known.
        policy: None asks nothing, except that the guest is no debug guest.
    """

    def want(name: str) -> Any:
        return getattr(policy, name) if policy else None

    answers = [
        listed("product", product or "unknown", want("product")),
        listed("signer", vek.kind or "unknown", want("signer")),
        against(
            "report_version", str(report.version), want("report_version"), lambda versions: report.version in versions
        ),
    ]
    for name in ("measurement", "host_data", "family_id", "image_id", "id_key_digest", "author_key_digest"):
        answers.append(listed(name, getattr(report, name).hex(), want(name)))
    answers += [
        against("guest_svn", str(report.guest_svn), want("guest_svn"), lambda least: report.guest_svn >= least),
        against("vmpl", str(report.vmpl), want("vmpl"), lambda allowed: report.vmpl in allowed),
        *_guest_policy(report, policy.policy if policy else None),
        *_platform_info(report, policy.platform_info if policy else None),
        _flag("migration_agent", report.report_id_ma != abi.NO_MIGRATION_AGENT, want("migration_agent")),
        listed("chip_id", report.chip_id.hex(), want("chip_id")),
        listed("csp_id", vek.csp_id or "none", want("csp_id")),
        _tcb_order(report, product),
        _flag("provisional_firmware", _provisional(report), want("provisional_firmware")),
    ]
    answers += [_minimum(name, getattr(report, name), product, want(name)) for name in TCBS]
    answers += [
        _firmware("current_firmware", report.current_version, want("current_firmware")),
        _firmware("committed_firmware", report.committed_version, want("committed_firmware")),
        _mitigations("launch_mit_vector", report.launch_mit_vector, want("launch_mit_vector")),
        _mitigations("current_mit_vector", report.current_mit_vector, want("current_mit_vector")),
    ]
    return answers


def _flag(code: str, value: bool, wanted: bool | Any) -> Check:
    return against(code, str(value).lower(), wanted, lambda must: value is must)


def _guest_policy(report: Report, wanted: GuestPolicyBits | None) -> list[Check]:
    abi_wanted = wanted.abi if wanted else None
    said = f"the guest's owner wants ABI {report.abi[0]}.{report.abi[1]} or later"
    answers = [against("policy_abi", said, abi_wanted, lambda least: report.abi >= (least.major, least.minor))]
    for name, value in abi.bits(report.policy, abi.POLICY_BITS).items():
        must = getattr(wanted, name) if wanted else None
        if name == "debug":  # the host reads a debug guest's memory: never by silence
            answers.append(_flag("debug", value, False if must is None else must))
        else:
            answers.append(_flag(f"policy_{name}", value, must))
    return answers


def _platform_info(report: Report, wanted: PlatformBits | None) -> list[Check]:
    values = abi.bits(report.platform_info, abi.PLATFORM_BITS)
    values["undefined"] = bool(report.platform_info & abi.PLATFORM_UNDEFINED)
    return [
        _flag(f"platform_info_{name}", value, getattr(wanted, name) if wanted else None)
        for name, value in values.items()
    ]


def _provisional(report: Report) -> bool:
    return report.current_tcb != report.committed_tcb or report.current_version != report.committed_version


def _tcb_order(report: Report, product: str | None) -> Check:
    """The firmware commits and reports no more than it runs; asked with and without a policy."""
    if product is None:
        return Check("tcb_order", "not_checked", "product unknown, so the layout of TCB versions too")
    current, reported, committed = (
        abi.components(tcb, product) for tcb in (report.current_tcb, report.reported_tcb, report.committed_tcb)
    )
    above = [name for name in current if max(reported[name], committed[name]) > current[name]]
    newer = ["committed firmware version"] if report.committed_version > report.current_version else []
    faults = above + newer
    return check("tcb_order", not faults, f"reported or committed above current: {', '.join(faults) or 'none'}")


def _minimum(code: str, tcb: bytes, product: str | None, minima: Minima | None) -> Check:
    if product is None:
        return Check(code, "not_checked", f"{tcb.hex()}: product unknown, so the layout of TCB versions too")
    found = abi.components(tcb, product)
    said = ", ".join(f"{name} {number}" for name, number in found.items())
    wanted: Any = getattr(minima, product.lower()) if minima else None
    return against(code, said, wanted, lambda least: all(found[name] >= getattr(least, name) for name in found))


def _firmware(code: str, version: tuple[int, int, int], wanted: Firmware | Any) -> Check:
    said = "{}.{}.{}".format(*version)
    return against(code, said, wanted, lambda least: version >= (least.major, least.minor, least.build))


def _mitigations(code: str, vector: int | None, wanted: int | Any) -> Check:
    said = "not in a report before version 5" if vector is None else f"{vector:#x}"
    return against(code, said, wanted, lambda bits: (vector or 0) & bits == bits)
