"""A made-up run for the report's tests: four honest hospitals, one slow, one malicious, one that refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cordon.job import ServerOpt
from cordon.report.events import EventLog, read
from cordon.report.metrics import Epsilons, RunRecord, SiteFacts

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
def make_run(tmp_path: Path) -> Callable[..., RunRecord]:
    """(seed=, sites=, hostile=, **changes of the record) -> a whole run."""

    def make(seed: int = 1, sites: list[str] | None = None, hostile: str = "", **changes: Any) -> RunRecord:
        path = tmp_path / f"events-{len(list(tmp_path.iterdir()))}.jsonl"
        write_run(path, seed, sites, hostile)
        return record(path, **changes)

    return make
