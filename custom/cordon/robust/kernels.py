"""What reads every value of the rows: trimming per coordinate, weighted sums, distances. Plain numpy, chunk by chunk.

``compiled`` has the same functions for large inputs. Trimmed means and weighted sums agree to the last bit (exact
comparisons, then float64 operations in one order); distances to some 1e-6 of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

CHUNK_BYTES = 512 * 1024  # of rows gathered at a time: stays in a core's second-level cache
NETWORK_LIMIT = 64  # rows; above, a sort beats a network of n log^2 n comparators


def chunks(rows: Sequence[Array]) -> Iterator[tuple[slice, Array]]:
    """(columns, (n, c) block of them): a copy, in the rows' dtype."""
    d, size = rows[0].size, len(rows) * rows[0].itemsize
    width = max(64, CHUNK_BYTES // size)
    for start in range(0, d, width):
        columns = slice(start, min(start + width, d))
        yield columns, np.stack([row[columns] for row in rows])


def squared_distances(rows: Sequence[Array]) -> Floats:
    """(n, n) squared Euclidean distances in float64, by differences; not finite where a row is not.

    (From a Gram matrix they would be faster, but one liar far away would drown the distances between the others.)
    """
    squares = np.zeros((len(rows), len(rows)))
    with np.errstate(invalid="ignore", over="ignore"):
        for _, block in chunks(rows):
            part = block.astype(np.float64)
            for index in range(len(rows) - 1):
                gaps = part[index + 1 :] - part[index]
                squares[index, index + 1 :] += np.einsum("ij,ij->i", gaps, gaps)
    return squares + squares.T


def gram(rows: Sequence[Array], origin: Array) -> Floats:
    """(n, n) inner products of the rows, seen from ``origin`` (d,), in float64."""
    products = np.zeros((len(rows), len(rows)))
    with np.errstate(invalid="ignore", over="ignore"):
        for columns, block in chunks(rows):
            part = block.astype(np.float64)
            part -= origin[columns]
            products += part @ part.T
    return products


def weighted_sum(rows: Sequence[Array], coefficients: Floats, mass: float, out: Array) -> bool:
    """out (d,) = sum_i c_i row_i / mass, one row after the other, in float64; whether all values are finite."""
    finite = True
    with np.errstate(invalid="ignore", over="ignore"):
        for columns, block in chunks(rows):
            finite &= bool(np.isfinite(block).all())
            total = np.zeros(block.shape[1])
            for row, coefficient in zip(block, coefficients, strict=True):
                total += row.astype(np.float64) * coefficient
            out[columns] = total / mass + 0.0
    return finite


def trimmed(rows: Sequence[Array], f: int, weights: Floats | None, out: Array, kept: NDArray[np.int64]) -> bool:
    """out (d,) = per coordinate the mean of what is left without the f lowest and f highest; whether all are finite.

    Args:
        weights: (k,) for a weighted mean of what is left. Equal values leave by weight (at the low end the lightest
            first, at the high end the heaviest), so that the order of rows changes nothing. None: all the same.
        kept: (k,), grows by the number of coordinates in which a row's value lies within what is left.
    """
    k, finite = len(rows), True
    with np.errstate(invalid="ignore", over="ignore"):
        for columns, block in chunks(rows):
            finite &= bool(np.isfinite(block).all())
            middle = _middle(block, f)
            low, high = middle.min(axis=0), middle.max(axis=0)
            kept += np.count_nonzero((block >= low) & (block <= high), axis=1)
            if weights is None:
                total = np.zeros(block.shape[1])
                for row in middle:
                    total += row
                total /= k - 2 * f
            else:
                total = _weighted_middle(block, f, weights, low, high)
            out[columns] = total + 0.0  # no negative zero: its sign would depend on how zeros were compared
    return finite


def _middle(block: Array, f: int) -> Array:
    """(k - 2f, c): per column what is left, in the order in which the network (or a sort) leaves it."""
    k = len(block)
    if k > NETWORK_LIMIT:
        return np.sort(block, axis=0)[f : k - f]
    rows = list(block.copy())
    spare = np.empty_like(rows[0])
    for low, high in network(k, f).tolist():
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return np.stack(rows[f : k - f])


def _weighted_middle(block: Array, f: int, weights: Floats, low: Array, high: Array) -> Floats:
    """Weighted mean of what lies between ``low`` and ``high``, f values left out at each end."""
    to_drop = f - np.count_nonzero(block < low, axis=0)  # of those equal to low
    to_keep = np.count_nonzero(block == high, axis=0) - (f - np.count_nonzero(block > high, axis=0))
    total, mass = np.zeros(block.shape[1]), np.zeros(block.shape[1])
    for index in np.argsort(weights, kind="stable").tolist():
        row, weight = block[index], weights[index]
        at_low, at_high = row == low, row == high
        stays = (row > low) & (row < high) | at_low & (to_drop <= 0) | at_high & (to_keep > 0)
        to_drop -= at_low
        to_keep -= at_high
        total += np.where(stays, row.astype(np.float64) * weight, 0.0)
        mass += np.where(stays, weight, 0.0)
    same = low == high  # all that is left is one value: no rounding may change it
    return np.asarray(np.where(same, low, total / np.where(same, 1.0, mass)))


@lru_cache(maxsize=64)
def network(k: int, f: int) -> NDArray[np.int32]:
    """(m, 2) comparators (low wire, high wire) after which wires f..k-f-1 hold what trimming by f leaves, in any order.

    Batcher's odd-even merge sort (Knuth, TAOCP vol. 3, section 5.2.2, algorithm M), less every comparator whose outputs
    no longer matter: going backwards, one that exchanges two values that both stay, or both go, changes no result.
    """
    comparators: list[tuple[int, int]] = []
    top = 1 << max(0, (k - 1).bit_length() - 1)
    p = top
    while p > 0 and k > 1:
        q, r, d = top, 0, p
        while True:
            comparators += [(i, i + d) for i in range(k - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    label: list[int | None] = [0 if wire < f else 1 if wire < k - f else 2 for wire in range(k)]
    needed = []
    for low, high in reversed(comparators):
        if label[low] is None or label[low] != label[high]:
            needed.append((low, high))
            label[low] = label[high] = None
    return np.array(needed[::-1], dtype=np.int32).reshape(-1, 2)
