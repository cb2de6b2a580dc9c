"""The conservation ledger: rows in = rows out + rejected by reason + filtered by rule, checked by equality."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cordon.data.records import REASONS
from cordon.errors import DataError

MAX_EXAMPLES = 1000


class Rejection(NamedTuple):
    """One rejected record: why, and where it stands. Never what it says."""

    reason: str
    pointer: str
    column: str


@dataclass
class Balance:
    """Counts of one kind of thing. ``rows_out`` is taken from the result itself, never from the other counts."""

    rows_in: int = 0
    rows_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)

    def check(self, what: str) -> None:
        """Raise DataError unless nothing was lost or made up."""
        accounted = self.rows_out + self.rejected.total() + self.filtered.total()
        if self.rows_in != accounted:
            raise DataError(f"{what}: {self.rows_in} came in, {accounted} are accounted for", "data_conservation")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "rejected": dict(sorted(self.rejected.items())),
            "filtered": dict(sorted(self.filtered.items())),
        }


@dataclass
class Conservation:
    """The ledger of one load: values (``rows``) and ``patients``.

    ``first`` is the first rejection of each reason, ``examples`` the first ones of all.

    It stays on site: counts by reason are data.
    """

    rows: Balance = field(default_factory=Balance)
    patients: Balance = field(default_factory=Balance)
    examples: list[Rejection] = field(default_factory=list)
    first: dict[str, Rejection] = field(default_factory=dict)

    @property
    def rejected(self) -> Counter[str]:
        """Rejected values by reason."""
        return self.rows.rejected

    def reject(self, balance: Balance, reason: str, pointer: str, column: str) -> None:
        """Count one rejected thing and keep the pointer."""
        if reason not in REASONS:
            raise ValueError(f"not a rejection reason: {reason}")
        balance.rejected[reason] += 1
        rejection = Rejection(reason, pointer, column)
        self.first.setdefault(reason, rejection)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(rejection)

    def check(self) -> None:
        """Raise DataError unless both balances close."""
        self.rows.check("rows")
        self.patients.check("patients")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the examples."""
        return {"rows": self.rows.to_dict(), "patients": self.patients.to_dict()}
