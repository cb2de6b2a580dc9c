"""The bench runs as its docstring says, its figures have the promised names and, over all splits, the promised size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def bench(seeds: int) -> dict[str, Any]:
    """The figures over ``seeds`` splits."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("bench_oncology.py")
    command = [sys.executable, str(script), "--json", "--quick", "--seeds", str(seeds)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_bench_prints_one_json_object_with_the_stable_keys() -> None:
    figures = bench(2)
    assert {"auc_mean", "auc_sd", "auc_pooled", "time_to_097_ratio"} <= set(figures)
    assert figures["attacker_excluded"] == figures["seeds"] == 2
    assert 0.95 < figures["auc_mean"] <= 1
    assert figures["epsilon"] <= 3 < figures["epsilon_replace_one"]


@pytest.mark.slow
def test_twenty_splits_hold_what_is_promised() -> None:
    figures = bench(20)
    assert figures["seeds"] == figures["attacker_excluded"] == 20
    assert figures["auc_mean"] >= 0.98
    assert 0 < figures["epsilon"] <= 3  # the whole plan's: no hospital spends more
    assert figures["time_to_097_ratio"] <= 0.5
