"""Attestation reports of NVIDIA GPUs through NVML (package ``nvidia-ml-py``), and whether they are in CC mode.

A GPU outside confidential computing mode sees the model in the clear, and the host with it. ``require_cc_mode`` is what
keeps a measured image from starting on such a GPU: a verifier elsewhere sees only the GPUs whose evidence it is sent.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cordon.attest.binding import MAX_GPUS
from cordon.errors import ConfigError

NONCE_BYTES = 32  # of the SPDM request, NVML_CC_GPU_CEC_NONCE_SIZE
_REASONS = {  # name of the NVMLError -> (code, what to do); any other is gpu_failed
    "LibraryNotFound": ("gpu_absent", "start this kit in the image with NVIDIA's driver"),
    "DriverNotLoaded": ("gpu_absent", "modprobe nvidia, on a machine that passes a GPU in CC mode through to this VM"),
    "FunctionNotFound": ("gpu_cc_mode", "the driver knows no confidential computing: use 550 or later"),
    "NotSupported": ("gpu_cc_mode", "this GPU or driver has no confidential computing"),
}


@dataclass(frozen=True)
class GpuReport:
    """``report``: SPDM request and response as signed; ``chain``: PEM, leaf first; ``arch``: hopper or blackwell."""

    uuid: str
    arch: str
    report: bytes
    chain: bytes


def gpu_reports(nonce: bytes, nvml: Any = None) -> list[GpuReport]:
    """A report of every GPU over ``nonce`` (32 bytes), sorted by UUID. All are in CC mode, or there are none.

    Args:
        nvml: the module ``pynvml``; imported when needed.

    Raises:
        ConfigError: ``gpu_nonce``, or a code of ``require_cc_mode``, or ``gpu_failed``.
    """
    if len(nonce) != NONCE_BYTES:
        raise ConfigError(f"gpu_nonce: {len(nonce)} bytes, want {NONCE_BYTES}")
    with _session(nvml) as api:
        _check_mode(api)
        return sorted((_report(api, handle, nonce) for handle in _handles(api)), key=lambda each: each.uuid)


def require_cc_mode(nvml: Any = None) -> int:
    """How many GPUs there are: at least one, and the system in confidential computing mode.

    Raises:
        ConfigError: ``gpu_absent`` (no NVML, no driver, no GPU), ``gpu_cc_mode`` (every setting that is not as it must
            be, together), ``gpu_failed``.
    """
    with _session(nvml) as api:
        _check_mode(api)
        return len(_handles(api))


def require_no_gpu(nvml: Any = None) -> None:
    """ConfigError ``gpu_unexpected`` if a GPU can be used here: training would reach for it, and nothing attests it."""
    try:
        with _session(nvml) as api:
            count = api.nvmlDeviceGetCount()
    except ConfigError as error:
        if str(error).startswith("gpu_absent:"):
            return
        raise
    if count:
        raise ConfigError(
            f"gpu_unexpected: {count} GPUs can be used, tee.yml says gpu: none: say gpu: nvidia, or use an image "
            "without the driver"
        )


@contextmanager
def _session(nvml: Any) -> Iterator[Any]:
    """NVML between its init and shutdown; what it raises comes out as ConfigError."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError as error:
            raise ConfigError("gpu_absent: the package nvidia-ml-py is not installed") from error
    try:
        nvml.nvmlInit()
        try:
            yield nvml
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        name = type(error).__name__.removeprefix("NVMLError_")
        code, remedy = _REASONS.get(name, ("gpu_failed", "see nvidia-smi -q and dmesg"))
        raise ConfigError(f"{code}: NVML says {error}: {remedy}") from error


def _check_mode(api: Any) -> None:
    """Refuses everything but production CC mode without developer tools, in one message.

    Protected PCIe is refused as well: it leaves NVLink in the clear and trusts NVSwitches, which send no evidence here.
    """
    if not api.nvmlDeviceGetCount():
        raise ConfigError("gpu_absent: NVIDIA's driver sees no GPU: pass one in CC mode through to this VM")
    state = api.nvmlSystemGetConfComputeState()
    wrong = []
    if state.ccFeature != api.NVML_CC_SYSTEM_FEATURE_ENABLED:
        wrong.append("confidential computing is off (the host sets it: gpu-admin-tools --set-cc-mode=on)")
    if state.devToolsMode != api.NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF:
        wrong.append("developer tools are on: profilers and debuggers read the GPU (--set-cc-mode=on, not devtools)")
    if state.environment != api.NVML_CC_SYSTEM_ENVIRONMENT_PROD:
        wrong.append(f"environment {state.environment}, want {api.NVML_CC_SYSTEM_ENVIRONMENT_PROD} (production)")
    if _multi_gpu_mode(api) == api.NVML_CC_SYSTEM_MULTIGPU_PROTECTED_PCIE:
        wrong.append("multi-GPU mode is protected PCIe: NVLink is in the clear and its switches are not attested")
    if api.nvmlSystemGetConfComputeGpusReadyState() != api.NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE:
        wrong.append("the GPUs take no work yet (nvidia-smi conf-compute -srs 1, at boot)")
    if wrong:
        raise ConfigError(f"gpu_cc_mode: {'; '.join(wrong)}")


def _multi_gpu_mode(api: Any) -> int:
    """``multiGpuMode``; none where the driver is older than the call, and so than the modes."""
    settings = api.c_nvmlSystemConfComputeSettings_v1_t()
    try:
        status = api.nvmlSystemGetConfComputeSettings(ctypes.byref(settings))  # hands on NVML's status, unchecked
    except api.NVMLError_FunctionNotFound:
        return int(api.NVML_CC_SYSTEM_MULTIGPU_NONE)
    if status != api.NVML_SUCCESS:
        raise api.NVMLError(status)
    return int(settings.multiGpuMode)


def _handles(api: Any) -> list[Any]:
    count = api.nvmlDeviceGetCount()
    if count > MAX_GPUS:
        raise ConfigError(f"gpu_failed: {count} GPUs, evidence takes {MAX_GPUS}")
    return [api.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _report(api: Any, handle: Any, nonce: bytes) -> GpuReport:
    uuid = str(api.nvmlDeviceGetUUID(handle))
    names = {api.NVML_DEVICE_ARCH_HOPPER: "hopper", api.NVML_DEVICE_ARCH_BLACKWELL: "blackwell"}
    arch = api.nvmlDeviceGetArchitecture(handle)
    if arch not in names:
        raise ConfigError(f"gpu_failed: {uuid} is of NVML architecture {arch}, want one of {sorted(names.values())}")
    report = api.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
    certificate = api.nvmlDeviceGetConfComputeGpuCertificate(handle)
    return GpuReport(
        uuid,
        names[arch],
        _filled(report.attestationReport, report.attestationReportSize, f"{uuid}: report"),
        _filled(certificate.attestationCertChain, certificate.attestationCertChainSize, f"{uuid}: certificate chain"),
    )


def _filled(buffer: Any, size: int, what: str) -> bytes:
    if not 0 < size <= len(buffer):
        raise ConfigError(f"gpu_failed: {what} has {size} bytes, want 1 to {len(buffer)}")
    return bytes(buffer[:size])
