"""Server optimisers against their papers' formulas, written out by hand, and against torch's where it has them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cordon.asyncfl.divergence import CHUNK
from cordon.asyncfl.server_opt import make
from cordon.errors import ConfigError
from cordon.job import ServerOpt

sequences = st.lists(arrays(np.float64, 3, elements=st.floats(-10, 10)), min_size=1, max_size=6)


ALL = ["FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"]


def args(name: str, **changes: float) -> ServerOpt:
    return ServerOpt(**{"algorithm": name, "lr": 0.3, "beta1": 0.8, "beta2": 0.9, "tau": 0.01, **changes})


@given(sequences)
def test_fedavg_is_lr_times_the_aggregate_and_has_no_memory(updates: list[np.ndarray]) -> None:
    optimizer = make(args("FedAvg"))
    for update in updates:
        assert np.allclose(optimizer.step(update), 0.3 * update)


@settings(deadline=None)
@given(sequences, st.floats(0, 0.99))
def test_fedavgm_is_momentum_without_dampening_or_nesterov(updates: list[np.ndarray], beta: float) -> None:
    """Hsu et al. 2019, section 3.3; torch's SGD(momentum=beta) on the negative update is another account of it."""
    optimizer, m = make(args("FedAvgM", momentum=beta)), np.zeros(3)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([w], lr=0.3, momentum=beta)
    total = np.zeros(3)
    for update in updates:
        step = optimizer.step(update)
        m = beta * m + update
        assert np.allclose(step, 0.3 * m)
        total += step
        w.grad = torch.from_numpy(-update.copy())
        sgd.step()
        assert np.allclose(total, w.detach().numpy())


@settings(deadline=None)
@given(sequences)
def test_corrected_fedadam_is_adam_of_kingma_and_ba(updates: list[np.ndarray]) -> None:
    """Their Algorithm 1, as torch has it, on the negative update."""
    optimizer = make(args("FedAdam", bias_correction=True))
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w], lr=0.3, betas=(0.8, 0.9), eps=0.01)
    total = np.zeros(3)
    for update in updates:
        total += optimizer.step(update)
        w.grad = torch.from_numpy(-update.copy())
        adam.step()
        assert np.allclose(total, w.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_the_correction_makes_the_first_step_the_full_one() -> None:
    """Uncorrected, m is a fifth of a fresh aggregate and v nearly a tenth of its square."""
    a = np.full(3, 5.0)
    assert np.allclose(make(args("FedAdam", bias_correction=True)).step(a), 0.3 * 5.0 / (5.0 + 0.01))
    assert np.allclose(make(args("FedAdam")).step(a), 0.3 * 1.0 / (np.sqrt(0.9e-4 + 2.5) + 0.01))


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdagrad", "FedYogi"])
def test_a_correction_that_no_paper_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no correction is defined for {name}"):
        args(name, bias_correction=True)


@pytest.mark.parametrize("name", ALL)
def test_a_long_vector_is_stepped_like_its_parts(name: str) -> None:
    """The vector is worked through in chunks; every coordinate has its own state."""
    rng = np.random.default_rng(0)
    long, short = make(args(name)), make(args(name))
    last = slice(CHUNK - 3, CHUNK + 5)
    for _ in range(3):
        update = rng.normal(size=2 * CHUNK + 5).astype(np.float32)
        assert np.array_equal(long.step(update)[last], short.step(update[last]))


@pytest.mark.parametrize("name", ["FedAdagrad", "FedAdam", "FedYogi"])
@given(updates=sequences)
def test_adaptive_ones_follow_the_paper(name: str, updates: list[np.ndarray]) -> None:
    optimizer, m, v = make(args(name)), [0.0] * 3, [0.01**2] * 3
    for update in updates:
        step = optimizer.step(update)
        for i, a in enumerate(update.tolist()):
            m[i] = 0.8 * m[i] + 0.2 * a
            if name == "FedAdam":
                v[i] = 0.9 * v[i] + 0.1 * a**2
            elif name == "FedAdagrad":
                v[i] = v[i] + a**2
            else:
                sign = (v[i] > a**2) - (v[i] < a**2)
                v[i] = v[i] - 0.1 * a**2 * sign
            assert step[i] == pytest.approx(0.3 * m[i] / (v[i] ** 0.5 + 0.01), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
@given(updates=sequences)
def test_step_is_bounded_after_the_optimiser(name: str, updates: list[np.ndarray]) -> None:
    free, bounded = make(args(name)), make(args(name, max_step=0.05))
    for update in updates:
        one, two = free.step(update), bounded.step(update)
        assert np.linalg.norm(two) <= 0.05 * (1 + 1e-9)
        if np.linalg.norm(one) <= 0.05:
            assert np.array_equal(one, two)
        else:
            assert np.allclose(one * (0.05 / np.linalg.norm(one)), two)


@pytest.mark.parametrize("name", ALL)
def test_a_nan_is_refused_and_leaves_the_state_alone(name: str) -> None:
    spared, struck = make(args(name)), make(args(name))
    spared.step(np.ones(2))
    struck.step(np.ones(2))
    with pytest.raises(ConfigError, match="finite"):
        struck.step(np.array([1.0, np.nan]))
    assert np.array_equal(struck.step(np.ones(2)), spared.step(np.ones(2)))
