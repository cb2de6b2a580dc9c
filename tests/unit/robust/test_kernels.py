"""Compiled kernels give numpy's bits; they are loaded for large inputs only, and not needed."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from cordon.robust import RULES, kernels, points

compiled = pytest.importorskip(
    "cordon.robust.compiled", reason="llvmlite is not installed: requirements/runtime.txt has it"
)

SHAPES = [(1, 1), (2, 63), (3, 64), (5, 1000), (8, 4097), (20, 9000), (33, 70)]


def draw(n: int, d: int, dtype: type, ties: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(n * d)
    values = rng.integers(-3, 4, size=(n, d)) if ties else rng.normal(size=(n, d)) * 10.0 ** rng.integers(-9, 9, (1, d))
    out = values.astype(dtype)
    out[rng.random(out.shape) < 0.02] = -0.0
    return list(out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_trimming_gives_the_same_bits(n: int, d: int, dtype: type, ties: bool) -> None:
    rows, weights = draw(n, d, dtype, ties), np.random.default_rng(1).integers(1, 4, n) / 3
    for f, p in itertools.product({0, (n - 1) // 4, (n - 1) // 2}, (None, weights)):
        results = []
        for module in (kernels, compiled):
            out, kept = np.empty(d, dtype), np.zeros(n, np.int64)
            assert module.trimmed(rows, f, p, out, kept)
            results.append((out.tobytes(), kept.tolist()))
        assert results[0] == results[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_weighted_sums_give_the_same_bits(n: int, d: int, dtype: type) -> None:
    rows, weights = draw(n, d, dtype, False), np.random.default_rng(1).normal(size=n)
    one, two = np.empty(d, dtype), np.empty(d, dtype)
    assert kernels.weighted_sum(rows, weights, 1.7, one)
    assert compiled.weighted_sum(rows, weights, 1.7, two)
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_distances_are_those_of_differences_in_float64(n: int, d: int, dtype: type) -> None:
    rows = np.random.default_rng(n).normal(size=(n, d)).astype(dtype) + dtype(100)  # far off: a Gram matrix cancels
    wide = rows.astype(np.float64)
    want = np.array([[((a - b) ** 2).sum() for b in wide] for a in wide])
    assert np.allclose(compiled.squared_distances(list(rows)), want, rtol=1e-6, atol=0)
    assert np.allclose(kernels.squared_distances(list(rows)), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_value_that_is_not_finite_is_overlooked(bad: float, dtype: type) -> None:
    for row, column in [(0, 0), (4, 63), (2, 64), (3, 4999), (1, 5000)]:
        rows = draw(5, 5001, dtype, False)
        rows[row][column] = bad
        for module in (kernels, compiled):
            out, kept = np.empty(5001, dtype), np.zeros(5, np.int64)
            assert not module.trimmed(rows, 1, None, out, kept)
            assert not module.trimmed(rows, 1, np.arange(1.0, 6.0), out, kept)
            assert not module.weighted_sum(rows, np.ones(5), 5.0, out)
            assert not np.isfinite(module.squared_distances(rows)).all()


@pytest.mark.parametrize("k", range(1, 13))
def test_a_pruned_network_keeps_what_a_sort_keeps_of_every_pattern(k: int) -> None:
    """By the 0-1 principle: a network that is right on all inputs of zeros and ones is right on all."""
    patterns = np.array(list(itertools.product((0.0, 1.0), repeat=k))).T
    for f in range((k - 1) // 2 + 1):
        wires = patterns.copy()
        for low, high in kernels.network(k, f).tolist():
            wires[[low, high]] = np.minimum(wires[low], wires[high]), np.maximum(wires[low], wires[high])
        kept = np.sort(wires[f : k - f], axis=0)
        assert np.array_equal(kept, np.sort(patterns, axis=0)[f : k - f])


def test_a_median_needs_fewer_comparators_than_a_sort() -> None:
    assert len(kernels.network(20, 9)) < len(kernels.network(20, 0)) or len(kernels.network(20, 0)) == 0
    assert len(kernels.network(20, 0)) == 0  # nothing is dropped: a mean needs no order
    assert len(kernels.network(20, 9)) <= 84


def test_more_rows_than_a_network_bears_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "COMPILED_FROM", 0)
    rows = np.random.default_rng(0).normal(size=(70, 40)).astype(np.float32)
    assert np.array_equal(RULES["median"](rows, np.ones(70)), np.median(rows, axis=0))


def test_values_whose_squares_overflow_float32_still_have_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "COMPILED_FROM", 0)
    rows = np.random.default_rng(0).normal(size=(7, 100)).astype(np.float32)
    rows[6] = 1e30
    assert np.abs(RULES["krum"](rows, np.ones(7), f=1)).max() < 10
    assert np.abs(RULES["geometric_median"](rows, np.ones(7))).max() < 10


@pytest.mark.parametrize("far", [1e5, 1e10, 1e17])
def test_a_geometric_median_has_the_same_answer_however_far_out_the_liars_are(
    monkeypatch: pytest.MonkeyPatch, far: float
) -> None:
    """Only their directions count. (Distances to a liar in float32 would drown those between the others.)"""
    monkeypatch.setattr(points, "COMPILED_FROM", 0)
    rows = np.random.default_rng(0).normal(size=(9, 200)).astype(np.float32)
    steps = []
    for distance in (1e4, far):
        rows[5:] = distance * np.eye(200, dtype=np.float32)[:4]
        steps.append(RULES["geometric_median"](rows, np.ones(9)))
    assert np.abs(steps[1] - steps[0]).max() < 0.01
    assert np.linalg.norm(steps[1]) < np.linalg.norm(rows[0])


def test_threads_that_start_together_get_the_same_as_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "COMPILED_FROM", 0)
    compiled._trimmed.cache_clear()
    rows, got = np.random.default_rng(0).normal(size=(9, 5000)).astype(np.float32), []
    threads = [threading.Thread(target=lambda: got.append(RULES["median"](rows, np.ones(9)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(each, np.median(rows, axis=0)) for each in got)
    assert len(got) == 4


def test_llvm_is_loaded_for_large_inputs_only_and_not_needed() -> None:
    code = """
import sys
if sys.argv[1] == "without":
    sys.modules["llvmlite"] = None  # an import of it fails, as where it is not installed
import numpy as np
from cordon.robust import RULES
rows = np.random.default_rng(0).normal(size=(20, 60_000)).astype(np.float32)
RULES["median"](rows[:, :1000], np.ones(20))
assert "llvmlite.ir" not in sys.modules
step = RULES["trimmed_mean"](rows, np.arange(1.0, 21.0), f=4)
print("llvmlite.ir" in sys.modules, hash(step.tobytes()))
"""
    told = {
        how: subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, text=True, timeout=60, check=True,
            env={"PYTHONHASHSEED": "0", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        ).stdout.split()
        for how in ("with", "without")
    }  # fmt: skip
    assert told["with"][0] == "True"
    assert told["without"][0] == "False"
    assert told["with"][1] == told["without"][1]
