"""The masked coordinator: pool, cohorts, groups, aborts, a new process, the end."""

import itertools
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.asyncfl.records import Cohort, Ticket
from cordon.errors import ConfigError, UpdateRejected
from cordon.job import ControllerArgs, Groups, Masked, ServerOpt
from cordon.messages import DPEvent, chain_head, pack, sha256
from cordon.robust import aggregate

D = 3
LAYOUT = "1" * 64
EVENT = DPEvent(
    mechanism="poisson_subsampled_gaussian",
    noise_multiplier=6.0,
    sampling_rate=0.5,
    steps=5,
    clip_norm=1.0,
    unit="patient",
)
SUM = ControllerArgs(
    privacy="masked",
    rule="weighted_mean",
    server_opt=ServerOpt(algorithm="FedAvg"),
    buffer=4,
    versions=100,
    rounds_per_site=100,
    norm_bound=10.0,
    max_staleness=2,
    max_faults=2,
    ticket_timeout_s=30.0,
    masked=Masked(u_min=3, c=0, max_aborts=2),
)
SITES = list("abcdef")
NINE = list("abcdefghi")
MAP = (("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i"))
GROUPS = msgspec.structs.replace(
    SUM, buffer=3, rule="median", masked=Masked(u_min=3, c=0, max_aborts=2, groups=Groups(size=3, f=1))
)
BIG = (("a", "b", "c", "d"), ("e", "f", "g", "h"), ("i", "j", "k", "l"))
BIG_ARGS = msgspec.structs.replace(
    GROUPS, masked=Masked(u_min=3, c=0, max_aborts=2, groups=Groups(size=4, f=1, drop_outs=1))
)


@dataclass(frozen=True)
class Said:
    """What a site says that it trained: as ``secagg.wire.Ticket``, without its keys."""

    ticket: str
    base_version: int
    model_chain_head: str
    layout_digest: str = LAYOUT
    privacy: str = "masked"
    dp_event: DPEvent = EVENT


class Bench:
    """A masked coordinator, numbered tickets and cohorts; deltas are one number in every coordinate."""

    def __init__(
        self,
        sites: list[str] = SITES,
        args: ControllerArgs = SUM,
        groups: Any = None,
        weights: Any = None,
        **changes: Any,
    ) -> None:
        args = msgspec.structs.replace(args, **changes)
        rule = lambda rows, p: aggregate(rows, p, args.rule, args.rule_args)  # noqa: E731
        self.core = MaskedCoordinator(
            args, sites, weights or {}, np.zeros(D, np.float32), LAYOUT, dp_event=EVENT, rule=rule
        )
        self._ids = itertools.count()
        if groups is not None:
            self.core.draw(groups)

    def issue(self, site: str, now: float = 0.0) -> Ticket:
        return self.core.issue(site, f"t{next(self._ids)}", now)

    def say(self, ticket: Ticket, /, **changes: Any) -> Any:
        fields = {"ticket": ticket.id, "base_version": ticket.version, "model_chain_head": ticket.head, **changes}
        return self.core.ready(ticket.site, Said(**fields))

    def ready(self, *sites: str) -> list[Ticket]:
        tickets = [self.issue(site) for site in sites]
        for ticket in tickets:
            self.say(ticket)
        return tickets

    def form(self, now: float = 0.0) -> Cohort | None:
        return self.core.form(f"c{next(self._ids)}", now)

    def open(self, cohort: Cohort | None, value: float = 1.0, survivors: Any = None, **changes: Any) -> None:
        assert cohort is not None
        self.core.opened(cohort.id, survivors or cohort.sites, np.full(D, value, np.float32), **changes)


def grouped(sites: list[str] = NINE, args: ControllerArgs = GROUPS, groups: Any = MAP, **changes: Any) -> Bench:
    return Bench(sites, args, groups, **changes)


# -- the update rule ------------------------------------------------------------------------------------------------


def test_sum_of_fresh_updates_of_ones_moves_the_model_by_exactly_one() -> None:
    bench = Bench(weights={site: 0.1 + index for index, site in enumerate(SITES)})
    for version in range(1, 4):
        bench.ready("d", "b", "c", "a")
        cohort = bench.form()
        assert cohort is not None
        assert (cohort.sites, cohort.group, cohort.version, cohort.taus) == (tuple("abcd"), None, version - 1, (0,) * 4)
        assert (cohort.least, cohort.formed_at) == (3, 0.0)
        bench.open(cohort)
        made = bench.core.apply()
        assert (made.number, made.sites, made.staleness, made.divergence) == (version, tuple("abcd"), (0,) * 4, None)
        assert made.step_norm == pytest.approx(D**0.5)
        assert np.array_equal(bench.core.model, np.full(D, version, np.float32))


@given(st.permutations(range(3)), st.sampled_from(["weighted_mean", "median", "geometric_median"]))
def test_group_means_of_ones_move_the_model_by_exactly_one_in_any_order(order: list[int], rule: str) -> None:
    bench = grouped(rule=rule, weights={site: 0.1 + index for index, site in enumerate(NINE)})
    for version in range(1, 3):
        for group in order:
            bench.ready(*MAP[group])
            bench.open(bench.form())
        made = bench.core.apply()
        assert (made.sites, made.groups, made.staleness) == (tuple(NINE), (0, 1, 2), (0,) * 9)
        assert np.array_equal(bench.core.model, np.full(D, version, np.float32))


@given(st.permutations(range(3)), st.integers(0, 1000))
def test_the_order_in_which_groups_open_changes_no_bit(order: list[int], seed: int) -> None:
    means = np.random.default_rng(seed).normal(size=(3, D)).astype(np.float32)
    heads = []
    for groups in (range(3), order):
        bench = grouped(rule="weighted_mean", weights={site: 0.3 * index + 0.1 for index, site in enumerate(NINE)})
        for group in groups:
            bench.ready(*reversed(MAP[group]))
            cohort = bench.form()
            assert cohort is not None
            bench.core.opened(cohort.id, cohort.sites, means[group])
        bench.core.apply()
        heads.append(bench.core.head)
    assert heads[0] == heads[1]


def test_a_group_counts_by_the_weights_of_its_survivors() -> None:
    bench = grouped(
        list("abcdefghijkl"), BIG_ARGS, BIG, rule="weighted_mean", weights=dict.fromkeys("abcdefghijkl", 1.0)
    )
    for group, (value, survivors) in enumerate([(1.0, "abcd"), (2.0, "efg"), (5.0, "jkl")]):
        bench.ready(*BIG[group])
        bench.open(bench.form(), value, tuple(survivors))
    made = bench.core.apply()
    assert made.sites == tuple("abcdefgjkl")
    assert np.allclose(bench.core.model, (4 * 1 + 3 * 2 + 3 * 5) / 10)


def test_a_lying_group_is_outvoted_and_told() -> None:
    bench = grouped(rule="krum", rule_args={"f": 1.0})
    for group, value in ((0, 1.0), (1, 1.0), (2, -1e6)):
        bench.ready(*MAP[group])
        bench.open(bench.form(), value)
    divergence = bench.core.apply().divergence
    assert divergence is not None
    assert "group 2" in divergence.outliers
    assert divergence.least == -1.0
    assert np.array_equal(bench.core.model, np.ones(D, np.float32))


def test_head_commits_to_every_model() -> None:
    bench = Bench()
    head = chain_head("", 0, sha256(pack("w", np.zeros(D, np.float32))))
    bench.ready(*"abcd")
    bench.open(bench.form(), 2.0)
    bench.core.apply()
    assert bench.core.head == chain_head(head, 1, sha256(pack("w", np.full(D, 2, np.float32))))
    assert len(bench.core.links) == 2


# -- ready sites ----------------------------------------------------------------------------------------------------


def test_a_ready_site_has_no_ticket_out_and_gets_none_until_its_update_was_applied() -> None:
    bench = Bench()
    bench.ready(*"abcd")
    assert bench.core.pool == tuple("abcd")
    assert bench.core.outstanding("a") is None
    assert bench.core.expired(1e9) == []
    assert bench.core.wants() == ["e", "f"]
    cohort = bench.form()
    assert (bench.core.pool, bench.core.cohorts) == ((), (cohort,))
    assert bench.core.wants() == ["e", "f"]
    bench.open(cohort)
    assert (bench.core.cohorts, bench.core.buffered) == ((), tuple("abcd"))
    assert bench.core.wants() == ["e", "f"]
    assert bench.core.ready_to_apply()
    bench.core.apply()
    assert bench.core.wants() == SITES


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"base_version": 7}, "wrong_base"),
        ({"model_chain_head": "2" * 64}, "wrong_base"),
        ({"layout_digest": "2" * 64}, "bad_layout"),
        ({"privacy": "sealed"}, "wrong_privacy"),
        ({"dp_event": msgspec.structs.replace(EVENT, steps=4)}, "wrong_privacy"),
        ({"ticket": "t" * 16}, "unknown_ticket"),
    ],
)
def test_a_site_that_trained_something_else_is_rejected(changes: Any, code: str) -> None:
    bench = Bench()
    ticket = bench.issue("a")
    with pytest.raises(UpdateRejected) as caught:
        bench.say(ticket, **changes)
    assert caught.value.code == code
    assert [fault[0] for fault in bench.core.faults["a"]] == [code]
    assert bench.core.pool == ()
    assert (bench.core.outstanding("a") is None) == (code != "unknown_ticket")


def test_a_site_that_says_ready_twice_counts_once_and_a_persistent_one_is_out() -> None:
    bench = Bench()
    (ticket,) = bench.ready("a")
    with pytest.raises(UpdateRejected, match="unknown_ticket"):
        bench.say(ticket)
    assert bench.core.pool == ("a",)
    bench.ready(*"bcd")
    cohort = bench.form()
    assert cohort is not None
    with pytest.raises(UpdateRejected, match="unknown_ticket"):
        bench.say(ticket)
    assert bench.core.excluded == ("a",)
    bench.open(cohort)  # a sum cannot be taken apart
    assert bench.core.apply().sites == tuple("abcd")


def test_an_excluded_site_leaves_the_pool() -> None:
    bench = Bench()
    (ticket, *_) = bench.ready(*"abcd")
    for _ in range(2):
        with pytest.raises(UpdateRejected):
            bench.say(ticket)
    assert bench.core.pool == tuple("bcd")
    assert bench.form() is None


def test_staleness_is_judged_when_a_site_is_ready_and_counted_when_its_cohort_forms() -> None:
    bench = Bench(list("abcdefghi"))
    bench.ready("i")
    slow = [bench.issue("g"), bench.issue("h")]
    for _ in range(2):
        bench.ready(*"abcd")
        bench.core.lose("i", "away")  # so that it is not taken yet
        bench.core.returned("i")
        bench.open(bench.form())
        bench.core.apply()
    assert bench.say(slow[0]).staleness == 2
    bench.ready(*"abc")
    cohort = bench.form()
    assert cohort is not None
    assert dict(zip(cohort.sites, cohort.taus, strict=True)) == {"a": 0, "b": 0, "c": 0, "g": 2}
    bench.open(cohort)
    assert bench.core.apply().staleness == (0, 0, 0, 2)
    with pytest.raises(UpdateRejected, match="too_stale"):
        bench.say(slow[1])
    again = bench.core.again("i", 0.0)  # was in time; that it waited is not its doing
    assert bench.say(again).staleness == 3


# -- cohorts of a sum -----------------------------------------------------------------------------------------------


def test_those_ready_longest_form_and_more_form_another_cohort() -> None:
    bench = Bench(list("abcdefghi"))
    bench.ready(*"ihgfedcba")
    first, second = bench.form(), bench.form()
    assert first is not None and second is not None
    assert (first.sites, second.sites) == (tuple("fghi"), tuple("bcde"))
    assert bench.form() is None
    assert bench.core.pool == ("a",)


def test_two_cohorts_at_work_make_their_versions_in_the_order_they_open() -> None:
    bench = Bench(list("abcdefgh"))
    bench.ready(*"abcdefgh")
    first, second = bench.form(), bench.form()
    bench.open(second, 2.0)
    bench.open(first, 1.0)
    made = [bench.core.apply(), bench.core.apply()]
    assert [version.sites for version in made] == [tuple("efgh"), tuple("abcd")]
    assert made[1].staleness == (0,) * 4  # counted from the version as the cohort formed
    assert np.array_equal(bench.core.model, np.full(D, 3, np.float32))
    with pytest.raises(ConfigError, match="nothing to apply"):
        bench.core.apply()


def test_no_more_cohorts_than_versions_are_left() -> None:
    bench = Bench(list("abcdefgh"), versions=1)
    bench.ready(*"abcdefgh")
    first = bench.form()
    assert bench.form() is None
    bench.open(first)
    assert bench.form() is None
    bench.core.apply()
    assert bench.core.finished() == "all 1 versions made"


def test_drop_outs_of_a_cohort_that_opened() -> None:
    """One was outside R1 and goes on with its ticket; the other may have masked, so its round is spent."""
    bench = Bench(list("abcdefg"), buffer=5)
    tickets = bench.ready(*"abcde")
    cohort = bench.form()
    bench.open(cohort, 1.0, tuple("abc"), unspent=["e"])
    assert bench.core.buffered == tuple("abc")
    assert bench.core.unspent() == ["e"]
    assert bench.core.wants() == ["d", "f", "g"]
    assert bench.core.again("e", 50.0) == Ticket("t4", "e", 0, tickets[4].head, 50.0, tickets[4].model)
    assert bench.core.rounds_used["e"] == 1
    assert bench.core.expired(79) == []
    assert [ticket.site for ticket in bench.core.expired(81)] == ["e"]
    assert bench.say(tickets[4]).staleness == 0
    assert bench.core.pool == ("e",)


@pytest.mark.parametrize(
    ("survivors", "mean", "unspent", "match"),
    [
        ("ab", 1.0, "", "opens with 3 sites, got 2"),
        ("abx", 1.0, "", "not a part of it"),
        ("aab", 1.0, "", "not a part of it"),
        ("abc", 1.0, "c", "not a part of it"),
        ("abc", np.nan, "", "finite"),
        ("abc", np.ones(D), "", "finite float32"),
        ("abc", np.ones(D + 1, np.float32), "", "finite float32"),
    ],
)
def test_what_cannot_be_an_opened_sum_is_an_error(survivors: str, mean: Any, unspent: str, match: str) -> None:
    bench = Bench()
    bench.ready(*"abcd")
    cohort = bench.form()
    assert cohort is not None
    vector = np.full(D, mean, np.float32) if isinstance(mean, float) else mean
    with pytest.raises(ConfigError, match=match):
        bench.core.opened(cohort.id, list(survivors), vector, unspent=list(unspent))
    bench.open(cohort)


def test_a_cohort_ends_once_and_its_id_is_used_once() -> None:
    bench = Bench()
    bench.ready(*"abcd")
    cohort = bench.form()
    assert cohort is not None
    bench.open(cohort)
    for end in (lambda: bench.open(cohort), lambda: bench.core.aborted(cohort.id, (), "lost")):
        with pytest.raises(ConfigError, match="no cohort"):
            end()
    with pytest.raises(ConfigError, match="formed before"):
        bench.core.form(cohort.id, 0.0)


def test_an_aborted_cohort_uses_up_what_was_masked_and_the_others_go_on_with_their_ticket() -> None:
    bench = Bench()
    bench.ready(*"abcd")
    cohort = bench.form()
    assert cohort is not None
    bench.core.aborted(cohort.id, ["a", "b"], "lost")
    assert bench.core.wants() == ["a", "b", "e", "f"]
    assert bench.core.unspent() == ["c", "d"]
    assert all(bench.core.outstanding(site) is None for site in SITES)
    tickets = [bench.core.again(site, 1.0) for site in "cd"]
    with pytest.raises(ConfigError, match="no update that was ready"):
        bench.core.again("c", 1.0)
    for ticket in tickets:
        bench.say(ticket)
    bench.ready("e", "a")
    bench.open(bench.form())
    assert bench.core.apply().sites == ("a", "c", "d", "e")
    assert bench.core.rounds_used == {"a": 2, "b": 1, "c": 1, "d": 1, "e": 1, "f": 0}


def test_a_site_that_had_masked_after_all_says_so_without_fault() -> None:
    bench = Bench()
    tickets = bench.ready(*"abcd")
    cohort = bench.form()
    assert cohort is not None
    bench.core.aborted(cohort.id, (), "lost")
    bench.core.again("a", 0.0)
    bench.core.spent("a", tickets[0].id)
    bench.core.spent("b", tickets[1].id)
    assert bench.core.unspent() == ["c", "d"]
    assert bench.core.wants() == ["a", "b", "e", "f"]
    assert not any(bench.core.faults.values())


def test_a_site_that_says_twice_that_it_had_masked_keeps_its_next_ticket() -> None:
    bench = Bench()
    tickets = bench.ready(*"abcd")
    cohort = bench.form()
    assert cohort is not None
    bench.core.aborted(cohort.id, (), "lost")
    bench.core.again("a", 0.0)
    bench.core.spent("a", tickets[0].id)
    following = bench.issue("a")
    bench.core.spent("a", tickets[0].id)  # the same answer once more
    assert bench.core.outstanding("a") == following
    bench.say(following)
    assert not any(bench.core.faults.values())


def test_an_update_that_grew_too_old_while_it_waited_spoils_no_cohort() -> None:
    """No site joins a cohort with it: formed all the same, every one would end, and the job with the last."""
    bench = Bench(max_staleness=0)
    late = bench.ready(*"abcde")[4]
    bench.open(bench.form())
    bench.core.apply()
    bench.ready(*"abc")
    assert bench.form() is None
    assert bench.core.pool == tuple("abc")
    assert "e" in bench.core.wants()
    with pytest.raises(UpdateRejected, match="no fault"):
        bench.say(late)
    bench.ready("e")
    cohort = bench.form()
    assert cohort is not None
    assert cohort.taus == (0, 0, 0, 0)
    assert not any(bench.core.faults.values())


def test_a_lost_ready_site_is_asked_again_when_it_returns_and_a_refusing_one_is_not() -> None:
    bench = Bench()
    (ticket, _) = bench.ready("a", "b")
    bench.core.lose("a", "disconnected")
    bench.core.refuse("b", "too_many_aborts")
    assert (bench.core.pool, bench.core.unspent()) == ((), [])
    with pytest.raises(ConfigError):
        bench.core.again("a", 0.0)
    bench.core.returned("a")
    bench.core.returned("b")
    assert bench.core.unspent() == ["a"]
    assert "a" not in bench.core.wants()
    bench.say(bench.core.again("a", 0.0))
    assert (bench.core.pool, bench.core.rounds_used["a"]) == (("a",), 1)
    assert ticket.id == "t0"


def test_a_site_lost_at_work_is_asked_again_after_an_abort_once_it_returned() -> None:
    bench = Bench()
    bench.ready(*"abcd")
    cohort = bench.form()
    assert cohort is not None
    bench.core.lose("a", "disconnected")
    bench.core.refuse("b", "cohort_aborted")
    bench.core.aborted(cohort.id, (), "lost")
    assert bench.core.unspent() == ["c", "d"]
    bench.core.returned("a")
    assert bench.core.unspent() == ["a", "c", "d"]


def test_a_job_of_sums_ends_after_max_aborts_cohorts_without_one_that_opened() -> None:
    bench = Bench()
    for opens in (False, True, False, False):
        for site in bench.core.unspent():
            bench.say(bench.core.again(site, 0.0))
        bench.ready(*(site for site in bench.core.wants() if site in "abcd"))
        cohort = bench.form()
        assert cohort is not None
        if opens:
            bench.open(cohort)
            bench.core.apply()
        else:
            assert bench.core.finished() is None
            bench.core.aborted(cohort.id, (), "lost")
    assert bench.core.finished() == "2 cohorts one after another opened nothing"
    assert bench.form() is None


def test_after_max_aborts_no_cohort_forms_until_one_at_work_opens() -> None:
    sites = [f"s{index:02}" for index in range(16)]
    bench = Bench(sites)
    bench.ready(*sites)
    slow, *others = bench.form(), bench.form(), bench.form()
    for cohort in others:
        assert cohort is not None
        bench.core.aborted(cohort.id, cohort.sites, "lost")
    assert bench.core.pool == tuple(sites[12:])
    assert bench.form() is None
    assert bench.core.finished() is None  # one is at work
    bench.open(slow)
    assert bench.form() is not None
    assert bench.core.finished() is None


# -- groups ---------------------------------------------------------------------------------------------------------


def test_nobody_trains_before_the_map_is_drawn_or_outside_it() -> None:
    bench = Bench([*NINE, "j"], GROUPS)
    assert bench.core.wants() == []
    assert bench.core.finished() is None
    bench.core.draw(MAP)
    assert bench.core.groups == MAP
    assert bench.core.wants() == NINE
    with pytest.raises(ConfigError, match="drawn once"):
        bench.core.draw(MAP)


@pytest.mark.parametrize(
    "groups",
    [
        MAP[:2],
        [*MAP[:2], ("g", "h")],
        [*MAP[:2], ("g", "h", "a")],
        [*MAP[:2], ("g", "h", "h")],
        [*MAP[:2], ("g", "h", "x")],
    ],
)
def test_a_map_that_does_not_fit_is_refused(groups: Any) -> None:
    with pytest.raises(ConfigError):
        Bench(NINE, GROUPS, groups)


def test_a_group_forms_when_all_of_its_live_sites_are_ready() -> None:
    bench = grouped(list("abcdefghijkl"), BIG_ARGS, BIG)
    bench.ready(*"abc")
    assert bench.form() is None  # d may be asked
    bench.issue("d")
    assert bench.form() is None  # d is at work
    bench.core.lose("d", "disconnected")
    cohort = bench.form()
    assert cohort is not None
    assert (cohort.group, cohort.sites, cohort.least) == (0, tuple("abc"), 3)
    bench.core.returned("d")
    assert "d" not in bench.core.wants()  # one say per group and buffer
    bench.open(cohort)
    assert not {"a", "b", "c", "d"} & set(bench.core.wants())
    for group in (1, 2):
        bench.ready(*BIG[group])
        bench.open(bench.form())
    bench.core.apply()
    assert bench.core.wants() == list("abcdefghijkl")


def test_a_group_at_work_or_in_the_buffer_forms_no_second_cohort() -> None:
    """Half of it was away as the first one formed, and comes back with updates that were ready before."""
    sites = list("abcdefghijkl")
    bench = grouped(sites, GROUPS, [("a", "b", "c", "d", "e", "f"), ("g", "h", "i"), ("j", "k", "l")])
    tickets = bench.ready(*"abcdef")
    for site in "def":
        bench.core.lose(site, "disconnected")
    cohort = bench.form()
    for site, ticket in zip("def", tickets[3:], strict=True):
        bench.core.returned(site)
        assert bench.core.again(site, 0.0).id == ticket.id
        bench.say(ticket)
    assert bench.form() is None
    bench.open(cohort)
    assert bench.form() is None
    bench.ready(*"ghijkl")
    bench.open(bench.form())
    bench.open(bench.form())
    bench.core.apply()
    assert bench.form() is None  # a, b, c may be asked now
    bench.ready(*"abc")
    second = bench.form()
    assert second is not None
    assert second.sites == tuple("abcdef")
    assert second.taus == (0, 0, 0, 1, 1, 1)


def test_a_group_with_too_few_ready_sites_waits() -> None:
    bench = grouped(list("abcdefghijkl"), BIG_ARGS, BIG)
    bench.ready("a", "b")
    for site in "cd":
        bench.core.lose(site, "disconnected")
    assert bench.form() is None
    assert bench.core.stopped == {}


def test_the_group_that_is_complete_first_forms_first() -> None:
    bench = grouped()
    bench.ready("d", "e", "a", "b", "c", "f")
    assert [cohort.group for cohort in (bench.form(), bench.form()) if cohort] == [0, 1]


def test_a_full_buffer_of_groups_wants_to_be_applied_first() -> None:
    sites = list("abcdefghijkl")
    bench = grouped(sites, GROUPS, [("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i"), ("j", "k", "l")])
    bench.ready(*sites)
    cohorts = [bench.form() for _ in range(4)]
    for cohort in cohorts[:3]:
        bench.open(cohort)
    with pytest.raises(ConfigError, match="apply"):
        bench.open(cohorts[3])
    assert bench.core.apply().groups == (0, 1, 2)
    bench.open(cohorts[3])
    assert bench.core.wants() == sites[:9]
    assert bench.core.buffered == ("j", "k", "l")


def test_a_group_whose_cohorts_end_too_often_is_stopped_and_the_job_says_why_it_ends() -> None:
    bench = grouped()
    for _ in range(2):
        assert bench.core.finished() is None
        for site in MAP[1]:
            bench.say(bench.core.again(site, 0.0) if site in bench.core.unspent() else bench.issue(site))
        cohort = bench.form()
        assert cohort is not None
        bench.core.aborted(cohort.id, ["d"], "too_few")
    assert bench.core.stopped == {1: "2 of its cohorts opened nothing"}
    assert bench.core.unspent() == []
    assert not set(bench.core.wants()) & set(MAP[1])
    assert bench.core.finished() == (
        "2 of 3 groups can still open, a version wants 3 (f = 1: at least 3); group 1: 2 of its cohorts opened nothing"
    )


def test_nine_sites_in_threes_end_with_one_drop_out_and_say_why() -> None:
    bench = grouped()
    bench.core.refuse("e", "data_source")
    assert bench.core.stopped == {1: "2 of its 3 sites are left, 3 wanted"}
    assert bench.core.finished() == (
        "2 of 3 groups can still open, a version wants 3 (f = 1: at least 3); "
        "group 1: 2 of its 3 sites are left, 3 wanted"
    )


def test_a_group_with_a_lost_site_may_come_back() -> None:
    bench = grouped()
    bench.core.lose("e", "disconnected")
    assert bench.core.stopped == {}
    assert "group 1: 2 of its sites can contribute now" in str(bench.core.finished())
    bench.core.returned("e")
    assert bench.core.finished() is None


def test_a_group_that_waits_in_the_buffer_counts_though_its_sites_are_gone() -> None:
    bench = grouped()
    bench.ready(*"abc")
    bench.open(bench.form())
    for site in "abc":
        bench.core.lose(site, "killed")
    assert bench.core.finished() is None
    bench.ready(*"defghi")
    bench.open(bench.form())
    bench.open(bench.form())
    bench.core.apply()
    assert bench.core.finished() is not None


def test_groups_out_of_rounds_are_stopped() -> None:
    bench = grouped(rounds_per_site=1)
    for group in MAP:
        bench.ready(*group)
        bench.open(bench.form())
    bench.core.apply()
    assert set(bench.core.stopped) == {0, 1, 2}
    assert bench.core.finished() is not None


def test_before_the_draw_too_few_live_sites_end_the_job_with_the_numbers() -> None:
    bench = Bench(NINE, GROUPS)
    bench.core.refuse("a", "policy_refused")
    assert bench.core.finished() == "8 sites give 2 groups of 3, a version wants 3 (f = 1: at least 3)"


# -- a new process goes on ------------------------------------------------------------------------------------------


def test_a_new_process_asks_pool_and_cohorts_again_and_keeps_what_was_opened() -> None:
    bench = Bench(list("abcdefghijk"), max_faults=1)
    tickets = bench.ready(*"abcdefghi")
    opened, at_work = bench.form(), bench.form()
    assert at_work is not None
    bench.open(opened)
    out = bench.issue("k")
    bench.core.refuse("h", "site_error")
    used = dict(bench.core.rounds_used)
    bench.core.take_over(1e6)
    assert (bench.core.cohorts, bench.core.pool, bench.core.buffered) == ((), (), tuple("abcd"))
    assert bench.core.unspent() == list("efgi")
    assert bench.core.outstanding("k") == Ticket(out.id, "k", 0, out.head, 1e6, out.model)
    assert bench.core.wants() == ["j"]
    with pytest.raises(UpdateRejected, match="no fault"):  # to the old process's question
        bench.say(tickets[4])
    bench.core.again("e", 1e6)
    bench.core.spent("e", tickets[4].id)  # it had masked
    for site in "fgi":
        bench.say(bench.core.again(site, 1e6))
    with pytest.raises(ConfigError, match="no cohort"):
        bench.open(at_work)
    bench.say(out)
    assert bench.core.apply().sites == tuple("abcd")
    bench.open(bench.form())
    assert bench.core.apply().sites == tuple("fgik")
    assert bench.core.rounds_used == used
    assert bench.core.aborts == {}
    assert bench.core.excluded == ()


def test_an_answer_that_a_new_process_asked_for_again_counts_once() -> None:
    bench = Bench()
    (ticket,) = bench.ready("a")
    bench.core.take_over(0.0)
    bench.core.again("a", 0.0)
    bench.say(ticket)
    with pytest.raises(UpdateRejected):
        bench.say(ticket)
    assert len(bench.core.faults["a"]) == 1
    assert bench.core.pool == ("a",)


# -- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "args", "changes", "match"),
    [
        (SITES, SUM, {"rule": "median"}, "weighted_mean"),
        (SITES, SUM, {"rule_args": {"f": 1.0}}, "weighted_mean"),
        (list("abc"), SUM, {}, "4 sites or more"),
        (list("abcdefgh"), GROUPS, {}, "9 sites or more"),
        (["a", "a", "b", "c"], SUM, {}, "distinct"),
        (SITES, SUM, {"privacy": "sealed", "masked": None}, "arguments masked"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(sites: Any, args: Any, changes: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Bench(sites, args, **changes)


def test_groups_want_a_rule_and_a_sum_has_no_map() -> None:
    with pytest.raises(ConfigError, match="want a rule"):
        MaskedCoordinator(GROUPS, NINE, {}, np.zeros(D, np.float32), LAYOUT, dp_event=EVENT)
    MaskedCoordinator(SUM, SITES, {}, np.zeros(D, np.float32), LAYOUT, dp_event=EVENT)
    with pytest.raises(ConfigError, match="in a job with groups"):
        Bench().core.draw(MAP)
