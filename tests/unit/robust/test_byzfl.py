"""Rules against ByzFL 0.0.11 on random inputs: recorded answers always, the package itself where it is installed."""

import json
import sys
import types
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cordon.robust import PRE, RULES

VECTORS = Path(__file__).parents[2] / "vectors" / "robust_byzfl.json"
INSTALL = "byzfl is not installed: pip install --no-deps byzfl==0.0.11"
NU, TAU = 0.1, 2.0


def draw(seed: int) -> tuple[int, np.ndarray]:
    """(f, rows): between 5 and 11 rows, f of them elsewhere."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(5, 12)), int(rng.integers(1, 8))
    f, rows = int(rng.integers(0, (n - 1) // 2 + 1)), rng.normal(size=(n, d))
    rows[:f] += rng.normal(size=d) * 3
    return f, rows


def ours(f: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    uniform, start = np.ones(len(rows)), rows.mean(axis=0)
    mixed, _ = PRE["nnm"](rows, uniform, f=f)
    return {
        "weighted_mean": RULES["weighted_mean"](rows, uniform),
        "median": RULES["median"](rows, uniform),
        "trimmed_mean": RULES["trimmed_mean"](rows, uniform, f=f),
        "krum": RULES["krum"](rows, uniform, f=f),
        "multi_krum": RULES["multi_krum"](rows, uniform, f=f),
        "geometric_median": RULES["geometric_median"](rows, uniform, nu=NU, iterations=2000),
        "centered_clipping": RULES["centered_clipping"](rows, uniform, tau=TAU, iterations=3, state=start),
        "norm_bounding": RULES["norm_bounding"](rows, uniform, bound=TAU),
        "nnm": mixed[np.lexsort(mixed.T)],
    }


def theirs(f: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    aggregators, steps = _byzfl()
    clipping = aggregators.CenteredClipping(L=3, tau=TAU)
    clipping.m = rows.mean(axis=0)  # its argument m refuses every array
    mixed = steps.NNM(f)(rows.copy())
    return {
        "weighted_mean": aggregators.Average()(rows),
        "median": aggregators.Median()(rows),
        "trimmed_mean": aggregators.TrMean(f)(rows),
        "krum": aggregators.Krum(f)(rows),
        "multi_krum": aggregators.MultiKrum(f)(rows),
        "geometric_median": aggregators.GeometricMedian(nu=NU, T=2000)(rows),
        "centered_clipping": clipping(rows),
        "norm_bounding": aggregators.Average()(steps.Clipping(TAU)(rows.copy())),
        "nnm": mixed[np.lexsort(mixed.T)],
    }


def _byzfl() -> tuple[Any, Any]:
    """Its two modules of rules, without the rest of the package, which asks for torchvision."""
    try:
        folder = distribution("byzfl").locate_file("byzfl")
    except PackageNotFoundError:
        pytest.skip(INSTALL)
    for name in ("byzfl", "byzfl.aggregators"):
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(Path(str(folder)).joinpath(*name.split(".")[1:]))]
            sys.modules[name] = package
    from byzfl.aggregators import aggregators, preaggregators

    return aggregators, preaggregators


def recorded() -> list[dict[str, Any]]:
    return json.loads(VECTORS.read_text())["cases"]


@pytest.mark.parametrize("case", recorded(), ids=lambda case: f"n{len(case['rows'])}-f{case['f']}")
def test_recorded_answers_of_byzfl_are_ours(case: dict[str, Any]) -> None:
    got = ours(case["f"], np.array(case["rows"]))
    assert got.keys() == case["answers"].keys()
    for name, answer in case["answers"].items():
        assert np.abs(got[name] - np.array(answer)).max() < 1e-5, name


def test_byzfl_itself_agrees_on_random_inputs_and_with_its_recorded_answers() -> None:
    _byzfl()
    for seed in range(60):
        f, rows = draw(seed)
        got = ours(f, rows)
        for name, answer in theirs(f, rows).items():
            assert np.abs(got[name] - answer).max() < 1e-5, (seed, name)
    for case in recorded():
        for name, answer in theirs(case["f"], np.array(case["rows"])).items():
            assert np.allclose(answer, case["answers"][name], atol=1e-12), name


if __name__ == "__main__":  # makes the vectors anew
    CASES = []
    for SEED in range(100, 108):
        F, ROWS = draw(SEED)
        answers = {name: answer.tolist() for name, answer in theirs(F, ROWS).items()}
        CASES.append({"f": F, "rows": ROWS.tolist(), "answers": answers})
    about = "Answers of ByzFL 0.0.11 (MIT), made by tests/unit/robust/test_byzfl.py run as a script."
    VECTORS.write_text(json.dumps({"about": about, "nu": NU, "tau": TAU, "cases": CASES}, indent=1) + "\n")
