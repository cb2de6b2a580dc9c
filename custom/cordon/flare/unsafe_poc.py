"""Misbehaviour of a POC site, on purpose: what its policy's ``unsafe_poc`` section asks for.

It shows what the federation does about a slow or a malicious hospital. ``cordon.site.policy.judge`` refuses a policy
with that section outside profile ``poc``, and production images don't contain this module.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cordon.params import Vector
from cordon.site.policy import UnsafePoc


def labels(section: UnsafePoc, y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Labels (n,) as the site trains on them: inverted by a label flipper."""
    return (1.0 - y).astype(np.float32) if section.flip_labels else y


def update(section: UnsafePoc, delta: Vector) -> Vector:
    """The update (d,) as the site sends it: scaled after the clip, as only a changed program would."""
    return (delta * np.float32(section.scale_update)).astype(np.float32)


def within(delta: Vector, bound: float) -> Vector:
    """The update (d,) with every coordinate within ``bound``: all that masking itself asks for. A liar sees to it."""
    return np.clip(delta, -bound, bound).astype(np.float32)
