"""``metrics.json``: the stable result of a run, computed from its events and from what the driver knows.

Fractions are in 0..1, times in seconds. ``rejected`` counts refused updates; ``reasons`` is their reason code -> count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from cordon.errors import ConfigError
from cordon.report.events import (
    Attested,
    Done,
    Event,
    Excluded,
    JobStarted,
    Rejected,
    SiteLost,
    SiteRefused,
    TicketIssued,
    Updated,
    VersionMade,
)

Role = Literal["honest", "slow", "malicious"]
ROLES: dict[Role, str] = {"honest": "honest", "slow": "honest", "malicious": "malicious (on purpose)"}

E = TypeVar("E")
U = TypeVar("U", Updated, Rejected)


@dataclass(frozen=True)
class Epsilons:
    """Patient-level epsilon of every round that one site began, at the job's delta.

    ``pld`` and ``pld_replace_one``: tight, this job's fixed plan, add/remove-one and replace-one adjacency. ``rdp``:
    the add/remove figure of the filter that gates the site's budget; ``limit``: the site policy's bound on ``rdp``.
    """

    pld: float
    pld_replace_one: float
    rdp: float
    limit: float | None


@dataclass(frozen=True)
class SiteFacts:
    """What the driver knows of one site. ``source``: form of its data at rest; ``epsilon``: None = no round begun."""

    role: Role
    source: str
    epsilon: Epsilons | None = None


@dataclass(frozen=True)
class KeyReleases:
    """What a hospital's key broker decided about the key of its vault, from its receipts.

    ``released`` counts receipts (a renewal is one too), ``leases`` the different leases; ``refused``: reason code ->
    count; ``evidence``: types of evidence that the released ones rest on.
    """

    released: int
    leases: int
    refused: Mapping[str, int]
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class RunRecord:
    """Everything that metrics and report are made of.

    Attributes:
        events: the job's log, read by cordon.report.events.
        sites: facts by site name, for every site of the job (others may be there: they never joined).
        wall_s: seconds of the whole run, as the person at the terminal waited.
        seed: of data division and demo (never of noise).
        auc_centralised: AUC of the model trained on pooled data, by the driver; None = not computed.
        auc_local: site -> AUC of a model trained on that site alone, by the driver.
        software: name -> version.
        logs: names of the folders with logs, relative to the report.
        ended: site -> what the driver saw or did to its process ("killed by the driver at 12 s").
        attestation: lines that the parents' admission logged, as they are.
        key_releases: hospital -> what its key broker decided, for those that have one.
    """

    events: tuple[Event, ...]
    sites: Mapping[str, SiteFacts]
    wall_s: float
    seed: int
    auc_centralised: float | None = None
    auc_local: Mapping[str, float] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    logs: tuple[str, ...] = ()
    ended: Mapping[str, str] = field(default_factory=dict)
    attestation: tuple[str, ...] = ()
    key_releases: Mapping[str, KeyReleases] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [site for site in self.job.sites if site not in self.sites]
        if unknown:
            raise ConfigError(f"run record: no facts about {', '.join(unknown)}")
        senders = {event.site for event in self.events if isinstance(event, Updated | Rejected)}
        strangers = sorted(senders - set(self.job.sites))
        if strangers:
            raise ConfigError(f"run record: the log has updates of {', '.join(strangers)}, which the job does not name")

    @cached_property
    def job(self) -> JobStarted:
        """The job's plan; ConfigError unless the log holds exactly one, first."""
        if not self.events or not isinstance(self.events[0], JobStarted) or len(self.of(JobStarted)) != 1:
            raise ConfigError("run record: the event log must begin with the one job event; did the job start?")
        return self.events[0]

    @property
    def names(self) -> list[str]:
        """Every site, the job's first, in their order."""
        return list(dict.fromkeys([*self.job.sites, *self.sites]))

    def of(self, kind: type[E]) -> list[E]:
        """Events of one kind in order."""
        return [event for event in self.events if isinstance(event, kind)]

    @cached_property
    def updates(self) -> dict[str, list[Updated]]:
        """Accepted updates by site, for every name."""
        return self._by_site(Updated)

    @cached_property
    def rejections(self) -> dict[str, list[Rejected]]:
        """Refused updates by site, for every name."""
        return self._by_site(Rejected)

    @property
    def versions(self) -> list[VersionMade]:
        """Model versions in order; the initial model is version 0 and may be absent."""
        return self.of(VersionMade)

    @cached_property
    def absences(self) -> dict[str, list[tuple[float, float | None, str, str]]]:
        """site -> (from s, to s or None, excluded | refused | lost, reason): when it was out; a ticket ends a loss."""
        spans: dict[str, list[tuple[float, float | None, str, str]]] = {}
        for event in self.events:
            if not isinstance(event, Excluded | SiteRefused | SiteLost | TicketIssued):
                continue
            mine = spans.setdefault(event.site, [])
            is_open = bool(mine) and mine[-1][1] is None
            if is_open and (isinstance(event, TicketIssued) or mine[-1][2] == "lost"):
                mine[-1] = (mine[-1][0], event.t, *mine[-1][2:])
                is_open = False
            if not isinstance(event, TicketIssued) and not is_open:
                mine.append((event.t, None, _OUT[type(event)], event.reason))
        return {site: mine for site, mine in spans.items() if mine}

    def status(self, site: str) -> str:
        """How the site ended: took part, excluded, refused, lost, ended early (see ``ended``) or never trained."""
        spans = self.absences.get(site, [])
        if spans and spans[-1][1] is None:
            return spans[-1][2]
        if site in self.ended:
            return "ended early"
        return "took part" if self.updates[site] or self.rejections[site] else "never trained"

    @property
    def outcome(self) -> str:
        """Why the job stopped, in its own words."""
        done = self.of(Done)
        return done[-1].reason if done else "the log ends without a done event: the job was stopped or failed"

    def _by_site(self, kind: type[U]) -> dict[str, list[U]]:
        found: dict[str, list[U]] = {site: [] for site in self.names}
        for event in self.of(kind):
            found[event.site].append(event)
        return found


_OUT: dict[type, str] = {Excluded: "excluded", SiteRefused: "refused", SiteLost: "lost"}


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
    if facts.epsilon is None and (taus or reasons):
        raise ConfigError(f"run record: {site} released updates but its epsilon is missing")
    return {
        "role": ROLES[facts.role],
        "source": facts.source,
        "updates": len(taus),
        "mean_staleness": round(sum(taus) / len(taus), 3) if taus else None,
        "epsilon": facts.epsilon.pld if facts.epsilon else 0.0,
        "epsilon_replace_one": facts.epsilon.pld_replace_one if facts.epsilon else 0.0,
        "delta": run.job.delta,
        "unit": run.job.dp.unit,
        "attested": attested(run, site),
        "rejected": reasons.total(),
        "reasons": dict(sorted(reasons.items())),
        "status": run.status(site),
    }


def _keys(decided: KeyReleases) -> dict[str, Any]:
    return {
        "released": decided.released,
        "leases": decided.leases,
        "refused": dict(decided.refused),
        "evidence": list(decided.evidence),
    }


def _last(values: Iterable[float | None]) -> float | None:
    return next((value for value in reversed(list(values)) if value is not None), None)
