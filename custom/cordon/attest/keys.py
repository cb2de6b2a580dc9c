"""Keys of one attested process: its own, and as its peers know them."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey

from cordon.sealing import KemKey


@dataclass(frozen=True)
class ProcessKeys:
    """Keys of one process, made inside it and never stored: KEM pair (HPKE ML-KEM-768 + X25519), Ed25519 pair."""

    kem_key: MLKEM768X25519PrivateKey = field(repr=False)
    kem_public_bytes: bytes
    signing_key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> ProcessKeys:
        """Fresh keys from the operating system's randomness."""
        kem = KemKey.generate()
        return cls(kem.private, kem.public_bytes, Ed25519PrivateKey.generate())

    @property
    def signing_public_bytes(self) -> bytes:
        return self.signing_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


@dataclass(frozen=True)
class AttestedKeys:
    """Public keys of one process, from evidence that passed. Equal if both keys are: then it is the same process.

    ``names``: SPKI digest of the signing key, digest of the KEM key (``sealing.kem_digest``).
    """

    signing_key: Ed25519PublicKey = field(compare=False)
    kem_key: MLKEM768X25519PublicKey = field(compare=False)
    names: tuple[str, str]
