"""``metrics.json``: the stable result of a run, computed from its events and from what the driver knows.

Fractions are in 0..1, times in seconds. ``rejected`` counts refused updates; ``reasons`` is their reason code -> count.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from cordon.errors import ConfigError
from cordon.report.cohorts import Cohort
from cordon.report.events import Attested
from cordon.report.record import ROLES, KeyReleases, RunRecord


def metrics(run: RunRecord) -> dict[str, Any]:
    """The content of metrics.json: plain JSON values, keys in a fixed order.

    Raises:
        ConfigError: a site released updates but the record holds no epsilon for it.
    """
    versions, job = run.versions, run.job
    return {
        "job_id": job.job_id,
        "job": job.job,
        "wall_s": round(run.wall_s, 1),
        "versions": max((version.version for version in versions), default=0),
        "auc": _last(version.auc for version in versions),
        "accuracy": _last(version.accuracy for version in versions),
        "auc_centralised": run.auc_centralised,
        "auc_local": dict(run.auc_local),
        "sites": {site: _site(run, site) for site in run.names},
        "aggregation": {
            "privacy": job.privacy,
            "rule": job.rule,
            "server_opt": job.server_opt.algorithm,
            "buffer": job.buffer,
        },
        "masked": None if job.masked is None else msgspec.to_builtins(job.masked),
        "groups": run.groups,
        "cohorts": None if job.masked is None else _cohorts(run.cohorts),
        "divergence": [
            {"version": version.version, **msgspec.to_builtins(version.divergence)}
            for version in versions
            if version.divergence is not None
        ],
        "key_releases": {site: _keys(each) for site, each in run.key_releases.items()},
        "model_sha256": versions[-1].sha256 if versions else None,
    }


def attested(run: RunRecord, participant: str) -> str:
    """Type of evidence that the participant's last appraisal accepted, ``failed``, or ``none`` (not checked)."""
    verdicts = [event for event in run.of(Attested) if event.site == participant]
    if not verdicts or verdicts[-1].verdict == "not_checked":
        return "none"
    return verdicts[-1].type if verdicts[-1].verdict == "pass" else "failed"


def _site(run: RunRecord, site: str) -> dict[str, Any]:
    facts = run.sites[site]
    taus = [event.staleness for event in run.updates[site]]
    reasons = Counter(event.reason for event in run.rejections[site])
    if facts.epsilon is None and (taus or reasons or run.unused[site]):
        raise ConfigError(f"run record: {site} released updates but its epsilon is missing")
    return {
        "role": ROLES[facts.role],
        "source": facts.source,
        "updates": len(taus),
        "rounds": run.rounds[site],
        "spent": sum(each.fate == "spent" for each in run.unused[site]),
        "mean_staleness": round(sum(taus) / len(taus), 3) if taus else None,
        "epsilon": facts.epsilon.pld if facts.epsilon else 0.0,
        "epsilon_replace_one": facts.epsilon.pld_replace_one if facts.epsilon else 0.0,
        "epsilon_public": _bound(facts.epsilon.public, facts.epsilon.pld) if facts.epsilon else 0.0,
        "epsilon_own": _bound(facts.epsilon.own, facts.epsilon.pld) if facts.epsilon else 0.0,
        "delta": run.job.delta,
        "unit": run.job.dp.unit,
        "attested": attested(run, site),
        "rejected": reasons.total(),
        "reasons": dict(sorted(reasons.items())),
        "status": run.status(site),
    }


def _cohorts(cohorts: list[Cohort]) -> dict[str, Any]:
    opened = [cohort for cohort in cohorts if cohort.state == "opened"]
    ended = Counter(cohort.code for cohort in cohorts if cohort.state == "ended")
    survivors = [len(cohort.survivors) for cohort in opened]
    seconds = [cohort.ended_at - cohort.formed_at for cohort in opened if cohort.ended_at is not None]
    return {
        "formed": len(cohorts),
        "opened": len(opened),
        "ended": dict(sorted(ended.items())),
        "least_survivors": min(survivors, default=None),
        "lost_sites": sum(len(cohort.missing) for cohort in opened),
        "median_seconds": round(statistics.median(seconds), 3) if seconds else None,
    }


def _bound(value: float | None, local: float) -> float | None:
    """``local`` where there is no other figure; null where it is infinite: JSON has no word for no guarantee."""
    figure = local if value is None else value
    return figure if math.isfinite(figure) else None


def _keys(decided: KeyReleases) -> dict[str, Any]:
    return {
        "released": decided.released,
        "leases": decided.leases,
        "refused": dict(decided.refused),
        "evidence": list(decided.evidence),
    }


def _last(values: Iterable[float | None]) -> float | None:
    return next((value for value in reversed(list(values)) if value is not None), None)
