"""The bench of secure aggregation runs as it says, opens the exact sum, prints the promised figures. No time judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEYS = {"client_ratio", "unmask_ratio", "bytes_per_param", "server_extra_mb"}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(__file__).with_name("bench_secagg.py")), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,  # it exits with 1 where the opened sum is not that of the survivors' vectors
    )


@pytest.mark.parametrize(("clients", "drop"), [("8", "1"), ("5", "0"), ("7", "2")])
def test_it_opens_the_exact_sum_and_ends_with_one_json_object(clients: str, drop: str) -> None:
    done = bench("--clients", clients, "--drop", drop, "--dim", "20000", "--repeat", "1", "--json")
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() >= KEYS
    assert all(figures[key] > 0 for key in KEYS)
    assert figures["bytes_per_param"] == 4.0
    assert "client_ratio  " in done.stderr


def test_for_people() -> None:
    assert "client_ratio  " in bench("--dim", "1000", "--repeat", "1").stdout
