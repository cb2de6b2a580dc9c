"""The bench runs as its docstring says; its figures have the promised names, one epsilon, and the noise they state."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCENARIOS = {"local", "distributed_c0", "distributed_c1", "central"}


def bench(*arguments: str) -> dict[str, Any]:
    """The figures."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("bench_distributed_dp.py")), "--json", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def test_one_json_object_with_every_scenario_at_one_epsilon() -> None:
    figures = bench("--seeds", "2")
    assert all(figures[key].keys() == SCENARIOS for key in ("auc", "se", "epsilon", "noise_multiplier"))
    assert all(0.999 < spent <= 1 for spent in figures["epsilon"].values())
    assert all(0.9 < auc <= 1 for auc in figures["auc"].values())
    # Noise of the whole sum: as central's without colluders, sqrt(3/2) of it with one, sqrt(3) of it without sharing.
    noise, central = figures["noise_of_the_sum"], figures["noise_of_the_sum"]["central"]
    for scenario, square in (("distributed_c0", 1), ("distributed_c1", 1.5), ("local", 3)):
        assert noise[scenario] == pytest.approx(central * math.sqrt(square), rel=1e-3)
    # What it costs: if all others collude, a site's own share is worth much less.
    for scenario in ("distributed_c0", "distributed_c1"):
        whole = figures["epsilon_by_adversary"][scenario]
        assert whole["public"] <= whole["coordinator"] <= 1 < whole["own_share"] < 3


@pytest.mark.slow
def test_over_all_splits_sharing_out_the_noise_gains_what_central_noise_gains() -> None:
    figures = bench("--seeds", "100", "--epsilon", "0.3")
    gain, error = figures["gain"], figures["gain_se"]
    assert gain["distributed_c0"] > 2 * error["distributed_c0"]
    assert abs(gain["distributed_c0"] - gain["central"]) < 4 * (error["distributed_c0"] + error["central"])
