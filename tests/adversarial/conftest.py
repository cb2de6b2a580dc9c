"""Kits and a federation in one process."""

from fakes.fixtures import clock, federate, hand, kits, made_kits, remembered, trained

__all__ = ["clock", "federate", "hand", "kits", "made_kits", "remembered", "trained"]
