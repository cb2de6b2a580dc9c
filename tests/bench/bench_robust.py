"""Robust rules over n updates of d parameters, each as a ratio to reading the updates once, on one thread.

    PYTHONPATH=custom python tests/bench/bench_robust.py [--n 20] [--dim 10000000] [--repeat 7] [--cpu] [--json]

* ``ratio``            seconds of a rule over ``read_s``. A rule is called as the coordinator does: a list of rows goes
                       in, the step and the influence of each row come out. f = n // 5 where it takes one
* ``read_s``           seconds of numpy's sum of each row: every value is read once and added up
* ``ratio_max``        the same over numpy's max of each row, which is faster: the pace of memory itself
* ``extra_memory_mb``  the most that a rule's peak of resident memory lies over what was there before, with its result;
                       ``extra_memory_share``: of the input
* ``first_s``          seconds that loading LLVM and making the code of all rules takes, once per process
* ``without_llvm``     ratios of numpy alone, at ``--small`` parameters
* ``byzfl``            ratios of ByzFL 0.0.11 where it is installed (on numpy, with its defaults), at ``--small``
                       parameters, over reading those

Runs take turns, reads among them; each figure is the best of ``--repeat``. Nothing is judged here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cordon.robust import aggregate, points

Runs = Mapping[str, Callable[[], object]]
MB = 1e6


def draw(n: int, dim: int) -> list[np.ndarray]:
    """n rows (dim,) of float32."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(dim, dtype=np.float32) for _ in range(n)]


def rules(rows: list[np.ndarray]) -> Runs:
    """Name -> a call of the rule on ``rows``."""
    n, f = len(rows), len(rows) // 5
    even, uneven = np.ones(n), np.linspace(1, 2, n)
    mixed = [("nnm", {"f": f})]
    return {
        "median": lambda: aggregate(rows, even, "median"),
        "trimmed_mean": lambda: aggregate(rows, even, "trimmed_mean", {"f": f}),
        "krum": lambda: aggregate(rows, even, "krum", {"f": f}),
        "multi_krum": lambda: aggregate(rows, even, "multi_krum", {"f": f}),
        "geometric_median": lambda: aggregate(rows, even, "geometric_median"),
        "weighted_mean": lambda: aggregate(rows, uneven, "weighted_mean"),
        "trimmed_mean_weighted": lambda: aggregate(rows, uneven, "trimmed_mean", {"f": f}),
        "centered_clipping": lambda: aggregate(rows, even, "centered_clipping", {"tau": 100.0}),
        "norm_bounding": lambda: aggregate(rows, even, "norm_bounding", {"bound": 100.0}),
        "nnm_multi_krum": lambda: aggregate(rows, even, "multi_krum", {"f": f}, mixed),
        "nnm_trimmed_mean": lambda: aggregate(rows, even, "trimmed_mean", {"f": f}, mixed),
    }


def reads(rows: list[np.ndarray]) -> Runs:
    """Two ways of reading every value once."""
    return {"read": lambda: [row.sum() for row in rows], "read_max": lambda: [row.max() for row in rows]}


def best(runs: Runs, repeat: int, clock: Callable[[], float]) -> dict[str, float]:
    """Least seconds of each run; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            began = clock()
            run()
            times[name].append(clock() - began)
    return {name: min(each) for name, each in times.items()}


def ratios(seconds: Mapping[str, float], read: str = "read") -> dict[str, float]:
    """Every run but the reads, over ``read``."""
    return {name: round(each / seconds[read], 2) for name, each in seconds.items() if not name.startswith("read")}


def peak_over(run: Callable[[], object]) -> float:
    """MB that resident memory rises at most while ``run`` runs, its result included (Linux: the peak is reset)."""
    process = psutil.Process()
    Path("/proc/self/clear_refs").write_text("5")
    before = process.memory_info().rss
    run()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return max(0.0, (peak - before) / MB)


def byzfl(rows: list[np.ndarray]) -> Runs:
    """The same rules of ByzFL, of its own modules alone; none where it is not installed."""
    import importlib.util
    import types

    found = importlib.util.find_spec("byzfl")
    if found is None or not found.submodule_search_locations:
        return {}
    root = Path(found.submodule_search_locations[0])
    for name, folder in (("byzfl", root), ("byzfl.aggregators", root / "aggregators")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package  # the package itself asks for torchvision
    from byzfl.aggregators import aggregators as peer

    stacked, f = np.stack(rows), len(rows) // 5
    return {
        "median": lambda: peer.Median()(stacked),
        "trimmed_mean": lambda: peer.TrMean(f)(stacked),
        "krum": lambda: peer.Krum(f)(stacked),
        "multi_krum": lambda: peer.MultiKrum(f)(stacked),
        "geometric_median": lambda: peer.GeometricMedian()(stacked),
    }


def measure(n: int, dim: int, small: int, repeat: int, clock: Callable[[], float]) -> dict[str, Any]:
    """All figures."""
    rows = draw(n, dim)
    began = time.perf_counter()
    for run in rules([row[: min(dim, -(-points.COMPILED_FROM // n))] for row in rows]).values():
        run()
    first = time.perf_counter() - began
    extra = {name: round(peak_over(run), 1) for name, run in rules(rows).items()}
    seconds = best({**reads(rows), **rules(rows)}, repeat, clock)
    del rows
    few = draw(n, small)
    threshold, points.COMPILED_FROM = points.COMPILED_FROM, sys.maxsize
    plain = ratios(best({**reads(few), **rules(few)}, 3, clock))
    points.COMPILED_FROM = threshold
    peers = byzfl(few)
    return {
        "n": n,
        "clock": "cpu" if clock is time.thread_time else "wall",
        "dim": dim,
        "ratio": ratios(seconds),
        "ratio_max": ratios({key: value for key, value in seconds.items() if key != "read"}, "read_max"),
        "read_s": round(seconds["read"], 4),
        "read_max_s": round(seconds["read_max"], 4),
        "extra_memory_mb": max(extra.values()),
        "extra_memory_share": round(max(extra.values()) * MB / (4 * n * dim), 3),
        "extra_memory_by_rule_mb": extra,
        "first_s": round(first, 2),
        "small": small,
        "without_llvm": plain,
        "byzfl": ratios(best({**reads(few), **peers}, 2, clock)) if peers else None,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--n", type=int, default=20, help="updates (default: 20)")
    parser.add_argument("--dim", type=int, default=10_000_000, help="parameters (default: 10,000,000)")
    parser.add_argument("--small", type=int, default=500_000, help="parameters for numpy alone and ByzFL")
    parser.add_argument("--repeat", type=int, default=7, help="turns (default: 7)")
    parser.add_argument(
        "--cpu", action="store_true", help="processor seconds of the thread, for a machine that is busy"
    )
    args = parser.parse_args()
    clock = time.thread_time if args.cpu else time.perf_counter
    result = measure(args.n, args.dim, min(args.small, args.dim), args.repeat, clock)
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:24} {value}")


if __name__ == "__main__":
    main()
