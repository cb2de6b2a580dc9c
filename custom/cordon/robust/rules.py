"""Aggregation rules R(updates, p). Each docstring: formula, breakdown point, paper and section.

All take ``updates`` (n, d), one row per *distinct* site, and ``weights`` (n,), the public weights p, > 0 and not
necessarily summing to one; all return (d,) float64, don't depend on the order of the sites, give back u when every
update is u, and mix at least three sites in every coordinate (a release of fewer would show one hospital's update).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cordon.errors import ConfigError

Floats = NDArray[np.float64]

MIN_SITES = 3


def weighted_mean(updates: NDArray[Any], weights: NDArray[Any]) -> Floats:
    """Weighted mean: sum_i p_i u_i / sum_i p_i.

    Breakdown point: 0. One site moves the result by p_i/sum(p) times its norm, so it is safe only behind a norm bound.
    McMahan et al. 2017, Algorithm 1.
    """
    rows, p = _checked(updates, weights)
    return np.asarray(p @ rows / p.sum())


def trimmed_mean(
    updates: NDArray[Any], weights: NDArray[Any], f: float | None = None, fraction: float | None = None
) -> Floats:
    """Coordinate-wise trimmed mean: drop the f smallest and f largest of each coordinate, weighted mean of the rest.

    Breakdown point: f/n sites, f < n/2; give either ``f`` or ``fraction`` (f = floor(fraction * n)).
    Yin et al. 2018, Definition 2 (there with uniform weights).

    Raises:
        ConfigError: fewer than three sites would be left in a coordinate.
    """
    rows, p = _checked(updates, weights)
    count = _trim_count(len(rows), f, fraction)
    # Ties are broken by value of the weight too: sorting by (value, weight) makes the order of the sites irrelevant.
    order = np.lexsort((np.broadcast_to(p[:, None], rows.shape), rows), axis=0)[count : len(rows) - count]
    kept, mass = np.take_along_axis(rows, order, axis=0), p[order]
    return np.asarray((kept * mass).sum(axis=0) / mass.sum(axis=0))


RULES: Mapping[str, Callable[..., Floats]] = {"weighted_mean": weighted_mean, "trimmed_mean": trimmed_mean}


def _trim_count(n: int, f: float | None, fraction: float | None) -> int:
    if f is not None and fraction is None:
        if not 0 <= f <= n or f != math.floor(f):
            raise ConfigError(f"trimmed_mean: f must be a whole number of sites, got {f}")
        count = int(f)
    elif fraction is not None and f is None:
        if not 0 <= fraction < 0.5:
            raise ConfigError(f"trimmed_mean: fraction must lie in [0, 0.5), got {fraction}")
        count = math.floor(fraction * n)
    else:
        raise ConfigError("trimmed_mean wants exactly one of f and fraction")
    if n - 2 * count < MIN_SITES:
        raise ConfigError(f"trimmed_mean: {n} sites less 2 x {count} leave fewer than {MIN_SITES} in a coordinate")
    return count


def _checked(updates: NDArray[Any], weights: NDArray[Any]) -> tuple[Floats, Floats]:
    rows, p = np.asarray(updates, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if rows.ndim != 2 or p.shape != (rows.shape[0],):
        raise ConfigError(f"want updates (n, d) and weights (n,), got {rows.shape} and {p.shape}")
    if len(rows) < MIN_SITES:
        raise ConfigError(f"a release mixes at least {MIN_SITES} sites, got {len(rows)}")
    if not np.isfinite(rows).all() or not np.isfinite(p).all() or not (p > 0).all():
        raise ConfigError("updates must be finite and weights finite and positive")
    return rows, p
