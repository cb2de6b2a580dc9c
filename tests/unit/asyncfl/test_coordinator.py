"""The coordinator's state machine: laws of the update rule, tickets, faults, ends."""

import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.asyncfl.coordinator import Coordinator
from cordon.asyncfl.records import Ticket
from cordon.errors import ConfigError, UpdateRejected
from cordon.job import ControllerArgs, ServerOpt, Staleness
from cordon.messages import DPEvent, UpdateHeader, chain_head, pack, sha256
from cordon.robust import aggregate

SITES = ["a", "b", "c", "d"]
LAYOUT = "1" * 64
D = 4
EVENT = DPEvent(
    mechanism="poisson_subsampled_gaussian",
    noise_multiplier=6.0,
    sampling_rate=0.5,
    steps=5,
    clip_norm=1.0,
    unit="patient",
)
ARGS = ControllerArgs(
    privacy="sealed",
    rule="weighted_mean",
    server_opt=ServerOpt(algorithm="FedAvg"),
    buffer=3,
    versions=100,
    rounds_per_site=100,
    norm_bound=10.0,
    max_staleness=5,
    max_faults=2,
    ticket_timeout_s=30.0,
)


class Bench:
    """A coordinator and numbered tickets."""

    def __init__(self, sites: list[str] = SITES, weights: dict[str, float] | None = None, **changes: Any) -> None:
        args = msgspec.structs.replace(ARGS, **changes)
        rule = lambda rows, p: aggregate(rows, p, args.rule, args.rule_args)  # noqa: E731
        self.core = Coordinator(args, sites, weights or {}, np.zeros(D, np.float32), LAYOUT, dp_event=EVENT, rule=rule)
        self._ids = itertools.count()

    def issue(self, site: str, now: float = 0.0) -> Ticket:
        return self.core.issue(site, f"t{next(self._ids)}", now)

    def answer(self, ticket: Ticket, delta: Any = 1.0, **changes: Any) -> Any:
        vector = np.full(D, delta, np.float32) if isinstance(delta, float) else delta
        return self.core.submit(ticket.site, header(ticket, **changes), vector)

    def round(self, site: str, delta: Any = 1.0) -> Any:
        return self.answer(self.issue(site), delta)

    def fault(self, site: str) -> None:
        with pytest.raises(UpdateRejected):
            self.round(site, np.nan)


def header(ticket: Ticket, **changes: Any) -> UpdateHeader:
    fields = {
        "v": 1,
        "job": "j",
        "ticket": ticket.id,
        "base_version": ticket.version,
        "model_chain_head": ticket.head,
        "layout_digest": LAYOUT,
        "privacy": "sealed",
        "dp_event": EVENT,
        "sealed_to": "0" * 64,
        "payload_sha256": "0" * 64,
    }
    return UpdateHeader(**{**fields, **changes})


# -- the update rule ------------------------------------------------------------------------------------------------


@given(st.integers(3, 6), st.lists(st.floats(0.01, 100), min_size=6, max_size=6))
def test_identical_fresh_updates_of_ones_move_the_model_by_exactly_one(k: int, weights: list[float]) -> None:
    sites = [f"s{i}" for i in range(6)]
    bench = Bench(sites, dict(zip(sites, weights, strict=True)), buffer=k)
    for version in range(1, 4):
        for site in sites[:k]:
            assert bench.round(site).staleness == 0
        made = bench.core.apply()
        assert (made.number, made.staleness) == (version, (0,) * k)
        assert np.array_equal(bench.core.model, np.full(D, version, np.float32))


def test_rows_come_to_the_rule_by_site_unstacked_and_with_the_public_weights() -> None:
    seen: dict[str, Any] = {}

    def rule(rows: Any, weights: Any) -> Any:
        seen.update(rows=rows, weights=weights)
        return aggregate(rows, weights, "weighted_mean")

    weights = {"a": 0.5, "b": 2.0, "c": 3.0, "d": 1.0}
    core = Coordinator(ARGS, SITES, weights, np.zeros(D, np.float32), LAYOUT, dp_event=EVENT, rule=rule)
    for site in ("d", "a", "c"):
        core.submit(site, header(core.issue(site, f"t-{site}", 0.0)), np.full(D, weights[site], np.float32))
    core.apply()
    assert not isinstance(seen["rows"], np.ndarray)
    assert [(row.dtype, row[0]) for row in seen["rows"]] == [(np.float32, weights[site]) for site in "acd"]
    assert seen["weights"].tolist() == [0.5, 3.0, 1.0]


def test_a_version_tells_how_far_its_updates_point_apart_and_who_was_left_out() -> None:
    bench = Bench(["a", "b", "c", "d"], buffer=4, rule="multi_krum", rule_args={"f": 1.0, "m": 3.0}, norm_bound=1000.0)
    for site in "abd":
        bench.round(site, 1.0)
    bench.round("c", -100.0)
    divergence = bench.core.apply().divergence
    assert divergence is not None
    assert (divergence.least, divergence.greatest) == (-1.0, 1.0)
    assert divergence.outliers == ("c",)


@given(st.permutations(SITES[:3]), st.integers(0, 1000))
def test_order_of_arrival_does_not_change_a_bit(order: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = {site: rng.normal(size=D).astype(np.float32) for site in SITES[:3]}
    models = []
    for sites in (SITES[:3], order):
        bench = Bench(weights={"a": 0.1, "b": 0.7, "c": 0.3, "d": 1.0})
        for site in sites:
            bench.round(site, deltas[site])
        bench.core.apply()
        models.append((bench.core.model.tobytes(), bench.core.head))
    assert models[0] == models[1]


def test_weights_are_renormalised_over_the_buffer() -> None:
    bench = Bench(weights={"a": 0.1, "b": 0.1, "c": 0.2, "d": 0.6})
    for site, value in (("a", 1.0), ("b", 1.0), ("c", 3.0)):
        bench.round(site, value)
    bench.core.apply()
    assert np.allclose(bench.core.model, 2.0)


def test_a_stale_update_counts_by_its_staleness_weight() -> None:
    bench = Bench()
    old = bench.issue("d")
    for site in "abc":
        bench.round(site, 0.0)
    bench.core.apply()
    assert bench.answer(old, 3.0).staleness == 1
    bench.round("a", 0.0)
    bench.round("b", 0.0)
    made = bench.core.apply()
    assert made.sites == ("a", "b", "d")
    assert made.staleness == (0, 0, 1)
    assert np.allclose(bench.core.model, 3.0 / math.sqrt(2) / 3)
    assert made.step_norm == pytest.approx(2 * 3.0 / math.sqrt(2) / 3)


def test_the_job_chooses_how_much_a_stale_update_counts() -> None:
    for staleness, factor in ((Staleness(function="constant"), 1.0), (Staleness(function="hinge", a=1.0, b=0), 0.5)):
        bench = Bench(staleness=staleness)
        old = bench.issue("d")
        for site in "abc":
            bench.round(site, 0.0)
        bench.core.apply()
        bench.answer(old, 3.0)
        bench.round("a", 0.0)
        bench.round("b", 0.0)
        bench.core.apply()
        assert np.allclose(bench.core.model, factor)


def test_step_is_clipped_after_the_server_optimiser() -> None:
    bench = Bench(server_opt=ServerOpt(algorithm="FedAvg", lr=10.0, max_step=0.5))
    for site in "abc":
        bench.round(site, 1.0)
    assert bench.core.apply().step_norm == pytest.approx(0.5)
    assert np.linalg.norm(bench.core.model) == pytest.approx(0.5)


def test_the_job_s_rule_is_the_one_used() -> None:
    bench = Bench([*SITES, "e"], buffer=5, rule="trimmed_mean", rule_args={"f": 1.0})
    for site, value in zip("abcde", (1.0, 1.0, 1.0, -5.0, 5.0), strict=True):
        bench.round(site, value)
    bench.core.apply()
    assert np.array_equal(bench.core.model, np.ones(D, np.float32))


def test_head_commits_to_every_model() -> None:
    bench = Bench()
    head = chain_head("", 0, sha256(pack("w", np.zeros(D, np.float32))))
    assert bench.core.head == head
    for site in "abc":
        bench.round(site, 2.0)
    bench.core.apply()
    assert bench.core.head == chain_head(head, 1, sha256(pack("w", np.full(D, 2, np.float32))))
    assert bench.issue("a").head == bench.core.head


# -- tickets --------------------------------------------------------------------------------------------------------


def test_no_new_ticket_while_one_is_out_or_the_update_waits_in_the_buffer() -> None:
    bench = Bench()
    ticket = bench.issue("a")
    assert bench.core.wants() == ["b", "c", "d"]
    bench.answer(ticket)
    assert bench.core.wants() == ["b", "c", "d"]
    assert bench.core.buffered == ("a",)
    with pytest.raises(ConfigError, match="may not start"):
        bench.issue("a")
    bench.round("b")
    bench.round("c")
    bench.core.apply()
    assert bench.core.wants() == SITES


def test_a_ticket_id_is_used_once() -> None:
    bench = Bench()
    bench.core.issue("a", "same", 0.0)
    with pytest.raises(ConfigError, match="id is used"):
        bench.core.issue("b", "same", 0.0)


def test_rounds_per_site_is_a_hard_end_counted_when_the_ticket_goes_out() -> None:
    bench = Bench(rounds_per_site=2)
    bench.core.lose("a", "timeout")  # no ticket out: nothing used
    bench.core.returned("a")
    for _ in range(2):
        bench.issue("a")
        bench.core.lose("a", "timeout")  # it may have made its noisy steps: spent
        bench.core.returned("a")
    assert bench.core.rounds_used["a"] == 2
    assert "a" not in bench.core.wants()
    with pytest.raises(ConfigError):
        bench.issue("a")


def test_expired_names_tickets_past_the_timeout_only() -> None:
    bench = Bench()
    bench.issue("a", now=0.0)
    late = bench.issue("b", now=10.0)
    assert bench.core.expired(30.0) == []
    assert [ticket.site for ticket in bench.core.expired(35.0)] == ["a"]
    assert late in bench.core.expired(40.5)


# -- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "delta", "code"),
    [
        ({"base_version": 7}, 1.0, "wrong_base"),
        ({"model_chain_head": "2" * 64}, 1.0, "wrong_base"),
        ({"layout_digest": "2" * 64}, 1.0, "bad_layout"),
        ({"privacy": "masked"}, 1.0, "wrong_privacy"),
        ({"dp_event": msgspec.structs.replace(EVENT, noise_multiplier=0.1)}, 1.0, "wrong_privacy"),
        ({"dp_event": msgspec.structs.replace(EVENT, steps=4)}, 1.0, "wrong_privacy"),
        ({}, np.ones(D + 1, np.float32), "bad_payload"),
        ({}, np.ones((1, D), np.float32), "bad_payload"),
        ({}, np.ones(D, np.float64), "bad_payload"),
        ({}, np.nan, "not_finite"),
        ({}, np.inf, "not_finite"),
        ({}, 1e30, "over_norm_bound"),
        ({}, 5.001, "over_norm_bound"),
        # earlier checks win
        ({"base_version": 7, "privacy": "masked"}, np.nan, "wrong_base"),
        ({"privacy": "masked"}, np.nan, "wrong_privacy"),
    ],
)
def test_what_breaks_a_public_rule_is_rejected_and_frees_the_site(changes: Any, delta: Any, code: str) -> None:
    bench = Bench()
    ticket = bench.issue("a")
    with pytest.raises(UpdateRejected) as caught:
        bench.answer(ticket, delta, **changes)
    assert caught.value.code == code
    assert [fault[0] for fault in bench.core.faults["a"]] == [code]
    assert bench.core.buffered == ()
    assert "a" in bench.core.wants()
    assert bench.core.excluded == ()
    assert np.array_equal(bench.core.model, np.zeros(D))


def test_norm_bound_allows_float32_rounding() -> None:
    bench = Bench()
    assert bench.round("a", 5.0).norm == 10.0
    assert bench.round("b", 5.00004).norm > 10.0


def test_what_was_submitted_cannot_be_changed_afterwards() -> None:
    bench = Bench()
    deltas = {site: np.ones(D, np.float32) for site in "abc"}
    for site, delta in deltas.items():
        bench.round(site, delta)
        delta[:] = 5
    bench.core.apply()
    assert np.array_equal(bench.core.model, np.ones(D, np.float32))


def test_too_stale_is_rejected() -> None:
    bench = Bench(max_staleness=1)
    old = bench.issue("d")
    for _ in range(2):
        for site in "abc":
            bench.round(site)
        bench.core.apply()
    with pytest.raises(UpdateRejected) as caught:
        bench.answer(old)
    assert caught.value.code == "too_stale"


def test_exclusion_after_max_faults_takes_back_what_is_in_the_open_buffer() -> None:
    bench = Bench()
    ticket = bench.issue("a")
    bench.answer(ticket)
    for _ in range(2):  # replays of its accepted update
        with pytest.raises(UpdateRejected) as caught:
            bench.answer(ticket)
        assert caught.value.code == "unknown_ticket"
    assert bench.core.excluded == ("a",)
    assert bench.core.buffered == ()
    assert "a" not in bench.core.wants()
    bench.core.returned("a")
    bench.core.refuse("a", "site_error")
    assert bench.core.excluded == ("a",)
    with pytest.raises(UpdateRejected):
        bench.answer(ticket)
    assert len(bench.core.faults["a"]) == 2  # a spammer's record does not grow


def test_a_ticket_of_another_site_is_unknown_and_the_owner_keeps_it() -> None:
    bench = Bench()
    ticket = bench.issue("a")
    bench.issue("b")
    with pytest.raises(UpdateRejected, match="unknown_ticket"):
        bench.core.submit("b", header(ticket), np.ones(D, np.float32))
    assert bench.core.faults["a"] == []
    assert bench.answer(ticket).norm == 2.0


def test_a_replay_does_not_cancel_the_round_in_progress() -> None:
    bench = Bench()
    first = bench.issue("a")
    bench.answer(first)
    bench.round("b")
    bench.round("c")
    bench.core.apply()
    second = bench.issue("a")
    with pytest.raises(UpdateRejected, match="unknown_ticket"):
        bench.answer(first)
    assert bench.answer(second).staleness == 0


def test_a_late_answer_to_a_ticket_given_up_is_no_fault_but_only_once() -> None:
    bench = Bench(max_faults=1)
    ticket = bench.issue("a")
    bench.core.lose("a", "timeout")
    assert "a" not in bench.core.wants()
    with pytest.raises(UpdateRejected, match="given up"):
        bench.answer(ticket)
    assert bench.core.faults["a"] == []
    assert bench.core.buffered == ()
    bench.core.returned("a")
    assert "a" in bench.core.wants()
    with pytest.raises(UpdateRejected):
        bench.answer(ticket)
    assert bench.core.excluded == ("a",)


def test_a_late_answer_of_another_site_is_a_fault() -> None:
    bench = Bench()
    ticket = bench.issue("a")
    bench.core.lose("a", "timeout")
    with pytest.raises(UpdateRejected):
        bench.core.submit("b", header(ticket), np.ones(D, np.float32))
    assert len(bench.core.faults["b"]) == 1


# -- a new process goes on ------------------------------------------------------------------------------------------


def test_a_new_process_goes_on_with_what_is_outstanding_and_what_is_in_the_buffer() -> None:
    bench = Bench()
    bench.round("a")
    open_ = bench.issue("b")
    used = dict(bench.core.rounds_used)
    bench.core.take_over(1e6)
    assert bench.core.outstanding("b") == Ticket("t1", "b", 0, open_.head, 1e6, open_.model)
    assert bench.core.expired(1e6 + 29) == []
    assert bench.core.buffered == ("a",)
    assert bench.core.wants() == ["c", "d"]
    bench.answer(open_)
    bench.round("c")
    assert bench.core.apply().sites == ("a", "b", "c")
    assert bench.core.rounds_used == {**used, "c": 1}


def test_what_the_old_process_had_counted_may_come_once_more_and_counts_for_nothing() -> None:
    bench = Bench(max_faults=1)
    buffered, applied = bench.issue("d"), [bench.issue(site) for site in "abc"]
    for ticket in applied:
        bench.answer(ticket)
    bench.core.apply()
    bench.answer(buffered)
    model, head = bench.core.model.copy(), bench.core.head
    bench.core.take_over(0.0)
    for ticket in (buffered, *applied):
        with pytest.raises(UpdateRejected, match="no fault"):
            bench.answer(ticket)
        assert bench.core.faults[ticket.site] == []
        with pytest.raises(UpdateRejected, match="unknown_ticket"):
            bench.answer(ticket)
    assert set(bench.core.excluded) == {"a", "b", "c", "d"}
    assert np.array_equal(bench.core.model, model)
    assert bench.core.head == head


def test_an_open_ticket_keeps_the_model_that_it_is_for() -> None:
    """A new process has to send the very model again, and by then there may be newer ones."""
    bench = Bench()
    ticket = bench.issue("d")
    for site in "abc":
        bench.round(site)
    bench.core.apply()
    bench.core.take_over(0.0)
    kept = bench.core.outstanding("d")
    assert kept is not None
    assert np.array_equal(kept.model, np.zeros(D))
    assert sha256(pack("w", kept.model)) == bench.core.links[kept.version]
    assert bench.core.links[1] == sha256(pack("w", bench.core.model))
    assert bench.answer(ticket).staleness == 1


def test_refusal_is_no_fault_and_keeps_what_was_given_before() -> None:
    bench = Bench()
    bench.round("a")
    bench.core.refuse("a", "data_source")
    assert bench.core.buffered == ("a",)
    assert bench.core.faults["a"] == []
    bench.core.returned("a")
    bench.round("b")
    bench.round("c")
    bench.core.apply()
    assert "a" not in bench.core.wants()


def test_faults_have_known_codes_and_strangers_are_errors() -> None:
    bench = Bench()
    with pytest.raises(ConfigError, match="unknown reason"):
        bench.core.fault("a", "i_do_not_like_it", "")
    for call in (
        lambda: bench.core.fault("x", "bad_signature", ""),
        lambda: bench.core.lose("x", ""),
        lambda: bench.core.refuse("x", ""),
        lambda: bench.core.returned("x"),
    ):
        with pytest.raises(ConfigError, match="does not take part"):
            call()


def test_a_full_buffer_wants_to_be_applied_first() -> None:
    bench = Bench()
    with pytest.raises(ConfigError, match="0 of 3"):
        bench.core.apply()
    late = bench.issue("d")
    for site in "abc":
        bench.round(site)
    assert bench.core.ready()
    with pytest.raises(ConfigError, match="full"):
        bench.answer(late)
    bench.core.apply()
    assert bench.answer(late).staleness == 1


# -- the end --------------------------------------------------------------------------------------------------------


def test_ends_when_all_versions_are_made() -> None:
    bench = Bench(versions=1)
    assert bench.core.finished() is None
    for site in "abc":
        bench.round(site)
    bench.core.apply()
    assert bench.core.finished() == "all 1 versions made"


def test_ends_when_too_few_sites_can_still_contribute() -> None:
    bench = Bench()
    bench.core.refuse("a", "data_source")
    assert bench.core.finished() is None
    bench.core.lose("b", "disconnected")
    assert bench.core.finished() == "2 sites can still contribute, a version wants 3"
    bench.core.returned("b")
    assert bench.core.finished() is None
    bench.fault("c")
    bench.fault("c")
    assert bench.core.finished() is not None


def test_a_last_ticket_and_a_buffered_update_still_count() -> None:
    bench = Bench(["a", "b", "c"], rounds_per_site=1)
    bench.round("a")
    last = bench.issue("b")
    bench.round("c")
    bench.core.lose("c", "killed")  # its update is here already
    assert bench.core.finished() is None
    bench.answer(last)
    bench.core.apply()
    assert bench.core.finished() is not None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_it_goes_on_or_says_why_not(data: st.DataObject) -> None:
    """No state without a move: unfinished means a ticket is out or a site wants one; and no site is in twice."""
    bench = Bench(rounds_per_site=3, versions=4)
    tickets: list[Ticket] = []
    for _ in range(60):
        if bench.core.finished() is not None:
            break
        if bench.core.ready():
            made = bench.core.apply()
            assert len(set(made.sites)) == 3
            continue
        wants, out = bench.core.wants(), [t for t in tickets if bench.core.expired(1e9).count(t)]
        assert wants or out
        move = data.draw(st.sampled_from(["issue", "answer", "nan", "lose", "return", "refuse"]))
        if move == "issue" and wants:
            tickets.append(bench.issue(data.draw(st.sampled_from(wants))))
        elif move in ("answer", "nan", "lose") and out:
            ticket = data.draw(st.sampled_from(out))
            if move == "answer":
                bench.answer(ticket)
            elif move == "lose":
                bench.core.lose(ticket.site, "timeout")
            else:
                with pytest.raises(UpdateRejected):
                    bench.answer(ticket, np.nan)
        elif move == "return":
            bench.core.returned(data.draw(st.sampled_from(SITES)))
        elif move == "refuse" and data.draw(st.integers(0, 9)) == 0:
            bench.core.refuse(data.draw(st.sampled_from(SITES)), "site_error")
        assert all(used <= 3 for used in bench.core.rounds_used.values())
        assert np.isfinite(bench.core.model).all()


@pytest.mark.parametrize(
    ("sites", "weights", "changes", "match"),
    [
        (["a", "b"], {}, {}, "distinct sites"),
        (["a", "a", "b"], {}, {}, "distinct sites"),
        (SITES, {"a": 1.0}, {}, "no weight for b, c, d"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_training(sites: Any, weights: Any, changes: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Bench(sites, weights, **changes)
