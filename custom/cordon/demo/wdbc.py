"""The Wisconsin Diagnostic Breast Cancer measurements, divided over five hospitals and a public reference set.

569 real patients, 30 features; the table ships inside scikit-learn. Feature ids, units and meaning are those of
``jobs/oncology/app/config/contract.yml``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

SITES = ("hospital-a", "hospital-b", "hospital-c", "hospital-d", "hospital-e")
HONEST = SITES[:4]
REFERENCE_SHARE = 0.3
MIN_ROWS = 40
MIN_PER_CLASS = 8
CONCENTRATION = 4.0


@dataclass(frozen=True)
class Table:
    """Some patients.

    ``patients`` (n,) row numbers in the source, ``x`` (n, 30) float64 in contract units, ``y`` (n,) 1 = malignant.
    """

    patients: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Table:
        """These rows, in this order."""
        return Table(self.patients[rows], self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Split:
    """Disjoint tables: the public reference set and one per hospital; together all patients."""

    reference: Table
    sites: dict[str, Table]


def feature_ids() -> tuple[str, ...]:
    """The 30 feature ids in the order of the columns: ``mean radius`` -> ``mean_radius``."""
    return tuple(str(name).replace(" ", "_") for name in load_breast_cancer().feature_names)


def load() -> Table:
    """All 569 patients."""
    source = load_breast_cancer()
    y = (source.target == 0).astype(np.int64)  # scikit-learn: 0 = malignant
    return Table(np.arange(len(y)), np.asarray(source.data, dtype=np.float64), y)


def split(seed: int) -> Split:
    """30 % reference (stratified), the rest over ``SITES`` unevenly and non-identically; the same for the same seed.

    Each class is spread by its own Dirichlet(4) draw, so hospitals differ in size and in case mix. Draws that leave a
    hospital under 40 patients or under 8 of a class are drawn again.
    """
    table, rng = load(), np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(table.y == label)) for label in (0, 1)]
    cuts = [round(REFERENCE_SHARE * len(rows)) for rows in by_class]
    reference = np.sort(np.concatenate([rows[:cut] for rows, cut in zip(by_class, cuts, strict=True)]))
    rest = [rows[cut:] for rows, cut in zip(by_class, cuts, strict=True)]
    while True:
        parts = [
            np.split(rows, (np.cumsum(rng.dirichlet([CONCENTRATION] * len(SITES)))[:-1] * len(rows)).astype(int))
            for rows in rest
        ]
        sizes = np.array([[len(part) for part in spread] for spread in parts])
        if sizes.min() >= MIN_PER_CLASS and sizes.sum(axis=0).min() >= MIN_ROWS:
            break
    sites = {
        site: table.take(np.sort(np.concatenate([spread[index] for spread in parts])))
        for index, site in enumerate(SITES)
    }
    return Split(table.take(reference), sites)
