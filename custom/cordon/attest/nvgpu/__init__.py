"""NVIDIA GPUs and NVSwitches: attestation reports, reference measurements, attestation service tokens (README)."""

from cordon.attest.nvgpu.device import Roots, verify
from cordon.attest.nvgpu.devices import verify_devices
from cordon.attest.nvgpu.evidence import DeviceEvidence, decode_report, read_evidence
from cordon.attest.nvgpu.policy import GpuPolicy, NrasPolicy

__all__ = [
    "DeviceEvidence",
    "GpuPolicy",
    "NrasPolicy",
    "Roots",
    "decode_report",
    "read_evidence",
    "verify",
    "verify_devices",
]
