"""What ``cordon attest`` reads: bounded files, hex text, nonces, times. Errors start with a stable code."""

from __future__ import annotations

import binascii
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cordon import documents
from cordon.errors import ConfigError

KIB, MIB = 1024, 1024 * 1024
REPORT = 64 * KIB  # an SNP report has 1184 bytes, a TDX quote about 5000, a GPU's report as hex text about 8200
EVIDENCE = MIB  # a GPU's evidence as JSON has about 12 KiB, and a machine has eight of them and four switches
CERTIFICATE = 64 * KIB
CRL = 4 * MIB
COLLATERAL = MIB
EVENT_LOG = MIB
RIM, MAX_RIMS = MIB, 16
TOKEN = 256 * KIB

T = TypeVar("T")

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.A)
_HEX_TEXT = re.compile(rb"\s*(?:0[xX])?([0-9A-Fa-f\s]+)")


def read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        ConfigError: ``input_unreadable``, ``input_too_large`` or ``input_empty``.
    """
    try:
        data = documents.read_bytes(path, limit)
    except (ConfigError, ValueError) as error:  # ValueError: a path with a NUL
        code = "input_too_large" if "larger than" in str(error) else "input_unreadable"
        raise ConfigError(f"{code}: {error}") from error
    if not data:
        raise ConfigError(f"input_empty: {path}: has no bytes")
    return data


def optional(path: Path | None, limit: int) -> bytes | None:
    """``read``, or None for an option that was not given."""
    return None if path is None else read(path, limit)


def binary(data: bytes) -> bytes:
    """``data``, decoded if it is nothing but hex digits and white space: no vendor's binary format looks like that."""
    text = _HEX_TEXT.fullmatch(data)
    if text is None:
        return data
    try:
        return binascii.unhexlify(b"".join(text[1].split()))
    except binascii.Error as error:
        raise ConfigError(f"hex_format: {error}") from error


def policy_file(path: Path, schema: type[T]) -> T:
    """The policy at ``path``; ConfigError ``policy_format``. Its signature is not looked at."""
    data = read(path, documents.MAX_DOCUMENT)
    try:
        return documents.parse(data, schema, str(path))
    except ConfigError as error:
        raise ConfigError(f"policy_format: {error}") from error


def hex_bytes(text: str | None, option: str, length: int | None = None) -> bytes | None:
    """An option's bytes; ConfigError ``hex_format`` for anything but hex digits of the right length."""
    if text is None:
        return None
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", text):
        raise ConfigError(f"hex_format: {option}: want an even number of hex digits, got {text[:80]!r}")
    data = bytes.fromhex(text)
    if length is not None and len(data) != length:
        raise ConfigError(f"hex_format: {option}: has {len(data)} bytes, want {length}")
    return data


def instant(text: str | None) -> datetime:
    """A time with its offset (RFC 3339, section 5.6), in UTC; the present without one.

    Raises:
        ConfigError: ``time_format``.
    """
    if text is None:
        return datetime.now(UTC)
    if not _RFC3339.fullmatch(text):
        raise ConfigError(f"time_format: --at: want RFC 3339 such as 2026-05-01T12:00:00Z, got {text[:80]!r}")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"time_format: --at: {error}") from error
