"""The bench of attestation runs as it says, and prints figures of the promised names. No figure is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = ("snp", "tdx", "gpu", "gpu_rim")


def bench(*arguments: str, **env: str) -> str:
    """What it prints; without vectors unless ``env`` names them."""
    inherited = {name: value for name, value in os.environ.items() if name != "CORDON_VECTORS"}
    script = Path(__file__).with_name("bench_attest.py")
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**inherited, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_it_prints_one_json_object_with_the_stable_keys() -> None:
    figures = json.loads(bench("--json", "--repeat", "3"))
    for case in CASES:
        for figure in ("ms", "bare_ms", "ratio", "uncached_ms", "first_ms"):
            assert figures[f"{case}_{figure}"] > 0
        assert figures["inputs"][case].keys() == {"evidence", "verdict", "bare", "cached"}
        assert figures["inputs"][case]["evidence"] == "made up"
        assert figures["inputs"][case]["verdict"] == "pass"


def test_with_vectors_the_evidence_is_real(vectors: Path) -> None:
    figures = json.loads(bench("--json", "--repeat", "3", CORDON_VECTORS=str(vectors)))
    said = {case: figures["inputs"][case]["evidence"] for case in CASES}
    assert said == {"snp": "real", "tdx": "real", "gpu": "real", "gpu_rim": "made up"}
    assert "fail" not in {figures["inputs"][case]["verdict"] for case in CASES}


@pytest.mark.parametrize("arguments", [("--help",), ("--repeat", "1")])
def test_for_people(arguments: tuple[str, ...]) -> None:
    assert "snp" in bench(*arguments)
