"""One round of DP-SGD (Abadi et al. 2016, Algorithm 1) with Opacus, patient = privacy unit.

For each of ``plan.steps`` steps, with q = sampling_rate, C = clip_norm, B = expected_batch_size::

    S       each patient enters independently with probability q               (Poisson sampling)
    g_i     gradient of patient i's loss, times min(1, C / |g_i|)              (0 if not finite)
    w       w - learning_rate * ( sum_{i in S} g_i + N(0, (sigma C)^2 I) ) / B

Every constant is public and none depends on how many patients the site has. An empty S takes its noisy step too.

Where the noise is shared out over a masked sum (``cordon.dp.distributed``), a round is one step without the noise:
``unnoised_step``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cordon.dp import noise
from cordon.errors import ConfigError, CordonError, DataError
from cordon.job import DPPlan
from cordon.models import get_vector, layout_of
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
        for p in self.params:
            _check_processed_flag(p.grad_sample)
        for p, total in zip(self.params, _clipped_sums(self.params, self.max_grad_norm), strict=True):
            clipped = total.to(p.dtype)
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped
            _mark_as_processed(p.grad_sample)

    def add_noise(self) -> None:
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            draw = self._source.standard_normal(p.summed_grad.shape)
            scaled = self.noise_multiplier * self.max_grad_norm * draw
            p.grad = (p.summed_grad + torch.from_numpy(scaled).to(p.summed_grad)).view_as(p)
            _mark_as_processed(p.summed_grad)


def _clipped_sums(parameters: Sequence[nn.Parameter], clip_norm: float) -> list[torch.Tensor]:
    """For each parameter the sum over patients of its clipped gradient, float64; ``grad_sample`` is Opacus'."""
    rows = [getattr(p, "grad_sample").double() for p in parameters]  # noqa: B009 (Opacus puts it there)
    squares = torch.stack([each.flatten(1).square().sum(dim=1) for each in rows]).sum(dim=0)
    # A norm that is not finite counts as zero: one NaN would make the sum NaN, with no noise that hides anything.
    factor = torch.where(torch.isfinite(squares), (clip_norm / squares.sqrt()).clamp(max=1.0), 0.0)
    return [torch.einsum("i,i...->...", factor, each.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)) for each in rows]


def _gradients(wrapped: GradSampleModule, x: Vector, y: Vector, chosen: NDArray[np.int64]) -> None:
    """Leave the gradient of each chosen patient's loss in the parameters' ``grad_sample``."""
    device = next(wrapped.parameters()).device
    # Opacus hooks every layer's backward pass; the first one only has a full one if its input wants a gradient.
    logits = wrapped(torch.from_numpy(x[chosen]).to(device).requires_grad_()).squeeze(1)
    target = torch.from_numpy(y[chosen]).to(device)
    torch.autograd.backward(binary_cross_entropy_with_logits(logits, target, reduction="sum"))


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
    _check_shapes(x, y)
    sampling, noises = noise.streams(unsafe_seed)
    work = copy.deepcopy(module).train()
    before = get_vector(work)
    wrapped = GradSampleModule(work, loss_reduction="sum")
    optimizer = _Optimizer(torch.optim.SGD(work.parameters(), lr=learning_rate), plan, noises)
    for step in range(plan.steps):
        if should_stop():
            raise CordonError(f"round stopped after {step} of {plan.steps} steps; all of it counts as spent")
        chosen = np.flatnonzero(sampling.random(len(y)) < plan.sampling_rate)
        _gradients(wrapped, x, y, chosen)
        optimizer.step()
        optimizer.zero_grad()
    return get_vector(work) - before


def unnoised_step(
    module: nn.Module,
    x: Vector,
    y: Vector,
    plan: DPPlan,
    learning_rate: float,
    *,
    unsafe_seed: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Vector:
    """One step WITHOUT its noise: never to be sealed, sent, logged or written; no privacy whatever by itself.

    It leaves the process in one way only: weighted, rounded into the ring, with the site's noise share of
    ``cordon.dp.distributed.SharedNoise.draw`` added and under the masks of ``cordon.secagg``. The same vector is masked
    once; only where the cohort ended before that, another cohort may have it.

    Args:
        plan: of one step; its noise multiplier is not used here.
        unsafe_seed: of the sampling; as in ``train_round``.
        should_stop: asked once, before the step.

    Returns:
        (d,) float32, -learning_rate * sum_{i in S} g_i / B in float64, rounded once. S and g_i as at the top of this
        module. Adding or removing a patient moves it by at most learning_rate * C / B, and by the rounding.

    Raises:
        ConfigError: the plan has more than one step: the second would start from a model that nothing hides.
        DataError: x and y do not fit each other.
        CordonError: stopped by ``should_stop``; the round counts as spent.
    """
    _check_shapes(x, y)
    if plan.steps != 1:
        raise ConfigError(f"noise that is shared out wants rounds of 1 step, the plan has {plan.steps}")
    if should_stop():
        raise CordonError("round stopped before its step; it counts as spent")
    sampling, _ = noise.streams(unsafe_seed)
    work = copy.deepcopy(module).train()
    layout = layout_of(work)
    names, parameters = zip(*work.named_parameters(), strict=True)
    chosen = np.flatnonzero(sampling.random(len(y)) < plan.sampling_rate)
    _gradients(GradSampleModule(work, loss_reduction="sum"), x, y, chosen)
    step = -learning_rate / plan.expected_batch_size
    sums = _clipped_sums(parameters, plan.clip_norm)
    return layout.flatten(
        {name: (step * total).cpu().numpy().astype(np.float32) for name, total in zip(names, sums, strict=True)}
    )


def _check_shapes(x: Vector, y: Vector) -> None:
    if x.ndim != 2 or y.shape != (x.shape[0],):
        raise DataError(f"want x (n, k) and y (n,), got {x.shape} and {y.shape}")


def clip_update(delta: Vector, norm_bound: float) -> Vector:
    """``delta`` (d,) float32 scaled down to an L2 norm of at most ``norm_bound``: post-processing, costs no privacy.

    >>> clip_update(np.array([3, 4], np.float32), 1.0).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    return delta if norm <= norm_bound else (delta * (norm_bound / norm)).astype(np.float32)
