"""A fast liar floods the coordinator: it trains on flipped labels and answers ten times while others answer once.

With a buffer that takes what comes first, nearly every version is made of its updates alone and the model learns the
inverse of the truth. Each of its updates is within the norm bound, so no fault can be proven: what stops it is that a
buffer takes one update per site and that a site gets no new ticket until that buffer was applied.
"""

import heapq
from pathlib import Path

import numpy as np
import pytest

from cordon import documents, job, models
from cordon.asyncfl.coordinator import Coordinator
from cordon.asyncfl.server_opt import make
from cordon.data.contract import FeatureContract
from cordon.data.harmonise import scale
from cordon.demo import wdbc
from cordon.dp.train import clip_update, train_round
from cordon.errors import ConfigError
from cordon.evaluation import auc_and_accuracy
from cordon.flare.aggregation import of
from cordon.messages import DPEvent, UpdateHeader
from cordon.robust import RULES

LIAR = "hospital-e"
SPEED = 10
JOB = job.from_folder("oncology", Path(__file__).parents[2] / "jobs" / "oncology" / "app" / "config")
ARGS, ASKS = JOB.controller, JOB.executor


class Hospitals:
    """The five sites' data and their rounds, the product's own training."""

    def __init__(self, seed: int) -> None:
        split = wdbc.split(seed)
        contract = documents.parse(JOB.contract, FeatureContract, "contract.yml")
        self.data = {
            site: (scale(contract.features, table.x), table.y.astype(np.float32))
            for site, table in {**split.sites, "reference": split.reference}.items()
        }
        self.data[LIAR] = (self.data[LIAR][0], 1 - self.data[LIAR][1])
        self.features = len(contract.features)
        self.module = models.build(ASKS.model, ASKS.model_args, self.features)
        self.rng, self.count = np.random.default_rng(seed), seed * 10_000

    def initial(self) -> np.ndarray:
        return models.initial_vector(ASKS.model, ASKS.model_args, self.features, ARGS.init_seed)

    def train(self, site: str, w: np.ndarray) -> np.ndarray:
        self.count += 1
        models.set_vector(self.module, w)
        delta = train_round(self.module, *self.data[site], ASKS.dp, ASKS.learning_rate, unsafe_seed=self.count)
        factor = 10 if site == LIAR else 1
        return clip_update((factor * delta).astype(np.float32), ARGS.norm_bound)

    def seconds(self, site: str) -> float:
        return float(self.rng.uniform(1.0, 1.6)) / (SPEED if site == LIAR else 1)

    def auc(self, w: np.ndarray) -> float:
        models.set_vector(self.module, w)
        return auc_and_accuracy(self.module, *self.data["reference"])[0]


def unsafe_first_come_buffer(seed: int) -> float:
    """AUC of the same job where a buffer takes the first three updates, whoever sends them (unsafe on purpose)."""
    hospitals = Hospitals(seed)
    model, optimizer, buffer = hospitals.initial(), make(ARGS.server_opt), []
    arrivals = [(hospitals.seconds(site), site, model) for site in wdbc.SITES]
    heapq.heapify(arrivals)
    for _ in range(ARGS.versions * ARGS.buffer):
        now, site, base = heapq.heappop(arrivals)
        buffer.append(hospitals.train(site, base))
        if len(buffer) == ARGS.buffer:
            mean = RULES["weighted_mean"](buffer, np.ones(len(buffer)))
            model = (model + optimizer.step(mean)).astype(np.float32)
            buffer.clear()
        heapq.heappush(arrivals, (now + hospitals.seconds(site), site, model))
    return hospitals.auc(model)


def coordinated(seed: int) -> tuple[float, int, int]:
    """(AUC, updates of the liar that counted, tickets it asked for in vain) under the product's coordinator."""
    hospitals = Hospitals(seed)
    event = DPEvent.of(ASKS.dp)
    layout = models.layout_of(hospitals.module).digest
    core = Coordinator(ARGS, wdbc.SITES, {}, hospitals.initial(), layout, dp_event=event, rule=of(ARGS))
    arrivals, issued, counted, refused, now = [], 0, 0, 0, 0.0
    while core.finished() is None:
        for site in core.wants():
            ticket = core.issue(site, f"t{issued}", now)
            heapq.heappush(arrivals, (now + hospitals.seconds(site), issued, ticket, core.model))
            issued += 1
        now, _, ticket, base = heapq.heappop(arrivals)
        header = UpdateHeader(
            v=1,
            job="j",
            ticket=ticket.id,
            base_version=ticket.version,
            model_chain_head=ticket.head,
            layout_digest=layout,
            privacy=ARGS.privacy,
            dp_event=event,
            sealed_to="0" * 64,
            payload_sha256="0" * 64,
        )
        core.submit(ticket.site, header, hospitals.train(ticket.site, base))
        counted += ticket.site == LIAR
        if ticket.site == LIAR and not core.ready():
            with pytest.raises(ConfigError):  # it is at the door again at once
                core.issue(LIAR, f"again-{issued}", now)
            refused += 1
        if core.ready():
            made = core.apply()
            assert made.sites.count(LIAR) <= 1
            assert len(set(made.sites)) == ARGS.buffer
    assert core.excluded == ()  # nothing it did could be proven
    return hospitals.auc(core.model), counted, refused


def test_a_buffer_that_takes_several_updates_of_a_fast_liar_learns_the_inverse_of_the_truth() -> None:
    assert np.mean([unsafe_first_come_buffer(seed) for seed in range(3)]) < 0.10


def test_a_fast_liar_gets_one_update_per_buffer_and_the_model_stands() -> None:
    """It still is in every buffer, a third of each version: that cost is the weighted mean's (breakdown point 0)."""
    runs = [coordinated(seed) for seed in range(4)]
    assert min(auc for auc, _, _ in runs) > 0.80
    assert np.mean([auc for auc, _, _ in runs]) > 0.90
    assert all(counted <= ARGS.versions for _, counted, _ in runs)
    assert all(refused > 0 for _, _, refused in runs)
