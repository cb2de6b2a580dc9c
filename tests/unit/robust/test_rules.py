"""Aggregation rules one by one. What all of them keep: test_conformance.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import trim_mean

from cordon.errors import ConfigError
from cordon.robust import RULES

trimmed_mean, weighted_mean = RULES["trimmed_mean"], RULES["weighted_mean"]
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
        (4, {"f": 2.0}),
        (3, {"f": 2.0}),
        (5, {"f": 0.5}),
        (5, {"f": -1.0}),
        (5, {"f": float("nan")}),
        (5, {"f": float("inf")}),
        (5, {"fraction": 0.5}),
        (5, {"fraction": -0.1}),
        (5, {"fraction": float("nan")}),
        (5, {"f": 1.0, "fraction": 0.2}),
        (5, {}),
    ],
)
def test_trimming_that_leaves_nothing_or_makes_no_sense_is_refused(n: int, args: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="trimmed_mean"):
        trimmed_mean(np.zeros((n, 2)), np.ones(n), **args)


def test_equal_values_leave_by_weight_so_that_order_changes_nothing() -> None:
    """Low end: the lightest of the equal ones first; high end: the heaviest first."""
    updates, weights = np.array([[1.0], [1.0], [2.0], [3.0], [3.0]]), np.array([1.0, 5.0, 1.0, 2.0, 7.0])
    assert trimmed_mean(updates, weights, f=1.0) == pytest.approx((5 * 1 + 1 * 2 + 2 * 3) / 8)


@given(buffers())
def test_trimmed_mean_is_what_sorting_pairs_of_value_and_weight_gives(buffer) -> None:
    updates, weights = np.round(buffer[0] / 500), np.round(buffer[1]) + 1
    order = np.lexsort((np.broadcast_to(weights[:, None], updates.shape), updates), axis=0)[1:-1]
    kept, mass = np.take_along_axis(updates, order, axis=0), weights[order]
    assert np.allclose(trimmed_mean(updates, weights, f=1.0), (kept * mass).sum(axis=0) / mass.sum(axis=0))


@pytest.mark.parametrize(("f", "attack"), [(2, 1e3), (2, -1e6), (4, 1e4)])
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum", "geometric_median"])
def test_f_liars_who_shout_together_move_no_rule_past_its_breakdown_point(name: str, f: int, attack: float) -> None:
    rows = np.random.default_rng(0).normal(size=(11, 30))
    rows[:f] = attack
    args = {} if name in ("median", "geometric_median") else {"f": f}
    outcome = RULES[name].outcome(rows, np.ones(11), **args)
    assert RULES[name].breakdown(11, args) >= f
    assert np.abs(outcome.step).max() < 4
    assert outcome.shares[:f].max() < 0.02


@pytest.mark.parametrize(("name", "args"), [("centered_clipping", {"tau": 0.5}), ("norm_bounding", {"bound": 0.5})])
def test_one_liar_moves_a_clipped_mean_by_no_more_than_its_part_of_the_bound(name: str, args) -> None:
    rows = np.random.default_rng(0).normal(size=(10, 30)) / 100
    honest = RULES[name](rows, np.ones(10), **args)
    rows[0] = 1e12
    moved = RULES[name](rows, np.ones(10), **args)
    assert np.linalg.norm(moved - honest) < 2 * 0.5 / 10
    assert RULES[name].outcome(rows, np.ones(10), **args).shares[0] < 1e-9


def test_centred_clipping_goes_on_from_the_previous_aggregate() -> None:
    """Far from the origin, honest updates are clipped at first; with the state they are reached, and then kept."""
    rows, state = np.random.default_rng(0).normal(size=(9, 20)) / 10 + 3, None
    for _ in range(30):
        state = RULES["centered_clipping"](rows, np.ones(9), tau=1.0, state=state)
    assert np.allclose(state, rows.mean(axis=0))
    lazy = RULES["centered_clipping"](rows, np.ones(9), tau=1.0, momentum=0.0, state=state)
    assert np.array_equal(lazy, RULES["centered_clipping"](rows, np.ones(9), tau=1.0))
    for bad in (np.ones(19), np.full(20, np.nan)):
        with pytest.raises(ConfigError, match="state"):
            RULES["centered_clipping"](rows, np.ones(9), tau=1.0, state=bad)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("krum", {"f": 3}),
        ("multi_krum", {"f": 1, "m": 5}),
        ("multi_krum", {"f": 1, "m": 0}),
        ("geometric_median", {"nu": 0.0}),
        ("geometric_median", {"iterations": 0}),
        ("geometric_median", {"iterations": 1e6}),
        ("geometric_median", {"nu": float("nan")}),
        ("centered_clipping", {"tau": -1.0}),
        ("centered_clipping", {"tau": 1.0, "momentum": 1.5}),
        ("norm_bounding", {"bound": float("inf")}),
        ("norm_bounding", {"bound": True - 1}),
        ("median", {"f": 1}),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, args: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=name):
        RULES[name](np.zeros((5, 2)), np.ones(5), **args)
