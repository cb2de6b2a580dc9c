"""One class of laws that every rule keeps, with numpy and with compiled kernels, on arrays and on lists of rows."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cordon.errors import ConfigError
from cordon.robust import PRE, RULES, aggregate, points

ENGINES = ("numpy", "compiled")


@dataclass(frozen=True)
class Case:
    """A rule with arguments; which of them are lengths, in units of the updates."""

    rule: str
    args: dict[str, float] = field(default_factory=dict)
    lengths: tuple[str, ...] = ()
    moves: bool = True  # R(x + t) = R(x) + t (where there is a state: moved as well)
    pre: tuple[tuple[str, dict[str, float]], ...] = ()

    def __call__(self, rows: Any, weights: Any = None, *, state: Any = None, scale: float = 1.0) -> Any:
        args = {name: value * scale if name in self.lengths else value for name, value in self.args.items()}
        weights = np.ones(len(rows)) if weights is None else weights
        return aggregate(rows, weights, self.rule, args, self.pre, state, seed=3)

    def without_liars(self) -> "Case":
        """The same with f = 0, buckets of one row, and every row selected."""
        none = {"f": 0.0, "s": 1.0}
        args = {name: none.get(name, value) for name, value in self.args.items() if name != "m"}
        steps = tuple((name, {key: none.get(key, each) for key, each in step.items()}) for name, step in self.pre)
        return Case(self.rule, args, self.lengths, self.moves, steps)


CASES = [
    Case("weighted_mean"),
    Case("median"),
    Case("trimmed_mean", {"f": 2.0}),
    Case("trimmed_mean", {"fraction": 0.2}),
    Case("krum", {"f": 2.0}),
    Case("multi_krum", {"f": 2.0}),
    Case("multi_krum", {"f": 2.0, "m": 3.0}),
    Case("geometric_median", {"nu": 1e-3}, ("nu",)),
    Case("centered_clipping", {"tau": 2.0}, ("tau",)),
    Case("centered_clipping", {"tau": 2.0, "iterations": 4.0}, ("tau",)),
    Case("norm_bounding", {"bound": 3.0}, ("bound",), moves=False),
    Case("median", pre=(("nnm", {"f": 2.0}),)),
    Case("geometric_median", {"nu": 1e-3}, ("nu",), pre=(("bucketing", {"s": 2.0}),)),
    Case("trimmed_mean", {"f": 1.0}, pre=(("bucketing", {"s": 2.0}), ("nnm", {"f": 1.0}))),
]


def close(one: Any, two: Any) -> bool:
    return np.allclose(one, two, rtol=2e-5, atol=2e-5)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "compiled":
        pytest.importorskip("llvmlite", reason="llvmlite is not installed: requirements/runtime.txt has it")
        monkeypatch.setattr(points, "COMPILED_FROM", 0)
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def rows(request: pytest.FixtureRequest) -> np.ndarray:
    """11 rows of 150 coordinates, two of them far away."""
    out = np.random.default_rng(7).normal(size=(11, 150))
    out[9:] = 5 + 3 * out[9:]
    return out.astype(request.param)


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(8).uniform(0.5, 2, size=11)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([*(name for name, _ in case.pre), case.rule]))
class TestConformance:
    def test_order_of_sites_changes_no_bit(self, case: Case, rows, weights) -> None:
        want = case(rows, weights)
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(rows))
            got = case(rows[order], weights[order])
            assert got.step.tobytes() == want.step.tobytes()
            assert np.array_equal(got.shares, want.shares[order])

    def test_array_and_list_of_rows_give_the_same_bits_in_the_rows_type_and_nothing_is_changed(
        self, case: Case, rows, weights
    ) -> None:
        before = rows.copy()
        one, two = case(rows, weights), case([row.copy() for row in rows], weights)
        strided = case(np.asfortranarray(rows), weights)
        assert one.step.dtype == rows.dtype
        assert one.step.shape == (150,)
        assert one.step.tobytes() == two.step.tobytes()
        assert close(strided.step, one.step)
        assert np.array_equal(rows, before)

    def test_equal_updates_of_ones_give_exactly_ones(self, case: Case, rows) -> None:
        ones = np.ones_like(rows[:, :9])  # of norm 3, the bound, and 2 from where clipping starts
        outcome = case(ones, state=np.zeros(9, rows.dtype) + rows.dtype.type(0.5))
        assert np.array_equal(outcome.step, np.ones(9))
        if not case.pre and case.rule not in ("krum", "multi_krum"):
            assert np.array_equal(outcome.shares, np.ones(len(rows)))

    def test_equal_updates_come_out_as_they_went_in_whatever_the_weights(self, case: Case, rows, weights) -> None:
        same = np.repeat(rows[:1, :2], len(rows), axis=0)
        assert np.allclose(case(same, weights).step, rows[0, :2], rtol=1e-15 if rows.dtype == np.float64 else 0)

    def test_scale(self, case: Case, rows, weights) -> None:
        assert close(case(rows * rows.dtype.type(4), weights, scale=4.0).step, 4 * case(rows, weights).step)

    def test_translation(self, case: Case, rows, weights) -> None:
        move = np.random.default_rng(9).normal(size=150).astype(rows.dtype)
        zero = np.zeros(150, rows.dtype)
        moved = case(rows + move, weights, state=move).step
        same = close(moved, case(rows, weights, state=zero).step + move)
        assert same == case.moves

    def test_only_ratios_of_weights_matter_and_only_where_the_rule_says_that_it_uses_them(
        self, case: Case, rows, weights
    ) -> None:
        step = case(rows, weights).step
        assert close(case(rows, weights * 1000).step, step)
        if not case.pre:
            assert (case(rows).step.tobytes() == step.tobytes()) == (not RULES[case.rule].uses_weights)

    def test_every_coordinate_stays_within_the_rows_and_the_start(self, case: Case, rows, weights) -> None:
        step, start = case(rows, weights).step, np.zeros((1, 150))
        inside = np.vstack([rows, start]) if case.rule in ("centered_clipping", "norm_bounding") else rows
        assert (step >= inside.min(axis=0) - 1e-5).all()
        assert (step <= inside.max(axis=0) + 1e-5).all()

    def test_duplicates_of_some_rows(self, case: Case, rows, weights) -> None:
        twins = rows.copy()
        twins[3:7] = twins[2]
        want = case(twins, weights)
        order = np.random.default_rng(1).permutation(len(rows))
        assert case(twins[order], weights[order]).step.tobytes() == want.step.tobytes()
        assert np.isfinite(want.step).all()

    def test_one_site_alone_comes_out_as_it_is(self, case: Case, rows) -> None:
        alone = case.without_liars()
        state = rows[0] - rows.dtype.type(0.01)  # so near that nothing is clipped
        bound = {"bound": 1e3} if case.rule == "norm_bounding" else {}
        step = Case(alone.rule, alone.args | bound, pre=alone.pre)(rows[:1], state=state).step
        assert np.allclose(step, rows[0], rtol=1e-6, atol=1e-7)

    def test_what_is_not_finite_is_refused_wherever_it_is(self, case: Case, rows) -> None:
        for bad in (np.nan, np.inf, -np.inf):
            for row, column in ((4, 0), (0, 64), (10, 149)):
                spoilt = rows.copy()
                spoilt[row, column] = bad
                with pytest.raises(ConfigError, match="finite"):
                    case(spoilt)
            with pytest.raises(ConfigError, match="finite"):
                case(np.zeros_like(rows), np.array([1.0] * 10 + [bad]))

    def test_shares_are_influence_from_0_to_1_and_liars_have_less(self, case: Case, rows) -> None:
        shares = case(rows).shares
        assert shares.shape == (11,)
        assert ((shares >= 0) & (shares <= 1)).all()
        if case.rule not in ("weighted_mean", "krum") and not case.pre:
            assert shares[9:].max() < shares[:9].max()

    def test_rows_that_differ_in_shape_or_are_no_numbers_are_refused(self, case: Case, rows) -> None:
        for updates in ([*rows[:10], rows[10, :9]], rows[0], [], rows[:, :0], [["a"] * 3] * 11, rows[None]):
            with pytest.raises(ConfigError):
                case(updates, np.ones(11))
        for weights in (np.ones(10), np.zeros(11), -np.ones(11), np.ones((11, 1))):
            with pytest.raises(ConfigError):
                case(rows, weights)

    def test_unknown_and_missing_arguments_are_refused(self, case: Case, rows) -> None:
        with pytest.raises(ConfigError, match="takes"):
            aggregate(rows, np.ones(11), case.rule, case.args | {"mystery": 1.0})
        if case.rule in ("krum", "multi_krum", "centered_clipping", "norm_bounding"):
            with pytest.raises(ConfigError, match="takes"):
                aggregate(rows, np.ones(11), case.rule)


def test_every_rule_and_every_step_is_in_the_class() -> None:
    assert {case.rule for case in CASES} == set(RULES)
    assert {name for case in CASES for name, _ in case.pre} == set(PRE)


@pytest.mark.parametrize("rule", [*RULES.values(), *PRE.values()], ids=lambda rule: rule.name)
def test_every_docstring_says_what_the_standard_asks(rule) -> None:
    text = rule.function.__doc__
    for part in ("Breakdown point: ", "Source: ", "Weights: ", "Sealed: "):
        assert part in text
    if rule.name in RULES:
        assert ("Weights: used" in text) == rule.uses_weights
        assert ("Sealed: may be released" in text) == rule.sealed


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("case", [case for case in CASES if "f" in case.args or "nnm" in dict(case.pre)])
def test_with_f_0_what_takes_f_is_the_mean_and_krum_the_row_nearest_to_it(case: Case, rows) -> None:
    step, mean = case.without_liars()(rows).step, rows.mean(axis=0)
    nearest = rows[np.argmin(((rows - mean) ** 2).sum(axis=1))]
    assert close(step, nearest if case.rule == "krum" else mean)


@pytest.mark.parametrize("case", CASES)
def test_numpy_in_float64_and_compiled_code_in_float32_agree_to_1e_5(case: Case, monkeypatch) -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed: requirements/runtime.txt has it")
    rows = np.random.default_rng(3).normal(size=(11, 3000)).astype(np.float32) / 30
    rows[9:] *= 20
    monkeypatch.setattr(points, "COMPILED_FROM", 0)
    one = case(rows)
    monkeypatch.setattr(points, "COMPILED_FROM", 10**9)
    two = case(rows.astype(np.float64))
    assert np.abs(one.step - two.step).max() < 1e-5
    assert np.abs(one.shares - two.shares).max() < 1e-3
