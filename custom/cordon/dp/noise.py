"""Where the randomness of DP training comes from.

Torch's CPU generator keeps only the low 32 bits of a seed (``manual_seed(5)`` and ``manual_seed(5 + 2**32)`` give the
same stream), so a coordinator could try every seed. Here numpy's Philox4x64 gets key and counter from the operating
system: 384 bits that no seed of a job can influence. Philox is a statistical generator, not a cipher.
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.random import Generator, Philox


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
