"""Before training: what cannot work, or would show one hospital's update, is refused with the numbers."""

import itertools

import numpy as np
import pytest

from cordon.errors import ConfigError
from cordon.robust import PRE, RULES, aggregate, check

NNM1, NNM2, BUCKETS2, BUCKETS3 = (
    ("nnm", {"f": 1.0}),
    ("nnm", {"f": 2.0}),
    ("bucketing", {"s": 2.0}),
    ("bucketing", {"s": 3.0}),
)


@pytest.mark.parametrize(
    ("rule", "args", "pre", "n"),
    [
        ("weighted_mean", {}, [], 3),
        ("trimmed_mean", {"f": 1.0}, [], 5),
        ("trimmed_mean", {"fraction": 0.2}, [], 5),
        ("multi_krum", {"f": 1.0}, [], 4),
        ("multi_krum", {"f": 1.0, "m": 3.0}, [], 5),
        ("geometric_median", {}, [], 3),
        ("centered_clipping", {"tau": 1.0}, [], 3),
        ("norm_bounding", {"bound": 1.0}, [], 3),
        ("median", {}, [NNM2], 5),
        ("krum", {"f": 2.0}, [NNM2], 5),
        ("krum", {"f": 1.0}, [BUCKETS3], 9),
        ("median", {}, [BUCKETS2], 8),  # an even number of buckets: two of them, four sites
        ("trimmed_mean", {"f": 1.0}, [BUCKETS2], 8),  # two buckets of four are left
    ],
)
def test_what_mixes_three_sites_may_be_released(rule: str, args, pre, n: int) -> None:
    check(rule, args, pre, n, sealed=True)


@pytest.mark.parametrize(
    ("rule", "args", "pre", "n", "mixed"),
    [
        ("weighted_mean", {}, [], 2, 2),
        ("median", {}, [], 21, 1),
        ("median", {}, [], 20, 2),
        ("krum", {"f": 1.0}, [], 20, 1),
        ("trimmed_mean", {"f": 1.0}, [], 4, 2),
        ("trimmed_mean", {"f": 2.0}, [], 5, 1),
        ("trimmed_mean", {"fraction": 0.45}, [], 9, 1),
        ("multi_krum", {"f": 1.0, "m": 2.0}, [], 20, 2),
        ("median", {}, [BUCKETS2], 20, 4),  # would do, were it not for the next one
        ("median", {}, [BUCKETS2], 10, 2),  # five buckets: one of them
        ("krum", {"f": 1.0}, [BUCKETS3], 10, 1),  # the last bucket holds one site
        ("krum", {"f": 1.0}, [BUCKETS3], 11, 2),
        ("median", {}, [NNM2, BUCKETS2], 4, None),  # too many liars for the first step
    ],
)
def test_what_mixes_fewer_than_three_sites_is_refused_in_sealed_mode_only(rule: str, args, pre, n: int, mixed) -> None:
    if mixed is not None and mixed >= 3:
        return check(rule, args, pre, n, sealed=True)
    with pytest.raises(ConfigError, match=f"mix {mixed} of them, fewer than 3" if mixed else "2 x 2 >= 4"):
        check(rule, args, pre, n, sealed=True)
    if mixed is not None:
        check(rule, args, pre, n, sealed=False)


@pytest.mark.parametrize("pre", [[], [NNM1], [BUCKETS2], [BUCKETS3], [BUCKETS2, NNM1], [NNM1, BUCKETS2]])
@pytest.mark.parametrize("rule", ["median", "krum", "trimmed_mean", "multi_krum"])
@pytest.mark.parametrize("n", [7, 8, 9, 10, 11])
def test_no_coordinate_of_what_is_released_depends_on_fewer_sites_than_promised(rule: str, pre, n: int) -> None:
    """Measured: every coordinate is a mix of so many rows at least as ``check`` counts."""
    args = {} if rule == "median" else {"f": 1.0}
    rows = np.random.default_rng(n).normal(size=(n, 40))
    step = aggregate(rows, np.ones(n), rule, args, pre).step
    fewest = n
    for column in range(6):
        others = [index for index in range(40) if index != column]
        depends = 0
        for row in range(n):  # nudge one value, too little to change who is chosen
            nudged = rows.copy()
            nudged[row, column] += 1e-9
            after = aggregate(nudged, np.ones(n), rule, args, pre).step
            assert np.allclose(after[others], step[others], rtol=0, atol=1e-13)
            depends += abs(after[column] - step[column]) > 1e-12
        fewest = min(fewest, depends)
    try:
        check(rule, args, pre, n, sealed=True)
    except ConfigError as error:
        assert "fewer than 3" in str(error)
    else:
        assert fewest >= 3


@pytest.mark.parametrize(
    ("rule", "args", "pre", "n", "f", "words"),
    [
        ("median", {}, [], 5, 3, "bears 2 liars among 5 rows, the job declares 3"),
        ("weighted_mean", {}, [], 20, 1, "bears 0 liars"),
        ("trimmed_mean", {"f": 1.0}, [], 9, 2, "bears 1 liars among 9"),
        ("median", {}, [BUCKETS2], 9, 3, "bucketing -> median: bears 2 liars among 5 rows"),
        ("multi_krum", {"f": 1.0}, [], 10, 2, "bears 1 liars among 10"),
        ("median", {}, [NNM1], 10, 2, "nnm -> median: bears 1 liars"),
        ("krum", {"f": 5.0}, [], 10, None, "2 x 5 >= 10"),
        ("krum", {"f": 3.0}, [BUCKETS2], 10, None, "2 x 3 >= 5"),
        ("median", {}, [("nnm", {"f": 5.0})], 10, None, "nnm: wants 2f < n"),
        ("median", {}, [("bucketing", {"s": 11.0})], 10, None, "at most the 10 rows"),
        ("median", {}, [("bucketing", {"s": 1.5})], 10, None, "whole number"),
        ("median", {}, [("bucketing", {})], 10, None, "takes s, seed; got none"),
        ("median", {}, [("nnm", {"f": 1.0, "seed": 1.0})], 10, None, "takes f; got f, seed"),
        ("median", {}, [("shuffle", {})], 10, None, "no pre-aggregation 'shuffle'"),
        ("mode", {}, [], 10, None, "no rule 'mode'"),
        ("krum", {"g": 1.0}, [], 10, None, "krum takes f; got g"),
        ("centered_clipping", {"tau": 1.0, "state": 1.0}, [], 10, None, "state"),
    ],
)
def test_too_many_liars_and_unknown_names_are_refused_with_the_numbers(
    rule: str, args, pre, n: int, f, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check(rule, args, pre, n, sealed=False, f=f)


def test_bucketing_a_weighted_mean_changes_nothing_and_the_seed_moves_buckets() -> None:
    rows, weights = np.random.default_rng(0).normal(size=(9, 5)), np.arange(1.0, 10.0)
    plain = aggregate(rows, weights, "weighted_mean").step
    assert np.allclose(aggregate(rows, weights, "weighted_mean", None, [BUCKETS2]).step, plain)
    medians = {aggregate(rows, weights, "median", None, [BUCKETS2], seed=seed).step.tobytes() for seed in range(5)}
    assert len(medians) > 1
    fixed = [
        aggregate(rows, weights, "median", None, [("bucketing", {"s": 2, "seed": 4})], seed=seed).step
        for seed in (0, 1)
    ]
    assert np.array_equal(*fixed)


@pytest.mark.parametrize(
    "steps", [*([step] for step in (NNM1, BUCKETS2, BUCKETS3)), [BUCKETS2, NNM1], [NNM1, BUCKETS2]]
)
@pytest.mark.parametrize("rule", ["median", "krum", "geometric_median", "centered_clipping", "trimmed_mean"])
def test_mixing_chunk_by_chunk_is_mixing_all_rows_first(rule: str, steps) -> None:
    args = {"krum": {"f": 1}, "centered_clipping": {"tau": 1.0, "iterations": 3}, "trimmed_mean": {"f": 1}}
    args = args.get(rule, {})
    rows, weights = np.random.default_rng(0).normal(size=(12, 300)), np.arange(1.0, 13.0)
    mixed, mass = rows, weights
    for name, step_args in steps:
        mixed, mass = PRE[name](mixed, mass, **step_args)
    if len(steps) == 1:
        assert np.allclose(aggregate(rows, weights, rule, args, steps).step, RULES[rule](mixed, mass, **args))
    assert mixed.shape[1] == 300
    assert len(mixed) == len(mass)


def test_nearest_neighbour_mixing_pulls_an_outlier_in_and_tells_of_it() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 50))
    rows[4] += 30
    mixed, _ = PRE["nnm"](rows, np.ones(9), f=2)
    assert np.linalg.norm(mixed, axis=1).max() < np.linalg.norm(rows[4]) / 6
    shares = aggregate(rows, np.ones(9), "weighted_mean", None, [NNM2]).shares
    assert shares[4] == shares.min() < 0.2
    assert all(0 <= share <= 1 for share in itertools.chain(shares))
