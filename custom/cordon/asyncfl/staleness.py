"""How much a late update counts."""

from __future__ import annotations

import math

from cordon.errors import ConfigError


def weight(tau: int) -> float:
    """s(tau) = 1 / sqrt(1 + tau): 1 when fresh. FedBuff, Nguyen et al. 2022, section 5 (polynomial, exponent 1/2).

    Args:
        tau: how many versions the global model moved since the update's base, >= 0.

    >>> [round(weight(tau), 3) for tau in range(4)]
    [1.0, 0.707, 0.577, 0.5]
    """
    if tau < 0:
        raise ConfigError(f"staleness cannot be negative, got {tau}")
    return 1.0 / math.sqrt(1.0 + tau)
