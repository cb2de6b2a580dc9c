"""What the coordinators hand out: frozen values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field

from cordon.asyncfl.divergence import Divergence
from cordon.params import Vector


@dataclass(frozen=True)
class Ticket:
    """Leave for ``site`` to train one round from ``model`` (d,): that is ``version``, and its chain head ``head``."""

    id: str
    site: str
    version: int
    head: str
    issued_at: float
    model: Vector = field(repr=False, compare=False)


@dataclass(frozen=True)
class Accepted:
    """What is said of an update that counts. ``norm`` (L2) is None where the update stays with its site (masked)."""

    staleness: int
    norm: float | None = None


@dataclass(frozen=True)
class Cohort:
    """Sites that begin one secure aggregation, sorted; ``taus``, in the same order, count from ``version`` (masked).

    ``group``: index of the whole group that it is, None in sum mode.
    """

    id: str
    group: int | None
    sites: tuple[str, ...]
    version: int
    taus: tuple[int, ...]
    least: int
    formed_at: float


@dataclass(frozen=True)
class Version:
    """A new model: its number, whose updates made it (sorted), how stale each was, L2 norm of the step.

    ``groups`` whose means were mixed (masked groups); ``divergence`` None where nothing was mixed here (masked sum).
    """

    number: int
    sites: tuple[str, ...]
    staleness: tuple[int, ...]
    step_norm: float
    groups: tuple[int, ...] = ()
    divergence: Divergence | None = None
