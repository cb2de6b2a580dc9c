"""The bytes of a quote: header, body, signature data. Nothing is judged here but that every length fits.

Sources: Intel TDX DCAP Quoting Library API, appendix 3 (versions 4 and 5); Intel SGX ECDSA QuoteLibReference DCAP API,
appendix A.4 (version 3). Integers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from cordon.errors import ConfigError

MAX_QUOTE = 16 * 1024  # bytes; a quote with its certificates has about 5000

SGX_REPORT_SIZE = 384
TD_REPORT_10_SIZE = 584
TD_REPORT_15_SIZE = 648

TEE_SGX = 0x00000000
TEE_TDX = 0x00000081
ECDSA_P256 = 2
INTEL_QE_VENDOR_ID = "939a7233f79c4ca9940a0db3957f0607"

PCK_CERT_CHAIN = 5  # certification data: PEM of PCK certificate, its CA, the root
QE_REPORT_CERTIFICATION = 6  # certification data: QE report, its signature, and certification data once more

Body = Literal["sgx", "tdx_1.0", "tdx_1.5"]
BODY_TYPES: dict[int, tuple[Body, int]] = {
    1: ("sgx", SGX_REPORT_SIZE),
    2: ("tdx_1.0", TD_REPORT_10_SIZE),
    3: ("tdx_1.5", TD_REPORT_15_SIZE),
}


@dataclass(frozen=True)
class Quote:
    """A quote's parts.

    Attributes:
        signed: the bytes that ``signature`` covers: header, body descriptor (version 5), body.
        attestation_key: x || y on P-256, 64 bytes.
        qe_report: SGX report of the quoting enclave, 384 bytes; the PCK signed it with ``qe_report_signature``.
        qe_auth_data: what the QE hashed into its report together with ``attestation_key``.
        certification_type: kind of ``certification_data``; only ``PCK_CERT_CHAIN`` can be judged offline.
        tail: bytes after the declared end. Nobody signed them.
    """

    version: int
    attestation_key_type: int
    tee_type: int
    qe_vendor_id: str
    user_data: bytes
    body_kind: Body
    body: bytes
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification_data: bytes
    tail: bytes


class _Reader:
    """Takes bytes off the front of ``data``; ConfigError where they run out."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.offset, self.where = data, 0, where

    def take(self, size: int, what: str) -> bytes:
        part = self.data[self.offset : self.offset + size]
        if len(part) != size:
            raise _malformed(f"{self.where} ends inside {what}: {len(part)} bytes left, want {size}")
        self.offset += size
        return part

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def rest(self) -> bytes:
        return self.data[self.offset :]

    def end(self) -> None:
        # A gap between two lengths would hold bytes that nobody signed.
        if self.offset != len(self.data):
            raise _malformed(f"{self.where} has {len(self.data) - self.offset} bytes after its last field")


def parse(data: bytes) -> Quote:
    """The parts of a quote of version 3, 4 or 5.

    Raises:
        ConfigError: ``quote_format``: not bytes, too long, truncated, lengths that contradict each other;
            ``quote_version``: neither 3, 4 nor 5, or a body that this version does not have.
    """
    if not isinstance(data, bytes):
        raise _malformed(f"a quote is bytes, not {type(data).__name__}")
    if len(data) > MAX_QUOTE:
        raise _malformed(f"quote has {len(data)} bytes, want at most {MAX_QUOTE}")
    reader = _Reader(data, "quote")
    version, key_type, tee_type = struct.unpack("<HHI", reader.take(8, "the header"))
    reader.take(4, "the header")  # SVNs of QE and PCE in version 3, reserved later: the signed reports have them
    vendor = reader.take(16, "the header").hex()
    user_data = reader.take(20, "the header")
    kind, size = _body(version, tee_type, reader)
    body = reader.take(size, "the body")
    signed = data[: reader.offset]
    length = reader.number(4, "the length of the signature data")
    signatures = _Reader(reader.take(length, "the signature data"), "signature data")
    signature = signatures.take(64, "the quote's signature")
    key = signatures.take(64, "the attestation key")
    if version >= 4:
        signatures = _certification(signatures, QE_REPORT_CERTIFICATION)
    qe_report = signatures.take(SGX_REPORT_SIZE, "the QE report")
    qe_signature = signatures.take(64, "the QE report's signature")
    auth = signatures.take(signatures.number(2, "the length of the QE's data"), "the QE's data")
    certification_type = signatures.number(2, "the type of the certification data")
    certification = signatures.take(signatures.number(4, "its length"), "the certification data")
    signatures.end()
    return Quote(
        version=version,
        attestation_key_type=key_type,
        tee_type=tee_type,
        qe_vendor_id=vendor,
        user_data=user_data,
        body_kind=kind,
        body=body,
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_signature,
        qe_auth_data=auth,
        certification_type=certification_type,
        certification_data=certification,
        tail=reader.rest(),
    )


def _body(version: int, tee_type: int, reader: _Reader) -> tuple[Body, int]:
    if version == 3:
        return BODY_TYPES[1]
    if version == 4:
        if tee_type not in (TEE_SGX, TEE_TDX):
            raise ConfigError(f"quote_version: TEE type {tee_type:#x}, want {TEE_SGX:#x} (SGX) or {TEE_TDX:#x} (TDX)")
        return BODY_TYPES[2] if tee_type == TEE_TDX else BODY_TYPES[1]
    if version != 5:
        raise ConfigError(f"quote_version: quote has version {version}, want 3, 4 or 5")
    body_type, size = struct.unpack("<HI", reader.take(6, "the body descriptor"))
    if body_type not in BODY_TYPES or BODY_TYPES[body_type][1] != size:
        raise ConfigError(f"quote_version: body type {body_type} of {size} bytes, want {_known_bodies()}")
    return BODY_TYPES[body_type]


def _certification(outer: _Reader, wanted: int) -> _Reader:
    """The inside of the certification data that versions 4 and 5 wrap around everything about the QE."""
    found = outer.number(2, "the type of the certification data")
    if found != wanted:
        raise _malformed(f"certification data has type {found}, want {wanted} (QE report)")
    inner = _Reader(outer.take(outer.number(4, "its length"), "the certification data"), "QE certification data")
    outer.end()
    return inner


def _known_bodies() -> str:
    return " or ".join(f"{kind} ({number}, {size} bytes)" for number, (kind, size) in BODY_TYPES.items())


def _malformed(text: str) -> ConfigError:
    return ConfigError(f"quote_format: {text}")
