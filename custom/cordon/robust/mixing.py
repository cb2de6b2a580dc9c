"""Steps before a rule: they replace rows by means of rows, so that honest ones differ less.

``PRE[name](updates, weights, **args) -> (updates', weights')`` makes the mixed rows. ``aggregate`` never makes them: a
step is a matrix in n-space, and a rule reads mixed rows chunk by chunk. With uniform weights both are the papers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cordon.errors import ConfigError
from cordon.robust import arguments
from cordon.robust.points import Array, Floats, Points

Args = Mapping[str, Any]


@dataclass(frozen=True)
class PreStep:
    """A step before a rule and what is known of it before it sees a row.

    Args:
        name: as job configs name it.
        function: (Points, **args) -> Points.
        rows: (n, args) -> number of rows that come out.
        mixes: (n, m, args) -> distinct rows, of the n that go in, that any m different rows that come out mix at least.
        bears: (n, args) -> the most liars among the rows that go in for which its guarantee holds.
        takes: names of the arguments.
    """

    name: str
    function: Callable[..., Points] = field(repr=False)
    rows: Callable[[int, Args], int] = field(repr=False)
    mixes: Callable[[int, int, Args], int] = field(repr=False)
    bears: Callable[[int, Args], int] = field(repr=False)
    takes: tuple[str, ...]

    def __call__(
        self, updates: Array | Sequence[Array], weights: Array | Sequence[float], **args: Any
    ) -> tuple[Array, Floats]:
        """The mixed rows (k, d) and their weights (k,), in an order of their own."""
        points = self.apply(Points(updates, weights), args)
        return points.materialised(), points.weights

    def apply(self, points: Points, args: Args) -> Points:
        """Points after this step."""
        self.check_names(args)
        return self.function(points, **args)

    def check_names(self, args: Args) -> None:
        """ConfigError where ``args`` are not those of this step. (The seed may be left to ``aggregate``.)"""
        if not set(args) <= set(self.takes) or not set(self.takes) - {"seed"} <= set(args):
            got = ", ".join(sorted(args)) or "none"
            raise ConfigError(f"pre-aggregation {self.name} takes {', '.join(self.takes)}; got {got}")


def nnm(points: Points, f: float) -> Points:
    """Nearest-neighbour mixing: each x_i becomes the weighted mean of its n - f nearest rows, itself among them.

    Breakdown point: f of n, f < n/2, with a rule that bears as much.
    Source: Allouah et al. 2023, Algorithm 2 (there with uniform weights).
    Weights: used within a row, handed on unchanged. Sealed: every row that comes out mixes n - f distinct sites, so
    after it a median or Krum may be released where n - f >= 3. Rows that come out share most of their neighbours, so no
    more than the n - f of one row are counted, whatever the rule keeps.
    """
    count = arguments.liars("nnm", points.k, f)
    nearest = np.argsort(points.squares(), axis=1, kind="stable")[:, : points.k - count]
    matrix = np.zeros((points.k, points.k))
    np.put_along_axis(matrix, nearest, points.weights[nearest], axis=1)
    return points.mixed(matrix, points.weights)


def bucketing(points: Points, s: float, seed: float = 0) -> Points:
    """s-bucketing: rows are put into ceil(n / s) buckets at random; a bucket becomes the weighted mean of its rows.

    ``seed``: must not be known before the rows are fixed; liars who know it choose their buckets.
    Breakdown point: the rule's among ceil(n / s) rows: f liars spoil up to f buckets, so about n / (2s).
    Source: Karimireddy et al. 2022, Algorithm 1 (there with uniform weights).
    Weights: used within a bucket; a bucket weighs as much as its rows together. Sealed: a bucket mixes s distinct
    sites, the last one what is left of n: a median or Krum may be released only where the smallest bucket has >= 3.
    """
    size = arguments.whole("bucketing: s", s, 1)
    if size > points.k:
        raise ConfigError(f"bucketing: s must be at most the {points.k} rows, got {size}")
    order = np.random.default_rng(arguments.whole("bucketing: seed", seed, 0)).permutation(points.k)
    matrix = np.zeros((math.ceil(points.k / size), points.k))
    matrix[np.arange(points.k) // size, order] = points.weights[order]
    return points.mixed(matrix, matrix.sum(axis=1))


def _buckets(n: int, args: Args) -> int:
    return math.ceil(n / arguments.whole("bucketing: s", args["s"], 1))


def _in_buckets(n: int, m: int, args: Args) -> int:
    size = arguments.whole("bucketing: s", args["s"], 1)
    return min(n, n - size * (_buckets(n, args) - 1) + (m - 1) * size)


def _declared(n: int, args: Args) -> int:
    return arguments.liars("nnm", n, args["f"])


def _neighbours(n: int, m: int, args: Args) -> int:
    return n - arguments.liars("nnm", n, args["f"])


PRE: Mapping[str, PreStep] = {
    "nnm": PreStep("nnm", nnm, lambda n, args: n, _neighbours, _declared, ("f",)),
    "bucketing": PreStep("bucketing", bucketing, _buckets, _in_buckets, lambda n, args: n, ("s", "seed")),
}
