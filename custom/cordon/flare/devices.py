"""Reports of the CPU's TEE from the kernel's own interfaces, each behind one function.

* ``tsm_report``: configfs-tsm (Linux 6.7, ``Documentation/ABI/testing/configfs-tsm``): SEV-SNP and TDX.
* ``gramine_quote``: Gramine's ``/dev/attestation``: SGX.

Beside it: ``sev_guest`` (ioctl of SEV-SNP), ``vtpm`` (Azure), ``nvml`` (GPUs).

All raise ConfigError whose text starts with a stable code: what was looked for, what was found, what to do. What a
device says is believed by nobody: the verifier at the other end checks it.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cordon.errors import ConfigError

REPORT_DATA_BYTES = 64  # TSM_REPORT_INBLOB_MAX, SNP_REPORT_USER_DATA_SIZE, REPORTDATA of TDX and SGX
MAX_BLOB = 64 * 1024  # bytes; the kernel's own limit is 32 KiB
TSM_REPORT = Path("/sys/kernel/config/tsm/report")
SEV_GUEST = Path("/dev/sev-guest")
GRAMINE = Path("/dev/attestation")
ATTEMPTS = 5
PAUSE_S = 2.0  # SNP_REQ_RETRY_DELAY: how long the kernel itself waits after the host said "busy"

_WHERE = {
    "tsm": (
        TSM_REPORT,
        "mount -t configfs none /sys/kernel/config; modprobe sev-guest or tdx-guest (Linux 6.7 or later)",
    ),
    "sev-guest": (SEV_GUEST, "modprobe sev-guest"),
    "gramine": (GRAMINE / "quote", 'run under gramine-sgx with sgx.remote_attestation = "dcap"'),
    "vtpm": (Path("/dev/tpmrm0"), "start it in an Azure confidential VM and install tpm2-tools"),
}


def require(device: str, root: Path = Path("/")) -> None:
    """ConfigError ``<device>_absent`` unless the interface ``device`` is there. Cheap: asks it nothing.

    Args:
        root: where the file system starts.
    """
    path, remedy = _WHERE[device]
    if not (root / path.relative_to("/")).exists():
        raise ConfigError(
            f"{device.replace('-', '_')}_absent: looked for {path}, which is not there: start this kit inside the "
            f"confidential VM image; there: {remedy}"
        )


class Files:
    """The four things that are done to a pseudo file system. Each raises OSError."""

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def read(self, path: Path, limit: int) -> bytes:
        """All of ``path``; EFBIG if that is more than ``limit`` bytes."""
        data = b""
        with open(path, "rb", buffering=0) as file:
            while len(data) <= limit and (piece := file.read(limit + 1 - len(data))):
                data += piece
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"more than {limit} bytes", str(path))
        return data

    def write(self, path: Path, data: bytes) -> None:
        """``data`` in one write: an attribute takes what one write brings as its whole value. Creates nothing."""
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(handle, data) != len(data):
                raise OSError(errno.EIO, "short write", str(path))
        finally:
            os.close(handle)


KERNEL = Files()


@dataclass(frozen=True)
class TsmReport:
    """``outblob``: the report, in the format that ``provider`` names; ``auxblob``: ``sev_guest``: certificate table."""

    provider: str
    outblob: bytes
    auxblob: bytes
    generation: int


def tsm_report(
    report_data: bytes,
    root: Path = TSM_REPORT,
    provider: str | None = None,
    privlevel: int | None = None,
    files: Files = KERNEL,
    sleep: Callable[[float], None] = time.sleep,
) -> TsmReport:
    """A report over 64 bytes through configfs-tsm.

    Args:
        provider: ``sev_guest``, ``tdx_guest``; None takes any.
        privlevel: VMPL to report (SEV-SNP with an SVSM); None leaves the kernel's.
        sleep: called between attempts, in seconds.

    Raises:
        ConfigError: ``tsm_absent``, ``tsm_permission``, ``tsm_provider``, ``tsm_busy``, ``tsm_interference`` (others
            wrote to our entry at every attempt), ``tsm_failed``.
    """
    check_length(report_data)
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(PAUSE_S)
        try:
            with _entry(root, files) as entry:
                found = _ask_tsm(entry, report_data, privlevel, files)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EAGAIN):
                raise _tsm_error(error, root) from error
            why = f"tsm_busy: {error.filename or root}: busy at {ATTEMPTS} attempts; try again later"
            continue
        if found is None:
            why = f"tsm_interference: {root}: another process wrote to the report's settings at {ATTEMPTS} attempts"
        elif provider is not None and found.provider != provider:
            raise ConfigError(
                f"tsm_provider: {root} speaks for {found.provider}, want {provider}: the kit is made for another TEE"
            )
        else:
            return found
    raise ConfigError(why)


def _ask_tsm(entry: Path, report_data: bytes, privlevel: int | None, files: Files) -> TsmReport | None:
    """One try; None if the report may be about another's settings.

    The number of writes is checked, not the result of ours: the kernel hands ``inblob`` over when the file is closed
    and drops the error (configfs_release_bin_file), so a refused write looks like one that went through.
    """
    before = _number(files.read(entry / "generation", 64), entry)
    writes = 1
    if privlevel is not None:
        files.write(entry / "privlevel", str(privlevel).encode())
        writes += 1
    files.write(entry / "inblob", report_data)
    outblob = files.read(entry / "outblob", MAX_BLOB)
    try:
        auxblob = files.read(entry / "auxblob", MAX_BLOB)
    except FileNotFoundError:  # a provider without certificates does not show the attribute
        auxblob = b""
    provider = files.read(entry / "provider", 256).decode("ascii", "replace").strip()
    after = _number(files.read(entry / "generation", 64), entry)
    return TsmReport(provider, outblob, auxblob, after) if after == before + writes else None


@contextmanager
def _entry(root: Path, files: Files) -> Iterator[Path]:
    """A report instance of our own, removed whatever happens: entries left behind keep the provider from unloading."""
    entry = root / f"cordon-{os.getpid()}-{secrets.token_hex(8)}"
    files.mkdir(entry)
    try:
        yield entry
    finally:
        files.rmdir(entry)


def _tsm_error(error: OSError, root: Path) -> ConfigError:
    where = f"{error.filename or root}: {error.strerror}"
    if error.errno == errno.ENOENT:
        return ConfigError(f"tsm_absent: {where}; inside the confidential VM: {_WHERE['tsm'][1]}")
    if error.errno == errno.ENXIO:
        return ConfigError(f"tsm_provider: {where}: no TEE driver has registered: modprobe sev-guest or tdx-guest")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"tsm_permission: {where}: reports are root's to make: run as root, configfs writable")
    return ConfigError(f"tsm_failed: {where} (errno {error.errno}); see dmesg")


def _number(text: bytes, entry: Path) -> int:
    if not text.strip().isdigit():
        raise ConfigError(f"tsm_failed: {entry / 'generation'} reads {text[:32]!r}, want a number")
    return int(text)


_GRAMINE_LOCK = threading.Lock()  # the pseudo files are the process's: two threads would read each other's quote


def gramine_quote(report_data: bytes, root: Path = GRAMINE, files: Files = KERNEL) -> bytes:
    """An SGX quote (DCAP) over 64 bytes, inside a Gramine enclave.

    Raises:
        ConfigError: ``gramine_absent``, ``gramine_type`` (attestation is off or EPID), ``gramine_failed``.
    """
    check_length(report_data)
    try:
        kind = files.read(root / "attestation_type", 64).decode("ascii", "replace").strip("\0\n ")
        if kind != "dcap":
            raise ConfigError(f"gramine_type: sgx.remote_attestation is {kind!r}, want 'dcap'")
        with _GRAMINE_LOCK:
            files.write(root / "user_report_data", report_data)
            return files.read(root / "quote", MAX_BLOB)
    except OSError as error:
        code = "absent" if error.errno == errno.ENOENT else "failed"
        raise ConfigError(
            f"gramine_{code}: {error.filename or root}: {error.strerror}; {_WHERE['gramine'][1]}"
        ) from error


def check_length(report_data: bytes) -> None:
    """ConfigError ``report_data`` unless it is 64 bytes."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise ConfigError(f"report_data: {len(report_data)} bytes, want {REPORT_DATA_BYTES}")
