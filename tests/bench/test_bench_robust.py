"""The bench of robust rules runs as it says, and prints figures of the promised names. No figure is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ("--n", "8", "--dim", "150000", "--small", "2000", "--repeat", "1")


def bench(*arguments: str) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("bench_robust.py")), *SMALL, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_its_last_line_is_one_json_object_with_the_stable_keys() -> None:
    figures = json.loads(bench("--json").splitlines()[-1])
    assert figures["ratio"].keys() >= {"median", "trimmed_mean", "krum", "multi_krum", "geometric_median"}
    assert figures["ratio"].keys() == figures["ratio_max"].keys() == figures["without_llvm"].keys()
    assert all(value > 0 for value in figures["ratio"].values())
    assert figures["extra_memory_mb"] >= 0
    assert figures["read_s"] > 0


def test_for_people() -> None:
    assert "extra_memory_mb  " in bench()
