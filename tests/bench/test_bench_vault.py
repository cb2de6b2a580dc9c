"""The bench of the vault runs as it says, and prints figures of the promised names. No figure is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEYS = {"vault_ratio", "vault_ratio_reused", "vault_ratio_one_shot", "seal_gb_s", "read_gb_s", "lines_gb_s", "open_ms"}


def test_it_prints_one_json_object_with_the_stable_keys() -> None:
    script = Path(__file__).with_name("bench_vault.py")
    done = subprocess.run(
        [sys.executable, str(script), "--json", "--repeat", "1", "--mib", "4"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "custom")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert set(figures) == KEYS | {"peak_mib", "peak_mib_small"}
    assert all(figures[key] > 0 for key in KEYS)
