"""Where the randomness of DP training comes from.

Torch's CPU generator keeps only the low 32 bits of a seed (``manual_seed(5)`` and ``manual_seed(5 + 2**32)`` give the
same stream), so a coordinator could try every seed. Here numpy's Philox4x64 gets key and counter from the operating
system: 384 bits that no seed of a job can influence. Philox is a statistical generator, not a cipher.

What goes into a masked sum is drawn from a cipher: ``Keystream``.
"""

from __future__ import annotations

import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.random import Generator, Philox
from numpy.typing import NDArray


def streams(unsafe_seed: int | None = None) -> tuple[Generator, Generator]:
    """Two independent streams, for who is sampled and for the noise.

    Two, so that no noise depends on how many patients there are to sample from.

    Args:
        unsafe_seed: None for the operating system's entropy. A number makes streams that repeat: whoever knows it can
            subtract the noise. Tests and benches only.
    """
    if unsafe_seed is None:
        return _from_os_entropy(), _from_os_entropy()
    first, second = np.random.SeedSequence(unsafe_seed).spawn(2)
    return Generator(Philox(first)), Generator(Philox(second))


def _from_os_entropy() -> Generator:
    key = np.frombuffer(secrets.token_bytes(16), dtype=np.uint64)
    counter = np.frombuffer(secrets.token_bytes(32), dtype=np.uint64)
    return Generator(Philox(key=key, counter=counter))


class Keystream:
    """Uniform 64-bit words: the keystream of AES-256-CTR from counter 0 under ``key`` (32 bytes)."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` words."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8")


def keystream(unsafe_seed: int | None = None) -> Keystream:
    """A keystream under a fresh key of the operating system; ``unsafe_seed`` as in ``streams``."""
    if unsafe_seed is None:
        return Keystream(secrets.token_bytes(32))
    return Keystream(np.random.SeedSequence(unsafe_seed).generate_state(4, np.uint64).tobytes())
