"""Server optimisers on the aggregated update a, with eta = lr (Reddi et al. 2021, Algorithm 2 and section 5)::

    FedAvg      step = eta a
    FedAvgM     m = beta m + a;                                                      step = eta m
    FedAdagrad  m = b1 m + (1-b1) a;  v = v + a^2;                                   step = eta m / (sqrt(v) + tau)
    FedAdam     m = b1 m + (1-b1) a;  v = b2 v + (1-b2) a^2;                         step = eta m / (sqrt(v) + tau)
    FedYogi     m = b1 m + (1-b1) a;  v = v - (1-b2) a^2 sign(v - a^2);              step = eta m / (sqrt(v) + tau)

FedAvgM is Hsu et al. 2019, section 3.3 (beta = ``momentum``, no Nesterov). m starts at 0 and v at tau^2. Algorithm 2
has no bias correction, nor have AdaGrad (Duchi et al. 2011) and Yogi (Zaheer et al. 2018, Algorithm 2). Adam has one
(Kingma and Ba 2015, section 3): with ``bias_correction``, FedAdam's v starts at 0, and m / (1 - b1^t), v / (1 - b2^t)
take the place of m, v in step t. The others refuse it: AdaGrad's and Yogi's v and FedAvgM's m are no averages from 0.

The step is then scaled down to an L2 norm of at most ``max_step``: one bad aggregate must not throw the model away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cordon.asyncfl.divergence import CHUNK, norm
from cordon.errors import ConfigError
from cordon.job import ServerOpt

Floats = NDArray[np.float64]


class Optimizer:
    """One server optimiser with its state (m, v: (d,) float64, None before the first step, where it has any)."""

    def __init__(self, args: ServerOpt) -> None:
        self._args = args
        self._steps = 0
        self._size: int | None = None
        self._m: Floats | None = None
        self._v: Floats | None = None

    def step(self, aggregate: NDArray[Any]) -> Floats:
        """The change of the model for the (d,) ``aggregate``; updates the state.

        Raises:
            ConfigError: not finite, or of another size than before.
        """
        a = np.asarray(aggregate)
        if a.ndim != 1 or not np.isfinite(a).all() or self._size not in (None, len(a)):
            raise ConfigError(f"server optimiser wants a finite (d,) vector of constant size, got {a.shape}")
        if self._size is None:
            self._start(len(a))
        self._steps += 1
        step = np.empty(len(a), np.float64)
        for at in range(0, len(a), CHUNK):  # so that nothing but the state and the step is as large as the model
            part = slice(at, at + CHUNK)
            step[part] = self._args.lr * self._moved(a[part].astype(np.float64), part)
        return self._bounded(step)

    def _start(self, size: int) -> None:
        self._size = size
        if self._args.algorithm != "FedAvg":
            self._m = np.zeros(size)
        if self._args.algorithm in ("FedAdagrad", "FedAdam", "FedYogi"):
            self._v = np.full(size, 0.0 if self._args.bias_correction else self._args.tau**2)

    def _moved(self, a: Floats, part: slice) -> Floats:
        """The step of one part of the vector, before lr; updates that part of the state."""
        if self._m is None:
            return a
        args, m = self._args, self._m[part]
        if self._v is None:
            m *= args.momentum
            m += a
            return m
        v, square = self._v[part], a * a
        m *= args.beta1
        m += (1 - args.beta1) * a
        if args.algorithm == "FedAdagrad":
            v += square
        elif args.algorithm == "FedAdam":
            v *= args.beta2
            v += (1 - args.beta2) * square
        else:
            v -= (1 - args.beta2) * square * np.sign(v - square)
        if args.bias_correction:
            m = m / (1 - args.beta1**self._steps)
            v = v / (1 - args.beta2**self._steps)
        return np.asarray(m / (np.sqrt(v) + args.tau))

    def _bounded(self, step: Floats) -> Floats:
        bound = self._args.max_step
        if bound is not None and (length := norm(step)) > bound:
            step *= bound / length
        return step


def make(args: ServerOpt) -> Optimizer:
    """The optimiser that ``args`` describe, in its first state; ConfigError for a correction that it has not."""
    return Optimizer(args)
