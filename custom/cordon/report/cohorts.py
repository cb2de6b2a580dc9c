"""What became of every cohort and of every update in one: kept up event by event, for the live view and the report.

In masked mode nobody sees an update. What is known of one is its ticket, when its site was ready, and that it is in a
sum that opened (used), was masked in a cohort that ended (spent: it is never masked again), or fell out of a cohort
before or after masking (lost).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cordon.errors import ConfigError
from cordon.report.events import CohortEnded, CohortFormed, CohortOpened, Event, Ready, VersionMade

Fate = Literal["used", "spent", "lost"]


@dataclass
class Cohort:
    """One secure aggregation. Times in seconds of the log.

    ``staleness``: site -> versions made since its base, as the cohort formed. ``survivors`` and ``norm`` (L2, of their
    mean) once it opened; ``stage``, ``reason`` and ``spent`` once it ended without.
    """

    id: str
    number: int
    group: int | None
    sites: tuple[str, ...]
    least: int
    formed_at: float
    staleness: dict[str, int]
    ended_at: float | None = None
    survivors: tuple[str, ...] = ()
    norm: float | None = None
    stage: str = ""
    reason: str = ""
    spent: tuple[str, ...] = ()

    @property
    def state(self) -> Literal["running", "opened", "ended"]:
        """``ended``: nothing was opened."""
        if self.ended_at is None:
            return "running"
        return "opened" if self.survivors else "ended"

    @property
    def code(self) -> str:
        """Of the reason: what stands before its first colon."""
        return self.reason.partition(":")[0]

    @property
    def missing(self) -> tuple[str, ...]:
        """Who began it and is not in the sum that opened."""
        return tuple(site for site in self.sites if site not in self.survivors) if self.survivors else ()


@dataclass(frozen=True)
class Contribution:
    """A site's update in a cohort that is over: ``t`` when it was ready, ``seconds`` since its ticket."""

    site: str
    ticket: str
    t: float
    base_version: int
    staleness: int
    seconds: float
    fate: Fate


@dataclass
class Cohorts:
    """``take`` every event of a log in order; all but a few kinds are nothing to it."""

    all: dict[str, Cohort] = field(default_factory=dict)
    contributions: list[Contribution] = field(default_factory=list)
    _ready: dict[str, Ready] = field(default_factory=dict)
    _version: int = 0

    def take(self, event: Event) -> Cohort | None:
        """The cohort that the event is about, as it is now; None where it is about none.

        Raises:
            ConfigError: a cohort of a site that was never ready, one that ends without having formed, or twice.
        """
        if isinstance(event, VersionMade):
            self._version = event.version
        elif isinstance(event, Ready):
            self._ready[event.site] = event
        elif isinstance(event, CohortFormed):
            return self._form(event)
        elif isinstance(event, CohortOpened | CohortEnded):
            return self._end(event)
        return None

    def _form(self, event: CohortFormed) -> Cohort:
        unready = [site for site in event.sites if site not in self._ready]
        if unready or event.cohort in self.all:
            why = f"{', '.join(unready)} was never ready" if unready else "it formed before"
            raise ConfigError(f"event log: cohort {event.cohort}: {why}")
        late = {site: max(0, self._version - self._ready[site].base_version) for site in event.sites}
        made = Cohort(event.cohort, len(self.all) + 1, event.group, tuple(event.sites), event.least, event.t, late)
        self.all[event.cohort] = made
        return made

    def _end(self, event: CohortOpened | CohortEnded) -> Cohort:
        cohort = self.all.get(event.cohort)
        if cohort is None or cohort.ended_at is not None:
            raise ConfigError(f"event log: cohort {event.cohort} ends and did not run")
        cohort.ended_at = event.t
        fates: dict[str, Fate] = {}
        if isinstance(event, CohortOpened):
            cohort.survivors, cohort.norm = tuple(event.survivors), event.norm
            fates = {site: "used" if site in event.survivors else "lost" for site in cohort.sites}
        else:
            cohort.stage, cohort.reason, cohort.spent = event.stage, event.reason, tuple(event.spent)
            fates = dict.fromkeys((site for site in cohort.sites if site in event.spent), "spent")
        for site, fate in fates.items():
            ready = self._ready[site]
            self.contributions.append(
                Contribution(
                    site, ready.ticket, ready.t, ready.base_version, cohort.staleness[site], ready.seconds, fate
                )
            )
        return cohort
