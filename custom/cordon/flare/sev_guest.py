"""SEV-SNP reports by ioctl of ``/dev/sev-guest`` (Linux 5.19, ``linux/sev-guest.h``), and the host's certificate table.

configfs-tsm (``devices.tsm_report``) is the kernel's newer way to the same report.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cordon.errors import ConfigError
from cordon.flare.devices import ATTEMPTS, PAUSE_S, SEV_GUEST, check_length

# linux/sev-guest.h. Sizes and offsets in bytes on x86-64: request 32 (req_data 8, resp_data 16, exitinfo2 24),
# snp_report_req 96, snp_ext_report_req 112 (certs_address 96, certs_len 104), snp_report_resp 4000.
SNP_GET_REPORT = 0xC0205300  # _IOWR('S', 0, struct snp_guest_request_ioctl)
SNP_GET_EXT_REPORT = 0xC0205302
SNP_GUEST_VMM_ERR_INVALID_LEN = 1
SNP_GUEST_VMM_ERR_BUSY = 2
SEV_FW_BLOB_MAX_SIZE = 0x4000  # what the kernel takes at most as certificate buffer
_RESPONSE = 4000
_RESPONSE_HEADER = 32  # MSG_REPORT_RSP (SEV-SNP ABI, table 25): status, report_size, 24 reserved bytes


class _ReportRequest(ctypes.Structure):
    _fields_ = [("user_data", ctypes.c_uint8 * 64), ("vmpl", ctypes.c_uint32), ("rsvd", ctypes.c_uint8 * 28)]


class _ExtReportRequest(ctypes.Structure):
    _fields_ = [("data", _ReportRequest), ("certs_address", ctypes.c_uint64), ("certs_len", ctypes.c_uint32)]


class _GuestRequest(ctypes.Structure):
    _fields_ = [
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("fw_error", ctypes.c_uint32),
        ("vmm_error", ctypes.c_uint32),
    ]


def sev_guest_report(
    report_data: bytes,
    device: Path = SEV_GUEST,
    ioctl: Callable[..., Any] = fcntl.ioctl,
    vmpl: int = 0,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[bytes, bytes]:
    """(report, certificate table) through the sev-guest driver; the table is empty if the host has none or too large.

    Raises:
        ConfigError: ``sev_guest_absent``, ``sev_guest_permission``, ``sev_guest_busy``, ``sev_guest_failed``.
    """
    check_length(report_data)
    try:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        code = "permission" if error.errno in (errno.EACCES, errno.EPERM) else "absent"
        raise ConfigError(
            f"sev_guest_{code}: {device}: {error.strerror}; as root inside the confidential VM: modprobe sev-guest"
        ) from error
    try:
        certificates = (ctypes.c_uint8 * SEV_FW_BLOB_MAX_SIZE)()
        plain = _ReportRequest((ctypes.c_uint8 * 64)(*report_data), vmpl)
        extended = _ExtReportRequest(plain, ctypes.addressof(certificates), SEV_FW_BLOB_MAX_SIZE)
        report = _ask_sev_guest(handle, SNP_GET_EXT_REPORT, extended, ioctl, sleep)
        if report is not None:
            return report, bytes(certificates) if any(certificates) else b""
        report = _ask_sev_guest(handle, SNP_GET_REPORT, plain, ioctl, sleep)
    finally:
        os.close(handle)
    if report is None:
        raise ConfigError("sev_guest_failed: the host wants a certificate buffer for a report without certificates")
    return report, b""


def _ask_sev_guest(
    handle: int, operation: int, request: ctypes.Structure, ioctl: Callable[..., Any], sleep: Callable[[float], None]
) -> bytes | None:
    """The report, or None if the host's certificates don't fit any buffer that the kernel takes."""
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(PAUSE_S)
        response = (ctypes.c_uint8 * _RESPONSE)()
        call = _GuestRequest(1, ctypes.addressof(request), ctypes.addressof(response))
        try:
            ioctl(handle, operation, call, True)
        except OSError as error:
            if call.vmm_error == SNP_GUEST_VMM_ERR_INVALID_LEN:
                return None
            if call.vmm_error == SNP_GUEST_VMM_ERR_BUSY or error.errno in (errno.EBUSY, errno.EAGAIN):
                continue
            hint = (
                "; no such device, or its key to the firmware is off until a restart"
                if error.errno == errno.ENOTTY
                else ""
            )
            raise ConfigError(
                f"sev_guest_failed: {error.strerror} (firmware error {call.fw_error:#x}, host error "
                f"{call.vmm_error:#x}){hint}"
            ) from error
        status, size = struct.unpack_from("<II", response)
        if status != 0 or size > _RESPONSE - _RESPONSE_HEADER:
            raise ConfigError(f"sev_guest_failed: the firmware answered status {status:#x} and {size} bytes")
        return bytes(response)[_RESPONSE_HEADER : _RESPONSE_HEADER + size]
    raise ConfigError(f"sev_guest_busy: the host put the request off at {ATTEMPTS} attempts; try again later")


# GHCB specification 56421, MSG_REPORT_REQ. The 16 bytes stand in the order in which the digits are written (RFC 4122),
# not with the first three fields reversed as in other tables of firmware.
_CERTIFICATES = {
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes: "vcek",
    uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1").bytes: "vlek",
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes: "ask",
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes: "ark",
    uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea").bytes: "crl",
}
_ENTRY = struct.Struct("<16sII")  # GUID, offset from the start of the table, length


def certificates_of(table: bytes) -> dict[str, bytes]:
    """The host's certificates (DER or PEM) by name: vcek, vlek, ask, ark, crl. Other GUIDs are passed over.

    Raises:
        ConfigError: ``cert_table``: no end, a name twice, or an entry that points outside or into the table's head.
    """
    if not table.strip(b"\0"):
        return {}
    spans: dict[str, tuple[int, int]] = {}
    for start in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, start)
        if not any((*guid, offset, length)):
            head = start + _ENTRY.size
            break
        name = _CERTIFICATES.get(guid)
        if name in spans:
            raise ConfigError(f"cert_table: {name} stands there twice")
        if name is not None:
            spans[name] = (offset, length)
    else:
        raise ConfigError(f"cert_table: no closing entry in {len(table)} bytes")
    for name, (offset, length) in spans.items():
        if offset < head or not length or offset + length > len(table):
            raise ConfigError(f"cert_table: {name} at {offset}, {length} bytes: want within {head} to {len(table)}")
    return {name: table[offset : offset + length] for name, (offset, length) in spans.items()}
