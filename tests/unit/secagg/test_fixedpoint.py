"""Fixed point: exact sums, a bound that holds and is tight, rounding without bias, nothing but finite numbers."""

from __future__ import annotations

import builtins
import itertools
import math
import sys
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cordon.errors import ConfigError, ProtocolAbort
from cordon.secagg import fixedpoint
from cordon.secagg.fixedpoint import TAIL, Ring, choose, decode, encode

BITS = st.sampled_from([32, 64])
CLIPS = st.floats(1e-6, 1e6)


def drawn(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def signed(words: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    return words.view(f"<i{words.itemsize}").astype(np.int64)


def full(value: float, size: int) -> NDArray[np.float32]:
    return np.full(size, value, np.float32)


# -- the ring -------------------------------------------------------------------------------------------------------


@given(BITS, st.integers(1, 40), CLIPS, st.one_of(st.just(0.0), st.floats(1e-6, 1e3)))
def test_the_scale_is_the_greatest_power_of_two_for_which_the_bound_holds(
    bits: int, members: int, clip: float, noise: float
) -> None:
    def holds(scale_bits: int) -> bool:
        each = 2**scale_bits * (Fraction(clip) * (1 + Fraction(1, 2**16)) + TAIL * Fraction(noise)) + 1
        return members * each <= 2 ** (bits - 1) - 1

    if not holds(0):
        with pytest.raises(ConfigError, match="does not fit"):
            choose(bits, members, clip, noise)
        return
    ring = choose(bits, members, clip, noise)
    assert holds(ring.scale_bits)
    assert not holds(ring.scale_bits + 1)


def test_a_clip_that_no_scale_fits_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="want a smaller clip, less noise, fewer members or 64 bits"):
        choose(32, 40, 1e9)
    assert choose(64, 40, 1e9).scale_bits > 20


@pytest.mark.parametrize(
    ("bits", "members", "clip", "noise"),
    [
        (16, 3, 1.0, 0.0),
        (32, 0, 1.0, 0.0),
        (32, 3, 0.0, 0.0),
        (32, 3, -1.0, 0.0),
        (32, 3, math.inf, 0.0),
        (32, 3, math.nan, 0.0),
        (32, 3, 1.0, -1.0),
        (32, 3, 1.0, math.inf),
        (32, 3, 1.0, math.nan),
    ],
)
def test_what_is_no_ring_is_refused(bits: int, members: int, clip: float, noise: float) -> None:
    with pytest.raises(ConfigError):
        choose(bits, members, clip, noise)  # type: ignore[arg-type]


def test_a_tiny_clip_does_not_make_a_scale_without_end() -> None:
    assert choose(64, 3, 1e-300).scale_bits == fixedpoint.MAX_SCALE_BITS


# -- overflow -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(BITS, st.integers(1, 40), CLIPS, st.sampled_from([1.0, -1.0]), st.integers(0, 2**32))
def test_all_members_at_their_bound_do_not_overflow(
    bits: int, members: int, clip: float, sign: float, seed: int
) -> None:
    limit = np.float32(clip * (1 + fixedpoint.TOLERANCE))
    if float(limit) > clip * (1 + fixedpoint.TOLERANCE):
        limit = np.nextafter(limit, np.float32(0))
    try:
        ring = choose(bits, members, clip)
    except ConfigError:
        return
    parts = [signed(encode(full(sign * limit, 5), 1.0, clip, ring, drawn(seed + i))) for i in range(members)]
    for coordinate in range(5):
        exact = sum(int(part[coordinate]) for part in parts)
        assert abs(exact) <= 2 ** (bits - 1) - 1
        assert all(abs(int(part[coordinate])) <= ring.scale * clip * (1 + 2**-16) + 1 for part in parts)
        assert abs(exact - members * int(Fraction(float(sign * limit)) * 2**ring.scale_bits)) <= members * (
            1 + ring.scale * clip * 2**-50
        )


def test_one_bit_more_of_scale_would_overflow_at_the_bound() -> None:
    clip, members = 1.0, 4  # 4 x 2^29 = 2^31: with the next scale the sum of four vectors at the clip is -2^31
    ring = choose(32, members, clip)
    assert ring.scale_bits == 28
    finer = Ring(32, 29)
    total, wrapped = np.zeros(3, "<u4"), np.zeros(3, "<u4")
    for member in range(members):
        total += encode(full(clip, 3), 1.0, clip, ring, drawn(member))
        wrapped += encode(full(clip, 3), 1.0, clip, finer, drawn(member))
    assert np.array_equal(decode(total, ring), full(4.0, 3))
    assert np.array_equal(decode(wrapped, finer), full(-4.0, 3))


def test_noise_of_tail_standard_deviations_at_every_member_fits() -> None:
    clip, std, members = 0.7, 0.3, 10
    ring = choose(32, members, clip, std)
    most = np.full(2, math.floor(TAIL * std * ring.scale), np.int64)
    total, exact = np.zeros(2, "<u4"), 0
    for member in range(members):
        words = encode(full(clip, 2), 1.0, clip, ring, drawn(member))
        exact += int(words[0]) + int(most[0])
        fixedpoint.add_noise(words, most)
        total += words
    assert int(signed(total)[0]) == exact < 2**31


# -- encode and decode ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    BITS,
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
    st.integers(0, 2**32),
)
def test_a_coordinate_is_rounded_to_one_of_its_two_neighbours(
    bits: int, values: list[float], factor: float, seed: int
) -> None:
    ring = choose(bits, 3, 1.0)
    vector = np.array(values, np.float32)
    for value, word in zip(vector, signed(encode(vector, factor, 1.0, ring, drawn(seed))), strict=True):
        exact = Fraction(float(value)) * Fraction(factor) * 2**ring.scale_bits
        assert abs(int(word) - exact) < 1 + abs(exact) * Fraction(1, 2**51) + Fraction(1, 2**20)


@settings(max_examples=40, deadline=None)
@given(BITS, st.integers(1, 8), st.integers(0, 2**32))
def test_the_sum_of_the_encoded_is_the_sum(bits: int, members: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.uniform(-1, 1, (members, 50)).astype(np.float32)
    weights = random.uniform(0.1, 1, members)
    ring = choose(bits, members, 1.0)
    total = np.zeros(50, ring.dtype)
    for vector, weight in zip(vectors, weights, strict=True):
        total += encode(vector, weight, 1.0, ring, random.bytes)
    mean = decode(total, ring, weights.sum())
    want = weights @ vectors.astype(np.float64) / weights.sum()
    assert np.abs(mean - want).max() <= members / ring.scale / weights.sum() + 2.0**-24


def test_whole_units_are_encoded_exactly_and_in_twos_complement() -> None:
    for ring in (Ring(32, 4), Ring(64, 4)):
        vector = np.array([0, 1, -1, 0.0625, -0.0625, 3.5], np.float32)
        words = encode(vector, 1.0, 4.0, ring, drawn(0))
        assert signed(words).tolist() == [0, 16, -16, 1, -1, 56]
        assert words[2] == 2**ring.bits - 16
        assert np.array_equal(decode(words, ring), vector)


@pytest.mark.parametrize("size", [0, 1, 32767, 32768, 32769, 100_001])
@pytest.mark.parametrize("bits", [32, 64])
def test_chunks_join_without_a_seam(bits: int, size: int) -> None:
    ring = choose(bits, 3, 1.0)
    vector = np.linspace(-1, 1, size, dtype=np.float32)
    words = encode(vector, 1.0, 1.0, ring, drawn(1))
    assert words.dtype == ring.dtype
    assert np.allclose(decode(words, ring), vector, rtol=0, atol=2 / ring.scale + 2.0**-24)
    again = encode(vector[::-1], 1.0, 1.0, ring, drawn(1))  # a view that runs backwards
    assert np.allclose(decode(again, ring), vector[::-1], rtol=0, atol=2 / ring.scale + 2.0**-24)


def test_a_sum_can_be_decoded_where_it_lies() -> None:
    ring = choose(32, 3, 1.0)
    words = encode(np.linspace(-1, 1, 70_000, dtype=np.float32), 1.0, 1.0, ring, drawn(2))
    want = decode(words, ring, 2.5)
    found = decode(words, ring, 2.5, out=words.view(np.float32))
    assert np.shares_memory(found, words)
    assert np.array_equal(found, want)


# -- rounding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("whole", [0, 1, -1, 1000, -(2**20), 2**26])
def test_rounding_has_no_bias(bits: int, whole: int) -> None:
    """2e5 roundings of whole + k / 8: the mean is within 5 standard errors. Fails a rounding that is biased by 1 %."""
    ring, size = Ring(bits, 0), 200_000
    for eighths in range(8):
        y = whole + eighths / 8
        # factor carries the fraction: y itself would not always be a float32
        vector, factor = (full(2.0**27, size), y / 2.0**27) if y > 0 else (full(-(2.0**27), size), -y / 2.0**27)
        if y == 0:
            vector, factor = full(0.0, size), 1.0
        words = signed(encode(vector, factor, 2.0**27, ring, drawn(eighths)))
        fraction = y - math.floor(y)
        assert set(np.unique(words)) <= {math.floor(y), math.ceil(y)}
        error = math.sqrt(fraction * (1 - fraction) / size)
        assert abs(words.mean() - y) <= 5 * error + 1e-12


def test_coordinates_are_rounded_independently_of_each_other_and_of_other_vectors() -> None:
    ring, size = Ring(32, 0), 65536 * 2
    first = signed(encode(full(0.5, size), 1.0, 1.0, ring, drawn(1)))
    second = signed(encode(full(0.5, size), 1.0, 1.0, ring, drawn(2)))
    for one, other in itertools.chain([(first, second)], ((first[:-lag], first[lag:]) for lag in (1, 2, 4, 32768))):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.02


# -- compiled -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=70),
    st.floats(1e-3, 1.0),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_compiled_code_gives_the_words_of_numpy_to_the_last_bit(
    values: list[float], factor: float, members: int, seed: int
) -> None:
    pytest.importorskip("llvmlite")
    from cordon.secagg import compiled

    part, scale = np.array(values, np.float32), factor * choose(32, members, 1.0).scale
    dither = np.frombuffer(np.random.default_rng(seed).bytes(part.nbytes), "<u4")
    one, other = np.zeros(part.size, "<u4"), np.zeros(part.size, "<u4")
    assert compiled.encode_32(part, scale, 1.0, dither, one)
    assert fixedpoint._encode_32(part, scale, 1.0, dither, other)
    assert np.array_equal(one, other)


def test_a_large_vector_is_encoded_the_same_with_and_without_llvm(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = choose(32, 3, 1.0)
    for vector in (np.linspace(-1, 1, 70_001, dtype=np.float32), np.linspace(-1, 1, 140_002, dtype=np.float32)[::-2]):
        slow = encode(vector, 0.7, 1.0, ring, drawn(3))
        monkeypatch.setattr(fixedpoint, "COMPILED_FROM", 1)
        fast = encode(vector, 0.7, 1.0, ring, drawn(3))
        monkeypatch.setitem(sys.modules, "cordon.secagg.compiled", None)
        without = encode(vector, 0.7, 1.0, ring, drawn(3))
        monkeypatch.undo()
        assert np.array_equal(slow, fast)
        assert np.array_equal(slow, without)


def test_a_library_that_does_not_load_here_leaves_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name == "cordon.secagg.compiled":
            raise OSError("cannot map it executable")
        return importing(name, *args, **kwargs)

    importing = builtins.__import__
    monkeypatch.setattr(fixedpoint, "COMPILED_FROM", 1)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert fixedpoint._writer(choose(32, 3, 1.0), 10) is fixedpoint._encode_32


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.001, -1.001, 3e38])
@pytest.mark.parametrize("at", [0, 32768, 49_999])
def test_not_finite_or_over_the_bound_is_refused_wherever_it_is(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, bits: int, bad: float, at: int
) -> None:
    monkeypatch.setattr(fixedpoint, "COMPILED_FROM", 1 if compiled else 10**9)
    vector = full(0.1, 50_000)
    vector[at] = bad
    with pytest.raises(ProtocolAbort) as caught:
        encode(vector, 0.5, 1.0, choose(bits, 3, 1.0), drawn(0))
    assert caught.value.code == "not_finite"
    assert str(at) not in caught.value.detail


def test_infinity_is_refused_under_a_bound_over_float32() -> None:
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ProtocolAbort):
            encode(full(value, 3), 1.0, 1e39, choose(64, 3, 1e10), drawn(0))


def test_a_vector_that_float32_clipped_to_its_bound_is_taken() -> None:
    clip = 0.1  # not a float32: the nearest is above it
    assert float(np.float32(clip)) > clip
    encode(full(clip, 3), 1.0, clip, choose(32, 3, clip), drawn(0))


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.0000001, math.nan, math.inf])
def test_a_factor_over_one_which_could_overflow_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="factor"):
        encode(full(0.1, 3), factor, 1.0, choose(32, 3, 1.0), drawn(0))


def test_other_types_and_shapes_are_refused() -> None:
    ring = choose(32, 3, 1.0)
    for vector in (np.zeros(3), np.zeros((2, 2), np.float32), np.zeros(3, ">f4")):
        with pytest.raises(ConfigError):
            encode(vector, 1.0, 1.0, ring, drawn(0))
    with pytest.raises(ConfigError):
        decode(np.zeros(3, "<u8"), ring)
    with pytest.raises(ConfigError):
        decode(np.zeros(3, "<u4"), ring, out=np.zeros(4, np.float32))
    for divisor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError):
            decode(np.zeros(3, "<u4"), ring, divisor)
    for noise in (np.zeros(4, np.int64), np.zeros(3, np.int32)):
        with pytest.raises(ConfigError):
            fixedpoint.add_noise(np.zeros(3, "<u4"), noise)


def test_negative_noise_is_added_modulo_the_ring() -> None:
    for dtype in ("<u4", "<u8"):
        words = np.array([0, 5, 7], dtype)
        fixedpoint.add_noise(words, np.array([-1, -5, 2**31 - 7], np.int64))
        assert signed(words).tolist() == [-1, 0, 2**31 if dtype == "<u8" else -(2**31)]
