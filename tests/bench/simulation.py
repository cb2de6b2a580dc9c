"""A federation under a simulated clock: the product's own coordinators, at the cost that a network and machines have.

A discrete-event simulation. What decides (who gets a ticket, which update counts, who forms a cohort, when a version is
made) is ``cordon.asyncfl``, the code that runs in production. What is made up is time, by ``Costs``: formulas of the
number of parameters, so that 1e8 of them cost what they cost without being there. Deterministic for a seed.

The coordinator's link (each way) and its processor are one queue each: with a thousand hospitals they are what
saturates.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from cordon import messages, staleness
from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.asyncfl.coordinator import Coordinator
from cordon.errors import UpdateRejected
from cordon.job import ControllerArgs, DPPlan
from cordon.messages import DPEvent, UpdateHeader
from cordon.params import Vector

LAYOUT = "1" * 64
EVENT = DPEvent.of(
    DPPlan(
        noise_multiplier=1.0,
        sampling_rate=0.5,
        steps=1,
        clip_norm=1.0,
        expected_batch_size=10.0,
        delta=1e-5,
        unit="patient",
    )
)


@dataclass(frozen=True)
class Costs:
    """Seconds, bytes and rates. Rates of arithmetic are one core's, of the reference's measurements.

    Args:
        dim: parameters of the model.
        train_s: site -> how long one round takes there, median; each round varies by +-25 %.
        site_link: bytes/s of a hospital's link, each way.
        coordinator_link: bytes/s of the coordinator's, each way, shared by all.
        latency_s: one way.
        tick_s: the study's public time grid; 0 for none.
        keystream: bytes/s of AES-128-CTR. memory: bytes/s of reading vectors. sealing: bytes/s of AES-256-GCM.
        agreement_s: one X25519 agreement with its HKDF.
        rule_reads: how many times the rule costs of reading the buffer once (bench_robust).
    """

    dim: int
    train_s: Mapping[str, float]
    site_link: float = 100e6 / 8
    coordinator_link: float = 10e9 / 8
    latency_s: float = 0.02
    tick_s: float = 1.0
    keystream: float = 4.5e9
    memory: float = 7e9
    sealing: float = 2.0e9
    agreement_s: float = 60e-6
    rule_reads: float = 1.0

    @property
    def vector(self) -> float:
        """Bytes of one vector, in the clear or masked (4 bytes a parameter)."""
        return 4.0 * self.dim

    def site_transfer(self) -> float:
        """A vector over a hospital's link."""
        return self.latency_s + self.vector / self.site_link

    def mask(self, members: int) -> float:
        """A member's masks: one stream for each other member and its own; agreements of both keys with each."""
        return members * self.vector / self.keystream + 2 * members * self.agreement_s

    def unmask(self, r1: int, survivors: int) -> float:
        """Every survivor's self mask, and for each lost member its pair masks with the survivors."""
        streams = survivors + (r1 - survivors) * survivors
        return streams * self.vector / self.keystream + streams * self.agreement_s


@dataclass
class Track:
    """What came of a run. ``times[i]`` is when version i + 1 was made; ``metrics`` of each, if they were asked for."""

    times: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    updates: dict[str, int] = field(default_factory=dict)
    staleness: list[int] = field(default_factory=list)
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    inward_busy_s: float = 0.0
    outward_busy_s: float = 0.0
    cpu_busy_s: float = 0.0
    reason: str = ""
    end: float = 0.0

    def time_to(self, target: float) -> float:
        """When the metric first reached ``target``; infinity if it never did."""
        return next((t for t, metric in zip(self.times, self.metrics, strict=True) if metric >= target), math.inf)


class _Queue:
    """One resource of the coordinator: work waits for the work before it."""

    def __init__(self) -> None:
        self.free_at = 0.0
        self.busy = 0.0

    def done(self, now: float, seconds: float) -> float:
        self.free_at = max(self.free_at, now) + seconds
        self.busy += seconds
        return self.free_at


class Simulation:
    """Drives one coordinator from event to event.

    Args:
        state: the product's state machine, sealed or masked.
        work: (site, model (d,), round) -> delta (d,).
        dies: site -> when it falls silent. returns: site -> when it is heard of again.
    """

    def __init__(
        self,
        state: Coordinator | MaskedCoordinator,
        costs: Costs,
        work: Callable[[str, Vector, int], Vector],
        *,
        seed: int,
        metric: Callable[[Vector], float] | None = None,
        until: float = math.inf,
        dies: Mapping[str, float] | None = None,
        returns: Mapping[str, float] | None = None,
    ) -> None:
        self.state, self.costs, self.work, self.metric, self.until = state, costs, work, metric, until
        self.rng = np.random.default_rng([seed, 7])
        self.dies, self.back = dict(dies or {}), dict(returns or {})
        self.now, self.number = 0.0, 0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.inward, self.outward, self.processor = _Queue(), _Queue(), _Queue()
        self.track = Track(updates=dict.fromkeys(state.sites, 0))
        self.rounds = dict.fromkeys(state.sites, 0)
        self.deltas: dict[str, Vector] = {}
        for site, at in self.back.items():
            self._at(at, self._returns, site)

    def run(self) -> Track:
        """To the job's end, or to ``until``."""
        while True:
            self.track.reason = self.state.finished() or ""
            if self.track.reason:
                break
            for site in self.state.wants():
                self._issue(site)
            if not self.events:
                raise RuntimeError("nothing happens any more and the job is not over")
            at, _, act, about = heapq.heappop(self.events)
            if at > self.until:
                self.track.reason = "time is up"
                break
            self.now = at
            act(*about)
        self.track.end = self.now
        self.track.inward_busy_s, self.track.outward_busy_s = self.inward.busy, self.outward.busy
        self.track.cpu_busy_s = self.processor.busy
        return self.track

    # -- a round --------------------------------------------------------------------------------------------------

    def _issue(self, site: str) -> None:
        ticket = self.state.issue(site, f"ticket-{self.number:012d}", self.now)
        self.rounds[site] += 1
        self.track.bytes_out += self.costs.vector
        seconds = self.costs.train_s[site] * self.rng.uniform(0.75, 1.25)
        sent = self.outward.done(self.now, self.costs.vector / self.costs.coordinator_link)
        trained = sent + self.costs.site_transfer() + seconds
        if self._silent(site, trained):
            self._at(self.now + self.state.args.ticket_timeout_s, self._lose, site, ticket.id)
            return
        self._at(self._tick(trained), self._trained, site, ticket, self.rounds[site])

    def _trained(self, site: str, ticket: Any, number: int) -> None:
        self.deltas[site] = self.work(site, ticket.model, number)
        if isinstance(self.state, MaskedCoordinator):
            self._ready(site, ticket)
        else:
            arrived = self._upload(self.now)
            self._at(self.processor.done(arrived, self.costs.vector / self.costs.sealing), self._judge, site, ticket)

    def _judge(self, site: str, ticket: Any) -> None:
        assert isinstance(self.state, Coordinator)
        try:
            accepted = self.state.submit(site, header(self.state.args, ticket), self.deltas.pop(site))
        except UpdateRejected:  # too old, or given up: the site may have another ticket
            self.state.returned(site)
            return
        self.track.updates[site] += 1
        self.track.staleness.append(accepted.staleness)
        if self.state.ready():
            reads = self.costs.rule_reads * self.state.args.buffer * self.costs.vector / self.costs.memory
            self.processor.done(self.now, reads)
            self._apply()

    # -- masked: cohorts ------------------------------------------------------------------------------------------

    def _ready(self, site: str, ticket: Any) -> None:
        assert isinstance(self.state, MaskedCoordinator)
        claim = SimpleNamespace(
            ticket=ticket.id,
            base_version=ticket.version,
            model_chain_head=ticket.head,
            layout_digest=LAYOUT,
            privacy="masked",
            dp_event=EVENT,
        )
        try:
            self.state.ready(site, claim)
        except UpdateRejected:
            self.state.returned(site)
            return
        self._form()

    def _form(self) -> None:
        assert isinstance(self.state, MaskedCoordinator)
        while (cohort := self.state.form(f"cohort-{self.number:012d}", self.now)) is not None:
            self.number += 1
            members = len(cohort.sites)
            masked = self.now + 4 * self.costs.latency_s + self.costs.mask(members)  # roster, shares, delivery
            lost = [site for site in cohort.sites if self._silent(site, masked)]
            survivors = [site for site in cohort.sites if site not in lost]
            arrived = max((self._upload(masked) for _ in survivors), default=masked)
            if lost:
                assert self.state.args.masked is not None
                arrived = max(arrived, self.now + self.state.args.masked.stage_timeout_s)
            confirmed = arrived + 4 * self.costs.latency_s  # survivors, confirmations, unmasking
            opened = self.processor.done(confirmed, self.costs.unmask(members, len(survivors)))
            self._at(opened, self._opened, cohort, tuple(survivors))

    def _opened(self, cohort: Any, survivors: tuple[str, ...]) -> None:
        assert isinstance(self.state, MaskedCoordinator)
        for site in set(cohort.sites) - set(survivors):
            self.state.lose(site, "silent")
        if len(survivors) < cohort.least:
            self.state.aborted(cohort.id, survivors, f"{len(survivors)} of {cohort.least} survived")
        else:
            total = np.zeros_like(self.state.model, dtype=np.float64)
            for site, tau in zip(cohort.sites, cohort.taus, strict=True):
                if site in survivors:
                    total += staleness.weight(tau, self.state.args.staleness) * self.deltas.pop(site)
                    self.track.updates[site] += 1
                    self.track.staleness.append(tau)
            self.state.opened(cohort.id, survivors, (total / len(survivors)).astype(np.float32))
        while self.state.ready_to_apply():
            self._apply()
        self._form()

    # -- what both share ------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        self.state.apply()
        self.track.times.append(self.now)
        if self.metric is not None:
            self.track.metrics.append(self.metric(self.state.model))

    def _upload(self, start: float) -> float:
        """When a vector that a site begins to send at ``start`` is in: its own link, then the coordinator's."""
        self.track.bytes_in += self.costs.vector
        return self.inward.done(start + self.costs.site_transfer(), self.costs.vector / self.costs.coordinator_link)

    def _tick(self, at: float) -> float:
        return at if self.costs.tick_s == 0 else math.ceil(at / self.costs.tick_s) * self.costs.tick_s

    def _silent(self, site: str, at: float) -> bool:
        """Whether ``site`` is away at ``at``."""
        return self.dies.get(site, math.inf) <= at < self.back.get(site, math.inf)

    def _lose(self, site: str, ticket_id: str) -> None:
        ticket = self.state.outstanding(site)
        if ticket is not None and ticket.id == ticket_id:
            self.state.lose(site, "no answer in time")
            if not self._silent(site, self.now):
                self.state.returned(site)

    def _returns(self, site: str) -> None:
        self.state.returned(site)

    def _at(self, at: float, act: Callable[..., None], *about: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (at, self.number, act, about))


def header(args: ControllerArgs, ticket: Any) -> UpdateHeader:
    """What an honest site says of its update."""
    return UpdateHeader(
        v=1,
        job="simulation",
        ticket=ticket.id,
        base_version=ticket.version,
        model_chain_head=ticket.head,
        layout_digest=LAYOUT,
        privacy=args.privacy,
        dp_event=EVENT,
        sealed_to="0" * 64,
        payload_sha256=messages.sha256(b""),
    )


def changed(args: ControllerArgs, **changes: Any) -> ControllerArgs:
    """``args`` with other values, checked again."""
    return msgspec.convert({**msgspec.to_builtins(args), **changes}, ControllerArgs)
