"""Steps before a rule and the rule, in one go; and the check of both before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cordon.errors import ConfigError
from cordon.robust.mixing import PRE, PreStep
from cordon.robust.points import Array, Points
from cordon.robust.rules import MIN_SITES, RULES, Outcome, Rule

Args = Mapping[str, Any]
Steps = Sequence[tuple[str, Args]]


def aggregate(
    updates: Array | Sequence[Array],
    weights: Array | Sequence[float],
    rule: str,
    rule_args: Args | None = None,
    pre: Steps = (),
    state: Array | None = None,
    seed: int = 0,
) -> Outcome:
    """``rule`` over the rows after the steps ``pre``.

    Args:
        updates: (n, d) or n rows (d,), float32 or float64; one row per distinct site (or group of sites).
        weights: (n,) public weights > 0.
        rule, rule_args: a name of ``RULES`` and its arguments.
        pre: (name of ``PRE``, its arguments), in this order.
        state: for ``centered_clipping`` the ``step`` of the Outcome before (None at first); others ignore it.
        seed: of bucketing, where its arguments have none; not known before the rows are fixed, another one each time.

    Raises:
        ConfigError: rows, weights or arguments that don't fit; NaN or infinity in a row.
    """
    points = Points(updates, weights)
    for name, args in pre:
        args = {"seed": seed} | dict(args) if "seed" in _step(name).takes else args
        points = _step(name).apply(points, args)
    chosen, args = _rule(rule), dict(rule_args or {})
    if "state" in args:
        raise ConfigError(f"rule {rule}: state is no argument of a job; it is handed over from one step to the next")
    if chosen.takes_state:
        args["state"] = state
    return chosen.apply(points, args)


def check(rule: str, rule_args: Args | None, pre: Steps, n: int, *, sealed: bool, f: int | None = None) -> None:
    """Refuse what cannot work with ``n`` rows, before training.

    Args:
        sealed: rows are single sites' updates, and the step is released: every coordinate of it must mix at least three
            distinct sites.
        f: liars that the job declares; the rule must bear as many. None: the job declares none.

    Raises:
        ConfigError: unknown rule, step or argument; arguments out of range; too many liars for n; fewer than three
            sites mixed. With the numbers.
    """
    chosen, args, rows = _rule(rule), dict(rule_args or {}), n
    stages = []
    for name, step_args in pre:
        step = _step(name)
        step.check_names(step_args)
        stages.append((step, rows, step_args))
        rows = step.rows(rows, step_args)
    aggregate(np.zeros((n, 1)), np.ones(n), rule, args, pre)  # one place judges arguments: where they are used
    # No step makes liars fewer: steps and rule must each bear as many among the rows that reach them.
    bears = min([chosen.breakdown(rows, args), *(step.bears(before, own) for step, before, own in stages)])
    if f is not None and f > bears:
        raise ConfigError(f"{_chain(rule, pre)}: bears {bears} liars among {rows} rows, the job declares {f}")
    if sealed:
        mixed = chosen.keeps(rows, args)
        for step, before, step_args in reversed(stages):
            mixed = step.mixes(before, mixed, step_args)
        if mixed < MIN_SITES:
            raise ConfigError(
                f"{_chain(rule, pre)}: with {n} sites a coordinate of the released step may mix {mixed} of them, "
                f"fewer than {MIN_SITES}: that would show a hospital's update"
            )


def _chain(rule: str, pre: Steps) -> str:
    return " -> ".join([*(name for name, _ in pre), rule])


def _rule(name: str) -> Rule:
    if name not in RULES:
        raise ConfigError(f"no rule {name!r}; there are {', '.join(RULES)}")
    return RULES[name]


def _step(name: str) -> PreStep:
    if name not in PRE:
        raise ConfigError(f"no pre-aggregation {name!r}; there are {', '.join(PRE)}")
    return PRE[name]
