"""The bench runs as its docstring says and its figures have the promised names; two splits, not a measurement."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_bench_prints_one_json_object_with_the_stable_keys() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("bench_oncology.py")), "--json", "--quick", "--seeds", "2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    figures = json.loads(done.stdout)
    assert {"auc_mean", "auc_sd", "auc_pooled", "time_to_097_ratio"} <= set(figures)
    assert figures["attacker_excluded"] == figures["seeds"] == 2
    assert 0.95 < figures["auc_mean"] <= 1
    assert figures["epsilon"] <= 3 < figures["epsilon_replace_one"]
