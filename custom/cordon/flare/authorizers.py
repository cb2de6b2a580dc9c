"""Attesters: what makes this process's evidence, from the devices of the confidential VM it runs in.

Each fits ``cordon.attest.claims.Attester``. They carry evidence, they judge nothing: a wrong report fails at the
verifier. Nothing here imports nvflare.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cordon import documents
from cordon.attest.claims import Attester, Report
from cordon.attest.policy import EvidenceType
from cordon.documents import Document
from cordon.errors import ConfigError
from cordon.flare import devices, nvml, sev_guest, vtpm
from cordon.flare.devices import TsmReport
from cordon.flare.nvml import GpuReport

SCHEMA = "cordon/tee/v1"
FILE = "tee.yml"  # in the kit's local/
CCEL = Path("/sys/firmware/acpi/tables/data/CCEL")
MAX_CERTIFICATE = 16 * 1024  # bytes
MAX_CCEL = 1024 * 1024
_FILL_KEPT = 4096

DEVICES: dict[str, tuple[str, ...]] = {
    "snp": ("tsm", "sev-guest"),
    "tdx": ("tsm",),
    "sgx": ("gramine",),
    "az-snp": ("vtpm",),
    "az-tdx": ("vtpm",),
    "software": ("software",),
}


class TeeEnvironment(Document, frozen=True, kw_only=True):
    """Which TEE this kit runs in (``local/tee.yml``); written at provisioning from the participant's cc_config.

    ``device``: where its reports come from: ``tsm`` (configfs-tsm, Linux 6.7), ``sev-guest`` (ioctl, older kernels),
    ``gramine``, ``vtpm`` (Azure), ``software``. ``vek``: certificate (DER or PEM) of the chip's key, for
    hosts that supply none, a path beside this file; AMD's key service gives it out by chip and TCB.
    """

    version: Literal["cordon/tee/v1"]
    evidence: Literal["snp", "tdx", "sgx", "az-snp", "az-tdx", "software"]
    gpu: Literal["nvidia", "none"]
    device: Literal["tsm", "sev-guest", "gramine", "vtpm", "software"]
    vek: str | None

    def __post_init__(self) -> None:
        if self.device not in DEVICES[self.evidence]:
            raise ValueError(f"evidence {self.evidence} comes from device {' or '.join(DEVICES[self.evidence])}")
        if self.gpu == "nvidia" and self.evidence in ("sgx", "software"):
            raise ValueError(f"evidence {self.evidence} cannot speak for a GPU")
        if self.vek is not None and self.evidence not in ("snp", "az-snp"):
            raise ValueError(f"evidence {self.evidence} has no vek")


def attester_for(environment: TeeEnvironment, local: Path) -> Attester:
    """The attester of this environment, its devices there and its GPUs in confidential computing mode.

    Args:
        local: the kit's ``local`` folder, against which ``vek`` resolves.

    Raises:
        ConfigError: ``<device>_absent``, ``gpu_absent``, ``gpu_cc_mode``, ``gpu_unexpected``; ``tee`` for the software
            TEE, whose keys are the kit's.
    """
    if environment.evidence == "software":
        raise ConfigError("tee: software evidence comes from the kit's own TEE key, not from a device")
    devices.require(environment.device)
    vek = None if environment.vek is None else (local / environment.vek).resolve()
    attester = _cpu_attester(environment, vek)
    if environment.gpu == "nvidia":
        nvml.require_cc_mode()
        return with_gpus(attester)
    nvml.require_no_gpu()
    return attester


def _cpu_attester(environment: TeeEnvironment, vek: Path | None) -> Attester:
    if environment.evidence == "snp":
        return SnpAttester("sev-guest" if environment.device == "sev-guest" else "tsm", vek)
    if environment.evidence == "tdx":
        return TdxAttester()
    if environment.evidence == "sgx":
        return SgxAttester()
    return AzureAttester("az-snp" if environment.evidence == "az-snp" else "az-tdx", vek)


@dataclass(frozen=True)
class SnpAttester:
    """AMD SEV-SNP. Endorsements: ``vek`` and, beside a VCEK where the host has them, ``chain`` (ASK, ARK; PEM).

    The host's certificate of the key that signed is taken where there is one: it keeps up with firmware updates. Else
    the file ``vek``.
    """

    device: Literal["tsm", "sev-guest"] = "tsm"
    vek: Path | None = None
    tsm: Callable[..., TsmReport] = devices.tsm_report
    sev_guest: Callable[..., tuple[bytes, bytes]] = sev_guest.sev_guest_report
    type: Literal["snp"] = "snp"

    def report(self, report_data: bytes) -> Report:
        """The report over 64 bytes; ConfigError as the device, ``certificates_of``, or ``vek_missing``."""
        if self.device == "tsm":
            found = self.tsm(report_data, provider="sev_guest")
            report, table = found.outblob, found.auxblob
        else:
            report, table = self.sev_guest(report_data)
        given = sev_guest.certificates_of(table)
        signer = "vlek" if _signed_by_vlek(report) else "vcek"
        endorsements = {"vek": given.get(signer) or _vek_file(self.vek, report)}
        if signer == "vcek" and "ask" in given and "ark" in given:  # an ASK issues no VLEK, and the table has no ASVK
            endorsements["chain"] = _pem(given["ask"]) + _pem(given["ark"])
        return Report(report, endorsements)

    def gpu_evidence(self, nonce: bytes) -> None:
        """None: see ``with_gpus``."""


def _signed_by_vlek(report: bytes) -> bool:
    """SIGNING_KEY, bits 4:2 at 0x48 (AMD 56860, ATTESTATION_REPORT): 0 VCEK, 1 VLEK."""
    return len(report) > 0x48 and (report[0x48] >> 2) & 0b111 == 1


def _vek_file(path: Path | None, report: bytes) -> bytes:
    if path is not None:
        return documents.read_bytes(path, MAX_CERTIFICATE)
    raise ConfigError(
        "vek_missing: the host supplies no certificate of the key that signed, and tee.yml names none: fetch it from "
        f"AMD's key service (kdsintf.amd.com) for chip {report[0x1A0:0x1E0].hex()}, TCB {report[0x180:0x188].hex()}, "
        f"put it into the kit's local folder and name it as vek in {FILE}"
    )


def _pem(certificate: bytes) -> bytes:
    """PEM of a certificate in either form, ending in a newline. Not parsed."""
    if certificate.lstrip().startswith(b"-----BEGIN"):
        return certificate.strip() + b"\n"
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


@dataclass(frozen=True)
class TdxAttester:
    """Intel TDX. Endorsements: ``event_log`` if the guest's kernel shows one. Collateral is the verifier's business."""

    ccel: Path = CCEL
    tsm: Callable[..., TsmReport] = devices.tsm_report
    type: Literal["tdx"] = "tdx"

    def report(self, report_data: bytes) -> Report:
        """The quote over 64 bytes; ConfigError as ``tsm_report``."""
        quote = self.tsm(report_data, provider="tdx_guest").outblob
        if not self.ccel.exists():  # a policy that wants the log will miss it
            return Report(quote)
        return Report(quote, {"event_log": _without_fill(documents.read_bytes(self.ccel, MAX_CCEL))})

    def gpu_evidence(self, nonce: bytes) -> None:
        """None: see ``with_gpus``."""


def _without_fill(log: bytes) -> bytes:
    """``log`` without most of the unused memory after its last entry (256 KiB is usual, 20 KiB are used).

    Some fill stays: the last entry's own end may look like it.
    """
    if log[-1:] not in (b"\0", b"\xff"):
        return log
    return log[: len(log.rstrip(log[-1:])) + _FILL_KEPT]


@dataclass(frozen=True)
class SgxAttester:
    """Intel SGX, for a process inside a Gramine enclave."""

    quote: Callable[..., bytes] = devices.gramine_quote
    type: Literal["sgx"] = "sgx"

    def report(self, report_data: bytes) -> Report:
        """The quote over 64 bytes; ConfigError as ``gramine_quote``."""
        return Report(self.quote(report_data))

    def gpu_evidence(self, nonce: bytes) -> None:
        """None: an enclave cannot speak for a GPU."""


@dataclass(frozen=True)
class AzureAttester:
    """An Azure confidential VM: the report is the HCL report, with our 64 bytes as user data.

    Endorsements: ``tpm_quote``; az-snp: ``vek`` (the file, else from the host's cache, with ``chain``); az-tdx:
    ``quote``. Not run on a real Azure VM.
    """

    type: Literal["az-snp", "az-tdx"]
    vek: Path | None = None
    run: vtpm.Run = vtpm.run_tool
    fetch: vtpm.Fetch = vtpm.imds

    def report(self, report_data: bytes) -> Report:
        """The HCL report with these 64 bytes; ConfigError as the functions of ``vtpm``."""
        report = vtpm.azure_hcl_report(report_data, self.run)
        endorsements = {"tpm_quote": vtpm.azure_tpm_quote(report_data, self.run)}
        if self.type == "az-tdx":
            endorsements["quote"] = vtpm.azure_td_quote(report, self.fetch)
        elif self.vek is not None:
            endorsements["vek"] = documents.read_bytes(self.vek, MAX_CERTIFICATE)
        else:
            endorsements["vek"], endorsements["chain"] = vtpm.azure_vcek(self.fetch)
        return Report(report, endorsements)

    def gpu_evidence(self, nonce: bytes) -> None:
        """None: see ``with_gpus``."""


@dataclass(frozen=True)
class _WithGpus:
    cpu: Attester
    gpus: Callable[[bytes], list[GpuReport]]

    @property
    def type(self) -> EvidenceType:
        return self.cpu.type

    def report(self, report_data: bytes) -> Report:
        """As the CPU's attester alone."""
        return self.cpu.report(report_data)

    def gpu_evidence(self, nonce: bytes) -> list[dict[str, Any]]:
        """Of every GPU, over 32 bytes; ConfigError as ``gpu_reports``."""
        return [
            {
                "uuid": gpu.uuid,
                "arch": gpu.arch,
                "report": base64.b64encode(gpu.report).decode(),
                "chain": base64.b64encode(gpu.chain).decode(),
            }
            for gpu in sorted(self.gpus(nonce), key=lambda gpu: gpu.uuid)
        ]


def with_gpus(cpu: Attester, gpus: Callable[[bytes], list[GpuReport]] = nvml.gpu_reports) -> Attester:
    """``cpu`` and the evidence of all NVIDIA GPUs: {uuid, arch, report, chain}, the last two base64, sorted by uuid."""
    return _WithGpus(cpu, gpus)
