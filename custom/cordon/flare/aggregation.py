"""The aggregation of a job's versions, as its controller arguments name it, for the state machines of ``asyncfl``."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cordon import robust
from cordon.job import ControllerArgs


class Aggregation:
    """One job's rule with the steps before it; keeps what the rule carries from version to version.

    Args:
        random: below its argument, for bucketing: drawn when the rows are fixed, so that no site can choose its bucket.

    Raises:
        ConfigError: what cannot work with a full buffer (``robust.check``).
    """

    def __init__(self, args: ControllerArgs, random: Callable[[int], int] = secrets.randbelow) -> None:
        groups = None if args.masked is None else args.masked.groups
        self._args, self._random = args, random
        self._steps = [(each.step, each.args) for each in args.pre_aggregation]
        self._state: NDArray[Any] | None = None
        liars = None if groups is None else groups.f
        robust.check(args.rule, args.rule_args, self._steps, args.buffer, sealed=args.privacy == "sealed", f=liars)

    def __call__(self, rows: Sequence[NDArray[Any]], weights: NDArray[np.float64]) -> robust.Outcome:
        outcome = robust.aggregate(
            rows, weights, self._args.rule, self._args.rule_args, self._steps, self._state, self._random(2**32)
        )
        self._state = outcome.step
        return outcome


def of(args: ControllerArgs) -> Aggregation:
    """The aggregation that ``args`` describe; ConfigError if it cannot work."""
    return Aggregation(args)
