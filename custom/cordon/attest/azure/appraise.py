"""The verdict on an Azure confidential VM: hardware, paravisor, runtime claims, vTPM (codes: README.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from cordon import signing
from cordon.attest.azure import hcl, jose, tdreport, tpm
from cordon.attest.azure.hcl import HclReport, Tee
from cordon.attest.azure.policy import AzurePolicy
from cordon.attest.azure.tpm import Attest, TpmQuote
from cordon.attest.dcap.policy import TdxPolicy
from cordon.attest.snp.certificates import Anchor
from cordon.attest.snp.policy import SnpPolicy
from cordon.attest.verdict import Appraisal, Check, against, check, listed
from cordon.errors import ConfigError

TYPE = {"snp": "az-snp", "tdx": "az-tdx"}
MIN_AK_BITS = 2048
VMPL_AT = 0x30  # u32 in the SNP report
HCL_VMPL = 0
FIRMWARE_CODES = frozenset({"measurement", "id_key_digest", "mr_td"})  # checks that say whose firmware was launched
FLAGS = {
    "secure_boot": "secure-boot",
    "tpm_enabled": "tpm-enabled",
    "tpm_persisted": "tpm-persisted",
    "console_enabled": "console-enabled",
    "interactive_console_enabled": "interactive-console-enabled",
    "filtered_vpci_devices_allowed": "filtered-vpci-devices-allowed",
}


def verify(
    hcl_report: bytes,
    *,
    tee: Tee,
    vek: bytes | None = None,
    chain: bytes | None = None,
    crl: bytes | None = None,
    quote: bytes | None = None,
    collateral: bytes | None = None,
    tpm_quote: TpmQuote | None,
    nonce: bytes | None = None,
    now: datetime,
    hardware_policy: SnpPolicy | TdxPolicy | None = None,
    policy: AzurePolicy | None = None,
    report_data: bytes | None = None,
    roots: Mapping[str, Anchor] | None = None,
    root: x509.Certificate | None = None,
) -> Appraisal:
    """Judge the evidence of one Azure confidential VM.

    Args:
        hcl_report: what NV index 0x01400001 holds, at most 16 KiB.
        tee: which hardware is wanted; decided by the policy, never by the message.
        vek, chain, crl: for ``snp``, as in ``snp.verify``. Without ``vek`` nothing is genuine.
        quote, collateral: for ``tdx``, as in ``tdx.verify``. Without ``quote`` nothing is genuine.
        tpm_quote: a quote by the AK of the runtime claims.
        nonce: what the quote's extraData must be. Without one it must be SHA-256(user-data), so that whoever compares
            ``claims["report_data"]`` with a fresh statement knows the quote to be as fresh.
        hardware_policy: judges the inner report. Its checks come first in the verdict, under their own codes.
        report_data: 64 bytes that ``user-data`` must be; without it the caller compares ``claims["report_data"]``.
        roots, root: trust anchors of ``snp.verify`` and ``tdx.verify``; for a test PKI only: no command and no kit sets
            them.

    Returns:
        Appraisal of type ``az-snp`` or ``az-tdx``. ``claims["report_data"]`` is ``user-data``; the hardware's own is
        ``claims["hardware_report_data"]``.

    Raises:
        ConfigError: a part cannot be parsed; the text starts with the part's code.
    """
    if tee not in TYPE:
        raise ConfigError(f"tee: {tee!r}, want snp or tdx")
    # 1. Parse everything, so that input that cannot be read is told from evidence that fails.
    report = hcl.parse(hcl_report)
    attest = None if tpm_quote is None else tpm.parse_attest(tpm_quote.message)

    # 2. The hardware: its vendor's verifier on the inner report.
    if tee == "snp":
        inner = _snp(report, vek, hardware_policy, chain=chain, crl=crl, now=now, roots=roots)
    else:
        inner = _tdx(report, quote, hardware_policy, collateral=collateral, now=now, root=root)

    # 3. The HCL report: one accepted value per unmeasured field, runtime claims hashed into report_data.
    checks = [*inner.checks, *hcl.checks(report, tee)]

    # 4. Who wrote the runtime claims: the paravisor, if it asked for the report and its firmware is pinned.
    checks += _paravisor(report, tee, quote, inner, policy)

    # 5. The runtime claims: AK, configuration, the statement.
    ak, ak_checks = _ak(report, policy)
    checks += [*ak_checks, *_configuration(report, policy), _user_data(report, report_data)]

    # 6. The vTPM: a quote by that AK, for this statement, over wanted PCRs.
    checks += _tpm(report, tpm_quote, attest, ak, nonce, policy)

    judged = policy is not None and hardware_policy is not None
    return Appraisal(TYPE[tee], tuple(checks), _claims(report, inner, tpm_quote, attest, ak), judged)


def hardware_report(hcl_report: bytes) -> bytes:
    """The SNP report (1184 bytes) or TDREPORT (1024) inside an HCL report; or ConfigError ``hcl_format``."""
    report = hcl.parse(hcl_report)
    return report.hardware_report("tdx" if report.report_type == hcl.REPORT_TYPE["tdx"] else "snp")


def _snp(report: HclReport, vek: bytes | None, policy: SnpPolicy | TdxPolicy | None, **given: Any) -> Appraisal:
    from cordon.attest import snp

    if policy is not None and not isinstance(policy, SnpPolicy):
        raise ConfigError(f"policy: a {type(policy).__name__} does not judge SNP reports")
    if vek is None:
        return Appraisal("snp", (Check("hardware", "not_checked", "no VEK was given", "genuine"),))
    wanted = report.report_data
    return snp.verify(report.hardware_report("snp"), vek=vek, policy=policy, report_data=wanted, **given)


def _tdx(report: HclReport, quote: bytes | None, policy: SnpPolicy | TdxPolicy | None, **given: Any) -> Appraisal:
    from cordon.attest import tdx

    if policy is not None and not isinstance(policy, TdxPolicy):
        raise ConfigError(f"policy: a {type(policy).__name__} does not judge TD quotes")
    if quote is None:
        return Appraisal("tdx", (Check("hardware", "not_checked", "no TD quote was given", "genuine"),))
    return tdx.verify(quote, policy=policy, report_data=report.report_data, **given)


def _paravisor(
    report: HclReport, tee: Tee, quote: bytes | None, inner: Appraisal, policy: AzurePolicy | None
) -> Iterator[Check]:
    """At VMPL > 0 the guest itself could ask for a report over claims, and an AK, of its own making."""
    if tee == "snp":
        vmpl = int.from_bytes(report.hardware_area[VMPL_AT : VMPL_AT + 4], "little")
        yield check(
            "hcl_vmpl", vmpl == HCL_VMPL, f"the report was asked for at VMPL {vmpl}, the paravisor's is 0", "genuine"
        )
    elif quote is None:
        yield Check("td_report", "not_checked", "no TD quote was given", "genuine")
    else:
        yield tdreport.compare(report.hardware_report(tee), quote)
    if policy is not None and policy.paravisor == "pinned" and not inner.judged:
        yield Check("paravisor", "not_checked", "no hardware policy was given")
        return
    pinned = sorted({each.code for each in inner.checks if each.code in FIRMWARE_CODES and each.result == "pass"})
    said = (
        f"the firmware is pinned by {', '.join(pinned)}" if pinned else "the hardware policy pins no firmware it shows"
    )
    yield against("paravisor", said, None if policy is None else policy.paravisor, lambda _: bool(pinned))


def _ak(report: HclReport, policy: AzurePolicy | None) -> tuple[RSAPublicKey | None, list[Check]]:
    """Exactly one HCLAkPub: with two, quote and reader could each take another."""
    wanted = None if policy is None else policy.ak_min_bits
    keys = report.claims.get("keys")
    found = (
        [key for key in keys if isinstance(key, dict) and key.get("kid") == hcl.AK_KID]
        if isinstance(keys, list)
        else []
    )
    why = f"{len(found)} keys with kid {hcl.AK_KID}, want 1"
    ak = None
    if len(found) == 1:
        try:
            ak = jose.rsa_key(found[0], "ak_key")
        except ConfigError as error:
            why = str(error).partition(": ")[2]
    if ak is None:
        return None, [check("ak_key", False, why, "genuine"), Check("ak_bits", "not_checked", "there is no usable AK")]
    bits = f"RSA-{ak.key_size}"
    strong = ak.key_size >= MIN_AK_BITS
    return ak if strong else None, [
        check("ak_key", strong, f"{hcl.AK_KID} is {bits}, want at least {MIN_AK_BITS}", "genuine"),
        against("ak_bits", bits, wanted, lambda least: ak.key_size >= least),
    ]


def _configuration(report: HclReport, policy: AzurePolicy | None) -> Iterator[Check]:
    found = report.vm_configuration
    for name, claim in FLAGS.items():
        yield _flag(name, claim, found.get(claim), None if policy is None else getattr(policy, name))
    thumbprint = found.get("root-cert-thumbprint")
    unique = found.get("vmUniqueId")
    yield listed("root_cert_thumbprint", jose.text(thumbprint), None if policy is None else policy.root_cert_thumbprint)
    yield listed("vm_unique_id", jose.text(unique).lower(), None if policy is None else policy.vm_unique_id)


def _flag(code: str, claim: str, value: Any, wanted: Any) -> Check:
    return against(code, f"{claim} is {jose.said(value)}", wanted, lambda must: value is must)


def _user_data(report: HclReport, wanted: bytes | None) -> Check:
    found = report.user_data
    said = f"user-data is {'not 64 bytes in hex' if found is None else found.hex()}"
    if wanted is None and found is not None:
        return Check("user_data", "not_checked", f"{said}; the caller compares it", waived=True)
    return check(
        "user_data", found is not None and found == wanted, f"{said}, want {wanted.hex() if wanted else '64 bytes'}"
    )


def _tpm(
    report: HclReport,
    quote: TpmQuote | None,
    attest: Attest | None,
    ak: RSAPublicKey | None,
    nonce: bytes | None,
    policy: AzurePolicy | None,
) -> list[Check]:
    if quote is None or attest is None:
        waived = policy is not None and policy.tpm_quote == "any"
        missing = [Check("tpm_quote", "not_checked", "no TPM quote was given", waived=waived)]
        if policy is not None and policy.pcrs != "any":
            missing.append(Check("pcrs", "not_checked", "no TPM quote was given"))
        return missing
    statement = None if report.user_data is None else hashlib.sha256(report.user_data).digest()
    return [*tpm.checks(quote, attest, ak, nonce, statement), *tpm.policy_checks(attest, quote, policy)]


def _claims(
    report: HclReport, inner: Appraisal, quote: TpmQuote | None, attest: Attest | None, ak: RSAPublicKey | None
) -> dict[str, Any]:
    claims: dict[str, Any] = {
        **inner.claims,
        "hardware_report_data": inner.claims.get("report_data", ""),
        "report_data": "" if report.user_data is None else report.user_data.hex(),
        "measurement": inner.claims.get("measurement", ""),
        "hcl_version": report.version,
        "vm_configuration": report.vm_configuration,
        "ak_spki_sha256": "" if ak is None else signing.spki_digest(ak),
    }
    if quote is not None and attest is not None:
        values = tpm.pcr_values(attest, quote) or {}
        claims["tpm"] = {
            "extra_data": attest.extra_data.hex(),
            "qualified_signer": attest.qualified_signer.hex(),
            "firmware_version": f"{attest.firmware_version:016x}",
            "clock_ms": attest.clock,
            "reset_count": attest.reset_count,
            "restart_count": attest.restart_count,
            "safe": bool(attest.safe),
            "pcrs": {str(index): value.hex() for index, value in values.items()},
        }
    return claims
