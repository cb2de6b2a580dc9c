"""The discrete Gaussian sampler against its probabilities, and its decisions where float64 does not make them."""

import decimal
import math
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from cordon.dp import discrete
from cordon.dp.discrete import bernoulli_exp, sample
from cordon.dp.noise import Keystream, keystream
from cordon.errors import PrivacyError

DRAWS = 200_000


def p_value(draws: np.ndarray, std: float) -> float:
    """Of a chi-square test against N_Z(0, std^2); values expected under 20 times form one class."""
    reach = math.ceil(12 * std)
    values = np.arange(-reach, reach + 1)
    weights = np.exp(-(values**2) / (2 * std**2))
    expected = len(draws) * weights / weights.sum()
    observed = np.bincount(draws + reach, minlength=len(values)).astype(float)
    often = expected >= 20
    return float(
        chisquare(
            np.append(observed[often], observed[~often].sum()), np.append(expected[often], expected[~often].sum())
        ).pvalue
    )


@pytest.mark.parametrize("std", [1.0, 1.25, math.sqrt(2), 3.3, 17.0])
def test_draws_have_the_probabilities_of_the_discrete_gaussian(std: float) -> None:
    assert p_value(sample(std, DRAWS, keystream(unsafe_seed=1).words), std) > 1e-3


def test_the_chi_square_test_tells_a_rounded_gaussian_and_a_wrong_deviation() -> None:
    rng = np.random.default_rng(0)
    assert p_value(np.rint(rng.normal(0, 1.25, DRAWS)).astype(np.int64), 1.25) < 1e-3
    assert p_value(sample(3.35, DRAWS, keystream(unsafe_seed=1).words), 3.3) < 1e-3


@pytest.mark.parametrize("std", [1e3, 2.0**26, 3.7e12, 2.0**56])
def test_a_large_deviation_is_a_gaussian_with_the_right_moments(std: float) -> None:
    draws = sample(std, DRAWS, keystream(unsafe_seed=2).words)
    scaled = draws / std
    assert draws.dtype == np.int64
    assert kstest(scaled, "norm").pvalue > 1e-3
    assert abs(scaled.mean()) < 5 / math.sqrt(DRAWS)
    assert scaled.var() == pytest.approx(1.0, abs=5 * math.sqrt(2 / DRAWS))
    assert (scaled**4).mean() == pytest.approx(3.0, abs=5 * math.sqrt(96 / DRAWS))
    # No pattern of low bits: the lattice is the integers.
    assert chisquare(np.bincount(draws & 7, minlength=8)).pvalue > 1e-3


def test_exact_arithmetic_decides_as_float64_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a margin of 1 every decision is made in exact arithmetic, from the same bits: the same draws."""
    fast = {std: sample(std, 300, keystream(unsafe_seed=3).words) for std in (1.0, 2.6, 1e6, 2.0**50)}
    asked = []
    real = discrete._decide
    monkeypatch.setattr(discrete, "MARGIN", 1.0)
    monkeypatch.setattr(discrete, "_decide", lambda *args: asked.append(1) or real(*args))
    for std, draws in fast.items():
        assert np.array_equal(draws, sample(std, 300, keystream(unsafe_seed=3).words))
    assert len(asked) > 4 * 300


@pytest.mark.parametrize("x", [Fraction(1), Fraction(1, 3), Fraction(355, 113), Fraction(40), Fraction(1, 2**40)])
def test_a_tie_of_the_first_64_bits_is_broken_by_further_bits(x: Fraction) -> None:
    with decimal.localcontext(prec=120):
        digits = Fraction((decimal.Decimal(-x.numerator) / decimal.Decimal(x.denominator)).exp())
    first, second = (math.floor(digits * 2**64), math.floor(digits * 2**128) % 2**64)
    for word, kept in ((second - 1, True), (second + 1, False)):
        feed = [np.array([first], np.uint64), np.array([word], np.uint64)]
        assert bernoulli_exp(np.array([float(x)]), lambda _: x, lambda count, feed=feed: feed.pop(0))[0] == kept
        assert not feed  # both words were needed
    # 128 bits alike: a third word is asked for.
    feed = [np.array([word], np.uint64) for word in (first, second, math.floor(digits * 2**192) % 2**64 - 1)]
    assert bernoulli_exp(np.array([float(x)]), lambda _: x, lambda _: feed.pop(0))[0]
    assert not feed


@settings(max_examples=200, deadline=None)
@given(st.fractions(0, 900, max_denominator=10**12), st.sampled_from([64, 128, 640]))
def test_the_enclosure_holds_exp_and_is_narrow(x: Fraction, bits: int) -> None:
    low, high = discrete._enclose_exp(x, bits)
    with decimal.localcontext(prec=bits // 3 + 500):
        value = Fraction((decimal.Decimal(-x.numerator) / decimal.Decimal(x.denominator)).exp())
    assert low <= value <= high
    assert high - low < Fraction(1, 2**bits)


def test_blocks_are_geometric() -> None:
    draws = discrete._geometric(DRAWS, keystream(unsafe_seed=4).words)
    k = np.arange(10)
    expected = DRAWS * np.append(np.exp(-k) * (1 - math.exp(-1)), math.exp(-10))
    assert chisquare(np.bincount(np.minimum(draws, 10), minlength=11), expected).pvalue > 1e-3


def test_a_deviation_may_be_a_fraction_and_none_may_be_out_of_range() -> None:
    exact = sample(Fraction(5, 2), 50, keystream(unsafe_seed=5).words)
    assert np.array_equal(exact, sample(2.5, 50, keystream(unsafe_seed=5).words))
    assert sample(2.5, 0, keystream(unsafe_seed=5).words).shape == (0,)
    for std in (0.0, 0.99, -3.0, math.nan, math.inf, 2.0**57):
        with pytest.raises(PrivacyError, match="standard deviation"):
            sample(std, 1, keystream(unsafe_seed=5).words)


def test_the_keystream_is_aes_256_ctr_and_goes_on_where_it_stopped() -> None:
    key = bytes(range(32))
    blocks = b"".join(number.to_bytes(16, "big") for number in range(4))
    want = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)  # noqa: S305
    stream = Keystream(key)
    got = np.concatenate([stream.words(3), stream.words(5)])
    assert got.tobytes() == want


def test_two_keystreams_of_the_operating_system_differ() -> None:
    assert not np.array_equal(keystream().words(4), keystream().words(4))
