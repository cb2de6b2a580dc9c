"""Terms of masked jobs: every inequality that fails is named with its numbers; policies; the trust statement."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.errors import ConfigError
from cordon.job import ControllerArgs, Groups, Masked, PreAggregation, ServerOpt, Staleness, threshold
from cordon.secagg import groups
from cordon.secagg.terms import (
    Terms,
    check_feasible,
    collusion_bound,
    trust,
)
from fakes.secagg_cohort import EVENT, names, terms_for


def args(buffer: int = 5, groups: Groups | None = None, **changes: Any) -> ControllerArgs:
    masked = {name: changes.pop(name) for name in ("u_min", "c", "distributed", "ring_bits") if name in changes}
    plan: dict[str, Any] = {
        "privacy": "masked",
        "rule": "weighted_mean",
        "server_opt": ServerOpt(algorithm="FedAvg"),
        "buffer": buffer,
        "versions": 3,
        "rounds_per_site": 3,
        "norm_bound": 1.0,
        "masked": Masked(**{"u_min": 3, "c": 0, "groups": groups, **masked}),
    }
    return ControllerArgs(**{**plan, **changes})


@given(st.integers(3, 40), st.integers(0, 38))
def test_the_threshold_bears_c_colluders_wherever_it_can_be_reached(members: int, c: int) -> None:
    t = threshold(members, c)
    assert 2 * t > members + c  # two sets of t share an honest site
    assert 2 * (t - 1) <= members + c  # and t is no larger than that asks for
    if t <= members:
        assert c <= collusion_bound(members, t, u_min=c + 2)
    assert collusion_bound(members, t, u_min=c + 1) < c


@pytest.mark.parametrize(
    ("sites", "plan", "fails"),
    [
        (5, args(), []),
        (5, args(c=1), []),
        (3, args(3), []),
        (4, args(), ["buffer = 5 > N = 4 sites"]),
        (5, args(c=2), ["c = 2 > u_min - 2 = 1"]),
        (3, args(3, u_min=4), ["K = 3 < max(t, u_min) + drop_outs = max(2, 4) + 0 = 4"]),
        (60, args(41), ["K = 41 > 40 sites in one cohort"]),
        (5, args(rule="median"), ["rule = median: one sum gives a weighted_mean"]),
        (5, args(pre_aggregation=(PreAggregation(step="nnm"),)), ["pre_aggregation has 1 steps"]),
        (40, args(40, norm_bound=1000.0), []),
        (
            2,
            args(3, c=3, rule="krum"),
            [
                "c = 3 > u_min - 2 = 1",
                "buffer = 3 > N = 2 sites",
                "K = 3 < max(t, u_min) + drop_outs = max(4, 3) + 0 = 4",
                "rule = krum",
            ],
        ),
    ],
)
def test_a_masked_sum_that_cannot_run_says_all_that_fails(sites: int, plan: ControllerArgs, fails: list[str]) -> None:
    _judge(plan, sites, fails)


def _judge(plan: ControllerArgs, sites: int, fails: list[str]) -> None:
    if not fails:
        check_feasible(plan, sites)
        return
    with pytest.raises(ConfigError) as caught:
        check_feasible(plan, sites)
    said = str(caught.value).split(": ", 1)[1].split("; ")
    assert len(said) == len(fails), said
    for want in fails:
        assert any(want in each for each in said), (want, said)


@pytest.mark.parametrize(
    ("sites", "plan", "fails"),
    [
        (16, args(4, Groups(size=4, f=1, drop_outs=1), rule="median"), []),
        (9, args(3, Groups(size=3, f=1), rule="median", c=1), []),
        (9, args(3, Groups(size=3, f=1, drop_outs=1), rule="median", c=1), ["group of 3: K = 3 < max(t, u_min) +"]),
        (12, args(3, Groups(size=3, f=1, may_stop=1), rule="median"), []),
        (
            11,
            args(3, Groups(size=3, f=1, may_stop=1), rule="median"),
            [
                "floor(N/g) = floor(11/3) = 3 groups < 2f + 1 + may_stop = 4",
                "buffer = 3 > floor(N/g) - may_stop = 2 groups",
            ],
        ),
        (
            16,
            args(3, Groups(size=4, f=2), rule="median"),
            ["floor(16/4) = 4 groups < 2f + 1", "buffer = 3 < 2f + 1 = 5"],
        ),
        (16, args(4, Groups(size=4, f=1)), ["rule = weighted_mean bears f = 0 lying sites < f = 1"]),
        (16, args(4, Groups(size=4, f=0)), []),
        (2, args(3, Groups(size=3, f=0)), ["floor(2/3) = 0 groups", "buffer = 3 > floor(N/g) - may_stop = 0"]),
        # floor(79/40) = 1 group, which then is all 79.
        (79, args(3, Groups(size=40, f=0)), ["buffer = 3 > floor(N/g) - may_stop = 1", "group of 79: K = 79 > 40"]),
    ],
)
def test_masked_groups_that_cannot_run_say_all_that_fails(sites: int, plan: ControllerArgs, fails: list[str]) -> None:
    _judge(plan, sites, fails)


@pytest.mark.parametrize("sites", [5, 6, 8])
def test_with_a_colluder_and_a_liar_fewer_than_nine_sites_cannot(sites: int) -> None:
    for size in range(3, sites + 1):
        with pytest.raises(ConfigError, match="groups < 2f"):
            check_feasible(args(3, Groups(size=size, f=1), rule="median", c=1), sites)


@given(st.integers(3, 40), st.integers(3, 12), st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))
def test_what_is_feasible_can_form_every_group_it_promises(sites: int, size: int, f: int, away: int, c: int) -> None:
    plan = args(2 * f + 3, Groups(size=size, f=f, drop_outs=away), rule="median", c=c, u_min=max(3, c + 2))
    try:
        check_feasible(plan, sites)
    except ConfigError:
        return
    drawn = groups.draw({site: site.encode() for site in names(sites)}, size)
    assert len(drawn) >= 2 * f + 1
    terms = terms_for(names(sites), c=c, u_min=max(3, c + 2), groups=drawn)
    for group in drawn:
        assert size <= len(group) <= 40
        assert len(group) - away >= terms.least(len(group))


def test_another_mode_is_not_judged_as_masked() -> None:
    sealed = msgspec.structs.replace(args(), privacy="sealed", masked=None)
    for judge in (check_feasible, trust):
        with pytest.raises(ConfigError, match='privacy mode is "sealed", want "masked"'):
            judge(sealed, 5)


def test_a_ring_that_cannot_hold_the_sum_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit 32 bits"):
        check_feasible(args(norm_bound=1e9), 5)


def test_the_trust_statement_says_who_is_not_trusted_and_what_is_not_promised() -> None:
    told = trust(args(5, c=1), 5)
    assert "no protection against a lying site" in told
    assert (
        "at least 4 of 5 updates" in told
        and "1 site colludes with it: less what those put in, it is a sum of at least 3 others'" in told
    )
    told = trust(args(4, Groups(size=4, f=1), rule="median"), 17)
    assert "4 to 5" in told and "bears 1 lying site in all" in told and "median" in told
    assert "no protection against a lying site" not in told
    assert "share" in trust(args(distributed=True), 5)


def test_weights_are_relative_to_the_cohort() -> None:
    terms = terms_for(("a", "b", "c"), weights={"a": 0.5, "b": 0.25, "c": 2.0}, staleness=Staleness(a=0.5))
    assert terms.weight("a", ("a", "b")) == 1.0
    assert terms.weight("b", ("a", "b", "c")) == 0.125
    assert terms.factor("b", 3, ("a", "b")) == 0.25
    assert terms.factor("b", 10**9, ("a", "b")) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"a": 0.0}},
        {"weights": {"a": float("nan")}},
        {"size": 0},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"noise": -1.0},
        {"group_map_digest": "0" * 64},
        {"mode": "groups"},
    ],
)
def test_terms_that_mean_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        terms_for(("a", "b", "c"), **change)


def test_every_field_of_the_terms_is_in_ctx() -> None:
    body = terms_for(("a", "b", "c")).body()
    assert set(body) == set(Terms.__dataclass_fields__)
    assert body["dp_event"] == msgspec.to_builtins(EVENT)
