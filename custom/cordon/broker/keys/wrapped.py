"""The one interface of all backends, and the bytes of a wrapped key (README.md, "Wrapped key").

Each backend is AES-256-GCM (NIST SP 800-38D) under its KEK with a fresh random 96-bit nonce per wrap; the label is
associated data, so a wrapped key that was moved to another row does not open there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cordon.errors import ConfigError, SealError
from cordon.signing import lp

VERSION = 1
FILE, PKCS11, TRANSIT = 1, 2, 3  # backend id
BACKENDS = {FILE: "file", PKCS11: "pkcs11", TRANSIT: "hashicorp-vault"}
HEADER_BYTES = 6  # version, backend id, KEK version
NONCE_BYTES = 12
TAG_BYTES = 16
MAX_KEY_BYTES = 4096
MAX_LABEL_BYTES = 1024
OVERHEAD = HEADER_BYTES + NONCE_BYTES + TAG_BYTES

Random = Callable[[int], bytes]


class KeyEncryption(Protocol):
    """A KEK that wraps keys and is never given out. Safe for use by several threads.

    ``name``: of the backend, for people and receipts. ``label``: what the key is (tenant, purpose, name); it is
    authenticated, not hidden, and has at most ``MAX_LABEL_BYTES`` of UTF-8.
    """

    @property
    def name(self) -> str: ...

    def wrap(self, key: bytes, label: str) -> bytes:
        """``key`` (1 to ``MAX_KEY_BYTES`` bytes) encrypted, ``OVERHEAD`` bytes longer.

        Raises:
            ConfigError: the backend cannot be reached or refuses; key or label of a size that is not allowed.
        """
        ...

    def unwrap(self, wrapped: bytes, label: str) -> bytes:
        """Inverse of ``wrap``.

        Raises:
            SealError: other KEK, other label, other backend, or changed; which one is unknown.
            ConfigError: the backend cannot be reached or refuses.
        """
        ...

    def close(self) -> None:
        """Let go of the KEK and of connections; whatever is asked later raises ConfigError."""
        ...


@dataclass(frozen=True)
class Wrapped:
    """A wrapped key taken apart. ``kek_version``: the version of a ``TRANSIT`` key, 1 or more; 0 elsewhere."""

    backend: int
    kek_version: int
    nonce: bytes
    ciphertext: bytes  # with the tag

    def encode(self) -> bytes:
        return bytes([VERSION, self.backend]) + self.kek_version.to_bytes(4, "big") + self.nonce + self.ciphertext

    @classmethod
    def decode(cls, data: bytes, backend: int) -> Wrapped:
        """Strict: one encoding per value. SealError if ``data`` is no key that ``backend`` wrapped."""
        if not OVERHEAD < len(data) <= OVERHEAD + MAX_KEY_BYTES:
            bounds = f"{OVERHEAD + 1} to {OVERHEAD + MAX_KEY_BYTES}"
            raise SealError(f"a wrapped key has {bounds} bytes, came {len(data)}")
        if data[0] != VERSION:
            raise SealError(f"wrapped key of format version {data[0]}, want {VERSION}")
        if data[1] != backend:
            made = BACKENDS.get(data[1], f"number {data[1]}")
            raise SealError(f"key was wrapped by backend {made}, the one configured is {BACKENDS[backend]}")
        kek_version = int.from_bytes(data[2:HEADER_BYTES], "big")
        if (kek_version > 0) != (backend == TRANSIT):
            # Vault takes version 0 for 1, so that two blobs would open as one.
            raise SealError(f"wrapped key names version {kek_version} of its key encryption key")
        body = data[HEADER_BYTES:]
        return cls(backend, kek_version, body[:NONCE_BYTES], body[NONCE_BYTES:])


def associated_data(backend: int, label: str) -> bytes:
    """``lp("cordon/wrapped-key/v1") || lp(backend id) || lp(label)``; ConfigError for a label that is not allowed."""
    try:
        text = label.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the label of a key to wrap is not Unicode text") from error
    if not 0 < len(text) <= MAX_LABEL_BYTES:
        raise ConfigError(f"the label of a key to wrap has 1 to {MAX_LABEL_BYTES} bytes, came {len(text)}")
    return lp(b"cordon/wrapped-key/v1") + lp(bytes([backend])) + lp(text)


def check_key(key: bytes) -> None:
    """ConfigError unless ``key`` has a size that may be wrapped."""
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise ConfigError(f"a key to wrap has 1 to {MAX_KEY_BYTES} bytes, came {len(key)}")


def does_not_open(name: str) -> SealError:
    """The one answer to whatever is wrong with a wrapped key, so that nothing can be learnt from it."""
    return SealError(f"{name}: wrapped key does not open: other key encryption key, other label, or changed")


def rewrap(old: KeyEncryption, new: KeyEncryption, wrapped: bytes, label: str) -> bytes:
    """``wrapped`` under ``old`` as the same key under ``new``: rotation, or a move to another backend.

    The caller replaces the row only after this has returned, and keeps ``old`` until all rows are done.
    """
    key = old.unwrap(wrapped, label)
    again = new.wrap(key, label)
    if new.unwrap(again, label) != key:
        raise ConfigError(f"{new.name}: does not give back what it wrapped; nothing was replaced")
    return again


def check_backend(kek: KeyEncryption, random: Random = os.urandom) -> None:
    """ConfigError unless ``kek`` gives back what it wrapped, and under the same label only.

    A Vault older than 1.13 ignores associated data without a word, and an HSM in FIPS mode may use a nonce of its own.
    """
    probe = random(32)
    wrapped = kek.wrap(probe, "self-test")
    try:
        opened = kek.unwrap(wrapped, "self-test")
    except SealError as error:
        raise ConfigError(f"{kek.name}: does not open what it has just wrapped (a nonce of its own?)") from error
    if opened != probe:
        raise ConfigError(f"{kek.name}: gave back another key than it had wrapped")
    try:
        kek.unwrap(wrapped, "self-test under another label")
    except SealError:
        return
    raise ConfigError(f"{kek.name}: ignores the label (associated data), so keys could be exchanged; it cannot be used")
