"""From an evidence type to the verifier of its vendor: the one table that says who judges what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509

from cordon.attest.claims import Report
from cordon.attest.collateral import Collateral
from cordon.attest.policy import AttestationPolicy
from cordon.attest.verdict import Appraisal, Check
from cordon.errors import AttestError, ConfigError


@dataclass(frozen=True)
class Trust:
    """All that a verifier judges by: its policy, what it holds of the vendors, and the software TEE's root (POC).

    Vendors' own roots are pinned in the package.
    """

    policy: AttestationPolicy
    collateral: Collateral = field(default_factory=Collateral)
    software_root: x509.Certificate | None = None


def verify(kind: str, report: Report, report_data: bytes, trust: Trust, now: datetime) -> Appraisal:
    """The verdict of the vendor's verifier on ``report``, also for one that cannot be read.

    Args:
        kind: an evidence type that the policy accepts; decided by the policy, never by the message.
        report_data: the 64 bytes that the report must be over.
    """
    try:
        return _VERIFIERS[kind](report, report_data, trust, now)
    except ConfigError as error:
        code, _, detail = str(error).partition(": ")
        return Appraisal(kind, (Check(code, "fail", detail or str(error), "genuine"),))


def _software(report: Report, report_data: bytes, trust: Trust, now: datetime) -> Appraisal:
    from cordon.attest import software  # only where a POC policy asks for it: the production image has no such file

    root, section = trust.software_root, _section(trust.policy.software)
    if root is None:
        return Appraisal("software", (Check("report_chain", "not_checked", "no root certificate", "genuine"),))
    try:
        return software.verify(report.report, root, now, section.measurement, report_data)
    except AttestError as error:
        return Appraisal(
            "software",
            tuple(Check(code, "fail", why, "genuine", clock=code == "report_time") for code, why in error.failures),
        )


def _snp(report: Report, report_data: bytes, trust: Trust, now: datetime) -> Appraisal:
    from cordon.attest import snp

    vek = _needed(report.endorsements, "vek")
    return snp.verify(
        report.report,
        vek=vek,
        chain=report.endorsements.get("chain"),
        crl=trust.collateral.crls.get(snp.product_of(report.report, vek).lower()),
        now=now,
        report_data=report_data,
        policy=_section(trust.policy.snp),
    )


def _tdx(report: Report, report_data: bytes, trust: Trust, now: datetime) -> Appraisal:
    from cordon.attest import tdx

    return tdx.verify(
        report.report,
        collateral=_dcap(report.report, report.endorsements, trust),
        event_log=report.endorsements.get("event_log"),
        now=now,
        report_data=report_data,
        policy=_section(trust.policy.tdx),
    )


def _sgx(report: Report, report_data: bytes, trust: Trust, now: datetime) -> Appraisal:
    from cordon.attest import sgx

    return sgx.verify(
        report.report,
        collateral=_dcap(report.report, report.endorsements, trust),
        now=now,
        report_data=report_data,
        policy=_section(trust.policy.sgx),
    )


def _azure_snp(report: Report, report_data: bytes, trust: Trust, now: datetime) -> Appraisal:
    from cordon.attest import azure, snp

    vek = _needed(report.endorsements, "vek")
    return azure.verify(
        report.report,
        tee="snp",
        vek=vek,
        chain=report.endorsements.get("chain"),
        crl=trust.collateral.crls.get(snp.product_of(azure.hardware_report(report.report), vek).lower()),
        quote=None,
        collateral=None,
        hardware_policy=_section(trust.policy.snp),
        policy=_section(trust.policy.azure),
        now=now,
        report_data=report_data,
        **_tpm(report.endorsements, report_data),
    )


def _azure_tdx(report: Report, report_data: bytes, trust: Trust, now: datetime) -> Appraisal:
    from cordon.attest import azure

    quote = _needed(report.endorsements, "quote")
    return azure.verify(
        report.report,
        tee="tdx",
        vek=None,
        chain=None,
        crl=None,
        quote=quote,
        collateral=_dcap(quote, report.endorsements, trust),
        hardware_policy=_section(trust.policy.tdx),
        policy=_section(trust.policy.azure),
        now=now,
        report_data=report_data,
        **_tpm(report.endorsements, report_data),
    )


_VERIFIERS: dict[str, Callable[[Report, bytes, Trust, datetime], Appraisal]] = {
    "software": _software,
    "snp": _snp,
    "tdx": _tdx,
    "sgx": _sgx,
    "az-snp": _azure_snp,
    "az-tdx": _azure_tdx,
}


def _needed(endorsements: Mapping[str, bytes], name: str) -> bytes:
    if name not in endorsements:
        raise ConfigError(f"endorsements: {name} is missing beside the report")
    return endorsements[name]


def _dcap(quote: bytes, endorsements: Mapping[str, bytes], trust: Trust) -> bytes | None:
    """Intel's collateral for this platform: the verifier's own.

    In POC also what came along. Intel signed that too, but whoever chooses among all that Intel signed in a month takes
    the set in which its platform was still up to date, or not revoked yet.
    """
    own = trust.collateral.dcap.get(_fmspc(quote))
    return own if own is not None or trust.policy.profile != "poc" else endorsements.get("collateral")


def _fmspc(quote: bytes) -> str:
    """The kind of platform that a quote's PCK certificate names; '' if it names none: the verifier will say why."""
    from cordon.attest.dcap import pck
    from cordon.attest.dcap import quote as quotes

    parsed = quotes.parse(quote)
    try:
        return pck.read_platform(pck.read_chain(parsed.certification_data).pck).fmspc
    except ValueError:
        return ""


def _tpm(endorsements: Mapping[str, bytes], report_data: bytes) -> dict[str, Any]:
    """The TPM's quote, and what it must be over: an old one would show what the VM once booted."""
    from cordon.attest import azure

    quote = endorsements.get("tpm_quote")
    nonce = hashlib.sha256(report_data).digest()
    return {"tpm_quote": None if quote is None else azure.read_tpm_quote(quote), "nonce": nonce}


def _section(section: Any) -> Any:
    if section == "none":  # the policy's own check makes this impossible for an accepted type
        raise ConfigError("policy: has no section for this type of evidence")
    return section
