"""The HCL report: what Azure's paravisor puts around a hardware report (vTPM NV index 0x01400001).

Layout, little-endian (microsoft/openvmm, openhcl/openhcl_attestation_protocol/src/igvm_attest/get.rs,
``IgvmAttestRequestBase``)::

    0x000  signature "HCLA", version, report_size, request_type, status: u32 each; reserved: 12 bytes
    0x020  hardware report: 1184 bytes. SNP ATTESTATION_REPORT, or TDREPORT (1024) and zeros
    0x4C0  data_size, version, report_type, report_data_hash_type, variable_data_size: u32 each
    0x4D4  runtime claims: variable_data_size bytes of JSON; then zeros to the end of the NV index (2600 bytes)

REPORT_DATA of the hardware report is SHA-256(runtime claims) and 32 zero bytes. Nothing else here is measured: each
other field has one accepted value (``version`` two).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any, Literal

from cordon.attest.azure import jose
from cordon.attest.verdict import Check, check
from cordon.errors import ConfigError

Tee = Literal["snp", "tdx"]

HEADER = struct.Struct("<4sIIII12s")
HARDWARE_SIZE = 1184
RUNTIME = struct.Struct("<5I")
CLAIMS_AT = HEADER.size + HARDWARE_SIZE + RUNTIME.size
MAX_HCL = 16 * 1024  # bytes; the NV index holds 2600
MAX_CLAIMS = 8 * 1024

AK_CERT_REQUEST = 2
REPORT_TYPE: dict[Tee, int] = {"snp": 2, "tdx": 4}
REPORT_SIZE: dict[Tee, int] = {"snp": 1184, "tdx": 1024}
SHA_256 = 1
REPORT_DATA_AT: dict[Tee, int] = {"snp": 0x50, "tdx": 0x80}
USER_DATA_SIZE = 64
AK_KID = "HCLAkPub"


@dataclass(frozen=True)
class HclReport:
    """An HCL report taken apart; ``claims`` is the parsed form of ``claims_json``."""

    version: int
    report_size: int
    request_type: int
    status: int
    reserved: bytes
    hardware_area: bytes
    data_size: int
    data_version: int
    report_type: int
    hash_type: int
    claims_json: bytes
    claims: dict[str, Any]
    tail: bytes

    def hardware_report(self, tee: Tee) -> bytes:
        """The SNP report (1184 bytes) or TDREPORT (1024 bytes)."""
        return self.hardware_area[: REPORT_SIZE[tee]]

    @property
    def report_data(self) -> bytes:
        """What the paravisor asks the hardware to sign: 64 bytes."""
        return hashlib.sha256(self.claims_json).digest() + bytes(32)

    @property
    def user_data(self) -> bytes | None:
        """The 64 bytes that the guest put into NV index 0x01400002; None if the claims have none.

        OpenHCL writes lower-case hex, the firmware before it upper-case.
        """
        text = self.claims.get("user-data")
        if not isinstance(text, str) or len(text) != 2 * USER_DATA_SIZE:
            return None
        try:
            return bytes.fromhex(text) if text.isascii() and text.isalnum() else None
        except ValueError:
            return None

    @property
    def vm_configuration(self) -> dict[str, Any]:
        """The ``vm-configuration`` claims; empty if there are none."""
        found = self.claims.get("vm-configuration")
        return found if isinstance(found, dict) else {}


def parse(data: bytes) -> HclReport:
    """An HCL report from the bytes of the NV index.

    Raises:
        ConfigError: ``hcl_format`` (size, signature, version, lengths) or ``runtime_claims`` (not strict JSON).
    """
    if not CLAIMS_AT <= len(data) <= MAX_HCL:
        raise ConfigError(f"hcl_format: {len(data)} bytes, want {CLAIMS_AT} to {MAX_HCL}")
    signature, version, report_size, request_type, status, reserved = HEADER.unpack_from(data)
    if signature != b"HCLA":
        raise ConfigError(f"hcl_format: signature is {signature.hex()}, want {b'HCLA'.hex()} (HCLA)")
    if version not in (1, 2):
        raise ConfigError(f"hcl_format: version is {version}, want 1 or 2")
    data_size, data_version, report_type, hash_type, size = RUNTIME.unpack_from(data, HEADER.size + HARDWARE_SIZE)
    if CLAIMS_AT + size > len(data):
        raise ConfigError(f"hcl_format: {size} bytes of runtime claims do not fit into {len(data)} bytes")
    claims_json = data[CLAIMS_AT : CLAIMS_AT + size]
    return HclReport(
        version=version,
        report_size=report_size,
        request_type=request_type,
        status=status,
        reserved=reserved,
        hardware_area=data[HEADER.size : HEADER.size + HARDWARE_SIZE],
        data_size=data_size,
        data_version=data_version,
        report_type=report_type,
        hash_type=hash_type,
        claims_json=claims_json,
        claims=jose.parse_object(claims_json, "runtime_claims", MAX_CLAIMS),
        tail=data[CLAIMS_AT + size :],
    )


def checks(hcl: HclReport, tee: Tee) -> list[Check]:
    """Everything in the HCL report that can be asked without the hardware's signature."""
    size = len(hcl.claims_json)
    header = {
        "request_type": (hcl.request_type, AK_CERT_REQUEST),
        "status": (hcl.status, 0),
        "reserved": (int.from_bytes(hcl.reserved, "little"), 0),
        "report_size": (hcl.report_size, CLAIMS_AT + size),
        "data_size": (hcl.data_size, RUNTIME.size + size),
        "data version": (hcl.data_version, 1),
        "hash type": (hcl.hash_type, SHA_256),
    }
    wrong = [f"{name} is {found}, want {wanted}" for name, (found, wanted) in header.items() if found != wanted]
    padding = hcl.hardware_area[REPORT_SIZE[tee] :] + hcl.tail
    at = REPORT_DATA_AT[tee]
    signed = hcl.hardware_area[at : at + 64]
    return [
        check("hcl_header", not wrong, "; ".join(wrong) or f"version {hcl.version}, as the layout has it", "genuine"),
        check(
            "hcl_report_type",
            hcl.report_type == REPORT_TYPE[tee],
            f"report type is {hcl.report_type}, {tee} is {REPORT_TYPE[tee]}",
            "genuine",
        ),
        check("hcl_padding", not any(padding), f"{len(padding)} bytes of padding, all zero wanted", "genuine"),
        check(
            "runtime_data",
            signed == hcl.report_data,
            f"report_data is {signed.hex()}, want SHA-256 of the runtime claims and zeros, {hcl.report_data.hex()}",
            "genuine",
        ),
    ]
