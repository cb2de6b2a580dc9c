"""What waiting for nobody gains, and what a federation of any size would cost: simulated time, the product's own code.

    python tests/bench/bench_async.py [--json] [--seeds 20] [--quick]
    python tests/bench/bench_async.py --plan --hospitals 1000 --dim 100000000 [--privacy masked]

The first compares, in one simulation (``simulation.py``), buffered asynchronous aggregation with synchronous FedAvg:
eight hospitals, one of them ten times slower, scikit-learn's digits split over them by Dirichlet(0.5), softmax
regression, one local epoch a round. Both end after the same number of client updates, so that neither
learns from more work. ``speedup`` = median over the seeds of (synchronous time to the target) / (asynchronous time);
the target is an accuracy of TARGET on 30 % of the digits, held out.

``--plan`` trains nothing (the vectors have one number) and prints what the size costs: time per version, updates per
hour, load of the coordinator's link and processor, staleness. Its rates are ``simulation.Costs``.

Hyper-parameters were chosen on seeds 100 to 104, outside those that are reported.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulation import EVENT, LAYOUT, Costs, Simulation, Track
from sklearn.datasets import load_digits

from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.asyncfl.coordinator import Coordinator
from cordon.job import ControllerArgs, Masked, ServerOpt, Staleness
from cordon.params import Vector
from cordon.robust import aggregate

SITES = tuple(f"hospital-{letter}" for letter in "abcdefgh")
SLOW, SLOWER_BY = "hospital-h", 10.0
TARGET = 0.93
UPDATES = 480  # of all sites together, in either scenario
ASYNC_BUFFER = 4
STALENESS = Staleness()  # the product's default
ALPHA = 0.5
CLASSES, PIXELS = 10, 64
TRAIN_S = 60.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Digits of each site and those held out: x (n, 64) in 0..1, y (n,) class numbers."""

    sites: dict[str, tuple[Floats, NDArray[np.int64]]]
    held_out: tuple[Floats, NDArray[np.int64]]

    @classmethod
    def of(cls, seed: int) -> Problem:
        """A division of the digits: each class by its own Dirichlet(ALPHA) draw, at least 20 digits a site."""
        digits = load_digits()
        x, y = np.asarray(digits.data) / 16.0, np.asarray(digits.target)
        rng = np.random.default_rng([seed, 1])
        order = rng.permutation(len(y))
        cut = int(0.3 * len(y))
        rest = order[cut:]
        while True:
            parts: dict[str, list[int]] = {site: [] for site in SITES}
            for label in range(CLASSES):
                rows = rest[y[rest] == label]
                shares = np.cumsum(rng.dirichlet([ALPHA] * len(SITES)))[:-1]
                for site, chosen in zip(SITES, np.split(rows, (shares * len(rows)).astype(int)), strict=True):
                    parts[site].extend(chosen.tolist())
            if min(map(len, parts.values())) >= 20:
                break
        return cls({site: (x[rows], y[rows]) for site, rows in parts.items()}, (x[order[:cut]], y[order[:cut]]))

    def accuracy(self, w: Vector) -> float:
        """Of the softmax regression ``w`` (650,) on what was held out."""
        x, y = self.held_out
        return float(np.mean((x @ _matrix(w)[:-1] + _matrix(w)[-1]).argmax(axis=1) == y))


def local_epoch(x: Floats, y: NDArray[np.int64], w: Vector, rng: np.random.Generator, lr: float = 0.5) -> Vector:
    """The change of ``w`` by one epoch of SGD, batches of 16."""
    weights = _matrix(w).astype(np.float64)
    start = weights.copy()
    order = rng.permutation(len(y))
    for at in range(0, len(y), 16):
        rows = order[at : at + 16]
        inputs = np.hstack([x[rows], np.ones((len(rows), 1))])
        logits = inputs @ weights
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(rows)), y[rows]] -= 1.0
        weights -= lr * inputs.T @ p / len(rows)
    return (weights - start).astype(np.float32).reshape(-1)


def _matrix(w: Vector) -> NDArray[Any]:
    return w.reshape(PIXELS + 1, CLASSES)


def controller(buffer: int, versions: int, **changes: Any) -> ControllerArgs:
    """Arguments of a sealed job that no bound but the versions ends."""
    values: dict[str, Any] = {
        "privacy": "sealed",
        "rule": "weighted_mean",
        "server_opt": ServerOpt(algorithm="FedAvg", lr=1.0),
        "buffer": buffer,
        "versions": versions,
        "rounds_per_site": 100_000,
        "norm_bound": 1000.0,
        "max_staleness": 1000,
        "ticket_timeout_s": 1e6,
    }
    return ControllerArgs(**{**values, **changes})


def weighted_mean(rows: Any, weights: Floats) -> Any:
    """The rule of both ways, as a job names it."""
    return aggregate(rows, weights, "weighted_mean")


def race(seed: int) -> dict[str, Track]:
    """Both ways over one division of the digits."""
    problem = Problem.of(seed)
    times = {site: TRAIN_S * (SLOWER_BY if site == SLOW else 1.0) for site in SITES}
    costs = Costs(dim=(PIXELS + 1) * CLASSES, train_s=times)

    def work(site: str, model: Vector, number: int) -> Vector:
        return local_epoch(*problem.sites[site], model, np.random.default_rng([seed, SITES.index(site), number]))

    ways = {
        "async": controller(ASYNC_BUFFER, UPDATES // ASYNC_BUFFER, staleness=STALENESS),
        "sync": controller(len(SITES), UPDATES // len(SITES)),
    }
    first = np.zeros((PIXELS + 1) * CLASSES, np.float32)
    return {
        name: Simulation(
            Coordinator(args, SITES, {}, first, LAYOUT, dp_event=EVENT, rule=weighted_mean),
            costs,
            work,
            seed=seed,
            metric=problem.accuracy,
        ).run()
        for name, args in ways.items()
    }


def final(track: Track) -> float:
    """Mean of the last five versions: one version of a small buffer jumps about."""
    return statistics.mean(track.metrics[-5:])


def compare(seeds: int) -> dict[str, Any]:
    """All figures over ``seeds`` divisions."""
    races = [race(seed) for seed in range(seeds)]
    speedups = [each["sync"].time_to(TARGET) / each["async"].time_to(TARGET) for each in races]
    ordered = sorted(speedups)
    return {
        "seeds": seeds,
        "target": TARGET,
        "speedup": statistics.median(speedups),
        "speedup_least": ordered[0],
        "speedup_greatest": ordered[-1],
        "reached": {
            name: sum(math.isfinite(each[name].time_to(TARGET)) for each in races) for name in ("async", "sync")
        },
        "metric_sync": statistics.mean(final(each["sync"]) for each in races),
        "metric_async": statistics.mean(final(each["async"]) for each in races),
        "metric_se": statistics.stdev(final(each["async"]) - final(each["sync"]) for each in races) / math.sqrt(seeds)
        if seeds > 1
        else 0.0,
        "updates": UPDATES,
        "hours_async": statistics.mean(each["async"].end for each in races) / 3600,
        "hours_sync": statistics.mean(each["sync"].end for each in races) / 3600,
        "slow_site_updates": statistics.mean(each["async"].updates[SLOW] for each in races),
        "staleness_mean": statistics.mean(statistics.mean(each["async"].staleness) for each in races),
        "staleness_max": max(max(each["async"].staleness) for each in races),
    }


def plan(
    hospitals: int, dim: int, *, privacy: str, buffer: int, hours: float, train_s: float, seed: int = 0
) -> dict[str, Any]:
    """What ``hours`` of a federation of this size look like: nobody learns anything, all the rest is as it would be.

    Rounds take ``train_s`` in the median, log-normally spread over the hospitals by half an order of magnitude; one
    hospital in a hundred falls silent in the first hour and comes back an hour later.
    """
    rng = np.random.default_rng([seed, 3])
    sites = tuple(f"hospital-{number:04d}" for number in range(hospitals))
    times = {site: float(train_s * rng.lognormal(0.0, 0.5)) for site in sites}
    away = sites[: hospitals // 100]
    args = controller(buffer, 100_000, ticket_timeout_s=4 * max(times.values()))
    if privacy == "masked":
        args = controller(
            buffer,
            100_000,
            privacy="masked",
            masked=Masked(u_min=max(3, buffer - 4), c=min(2, buffer - 3), max_aborts=1000, stage_timeout_s=30.0),
            ticket_timeout_s=4 * max(times.values()),
        )
    first = np.zeros(1, np.float32)
    kind = MaskedCoordinator if privacy == "masked" else Coordinator
    state = kind(args, sites, {}, first, LAYOUT, dp_event=EVENT, rule=weighted_mean)
    track = Simulation(
        state,
        Costs(dim=dim, train_s=times),
        lambda site, model, number: first,
        seed=seed,
        until=3600 * hours,
        dies={site: float(rng.uniform(0, 3600)) for site in away},
        returns={site: 7200.0 for site in away},
    ).run()
    gaps = np.diff([0.0, *track.times])
    return {
        "hospitals": hospitals,
        "dim": dim,
        "privacy": privacy,
        "buffer": buffer,
        "hours": hours,
        "versions": len(track.times),
        "version_s_median": float(np.median(gaps)) if len(gaps) else math.inf,
        "updates_per_hour": sum(track.updates.values()) / hours,
        "updates_of_a_site": {
            "least": min(track.updates.values()),
            "median": statistics.median(track.updates.values()),
            "greatest": max(track.updates.values()),
        },
        "staleness_median": statistics.median(track.staleness) if track.staleness else 0,
        "staleness_greatest": max(track.staleness, default=0),
        "gigabytes_in": track.bytes_in / 1e9,
        "gigabytes_out": track.bytes_out / 1e9,
        "link_load": {
            "in": round(track.inward_busy_s / (3600 * hours), 6),
            "out": round(track.outward_busy_s / (3600 * hours), 6),
        },
        "processor_load": round(track.cpu_busy_s / (3600 * hours), 6),
        "ended": track.reason,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    parser.add_argument("--seeds", type=int, default=20, help="divisions of the digits (default 20)")
    parser.add_argument("--quick", action="store_true", help="three divisions")
    parser.add_argument("--plan", action="store_true", help="what a federation of a size costs, instead")
    parser.add_argument("--hospitals", type=int, default=1000, help="of the plan (default 1000)")
    parser.add_argument("--dim", type=int, default=100_000_000, help="parameters of the plan's model (default 1e8)")
    parser.add_argument("--privacy", choices=("sealed", "masked"), default="sealed")
    parser.add_argument(
        "--buffer",
        type=int,
        default=0,
        help="updates a version (default half the hospitals, at most 100 sealed, 40 masked)",
    )
    parser.add_argument("--hours", type=float, default=8.0, help="simulated (default 8)")
    parser.add_argument("--train-s", type=float, default=1800.0, help="median round of a hospital (default 1800)")
    options = parser.parse_args()
    if min(options.seeds, options.hospitals, options.dim) < 1 or min(options.hours, options.train_s) <= 0:
        parser.error("--seeds, --hospitals, --dim, --hours and --train-s must be positive")
    if options.plan:
        buffer = options.buffer or max(3, min(options.hospitals // 2, 40 if options.privacy == "masked" else 100))
        figures = plan(
            options.hospitals,
            options.dim,
            privacy=options.privacy,
            buffer=buffer,
            hours=options.hours,
            train_s=options.train_s,
        )
    else:
        figures = compare(3 if options.quick else options.seeds)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")


if __name__ == "__main__":
    main()
