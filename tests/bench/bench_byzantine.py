"""Twenty hospitals, some of which lie: accuracy under each attack for each rule, the worst of them, and collapses.

    PYTHONPATH=custom python tests/bench/bench_byzantine.py [--json] [--quick] [--seeds 5] [--tune]

The federation is ``digits_federation.py`` (softmax regression, worker momentum, Dirichlet split, every update within
the public norm bound), the rules are ``cordon.robust``, the attacks ``tests/adversarial/attackers.py``. Two settings:
f = 2 with alpha 0.5 and f = 5 with alpha 0.3. The last line is one JSON object:

* ``<setting>.by_rule``    {rule: {attack: accuracy}}, mean over the seeds; ``intervals``: its 95 % t-interval
* ``best_worst_case``      least of these means over the attacks that don't know the rule, for ``best_rule``: the one
                           that was best on the tuning seeds, of those that sealed mode may release (``releasable``).
                           ``interval`` is of that cell. ``worst_per_seed`` is stricter: the mean of each seed's least
* ``hindsight``            the rule that was best on the reported seeds
* ``backdoor_success``     {rule: share of digits that the trigger turns into the attacker's}
* ``through_coordinator``  the best rule's figures again, through the product's sealed ``Coordinator``
* ``asynchronous``         the same with buffers of 15, honest sites 1 to 4 times as slow, liars last in every buffer
* ``adaptive``             attacks that know rule, state or history, by setting; not part of ``best_worst_case``
* ``groups``               masked mode, groups of 3 and 4: worst map, a liar decides its group's mean; ``refused``: why
                           the product starts no such job, whose figures show what that spares. ``sum``: one liar in a
                           masked sum

Learning rate, norm bound, rules' arguments and the best rule were chosen by ``--tune`` on seeds 100 to 102
(``CHOSEN``), never on the reported seeds 0 to 4, if on splits of the same 1,797 digits. Attacks have their papers'
constants where these bite, see ``ATTACKS``; inner product manipulation in three strengths, because the worst case hangs
on it: with 0.5 alone even a mean behind a tight norm bound looks robust. (The two stronger ones were added, and all
chosen anew on the tuning seeds, after a first run had shown that on the reported ones.) Nothing is judged here: a
target that is missed shows as ``met`` false.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from digits_federation import (
    CLASSES,
    PIXELS,
    Defence,
    N,
    Plan,
    Play,
    Result,
    Setting,
    coordinated,
    digits,
    grouped,
    groups_of,
    lockstep,
    summed,
)

from adversarial import attackers as liars
from cordon.errors import ConfigError
from cordon.job import ControllerArgs, Groups, Masked, ServerOpt
from cordon.secagg import terms

SETTINGS = {setting.name: setting for setting in (Setting(2, 0.5), Setting(5, 0.3))}
TARGETS = {"f2_alpha0.5": 0.93, "f5_alpha0.3": 0.85}
TUNING_SEEDS = (100, 101, 102)


@dataclass(frozen=True)
class Choice:
    """What a job says in one setting. ``args``: arguments of rules, in units of the norm bound."""

    plan: Plan
    args: Mapping[str, float]
    rule: str


UNTUNED = {"tau": 1.0, "mixed_tau": 0.5, "bound": 0.5}
CHOSEN = {
    "f2_alpha0.5": Choice(
        Plan(lr=16.0, norm_bound=8.0), {"tau": 0.5, "mixed_tau": 0.25, "bound": 0.5}, "nnm+centered_clipping"
    ),
    "f5_alpha0.3": Choice(
        Plan(lr=16.0, norm_bound=4.0), {"tau": 1.0, "mixed_tau": 0.5, "bound": 0.25}, "nnm+centered_clipping"
    ),
}
TRIGGER = (54, 55, 62, 63)  # the lower right corner
GROUP_SIZES = (3, 4)
BUFFER = 15

Make = Callable[[], liars.Attacker]


@cache
def next_class() -> np.ndarray:
    """(d,) a push that makes each digit read as the next: what a model-aware history attack adds up."""
    x, y = digits()
    shift = np.eye(CLASSES)[(y + 1) % CLASSES] - np.eye(CLASSES)[y]
    return (np.hstack([x, np.ones((len(x), 1))]).T @ shift).ravel()


ATTACKS: Mapping[str, Make] = {
    "none": liars.Attacker,
    "sign_flip": liars.SignFlip,
    "alie": lambda: liars.Alie(1.5),  # the paper's z is 0 for f = 2 and 0.25 for f = 5 of 20: too mild to tell
    "ipm": lambda: liars.Ipm(0.5),  # passes for an honest one that is far from the others
    "ipm_2": lambda: liars.Ipm(2.0),  # ByzFL's default
    "ipm_10": lambda: liars.Ipm(10.0),  # as long as the norm bound, all liars alike
    "mimic": liars.Mimic,
    "label_flip": lambda: liars.LabelFlip(CLASSES),
    "scaling": lambda: liars.Scaling(-10.0),
    "min_max": liars.MinMax,
    "min_sum": liars.MinSum,
    "backdoor": lambda: liars.Backdoor(TRIGGER, 1.0, target=0),
}


def adaptive(tau: float) -> Mapping[str, Make]:
    """Attacks that know more than the updates; ``tau`` is centered clipping's."""
    return {
        "optimised_alie": liars.OptimisedAlie,
        "optimised_ipm": liars.OptimisedIpm,
        "relocated_orthogonal": lambda: liars.RelocatedOrthogonal(1.0, push=next_class()),
        "clipping_adaptive": lambda: liars.CenteredClippingAdaptive(tau),
    }


def defences(f: int, norm_bound: float, args: Mapping[str, float]) -> dict[str, Defence]:
    """Every rule against ``f`` liars, alone and after a step before it."""
    few = {"f": float(f)}
    mixed = (("nnm", few),)
    smooth = {"nu": 1e-3 * norm_bound}
    tau = {"tau": args["tau"] * norm_bound}
    return {
        "weighted_mean_unbounded": Defence("weighted_mean", bounded=False),
        "weighted_mean": Defence("weighted_mean"),
        "norm_bounding": Defence("norm_bounding", {"bound": args["bound"] * norm_bound}),
        "median": Defence("median"),
        "trimmed_mean": Defence("trimmed_mean", few),
        "krum": Defence("krum", few),
        "multi_krum": Defence("multi_krum", few),
        "geometric_median": Defence("geometric_median", smooth),
        "centered_clipping": Defence("centered_clipping", tau),
        "nnm+median": Defence("median", {}, mixed),
        "nnm+trimmed_mean": Defence("trimmed_mean", few, mixed),
        "nnm+multi_krum": Defence("multi_krum", few, mixed),
        "nnm+geometric_median": Defence("geometric_median", smooth, mixed),
        "nnm+centered_clipping": Defence("centered_clipping", {"tau": args["mixed_tau"] * norm_bound}, mixed),
        "bucketing+geometric_median": Defence("geometric_median", smooth, (("bucketing", {"s": 2.0}),)),
        "bucketing+centered_clipping": Defence("centered_clipping", tau, (("bucketing", {"s": 2.0}),)),
    }


ATTACKED_BY_THE_ADAPTIVE = (
    "weighted_mean",
    "trimmed_mean",
    "multi_krum",
    "geometric_median",
    "centered_clipping",
    "nnm+trimmed_mean",
    "nnm+multi_krum",
    "nnm+geometric_median",
    "nnm+centered_clipping",
)

Cells = dict[str, dict[str, list[Result]]]  # rule -> attack -> one result a seed


def measured(
    play: Play,
    setting: Setting,
    plan: Plan,
    rules: Mapping[str, Defence],
    attacks: Mapping[str, Make],
    seeds: Sequence[int],
) -> Cells:
    """Every rule under every attack on every seed."""
    return {
        rule: {
            attack: [play(setting, plan, defence, make(), seed) for seed in seeds] for attack, make in attacks.items()
        }
        for rule, defence in rules.items()
    }


def interval(values: Sequence[float]) -> list[float]:
    """95 % t-interval of the mean."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return [mean, mean]
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return [mean - half, mean + half]


def table(cells: Cells) -> dict[str, Any]:
    """``by_rule``, ``intervals``, ``worst_case`` and ``backdoor_success`` of the cells."""

    def each(figure: Callable[[list[float]], Any]) -> dict[str, dict[str, Any]]:
        return {
            rule: {attack: figure([result.accuracy for result in results]) for attack, results in row.items()}
            for rule, row in cells.items()
        }

    by_rule = each(statistics.mean)
    figures = {
        "by_rule": by_rule,
        "intervals": each(interval),
        "worst_case": {rule: min(row.values()) for rule, row in by_rule.items()},
    }
    success = {
        rule: statistics.mean(result.backdoor or 0.0 for result in row["backdoor"])
        for rule, row in cells.items()
        if "backdoor" in row
    }
    return figures | ({"backdoor_success": success} if success else {})


def sealed(name: str, seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """One setting under the attacks that don't know the rule."""
    setting, plan, rules = job(name, quick)
    best, attacks = CHOSEN[name].rule, dict(ATTACKS)
    if quick:
        rules = {rule: rules[rule] for rule in ("weighted_mean_unbounded", "weighted_mean", best)}
        attacks = {attack: attacks[attack] for attack in ("none", "sign_flip", "scaling", "backdoor")}
    cells = measured(lockstep, setting, plan, rules, attacks, seeds)
    figures = table(cells)
    worst = min(attacks, key=lambda attack: figures["by_rule"][best][attack])
    per_seed = [min(row[at].accuracy for row in cells[best].values()) for at in range(len(seeds))]
    releasable = [rule for rule, defence in rules.items() if defence.releasable(N)]
    hindsight = max(releasable, key=lambda rule: figures["worst_case"][rule])
    through = table(measured(coordinated, setting, plan, {best: rules[best]}, attacks, seeds))
    late = {rule: rules[rule] for rule in ("weighted_mean", "centered_clipping", best) if rule in rules}
    return {
        "best_worst_case": figures["worst_case"][best],
        "best_rule": best,
        "worst_attack": worst,
        "interval": figures["intervals"][best][worst],
        "worst_per_seed": {"mean": statistics.mean(per_seed), "interval": interval(per_seed)},
        "target": TARGETS[name],
        "met": figures["worst_case"][best] >= TARGETS[name],
        "hindsight": {"rule": hindsight, "worst_case": figures["worst_case"][hindsight]},
        "releasable": releasable,
        **figures,
        "through_coordinator": through["by_rule"][best],
        "asynchronous": {
            "buffer": BUFFER,
            **table(measured(partial(coordinated, buffer=BUFFER), setting, plan, late, attacks, seeds)),
        },
    }


def adapted(name: str, seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """One setting under the attacks that know rule, state or history."""
    setting, plan, rules = job(name, quick)
    names = (CHOSEN[name].rule,) if quick else ATTACKED_BY_THE_ADAPTIVE
    attacks = adaptive(CHOSEN[name].args["tau"] * plan.norm_bound)
    return table(measured(lockstep, setting, plan, {rule: rules[rule] for rule in names}, attacks, seeds))


def masked(name: str, seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """One setting in masked groups, and with one liar in a masked sum. The rules' f is what the groups bear at most."""
    setting, plan, _ = job(name, quick)
    attacks = {attack: make for attack, make in ATTACKS.items() if attack != "backdoor"}
    if quick:
        attacks = {attack: attacks[attack] for attack in ("none", "sign_flip")}
    figures: dict[str, Any] = {}
    for size in GROUP_SIZES[:1] if quick else GROUP_SIZES:
        count = N // size
        rules = defences(min(setting.f, (count - 1) // 2), plan.norm_bound, CHOSEN[name].args)
        chosen = {rule: rules[rule] for rule in (GROUP_RULES[:2] if quick else GROUP_RULES)}
        figures[f"g{size}"] = {
            "groups": count,
            "lying_groups": len(groups_of(setting.f, size)[1]),
            "refused": refused(setting.f, size, plan),
            **table(measured(partial(grouped, size=size), setting, plan, chosen, attacks, seeds)),
        }
    honest = statistics.mean(summed(setting, plan, 1.0, seed).accuracy for seed in seeds)
    lied = statistics.mean(summed(setting, plan, -1000.0, seed).accuracy for seed in seeds)
    return figures | {"sum": {"honest": honest, "one_liar": lied}}


GROUP_RULES = ("weighted_mean", "trimmed_mean", "median", "geometric_median", "nnm+trimmed_mean")


def refused(f: int, size: int, plan: Plan) -> str | None:
    """Why the product does not start this job; None if it does."""
    args = ControllerArgs(
        privacy="masked",
        rule="trimmed_mean",
        server_opt=ServerOpt(algorithm="FedAvg"),
        buffer=N // size,
        versions=plan.versions,
        rounds_per_site=plan.versions,
        norm_bound=plan.norm_bound,
        masked=Masked(u_min=3, c=0, groups=Groups(size=size, f=f)),
    )
    try:
        terms.check_feasible(args, N)
    except ConfigError as error:
        return str(error)
    return None


def job(name: str, quick: bool) -> tuple[Setting, Plan, dict[str, Defence]]:
    """Setting, plan and rules as they were chosen."""
    setting, choice = SETTINGS[name], CHOSEN[name]
    plan = replace(choice.plan, versions=40) if quick else choice.plan
    return setting, plan, defences(setting.f, plan.norm_bound, choice.args)


def run(seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """All figures."""
    if set(seeds) & set(TUNING_SEEDS):
        raise ValueError("the reported seeds must not be those that the parameters were chosen on")
    return {
        "n": N,
        "model": f"softmax regression, {PIXELS} x {CLASSES} + {CLASSES}",
        "seeds": list(seeds),
        "tuning_seeds": list(TUNING_SEEDS),
        "chosen": {name: asdict(CHOSEN[name]) | {"plan": asdict(job(name, quick)[1])} for name in SETTINGS},
        **{name: sealed(name, seeds, quick) for name in SETTINGS},
        "adaptive": {name: adapted(name, seeds, quick) for name in SETTINGS},
        "groups": {name: masked(name, seeds, quick) for name in SETTINGS},
    }


def tune() -> None:
    """How ``CHOSEN`` was chosen, for each setting; prints every trial.

    First learning rate and norm bound, by the worst case of the best of ``CANDIDATES``; then, with those, each argument
    by the worst case of the rule that uses it; then the rule, the best of all that may be released.
    """
    for name, setting in SETTINGS.items():
        trials = {}
        for lr, part in itertools.product((4.0, 8.0, 16.0), (0.125, 0.25, 0.5)):
            plan = Plan(lr, lr * part)
            rules = defences(setting.f, plan.norm_bound, UNTUNED)
            worst = worst_case(setting, plan, {rule: rules[rule] for rule in CANDIDATES})
            trials[plan] = max(worst.values())
            print(f"{name} lr {lr:g} norm_bound {plan.norm_bound:g}: {rounded(worst)}", flush=True)
        plan, args = max(trials, key=trials.__getitem__), dict(UNTUNED)
        for argument, rule in USED_BY.items():
            scores = {}
            for value in (0.25, 0.5, 1.0):
                chosen = defences(setting.f, plan.norm_bound, args | {argument: value})[rule]
                scores[f"{value:g}"] = worst_case(setting, plan, {rule: chosen})[rule]
            args[argument] = float(max(scores, key=scores.__getitem__))
            print(f"{name} {argument}, in norm bounds: {rounded(scores)}", flush=True)
        rules = defences(setting.f, plan.norm_bound, args)
        worst = worst_case(setting, plan, {rule: each for rule, each in rules.items() if each.releasable(N)})
        print(f"{name}: {rounded(worst)}", flush=True)
        print(f"{name}: {Choice(plan, args, max(worst, key=worst.__getitem__))}", flush=True)


USED_BY = {"tau": "centered_clipping", "mixed_tau": "nnm+centered_clipping", "bound": "norm_bounding"}
CANDIDATES = (
    "centered_clipping",
    "nnm+trimmed_mean",
    "nnm+multi_krum",
    "nnm+geometric_median",
    "nnm+centered_clipping",
)


def worst_case(
    setting: Setting, plan: Plan, rules: Mapping[str, Defence], seeds: Sequence[int] = TUNING_SEEDS
) -> dict[str, float]:
    """Least mean accuracy of each rule over the attacks that don't know the rule."""
    worst: dict[str, float] = table(measured(lockstep, setting, plan, rules, ATTACKS, seeds))["worst_case"]
    return worst


def rounded(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object, on the last line")
    parser.add_argument("--seeds", type=int, default=5, help="number of splits, from 0 (default 5)")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 versions, few rules and attacks: seconds")
    parser.add_argument("--tune", action="store_true", help="choose the parameters anew, on other seeds; prints only")
    options = parser.parse_args()
    if not 1 <= options.seeds <= TUNING_SEEDS[0]:
        parser.error(f"--seeds must be 1 to {TUNING_SEEDS[0]}")
    if options.tune:
        tune()
        return
    figures = run(range(1 if options.quick else options.seeds), options.quick)
    if options.json:
        print(json.dumps(figures))
        return
    for name in SETTINGS:
        figure = figures[name]
        low, high = figure["interval"]
        print(
            f"{name}: {figure['best_worst_case']:.3f} [{low:.3f}, {high:.3f}] ({figure['best_rule']} under "
            f"{figure['worst_attack']}), target {figure['target']:.2f} {'met' if figure['met'] else 'MISSED'}"
        )
        for part in (figure, figures["adaptive"][name], figures["groups"][name]["g3"]):
            for rule, row in part["by_rule"].items():
                print(f"  {rule:28}" + "".join(f" {attack} {value:.3f}" for attack, value in row.items()))


if __name__ == "__main__":
    main()
