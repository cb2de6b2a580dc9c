"""What it gains to share out the noise: three sites at one epsilon, on the Wisconsin breast cancer measurements.

    PYTHONPATH=custom python tests/bench/bench_distributed_dp.py [--json] [--seeds 100] [--epsilon 1.0]

Every scenario has the same plan (sampling rate, clip, learning rate, 10 rounds of 1 step) and is calibrated to the same
epsilon for every patient, add or remove one, by PLD at delta 1e-5:

* ``local``           each site hides its own update: it holds though all others collude. Sums through the ring.
* ``distributed_c0``  shares of noise in the ring; it holds against the coordinator.
* ``distributed_c1``  the same, against the coordinator and one of the two other sites.
* ``central``         one trusted party with all patients: DP-SGD on the pooled table. What distributing cannot beat.

What runs is the product's: ``train_round``, ``unnoised_step``, ``clip_update``, ``Shares``, ``SharedNoise``, the ring's
``choose``, ``encode``, ``add_noise`` and ``decode``. Left out are the masks, which cancel exactly. Noise and sampling
are seeded here for repeatability, which a hospital never does.

Each seed is another split: 30 % reference, the rest dealt to three sites at random. The plan was chosen on split seeds
100 to 115, by a grid over q, rounds, C and learning rate at epsilon 1: within 0.0001 of the grid's best for ``local``,
so nothing is tuned in favour of the others. No such search could be had for free on real data.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from cordon import documents, job, models
from cordon.data.contract import FeatureContract
from cordon.data.harmonise import scale
from cordon.demo import wdbc
from cordon.dp.accounting import epsilon
from cordon.dp.distributed import SharedNoise, Shares, noise_bound
from cordon.dp.noise import keystream
from cordon.dp.train import clip_update, train_round, unnoised_step
from cordon.evaluation import auc_and_accuracy
from cordon.job import Job, Masked, threshold
from cordon.messages import DPEvent
from cordon.params import Vector
from cordon.secagg import fixedpoint

CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "oncology" / "app" / "config"
SITES, U_MIN, ROUNDS, DELTA = 3, 3, 10, 1e-5
RATE, CLIP, LEARNING_RATE, NORM_BOUND = 0.5, 1.0, 3.0, 4.0
BATCH = 65.0  # of a site: the rate times what a third of the patients is about
SCENARIOS = ("local", "distributed_c0", "distributed_c1", "central")

Table = tuple[Vector, Vector]


def plan(noise_multiplier: float, *, colluders: int = 0, pooled: bool = False) -> Job:
    """The job of three sites at this multiplier; ``pooled``: of one site with everybody's patients."""
    shipped, replace = job.from_folder("oncology", CONFIG), msgspec.structs.replace
    dp = replace(
        shipped.executor.dp,
        noise_multiplier=noise_multiplier,
        sampling_rate=RATE,
        steps=1,
        clip_norm=CLIP,
        expected_batch_size=BATCH * (SITES if pooled else 1),
        delta=DELTA,
    )
    controller = replace(
        shipped.controller,
        privacy="masked",
        masked=Masked(u_min=U_MIN, c=colluders, distributed=True),
        buffer=SITES,
        versions=ROUNDS,
        rounds_per_site=ROUNDS,
        norm_bound=NORM_BOUND,
    )
    return replace(
        shipped, controller=controller, executor=replace(shipped.executor, dp=dp, learning_rate=LEARNING_RATE)
    )


def ring_of(the_job: Job, noise: float) -> fixedpoint.Ring:
    return fixedpoint.choose(32, SITES, the_job.controller.norm_bound, noise)


def shared_noise(the_job: Job, size: int) -> SharedNoise:
    colluders = 0 if the_job.controller.masked is None else the_job.controller.masked.c
    shares = Shares.of(the_job, max(threshold(SITES, colluders), U_MIN))
    return SharedNoise.of(the_job, shares, size, ring_of(the_job, noise_bound(the_job)).scale)


def least_noise(cost: Callable[[float], float], target: float) -> float:
    """The least multiplier, to 1e-4 of it, at which ``cost`` is ``target`` or less."""
    low, high = 1e-2, 1e3
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= target else (middle, high)
    return high


@dataclass(frozen=True)
class Calibrated:
    """Epsilon of a scenario, its multiplier per site and of the sum that its claim rests on, and of the whole sum."""

    epsilon: float
    share: float
    guaranteed: float
    total: float


def calibrate(target: float, size: int) -> dict[str, Calibrated]:
    """Each scenario at ``target``."""

    def gaussian(multiplier: float) -> float:
        return epsilon([(DPEvent.of(plan(multiplier).executor.dp), ROUNDS)], DELTA)

    alone = least_noise(gaussian, target)
    found = {
        "local": Calibrated(gaussian(alone), alone, alone, alone * math.sqrt(SITES)),
        "central": Calibrated(gaussian(alone), alone, alone, alone),
    }
    for colluders in (0, 1):

        def shared(multiplier: float, c: int = colluders) -> float:
            return shared_noise(plan(multiplier, colluders=c), size).epsilon(DELTA)

        share = least_noise(shared, target)
        shares = Shares.of(plan(share, colluders=colluders), U_MIN)
        found[f"distributed_c{colluders}"] = Calibrated(
            shared(share), share, shares.event().noise_multiplier, share * math.sqrt(SITES)
        )
    return found


def divide(seed: int, the_job: Job) -> tuple[list[Table], Table]:
    """Three sites of equal size, and the reference set, scaled by the contract's public constants."""
    contract = documents.parse(the_job.contract, FeatureContract, "contract.yml")
    split = wdbc.split(seed)

    def scaled(x: Any, y: Any) -> Table:
        return scale(contract.features, x), y.astype(np.float32)

    x = np.concatenate([table.x for table in split.sites.values()])
    y = np.concatenate([table.y for table in split.sites.values()])
    dealt = np.array_split(np.random.default_rng([seed, 3]).permutation(len(y)), SITES)
    return [scaled(x[rows], y[rows]) for rows in dealt], scaled(split.reference.x, split.reference.y)


def train(scenario: str, calibrated: Calibrated, sites: list[Table], reference: Table, seed: int) -> float:
    """AUC after all rounds."""
    the_job = plan(calibrated.share, colluders=int(scenario == "distributed_c1"), pooled=scenario == "central")
    asks = the_job.executor
    features = sites[0][0].shape[1]
    module = models.build(asks.model, asks.model_args, features)
    model = models.initial_vector(asks.model, asks.model_args, features, the_job.controller.init_seed)
    shared = shared_noise(the_job, model.size) if scenario.startswith("distributed") else None
    if scenario == "central":
        sites = [(np.concatenate([x for x, _ in sites]), np.concatenate([y for _, y in sites]))]
    ring = ring_of(the_job, 0.0 if shared is None else noise_bound(the_job))
    rng = np.random.default_rng([seed, SCENARIOS.index(scenario)])
    for _ in range(ROUNDS):
        models.set_vector(module, model)
        total = np.zeros(model.size, ring.dtype)
        for x, y in sites:
            step = train_round if shared is None else unnoised_step
            delta = step(module, x, y, asks.dp, asks.learning_rate, unsafe_seed=int(rng.integers(2**63)))
            delta = clip_update(delta, NORM_BOUND)
            if scenario == "central":
                model = model + delta
                continue
            words = fixedpoint.encode(delta, 1.0, NORM_BOUND, ring, rng.bytes)
            if shared is not None:
                stream = keystream(unsafe_seed=int(rng.integers(2**63)))
                fixedpoint.add_noise(words, shared.draw(ring.scale, U_MIN, stream.words))
            total += words
        if scenario != "central":
            model = model + fixedpoint.decode(total, ring, SITES)
    models.set_vector(module, model)
    return auc_and_accuracy(module, *reference)[0]


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def run(seeds: int, target: float) -> dict[str, Any]:
    """All figures over ``seeds`` splits."""
    size = len(documents.parse(plan(1.0).contract, FeatureContract, "contract.yml").features) + 1
    calibrated = calibrate(target, size)
    auc: dict[str, list[float]] = {scenario: [] for scenario in SCENARIOS}
    for seed in range(seeds):
        sites, reference = divide(seed, plan(1.0))
        for scenario in SCENARIOS:
            auc[scenario].append(train(scenario, calibrated[scenario], sites, reference, seed))
    # Splits differ more than scenarios do: the gain is measured within each split.
    gain = {
        scenario: [mine - local for mine, local in zip(auc[scenario], auc["local"], strict=True)]
        for scenario in SCENARIOS[1:]
    }
    whole = {
        scenario: asdict(shared_noise(plan(calibrated[scenario].share, colluders=c), size).figures(DELTA))
        for c, scenario in enumerate(SCENARIOS[1:3])
    }
    return {
        "seeds": seeds,
        "rounds": ROUNDS,
        "delta": DELTA,
        "auc": {scenario: statistics.mean(values) for scenario, values in auc.items()},
        "se": {scenario: standard_error(values) for scenario, values in auc.items()},
        "gain": {scenario: statistics.mean(values) for scenario, values in gain.items()},
        "gain_se": {scenario: standard_error(values) for scenario, values in gain.items()},
        "epsilon": {scenario: calibrated[scenario].epsilon for scenario in SCENARIOS},
        "noise_multiplier": {scenario: calibrated[scenario].share for scenario in SCENARIOS},
        "guaranteed_multiplier": {scenario: calibrated[scenario].guaranteed for scenario in SCENARIOS},
        "noise_of_the_sum": {scenario: calibrated[scenario].total for scenario in SCENARIOS},
        "epsilon_by_adversary": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", type=int, default=100, help="number of data splits (default and at most 100)")
    parser.add_argument("--epsilon", type=float, default=1.0, help="of every scenario (default 1)")
    options = parser.parse_args()
    if not 1 <= options.seeds <= 100 or not 0.05 <= options.epsilon <= 20:
        parser.error("--seeds must be 1 to 100, --epsilon 0.05 to 20")
    torch.set_num_threads(1)
    figures = run(options.seeds, options.epsilon)
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{'scenario':16} {'AUC':>8} {'s.e.':>8} {'gain':>9} {'s.e.':>8} {'epsilon':>8} {'share':>8} {'of sum':>8}")
    for scenario in SCENARIOS:
        row = [figures[key].get(scenario, 0.0) for key in ("auc", "se", "gain", "gain_se")]
        row += [figures[key][scenario] for key in ("epsilon", "noise_multiplier", "noise_of_the_sum")]
        print(f"{scenario:16} " + " ".join(f"{value:{8 + (i == 2)}.4f}" for i, value in enumerate(row)))


if __name__ == "__main__":
    main()
