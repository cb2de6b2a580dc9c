"""Masks: the standard's keystream, and nothing of it left in a sum."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.errors import ConfigError
from cordon.secagg import masking

# NIST SP 800-38A, F.5.1 CTR-AES128.Encrypt: key, initial counter block, (plaintext, output block) of four blocks.
KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
OUTPUT_BLOCKS = bytes.fromhex(
    "ec8cdf7398607cb0f2d21675ea9ea1e4362b7c3c6773516318a077d7fc5073ae"
    "6a2cc3787889374fbeb4c81b17ba6c44e89c399ff0f198c6d40a31db156cabfe"
)


def stream(key: bytes, size: int) -> bytes:
    """The keystream from the block cipher alone: AES of the counter blocks 0, 1, 2 ..."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - what CTR mode is made of
    blocks = b"".join(number.to_bytes(16, "big") for number in range(-(-size // 16)))
    return (encryptor.update(blocks) + encryptor.finalize())[:size]


def test_the_keystream_is_that_of_nist_sp_800_38a(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_FIRST", COUNTER)
    found = bytearray(64)
    masking.keystream(KEY)(memoryview(found))
    assert found == OUTPUT_BLOCKS


def test_the_counter_begins_at_zero_and_counts_blocks_across_chunks() -> None:
    size = masking.CHUNK_BYTES * 2 + 44
    for dtype in ("<u4", "<u8"):
        acc = np.zeros(size // np.dtype(dtype).itemsize, dtype)
        masking.add_stream(acc, KEY, 1)
        assert acc.tobytes() == stream(KEY, acc.nbytes)


def test_words_are_little_endian_and_a_mask_is_subtracted_with_minus_one() -> None:
    acc = np.zeros(2, "<u4")
    masking.add_stream(acc, KEY, -1)
    first, second = (int.from_bytes(stream(KEY, 8)[at : at + 4], "little") for at in (0, 4))
    assert acc.tolist() == [2**32 - first, 2**32 - second]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["<u4", "<u8"]), st.integers(0, 70_000), st.integers(1, 7), st.integers(0, 2**32))
def test_many_masks_together_are_each_after_the_other(dtype: str, size: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = [(random.bytes(16), int(random.choice([1, -1]))) for _ in range(count)]
    start = np.frombuffer(random.bytes(size * np.dtype(dtype).itemsize), dtype)
    together, one_by_one = start.copy(), start.copy()
    masking.add_streams(together, masks)  # type: ignore[arg-type]
    for key, sign in masks:
        masking.add_stream(one_by_one, key, sign)  # type: ignore[arg-type]
    expected = start.copy()
    for key, sign in masks:
        mask = np.frombuffer(stream(key, start.nbytes), dtype)
        expected = expected + mask if sign == 1 else expected - mask
    assert np.array_equal(together, expected)
    assert np.array_equal(one_by_one, expected)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["<u4", "<u8"]), st.integers(2, 9), st.integers(1, 2000), st.integers(0, 2**32))
def test_pair_masks_of_all_leave_the_sum_as_it_is(dtype: str, sites: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    plain = [np.frombuffer(random.bytes(size * np.dtype(dtype).itemsize), dtype) for _ in range(sites)]
    keys = {(i, j): random.bytes(16) for i in range(sites) for j in range(i + 1, sites)}
    total = np.zeros(size, dtype)
    for i in range(sites):
        masked = plain[i].copy()
        masking.add_streams(masked, [(keys[min(i, j), max(i, j)], 1 if i < j else -1) for j in range(sites) if j != i])
        if size >= 16:
            assert not np.array_equal(masked, plain[i])
        total += masked
    assert np.array_equal(total, np.add.reduce(plain, dtype=dtype))


def test_a_masked_vector_of_zeros_looks_uniform() -> None:
    """Each bit of a word is set in half of 1e5 words, within 5 standard errors."""
    acc = np.zeros(100_000, "<u4")
    masking.add_stream(acc, KEY, 1)
    for bit in range(32):
        assert abs((acc >> bit & 1).mean() - 0.5) < 5 * 0.5 / np.sqrt(acc.size)


def test_one_key_bit_makes_another_mask() -> None:
    one, other = np.zeros(1000, "<u4"), np.zeros(1000, "<u4")
    masking.add_stream(one, KEY, 1)
    masking.add_stream(other, bytes([KEY[0] ^ 1]) + KEY[1:], 1)
    assert (one == other).mean() < 0.01


def test_what_is_no_mask_is_refused() -> None:
    words = np.zeros(4, "<u4")
    for key in (b"", bytes(15), bytes(17), bytes(32)):
        with pytest.raises(ConfigError, match="16 bytes"):
            masking.add_stream(words, key, 1)
    for sign in (0, 2, -2):
        with pytest.raises(ConfigError, match="added"):
            masking.add_stream(words, KEY, sign)  # type: ignore[arg-type]
    for acc in (np.zeros(4, "<i4"), np.zeros(4, ">u4"), np.zeros(4, np.float32), np.zeros((2, 2), "<u4")):
        with pytest.raises(ConfigError, match="words"):
            masking.add_stream(acc, KEY, 1)
    assert not words.any()
