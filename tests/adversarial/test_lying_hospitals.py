"""Hospitals that lie to the product's own coordinators: what each can do in sealed mode, masked sum and masked groups.

Sealed: within the norm bound a liar stays, and the rule bounds how far it moves a version; over the bound it is out
after ``max_faults``; however fast, it has one voice per buffer. Masked: nobody sees one update, so one liar in a sum
moves the model as far as the ring goes, and in groups it spends its own group only.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from adversarial import attackers as liars
from adversarial.attackers import Attacker, View
from cordon import robust
from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.asyncfl.coordinator import Coordinator
from cordon.asyncfl.records import Ticket
from cordon.errors import ConfigError, UpdateRejected
from cordon.job import ControllerArgs, Groups, Masked, ServerOpt
from cordon.messages import DPEvent, sha256
from cordon.secagg import groups, terms, wire
from cordon.secagg.client import Member
from fakes.secagg_cohort import Cohort

N, F, D, BOUND = 11, 2, 30, 1.0
SITES = tuple(f"site-{number:02}" for number in range(N))
LYING = SITES[N - F :]
LAYOUT = "1" * 64
EVENT = DPEvent(
    mechanism="poisson_subsampled_gaussian",
    noise_multiplier=1.0,
    sampling_rate=0.5,
    steps=5,
    clip_norm=1.0,
    unit="patient",
)
ARGS = ControllerArgs(
    privacy="sealed",
    rule="weighted_mean",
    server_opt=ServerOpt(algorithm="FedAvg"),
    buffer=N,
    versions=100,
    rounds_per_site=100,
    norm_bound=BOUND,
    max_faults=2,
)
TAU = 0.2
Chain = tuple[str, dict[str, float], tuple[tuple[str, dict[str, float]], ...]]
CHAINS: dict[str, Chain] = {
    "weighted_mean": ("weighted_mean", {}, ()),
    "centered_clipping": ("centered_clipping", {"tau": TAU}, ()),
    "norm_bounding": ("norm_bounding", {"bound": TAU}, ()),
    "trimmed_mean": ("trimmed_mean", {"f": F}, ()),
    "multi_krum": ("multi_krum", {"f": F}, ()),
    "geometric_median": ("geometric_median", {}, ()),
    "nnm+trimmed_mean": ("trimmed_mean", {"f": F}, (("nnm", {"f": F}),)),
}
ATTACKS: dict[str, Callable[[], Attacker]] = {
    "sign_flip": liars.SignFlip,
    "scaling": lambda: liars.Scaling(-1e6),
    "model_replacement": lambda: liars.ModelReplacement(np.full(D, 100.0)),
    "alie": lambda: liars.Alie(1.5),
    "ipm": lambda: liars.Ipm(50.0),
    "optimised_alie": liars.OptimisedAlie,
    "optimised_ipm": liars.OptimisedIpm,
    "mimic": liars.Mimic,
    "min_max": liars.MinMax,
    "min_sum": liars.MinSum,
    "relocated_orthogonal": lambda: liars.RelocatedOrthogonal(5.0),
    "clipping_adaptive": lambda: liars.CenteredClippingAdaptive(TAU),
}


def honest_updates(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, d) float32 that agree in the main: 0.3 long along one direction, with a spread of 0.1."""
    rows = 0.3 * np.eye(D)[0] + rng.standard_normal((count, D)) * 0.1 / math.sqrt(D)
    return rows.astype(np.float32)


def chained(chain: Chain) -> Callable[..., robust.Outcome]:
    """The coordinator's aggregation: ``robust.aggregate`` with a job's arguments and the rule's state."""
    rule, args, pre = chain
    state: list[Any] = [None]

    def aggregate(rows: Any, weights: Any, keep: bool = True) -> robust.Outcome:
        outcome = robust.aggregate(rows, weights, rule, args, pre, state[0])
        if keep:
            state[0] = outcome.step
        return outcome

    return aggregate


class Job:
    """A sealed job in lockstep: ``F`` sites are the attacker's, unless they were excluded."""

    def __init__(self, chain: Chain, attacker: Attacker, **changes: Any) -> None:
        self.aggregate, self.attacker = chained(chain), attacker
        args = msgspec.structs.replace(ARGS, **changes)
        start = np.zeros(D, np.float32)
        self.core = Coordinator(args, SITES, {}, start, LAYOUT, dp_event=EVENT, rule=self.aggregate)
        self.rng = np.random.default_rng(0)
        self.models = [self.core.model]
        self._ids = itertools.count()

    def issue(self, site: str, now: float = 0.0) -> Ticket:
        return self.core.issue(site, f"t{next(self._ids)}", now)

    def submit(self, ticket: Ticket, row: np.ndarray) -> None:
        self.core.submit(ticket.site, claim(ticket, "sealed"), row)

    def version(self) -> tuple[np.ndarray, np.ndarray]:
        """Make one; (rows as sent, step)."""
        honest, own = honest_updates(self.rng, N - F), honest_updates(self.rng, F)
        tried = partial(self.aggregate, weights=np.ones(N), keep=False)
        view = View(honest, own, self.models, BOUND, self.rng, lambda rows: tried(np.float32(rows)).step)
        rows = np.concatenate([honest, self.attacker(view)])
        for site, row in zip(SITES, rows, strict=True):
            self.submit(self.issue(site), row)
        self.core.apply()
        self.models.append(self.core.model)
        return rows, self.models[-1] - self.models[-2]


def claim(ticket: Ticket, privacy: str) -> Any:
    return SimpleNamespace(
        ticket=ticket.id,
        base_version=ticket.version,
        model_chain_head=ticket.head,
        layout_digest=LAYOUT,
        privacy=privacy,
        dp_event=EVENT,
    )


# -- sealed: within the bound -----------------------------------------------------------------------------------------


def farthest(chain: str, rows: np.ndarray, before: np.ndarray) -> float:
    """How far from the honest mean the step of these rows can lie by what is proven of the rule; see ``rules.py``."""
    honest = rows[: N - F].astype(np.float64)
    off = np.linalg.norm(honest - honest.mean(axis=0), axis=1)
    scatter, part = float(np.mean(off**2)), F / N
    if chain == "weighted_mean":
        return part * (BOUND + float(np.linalg.norm(honest.mean(axis=0))))
    if chain in ("centered_clipping", "norm_bounding"):
        # The honest who are cut miss what is over tau; f of n add tau each, and keep as much from being added.
        centre = before if chain == "centered_clipping" else np.zeros(D)
        away = np.linalg.norm(honest - centre, axis=1)
        missed = np.maximum(away - TAU, 0).mean()
        return part * (TAU + float(np.linalg.norm(honest.mean(axis=0) - centre))) + (1 - part) * float(missed)
    # (f, kappa)-robustness: |R - mean|^2 <= kappa scatter. Allouah et al. 2023, table 1 and Lemma 1 (NNM).
    trimmed = 6 * F / (N - 2 * F) * (1 + F / (N - 2 * F))
    krum, median = 6 * (1 + F / (N - 2 * F)), 4 * (1 + F / (N - 2 * F)) ** 2
    kappa = {
        "trimmed_mean": trimmed,
        "multi_krum": krum,
        "geometric_median": median,
        "nnm+trimmed_mean": 8 * F / (N - F) * (trimmed + 1),
    }[chain]
    return math.sqrt(kappa * scatter)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("chain", CHAINS)
def test_liars_within_the_bound_stay_and_move_a_version_no_further_than_the_rule_says(chain: str, attack: str) -> None:
    job = Job(CHAINS[chain], ATTACKS[attack]())
    before = np.zeros(D)
    for _ in range(5):
        rows, step = job.version()
        shift = np.linalg.norm(step - rows[: N - F].mean(axis=0))
        assert shift <= farthest(chain, rows, before) + 1e-5
        before = step
    assert job.core.excluded == ()
    assert not any(job.core.faults.values())


@pytest.mark.parametrize("chain", ["trimmed_mean", "multi_krum", "geometric_median", "nnm+trimmed_mean"])
def test_the_same_liars_move_a_plain_mean_further_than_any_of_these_rules(chain: str) -> None:
    """So the bounds above say something: the mean breaks the bound that each of these keeps."""
    for attack in ("scaling", "ipm", "optimised_ipm"):
        mean, robust_one = Job(CHAINS["weighted_mean"], ATTACKS[attack]()), Job(CHAINS[chain], ATTACKS[attack]())
        rows, step = mean.version()
        moved = np.linalg.norm(step - rows[: N - F].mean(axis=0))
        kept_rows, kept = robust_one.version()
        assert moved > farthest(chain, rows, np.zeros(D)) or moved > 2 * np.linalg.norm(
            kept - kept_rows[: N - F].mean(axis=0)
        )


def test_a_mean_goes_where_the_liars_want_and_a_mixed_trimmed_mean_where_the_honest_do() -> None:
    """Opposite updates as long as the bound allows: 2 of 11 nearly halt a mean of honest steps of 0.3."""
    ways = {}
    for chain in ("weighted_mean", "nnm+trimmed_mean"):
        job = Job(CHAINS[chain], liars.Scaling(-1e6))
        for _ in range(10):
            job.version()
        ways[chain] = float(job.core.model[0]) / (10 * 0.3)
    assert ways["weighted_mean"] < 0.3
    assert ways["nnm+trimmed_mean"] > 0.9


# -- sealed: over the bound -------------------------------------------------------------------------------------------


class Immodest(Attacker):
    """Sends its update ``factor`` times as long as the bound: no clip."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, view: View) -> np.ndarray:
        units = view.own / np.linalg.norm(view.own, axis=1, keepdims=True)
        return (self.factor * view.norm_bound * units).astype(np.float32)


@pytest.mark.parametrize("factor", [1.001, 10.0, 1e30])
def test_liars_over_the_bound_are_out_after_max_faults_and_never_touched_the_model(factor: float) -> None:
    job = Job(CHAINS["weighted_mean"], Attacker(), buffer=N - F)
    own = honest_updates(np.random.default_rng(1), F)
    view = View(honest_updates(np.random.default_rng(2), N - F), own, job.models, BOUND, job.rng)
    rows = Immodest(factor)(view)
    for fault in range(ARGS.max_faults):
        assert job.core.excluded == ()
        for site, row in zip(LYING, rows, strict=True):
            ticket = job.issue(site)
            with pytest.raises(UpdateRejected) as refused:
                job.submit(ticket, row)
            assert refused.value.code == "over_norm_bound"
            assert len(job.core.faults[site]) == fault + 1
    assert job.core.excluded == LYING
    for site in LYING:
        with pytest.raises(ConfigError, match="may not start a round"):
            job.issue(site)
    honest = view.honest
    for site, row in zip(SITES, honest, strict=False):  # the honest go on without them
        job.submit(job.issue(site), row)
    job.core.apply()
    assert np.allclose(job.core.model, honest.mean(axis=0), atol=1e-6)


def test_the_bound_itself_is_no_fault() -> None:
    job = Job(CHAINS["weighted_mean"], Immodest(1.0))
    job.version()
    assert not any(job.core.faults.values())


# -- sealed: in a hurry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "args"), [("weighted_mean", {}), ("trimmed_mean", {"f": 1.0})])
def test_a_flooder_ten_times_as_fast_has_one_voice_in_each_buffer_and_stands_at_the_door_in_between(
    rule: str, args: dict[str, float]
) -> None:
    buffer = 5
    flooder = liars.FastFlooder(liars.SignFlip(), speed=10)
    job = Job((rule, args, ()), flooder, buffer=buffer, versions=20)
    lying, core, rng, now, turned_away = LYING[0], job.core, np.random.default_rng(3), 0.0, 0
    arrivals: list[tuple[float, int, Ticket, np.ndarray]] = []
    numbers = itertools.count()
    while core.finished() is None:
        for site in core.wants():
            row = honest_updates(rng, 1)
            seconds = float(rng.uniform(1.0, 1.6))
            if site == lying:
                row, seconds = flooder(View(row, row, job.models, BOUND, rng)), flooder.seconds(seconds)
            heapq.heappush(arrivals, (now + seconds, next(numbers), job.issue(site, now), row[0]))
        now, _, ticket, row = heapq.heappop(arrivals)
        job.submit(ticket, row)
        if ticket.site == lying and not core.ready():
            with pytest.raises(ConfigError, match="may not start a round"):
                job.issue(lying, now)  # it is back at once
            with pytest.raises(UpdateRejected) as again:
                job.submit(ticket, row)  # and tries the old ticket
            assert again.value.code == "unknown_ticket"
            core.faults[lying].clear()  # forgiven, so that it goes on in this test
            turned_away += 1
        if core.ready():
            made = core.apply()
            assert made.sites.count(lying) <= 1
            assert len(set(made.sites)) == buffer
            job.models.append(core.model)
    assert turned_away >= 10  # it was there each time, and had to wait each time
    # One voice of five, always fresh, as long as the bound: enough to hold up a mean of stale steps of 0.3.
    way = float(core.model[0]) / (20 * 0.3)
    assert way > 0.4 if rule == "trimmed_mean" else way < 0.1


# -- masked sum -------------------------------------------------------------------------------------------------------


SUM = msgspec.structs.replace(ARGS, privacy="masked", buffer=5, masked=Masked(u_min=3, c=0))


class LyingMember(Member):
    """Adds what it likes to its masked words, and signs for it: no check can see it, the words are uniform."""

    lie: float = 0.0

    def masked(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], bytes]:
        _, payload = super().masked(*args, **kwargs)
        view = self._known()
        words = np.frombuffer(payload, view.ring.dtype).copy()
        words += np.array(round(self.lie * view.ring.scale), np.int64).astype(view.ring.dtype)
        header = wire.Masked(v=1, ctx=view.ctx, site=self._site, r1=self._r1, payload_sha256=sha256(words.tobytes()))
        return Cohort.sign_as(self._site, header), words.tobytes()


def cohort_of(sites: Sequence[str], vectors: dict[str, np.ndarray], lies: dict[str, float], **changes: Any) -> Any:
    """The opened mean of a real cohort in which some members lie."""
    members = {site: type("Liar", (LyingMember,), {"lie": lie}) for site, lie in lies.items()}
    cohort = Cohort(sites, size=D, vectors=vectors, member=members, clip=BOUND, **changes)
    opened = cohort.run()
    assert opened is not None
    assert not cohort.errors
    assert not cohort.refused
    return opened


def masked_job(args: ControllerArgs, sites: Sequence[str], rule: Any = None) -> MaskedCoordinator:
    start = np.zeros(D, np.float32)
    return MaskedCoordinator(args, sites, {}, start, LAYOUT, dp_event=EVENT, rule=rule)


def all_ready(core: MaskedCoordinator) -> None:
    for site in core.wants():
        ticket = core.issue(site, f"{site}-{core.version}", 0.0)
        core.ready(site, claim(ticket, "masked"))


@pytest.mark.parametrize("lie", [-3.0, 3.0])
def test_one_liar_moves_a_masked_sum_where_it_likes_and_the_trust_statement_says_so(lie: float) -> None:
    """Nobody is blamed. The lie is 3 in each coordinate; an honest update is BOUND long in all of them together."""
    sites = SITES[:5]
    terms.check_feasible(SUM, len(sites))
    vectors = dict(zip(sites, honest_updates(np.random.default_rng(4), len(sites)), strict=True))
    core = masked_job(SUM, sites)
    all_ready(core)
    cohort = core.form("cohort-000000001", 0.0)
    assert cohort is not None
    opened = cohort_of(cohort.sites, vectors, {sites[0]: lie})
    core.opened(cohort.id, opened.survivors, opened.mean)
    core.apply()
    honest = np.mean(list(vectors.values()), axis=0)
    assert np.allclose(core.model - honest, lie / len(sites), atol=1e-4)
    assert np.linalg.norm(core.model - honest) > 3 * BOUND
    assert not any(core.faults.values())
    assert "no protection against a lying site" in terms.trust(SUM, len(sites))


# -- masked groups ----------------------------------------------------------------------------------------------------


MANY = tuple(f"site-{number:02}" for number in range(16))
GROUPED = msgspec.structs.replace(
    SUM, buffer=4, rule="trimmed_mean", rule_args={"f": 1.0}, masked=Masked(u_min=3, c=0, groups=Groups(size=4, f=1))
)


def grouped_step(lies: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """(the version's step, means of the groups without a liar) of 16 sites in four groups, a trimmed mean over them."""
    terms.check_feasible(GROUPED, len(MANY))
    drawn = groups.draw({site: site.encode().ljust(32) for site in MANY}, 4)
    vectors = dict(zip(MANY, honest_updates(np.random.default_rng(5), len(MANY)), strict=True))
    core = masked_job(GROUPED, MANY, chained(("trimmed_mean", {"f": 1.0}, ())))
    core.draw(drawn)
    all_ready(core)
    clean = []
    for number in range(len(drawn)):
        cohort = core.form(f"cohort-{number:09}", 0.0)
        assert cohort is not None
        mine = {site: vectors[site] for site in cohort.sites}
        told = {site: lie for site, lie in lies.items() if site in mine}
        opened = cohort_of(cohort.sites, mine, told, cohort_id=cohort.id, study=MANY, groups=drawn)
        core.opened(cohort.id, opened.survivors, opened.mean)
        if not told:
            clean.append(opened.mean)
    core.apply()
    return core.model, np.stack(clean)


@pytest.mark.parametrize("lie", [-3.0, 3.0])
def test_in_groups_one_liar_spoils_its_own_group_and_the_step_stays_among_the_honest_groups(lie: float) -> None:
    step, clean = grouped_step({MANY[3]: lie})
    assert len(clean) == 3
    assert (step >= clean.min(axis=0) - 1e-5).all()
    assert (step <= clean.max(axis=0) + 1e-5).all()
    truth, _ = grouped_step({})
    assert np.linalg.norm(step - truth) < 0.1


def test_in_groups_liars_of_more_groups_than_declared_move_the_step() -> None:
    """Past f the guarantee ends: two lying groups of four leave a trimmed mean with one of them in each coordinate."""
    drawn = groups.draw({site: site.encode().ljust(32) for site in MANY}, 4)
    step, clean = grouped_step({drawn[0][0]: -3.0, drawn[1][0]: -3.0})
    assert len(clean) == 2
    assert (step < clean.min(axis=0) - 0.1).all()


def test_liars_in_one_group_together_do_no_more_than_one() -> None:
    drawn = groups.draw({site: site.encode().ljust(32) for site in MANY}, 4)
    step, clean = grouped_step(dict.fromkeys(drawn[2], 0.5))
    assert (step <= clean.max(axis=0) + 1e-5).all()
    assert len(clean) == 3


def test_more_liars_than_the_groups_bear_are_refused_before_the_job_starts() -> None:
    over = msgspec.structs.replace(GROUPED, masked=Masked(u_min=3, c=0, groups=Groups(size=4, f=2)))
    with pytest.raises(ConfigError, match=r"4 groups < 2f \+ 1"):
        terms.check_feasible(over, len(MANY))
