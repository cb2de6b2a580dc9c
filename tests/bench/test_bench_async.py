"""The race and the plan give the promised figures, the same each time; the simulation loses no update."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def bench(*args: str) -> dict[str, Any]:
    """The last line of the bench's output."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("bench_async.py")), "--json", *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def test_who_waits_for_nobody_reaches_the_target_sooner_and_ends_as_well() -> None:
    figures = bench("--seeds", "2")
    assert {"speedup", "metric_sync", "metric_async"} <= set(figures)
    assert figures["reached"] == {"async": 2, "sync": 2}
    assert figures["speedup"] >= 3  # simulated time: the same on every machine
    assert figures["metric_async"] > figures["metric_sync"] - 0.02
    assert figures["slow_site_updates"] >= 1  # nobody waits for it, and it counts


@pytest.mark.parametrize("privacy", ["sealed", "masked"])
def test_a_plan_of_many_hospitals_says_what_the_size_costs(privacy: str) -> None:
    size = ("--plan", "--privacy", privacy, "--hospitals", "60", "--buffer", "10", "--hours", "2")
    small, large = bench(*size, "--dim", "1000000"), bench(*size, "--dim", "100000000")
    assert small["ended"] == large["ended"] == "time is up"
    assert 0 < large["versions"] < small["versions"]  # 400 MB over 100 Mbit/s take half a minute each way
    assert small["versions"] * 10 <= small["updates_per_hour"] * 2 <= (small["versions"] + 1) * 60
    assert large["gigabytes_in"] == pytest.approx(0.4 * large["updates_per_hour"] * 2, rel=0.2)
    assert bench(*size, "--dim", "1000000") == small
