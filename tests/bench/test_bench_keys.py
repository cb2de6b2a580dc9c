"""The bench of keys runs as it says, and prints figures of the promised names. No figure is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ("--seconds", "1", "--repeat", "3", "--turns", "1", "--vault-mib", "4", "--peak-mib", "1,4", "--update-mb", "1")
KEYS = {"release_ms", "vault_ratio", "seal_ratio", "broker_rps", "broker_p99_ms"}


def bench(*arguments: str) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("bench_keys.py")), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_it_prints_one_json_object_with_the_stable_keys() -> None:
    figures = json.loads(bench("--json", *SMALL))
    assert figures.keys() >= KEYS
    assert all(figures[key] > 0 for key in KEYS)
    assert figures["broker_errors"] == 0
    assert figures["vault_peak_mib"].keys() == {"1", "4"}


def test_for_people() -> None:
    assert "seal_ratio  " in bench("--only", "sealing", "--update-mb", "1", "--turns", "1")
