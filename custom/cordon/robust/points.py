"""The rows that a rule looks at: checked, put into an order of their own, read chunk by chunk, mixed where asked.

A rule never holds a second copy of its input. What is n-dimensional (distances, coefficients) is worked out in n-space;
what is d-dimensional is made chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cordon.errors import ConfigError
from cordon.robust import kernels

Array = NDArray[Any]
Floats = NDArray[np.float64]

NOT_FINITE = "updates must be finite: got NaN, infinity, or values whose squares overflow"
MIXED_COLUMNS = 1 << 16  # of mixed points made at a time
SQUARES_LIMIT = 256  # rows; the sums of more would not be small beside the rows
COMPILED_FROM = 1_000_000  # values; below, numpy is done before LLVM is loaded


def _kernels(rows: Sequence[Array], limit: int) -> Any:
    """The module whose kernels are to read ``rows``: compiled ones for large inputs, if LLVM is installed."""
    small = len(rows) * rows[0].size < COMPILED_FROM or len(rows) > limit
    if small or any(not row.flags.c_contiguous for row in rows):
        return kernels
    try:
        from cordon.robust import compiled
    except (ImportError, OSError):  # not installed, or its library does not load here: the same bits, later
        return kernels
    return compiled


class Points:
    """k points in R^d, each a weighted mean of some of n rows (the rows themselves, until ``mixed``).

    Rows are put into the lexicographic order of their values, so that no bit of a result depends on the order they came
    in; equal rows are ordered by weight, and equal rows of equal weight are the same to every rule.

    Args:
        updates: (n, d) array, or n rows (d,), of float32 or float64; one row per distinct site. Never changed.
        weights: (n,) public weights, finite and > 0; only their ratios matter.

    Raises:
        ConfigError: shapes don't fit, there is no row, or a weight is not positive. (NaN and infinity in rows: whenever
            they are first read.)
    """

    def __init__(self, updates: Array | Sequence[Array], weights: Array | Sequence[float]) -> None:
        rows = _rows(updates)
        p = np.asarray(weights, dtype=np.float64)
        if p.shape != (len(rows),):
            raise ConfigError(f"want updates (n, d) and weights (n,), got {len(rows)} rows and {p.shape}")
        if not np.isfinite(p).all() or not (p > 0).all():
            raise ConfigError("weights must be finite and positive")
        self.order = canonical_order(rows, p)
        self.rows = tuple(rows[index] for index in self.order)
        self.row_weights: Floats = p[self.order]
        self.d, self.dtype = len(rows[0]), rows[0].dtype
        self.matrix: Floats | None = None  # (k, n): unscaled weights of the rows in each point
        self.weights: Floats = self.row_weights

    @property
    def k(self) -> int:
        """Number of points."""
        return len(self.weights)

    def mixed(self, matrix: Floats, weights: Floats) -> Points:
        """Points (j,) that are the weighted means ``matrix`` (j, k) of these; their weights are ``weights`` (j,)."""
        other = object.__new__(Points)
        other.__dict__.update(self.__dict__)
        other.matrix = matrix if self.matrix is None else matrix @ self._stochastic()
        other.weights = weights
        return other

    def influence(self, shares: Floats) -> Floats:
        """(n,) influence 0..1 of each row, in the order they came, of the points' ``shares`` (k,).

        Of a point that mixes rows, each has the part that it has in the point, against its public weight.
        """
        if self.matrix is not None:
            shares = np.minimum(1.0, (shares * self.weights) @ self._stochastic() / self.row_weights)
        out = np.empty(len(self.rows))
        out[self.order] = shares
        return out

    def squares(self) -> Floats:
        """(k, k) squared Euclidean distances between the points."""
        squares = self._squares(self.rows)
        return squares if self.matrix is None else mixed_squares(squares, self._stochastic())

    def squares_to(self, centre: Array) -> Floats:
        """(k,) squared distances of the points to ``centre`` (d,)."""
        if self.matrix is not None:
            return np.diag(self.gram(centre)).copy()
        return self._squares((*self.rows, centre.astype(self.dtype, copy=False)))[:-1, -1]

    def gram(self, origin: Array | int) -> Floats:
        """(k, k) inner products of the points, seen from ``origin``: (d,), or the index of a point.

        Slower than distances, and better: points far out leave those of the others as they are.
        """
        if not isinstance(origin, int):
            start = origin
        elif self.matrix is None:
            start = self.rows[origin]
        else:
            chosen = np.zeros(self.k)
            chosen[origin] = 1.0
            start = self.combine(chosen)
        products = kernels.gram(self.rows, start)
        self._need(bool(np.isfinite(products).all()))
        return products if self.matrix is None else self._stochastic() @ products @ self._stochastic().T

    def _squares(self, rows: Sequence[Array]) -> Floats:
        squares = _kernels(rows, SQUARES_LIMIT).squared_distances(rows)
        if not np.isfinite(squares).all():
            squares = kernels.squared_distances(rows)  # squares overflow float32 long before the values do
        self._need(bool(np.isfinite(squares).all() and (len(rows) > 1 or np.isfinite(rows[0]).all())))
        return np.asarray(squares)

    def combine(
        self, coefficients: Floats, mass: float | None = None, centre: Array | None = None, rest: float = 0.0
    ) -> Array:
        """(sum_i c_i point_i + rest centre) / mass, (d,), of the rows' dtype; ``mass`` None: the coefficients' sum.

        Sums are sequential in float64, and so is that of the coefficients: equal points come out as they went in.
        """
        if self.matrix is not None:
            coefficients = coefficients @ self._stochastic()
        chosen = np.flatnonzero(coefficients)
        rows, parts = [self.rows[index] for index in chosen], coefficients[chosen]
        if centre is not None and rest != 0:
            rows, parts = [*rows, centre.astype(self.dtype, copy=False)], np.append(parts, rest)
        out = np.empty(self.d, dtype=self.dtype)
        mass = sequential_sum(parts) if mass is None else mass
        self._need(_kernels(rows, len(rows)).weighted_sum(rows, parts, mass, out))
        return out

    def trimmed(self, f: int, weights: Floats | None) -> tuple[Array, Floats]:
        """((d,) trimmed mean per coordinate, (k,) part of the coordinates in which each point was kept)."""
        out, kept = np.empty(self.d, dtype=self.dtype), np.zeros(self.k, dtype=np.int64)
        if self.matrix is None:
            self._need(_kernels(self.rows, kernels.NETWORK_LIMIT).trimmed(self.rows, f, weights, out, kept))
            return out, kept / self.d
        chosen = _kernels(self.rows, kernels.NETWORK_LIMIT)
        for columns, block in self._blocks():
            self._need(chosen.trimmed(list(block), f, weights, out[columns], kept))
        return out, kept / self.d

    def materialised(self) -> Array:
        """(k, d): the points themselves."""
        out = np.empty((self.k, self.d), dtype=self.dtype)
        for columns, block in self._blocks():
            out[:, columns] = block
        return out

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        """(columns, (k, c) points in them)."""
        mix = np.eye(len(self.rows)) if self.matrix is None else self.matrix
        chosen = _kernels(self.rows, len(self.rows))
        if chosen is kernels:
            mass = mix.sum(axis=1, keepdims=True)
            for columns, block in kernels.chunks(self.rows):
                with np.errstate(invalid="ignore", over="ignore"):
                    yield columns, (mix @ block.astype(np.float64) / mass).astype(self.dtype)
            return
        parts = [(np.flatnonzero(part), part[part != 0], sequential_sum(part)) for part in mix]
        for start in range(0, self.d, MIXED_COLUMNS):
            columns = slice(start, min(start + MIXED_COLUMNS, self.d))
            rows = [row[columns] for row in self.rows]
            block = np.empty((len(mix), rows[0].size), dtype=self.dtype)
            for (members, coefficients, mass), out in zip(parts, block, strict=True):
                self._need(chosen.weighted_sum([rows[index] for index in members], coefficients, mass, out))
            yield columns, block

    def _stochastic(self) -> Floats:
        assert self.matrix is not None  # noqa: S101 - for the type checker; callers asked
        return np.asarray(self.matrix / self.matrix.sum(axis=1, keepdims=True))

    @staticmethod
    def _need(finite: bool) -> None:
        if not finite:
            raise ConfigError(NOT_FINITE)


def canonical_order(rows: Sequence[Array], weights: Floats) -> NDArray[np.int64]:
    """Indices that put rows (d,) in lexicographic order, equal ones by weight. Reads only as far as rows are equal."""
    d, done, width = len(rows[0]), [], 64
    groups: list[tuple[int, list[int]]] = [(0, sorted(range(len(rows)), key=lambda index: weights[index]))]
    while groups:
        start, group = groups.pop()
        if len(group) == 1 or start >= d:
            done.extend(group)
            continue
        first = rows[group[0]][start : start + width]
        differs = np.zeros(len(first), dtype=bool)
        for index in group[1:]:
            differs |= rows[index][start : start + width] != first
        if not differs.any():
            groups.append((start + width, group))
            width = min(width * 8, 1 << 18)
            continue
        column = start + int(np.argmax(differs))
        values = [float(rows[index][column]) for index in group]
        if any(map(math.isnan, values)):
            raise ConfigError(NOT_FINITE)  # it has no place in an order
        for value in sorted(set(values), reverse=True):
            groups.append((column + 1, [index for index, each in zip(group, values, strict=True) if each == value]))
    return np.array(done, dtype=np.int64)


def mixed_squares(squares: Floats, matrix: Floats) -> Floats:
    """Squared distances (j, j) of the means ``matrix`` (j, k), rows summing to one, of points ``squares`` (k, k) apart.

    |sum_i a_i x_i|^2 = -1/2 a^T D a for any a that sums to zero; with a = m_i - m_j.
    """
    product = matrix @ squares @ matrix.T
    own = np.diag(product)
    out = np.maximum(0.0, product - (own[:, None] + own[None, :]) / 2)
    np.fill_diagonal(out, 0.0)
    return np.asarray((out + out.T) / 2)  # as symmetric as it is by nature: equal scores must be equal


def sequential_sum(values: Floats) -> float:
    """Sum from left to right: the order in which ``weighted_sum`` adds."""
    total = 0.0
    for value in values.tolist():
        total += value
    return total


def _rows(updates: Array | Sequence[Array]) -> list[Array]:
    """Rows (d,) of one native float dtype; views where they are that already."""
    if isinstance(updates, np.ndarray) and updates.ndim != 2:
        raise ConfigError(f"want updates (n, d), got {updates.shape}")
    rows = [np.asarray(row) for row in updates]
    if not rows or rows[0].ndim != 1 or not rows[0].size:
        raise ConfigError("want at least one update of at least one coordinate")
    if any(row.shape != rows[0].shape for row in rows):
        raise ConfigError(f"updates differ in shape: {sorted({row.shape for row in rows})}")
    if any(row.dtype.kind not in "fiu" for row in rows):
        raise ConfigError(f"updates must be numbers, got {rows[0].dtype}")
    narrow = all(row.dtype == np.float32 for row in rows)
    return [row.astype(np.float32 if narrow else np.float64, copy=False) for row in rows]
