"""Handwritten digits at twenty hospitals, f of which lie: the federation that ``bench_byzantine.py`` measures.

The model is a softmax regression (64 x 10 weights and 10 biases, d = 650): convex, so that an accuracy tells about the
aggregation and not about luck in training, and all sites' gradients are one batched product. Data: sklearn's 1,797
digits of 8 x 8 pixels, 450 held out; the rest is split over the honest sites by Dirichlet(alpha) per class (Hsu et al.
2019), and every lying site has an even sample of the same rows, the best an attacker could have.

Each site sends an update clipped to the norm bound::

    m_i <- beta m_i + (1 - beta) g_i(W),  update = -lr m_i       (worker momentum: Karimireddy et al. 2021, section 5)

``lockstep`` is the plain loop over ``cordon.robust.aggregate``; ``coordinated`` drives the product's own sealed
``Coordinator``, in lockstep or asynchronously; ``grouped`` is masked mode: a rule over the means of groups of sites.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulation import EVENT, LAYOUT
from sklearn.datasets import load_digits

from adversarial.attackers import Attacker, Backdoor, View, within_bound
from cordon import robust
from cordon.asyncfl.coordinator import Coordinator
from cordon.errors import ConfigError
from cordon.job import ControllerArgs, ServerOpt

N = 20
CLASSES, PIXELS = 10, 64
D = (PIXELS + 1) * CLASSES
HELD_OUT = 450
LEAST_ROWS = 5  # a hospital with fewer is drawn again

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]
Updates = NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """How many lie, and how unlike each other the honest are (Dirichlet's alpha: the smaller the more)."""

    f: int
    alpha: float

    @property
    def name(self) -> str:
        return f"f{self.f}_alpha{self.alpha:g}"


@dataclass(frozen=True)
class Plan:
    """What every site does. ``norm_bound`` is in units of the updates, so it scales with ``lr``."""

    lr: float
    norm_bound: float
    momentum: float = 0.9
    batch: int = 32
    versions: int = 150


@dataclass(frozen=True)
class Defence:
    """A rule with its arguments. ``bounded`` False: the job has no norm bound (no such job can be written)."""

    rule: str
    args: dict[str, float] = field(default_factory=dict)
    pre: tuple[tuple[str, dict[str, float]], ...] = ()
    bounded: bool = True

    def aggregate(self, rows: Any, state: Updates | None, seed: int) -> robust.Outcome:
        return robust.aggregate(rows, np.ones(len(rows)), self.rule, self.args, self.pre, state, seed)

    def releasable(self, n: int) -> bool:
        """Whether sealed mode may release it: three distinct sites mixed in every coordinate."""
        try:
            robust.check(self.rule, self.args, self.pre, n, sealed=True)
        except ConfigError:
            return False
        return self.bounded


@dataclass(frozen=True)
class Result:
    """Shares 0..1 of the held-out digits: read rightly, and (backdoors) turned into the target by the trigger."""

    accuracy: float
    backdoor: float | None = None


@functools.cache
def digits() -> tuple[Floats, NDArray[np.int64]]:
    """(1797, 64) pixels in 0..1 and their classes."""
    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


def predict(model: NDArray[Any], x: Floats) -> NDArray[np.int64]:
    weights = np.asarray(model, np.float64).reshape(PIXELS + 1, CLASSES)
    return np.argmax(x @ weights[:-1] + weights[-1], axis=1)


class Hospitals:
    """The sites' data and momenta; honest ones first, the attacker's last."""

    def __init__(self, setting: Setting, plan: Plan, attacker: Attacker, seed: int) -> None:
        self.setting, self.plan, self.attacker = setting, plan, attacker
        rng = np.random.default_rng([seed, 1])
        x, y = digits()
        order = rng.permutation(len(y))
        held_out, rows = order[:HELD_OUT], order[HELD_OUT:]
        self.x_test, self.y_test = x[held_out], y[held_out]
        sites = [(x[part], y[part]) for part in self._split(rows, y, rng)]
        for _ in range(setting.f):
            own = rng.choice(rows, len(rows) // N, replace=False)
            sites.append(attacker.poison(x[own], y[own], rng))
        self._start = np.cumsum([0, *(len(labels) for _, labels in sites)])[:-1]
        self._size = np.array([len(labels) for _, labels in sites])
        pixels = np.concatenate([pixels for pixels, _ in sites])
        self._x = np.hstack([pixels, np.ones((len(pixels), 1))])
        self._y = np.eye(CLASSES)[np.concatenate([labels for _, labels in sites])]
        self._momentum = np.zeros((N, D))
        self._batches = np.random.default_rng([seed, 2])
        self.attackers_rng = np.random.default_rng([seed, 3])
        self.server_rng = np.random.default_rng([seed, 4])

    def _split(self, rows: Classes, y: Classes, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Rows of each honest site: each class is dealt out by shares of its own."""
        honest = N - self.setting.f
        while True:
            parts: list[list[NDArray[np.int64]]] = [[] for _ in range(honest)]
            for each in range(CLASSES):
                members = rows[y[rows] == each]
                shares = rng.dirichlet(np.full(honest, self.setting.alpha))
                cuts = (np.cumsum(shares)[:-1] * len(members)).astype(int)
                for part, piece in zip(parts, np.split(members, cuts), strict=True):
                    part.append(piece)
            split = [np.concatenate(part) for part in parts]
            if min(map(len, split)) >= LEAST_ROWS:
                return split

    def train(self, model: NDArray[Any], sites: Sequence[int] = range(N)) -> Updates:
        """(len(sites), d) updates of one round from ``model``, within the norm bound."""
        who = np.asarray(sites)
        draws = self._batches.random((len(who), self.plan.batch))
        rows = self._start[who, None] + (draws * self._size[who, None]).astype(int)
        x = self._x[rows]
        scores = x @ np.asarray(model, np.float64).reshape(PIXELS + 1, CLASSES)
        odds = np.exp(scores - scores.max(axis=2, keepdims=True))
        wrong = odds / odds.sum(axis=2, keepdims=True) - self._y[rows]
        gradient = (x.transpose(0, 2, 1) @ wrong).reshape(len(who), D) / self.plan.batch
        beta = self.plan.momentum
        self._momentum[who] = beta * self._momentum[who] + (1 - beta) * gradient
        return within_bound(-self.plan.lr * self._momentum[who], self.plan.norm_bound)

    def judge(self, model: NDArray[Any]) -> Result:
        accuracy = float(np.mean(predict(model, self.x_test) == self.y_test))
        if not isinstance(self.attacker, Backdoor):
            return Result(accuracy)
        success = self.attacker.success(lambda x: predict(model, x), self.x_test, self.y_test)
        return Result(accuracy, success)


def lockstep(setting: Setting, plan: Plan, defence: Defence, attacker: Attacker, seed: int) -> Result:
    """Every version is made of one update of every site."""
    hospitals = Hospitals(setting, plan, attacker, seed)
    honest = N - setting.f
    bound = plan.norm_bound if defence.bounded else math.inf
    model, models, state = np.zeros(D, np.float32), [np.zeros(D, np.float32)], None
    for _ in range(plan.versions):
        rows = hospitals.train(model)
        mixing, guess = hospitals.server_rng.integers(2**31, size=2)
        if setting.f:
            rule = functools.partial(_step, defence, state, int(guess))
            view = View(rows[:honest], rows[honest:], models, bound, hospitals.attackers_rng, rule)
            rows[honest:] = attacker(view)
        state = defence.aggregate(rows, state, int(mixing)).step
        model = model + state
        models.append(model)
    return hospitals.judge(model)


def _step(defence: Defence, state: Updates | None, seed: int, rows: Any) -> Updates:
    """The rule as an attacker tries it out; bucketing's draw it has to guess."""
    return np.asarray(defence.aggregate(np.asarray(rows, np.float32), state, seed).step)


def coordinated(
    setting: Setting, plan: Plan, defence: Defence, attacker: Attacker, seed: int, buffer: int = N
) -> Result:
    """The same through the product's ``Coordinator``; ``buffer`` < N: asynchronously, and the liars rush.

    Honest rounds last 1 to 4 units, each site at its own pace (10 % to and fro). The lying sites are in every buffer:
    they answer last, when its other places are taken, and have read those.
    """
    hospitals = Hospitals(setting, plan, attacker, seed)
    honest, sites = N - setting.f, [f"site-{number:02}" for number in range(N)]
    state: list[Updates | None] = [None]
    draws: list[int] = []

    def rule(rows: Any, weights: Floats) -> robust.Outcome:
        outcome = robust.aggregate(rows, weights, defence.rule, defence.args, defence.pre, state[0], draws[0])
        state[0] = np.asarray(outcome.step, np.float32)
        return outcome

    args = ControllerArgs(
        privacy="sealed",
        rule="weighted_mean",  # what aggregates is ``rule``
        server_opt=ServerOpt(algorithm="FedAvg"),
        buffer=buffer,
        versions=plan.versions,
        rounds_per_site=100_000,
        norm_bound=plan.norm_bound,
    )
    core = Coordinator(args, sites, {}, np.zeros(D, np.float32), LAYOUT, dp_event=EVENT, rule=rule)
    pace = np.random.default_rng([seed, 5])
    units = pace.uniform(1, 4, size=honest)
    models, entries, waiting, now, count = [core.model], [], [], 0.0, 0

    def submit(ticket: Any, row: Updates) -> float:
        claim = SimpleNamespace(
            ticket=ticket.id,
            base_version=ticket.version,
            model_chain_head=ticket.head,
            layout_digest=LAYOUT,
            privacy="sealed",
            dp_event=EVENT,
        )
        return float(1 / math.sqrt(1 + core.submit(ticket.site, claim, row).staleness))

    while core.finished() is None:
        wanted = [site for site in core.wants() if sites.index(site) < honest]
        if wanted:
            numbers = [sites.index(site) for site in wanted]
            for site, number, row in zip(wanted, numbers, hospitals.train(core.model, numbers), strict=True):
                ticket = core.issue(site, f"t{count}", now)
                seconds = 1.0 if buffer == N else float(units[number] * pace.uniform(0.9, 1.1))
                heapq.heappush(waiting, (now + seconds, count, ticket, row))
                count += 1
        now, _, ticket, row = heapq.heappop(waiting)
        entries.append(row * np.float32(submit(ticket, row)))
        if len(entries) < buffer - setting.f:
            continue
        draws[:] = [int(each) for each in hospitals.server_rng.integers(2**31, size=2)]
        if setting.f:
            liars = range(honest, N)
            tried = functools.partial(_step, defence, state[0], draws[1])
            own = hospitals.train(core.model, liars)
            view = View(np.stack(entries), own, models, plan.norm_bound, hospitals.attackers_rng, tried)
            for number, row in zip(liars, attacker(view), strict=True):
                submit(core.issue(sites[number], f"t{count}", now), row)
                count += 1
        core.apply()
        models.append(core.model)
        entries = []
    return hospitals.judge(core.model)


def groups_of(f: int, size: int) -> tuple[list[list[int]], list[list[int]]]:
    """(groups without a liar, groups with one or more) of floor(N / size) groups, sites left over spread.

    The worst map: each liar in a group of its own, as long as one group is left to the honest.
    """
    count = N // size
    hit = min(f, count - 1)
    groups: list[list[int]] = [[] for _ in range(count)]
    for number in range(N - f, N):
        groups[(number - (N - f)) % hit].append(number)
    for number in range(N - f):
        min(groups, key=len).append(number)
    return groups[hit:], groups[:hit]


def grouped(setting: Setting, plan: Plan, defence: Defence, attacker: Attacker, seed: int, size: int) -> Result:
    """Masked groups: a liar decides its whole group's mean, and no norm bound holds for it, only the ring.

    A value of the opened mean is at most the public clip (here the norm bound) in each coordinate, so its L2 norm is at
    most sqrt(d) times that: the bound that the attacks are given.
    """
    hospitals = Hospitals(setting, plan, attacker, seed)
    clean, hit = groups_of(setting.f, size)
    bound = plan.norm_bound * math.sqrt(D)
    model, models, state = np.zeros(D, np.float32), [np.zeros(D, np.float32)], None
    for _ in range(plan.versions):
        updates = hospitals.train(model)
        honest = np.stack([updates[group].mean(axis=0) for group in clean])
        own = np.stack([updates[group].mean(axis=0) for group in hit])
        mixing, guess = hospitals.server_rng.integers(2**31, size=2)
        rule = functools.partial(_step, defence, state, int(guess))
        lies = attacker(View(honest, own, models, bound, hospitals.attackers_rng, rule))
        state = defence.aggregate(np.concatenate([honest, lies]), state, int(mixing)).step
        model = model + state
        models.append(model)
    return hospitals.judge(model)


def summed(setting: Setting, plan: Plan, factor: float, seed: int) -> Result:
    """Masked sum with one liar that sends ``factor`` times its update: no site is bounded, only the ring bounds it."""
    hospitals = Hospitals(setting, plan, Attacker(), seed)
    model = np.zeros(D, np.float32)
    for _ in range(plan.versions):
        updates = hospitals.train(model)
        lie = within_bound(factor * updates[-1:], plan.norm_bound * math.sqrt(D) * N)
        model = model + np.concatenate([updates[:-1], lie]).mean(axis=0, dtype=np.float64).astype(np.float32)
    return hospitals.judge(model)


Play = Callable[[Setting, Plan, Defence, Attacker, int], Result]
