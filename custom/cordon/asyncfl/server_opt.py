"""Server optimisers: Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2 (and its FedAvg baseline).

With a = the aggregated update, eta = lr::

    FedAvg   step = eta a
    FedAdam  m = b1 m + (1-b1) a;  v = b2 v + (1-b2) a^2;                    step = eta m / (sqrt(v) + tau)
    FedYogi  m = b1 m + (1-b1) a;  v = v - (1-b2) a^2 sign(v - a^2);         step = eta m / (sqrt(v) + tau)

with m = 0, v = tau^2 before the first step and no bias correction, as in the paper. The step is then scaled down to an
L2 norm of at most ``max_step``, so that one bad aggregate cannot throw the model away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cordon.errors import ConfigError
from cordon.job import ServerOpt

Floats = NDArray[np.float64]


class Optimizer:
    """One server optimiser with its state (m, v: (d,) float64, None before the first step)."""

    def __init__(self, args: ServerOpt) -> None:
        self._args = args
        self._m: Floats | None = None
        self._v: Floats | None = None

    def step(self, aggregate: NDArray[Any]) -> Floats:
        """The change of the model for the (d,) ``aggregate``; updates the state.

        Raises:
            ConfigError: not finite, or of another size than before.
        """
        a = np.asarray(aggregate, dtype=np.float64)
        if a.ndim != 1 or not np.isfinite(a).all() or (self._m is not None and a.shape != self._m.shape):
            raise ConfigError(f"server optimiser wants a finite (d,) vector of constant size, got {a.shape}")
        return self._bounded(self._args.lr * (a if self._args.algorithm == "FedAvg" else self._adaptive(a)))

    def _adaptive(self, a: Floats) -> Floats:
        b1, b2, tau = self._args.beta1, self._args.beta2, self._args.tau
        m = np.zeros_like(a) if self._m is None else self._m
        v = np.full_like(a, tau**2) if self._v is None else self._v
        square = a * a
        self._m = b1 * m + (1 - b1) * a
        if self._args.algorithm == "FedAdam":
            self._v = b2 * v + (1 - b2) * square
        else:
            self._v = v - (1 - b2) * square * np.sign(v - square)
        return np.asarray(self._m / (np.sqrt(self._v) + tau))

    def _bounded(self, step: Floats) -> Floats:
        bound, norm = self._args.max_step, float(np.linalg.norm(step))
        return step if bound is None or norm <= bound else step * (bound / norm)


def make(args: ServerOpt) -> Optimizer:
    """The optimiser that ``args`` describe, in its first state."""
    return Optimizer(args)
