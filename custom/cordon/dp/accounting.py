"""What a sequence of DP events costs, by Google's dp-accounting.

PLD (Koskela et al. 2020; pessimistic, discretised at 1e-3 or finer) is the tight figure of a plan fixed in advance; RDP
(Mironov 2017; Mironov, Talwar, Zhang 2019) is looser and is what a site's policy limits. The two are independent
implementations of upper bounds, so PLD above RDP means that one of them is wrong.

An event ``distributed_discrete_gaussian`` is one opened masked sum (``cordon.dp.distributed``): accounted as the
Gaussian of its noise multiplier, at a delta from which ``RESERVE`` is kept back for the difference between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import dp_accounting
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from cordon.errors import ConfigError, PrivacyError
from cordon.messages import DPEvent

Accountant = Literal["pld", "rdp"]
Adjacency = Literal["add_or_remove_one", "replace_one"]
Counts = tuple[tuple[tuple[float, float], int], ...]
"""((noise multiplier, sampling rate), steps), sorted."""

RESERVE = 1e-3
"""The part of delta that is kept for what discrete noise differs from continuous; ``SharedNoise.epsilon`` checks it."""

_RELATIONS = {
    "add_or_remove_one": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace_one": NeighboringRelation.REPLACE_ONE,
}
_INTERVALS = (1e-3, 1e-4, 1e-5)  # discretisation of the privacy loss
# Whole orders only: for them the moments have a finite closed form (Mironov, Talwar, Zhang 2019, section 3.3).
ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)


def epsilon(
    events: Sequence[tuple[DPEvent, int]],
    delta: float,
    *,
    accountant: Accountant = "pld",
    adjacency: Adjacency = "add_or_remove_one",
) -> float:
    """Epsilon of all ``events`` together at ``delta``.

    Args:
        events: (event, how many rounds of it); one round of an event has ``event.steps`` steps, a sum has one. The
            figure of sums holds if their distance from Gaussians fits ``RESERVE``, which depends on the ring and not on
            the event: whoever draws the noise checks that (``SharedNoise.epsilon``).
        delta: in (0, 1).
        accountant: ``pld`` or ``rdp``.
        adjacency: ``add_or_remove_one`` row, or ``replace_one`` (PLD only: dp-accounting's RDP has none for Poisson
            sampling).

    Raises:
        ConfigError: delta, a count or a parameter out of range, or RDP asked for under replace-one.
        PrivacyError: PLD comes out above RDP.

    An oncology-like plan, 12 rounds of 8 steps:

    >>> event = DPEvent(mechanism="poisson_subsampled_gaussian", noise_multiplier=3.0, sampling_rate=0.25, steps=8,
    ...                 clip_norm=1.0, unit="patient")
    >>> [f"{epsilon([(event, 12)], 1e-5, accountant=name):.2f}" for name in ("pld", "rdp")]
    ['3.73', '4.08']
    >>> f"{epsilon([(event, 12)], 1e-5, adjacency='replace_one'):.2f}"
    '7.73'
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta must lie in (0, 1), got {delta}")
    counts: dict[tuple[float, float], int] = {}
    reserved = 0.0
    for event, rounds in events:
        if rounds < 0 or event.steps < 1 or not event.noise_multiplier > 0 or not 0 < event.sampling_rate <= 1:
            raise ConfigError(f"not an event that can be accounted: {rounds} rounds of {event}")
        if event.mechanism == "distributed_discrete_gaussian":
            if event.steps != 1:
                raise ConfigError(f"an opened sum is one step, the event has {event.steps}")
            reserved = RESERVE
        if rounds:
            key = (event.noise_multiplier, event.sampling_rate)
            counts[key] = counts.get(key, 0) + rounds * event.steps
    return _epsilon(tuple(sorted(counts.items())), delta * (1 - reserved), accountant, adjacency)


@lru_cache(maxsize=1024)
def _epsilon(counts: Counts, delta: float, accountant: Accountant, adjacency: Adjacency) -> float:
    if not counts:
        return 0.0
    relation = _RELATIONS[adjacency]
    if accountant == "rdp":
        if adjacency != "add_or_remove_one":
            raise ConfigError("RDP is offered for add_or_remove_one only; use pld for replace_one")
        return _compose(RdpAccountant(ORDERS, relation), counts, delta)
    # The grid's error grows with the number of steps. RDP has no grid and bounds add/remove, hence shows a grid too
    # coarse (for replace-one, at least twice as hard to hide, the same grid will do).
    bound = _epsilon(counts, delta, "rdp", "add_or_remove_one")
    for interval in _INTERVALS:
        if _compose(PLDAccountant(_RELATIONS["add_or_remove_one"], interval), counts, delta) <= bound:
            return _compose(PLDAccountant(relation, interval), counts, delta)
    raise PrivacyError(f"accountants disagree: PLD is above RDP ({bound:.4f}) at delta {delta:g} for {counts}")


def _compose(account: dp_accounting.PrivacyAccountant, counts: Counts, delta: float) -> float:
    for (sigma, rate), steps in counts:
        account.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)), steps)
    return float(account.get_epsilon(delta))
