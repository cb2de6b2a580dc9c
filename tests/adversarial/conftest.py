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
from fakes.hardware_federation import _hardware_kits, hardware, parents, vendors, wall

__all__ = [
    "_hardware_kits",
    "aggregate",
    "clock",
    "federate",
    "hand",
    "hardware",
    "kits",
    "made_five_kits",
    "made_kits",
    "made_nine_kits",
    "masked_kits",
    "parents",
    "remembered",
    "trained",
    "vendors",
    "wall",
]
