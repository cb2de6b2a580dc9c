"""A made-up run for the report's tests: four honest hospitals, one slow, one malicious, one that refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cordon.job import ServerOpt
from cordon.report.events import EventLog, read
from cordon.report.record import Epsilons, RunRecord, SiteFacts

SITES = ["hospital-a", "hospital-b", "hospital-c", "hospital-d", "hospital-e"]
TRUST = "The coordinator sees every hospital's clipped and noised update."


class Clock:
    """Time that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def job_fields(sites: list[str], **changes: Any) -> dict[str, Any]:
    """Fields of a job event."""
    return {
        "job_id": "6c1f0a52-4c0e-4c5e-9d3b-0b3f0f0c9d11",
        "job": "oncology",
        "study": "breast-fna",
        "profile": "poc",
        "privacy": "sealed",
        "rule": "weighted_mean",
        "rule_args": {},
        "server_opt": ServerOpt(algorithm="FedAdam", lr=0.1),
        "buffer": 3,
        "versions": 12,
        "rounds_per_site": 10,
        "norm_bound": 2.0,
        "max_staleness": 10,
        "staleness": {"function": "polynomial", "a": 0.5},
        "sites": sites,
        "evaluation": {"kind": "public", "name": "wdbc-reference", "rows": 171},
        "dp": {"noise_multiplier": 1.1, "sampling_rate": 0.2, "steps": 10, "clip_norm": 1.0, "unit": "patient"},
        "delta": 1e-5,
        "trust": TRUST,
        **changes,
    }


def write_run(path: Path, seed: int = 1, sites: list[str] | None = None, hostile: str = "") -> None:
    """A whole job's log; work times come from ``seed``, the last site sends over-bound updates until excluded."""
    sites = sites or SITES
    rng, clock = random.Random(seed), Clock()
    log = EventLog(path, clock)
    log.write("job", **job_fields(sites))
    for site in ["server", *sites]:
        log.write("attested", site=site, verdict="pass", type="software", codes=[["nonce_fresh", "pass", ""]])
    busy: dict[str, tuple[float, int, str, float]] = {}
    out: set[str] = set()
    pending: list[tuple[str, int]] = []
    version, count, faults = 0, 0, 0
    log.write("version", version=0, sites=[], staleness=[], auc=0.61, accuracy=0.58, sha256="0" * 64, step_norm=0.0)
    while version < 12:
        for site in sites:
            if site not in busy and site not in out and site not in dict(pending):
                count += 1
                slow = 4.0 if site == sites[3] else 1.0
                busy[site] = (clock.now + slow * rng.uniform(1.2, 2.6), version, f"t{count}", clock.now)
                log.write("ticket", site=site, ticket=f"t{count}", version=version)
        site = min(busy, key=lambda name: busy[name])
        due, base, ticket, issued = busy.pop(site)
        clock.now = due
        if site == sites[-1]:
            faults += 1
            detail = hostile or "norm 31.4 over 2.0"
            log.write("rejected", site=site, ticket=ticket, reason="over_norm_bound", detail=detail, faults=faults)
            if faults == 2:
                out.add(site)
                log.write("excluded", site=site, reason="2 faults: over_norm_bound")
            continue
        staleness = version - base
        log.write(
            "update", site=site, ticket=ticket, base_version=base, staleness=staleness, norm=1.2, seconds=due - issued
        )
        pending.append((site, staleness))
        if len(pending) == 3:
            version += 1
            auc = 0.99 - 0.3 * 0.62**version + rng.uniform(-0.004, 0.004)
            log.write(
                "version", version=version, sites=[name for name, _ in pending], auc=auc,
                staleness=[tau for _, tau in pending], accuracy=auc - 0.03, sha256=f"{version:064x}", step_norm=0.1,
            )  # fmt: skip
            pending = []
    log.write("done", versions=version, reason="all 12 versions were made")
    log.close()


def write_masked_run(path: Path, *, groups: list[list[str]] | None = None) -> None:
    """A masked job's log: ``SITES`` in cohorts of four (the last but one slow), or whole groups of ``groups``.

    The second cohort ends in stage masked with two updates spent; the third opens without its first site, which is
    lost.
    """
    sites = [site for each in groups for site in each] if groups else SITES
    clock = Clock()
    log = EventLog(path, clock)
    masked = {"cohort": 4, "threshold": 3, "u_min": 3, "c": 1, "ring_bits": 32, "distributed": False}
    if groups:
        masked = {**masked, "cohort": len(groups[0]), "group_size": len(groups[0]), "f": 1}
    log.write(
        "job",
        **job_fields(
            sites, job="oncology_masked", privacy="masked", masked=masked, versions=6,
            buffer=len(groups) if groups else 4, trust="masked: no protection against a lying site.",
        ),
    )  # fmt: skip
    if groups:
        log.write("groups", groups=groups, digest="a" * 64)
    for site in ["server", *sites]:
        log.write("attested", site=site, verdict="pass", type="software", codes=[])
    log.write("version", version=0, sites=[], staleness=[], auc=0.6, accuracy=0.5, sha256="0" * 64, step_norm=0.0)
    version, number, tickets, buffered = 0, 0, 0, 0
    base: dict[str, int] = {}
    gone: set[str] = set()

    def ask(names: list[str]) -> None:
        nonlocal tickets
        for site in names:
            tickets += 1
            base[site] = version
            log.write("ticket", site=site, ticket=f"t{tickets}", version=version)

    def ready(names: list[str]) -> None:
        for site in names:
            late = {"ticket": "t", "base_version": base[site], "staleness": version - base[site], "seconds": 1.5}
            log.write("ready", site=site, **late)

    ask(sites)
    while version < 6:
        clock.now += 2.0
        group = number % len(groups) if groups else None
        slow_turn = number % 3 == 2
        pool = [each for each in sites if each not in gone]
        members = groups[group] if groups else (pool[1:] if slow_turn else [*pool[:3], pool[4 if len(pool) > 4 else 3]])
        members = [each for each in members if each not in gone][:4]
        ready(members)
        number += 1
        cohort = {"cohort": f"cohort-{number:012d}", "group": group}
        log.write("cohort", **cohort, sites=members, least=3)
        clock.now += 0.75
        if number == 2:
            log.write("aborted", **cohort, stage="masked", reason="lost: 2 of 4, want 3", spent=members[:2])
            ask(members[:2])
            continue
        survivors = members
        if number == 3:
            survivors = members[1:]
            gone.add(members[0])
            log.write("lost", site=members[0], reason="disconnected")
        log.write("opened", **cohort, survivors=survivors, norm=0.3, seconds=0.75)
        buffered += 1
        if not groups or buffered == len(groups):
            version, buffered = version + 1, 0
            spread = {"least": -0.2, "median": 0.6, "greatest": 0.9, "outliers": ["1"] if version == 2 else []}
            log.write(
                "version", version=version, sites=survivors, staleness=[version - 1 - base[s] for s in survivors],
                auc=0.97, accuracy=0.9, sha256=f"{version:064x}", step_norm=0.1, divergence=spread if groups else None,
            )  # fmt: skip
        ask(survivors)
    log.write("done", versions=version, reason="all 6 versions were made")
    log.close()


def record(path: Path, **changes: Any) -> RunRecord:
    """The record of a log that write_run made."""
    events = read(path)
    sites: list[str] = events[0].sites  # type: ignore[union-attr]
    forms = ["FHIR R4 NDJSON", "SQL (SQLite)", "PDF reports", "OMOP CSV", "plain CSV"]
    fields: dict[str, Any] = {
        "events": events,
        "sites": {
            site: SiteFacts(
                role="malicious" if site == sites[-1] else "slow" if index == 3 else "honest",
                source=forms[index % 5],
                epsilon=Epsilons(2.61 - 0.2 * (index % 5), 5.62 - 0.43 * (index % 5), 2.9 - 0.2 * (index % 5), 4.0),
            )
            for index, site in enumerate(sites)
        },
        "wall_s": 71.3,
        "seed": 7,
        "auc_centralised": 0.994,
        "auc_local": {site: 0.955 + 0.008 * (index % 5) for index, site in enumerate(sites[:-1])},
        "software": {"cordon": "0.1.0", "nvflare": "2.9.0", "torch": "2.13.0"},
        "logs": ("logs/server", "logs/hospital-a"),
        "attestation": ("server: hospital-a pass (software)", "server: hospital-b pass (software)"),
    }
    return RunRecord(**{**fields, **changes})


@pytest.fixture(scope="session")
def plan() -> Callable[..., dict[str, Any]]:
    """(sites, **changes) -> fields of a job event."""
    return job_fields


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_masked_run(tmp_path: Path) -> Callable[..., RunRecord]:
    """(groups=, **changes of the record) -> a whole masked run, in which nobody lies."""

    def make(groups: list[list[str]] | None = None, **changes: Any) -> RunRecord:
        path = tmp_path / f"masked-{len(list(tmp_path.iterdir()))}.jsonl"
        write_masked_run(path, groups=groups)
        run = record(path, **changes)
        facts = {site: replace(each, role="honest") for site, each in run.sites.items() if each.role == "malicious"}
        return replace(run, sites={**run.sites, **facts, **changes.get("sites", {})})

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunRecord]:
    """(seed=, sites=, hostile=, **changes of the record) -> a whole run."""

    def make(seed: int = 1, sites: list[str] | None = None, hostile: str = "", **changes: Any) -> RunRecord:
        path = tmp_path / f"events-{len(list(tmp_path.iterdir()))}.jsonl"
        write_run(path, seed, sites, hostile)
        return record(path, **changes)

    return make
