"""DP-SGD of one round: what one patient can do, how much noise, who is sampled, and what NaN does not do."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cordon import models
from cordon.dp import noise
from cordon.dp.train import clip_update, train_round
from cordon.errors import CordonError, DataError
from cordon.job import DPPlan

PLAN = DPPlan(
    noise_multiplier=2.0,
    sampling_rate=0.5,
    steps=1,
    clip_norm=1.0,
    expected_batch_size=20.0,
    delta=1e-5,
    unit="patient",
)
FEATURES = 30


def plan(**changes: Any) -> DPPlan:
    return msgspec.structs.replace(PLAN, **changes)


def net(**args: Any) -> Any:
    module = models.build("FullyConnectedNet", args, FEATURES)
    models.set_vector(module, models.initial_vector("FullyConnectedNet", args, FEATURES, 0))
    return module


def patients(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.float32)


def rounds(n: int, p: DPPlan, lr: float, count: int, features: int = FEATURES) -> np.ndarray:
    """(count, d): deltas of ``count`` rounds over ``n`` patients without any signal (x = 0, prediction = label)."""
    module = models.build("FullyConnectedNet", {}, features)
    start = np.zeros(models.layout_of(module).size, np.float32)
    start[0] = -100.0  # output.bias: probability 0 for everybody, so a label of 0 gives no gradient
    models.set_vector(module, start)
    x, y = np.zeros((n, features), np.float32), np.zeros(n, np.float32)
    return np.stack([train_round(module, x, y, p, lr, unsafe_seed=seed) for seed in range(count)])


def test_noise_is_sigma_c_over_expected_batch_times_lr() -> None:
    p = plan(noise_multiplier=3.0, clip_norm=0.5, expected_batch_size=10.0)
    draws = rounds(40, p, lr=0.2, count=10, features=2000)
    expected = 0.2 * 3.0 * 0.5 / 10.0
    assert draws.std() == pytest.approx(expected, rel=0.03)  # 20010 draws: standard error 0.5 %
    assert abs(draws.mean()) < 5 * expected / np.sqrt(draws.size)


@pytest.mark.parametrize("n", [0, 1, 127, 128, 500])
def test_noise_does_not_tell_how_many_patients(n: int) -> None:
    """Opacus issue 819: there the normaliser int(n q) and q = 1/len(loader) gave 127 and 128 patients away."""
    p = plan(noise_multiplier=5.0, expected_batch_size=32.0, sampling_rate=0.25)
    draws = rounds(n, p, lr=1.0, count=4, features=2000)
    assert draws.std() == pytest.approx(5.0 / 32.0, rel=0.04)  # 8004 draws: standard error 0.8 %
    assert np.array_equal(draws, rounds(64, p, lr=1.0, count=4, features=2000))  # no function of the size at all


def test_steps_add_up() -> None:
    draws = rounds(10, plan(steps=9), lr=1.0, count=3, features=2000)
    assert draws.std() == pytest.approx(3 * 2.0 / 20.0, rel=0.05)


def test_one_patient_moves_a_step_by_at_most_the_clip() -> None:
    x, y = patients(40)
    x *= 1000.0  # gradients far over the clip
    p = plan(noise_multiplier=1e-9, sampling_rate=1.0, clip_norm=0.7, expected_batch_size=20.0)
    whole = train_round(net(), x, y, p, 0.5, unsafe_seed=1)
    for without in (0, 7, 39):
        rest = np.delete(np.arange(40), without)
        other = train_round(net(), x[rest], y[rest], p, 0.5, unsafe_seed=1)
        assert np.linalg.norm(whole - other) <= 0.5 * 0.7 / 20.0 * (1 + 1e-4)
    assert np.linalg.norm(whole) > 2 * 0.5 * 0.7 / 20.0  # the bound is one patient's, not that of the sum


def test_small_gradients_are_not_clipped_and_the_step_is_the_gradient() -> None:
    x, y = patients(40)
    module = net()
    p = plan(noise_multiplier=1e-9, sampling_rate=1.0, clip_norm=1e3, expected_batch_size=8.0)
    delta = train_round(module, x, y, p, 0.5, unsafe_seed=1)
    parameters = models.layout_of(module).unflatten(models.get_vector(module))
    logits = x @ parameters["output.weight"][0] + parameters["output.bias"]
    residual = 1 / (1 + np.exp(-logits)) - y
    gradient = np.concatenate([[residual.sum()], residual @ x])
    assert np.allclose(delta, -0.5 * gradient / 8.0, atol=1e-5)


def test_sampling_is_poisson_of_the_plan_s_rate() -> None:
    """With unit gradients on the bias alone the delta counts who was drawn: mean n q, variance n q (1 - q)."""
    module = models.build("FullyConnectedNet", {}, 1)
    models.set_vector(module, np.array([-100.0, 0.0], np.float32))  # probability 0; label 1: gradient -1 on the bias
    n, q, count = 50, 0.3, 400
    x, y = np.zeros((n, 1), np.float32), np.ones(n, np.float32)
    p = plan(noise_multiplier=1e-9, sampling_rate=q, expected_batch_size=1.0)
    drawn = np.array([train_round(module, x, y, p, 1.0, unsafe_seed=seed)[0] for seed in range(count)])
    assert np.allclose(drawn, drawn.round(), atol=1e-2)
    assert drawn.mean() == pytest.approx(n * q, abs=5 * np.sqrt(n * q * (1 - q) / count))
    assert drawn.var() == pytest.approx(n * q * (1 - q), rel=0.35)  # a fixed-size sampler has variance 0
    assert len(set(drawn.round())) > 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e20])
@pytest.mark.parametrize("hidden", [[], [4]])
def test_one_bad_row_moves_a_step_by_no_more_than_any_other(value: float, hidden: list[int]) -> None:
    x, y = patients(20)
    p = plan(sampling_rate=1.0)
    without = train_round(net(hidden_channels=hidden), x[1:], y[1:], p, 0.5, unsafe_seed=3)
    x[0] = value
    bad = train_round(net(hidden_channels=hidden), x, y, p, 0.5, unsafe_seed=3)
    assert np.isfinite(bad).all()
    assert np.linalg.norm(bad - without) <= 0.5 * p.clip_norm / p.expected_batch_size * (1 + 1e-4)


@pytest.mark.parametrize("hidden", [[], [4]])
def test_one_nan_counts_as_nobody(hidden: list[int]) -> None:
    x, y = patients(20)
    p = plan(sampling_rate=1.0, steps=3)
    without = train_round(net(hidden_channels=hidden), x[1:], y[1:], p, 0.5, unsafe_seed=3)
    x[0, 7] = np.nan
    bad = train_round(net(hidden_channels=hidden), x, y, p, 0.5, unsafe_seed=3)
    assert np.allclose(bad, without, atol=1e-6)


def test_all_rows_bad_still_gives_the_noise() -> None:
    x, y = patients(20)
    x[:] = np.nan
    delta = train_round(net(), x, y, plan(), 0.5)
    assert np.isfinite(delta).all()
    assert np.count_nonzero(delta) == len(delta)


def test_an_empty_site_gives_noise_of_the_same_kind() -> None:
    x, y = patients(0)
    delta = train_round(net(), x, y, plan(steps=2), 0.5)
    assert np.count_nonzero(delta) == len(delta)


def test_without_a_seed_no_two_rounds_are_alike_whatever_the_global_seeds() -> None:
    import torch

    x, y = patients(20)
    deltas = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        deltas.append(train_round(net(), x, y, plan(), 0.5))
    assert not np.array_equal(deltas[0], deltas[1])


def test_a_seed_repeats_and_all_of_its_bits_count() -> None:
    x, y = patients(20)
    first = train_round(net(), x, y, plan(), 0.5, unsafe_seed=5)
    assert np.array_equal(first, train_round(net(), x, y, plan(), 0.5, unsafe_seed=5))
    # torch's own CPU generator would give the same noise for both
    assert not np.array_equal(first, train_round(net(), x, y, plan(), 0.5, unsafe_seed=5 + 2**32))


def test_os_entropy_streams_differ() -> None:
    assert len({stream.random() for _ in range(50) for stream in noise.streams()}) == 100


def test_module_is_left_as_it_was() -> None:
    module = net(hidden_channels=[3])
    before, hooks = models.get_vector(module), len(module._forward_hooks)
    train_round(module, *patients(20), plan(steps=3), 0.5)
    assert np.array_equal(models.get_vector(module), before)
    assert len(module._forward_hooks) == hooks


def test_stop_is_asked_between_steps_only_and_nothing_partial_comes_out() -> None:
    asked = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(CordonError, match="after 3 of 10 steps"):
        train_round(net(), *patients(20), plan(steps=10), 0.5, should_stop=should_stop)
    assert len(asked) == 4


def test_labels_must_fit_the_rows() -> None:
    x, y = patients(20)
    with pytest.raises(DataError, match="20"):
        train_round(net(), x, y[:-1], plan(), 0.5)


def test_it_learns() -> None:
    x, y = patients(200)
    module = net()
    w = models.get_vector(module)
    delta = train_round(
        module, x, y, plan(noise_multiplier=1.0, steps=20, expected_batch_size=100.0), 1.0, unsafe_seed=0
    )
    models.set_vector(module, w + delta)
    layout = models.layout_of(module).unflatten(w + delta)
    right = ((x @ layout["output.weight"][0] + layout["output.bias"] > 0) == (y > 0.5)).mean()
    assert right > 0.85


vectors = arrays(np.float32, st.integers(1, 20), elements=st.floats(-1e6, 1e6, width=32))


@given(vectors, st.floats(1e-3, 1e3))
def test_clip_update_bounds_the_norm_and_keeps_the_direction(delta: np.ndarray, bound: float) -> None:
    clipped = clip_update(delta, bound)
    norm = np.linalg.norm(delta.astype(np.float64))
    assert clipped.dtype == np.float32
    assert np.linalg.norm(clipped.astype(np.float64)) <= bound * (1 + 1e-5)
    if norm <= bound:
        assert np.array_equal(clipped, delta)
    else:
        assert np.allclose(clipped, delta * (bound / norm), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e10, 1e18, 3e37])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e3])
def test_one_patient_counts_for_no_more_than_the_clip_norm_at_any_scale(scale, clip_norm):
    """Float32 norms and factors would round at the edges; the noise is made for exactly C."""
    module = models.build("FullyConnectedNet", {"hidden_channels": []}, 30)
    models.set_vector(module, np.zeros(31, np.float32))
    plan = DPPlan(
        noise_multiplier=1e-3,
        sampling_rate=1.0,
        steps=1,
        clip_norm=clip_norm,
        expected_batch_size=1.0,
        delta=1e-5,
        unit="patient",
    )
    x = np.full((1, 30), scale, np.float32)
    delta = train_round(module, x, np.ones(1, np.float32), plan, 1.0, unsafe_seed=0)
    noise = 1e-3 * clip_norm * 8  # norm of 31 draws of sigma C: about 5.6, never over 8
    assert np.linalg.norm(delta.astype(np.float64)) <= clip_norm * (1 + 1e-5) + noise
