"""How far the updates of one version point apart: measured and shown, nobody is blamed for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 18  # coordinates: 2 MB of float64 at a time


@dataclass(frozen=True)
class Divergence:
    """Least, median and greatest cosine of a row with the aggregate, in -1..1, and the names of the outliers."""

    least: float
    median: float
    greatest: float
    outliers: tuple[str, ...]


def measure(
    rows: Sequence[NDArray[Any]], aggregate: NDArray[Any], shares: NDArray[Any], names: Sequence[str]
) -> Divergence:
    """Cosine spread of ``rows`` (n of (d,)) and who was left out of their ``aggregate`` (d,).

    An outlier is a row whose influence, of ``shares`` (n,), is 0 or below half of the equal one: the mean of them.
    A zero vector has cosine 0 with everything.
    """
    cosines = [cosine(row, aggregate) for row in rows]
    half = float(np.mean(shares)) / 2
    outliers = tuple(name for name, share in zip(names, shares, strict=True) if share == 0 or share < half)
    return Divergence(min(cosines), float(median(cosines)), max(cosines), outliers)


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """<a, b> / (|a| |b|) of two (d,) vectors, summed in float64 by chunks; 0 if one of them is zero."""
    aa = bb = ab = 0.0
    for at in range(0, len(a), CHUNK):
        x, y = a[at : at + CHUNK].astype(np.float64), b[at : at + CHUNK].astype(np.float64)
        aa, bb, ab = aa + float(x @ x), bb + float(y @ y), ab + float(x @ y)
    if aa == 0 or bb == 0:
        return 0.0
    return max(-1.0, min(1.0, ab / (math.sqrt(aa) * math.sqrt(bb))))


def norm(a: NDArray[Any]) -> float:
    """L2 norm of a (d,) vector, summed in float64 by chunks."""
    total = 0.0
    for at in range(0, len(a), CHUNK):
        x = a[at : at + CHUNK].astype(np.float64)
        total += float(x @ x)
    return math.sqrt(total)
