"""Laws of the aggregation rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import trim_mean

from cordon.errors import ConfigError
from cordon.robust.rules import RULES, trimmed_mean, weighted_mean

values = st.floats(-1e3, 1e3, allow_subnormal=False)
CASES = [("weighted_mean", {}), ("trimmed_mean", {"f": 1.0}), ("trimmed_mean", {"fraction": 0.2})]


@st.composite
def buffers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n, d = draw(st.integers(5, 9)), draw(st.integers(1, 6))
    return draw(arrays(np.float64, (n, d), elements=values)), draw(arrays(np.float64, n, elements=st.floats(0.1, 5)))


@pytest.mark.parametrize(("name", "args"), CASES)
@given(buffer=buffers(), seed=st.integers(0, 1000))
def test_order_of_sites_does_not_matter(name: str, args: dict[str, float], buffer, seed: int) -> None:
    updates, weights = buffer
    order = np.random.default_rng(seed).permutation(len(weights))
    one, two = RULES[name](updates, weights, **args), RULES[name](updates[order], weights[order], **args)
    assert np.allclose(one, two, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("name", "args"), CASES)
@given(buffer=buffers())
def test_conservation_identical_updates_come_out_unchanged(name: str, args: dict[str, float], buffer) -> None:
    updates, weights = buffer
    same = np.repeat(updates[:1], len(weights), axis=0)
    assert np.allclose(RULES[name](same, weights, **args), updates[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "args"), CASES)
@given(buffer=buffers(), factor=st.floats(0.1, 100))
def test_only_ratios_of_weights_matter_and_the_result_scales(name, args, buffer, factor: float) -> None:
    updates, weights = buffer
    out = RULES[name](updates, weights, **args)
    assert np.allclose(RULES[name](updates, weights * factor, **args), out, rtol=1e-9, atol=1e-9)
    assert np.allclose(RULES[name](updates * factor, weights, **args), out * factor, rtol=1e-9, atol=1e-6)
    assert (out >= updates.min(axis=0) - 1e-9).all()
    assert (out <= updates.max(axis=0) + 1e-9).all()


@given(buffers())
def test_weighted_mean_is_numpy_s(buffer) -> None:
    updates, weights = buffer
    assert np.allclose(weighted_mean(updates, weights), np.average(updates, axis=0, weights=weights), atol=1e-9)


@given(buffers())
def test_trimmed_mean_with_uniform_weights_is_scipy_s(buffer) -> None:
    updates, weights = buffer
    uniform = np.ones_like(weights)
    want = np.sort(updates, axis=0)[1:-1].mean(axis=0)
    assert np.allclose(trimmed_mean(updates, uniform, f=1.0), want, atol=1e-9)
    assert np.allclose(trimmed_mean(updates, uniform, fraction=0.2), trim_mean(updates, 0.2, axis=0), atol=1e-9)


def test_trimmed_mean_weighs_what_it_keeps() -> None:
    updates, weights = np.array([[0.0], [1.0], [2.0], [4.0], [9.0]]), np.array([9.0, 1.0, 1.0, 2.0, 9.0])
    assert trimmed_mean(updates, weights, f=1.0) == pytest.approx((1 + 2 + 8) / 4)


@given(buffers(), st.floats(-1e30, 1e30), st.integers(0, 100))
def test_one_liar_cannot_leave_the_range_of_the_others(buffer, lie: float, who: int) -> None:
    updates, weights = buffer
    liar = who % len(weights)
    lied = updates.copy()
    lied[liar] = lie
    others = np.delete(updates, liar, axis=0)
    out = trimmed_mean(lied, np.ones_like(weights), f=1.0)
    assert (out >= others.min(axis=0) - 1e-9).all()
    assert (out <= others.max(axis=0) + 1e-9).all()


def test_one_liar_moves_a_mean_without_bound() -> None:
    """Why the weighted mean needs the coordinator's norm bound."""
    updates = np.vstack([np.zeros((4, 1)), [[1e30]]])
    assert weighted_mean(updates, np.ones(5))[0] > 1e29
    assert trimmed_mean(updates, np.ones(5), f=1.0)[0] == 0


@pytest.mark.parametrize(
    ("n", "args"),
    [
        (5, {"f": 2.0}),
        (3, {"f": 1.0}),
        (4, {"fraction": 0.3}),
        (9, {"fraction": 0.45}),
        (5, {"f": 0.5}),
        (5, {"f": -1.0}),
        (5, {"f": float("nan")}),
        (5, {"f": float("inf")}),
        (5, {"fraction": 0.5}),
        (5, {"fraction": -0.1}),
        (5, {"f": 1.0, "fraction": 0.2}),
        (5, {}),
    ],
)
def test_trimming_that_leaves_fewer_than_three_or_makes_no_sense_is_refused(n: int, args: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="trimmed_mean"):
        trimmed_mean(np.zeros((n, 2)), np.ones(n), **args)


@pytest.mark.parametrize(("name", "args"), CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(name: str, args: dict[str, float], bad: float) -> None:
    updates = np.zeros((5, 2))
    updates[3, 1] = bad
    with pytest.raises(ConfigError, match="finite"):
        RULES[name](updates, np.ones(5), **args)
    with pytest.raises(ConfigError, match="finite"):
        RULES[name](np.zeros((5, 2)), np.array([1, 1, bad, 1, 1]), **args)


@pytest.mark.parametrize(
    ("updates", "weights"),
    [
        (np.zeros((2, 2)), np.ones(2)),
        (np.zeros((5, 2)), np.ones(4)),
        (np.zeros(5), np.ones(5)),
        (np.zeros((5, 2)), np.zeros(5)),
        (np.zeros((5, 2)), np.array([1, 1, 1, 1, -1.0])),
    ],
)
def test_too_few_sites_or_shapes_that_do_not_fit_are_refused(updates: np.ndarray, weights: np.ndarray) -> None:
    with pytest.raises(ConfigError):
        weighted_mean(updates, weights)
