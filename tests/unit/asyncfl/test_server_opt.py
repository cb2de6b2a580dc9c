"""Server optimisers against Reddi et al. 2021, Algorithm 2, written out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cordon.asyncfl import staleness
from cordon.asyncfl.server_opt import make
from cordon.errors import ConfigError
from cordon.job import ServerOpt

sequences = st.lists(arrays(np.float64, 3, elements=st.floats(-10, 10)), min_size=1, max_size=6)


def args(name: str, **changes: float) -> ServerOpt:
    return ServerOpt(**{"algorithm": name, "lr": 0.3, "beta1": 0.8, "beta2": 0.9, "tau": 0.01, **changes})


@given(sequences)
def test_fedavg_is_lr_times_the_aggregate_and_has_no_memory(updates: list[np.ndarray]) -> None:
    optimizer = make(args("FedAvg"))
    for update in updates:
        assert np.allclose(optimizer.step(update), 0.3 * update)


@pytest.mark.parametrize("name", ["FedAdam", "FedYogi"])
@given(updates=sequences)
def test_adaptive_ones_follow_the_paper(name: str, updates: list[np.ndarray]) -> None:
    optimizer, m, v = make(args(name)), [0.0] * 3, [0.01**2] * 3
    for update in updates:
        step = optimizer.step(update)
        for i, a in enumerate(update.tolist()):
            m[i] = 0.8 * m[i] + 0.2 * a
            if name == "FedAdam":
                v[i] = 0.9 * v[i] + 0.1 * a**2
            else:
                sign = (v[i] > a**2) - (v[i] < a**2)
                v[i] = v[i] - 0.1 * a**2 * sign
            assert step[i] == pytest.approx(0.3 * m[i] / (v[i] ** 0.5 + 0.01), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam", "FedYogi"])
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


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam", "FedYogi"])
def test_a_nan_is_refused_and_leaves_the_state_alone(name: str) -> None:
    spared, struck = make(args(name)), make(args(name))
    spared.step(np.ones(2))
    struck.step(np.ones(2))
    with pytest.raises(ConfigError, match="finite"):
        struck.step(np.array([1.0, np.nan]))
    assert np.array_equal(struck.step(np.ones(2)), spared.step(np.ones(2)))


@given(st.integers(0, 10_000))
def test_staleness_weight_is_one_when_fresh_and_falls(tau: int) -> None:
    assert staleness.weight(0) == 1.0
    assert staleness.weight(tau) ** 2 * (1 + tau) == pytest.approx(1.0)
    assert staleness.weight(tau + 1) < staleness.weight(tau)


def test_negative_staleness_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        staleness.weight(-1)
