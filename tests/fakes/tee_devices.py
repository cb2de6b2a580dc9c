"""The kernel, NVIDIA's driver and Azure's vTPM, as seen from below the device layer: they answer what they were given.

Offsets and numbers are written out here from the kernel's headers, not taken from the code under test.
"""

from __future__ import annotations

import ctypes
import errno
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cordon.errors import ConfigError
from cordon.flare.devices import TSM_REPORT, Files

VCEK = bytes.fromhex("63da758de6644564adc5f4b93be8accd")  # as the bytes stand in real tables
VLEK = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")
ASK = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")
ARK = bytes.fromhex("c0b406a4a80349529743" + "3fb6014cd0ae")
CRL = bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea")


def cert_table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A certificate table (GHCB, MSG_REPORT_REQ): entries of 24 bytes, one of zeros, then the certificates."""
    offset = 24 * (len(entries) + 1)
    head, body = b"", b""
    for guid, certificate in entries:
        head += guid + struct.pack("<II", offset + len(body), len(certificate))
        body += certificate
    return head + bytes(24) + body


Make = Callable[[bytes, int], tuple[bytes, bytes | None]]


@dataclass
class _Entry:
    inblob: bytes = b""
    privlevel: int = 0
    writes: int = 0
    read_at: int = -1
    blobs: tuple[bytes, bytes | None] = (b"", None)


@dataclass
class FakeTsm(Files):
    """``drivers/virt/coco/guest/report.c``: entries, generations, and a report made when ``outblob`` is first read.

    ``make(inblob, privlevel) -> (outblob, auxblob)`` is the TEE; auxblob None: it does not show the attribute.
    ``disturb`` is called with the entry before each read of ``outblob``: another process at work.
    """

    make: Make
    provider: str | None = "sev_guest"
    mounted: bool = True
    disturb: Callable[[FakeTsm, Path], None] = lambda tsm, entry: None
    entries: dict[Path, _Entry] = field(default_factory=dict)
    made: int = 0

    def mkdir(self, path: Path) -> None:
        if not self.mounted or path.parent != TSM_REPORT:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        if self.provider is None:
            raise OSError(errno.ENXIO, "No such device or address", str(path))
        self.entries[path] = _Entry()
        self.made += 1

    def rmdir(self, path: Path) -> None:
        del self.entries[path]

    def write(self, path: Path, data: bytes) -> None:
        entry = self.entries[path.parent]
        if path.name == "privlevel":
            if not 0 <= int(data) <= 3:
                raise OSError(errno.EINVAL, "Invalid argument", str(path))
            entry.privlevel = int(data)
        elif path.name == "inblob":
            entry.inblob = data
        else:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        entry.writes += 1

    def read(self, path: Path, limit: int) -> bytes:
        entry = self.entries[path.parent]
        if path.name == "outblob":
            self.disturb(self, path.parent)
        data = self._attribute(path, entry)
        assert len(data) <= limit
        return data

    def _attribute(self, path: Path, entry: _Entry) -> bytes:
        if path.name == "generation":
            return b"%d\n" % entry.writes
        if path.name == "provider":
            return f"{self.provider}\n".encode()
        if not entry.inblob:
            raise OSError(errno.EINVAL, "Invalid argument", str(path))
        if entry.read_at != entry.writes:
            entry.blobs, entry.read_at = self.make(entry.inblob, entry.privlevel), entry.writes
        blob = entry.blobs[("outblob", "auxblob").index(path.name)]
        if blob is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return blob


@dataclass
class FakeSevGuest:
    """The ioctls of ``drivers/virt/coco/sev-guest/sev-guest.c``: reads and writes the caller's memory as it does.

    ``busy``: how many calls the host puts off first; ``host_needs``: bytes that the host's certificates take.
    """

    make: Callable[[bytes, int], bytes]
    table: bytes = b""
    busy: int = 0
    host_needs: int = 0
    status: int = 0
    size: int | None = None
    fail: tuple[int, int] | None = None  # (errno, exitinfo2)
    calls: list[int] = field(default_factory=list)

    def __call__(self, handle: int, operation: int, argument: ctypes.Structure, mutate: bool) -> int:
        self.calls.append(operation)
        assert mutate and ctypes.sizeof(argument) == 32
        at = ctypes.addressof(argument)
        (version,) = struct.unpack_from("<B", ctypes.string_at(at, 32))
        request, response = struct.unpack_from("<QQ", ctypes.string_at(at, 32), 8)
        if not version or not request or not response:
            raise OSError(errno.EINVAL, "Invalid argument")
        if self.fail is not None:
            self._result(at, self.fail[1])
            raise OSError(self.fail[0], "Input/output error")
        if self.busy:
            self.busy -= 1
            self._result(at, 2 << 32)  # SNP_GUEST_VMM_ERR_BUSY
            raise OSError(errno.EIO, "Input/output error")
        if operation == 0xC0205302:
            address, length = struct.unpack_from("<QI", ctypes.string_at(request, 112), 96)
            if length > 0x4000 or length % 4096:
                raise OSError(errno.EINVAL, "Invalid argument")
            if self.host_needs > length:
                ctypes.memmove(request + 104, struct.pack("<I", self.host_needs), 4)
                self._result(at, 1 << 32)  # SNP_GUEST_VMM_ERR_INVALID_LEN
                raise OSError(errno.EIO, "Input/output error")
            ctypes.memmove(address, self.table.ljust(length, b"\0"), length)
        elif operation != 0xC0205300:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        data = ctypes.string_at(request, 96)
        (vmpl,) = struct.unpack_from("<I", data, 64)
        assert data[68:] == bytes(28), "reserved bytes must be zero"
        report = self.make(data[:64], vmpl)
        answer = struct.pack("<II24x", self.status, len(report) if self.size is None else self.size) + report
        ctypes.memmove(response, answer.ljust(4000, b"\0"), 4000)
        return 0

    @staticmethod
    def _result(at: int, exitinfo2: int) -> None:
        ctypes.memmove(at + 24, struct.pack("<Q", exitinfo2), 8)


@dataclass
class Gpu:
    uuid: str
    architecture: int
    nonce: bytes
    report: bytes
    chain: bytes


@dataclass
class FakeNvmlLibrary:
    """``libnvidia-ml.so.1`` below the real Python bindings: takes ctypes arguments, returns NVML's status."""

    gpus: list[Gpu]
    init: int = 0  # status of nvmlInit: 9 driver not loaded
    state: int = 0  # status of nvmlSystemGetConfComputeState: 3 not supported
    environment: int = 2
    cc_feature: int = 1
    devtools: int = 0
    multi_gpu: int = 0
    ready: int = 1
    open: int = 0
    old_driver: bool = False

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name == "nvmlSystemGetConfComputeSettings" and not self.__dict__["old_driver"]:
            return self._settings
        raise AttributeError(name)

    def nvmlInitWithFlags(self, flags: int) -> int:
        self.open += self.init == 0
        return self.init

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device) -> int:
        ctypes.memmove(device, ctypes.byref(ctypes.c_void_p(index.value + 1)), ctypes.sizeof(ctypes.c_void_p))
        return 0

    def nvmlDeviceGetUUID(self, device, buffer, size) -> int:
        buffer.value = self._gpu(device).uuid.encode()
        return 0

    def nvmlDeviceGetArchitecture(self, device, architecture) -> int:
        architecture._obj.value = self._gpu(device).architecture
        return 0

    def nvmlSystemGetConfComputeState(self, state) -> int:
        if self.state == 0:
            state._obj.environment, state._obj.ccFeature = self.environment, self.cc_feature
            state._obj.devToolsMode = self.devtools
        return self.state

    def _settings(self, settings) -> int:
        if settings._obj.version != 0x1000014:
            return 25  # NVML_ERROR_ARGUMENT_VERSION_MISMATCH
        settings._obj.multiGpuMode = self.multi_gpu
        return 0

    def nvmlSystemGetConfComputeGpusReadyState(self, ready) -> int:
        ready._obj.value = self.ready
        return 0

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device, report) -> int:
        gpu, into = self._gpu(device), report._obj
        if bytes(into.nonce) != gpu.nonce:
            return 2  # NVML_ERROR_INVALID_ARGUMENT: this recording answers one nonce
        into.attestationReportSize = len(gpu.report)
        ctypes.memmove(into.attestationReport, gpu.report, min(len(gpu.report), len(into.attestationReport)))
        return 0

    def nvmlDeviceGetConfComputeGpuCertificate(self, device, certificate) -> int:
        gpu, into = self._gpu(device), certificate._obj
        into.attestationCertChainSize = len(gpu.chain)
        ctypes.memmove(into.attestationCertChain, gpu.chain, len(gpu.chain))
        return 0

    def _gpu(self, device) -> Gpu:
        return self.gpus[ctypes.cast(device, ctypes.c_void_p).value - 1]


def hcl_report(hardware: bytes, user_data: bytes) -> bytes:
    """A report as the paravisor leaves it: header, hardware report, claims with ``user_data``."""
    claims = json.dumps({"keys": [], "user-data": user_data.hex().upper()}).encode()
    head = b"HCLA".ljust(32, b"\0") + hardware.ljust(1184, b"\0")
    return head + struct.pack("<IIIII", 20 + len(claims), 1, 2, 1, len(claims)) + claims + bytes(64)


@dataclass
class FakeTpm:
    """tpm2-tools on an Azure VM: ``reports`` maps user data to HCL reports; ``quote`` is (message, signature, pcrs)."""

    reports: Callable[[bytes], bytes]
    quote: tuple[bytes, bytes, bytes] = (b"message", b"signature", bytes(24 * 32))
    defined: bool = False
    nv: bytes = b""
    overwritten: int = 0  # how many times another process writes after us
    installed: bool = True
    nonces: list[str] = field(default_factory=list)

    def __call__(self, command: list[str], given: bytes) -> bytes:
        tool, *arguments = command
        if not self.installed:
            raise ConfigError(f"vtpm_tools: {tool} is not installed")
        if tool == "tpm2_nvreadpublic":
            if not self.defined:
                raise ConfigError("vtpm_failed: tpm2_nvreadpublic 0x01400002: exit 1: the handle is not correct")
        elif tool == "tpm2_nvdefine":
            assert arguments == ["-C", "o", "0x01400002", "-s", "64"]
            self.defined = True
        elif tool == "tpm2_nvwrite":
            assert self.defined and arguments == ["-C", "o", "0x01400002", "-i", "-"]
            self.nv = given
            if self.overwritten:
                self.overwritten -= 1
                self.nv = b"\xee" * 64
        elif tool == "tpm2_nvread":
            assert arguments == ["-C", "o", "0x01400001"]
            return self.reports(self.nv)
        elif tool == "tpm2_quote":
            options = dict(zip(arguments[::2], arguments[1::2], strict=True))
            assert options["-c"] == "0x81000003" and options["-f"] == "plain"
            self.nonces.append(options["-q"])
            Path(options["-m"]).write_bytes(self.quote[0])
            Path(options["-s"]).write_bytes(self.quote[1])
        elif tool == "tpm2_pcrread":
            Path(arguments[arguments.index("-o") + 1]).write_bytes(self.quote[2])
        else:
            raise AssertionError(f"no such tool: {tool}")
        return b""
