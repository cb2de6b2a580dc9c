"""What the coordinator hands out: frozen values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ticket:
    """Leave for ``site`` to train one round from model ``version``, whose chain head is ``head``."""

    id: str
    site: str
    version: int
    head: str
    issued_at: float


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
