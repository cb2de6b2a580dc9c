"""STREAM: AES-256-GCM over any length, in chunks whose order and end are authentic.

Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance" (2015),
construction STREAM, with the nonce of C2SP age.md: 11-byte big-endian chunk number || 1 on the last chunk, else 0.
One chunk is ``size`` bytes and its 16-byte tag; the last may be shorter, and is empty only where everything is. A key
encrypts one stream, ever: its nonces are the same for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cordon.errors import ConfigError, SealError

TAG_BYTES = 16
CHUNK_BYTES = 1024 * 1024


def nonce(number: int, last: bool) -> bytes:
    """Nonce of chunk ``number``, from 0.

    >>> nonce(258, True).hex()
    '000000000000000000010201'
    """
    return number.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def encrypt(key: bytes, source: BinaryIO, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The chunks of ``source``, read to its end, under ``key`` (32 bytes that encrypt nothing else).

    Raises:
        ConfigError: ``source`` cannot be read.
    """
    cipher = AESGCM(key)
    for number, (chunk, last) in enumerate(_chunks(source, size)):
        yield cipher.encrypt(nonce(number, last), chunk, None)


def decrypt(key: bytes, source: BinaryIO, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Inverse of ``encrypt``. Each chunk is authentic; that there is no more is known only when the iterator ends.

    Raises:
        SealError: another key, or a chunk is changed, moved, missing or added.
        ConfigError: ``source`` cannot be read.
    """
    cipher = AESGCM(key)
    for number, (chunk, last) in enumerate(_chunks(source, size + TAG_BYTES)):
        if len(chunk) < TAG_BYTES or (len(chunk) == TAG_BYTES and number > 0):
            raise SealError(f"chunk {number} has {len(chunk)} bytes, too few: cut short")
        try:
            yield cipher.decrypt(nonce(number, last), chunk, None)
        except InvalidTag as error:
            raise SealError(f"chunk {number} does not open: another key, or changed, moved or cut short") from error


def _chunks(source: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """(chunk, whether it is the last); one empty chunk of an empty source."""
    current = read(source, size)
    while True:
        following = read(source, size) if len(current) == size else b""
        yield current, not following
        if not following:
            return
        current = following


def read(source: BinaryIO, size: int) -> bytes:
    """The next ``size`` bytes of ``source``; fewer at its end only (a pipe gives less at a time).

    Raises:
        ConfigError: the operating system does not let it be read.
    """
    parts: list[bytes] = []
    try:
        while size and (part := source.read(size)):
            parts.append(part)
            size -= len(part)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    return b"".join(parts)
