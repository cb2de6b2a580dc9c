"""metrics.json: stable keys, totals equal to the events, no figure made up."""

import json
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.errors import ConfigError
from cordon.report.events import Event, Rejected, Updated, VersionMade
from cordon.report.metrics import metrics
from cordon.report.record import Epsilons, RunRecord, SiteFacts

EPSILONS = Epsilons(1.0, 2.1, 1.2, 4.0)
TOP = {
    "job_id", "job", "wall_s", "versions", "auc", "accuracy", "auc_centralised", "auc_local", "sites", "aggregation",
    "masked", "groups", "cohorts", "divergence", "key_releases", "model_sha256",
}  # fmt: skip
SITE = {
    "role", "source", "updates",
    "rounds", "spent", "mean_staleness", "epsilon", "epsilon_replace_one", "epsilon_public",
    "epsilon_own", "delta", "unit", "attested", "rejected", "reasons", "status",
}  # fmt: skip


def convert(*records):
    return tuple(msgspec.convert({"t": 1.0, **record}, Event) for record in records)


def job(plan, sites, **changes):
    fields = plan(sites, **changes)
    return {"t": 0.0, "kind": "job", **fields, "server_opt": {"algorithm": "FedYogi"}}


def test_keys_are_those_of_the_contract(make_run):
    result = metrics(make_run())
    assert set(result) == TOP
    assert all(set(site) == SITE for site in result["sites"].values())
    assert result["aggregation"] == {
        "privacy": "sealed", "rule": "weighted_mean", "server_opt": "FedAdam", "buffer": 3,
    }  # fmt: skip
    assert result["masked"] is result["groups"] is result["cohorts"] is None and result["divergence"] == []
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_whole_run(make_run):
    run = make_run(seed=3)
    result = metrics(run)
    last = run.versions[-1]
    assert (result["versions"], result["auc"], result["model_sha256"]) == (12, last.auc, last.sha256)
    assert [site["role"] for site in result["sites"].values()] == ["honest"] * 4 + ["malicious (on purpose)"]
    assert result["sites"]["hospital-e"]["reasons"] == {"over_norm_bound": 2}
    assert run.status("hospital-e") == "excluded" and run.status("hospital-a") == "took part"
    assert result["sites"]["hospital-d"]["mean_staleness"] > result["sites"]["hospital-a"]["mean_staleness"]


@given(
    cases=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["update", "rejected"]), st.integers(0, 9), st.sampled_from("xyz")
        ),
        max_size=40,
    )
)
def test_totals_equal_event_counts(plan, cases):
    records = [
        {"kind": "update", "site": s, "ticket": "t", "base_version": 0, "staleness": n, "norm": 1.0, "seconds": 1.0}
        if kind == "update"
        else {"kind": "rejected", "site": s, "ticket": "t", "reason": reason, "detail": "", "faults": 1}
        for s, kind, n, reason in cases
    ]
    events = convert(job(plan, ["a", "b", "c"]), *records)
    result = metrics(RunRecord(events, {s: SiteFacts("honest", "csv", EPSILONS) for s in "abc"}, 1.0, 0))["sites"]
    assert sum(site["updates"] for site in result.values()) == sum(isinstance(e, Updated) for e in events)
    assert sum(site["rejected"] for site in result.values()) == sum(isinstance(e, Rejected) for e in events)
    for name, site in result.items():
        mine = [e for e in events if getattr(e, "site", None) == name]
        taus = [e.staleness for e in mine if isinstance(e, Updated)]
        assert site["mean_staleness"] == (pytest.approx(sum(taus) / len(taus), abs=1e-3) if taus else None)
        assert site["reasons"] == Counter(e.reason for e in mine if isinstance(e, Rejected))
        assert sum(site["reasons"].values()) == site["rejected"]


def test_sites_that_never_trained(plan):
    events = convert(
        job(plan, ["a", "b", "c"]),
        {"kind": "refused", "site": "a", "reason": "policy_refused"},
        {"kind": "lost", "site": "b", "reason": "gone"},
        {"kind": "attested", "site": "c", "verdict": "fail", "type": "software", "codes": [["nonce", "fail", ""]]},
    )
    sites = {site: SiteFacts("honest", "csv") for site in "abcz"}
    run = RunRecord(events, sites, 1.0, 0, ended={"z": "killed by the driver"})
    result = metrics(run)
    assert (result["versions"], result["auc"], result["accuracy"], result["model_sha256"]) == (0, None, None, None)
    for site in "abcz":
        got = result["sites"][site]
        assert (got["updates"], got["mean_staleness"], got["epsilon"], got["epsilon_replace_one"]) == (
            0,
            None,
            0.0,
            0.0,
        )
    assert [result["sites"][site]["attested"] for site in "abcz"] == ["none", "none", "failed", "none"]
    assert [run.status(site) for site in "abcz"] == ["refused", "lost", "never trained", "ended early"]


def test_the_last_verdict_counts(plan):
    verdict = {"kind": "attested", "site": "a", "type": "software"}
    for verdicts, expected in [
        (["fail", "pass"], "software"), (["pass", "fail"], "failed"), (["pass", "not_checked"], "none"),
    ]:  # fmt: skip
        events = convert(job(plan, ["a"]), *({**verdict, "verdict": v} for v in verdicts))
        assert metrics(RunRecord(events, {"a": SiteFacts("slow", "csv")}, 1, 0))["sites"]["a"]["attested"] == expected


def test_a_lost_site_that_gets_a_ticket_is_back(plan):
    events = convert(
        job(plan, ["a"]),
        {"t": 2.0, "kind": "lost", "site": "a", "reason": "timeout"},
        {"t": 5.0, "kind": "ticket", "site": "a", "ticket": "t2", "version": 0},
        {"t": 6.0, "kind": "lost", "site": "a", "reason": "timeout"},
        {"t": 7.0, "kind": "excluded", "site": "a", "reason": "gone too often"},
        {"t": 8.0, "kind": "lost", "site": "a", "reason": "still gone"},
    )
    run = RunRecord(events, {"a": SiteFacts("honest", "csv")}, 1.0, 0)
    assert run.absences == {
        "a": [(2.0, 5.0, "lost", "timeout"), (6.0, 7.0, "lost", "timeout"), (7.0, None, "excluded", "gone too often")]
    }


def test_no_zero_epsilon_for_a_site_that_released_updates(make_run):
    run = make_run()
    sites = {**run.sites, "hospital-b": SiteFacts("honest", "csv")}
    with pytest.raises(ConfigError, match=r"hospital-b .* epsilon is missing"):
        metrics(RunRecord(run.events, sites, 1.0, 0))


def test_records_that_do_not_hang_together(make_run):
    run = make_run()
    without_a = {site: facts for site, facts in run.sites.items() if site != "hospital-a"}
    for events, sites, message in [
        (run.events[1:], run.sites, "must begin"),
        ((), run.sites, "must begin"),
        (run.events + run.events[:1], run.sites, "must begin"),
        (run.events, without_a, "no facts about hospital-a"),
    ]:
        with pytest.raises(ConfigError, match=message):
            RunRecord(events, sites, 1.0, 0)
    stray = {"kind": "rejected", "site": "stranger", "ticket": "t", "reason": "x", "detail": "", "faults": 1}
    with pytest.raises(ConfigError, match="stranger"):
        RunRecord(run.events + convert(stray), run.sites, 1.0, 0)


def test_auc_is_that_of_the_last_measured_version(make_run):
    run = make_run()
    unmeasured = VersionMade(
        t=99.0, version=13, sites=[], staleness=[], auc=None, accuracy=None, sha256="f" * 64, step_norm=0.0
    )
    longer = RunRecord((*run.events, unmeasured), run.sites, 1.0, 0)
    result = metrics(longer)
    assert result["auc"] == run.versions[-1].auc and result["versions"] == 13 and result["model_sha256"] == "f" * 64
