"""Sealing bytes to a key that evidence binds: HPKE (RFC 9180), base mode, single-shot.

Suite: KEM ML-KEM-768 + X25519 (X-Wing, draft-connolly-cfrg-xwing-kem), KDF HKDF-SHA256, AEAD AES-256-GCM. All context
travels in ``info``: RFC 9180 section 8.1 says so for applications of the single-shot API, which has no separate aad.

``info = lp(purpose) || lp(part) ...``, so no two purposes and no two lists of parts share one encoding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from cordon.errors import ConfigError, SealError
from cordon.signing import digest, lp

KEM_BYTES = 1184 + 32  # ML-KEM-768 encapsulation key || X25519 public key
KEM_SECRET_BYTES = 64 + 32  # ML-KEM-768 seed (FIPS 203, d || z) || X25519 private key
OVERHEAD = 1088 + 32 + 16  # encapsulated key || tag: what sealing adds

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True)
class KemKey:
    """A KEM key pair. ``secret`` is the private half as ``KEM_SECRET_BYTES`` bytes."""

    private: MLKEM768X25519PrivateKey = field(repr=False)
    public_bytes: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> KemKey:
        """A fresh pair from the operating system's randomness."""
        return cls._of(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_secret(cls, secret: bytes) -> KemKey:
        """The pair of ``secret``; ConfigError if that is none."""
        if len(secret) != KEM_SECRET_BYTES:
            raise ConfigError(f"KEM private key has {len(secret)} bytes, want {KEM_SECRET_BYTES}")
        try:
            lattice = MLKEM768PrivateKey.from_seed_bytes(secret[:-32])
            return cls._of(lattice, X25519PrivateKey.from_private_bytes(secret[-32:]))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError("not an ML-KEM-768 + X25519 private key") from error

    @classmethod
    def _of(cls, lattice: MLKEM768PrivateKey, curve: X25519PrivateKey) -> KemKey:
        public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        secret = lattice.private_bytes_raw() + curve.private_bytes_raw()
        return cls(MLKEM768X25519PrivateKey(lattice, curve), public, secret)


def decode_kem_key(data: bytes) -> MLKEM768X25519PublicKey:
    """The KEM public key from its ``KEM_BYTES`` bytes; ConfigError if it is none."""
    if len(data) != KEM_BYTES:
        raise ConfigError(f"KEM key has {len(data)} bytes, want {KEM_BYTES}")
    try:
        lattice = MLKEM768PublicKey.from_public_bytes(data[:-32])
        curve = X25519PublicKey.from_public_bytes(data[-32:])
        X25519PrivateKey.generate().exchange(curve)  # a point of low order is found here, not when a payload is sealed
        return MLKEM768X25519PublicKey(lattice, curve)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("not an ML-KEM-768 + X25519 key") from error


def kem_digest(public_bytes: bytes) -> str:
    """Hex digest that names a KEM key by its ``KEM_BYTES`` bytes."""
    return digest("cordon/kem-key/v1", public_bytes)


def seal(plaintext: bytes, key: MLKEM768X25519PublicKey, purpose: str, *bound: bytes) -> bytes:
    """``plaintext`` for the holder of ``key`` alone: encapsulated key || ciphertext || tag, ``OVERHEAD`` bytes longer.

    Args:
        purpose: what the bytes are, as ``cordon/update/v1``; bytes sealed as one thing don't open as another.
        bound: what they belong to (header, nonce, digest of the evidence); not sent, so the opener must know it.
    """
    return _SUITE.encrypt(plaintext, key, info=_info(purpose, bound))


def open_sealed(sealed: bytes, key: MLKEM768X25519PrivateKey, purpose: str, *bound: bytes) -> bytes:
    """Inverse of ``seal``.

    Raises:
        SealError: sealed to another key, for another purpose, bound to something else, or changed; nobody knows which.
    """
    if len(sealed) < OVERHEAD:
        raise SealError(f"{purpose}: {len(sealed)} bytes are no sealed message, which has {OVERHEAD} or more")
    try:
        return _SUITE.decrypt(sealed, key, info=_info(purpose, bound))
    except InvalidTag as error:
        raise SealError(f"{purpose}: does not open: sealed to another key, for another use, or changed") from error


def _info(purpose: str, bound: tuple[bytes, ...]) -> bytes:
    return lp(purpose.encode()) + b"".join(lp(part) for part in bound)
