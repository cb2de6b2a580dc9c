"""The bytes of a device's report: an SPDM 1.1 GET_MEASUREMENTS request and its signed MEASUREMENTS response.

Layout (DMTF DSP0274 1.1.0, tables 38 and 39; all integers little-endian)::

    request  0  version 0x11    1  code 0xE0    2  attributes (bit 0: sign)    3  operation (0xFF: all)
             4  nonce[32]      36  slot
    response 0  version 0x11    1  code 0x60    2  param1    3  param2    4  number of blocks (u8)
             5  length of the record (u24)    8  record, then nonce[32], u16 length, opaque data, signature[96]
    block    0  index (u8)      1  specification (1: DMTF)    2  size (u16)    4  type (u8)    5  size (u16)    7  value

Opaque data are NVIDIA's: (u16 type, u16 length, value) records, numbered as in NVIDIA/attestation-sdk
``gpu_opaque_data_parser.hpp`` and ``switch_opaque_data_parser.hpp``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cordon.errors import ConfigError

MAX_REPORT = 64 * 1024  # bytes
REQUEST = 37  # bytes
SIGNATURE = 96  # bytes: ECDSA P-384, r || s big-endian
NONCE = 32  # bytes
SPDM_1_1 = 0x11
GET_MEASUREMENTS = 0xE0
MEASUREMENTS = 0x60
MAX_OPAQUE_VERSION = 1  # the newest whose fields are known; NVIDIA's verifier refuses newer ones as well

DRIVER_VERSION = 3
VBIOS_VERSION = 6
NVDEC0_STATUS = 11
CHIP_SKU = 15
PROJECT = 17
PROJECT_SKU = 18
FWID = 20
PROTECTED_PCIE_STATUS = 21
OPAQUE_DATA_VERSION = 34
FEATURE_FLAG = 36

ENABLED, DISABLED = 0xAA, 0x55
MODES = {0: "spt", 1: "mpt", 2: "ppcie"}


@dataclass(frozen=True)
class Report:
    """A parsed report; nothing in it is true until its signature holds.

    ``measurements``: SPDM index (1..255) to digest. ``opaque``: NVIDIA's type number to value.
    """

    attributes: int
    operation: int
    request_nonce: bytes
    slot: int
    parameters: tuple[int, int]
    response_nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    @property
    def driver_version(self) -> str | None:
        """Such as ``550.90.07``; an NVSwitch states none."""
        return self._text(DRIVER_VERSION)

    @property
    def vbios_version(self) -> str | None:
        """Such as ``96.00.9F.00.01``: a GPU as u64 (bytes 3..0, then byte 4), an NVSwitch as text."""
        value = self.opaque.get(VBIOS_VERSION)
        if value is None:
            return None
        if len(value) == 8:
            return ".".join(f"{value[position]:02X}" for position in (3, 2, 1, 0, 4))
        return (self._text(VBIOS_VERSION) or "").upper()

    @property
    def mode(self) -> str | None:
        """spt, mpt or ppcie; ``contradictory`` or ``unknown``; None where the report does not say.

        The feature flag says it since opaque data version 1; before that only protected PCIe was stated.
        """
        protected = self.opaque.get(PROTECTED_PCIE_STATUS)
        flag = self.opaque.get(FEATURE_FLAG)
        if flag is None:
            return "ppcie" if protected == bytes([ENABLED]) else None
        mode = MODES.get(int.from_bytes(flag, "little"), "unknown")
        if protected is not None and (protected == bytes([ENABLED])) != (mode == "ppcie"):
            return "contradictory"
        return mode

    @property
    def board(self) -> dict[str, str]:
        """Project and SKUs: the parts of the VBIOS RIM's file name (``NV_GPU_VBIOS_1010_0200_882_...``)."""
        fields = {"project": PROJECT, "project_sku": PROJECT_SKU, "chip_sku": CHIP_SKU}
        stated = {name: self._text(number) for name, number in fields.items()}
        return {name: value for name, value in stated.items() if value is not None}

    def _text(self, number: int) -> str | None:
        value = self.opaque.get(number)
        return None if value is None else value.rstrip(b"\0").decode("ascii")


def parse(data: bytes) -> Report:
    """The report in ``data``, every byte of which must have its place.

    Raises:
        ConfigError: ``report_format: ...`` or ``report_version: ...``
    """
    if len(data) > MAX_REPORT:
        raise ConfigError(f"report_format: report has {len(data)} bytes, at most {MAX_REPORT} are read")
    if len(data) < REQUEST + 8:
        raise ConfigError(f"report_format: report has {len(data)} bytes, too few for a request and a response")
    for name, at, code in (("request", 0, GET_MEASUREMENTS), ("response", REQUEST, MEASUREMENTS)):
        if data[at] != SPDM_1_1:
            raise ConfigError(f"report_version: {name} has SPDM version {data[at]:#04x}, want {SPDM_1_1:#04x}")
        if data[at + 1] != code:
            raise ConfigError(f"report_format: {name} has SPDM code {data[at + 1]:#04x}, want {code:#04x}")
    response = data[REQUEST:]
    length = int.from_bytes(response[5:8], "little")
    record, rest = response[8 : 8 + length], response[8 + length :]
    if len(record) != length or len(rest) < NONCE + 2:
        raise ConfigError(f"report_format: the measurement record of {length} bytes reaches past the end")
    opaque_length = int.from_bytes(rest[NONCE : NONCE + 2], "little")
    opaque, signature = rest[NONCE + 2 :][:opaque_length], rest[NONCE + 2 + opaque_length :]
    if len(signature) != SIGNATURE:
        raise ConfigError(f"report_format: {len(signature)} bytes follow the opaque data, want {SIGNATURE}")
    fields = _opaque(opaque)
    return Report(
        attributes=data[2],
        operation=data[3],
        request_nonce=data[4:36],
        slot=data[36],
        parameters=(response[2], response[3]),
        response_nonce=rest[:NONCE],
        measurements=_blocks(record, response[4]),
        opaque=fields,
        signed=data[:-SIGNATURE],
        signature=signature,
    )


def _blocks(record: bytes, count: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(record):
        head = record[at : at + 7]
        size, value_size = int.from_bytes(head[2:4], "little"), int.from_bytes(head[5:7], "little")
        value = record[at + 7 : at + 4 + size]
        if len(head) < 7 or size != value_size + 3 or len(value) != value_size:
            raise ConfigError(f"report_format: measurement block at byte {at} of the record does not fit its sizes")
        if head[0] == 0 or head[1] != 1:
            raise ConfigError(f"report_format: measurement block at byte {at} has index {head[0]}, kind {head[1]}")
        if head[0] in found:
            raise ConfigError(f"report_format: measurement {head[0]} occurs twice")
        found[head[0]] = value
        at += 4 + size
    if len(found) != count:
        raise ConfigError(f"report_format: {len(found)} measurement blocks, the header says {count}")
    return found


def _opaque(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        number, length = int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 2 : at + 4], "little")
        value = data[at + 4 : at + 4 + length]
        if at + 4 > len(data) or len(value) != length:
            raise ConfigError(f"report_format: opaque field {number} reaches past the end of the opaque data")
        if number in found:  # two readers, two meanings
            raise ConfigError(f"report_format: opaque field {number} occurs twice")
        found[number] = value
        at += 4 + length
    version = int.from_bytes(found.get(OPAQUE_DATA_VERSION, b""), "little")
    if version > MAX_OPAQUE_VERSION:
        raise ConfigError(f"report_version: opaque data version {version}, at most {MAX_OPAQUE_VERSION} is known")
    for number in (DRIVER_VERSION, VBIOS_VERSION, CHIP_SKU, PROJECT, PROJECT_SKU):
        value = found.get(number, b"0")
        if not (number == VBIOS_VERSION and len(value) == 8) and not re.fullmatch(rb"[0-9A-Za-z.\-]{1,32}\0*", value):
            raise ConfigError(f"report_format: opaque field {number} is not a short text")
    return found
