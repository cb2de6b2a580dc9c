"""Exact samples of the discrete Gaussian N_Z(0, s^2): P(y) proportional to exp(-y^2 / (2 s^2)) on the integers.

Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Algorithms 1 to 3, vectorised. Algorithm 3 takes discrete Laplace
candidates of scale t (Algorithm 2) and keeps them with a probability that makes the Laplace a Gaussian. One candidate::

    U uniform in {0 .. t-1},  V geometric: P(V >= k) = exp(-k),  a fair sign;  y = sign * (U + t V);  no "-0"
    kept with probability exp(-x),  x = U/t + (|y| - s^2/t)^2 / (2 s^2)

The paper keeps with probability exp(-U/t) and then exp(-(|y| - s^2/t)^2 / (2 s^2)); one decision of the product is the
same. Any t gives the same distribution; here t is the power of two in (s/sqrt 2, s sqrt 2], so U is plain bits.

**Bernoulli(exp(-x)), exact.** A uniform U in [0, 1) is known by its first 64 bits, and exp(-x) in float64 to within
``MARGIN`` = 2^-40. Where the two are further apart than that, the decision is made: no further bits of U would change
it. Else U gets more bits and exp(-x), x rational, is enclosed in decimal arithmetic, until they are apart.

Why 2^-40 is enough: with a = |y|/s, float64 has x to within (a + 2)^2 2^-49 (each operand is rounded once or twice, and
(|y| - s^2/t)/s is at most a + 1.5 in size), so exp(-x) <= exp(-(a - 1.5)^2 / 2) to within
max_a exp(-(a - 1.5)^2/2) (a + 2)^2 2^-49 < 2^-44; numpy's exp and the conversion of U add less than 2^-50.

Candidates with V > 60 are not kept: |y| > 60 t > 42 s has probability < exp(-850), so that is no statement about
privacy; it keeps every number within 63 bits.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cordon.errors import PrivacyError

MIN_STD, MAX_STD = 1, 2**56
MARGIN = 2.0**-40
MAX_BLOCKS = 60
CHUNK = 1 << 16

Words = Callable[[int], NDArray[np.uint64]]
"""``words(n)``: n uniform independent 64-bit numbers, never the same ones twice (``cordon.dp.noise.Keystream``)."""


def sample(std: float | Fraction, size: int, words: Words) -> NDArray[np.int64]:
    """``size`` independent draws of N_Z(0, std^2), int64.

    Args:
        std: s, as the exact rational number that a float is; 1 to 2^56. The variance is at most s^2, and for s >= 1
            less by under 1e-6 of it.
        words: where randomness comes from.

    Raises:
        PrivacyError: ``std`` is not in its range.

    >>> from cordon.dp.noise import keystream
    >>> sample(2.0, 8, keystream(unsafe_seed=1).words).shape
    (8,)
    """
    if not MIN_STD <= std <= MAX_STD:  # written so that a NaN is refused
        raise PrivacyError(f"discrete Gaussian: want a standard deviation of {MIN_STD} to 2^56, got {std}")
    variance = Fraction(std) ** 2
    scale = 1 << math.floor(math.log2(float(std) * math.sqrt(2)))
    drawn, have = np.empty(size, np.int64), 0
    while have < size:
        # About 0.4 of the candidates are kept.
        kept = _candidates(min(CHUNK, 3 * (size - have) + 16), scale, variance, words)[: size - have]
        drawn[have : have + len(kept)] = kept
        have += len(kept)
    return drawn


def _candidates(count: int, scale: int, variance: Fraction, words: Words) -> NDArray[np.int64]:
    """Those of ``count`` candidates that are kept."""
    bits = words(count)
    negative = (bits >> np.uint64(63)).astype(bool)
    low = (bits & np.uint64(scale - 1)).astype(np.int64)
    blocks = _geometric(count, words)
    usable = blocks <= MAX_BLOCKS
    y = low + scale * np.where(usable, blocks, 0)
    usable &= ~(negative & (y == 0))
    y, low, negative = y[usable], low[usable], negative[usable]

    spread = float(variance)
    x = low / scale + (y - float(variance / scale)) ** 2 / (2 * spread)

    def exactly(i: int) -> Fraction:
        return Fraction(int(low[i]), scale) + (int(y[i]) - variance / scale) ** 2 / (2 * variance)

    kept = bernoulli_exp(x, exactly, words)
    signed: NDArray[np.int64] = np.where(negative, -y, y)[kept]
    return signed


def _geometric(count: int, words: Words) -> NDArray[np.int64]:
    """(count,) P(V >= k) = exp(-k): successes of Bernoulli(exp(-1)) before the first failure."""
    successes = np.zeros(count, np.int64)
    alive = np.arange(count)
    while len(alive) and successes[alive[0]] <= MAX_BLOCKS:
        alive = alive[bernoulli_exp(np.ones(len(alive)), lambda _: Fraction(1), words)]
        successes[alive] += 1
    return successes


def bernoulli_exp(x: NDArray[np.float64], exactly: Callable[[int], Fraction], words: Words) -> NDArray[np.bool_]:
    """For each i, True with probability exp(-x_i), x_i >= 0.

    Args:
        x: (n,) float64 values of x.
        exactly: i -> the exact x_i; asked for where float64 does not decide.
    """
    uniform = words(len(x))
    gap = uniform * 2.0**-64 - np.exp(-x)  # of U's first 64 bits
    success = gap < 0
    for i in np.flatnonzero(np.abs(gap) <= MARGIN):
        success[i] = _decide(int(uniform[i]), exactly(int(i)), words)
    return success


def _decide(uniform: int, x: Fraction, words: Words) -> bool:
    """Whether U < exp(-x), for a U whose first 64 bits are ``uniform``."""
    bits = 64
    while True:
        low, high = _enclose_exp(x, bits)
        if Fraction(uniform + 1, 1 << bits) <= low:
            return True
        if Fraction(uniform, 1 << bits) >= high:
            return False
        uniform, bits = uniform << 64 | int(words(1)[0]), bits + 64


def _enclose_exp(x: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Bounds of exp(-x), x >= 0, closer together than 2^-bits.

    ``decimal`` rounds a quotient and an exp correctly, each to ``digits``: relative errors of 10^-digits, and the
    quotient's becomes one of at most x 10^-digits (1 + small) in exp(-x).
    """
    if x == 0:
        return Fraction(1), Fraction(1)
    digits = bits // 3 + 20 + len(str(math.ceil(x)))
    with decimal.localcontext(decimal.Context(prec=digits)):
        value = Fraction((decimal.Decimal(-x.numerator) / decimal.Decimal(x.denominator)).exp())
    error = value * (2 * x + 2) / 10 ** (digits - 1)
    return value - error, min(value + error, Fraction(1))
