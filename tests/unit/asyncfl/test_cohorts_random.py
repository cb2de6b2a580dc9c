"""Masked jobs under thousands of random orders of events: no dead end, no update counted twice, always an end."""

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.asyncfl.records import Cohort, Ticket
from cordon.asyncfl.versions import plain
from cordon.errors import UpdateRejected
from cordon.job import ControllerArgs, Groups, Masked, ServerOpt
from cordon.messages import DPEvent

LAYOUT = "1" * 64
EVENT = DPEvent(
    mechanism="poisson_subsampled_gaussian",
    noise_multiplier=6.0,
    sampling_rate=0.5,
    steps=5,
    clip_norm=1.0,
    unit="patient",
)
SITES = [f"s{index:02}" for index in range(14)]
MAP = (SITES[:4], SITES[4:8], SITES[8:14])
ROUNDS, VERSIONS = 4, 3


@dataclass(frozen=True)
class Said:
    ticket: str
    base_version: int
    model_chain_head: str
    layout_digest: str = LAYOUT
    privacy: str = "masked"
    dp_event: DPEvent = EVENT


def arguments(mode: str, c: int) -> ControllerArgs:
    groups = Groups(size=4, f=1) if mode == "groups" else None
    return ControllerArgs(
        privacy="masked",
        rule="median" if groups else "weighted_mean",
        server_opt=ServerOpt(algorithm="FedAvg"),
        buffer=3 if groups else 9,
        versions=VERSIONS,
        rounds_per_site=ROUNDS,
        norm_bound=10.0,
        max_staleness=2,
        max_faults=2,
        ticket_timeout_s=5.0,
        masked=Masked(u_min=3, c=c, max_aborts=2, groups=groups),
    )


class World:
    """Sites and a network that do whatever chance says; what each ticket came to is kept beside the coordinator."""

    def __init__(self, mode: str, seed: int) -> None:
        self.rng = random.Random(seed)
        args = arguments(mode, self.rng.choice((0, 1)))
        mean = plain(lambda rows, weights: np.mean(rows, axis=0))
        self.core = MaskedCoordinator(args, SITES, {}, np.zeros(2, np.float32), LAYOUT, dp_event=EVENT, rule=mean)
        if mode == "groups":
            self.core.draw(MAP)
        self.now, self.count = 0.0, 0
        self.known: dict[str, Ticket] = {}  # every ticket, by its id
        self.latest: dict[str, Ticket] = {}  # the last of each site
        self.masked: set[str] = set()  # tickets that were masked, or may have been
        self.counted: Counter[str] = Counter()  # ticket -> sums it was in
        self.applied: Counter[str] = Counter()  # site -> versions it is in

    def new_id(self) -> str:
        self.count += 1
        return f"id-{self.count}"

    def out(self) -> list[Ticket]:
        return [ticket for site in SITES if (ticket := self.core.outstanding(site)) is not None]

    def check(self) -> None:
        """One place for each site, and no state without a move."""
        core = self.core
        places = [core.pool, *(cohort.sites for cohort in core.cohorts), [ticket.site for ticket in self.out()]]
        at = Counter(site for place in places for site in place)
        at.update(core.unspent())
        assert all(number == 1 for number in at.values())
        assert not set(core.buffered) & {site for cohort in core.cohorts for site in cohort.sites}
        assert len(set(core.buffered)) == len(core.buffered)
        assert not set(core.wants()) & ({*at} | {*core.buffered})
        assert all(used <= ROUNDS for used in core.rounds_used.values())
        assert all(number == 1 for number in self.counted.values())
        asked = core.wants() or core.unspent()
        assert asked or self.out() or core.cohorts or core.ready_to_apply() or self.form() or core.finished()

    def form(self) -> Cohort | None:
        cohort = self.core.form(self.new_id(), self.now)
        if cohort is not None:
            assert len(cohort.sites) >= cohort.least == self.core.args.masked.least(len(cohort.sites))
            assert not {self.latest[site].id for site in cohort.sites} & self.masked  # no reuse after masking
        return cohort

    def say_ready(self, ticket: Ticket, *, base: int = 0) -> None:
        self.core.ready(ticket.site, Said(ticket.id, ticket.version + base, ticket.head))

    def fault(self, ticket: Ticket, *, base: int = 0) -> None:
        before = self.core.pool
        with pytest.raises(UpdateRejected):
            self.say_ready(ticket, base=base)
        assert not set(self.core.pool) - set(before)

    def issue(self) -> None:
        if wants := self.core.wants():
            ticket = self.core.issue(self.rng.choice(wants), self.new_id(), self.now)
            self.known[ticket.id] = self.latest[ticket.site] = ticket

    def again(self) -> None:
        if unspent := self.core.unspent():
            ticket = self.core.again(self.rng.choice(unspent), self.now)
            assert ticket.id == self.latest[ticket.site].id
            if ticket.id in self.masked:  # the site refuses: update_spent
                self.core.spent(ticket.site, ticket.id)
                assert self.core.outstanding(ticket.site) is None

    def ready(self) -> None:
        if out := self.out():
            try:
                self.say_ready(self.rng.choice(out))
            except UpdateRejected as error:
                assert error.code == "too_stale"

    def open(self) -> None:
        groups = self.core.groups
        if self.core.cohorts and not (groups and self.core.ready_to_apply()):
            cohort = self.rng.choice(self.core.cohorts)
            survivors = self.rng.sample(cohort.sites, self.rng.randint(cohort.least, len(cohort.sites)))
            others = [site for site in cohort.sites if site not in survivors]
            unspent = [site for site in others if self.rng.random() < 0.5]
            self.masked.update(self.latest[site].id for site in cohort.sites if site not in unspent)
            self.counted.update(self.latest[site].id for site in survivors)
            self.core.opened(cohort.id, survivors, np.ones(2, np.float32), unspent=unspent)

    def abort(self) -> None:
        if self.core.cohorts:
            cohort = self.rng.choice(self.core.cohorts)
            spent = [site for site in cohort.sites if self.rng.random() < 0.5]
            self.masked.update(self.latest[site].id for site in spent)
            self.core.aborted(cohort.id, spent, "lost")

    def apply(self) -> None:
        if self.core.ready_to_apply():
            waiting = self.core.buffered
            version = self.core.apply()
            assert len(set(version.sites)) == len(version.sites)
            assert set(version.sites) <= set(waiting)
            assert np.array_equal(self.core.model, np.full(2, version.number, np.float32))

    def lose(self) -> None:
        self.core.lose(self.rng.choice(SITES), "disconnected")

    def returned(self) -> None:
        self.core.returned(self.rng.choice(SITES))

    def time(self) -> None:
        self.now += self.rng.random() * 4
        for ticket in self.core.expired(self.now):
            self.core.lose(ticket.site, "no answer")

    def replay(self) -> None:
        out = {ticket.id for ticket in self.out()}
        known = [ticket for ticket in self.known.values() if ticket.id not in out]
        if known and self.rng.random() < 0.2:
            self.fault(self.rng.choice(known))

    def lie(self) -> None:
        if (out := self.out()) and self.rng.random() < 0.2:
            self.fault(self.rng.choice(out), base=1)

    def refuse(self) -> None:
        if self.rng.random() < 0.3:
            self.core.refuse(self.rng.choice(SITES), "site_error")

    def take_over(self) -> None:
        if self.rng.random() < 0.2:
            for cohort in self.core.cohorts:  # the dead process may have made some of them mask
                self.masked.update(self.latest[site].id for site in cohort.sites if self.rng.random() < 0.5)
            self.core.take_over(self.now)


WILD = ["issue", "ready", "again", "form", "open", "apply"] * 4 + [
    "abort", "lose", "returned", "returned", "time", "replay", "lie", "refuse", "take_over",
]  # fmt: skip
KIND = ["issue", "again", "ready", "form", "open", "apply"]


@pytest.mark.parametrize("mode", ["sum", "groups"])
@pytest.mark.parametrize("part", range(4))
def test_whatever_happens_it_goes_on_or_says_why_not(mode: str, part: int) -> None:
    reasons: Counter[str] = Counter()
    for seed in range(part * 1000, part * 1000 + 80):
        world = World(mode, seed)
        for _ in range(world.rng.choice((10, 50, 500))):
            if world.core.finished() is not None and "lost" not in world.core.state.values():
                break
            getattr(world, world.rng.choice(WILD))()
            world.check()
        for site in SITES:  # from here on everybody behaves: it must come to an end
            world.core.returned(site)
        for _ in range(3000):
            if world.core.finished() is not None:
                break
            getattr(world, world.rng.choice(KIND))()
            world.check()
        reason = world.core.finished()
        assert reason is not None
        assert world.core.version <= VERSIONS
        reasons["all" if world.core.version == VERSIONS else "too few"] += 1
    assert min(reasons["all"], reasons["too few"]) >= 3  # both ends were seen
