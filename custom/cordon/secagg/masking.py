"""Masks: the AES-128-CTR keystream of a key, added to or subtracted from a vector of words modulo 2^bits.

Word n of a mask is bytes [4 n, 4 n + 4) (or [8 n, 8 n + 8)) of AES-128-CTR over zeros, little-endian; the initial
counter block is zero and counts up as a 128-bit big-endian number (NIST SP 800-38A, section 6.5 and appendix B.1). A
key makes one mask, ever: two vectors under one mask differ by what the two hold. Two sites that add and subtract the
same mask leave nothing of it in their sum.

All masks of one vector are added chunk by chunk, so that the chunk of the vector stays in the cache; each mask has one
cipher context. 256 KiB was the fastest of chunks of 16 to 256 KiB, and 1 MiB no faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from cordon.errors import ConfigError

KEY_BYTES = 16
CHUNK_BYTES = 256 * 1024

Sign = Literal[1, -1]

_ZEROS = memoryview(bytes(CHUNK_BYTES))
_FIRST = bytes(16)  # counter block
_WORDS = (np.dtype("<u4"), np.dtype("<u8"))


def keystream(key: bytes) -> Callable[[memoryview], None]:
    """A function that fills at most ``CHUNK_BYTES`` bytes with the next of the keystream of ``key`` (16 bytes).

    >>> block = bytearray(16)
    >>> keystream(bytes(16))(memoryview(block))
    >>> block.hex()  # AES-128 of the block zero under the key zero
    '66e94bd4ef8a2c3b884cfa59ca342b2e'
    """
    if len(key) != KEY_BYTES:
        raise ConfigError(f"a mask key has {KEY_BYTES} bytes, not {len(key)}")
    update_into = Cipher(algorithms.AES(key), modes.CTR(_FIRST)).encryptor().update_into

    def fill(block: memoryview) -> None:
        update_into(_ZEROS if len(block) == CHUNK_BYTES else _ZEROS[: len(block)], block)

    return fill


def add_stream(acc: NDArray[Any], key: bytes, sign: Sign) -> None:
    """``acc`` += ``sign`` x the mask of ``key``, in place: (d,) uint32 or uint64 words, modulo 2^bits."""
    add_streams(acc, [(key, sign)])


def add_streams(acc: NDArray[Any], masks: Sequence[tuple[bytes, Sign]]) -> None:
    """``acc`` += the sum of sign x mask over all (key, sign), in place; faster than one after another.

    Raises:
        ConfigError: ``acc`` is not (d,) little-endian words of 4 or 8 bytes; a key or a sign is none.
    """
    if acc.dtype not in _WORDS or acc.ndim != 1:
        raise ConfigError(f"want (d,) little-endian words of 4 or 8 bytes, got {acc.dtype} {acc.shape}")
    if any(sign not in (1, -1) for _, sign in masks):
        raise ConfigError("a mask is added (1) or subtracted (-1)")
    streams = [(keystream(key), np.add if sign == 1 else np.subtract) for key, sign in masks]
    step = CHUNK_BYTES // acc.itemsize
    mask = np.empty(min(step, acc.size), acc.dtype)
    for at in range(0, acc.size, step):
        part = acc[at : at + step]
        words = mask[: part.size]
        block = words.data.cast("B")
        for fill, combine in streams:
            fill(block)
            combine(part, words, out=part)
