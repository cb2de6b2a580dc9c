"""How much a late update counts."""

from __future__ import annotations

from cordon.errors import ConfigError
from cordon.job import Staleness


def weight(tau: int, staleness: Staleness) -> float:
    """s(tau), 1 when fresh and never more. Xie et al. 2019, "Asynchronous Federated Optimization", section 5.2::

        constant    1
        polynomial  (1 + tau)^-a             a = 1/2 is FedBuff's (Nguyen et al. 2022, section 5)
        hinge       1 for tau <= b, then 1 / (a (tau - b) + 1)

    Args:
        tau: how many versions the global model moved since the update's base, >= 0.

    >>> [round(weight(tau, Staleness()), 3) for tau in range(4)]
    [1.0, 0.707, 0.577, 0.5]
    >>> [round(weight(tau, Staleness(function="hinge", a=1.0, b=2)), 3) for tau in range(5)]
    [1.0, 1.0, 1.0, 0.5, 0.333]
    """
    if tau < 0:
        raise ConfigError(f"staleness cannot be negative, got {tau}")
    if staleness.function == "constant" or tau == 0:
        return 1.0
    if staleness.function == "polynomial":
        return float((1.0 + tau) ** -staleness.a)
    return 1.0 if tau <= staleness.b else 1.0 / (staleness.a * (tau - staleness.b) + 1.0)
