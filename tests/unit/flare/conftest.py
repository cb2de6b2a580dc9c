"""Kits and a federation in one process."""

from fakes.fixtures import (
    aggregate,
    clock,
    federate,
    hand,
    kits,
    made_five_kits,
    made_kits,
    made_nine_kits,
    masked_kits,
    remembered,
    trained,
)

__all__ = [
    "aggregate",
    "clock",
    "federate",
    "hand",
    "kits",
    "made_five_kits",
    "made_kits",
    "made_nine_kits",
    "masked_kits",
    "remembered",
    "trained",
]
