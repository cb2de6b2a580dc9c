"""Reading evidence as it travels: reports as bytes, hex or base64; NVIDIA's evidence files; lists of devices."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, TypedDict

from cordon.attest.nvgpu.spdm import MAX_REPORT, NONCE
from cordon.errors import ConfigError

MAX_EVIDENCE = 4 * 1024 * 1024  # bytes
MAX_DEVICES = 64


class DeviceEvidence(TypedDict):
    """One device of an evidence file. All of it is what the file says: ``nonce`` too is the attester's word."""

    arch: str
    report: bytes
    chain: bytes
    nonce: bytes | None


def decode_report(data: bytes | str) -> bytes:
    """The binary report in ``data``: itself, or hexadecimal or base64 text.

    Raises:
        ConfigError: ``report_format: ...``
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if len(raw) > 2 * MAX_REPORT + 64:
        raise ConfigError(f"report_format: report has {len(raw)} bytes, at most {2 * MAX_REPORT} of text are read")
    if not raw or raw[0] & 0xF0 == 0x10:  # SPDM 1.x; a control character in any text
        return raw
    text = b"".join(raw.split())
    try:
        return binascii.unhexlify(text)
    except binascii.Error:
        return _base64(text, "report_format: report is neither SPDM 1.1 bytes nor hexadecimal nor base64")


def read_evidence(data: bytes) -> list[DeviceEvidence]:
    """The devices of an evidence file as NVIDIA's tools write it: an object, or a list of them, of ``arch``,
    ``evidence`` and ``certificate`` (base64) and ``nonce`` (hex).

    Raises:
        ConfigError: ``evidence_format: ...``
    """
    tree = parse_json(data, MAX_EVIDENCE, "evidence_format")
    devices = tree if isinstance(tree, list) else [tree]
    if not 1 <= len(devices) <= MAX_DEVICES:
        raise ConfigError(f"evidence_format: evidence of {len(devices)} devices, want 1 to {MAX_DEVICES}")
    return [_device(device, position) for position, device in enumerate(devices)]


def _device(device: Any, position: int) -> DeviceEvidence:
    where = f"evidence_format: device {position}"
    names = ("arch", "evidence", "certificate")
    if not isinstance(device, dict) or not all(isinstance(device.get(name), str) for name in names):
        raise ConfigError(f"{where} is not an object with {', '.join(names)}")
    nonce = device.get("nonce")
    try:
        decoded = None if nonce is None else bytes.fromhex(nonce)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} has a nonce that is not hexadecimal") from error
    if decoded is not None and len(decoded) != NONCE:
        raise ConfigError(f"{where} has a nonce of {len(decoded)} bytes, want {NONCE}")
    return {
        "arch": device["arch"].lower(),
        "report": _base64(device["evidence"].encode("utf-8", "replace"), f"{where} has evidence that is not base64"),
        "chain": _base64(device["certificate"].encode("utf-8", "replace"), f"{where} has a chain that is not base64"),
        "nonce": decoded,
    }


def parse_json(data: bytes, limit: int, code: str) -> Any:
    """``data`` as JSON of at most ``limit`` bytes, each key once; ConfigError ``<code>: ...`` otherwise."""
    if len(data) > limit:
        raise ConfigError(f"{code}: {len(data)} bytes, at most {limit} are read")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{code}: not JSON: {' '.join(str(error).split())[:120]}") from error


def _base64(text: bytes, message: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(message) from error
