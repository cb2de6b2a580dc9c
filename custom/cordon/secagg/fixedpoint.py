"""Fixed point in Z_2^32 or Z_2^64: real vectors as words that add up exactly, in any order, modulo 2^bits.

A coordinate x of a site's vector becomes the integer q(f x S) with S = 2^scale_bits, f the site's public factor in
(0, 1] and q stochastic rounding: q(y) is floor(y) or floor(y) + 1, the upper with probability y - floor(y), so that
E[q(y)] = y (Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3). Negative integers are in
two's complement. A sum is divided by S, and by the sum of the weights, once, after it opened.

**No sum overflows.** ``choose`` takes the greatest S with

    K (S clip (1 + 2^-16) + 1 + TAIL S noise_std) <= 2^(bits - 1) - 1,

checked in exact rational arithmetic. ``encode`` refuses |x| > clip (1 + 1e-5) and f > 1. In float64 the product f x S
has a relative error below 2^-51, which 2^-16 - 1e-5 > 5e-6 covers: so the magnitude of an encoded coordinate is at most
S clip (1 + 2^-16) + 1, the 1 being the rounding. Without noise, then, no partial sum of K sites ever leaves
(-2^(bits-1), 2^(bits-1)), and two's complement reads it exactly.

With noise that holds as long as each site's share N is within TAIL sigma in each coordinate, sigma = S noise_std. A
discrete Gaussian, P(N = n) ~ exp(-n^2 / 2 sigma^2), is sub-Gaussian: E exp(t N) = exp(t^2 sigma^2 / 2) x (sum over n of
exp(-(n - t sigma^2)^2 / 2 sigma^2)) / (the same sum at t = 0) <= exp(t^2 sigma^2 / 2), because by Poisson summation the
sum over a shifted lattice is greatest unshifted (Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential
Privacy"). So P(|N| > 12 sigma) <= 2 exp(-72) < 1.1e-31, and below 5e-22 for any of 40 sites and 1e8 coordinates.

**How exact the rounding is.** A coordinate has 32 bits of dither, of AES-128-CTR under a fresh key from ``random``.
|E[q(y)] - y| is at most 2^-22 in the ring of 32 bits, where float64 rounds y 2^32 + dither, and at most
2^-32 + 2^-52 |y| in that of 64 bits. Coordinates are rounded independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cordon.errors import ConfigError, ProtocolAbort
from cordon.secagg.masking import KEY_BYTES, keystream

TAIL = 12
"""Standard deviations of one noise share that the ring has room for."""

TOLERANCE = 1e-5
"""How far, relatively, a coordinate may be over its bound: what float32 makes of a vector clipped to it."""

MAX_SCALE_BITS = 128

_SLACK = Fraction(1, 2**16)
_CHUNK = 32768  # coordinates: with a float64 copy and their dither they stay in the second-level cache
UNIT = 2.0**32
ROUND = 1.5 * 2.0**84
"""Adding it rounds a float64 to a multiple of 2^32, which its low word then counts modulo 2^32."""

COMPILED_FROM = 1_000_000
"""Coordinates from which on code is compiled: that takes some hundredths of a second, once in a process."""

Words = NDArray[Any]
"""(d,) uint32 or uint64, little-endian."""


@dataclass(frozen=True)
class Ring:
    """Z_2^bits and the scale S = 2^scale_bits of the integers in it.

    >>> Ring(32, 20).scale, Ring(64, 20).dtype
    (1048576.0, dtype('uint64'))
    """

    bits: Literal[32, 64]
    scale_bits: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one word: unsigned, little-endian, as on the wire."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def scale(self) -> float:
        """S, the units of the ring in 1.0."""
        return 2.0**self.scale_bits


def choose(bits: Literal[32, 64], members: int, clip: float, noise_std: float = 0.0) -> Ring:
    """The finest ring in which no sum of ``members`` vectors overflows (proof above).

    Args:
        members: K, the sites whose vectors may be in one sum.
        clip: bound of a coordinate's magnitude, in model units.
        noise_std: the greatest standard deviation of one site's noise share, in model units; 0 without noise.

    Raises:
        ConfigError: not even S = 1 fits, or an argument is no positive number.

    >>> choose(32, 8, 1.0).scale_bits, choose(32, 8, 1.0, noise_std=1.0).scale_bits
    (27, 24)
    """
    if bits not in (32, 64):
        raise ConfigError(f"a ring has 32 or 64 bits, not {bits}")
    if members < 1:
        raise ConfigError(f"a sum of {members} vectors: want 1 or more")
    if not (0 < clip < math.inf and 0 <= noise_std < math.inf):
        raise ConfigError(f"clip {clip} and noise {noise_std}: want finite numbers, clip over 0, noise 0 or more")
    room = Fraction(2 ** (bits - 1) - 1, members) - 1
    unit = Fraction(clip) * (1 + _SLACK) + TAIL * Fraction(noise_std)
    if unit > room:
        raise ConfigError(
            f"{members} x (clip {clip:g} + 1 + {TAIL} x noise {noise_std:g}) does not fit {bits} bits with a scale of 1"
            " or more: want a smaller clip, less noise, fewer members or 64 bits"
        )
    scale_bits = (room / unit).__floor__().bit_length() - 1
    return Ring(bits, min(scale_bits, MAX_SCALE_BITS))


def encode(
    vector: NDArray[np.float32],
    factor: float,
    clip: float,
    ring: Ring,
    random: Callable[[int], bytes],
) -> Words:
    """``factor`` x ``vector`` in units of ``ring``, stochastically rounded: (d,) words.

    Args:
        vector: (d,) float32.
        factor: in (0, 1].
        clip: what ``ring`` was chosen for.
        random: n -> n random bytes.

    Raises:
        ProtocolAbort: ``not_finite``: NaN, an infinity or a coordinate over clip (1 + 1e-5); says nothing of which.
        ConfigError: the arguments are not as above.
    """
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise ConfigError(f"want a (d,) float32 vector, got {vector.dtype} {vector.shape}")
    if not 0 < factor <= 1:
        raise ConfigError(f"factor {factor}: want one in (0, 1]")
    out = np.empty(vector.size, ring.dtype)
    dither = np.empty(min(_CHUNK, vector.size), "<u4")
    write, fill = _writer(ring, vector.size), keystream(random(KEY_BYTES))
    for at in range(0, vector.size, _CHUNK):
        part, words = vector[at : at + _CHUNK], out[at : at + _CHUNK]
        drawn = dither[: part.size]
        fill(drawn.data.cast("B"))
        if not write(part, factor * ring.scale, clip * (1 + TOLERANCE), drawn, words):
            raise ProtocolAbort("not_finite", f"a coordinate is not a number of magnitude {clip:g} or less")
    return out


_Writer = Callable[[NDArray[np.float32], float, float, Words, Words], bool]
"""(part, f S, limit, dither, words to write) -> whether all of part is finite and within the limit."""


def _writer(ring: Ring, size: int) -> _Writer:
    """The fastest that is there; the compiled one gives the same words."""
    if ring.bits == 64:
        return _encode_64
    if size >= COMPILED_FROM:
        try:
            from cordon.secagg.compiled import encode_32
        except (ImportError, OSError):  # not installed, or its library does not load here
            return _encode_32
        return encode_32
    return _encode_32


def _within(part: NDArray[np.float32], limit: float) -> bool:
    return float(part.max()) <= limit and float(part.min()) >= -limit  # a NaN makes both NaN, and neither true


def _encode_32(part: NDArray[np.float32], scale: float, limit: float, dither: Words, words: Words) -> bool:
    """round(y + u) with u in [-1/2, 1/2): all in units of 2^-32, where the dither's words are u as they are."""
    if not _within(part, limit):
        return False
    number = part.astype("<f8")
    np.multiply(number, scale * UNIT, out=number)
    np.add(number, dither.view("<i4"), out=number)
    np.add(number, ROUND, out=number)
    np.copyto(words, number.view("<u8"), casting="unsafe")
    return True


def _encode_64(part: NDArray[np.float32], scale: float, limit: float, dither: Words, words: Words) -> bool:
    """floor(y) + floor(y - floor(y) + u) with u in [0, 1): y + u itself would lose u where y is large."""
    if not _within(part, limit):
        return False
    number = part.astype("<f8")
    np.multiply(number, scale, out=number)
    whole = np.floor(number)
    np.subtract(number, whole, out=number)
    np.add(number, dither / UNIT, out=number)
    np.copyto(words, whole.astype("<i8").view("<u8"))
    np.add(words, number.astype("<u8"), out=words)
    return True


def add_noise(words: Words, noise: NDArray[np.int64]) -> None:
    """``words`` += ``noise``, in place: (d,) int64 in units of the ring."""
    if noise.dtype != np.int64 or noise.shape != words.shape:
        raise ConfigError(f"want int64 noise of shape {words.shape}, got {noise.dtype} {noise.shape}")
    for at in range(0, words.size, _CHUNK):
        part = words[at : at + _CHUNK]
        np.add(part, noise[at : at + _CHUNK].astype(words.dtype), out=part)


def decode(
    total: Words, ring: Ring, divisor: float = 1.0, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """An opened sum in model units, over ``divisor``: (d,) float32, computed in float64.

    Args:
        total: (d,) words, read as two's complement.
        divisor: the sum of the weights.
        out: (d,) float32 to write to. In the ring of 32 bits it may be ``total.view(numpy.float32)``: that saves a
            vector, and ``total`` is no more.

    Raises:
        ConfigError: the arguments are not as above.
    """
    if total.dtype != ring.dtype or total.ndim != 1:
        raise ConfigError(f"want (d,) words of {ring.dtype}, got {total.dtype} {total.shape}")
    if not 0 < divisor < math.inf:
        raise ConfigError(f"divisor {divisor}: want a finite number over 0")
    if out is None:
        out = np.empty(total.size, np.float32)
    elif out.dtype != np.float32 or out.shape != total.shape:
        raise ConfigError(f"want {total.shape} float32 to write to, got {out.dtype} {out.shape}")
    signed, number = total.view(f"<i{ring.bits // 8}"), np.empty(_CHUNK, np.float64)
    for at in range(0, total.size, _CHUNK):
        part = signed[at : at + _CHUNK]
        np.copyto(number[: part.size], part)
        np.multiply(number[: part.size], 1 / (ring.scale * divisor), out=number[: part.size])
        np.copyto(out[at : at + _CHUNK], number[: part.size], casting="same_kind")
    return out
