"""``RunRecord``: a run as metrics and report are made of it, its events and what the driver knows beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

from cordon.errors import ConfigError
from cordon.report.cohorts import Cohort, Cohorts, Contribution
from cordon.report.events import (
    Done,
    Event,
    Excluded,
    GroupsDrawn,
    JobStarted,
    Ready,
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
U = TypeVar("U", Rejected, TicketIssued, Contribution, Updated | Contribution)


@dataclass(frozen=True)
class Epsilons:
    """Patient-level epsilon of every round that one site began, at the job's delta.

    ``pld`` and ``pld_replace_one``: tight, this job's fixed plan, add/remove-one and replace-one adjacency. ``rdp``:
    the add/remove figure of the filter that gates the site's budget; ``limit``: the site policy's bound on ``rdp``.
    All three hold against the coordinator (with the c sites that a masked job bears). ``public``: PLD, add/remove,
    against who sees what is released only; ``own``: if all others told the coordinator what they know. Both equal
    ``pld`` (None) where each site makes all of its noise itself.
    """

    pld: float
    pld_replace_one: float
    rdp: float
    limit: float | None
    public: float | None = None
    own: float | None = None


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
        senders = {event.site for event in self.events if isinstance(event, Updated | Ready | Rejected)}
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
    def _cohorts(self) -> Cohorts:
        kept = Cohorts()
        for event in self.events:
            kept.take(event)
        return kept

    @property
    def cohorts(self) -> list[Cohort]:
        """Masked: every cohort, in the order in which they formed."""
        return list(self._cohorts.all.values())

    @cached_property
    def updates(self) -> dict[str, list[Updated | Contribution]]:
        """Updates that were used, by site, for every name: accepted ones, and those in a sum that opened."""
        used = [each for each in self._cohorts.contributions if each.fate == "used"]
        items: list[Updated | Contribution] = [*self.of(Updated), *used]
        return self._by_site(items)

    @cached_property
    def unused(self) -> dict[str, list[Contribution]]:
        """Masked: updates that a cohort was begun with and no sum holds: spent or lost."""
        return self._by_site([each for each in self._cohorts.contributions if each.fate != "used"])

    @cached_property
    def rounds(self) -> dict[str, int]:
        """Rounds that each site was asked for, which is what its epsilon counts: tickets, each once."""
        tickets = self._by_site(self.of(TicketIssued))
        return {site: len({event.ticket for event in events}) for site, events in tickets.items()}

    @cached_property
    def rejections(self) -> dict[str, list[Rejected]]:
        """Refused updates by site, for every name."""
        return self._by_site(self.of(Rejected))

    @property
    def groups(self) -> list[list[str]] | None:
        """The group map, where one was drawn."""
        drawn = self.of(GroupsDrawn)
        return drawn[-1].groups if drawn else None

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

    def _by_site(self, items: Iterable[U]) -> dict[str, list[U]]:
        found: dict[str, list[U]] = {site: [] for site in self.names}
        for item in items:
            found[item.site].append(item)
        return found


_OUT: dict[type, str] = {Excluded: "excluded", SiteRefused: "refused", SiteLost: "lost"}
