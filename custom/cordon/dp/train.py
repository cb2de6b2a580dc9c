"""One round of DP-SGD (Abadi et al. 2016, Algorithm 1) with Opacus, patient = privacy unit.

For each of ``plan.steps`` steps, with q = sampling_rate, C = clip_norm, B = expected_batch_size::

    S       each patient enters independently with probability q               (Poisson sampling)
    g_i     gradient of patient i's loss, times min(1, C / |g_i|)              (0 if not finite)
    w       w - learning_rate * ( sum_{i in S} g_i + N(0, (sigma C)^2 I) ) / B

Every constant is public and none depends on how many patients the site has. An empty S takes its noisy step too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cordon.dp import noise
from cordon.errors import CordonError, DataError
from cordon.job import DPPlan
from cordon.models import get_vector
from cordon.params import Vector


class _Optimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no type hints
    """Opacus' optimiser; noise is drawn from ``source``, norms and clip factors are float64.

    In float32 a norm over many parameters comes out low, and a factor near the smallest float is rounded up: either
    lets a patient through at more than the bound C.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, plan: DPPlan, source: Generator) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=plan.expected_batch_size,
            loss_reduction="mean",
        )
        self._source = source

    def clip_and_accumulate(self) -> None:
        squares = sum(p.grad_sample.double().flatten(1).square().sum(dim=1) for p in self.params)
        # A norm that is not finite counts as zero: one NaN would make the sum NaN, with no noise that hides anything.
        factor = torch.where(torch.isfinite(squares), (self.max_grad_norm / squares.sqrt()).clamp(max=1.0), 0.0)
        for p in self.params:
            _check_processed_flag(p.grad_sample)
            rows = p.grad_sample.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            clipped = torch.einsum("i,i...->...", factor, rows).to(p.dtype)
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped
            _mark_as_processed(p.grad_sample)

    def add_noise(self) -> None:
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            draw = self._source.standard_normal(p.summed_grad.shape)
            scaled = self.noise_multiplier * self.max_grad_norm * draw
            p.grad = (p.summed_grad + torch.from_numpy(scaled).to(p.summed_grad)).view_as(p)
            _mark_as_processed(p.summed_grad)


def train_round(
    module: nn.Module,
    x: Vector,
    y: Vector,
    plan: DPPlan,
    learning_rate: float,
    *,
    unsafe_seed: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Vector:
    """The change of the parameters by one round on one site; ``module`` itself is left as it was.

    Args:
        module: the global model, float32, output (n, 1) logits.
        x: (n, k) float32, one row per patient, scaled by the contract's public constants.
        y: (n,) float32, 0 or 1.
        plan: the round's mechanism.
        learning_rate: of plain SGD, > 0.
        unsafe_seed: None draws from the operating system. A number makes sampling and noise repeatable, which
            voids the guarantee; tests and benches only.
        should_stop: asked before each step. A step once begun is finished: half a step is not what was accounted.

    Returns:
        (d,) float32, w_after - w_before. Not clipped as a whole: see ``clip_update``.

    Guarantee:
        ``plan.steps`` compositions of the Poisson-subsampled Gaussian with (sampling_rate, noise_multiplier) for
        adding or removing one row, whatever the rows hold, NaN and infinity included.

    Raises:
        DataError: x and y do not fit each other.
        CordonError: stopped by ``should_stop``; the whole round counts as spent.
    """
    if x.ndim != 2 or y.shape != (x.shape[0],):
        raise DataError(f"want x (n, k) and y (n,), got {x.shape} and {y.shape}")
    sampling, noises = noise.streams(unsafe_seed)
    work = copy.deepcopy(module).train()
    before = get_vector(work)
    device = next(work.parameters()).device
    wrapped = GradSampleModule(work, loss_reduction="sum")
    optimizer = _Optimizer(torch.optim.SGD(work.parameters(), lr=learning_rate), plan, noises)
    for step in range(plan.steps):
        if should_stop():
            raise CordonError(f"round stopped after {step} of {plan.steps} steps; all of it counts as spent")
        chosen = np.flatnonzero(sampling.random(len(y)) < plan.sampling_rate)
        # Opacus hooks every layer's backward pass; the first one only has a full one if its input wants a gradient.
        logits = wrapped(torch.from_numpy(x[chosen]).to(device).requires_grad_()).squeeze(1)
        target = torch.from_numpy(y[chosen]).to(device)
        torch.autograd.backward(binary_cross_entropy_with_logits(logits, target, reduction="sum"))
        optimizer.step()
        optimizer.zero_grad()
    return get_vector(work) - before


def clip_update(delta: Vector, norm_bound: float) -> Vector:
    """``delta`` (d,) float32 scaled down to an L2 norm of at most ``norm_bound``: post-processing, costs no privacy.

    >>> clip_update(np.array([3, 4], np.float32), 1.0).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    return delta if norm <= norm_bound else (delta * (norm_bound / norm)).astype(np.float32)
