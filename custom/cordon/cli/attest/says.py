"""What a piece of evidence says of itself, as (label, words): true only as far as its signatures were checked.

And, per kind of evidence, what it proves and what it does not, in sentences for whoever has to decide by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from cordon.errors import ConfigError

if TYPE_CHECKING:
    from cordon.attest.appraise import Evidence
    from cordon.attest.nvgpu import spdm
    from cordon.attest.snp import Report

Facts = list[tuple[str, str]]

MAX_TEXT = 200  # characters of one value of a token
MAX_LABEL = 60  # characters of its name
MAX_CLAIMS = 40  # of one token
SIGNERS = {"vcek": "the chip's own key (VCEK)", "vlek": "a cloud's key (VLEK)"}
LEVELS = {0: "0, the most privileged level of the guest"}
DEBUG = {True: "ON: whoever runs the host can read and change its memory", False: "off"}


def snp(report: Report, line: str | None = None) -> Facts:
    """An SEV-SNP report; ``line`` is its product line, if somebody else says so."""
    from cordon.attest.snp import abi

    policy = abi.bits(report.policy, abi.POLICY_BITS)
    product = report.product or line
    tcbs = {
        name: _pairs(abi.components(raw, product)) if product else f"{raw.hex()} (layout depends on the product)"
        for name, raw in (
            ("reported TCB", report.reported_tcb),
            ("committed TCB", report.committed_tcb),
            ("current TCB", report.current_tcb),
            ("launch TCB", report.launch_tcb),
        )
    }
    firmware = ".".join(map(str, report.current_version))
    newer = report.current_version != report.committed_version or report.current_tcb != report.committed_tcb
    return [
        ("report version", str(report.version)),
        ("product", report.product or f"{line or 'unknown'} (a report of version 2 does not say it)"),
        ("signed by", SIGNERS.get(report.signer or "", "nobody")),
        ("chip", report.chip_id.hex() if any(report.chip_id) else "hidden (all zero)"),
        ("firmware", f"{firmware}, provisional: it can be rolled back" if newer else firmware),
        *tcbs.items(),
        ("debug", DEBUG[policy["debug"]]),
        ("migration agent", "allowed" if policy["migrate_ma"] else "not allowed"),
        ("SMT", "allowed" if policy["smt"] else "not allowed"),
        ("VMPL", LEVELS.get(report.vmpl, f"{report.vmpl}, less privileged than the level 0 of the same guest")),
        ("measurement", report.measurement.hex()),
        ("host_data", _bytes(report.host_data)),
        ("ID key digest", _bytes(report.id_key_digest)),
        ("report_data", _bytes(report.report_data)),
    ]


def quote(claims: Mapping[str, Any]) -> Facts:
    """A TDX or SGX quote."""
    facts = [("quote version", str(claims["quote_version"]))]
    debug = "debug" in claims["flags"]
    facts += [("debug", DEBUG[debug]), ("attributes set", ", ".join(claims["flags"]) or "none")]
    for name in (
        *("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_seam", "mr_config_id", "mr_owner", "tee_tcb_svn"),
        *("mr_enclave", "mr_signer", "isv_prod_id", "isv_svn", "report_data"),
    ):
        if name in claims:
            value = claims[name]
            facts.append((name, _hex(value) if isinstance(value, str) else str(value)))
    for name in ("platform", "tcb", "collateral"):
        if name in claims:
            facts.append((name, _pairs(claims[name])))
    return facts


def gpu(report: spdm.Report) -> Facts:
    """A GPU's or NVSwitch's report."""
    modes = {
        "spt": "single GPU pass-through",
        "mpt": "multi GPU pass-through",
        "ppcie": "protected PCIe",
        None: "not said",
    }
    return [
        ("driver", report.driver_version or "none (an NVSwitch has none)"),
        ("VBIOS", report.vbios_version or "not said"),
        ("mode", modes.get(report.mode, str(report.mode))),
        ("CC mode, developer tools", "not said by such a report"),
        ("measurements", f"{len(report.measurements)}, to be compared with RIM files"),
        ("nonce answered", report.request_nonce.hex()),
    ]


def azure(claims: Mapping[str, Any], tee: str) -> Facts:
    """An Azure HCL report, with the hardware's claims as far as its endorsement came along."""
    facts = [("hardware", {"snp": "AMD SEV-SNP", "tdx": "Intel TDX"}[tee])]
    if tee == "tdx":
        facts += [("measurement", claims["measurement"] or "not read: the TD quote did not come along")]
    facts += [
        ("user data", _hex(claims["report_data"])),
        ("vTPM key (SPKI SHA-256)", claims["ak_spki_sha256"] or "none"),
    ]
    facts += [("VM configuration", _pairs(claims["vm_configuration"]))]
    if "tpm" in claims:
        quoted = claims["tpm"]
        facts += [("vTPM quote", f"answers {_hex(quoted['extra_data'])}, {len(quoted['pcrs'])} PCR values")]
    return facts


def token(claims: Mapping[str, Any]) -> Facts:
    """The claims of a token, in its own names."""
    facts = []
    for name, value in sorted(claims.items())[:MAX_CLAIMS]:
        if name in ("iat", "nbf", "exp") and isinstance(value, int) and 0 <= value < 2**33:
            text = f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"
        else:
            text = _short(value)
        facts.append((name[:MAX_LABEL], text))
    if len(claims) > MAX_CLAIMS:
        facts.append(("...", f"and {len(claims) - MAX_CLAIMS} more"))
    return facts or [("claims", "none")]


def statement(evidence: Evidence) -> Facts:
    """Cordon's own evidence."""
    context = evidence.context
    gpus = evidence.gpu_evidence
    return [
        ("type", evidence.type),
        ("purpose", {"parent": "admission to the federation", "job": "one job's process"}[context.purpose]),
        ("site", context.site),
        ("study contract", context.study),
        *([("job", f"{context.job}, folder {context.job_digest}")] if context.purpose == "job" else []),
        ("package", context.bundle_digest),
        ("for the policy", context.policy_digest),
        ("nonce answered", evidence.nonce.hex()),
        ("GPU evidence", "none" if gpus is None else f"of {len(gpus)} devices"),
    ]


def software(report: bytes) -> Facts:
    """A software TEE's report; ConfigError ``report_format``."""
    from cordon import signing
    from cordon.errors import SignatureError

    try:
        body = signing.unverified_body(msgspec.json.decode(report)["envelope"])
        measurement, bound = str(body["measurement"]), str(body["report_data"])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, KeyError, SignatureError) as error:
        raise ConfigError("report_format: not a software report: want certificate and envelope") from error
    return [("measurement", f"{measurement}, as the key's holder chose it"), ("report_data", bound)]


def _bytes(value: bytes) -> str:
    return value.hex() if any(value) else f"{len(value)} zero bytes"


def _hex(text: str) -> str:
    return text if text.strip("0") else f"{len(text) // 2} zero bytes" if text else "none"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items()) or "none"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"


FRESH = "that it is fresh, or about your peer: compare report_data (nonce, keys, site) with what you asked for"
IMAGE = "that the measured image is a good one: compare the measurement with one that somebody you trust computed"
VULNERABLE = "that the running software has no holes, or that nobody reads it through side channels or physical attacks"
SOFTWARE = "software, proves nothing about hardware"


@dataclass(frozen=True)
class Words:
    """``proves`` holds for evidence that was verified; ``never`` holds for all evidence of this kind."""

    title: str
    proves: tuple[str, ...]
    never: tuple[str, ...]


WORDS = {
    "snp": Words(
        "AMD SEV-SNP attestation report",
        (
            "a guest with exactly this measurement, policy and VMPL asked for it on a genuine AMD processor",
            "that processor's firmware is at least at the reported TCB version",
            "the guest chose report_data, and whoever started it chose host_data",
        ),
        (FRESH, IMAGE, "where the machine stands and who owns it", VULNERABLE),
    ),
    "tdx": Words(
        "Intel TDX quote",
        (
            "a trust domain with exactly this MRTD, RTMRs and attributes asked for it on a genuine Intel platform",
            "with collateral: at which TCB status Intel sees that platform",
            "the trust domain chose report_data, and whoever started it chose MRCONFIGID and MROWNER",
        ),
        (FRESH, IMAGE, "what the RTMRs mean, without the event log that leads to them", VULNERABLE),
    ),
    "sgx": Words(
        "Intel SGX quote",
        (
            "an enclave with exactly this MRENCLAVE, signed by MRSIGNER, asked for it on a genuine Intel platform",
            "with collateral: at which TCB status Intel sees that platform",
            "the enclave chose report_data",
        ),
        (FRESH, IMAGE, "anything about what runs around the enclave on that machine", VULNERABLE),
    ),
    "gpu": Words(
        "NVIDIA attestation report",
        (
            "a genuine NVIDIA device with these firmware measurements answered this nonce",
            "with RIM files: its driver and VBIOS are those that NVIDIA released under these versions",
        ),
        (
            "that confidential computing is on and developer tools are off: the report does not state it",
            "to which machine or VM the device belongs: the CPU's evidence has to cover this evidence",
            "that its key was not revoked: only OCSP tells, and that needs the network",
            VULNERABLE,
        ),
    ),
    "azure": Words(
        "Azure confidential VM: vTPM-wrapped hardware report",
        (
            "the paravisor in a genuine confidential VM vouches for the runtime claims and the vTPM's key in them",
            "with a vTPM quote: that vTPM saw these PCR values and answered this nonce",
        ),
        (
            "anything without trust in Microsoft's paravisor: it, not the guest, chose the hardware's report_data",
            FRESH,
            IMAGE,
            VULNERABLE,
        ),
    ),
    "nras": Words(
        "token of NVIDIA's attestation service (NRAS)",
        ("NVIDIA's service looked at a device's evidence and says what it found",),
        (
            "anything of its own: it is the service's word, and worth as much as the key set you check it with",
            "to which machine the device belongs",
            "that confidential computing is on: a token does not state it",
            VULNERABLE,
        ),
    ),
    "maa": Words(
        "token of Microsoft Azure Attestation (MAA)",
        ("Microsoft's service looked at a VM's evidence and says what it found",),
        (
            "anything of its own: it is the service's word, and worth as much as the key set you check it with",
            "that it is about your VM: any customer of Azure gets such tokens; compare nonce, VM id and measurement",
            VULNERABLE,
        ),
    ),
    "software": Words(
        f"report of the software TEE: {SOFTWARE}",
        ("that somebody holds the software TEE's key file of this POC workspace",),
        ("anything about hardware, memory encryption or the software that runs",),
    ),
    "cordon": Words(
        "Cordon's evidence: a statement signed with the prover's mTLS key, with a TEE's report about it",
        ("once appraised by a verifier that issued the nonce: this site's process holds these two keys, in that TEE",),
        (
            "anything by itself: nonce, mTLS key and policy are the verifier's own, and are not in this file",
            VULNERABLE,
        ),
    ),
}
