"""Hot paths, each as a ratio to a peer or a floor timed in the same run (best of ``--repeat``).

    PYTHONPATH=custom python tests/bench/bench_hot_paths.py [--json] [--repeat 5]

* ``fhir_ratio``     NDJSON file -> checked feature vectors, over only decoding the same lines with msgspec (the floor)
* ``dp_ratio``       one DP-SGD round, over the same number of plain SGD steps on full batches (what privacy costs)
* ``trimmed_ratio``  trimmed mean of 20 updates, over ``np.sort`` of the same array (the least of a sort-based rule)
* ``message_ratio``  verify a signed update header, over the bare Ed25519 verification of as many bytes
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import documents, job, messages, models
from cordon.data.contract import FeatureContract, Mapping
from cordon.data.load import load_patients
from cordon.data.source import FolderSource
from cordon.demo import samples, wdbc
from cordon.dp.train import train_round
from cordon.robust.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "jobs" / "oncology" / "app" / "config"


def best(repeat: int, run: Callable[[], object]) -> float:
    """Least seconds of ``repeat`` runs after one that warms up."""
    run()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def fhir(repeat: int) -> tuple[float, float]:
    """(seconds from file to vectors, seconds to decode the lines) of all 569 patients."""
    contract = documents.load(CONFIG / "contract.yml", FeatureContract)
    mapping = documents.load(ROOT / "provisioning" / "poc" / "mappings" / "hospital-a.yml", Mapping)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "fhir"
        samples.write_hospital("hospital-a", "fhir", source, wdbc.load())
        lines = (source / "Observation.ndjson").read_bytes().splitlines()
        ours = best(repeat, lambda: load_patients(contract, mapping, "fhir", FolderSource(source)))
        floor = best(repeat, lambda: [msgspec.json.decode(line) for line in lines])
    return ours, floor


def dp_round(repeat: int) -> tuple[float, float]:
    """(seconds of one private round, of as many plain steps) on 100 patients."""
    plan = job.from_folder("oncology", CONFIG).executor
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 30)).astype(np.float32), rng.integers(0, 2, 100).astype(np.float32)
    module = models.build(plan.model, plan.model_args, 30)

    def plain() -> None:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        for _ in range(plan.dp.steps):
            optimizer.zero_grad()
            logits = module(torch.from_numpy(x)).squeeze(1)
            torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(y)).backward()
            optimizer.step()

    return best(repeat, lambda: train_round(module, x, y, plan.dp, plan.learning_rate)), best(repeat, plain)


def trimmed(repeat: int) -> tuple[float, float]:
    """(seconds of the rule, of one sort) over 20 updates of 100,000 parameters."""
    updates = np.random.default_rng(0).normal(size=(20, 100_000))
    rule, weights = RULES["trimmed_mean"], np.ones(20)
    return best(repeat, lambda: rule(updates, weights, f=4)), best(repeat, lambda: np.sort(updates, axis=0))


def message(repeat: int) -> tuple[float, float]:
    """(seconds to verify 100 update headers, to verify 100 bare signatures)."""
    parsed, key, now = job.from_folder("oncology", CONFIG), Ed25519PrivateKey.generate(), datetime.now(UTC)
    digest = "0" * 64
    header = messages.UpdateHeader(
        v=1, job="j", ticket="t", base_version=0, model_chain_head=digest, layout_digest=digest,
        privacy="sealed", dp_event=messages.DPEvent.of(parsed.executor.dp), sealed_to=digest, payload_sha256=digest,
    )  # fmt: skip
    envelope = messages.sign(key, header)
    data = b"x" * len(envelope["payload"])
    bare, public = key.sign(data), key.public_key()

    def ours() -> None:
        for _ in range(100):
            messages.verify(envelope, messages.UpdateHeader, public, now)

    def floor() -> None:
        for _ in range(100):
            public.verify(bare, data)

    return best(repeat, ours), best(repeat, floor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each path (default: 5)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for name, path in (("fhir", fhir), ("dp", dp_round), ("trimmed", trimmed), ("message", message)):
        ours, floor = path(args.repeat)
        result |= {f"{name}_ms": round(1000 * ours, 3), f"{name}_ratio": round(ours / floor, 2)}
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:15} {value}")


if __name__ == "__main__":
    main()
