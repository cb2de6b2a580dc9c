"""Kits and a federation in one process."""

from fakes.fixtures import clock, federate, hand, kits, made_kits, remembered, trained
from fakes.hardware_federation import _hardware_kits, hardware, parents, vendors, wall

__all__ = [
    "_hardware_kits",
    "clock",
    "federate",
    "hand",
    "hardware",
    "kits",
    "made_kits",
    "parents",
    "remembered",
    "trained",
    "vendors",
    "wall",
]
