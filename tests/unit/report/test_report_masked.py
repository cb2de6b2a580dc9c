"""Masked mode as people see it: cohorts from events, metrics.json, the page and the terminal."""

import io
import json
import math
import re
from dataclasses import replace

import msgspec
import pytest
from rich.console import Console

from cordon.errors import ConfigError
from cordon.report.cohorts import Cohorts
from cordon.report.events import CohortOpened, Event, Ready, VersionMade
from cordon.report.html import render
from cordon.report.live import LiveView
from cordon.report.metrics import metrics
from cordon.report.progress import Progress
from cordon.report.record import Epsilons, RunRecord, SiteFacts

GROUPS = [[f"site-{group}{member}" for member in range(3)] for group in range(3)]


def events(*records):
    return [msgspec.convert({"t": float(number), **each}, Event) for number, each in enumerate(records)]


def ready(site, base=0):
    return {"kind": "ready", "site": site, "ticket": f"t-{site}", "base_version": base, "staleness": 0, "seconds": 0.5}


def formed(*sites, cohort="cohort-1"):
    return {"kind": "cohort", "cohort": cohort, "group": None, "sites": list(sites), "least": 3}


def opened(*sites, cohort="cohort-1"):
    return {"kind": "opened", "cohort": cohort, "group": None, "survivors": list(sites), "norm": 0.1, "seconds": 1.0}


def ended(*spent, cohort="cohort-1", reason="lost: 2 of 4, want 3"):
    return {
        "kind": "aborted", "cohort": cohort, "group": None, "stage": "masked", "reason": reason, "spent": list(spent)
    }  # fmt: skip


def version(number):
    return {
        "kind": "version", "version": number, "sites": [], "staleness": [], "auc": None, "accuracy": None,
        "sha256": "0" * 64, "step_norm": 0.0,
    }  # fmt: skip


def kept(*records):
    book = Cohorts()
    for event in events(*records):
        book.take(event)
    return book


# -- cohorts ---------------------------------------------------------------------------------------------------------


def test_staleness_is_counted_from_the_version_at_which_the_cohort_formed():
    book = kept(ready("a"), ready("b"), version(1), version(2), ready("c", 2), formed("a", "b", "c"), version(3),
                opened("a", "b", "c"))  # fmt: skip
    assert {each.site: each.staleness for each in book.contributions} == {"a": 2, "b": 2, "c": 0}


def test_what_was_masked_in_a_cohort_that_ended_is_spent_and_the_rest_goes_on():
    book = kept(*(ready(site) for site in "abcd"), formed(*"abcd"), ended("a", "b"), ready("a", 1),
                formed(*"acd", cohort="cohort-2"), opened(*"acd", cohort="cohort-2"))  # fmt: skip
    assert [(each.site, each.fate) for each in book.contributions] == [
        ("a", "spent"), ("b", "spent"), ("a", "used"), ("c", "used"), ("d", "used")
    ]  # fmt: skip
    first, second = book.all.values()
    assert (first.state, first.code, second.state) == ("ended", "lost", "opened")


def test_who_is_not_in_the_sum_is_lost():
    book = kept(*(ready(site) for site in "abcd"), formed(*"abcd"), opened(*"abc"))
    assert [each.site for each in book.contributions if each.fate == "lost"] == ["d"]
    assert book.all["cohort-1"].missing == ("d",)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([formed("a", "b", "c")], "a, b, c was never ready"),
        ([opened("a", "b", "c")], "ends and did not run"),
        ([*(ready(site) for site in "abc"), formed(*"abc"), opened(*"abc"), ended("a")], "ends and did not run"),
        ([*(ready(site) for site in "abc"), formed(*"abc"), formed(*"abc")], "it formed before"),
    ],
)
def test_a_log_whose_cohorts_do_not_fit_together_is_refused(records, reason):
    with pytest.raises(ConfigError, match=reason):
        kept(*records)


# -- metrics.json ----------------------------------------------------------------------------------------------------


def test_a_masked_run_in_numbers(make_masked_run):
    run = make_masked_run()
    result = metrics(run)
    assert result["masked"] == {
        "cohort": 4, "threshold": 3, "u_min": 3, "c": 1, "ring_bits": 32, "distributed": False, "group_size": None,
        "f": None,
    }  # fmt: skip
    assert result["groups"] is None and result["divergence"] == []
    assert result["cohorts"] == {
        "formed": 7, "opened": 6, "ended": {"lost": 1}, "least_survivors": 3, "lost_sites": 1, "median_seconds": 0.75
    }  # fmt: skip
    used = sum(len(event.survivors) for event in run.of(CohortOpened))
    assert sum(site["updates"] for site in result["sites"].values()) == used
    assert {name: site["spent"] for name, site in result["sites"].items() if site["spent"]} == {
        "hospital-a": 1, "hospital-b": 1
    }  # fmt: skip
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_groups_and_divergence_in_numbers(make_masked_run):
    result = metrics(make_masked_run(groups=GROUPS))
    assert result["groups"] == GROUPS and result["masked"]["f"] == 1
    assert [each["version"] for each in result["divergence"]] == list(range(1, result["versions"] + 1))
    assert result["divergence"][1] == {
        "version": 2, "least": -0.2, "median": 0.6, "greatest": 0.9, "outliers": ["1"]
    }  # fmt: skip


def test_local_noise_has_one_epsilon_and_shared_noise_three(make_masked_run):
    shared = SiteFacts("honest", "csv", Epsilons(2.0, 4.1, 2.2, 4.0, public=1.5, own=3.5))
    sites = metrics(make_masked_run(sites={**make_masked_run().sites, "hospital-a": shared}))["sites"]
    assert [sites["hospital-a"][f"epsilon{which}"] for which in ("", "_public", "_own")] == [2.0, 1.5, 3.5]
    local = sites["hospital-b"]
    assert local["epsilon"] == local["epsilon_public"] == local["epsilon_own"] > 0


def test_a_share_that_guarantees_nothing_alone_is_said_to_be_infinite(make_masked_run):
    shared = SiteFacts("honest", "csv", Epsilons(2.0, 4.1, 2.2, 4.0, public=1.5, own=math.inf))
    run = make_masked_run()
    run = replace(run, sites={**run.sites, "hospital-a": shared})
    assert metrics(run)["sites"]["hospital-a"]["epsilon_own"] is None
    assert "∞" in page_of(run)


def test_a_site_that_masked_an_update_has_an_epsilon(make_masked_run):
    run = make_masked_run()
    without = {**run.sites, "hospital-b": replace(run.sites["hospital-b"], epsilon=None)}
    with pytest.raises(ConfigError, match="hospital-b released updates but its epsilon is missing"):
        metrics(replace(run, sites=without))


def test_a_stranger_that_is_ready_is_refused(make_masked_run):
    run = make_masked_run()
    stranger = msgspec.structs.replace(run.of(Ready)[0], site="hospital-z")
    with pytest.raises(ConfigError, match="hospital-z"):
        RunRecord((*run.events, stranger), run.sites, 1.0, 0)


# -- report.html -----------------------------------------------------------------------------------------------------


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", "", page, flags=re.S))


def page_of(run):
    return render(run, metrics(run))


def test_the_page_says_whom_a_masked_sum_protects_against_and_whom_not(make_masked_run):
    page = text_of(page_of(make_masked_run()))
    assert "Mode masked, sum" in page and "no protection against a lying site" in page
    assert "threshold t = 3" in page and "up to c = 1 hospital that" in page
    assert "are both this local one" in page and "ε if all others collude" in page
    assert "6 sums were opened of 7 cohorts" in page
    assert "it ended in stage masked" in page and "never used again: hospital-a, hospital-b" in page
    assert "without hospital-b" in page and "Groups" not in page and "pointed apart" not in page


def test_the_page_shows_group_map_and_divergence(make_masked_run):
    page = page_of(make_masked_run(groups=GROUPS))
    said = text_of(page)
    assert "Mode masked, groups" in said and "robust against at most 1 lying site (f = 1)" in said
    assert "no protection against a lying site, which" not in said
    for group in GROUPS:
        assert f"<td>{', '.join(group)}</td>" in page
    assert "Cosine between each group mean" in said and page.count("cosines -0.200 to 0.900") >= 6
    assert "3 distinct groups per version" in said


def test_shared_out_noise_is_told_apart(make_masked_run):
    run = make_masked_run()
    masked = msgspec.structs.replace(run.job.masked, distributed=True)
    run = replace(run, events=(msgspec.structs.replace(run.job, masked=masked), *run.events[1:]))
    page = text_of(page_of(run))
    assert "The noise is shared out" in page and "are both this local one" not in page


def test_a_sealed_page_has_nothing_of_it(make_run):
    page = text_of(page_of(make_run()))
    assert "What was opened" not in page and "cohort" not in page and "Each hospital adds its own noise" in page


def test_divergence_of_sealed_updates_is_shown_too(make_run):
    run = make_run()
    spread = {"least": 0.1, "median": 0.5, "greatest": 0.8, "outliers": ["hospital-d"]}
    changed = tuple(
        msgspec.convert({**msgspec.to_builtins(event), "divergence": spread}, Event)
        if isinstance(event, VersionMade) and event.version
        else event
        for event in run.events
    )
    page = text_of(page_of(replace(run, events=changed)))
    assert "Cosine between each update" in page and "counted least or not at all" in page


@pytest.mark.parametrize("function", ["constant", "polynomial", "hinge"])
def test_the_weight_of_late_updates_is_that_of_the_job(make_run, function):
    run = make_run()
    job = msgspec.convert(
        {**msgspec.to_builtins(run.job), "staleness": {"function": function, "a": 0.25, "b": 2}}, type(run.job)
    )
    page = text_of(page_of(replace(run, events=(job, *run.events[1:]))))
    said = {"constant": "as much as a fresh one", "polynomial": "(1+τ)^-0.25", "hinge": "1 up to τ = 2, then"}
    assert said[function] in page


@pytest.mark.parametrize("evil", ["</td><script>alert(1)</script>", "{{ 7*7 }}", "' onload='x", "\x1b[2J"])
def test_hostile_reasons_of_cohorts_stay_text(make_masked_run, evil):
    run = make_masked_run()
    changed = tuple(
        msgspec.structs.replace(event, reason=evil, stage=evil) if hasattr(event, "spent") else event
        for event in run.events
    )
    page = page_of(replace(run, events=changed))
    assert "<script" not in page and "onload='x" not in page and "49" not in page.split("What was opened")[1][:2000]


def test_a_thousand_cohorts_stay_small_and_those_that_failed_are_listed(make_masked_run):
    run = make_masked_run()
    many = [each for number in range(1000) for each in events(
        *(ready(site) for site in "abc"), formed(*"abc", cohort=f"cohort-{number}"),
        ended("a", cohort=f"cohort-{number}", reason="bad_share: x") if number == 3
        else opened(*"abc", cohort=f"cohort-{number}"))]  # fmt: skip
    job = msgspec.structs.replace(run.job, sites=list("abc"))
    facts = {site: run.sites["hospital-a"] for site in "abc"}
    page = page_of(replace(run, events=(job, *many), sites=facts))
    assert len(page) < 1_000_000
    assert "bad_share: x" in page and "200 of 1000 cohorts" in text_of(page)


# -- terminal --------------------------------------------------------------------------------------------------------


def view(clock, terminal):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n", write_through=True)
    console = Console(file=stream, force_terminal=terminal, width=120, height=40, _environ={"TERM": "xterm"})
    return LiveView(console, clock, lambda site, rounds: 0.1 * rounds), lambda: stream.buffer.getvalue().decode()


def play(run, clock, terminal):
    live, output = view(clock, terminal)
    with live:
        live.phase("train")
        for event in run.events:
            clock.now = event.t
            live.event(event)
        live.final_table(metrics(run))
    return output()


def test_plain_lines_tell_what_opened_and_what_not(make_masked_run, clock):
    said = play(make_masked_run(), clock, terminal=False)
    assert said.count("of 4 opened") == 5 and "cohort 1: sum of 4 of 4 opened\n" in said
    assert "cohort 2: nothing opened, ended in stage masked: lost: 2 of 4, want 3; masked and never used again" in said
    assert "cohort 3: sum of 3 of 4 opened, without hospital-b" in said and "sums opened 6 of 7" in said


def test_groups_are_named(make_masked_run, clock):
    said = play(make_masked_run(groups=GROUPS), clock, terminal=False)
    assert "groups drawn by commit and reveal: 0: site-00, site-01, site-02; 1: site-10" in said
    assert "cohort 1 (group 0): sum of 3 of 3 opened" in said


def test_display_counts_sums(make_masked_run, clock):
    last = play(make_masked_run(), clock, terminal=True).rsplit("version 6/6", 1)[1]
    assert "sums opened 6, cohorts ended 1" in last


def test_states_of_a_site_on_its_way_through_a_cohort(plan, clock):
    sites = list("abcd")
    masked = {"cohort": 4, "threshold": 3, "u_min": 3, "c": 1, "ring_bits": 32, "distributed": False}
    job = {"kind": "job", **plan(sites, masked=masked), "server_opt": {"algorithm": "FedAvg"}}
    progress = Progress(clock, lambda site, rounds: 0.5 * rounds)

    def after(*records):
        for event in events(*records):
            progress.event(event)
        return [progress.rows[site].state for site in sites]

    tickets = [{"kind": "ticket", "site": site, "ticket": f"t-{site}", "version": 0} for site in sites]
    assert after(job, *tickets) == ["training"] * 4
    assert after(*(ready(site) for site in "abc")) == ["ready", "ready", "ready", "training"]
    assert after(ready("d"), formed(*sites)) == ["masking"] * 4
    assert after({"kind": "lost", "site": "d", "reason": "x"}) == ["masking"] * 3 + ["lost"]
    assert after(ended("a")) == ["waiting", "ready", "ready", "lost"]
    assert progress.rows["a"].epsilon == 0.5
    again = {**tickets[0], "ticket": "t-a-2"}
    assert after(tickets[0], again, ready("a"), formed(*"abc", cohort="cohort-2")) == ["masking"] * 3 + ["lost"]
    assert after(opened(*"abc", cohort="cohort-2")) == ["waiting"] * 3 + ["lost"]
    assert [len(progress.rows[site].taus) for site in sites] == [1, 1, 1, 0]
    assert progress.rows["a"].epsilon == 1.0  # two tickets, one of them sent twice
