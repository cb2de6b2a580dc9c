"""Keys of one attested process, and the one encoding of its KEM public key."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey

from cordon.errors import ConfigError

KEM_BYTES = 1184 + 32  # ML-KEM-768 encapsulation key || X25519 public key


@dataclass(frozen=True)
class ProcessKeys:
    """Keys of one process, made inside it and never stored: KEM pair (HPKE ML-KEM-768 + X25519), Ed25519 pair."""

    kem_key: MLKEM768X25519PrivateKey
    kem_public_bytes: bytes
    signing_key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> ProcessKeys:
        """Fresh keys from the operating system's randomness."""
        lattice, curve = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        return cls(MLKEM768X25519PrivateKey(lattice, curve), public, Ed25519PrivateKey.generate())

    @property
    def signing_public_bytes(self) -> bytes:
        return self.signing_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def decode_kem_key(data: bytes) -> MLKEM768X25519PublicKey:
    """The KEM public key from its ``KEM_BYTES`` bytes; ConfigError if it is none."""
    if len(data) != KEM_BYTES:
        raise ConfigError(f"KEM key has {len(data)} bytes, want {KEM_BYTES}")
    try:
        lattice = MLKEM768PublicKey.from_public_bytes(data[:-32])
        return MLKEM768X25519PublicKey(lattice, X25519PublicKey.from_public_bytes(data[-32:]))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("not an ML-KEM-768 + X25519 key") from error
