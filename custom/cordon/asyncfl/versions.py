"""The versions of a job's model, one after another, and the chain of their digests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cordon.asyncfl.divergence import CHUNK, Divergence, measure, norm
from cordon.asyncfl.server_opt import make
from cordon.errors import ConfigError
from cordon.job import ServerOpt
from cordon.messages import chain_head, pack, sha256
from cordon.params import Vector


class Outcome(Protocol):
    """What an aggregation gives: the aggregate ``step`` (d,), and ``shares`` (n,) in 0..1: the influence of each row, 0
    where it was dropped, 1 where it counts as its weight says."""

    @property
    def step(self) -> NDArray[Any]: ...
    @property
    def shares(self) -> NDArray[Any]: ...


Rows = Sequence[NDArray[Any]]
Aggregator = Callable[[Rows, NDArray[np.float64]], Outcome]
"""(rows, n of (d,); their weights p (n,), not normalised) -> Outcome: ``robust.aggregate`` with a job's arguments."""


@dataclass(frozen=True)
class Plain:
    """An ``Outcome`` where every row counts by its weight."""

    step: NDArray[Any]
    shares: NDArray[Any]


def plain(rule: Callable[..., NDArray[Any]], **args: Any) -> Aggregator:
    """An aggregation from a function R(rows, weights, **args) -> (d,) that tells no shares: every row counts."""

    def aggregate(rows: Rows, weights: NDArray[np.float64]) -> Outcome:
        return Plain(rule(rows, weights, **args), np.ones(len(rows)))

    return aggregate


class Versions:
    """Version 0 is ``initial``; each further one adds the server optimiser's step on an aggregate.

    Attributes:
        number: of the newest version.
        model: (d,) float32, the newest; each version is an array of its own, so that open tickets keep theirs.
        links: digest of each version's packed model.
        head: chain head over ``links``.
    """

    def __init__(self, initial: Vector, server_opt: ServerOpt, rule: Aggregator | None) -> None:
        if initial.ndim != 1 or not np.isfinite(initial).all():
            raise ConfigError("the first model must be a finite vector")
        self.number = 0
        self.model: Vector = initial.astype(np.float32)
        self.links = [sha256(pack("w", self.model))]
        self.head = chain_head("", 0, self.links[0])
        self._rule = rule
        self._optimizer = make(server_opt)

    def mix(self, rows: Rows, weights: Sequence[float], names: Sequence[str]) -> tuple[NDArray[Any], Divergence]:
        """The aggregate (d,) of ``rows`` (n of (d,), in an order that arrival did not make), and their spread. To be
        ``add``-ed: the caller can let go of the rows before."""
        if self._rule is None:
            raise ConfigError("this job mixes no rows")
        outcome = self._rule(rows, np.array(weights, dtype=np.float64))
        return outcome.step, measure(rows, outcome.step, outcome.shares, names)

    def add(self, aggregate: NDArray[Any]) -> float:
        """Make a version from one aggregate (d,); the L2 norm of the step."""
        if aggregate.shape != self.model.shape:
            raise ConfigError(f"want an aggregate {self.model.shape}, got {aggregate.shape}")
        step = self._optimizer.step(aggregate)
        model = np.empty_like(self.model)
        for at in range(0, len(model), CHUNK):
            model[at : at + CHUNK] = self.model[at : at + CHUNK] + step[at : at + CHUNK]
        self.model = model
        self.number += 1
        self.links.append(sha256(pack("w", model)))
        self.head = chain_head(self.head, self.number, self.links[-1])
        return norm(step)
