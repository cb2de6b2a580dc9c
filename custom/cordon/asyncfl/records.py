"""What the coordinator hands out: frozen values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """What is said of an update that counts."""

    staleness: int
    norm: float


@dataclass(frozen=True)
class Version:
    """A new model: its number, whose updates made it (sorted), how stale each was, L2 norm of the step."""

    number: int
    sites: tuple[str, ...]
    staleness: tuple[int, ...]
    step_norm: float
