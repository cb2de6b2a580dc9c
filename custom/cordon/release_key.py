"""Key files of who holds a study's release right (``cordon model keygen``).

The private half is text: ``KEM_SECRET_BYTES`` in base64 between the lines ``_BEGIN`` and ``_END``. The public half is
one line of base64, as ``release.holders`` of the study contract has it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from cordon.errors import ConfigError
from cordon.sealing import KEM_BYTES, KEM_SECRET_BYTES, KemKey, decode_kem_key

MAX_KEY_FILE = 4096  # bytes
_BEGIN = b"-----BEGIN CORDON RELEASE PRIVATE KEY-----"  # secret scanners look for these two words
_END = b"-----END CORDON RELEASE PRIVATE KEY-----"
_WIDTH = 64


def encode_private(key: KemKey) -> bytes:
    """``key`` as the text of a private key file."""
    text = base64.b64encode(key.secret)
    lines = [text[at : at + _WIDTH] for at in range(0, len(text), _WIDTH)]
    return b"\n".join([_BEGIN, *lines, _END, b""])


def decode_private(data: bytes) -> KemKey:
    """Inverse of ``encode_private``; ConfigError if it is none. Line ends may be those of Windows."""
    lines = [line.strip() for line in data[: MAX_KEY_FILE + 1].strip().split(b"\n")]
    if len(data) > MAX_KEY_FILE or lines[0] != _BEGIN or lines[-1] != _END:
        raise ConfigError(f"not a private release key, which begins with {_BEGIN.decode()} (cordon model keygen)")
    return KemKey.from_secret(_unbase64(b"".join(lines[1:-1]), KEM_SECRET_BYTES))


def encode_public(public: bytes) -> bytes:
    """A public key of ``KEM_BYTES`` as the text of its file."""
    return base64.b64encode(public) + b"\n"


def decode_public(data: bytes) -> bytes:
    """Inverse of ``encode_public``; ConfigError if it is no public release key."""
    if _BEGIN in data:
        raise ConfigError("this is a private release key; want the public one, which begins without a label")
    public = _unbase64(data[: MAX_KEY_FILE + 1].strip(), KEM_BYTES)
    decode_kem_key(public)
    return public


def fingerprint(public: bytes) -> str:
    """Hex SHA-256 of a public release key: how a sealed model names it."""
    return hashlib.sha256(public).hexdigest()


def _unbase64(text: bytes, size: int) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("not a release key: not base64") from error
    if len(data) != size:
        raise ConfigError(f"not a release key: {len(data)} bytes, want {size}")
    return data
