"""The state behind the live view: phases of a run and what each hospital did so far. Knows no terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cordon.report.cohorts import Cohort, Cohorts
from cordon.report.events import (
    Attested,
    CohortEnded,
    CohortFormed,
    CohortOpened,
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

PHASES = ("environment", "provision", "start", "attest", "train", "report", "stop")


@dataclass
class Phase:
    """``began`` and ``ended`` in seconds of the view's clock."""

    began: float
    detail: str
    state: Literal["running", "done", "failed"] = "running"
    ended: float | None = None


@dataclass
class Row:
    """One hospital so far. ``epsilon`` covers every ticket issued: its round may be spent whatever came of it.

    ``taus``: the staleness of each update of its that was used (masked: that is in a sum that opened).
    """

    state: str = "waiting"
    taus: list[int] = field(default_factory=list)
    rejected: int = 0
    reason: str = ""
    tickets: set[str] = field(default_factory=set)
    epsilon: float = 0.0

    @property
    def rounds(self) -> int:
        """Begun so far: a ticket that is sent again is no other round."""
        return len(self.tickets)


class Progress:
    """Takes in phases and events; every change that a log should show comes back as one line of text.

    Args:
        clock: seconds, monotonic.
        epsilon: (site, rounds begun so far) -> epsilon spent; called once per ticket.
    """

    def __init__(self, clock: Callable[[], float], epsilon: Callable[[str, int], float]) -> None:
        self._clock, self._epsilon = clock, epsilon
        self._first_ticket: float | None = None
        self._last_version_at = 0.0
        self.phases: dict[str, Phase] = {}
        self.rows: dict[str, Row] = {}
        self.job: JobStarted | None = None
        self.made: list[VersionMade] = []
        self.cohorts = Cohorts()

    def phase(self, name: str, detail: str) -> str:
        """Begin phase ``name`` (the one before it is done), or change the detail of the running one."""
        if name not in PHASES:
            raise ValueError(f"unknown phase {name}; there are {', '.join(PHASES)}")
        running = self.phases.get(name)
        if running is None or running.state != "running":
            self.end("done")
            self.phases[name] = Phase(self._clock(), detail)
        elif running.detail != detail:
            running.detail = detail
        else:
            return ""
        return f"{name}: {detail}" if detail else name

    def end(self, state: Literal["done", "failed"], reason: str = "") -> str:
        """End the running phase, if there is one."""
        for name, phase in self.phases.items():
            if phase.state == "running":
                phase.state, phase.ended, phase.detail = state, self._clock(), reason or phase.detail
                return f"{name} {state.upper()}: {reason}" if reason else f"{name} {state}"
        return ""

    def event(self, event: Event) -> str:
        """Change the state; returns the plain line for events that a log should show."""
        cohort = self.cohorts.take(event)
        if isinstance(event, JobStarted):
            self.job = event
            for site in event.sites:
                self.rows.setdefault(site, Row())
            return ""
        if isinstance(event, VersionMade):
            self.made.append(event)
            self._last_version_at = self._clock()
            auc = "" if event.auc is None else f", AUC {event.auc:.4f}"
            return f"version {event.version} of {self.planned}{auc} ({', '.join(event.sites) or 'initial model'})"
        if isinstance(event, Done):
            for row in self.rows.values():
                if row.state in ("waiting", "training", "ready", "masking"):
                    row.state = "finished" if row.taus else "waiting"
            return f"training ended: {event.reason}"
        if isinstance(event, Attested):
            line = "" if event.verdict == "pass" else _failed(event)
            if line and event.site in self.rows:  # else it is the coordinator, which has no row
                self.rows[event.site].reason = line
            return f"{event.site}: {line}" if line else ""
        if isinstance(event, GroupsDrawn):
            groups = "; ".join(f"{number}: {', '.join(sites)}" for number, sites in enumerate(event.groups))
            return f"groups drawn by commit and reveal: {groups}"
        if isinstance(event, CohortFormed | CohortOpened | CohortEnded):
            return "" if cohort is None else self._cohort(cohort)
        row = self.rows.setdefault(event.site, Row())
        if isinstance(event, TicketIssued):
            row.state, row.reason = "training", "" if row.state == "lost" else row.reason
            if event.ticket not in row.tickets:
                row.tickets.add(event.ticket)
                row.epsilon = self._epsilon(event.site, row.rounds)
            self._first_ticket = event.t if self._first_ticket is None else self._first_ticket
            return ""
        if isinstance(event, Updated):
            self._used(row, event.staleness)
            return ""
        if isinstance(event, Ready):
            row.state = "ready"
            return ""
        if isinstance(event, Rejected):
            row.rejected += 1
            row.state, row.reason = "waiting", event.reason
            return f"{event.site}: update refused: {event.reason} ({event.detail})"
        row.state = {Excluded: "excluded", SiteRefused: "refused", SiteLost: "lost"}[type(event)]
        row.reason = event.reason
        return f"{event.site}: {row.state}: {event.reason}"

    def _used(self, row: Row, staleness: int) -> None:
        row.taus.append(staleness)
        row.state = "finished" if self.job and len(row.taus) >= self.job.rounds_per_site else "waiting"

    def _cohort(self, cohort: Cohort) -> str:
        """A cohort formed, opened or ended: the state of its hospitals, and the line."""
        rows = {site: self.rows.setdefault(site, Row()) for site in cohort.sites}
        there = {site: row for site, row in rows.items() if row.state in ("ready", "masking")}  # others are lost or out
        for site, row in there.items():
            row.state = {"running": "masking", "opened": "waiting", "ended": "ready"}[cohort.state]
            if site in cohort.spent:
                row.state = "waiting"
        for site in cohort.survivors:
            if site in there:
                self._used(rows[site], cohort.staleness[site])
            else:
                rows[site].taus.append(cohort.staleness[site])
        if cohort.state == "running":
            return ""
        name = f"cohort {cohort.number}" + ("" if cohort.group is None else f" (group {cohort.group})")
        if cohort.state == "opened":
            without = f", without {', '.join(cohort.missing)}" if cohort.missing else ""
            return f"{name}: sum of {len(cohort.survivors)} of {len(cohort.sites)} opened{without}"
        spent = f"; masked and never used again: {', '.join(cohort.spent)}" if cohort.spent else ""
        return f"{name}: nothing opened, ended in stage {cohort.stage}: {cohort.reason}{spent}"

    @property
    def planned(self) -> int:
        """Model versions that the job wants."""
        return self.job.versions if self.job else 0

    @property
    def done(self) -> int:
        """Number of the last model version."""
        return self.made[-1].version if self.made else 0

    def time_left(self) -> float | None:
        """Seconds to the last version at the rate so far; None before the first one."""
        if not self.done or self._first_ticket is None:
            return None
        rate = (self.made[-1].t - self._first_ticket) / self.done
        return max(0.0, rate * (self.planned - self.done) - (self._clock() - self._last_version_at))


def _failed(event: Attested) -> str:
    """Which checks of the evidence did not pass."""
    checks = ", ".join(f"{code} {result}" for code, result, _ in event.codes if result != "pass")
    return f"attestation {event.verdict.replace('_', ' ')}" + (f" ({checks})" if checks else "")
