"""Sites that finished a masked round: they wait in a pool, form cohorts, and go on as the cohort ended."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cordon.asyncfl.records import Accepted, Cohort, Ticket
from cordon.asyncfl.tickets import Claim, Tickets
from cordon.asyncfl.versions import Aggregator
from cordon.errors import ConfigError
from cordon.job import ControllerArgs, Masked
from cordon.messages import DPEvent
from cordon.params import Vector


@dataclass(frozen=True)
class AtWork:
    """A cohort at work, and the tickets that its sites answer."""

    cohort: Cohort
    tickets: Mapping[str, Ticket]


@dataclass(frozen=True)
class Opened:
    """A mean (d,) float32 that waits to be applied, of whom, and how stale each was as the cohort formed."""

    group: int | None
    staleness: Mapping[str, int]
    mean: Vector


class ReadyPool(Tickets):
    """What both masked modes share. A ticket is in one place at a time:

    outstanding -> ``ready`` -> pool -> ``form`` -> cohort -> ``opened`` (survivor) -> waits to be applied -> free;
    a cohort that ends otherwise leaves it used up (free) or unspent, and ``again`` makes an unspent one outstanding.
    """

    def __init__(
        self,
        args: ControllerArgs,
        masked: Masked,
        sites: Sequence[str],
        weights: Mapping[str, float],
        initial: Vector,
        layout_digest: str,
        *,
        dp_event: DPEvent,
        rule: Aggregator | None,
    ) -> None:
        super().__init__(args, sites, weights, initial, layout_digest, dp_event=dp_event, rule=rule)
        self.aborts: dict[int | None, int] = {}
        """Group (None: sum mode) -> cohorts that opened nothing; in sum mode, since the last that opened."""
        self._masked = masked
        self._pool: dict[str, Ticket] = {}  # ready, the longest first
        self._unspent: dict[str, Ticket] = {}  # was ready, nothing was masked: to be asked again
        self._cohorts: dict[str, AtWork] = {}
        self._opened: list[Opened] = []  # in the order they opened
        self._in_work: set[str] = set()  # sites in a cohort at work or an opened sum
        self._busy: set[int | None] = set()  # their groups
        self._cohort_ids: set[str] = set()
        self._in_time: set[str] = set()  # tickets whose staleness was judged

    @property
    def pool(self) -> tuple[str, ...]:
        """Sites that are ready and wait for a cohort, the longest first."""
        return tuple(self._pool)

    @property
    def cohorts(self) -> tuple[Cohort, ...]:
        """Cohorts at work, the oldest first."""
        return tuple(each.cohort for each in self._cohorts.values())

    @property
    def buffered(self) -> tuple[str, ...]:
        """Sites whose update is in an opened sum that waits to be applied, sorted."""
        return tuple(sorted(site for each in self._opened for site in each.staleness))

    # -- ready sites --------------------------------------------------------------------------------------------

    def ready(self, site: str, claim: Claim) -> Accepted:
        """``site`` finished the round of its ticket (signature already verified) and waits in the pool.

        Its ticket is neither outstanding nor free from here on. For ``max_staleness`` it is blamed here only, once: how
        long it then waits for others is not its doing. (What is counted is tau as the cohort forms, see ``form``.)

        Raises:
            UpdateRejected: with the reason, counted as a fault as in ``Coordinator.submit``.
        """
        ticket = self._judge(site, claim)
        tau = self.version - ticket.version
        if ticket.id not in self._in_time:
            tau = self._staleness(site, ticket)
        self._in_time.add(ticket.id)
        del self._tickets[site]
        self._pool[site] = ticket
        return Accepted(tau)

    def unspent(self) -> list[str]:
        """Live sites that were ready and have not masked: to be asked ``again``."""
        live = [site for site in self.sites if site in self._unspent and self.state[site] == "live"]
        return [site for site in live if self._goes(site)]

    def again(self, site: str, now: float) -> Ticket:
        """The same ticket is outstanding once more: ``site`` is asked for the update that it made, under new mask keys.

        No round is used up by it. ConfigError unless ``site`` is in ``unspent()``.
        """
        if site not in self.unspent():
            raise ConfigError(f"{site} has no update that was ready and not masked")
        ticket = replace(self._unspent.pop(site), issued_at=now)
        self._late.pop(ticket.id, None)
        self._tickets[site] = ticket
        return ticket

    def spent(self, site: str, ticket_id: str) -> None:
        """``site`` says that it had masked the update of that ticket: it is used up, without fault. Said twice, or of
        an older ticket, it changes nothing."""
        self._known(site)
        for tickets in (self._tickets, self._pool, self._unspent):
            if (ticket := tickets.get(site)) is not None and ticket.id == ticket_id:
                del tickets[site]

    # -- cohorts ------------------------------------------------------------------------------------------------

    def form(self, cohort_id: str, now: float) -> Cohort | None:
        """The next cohort, or None while none can form; call it until it says None: several may be at work.

        Sum: the ``buffer`` sites that are ready longest, and no more cohorts than versions are left. Groups: a group
        all of whose live sites that can still come are ready, if they are enough to open (``Masked.least``); of
        several, the one that was complete first. Updates that grew older than ``max_staleness`` while they waited are
        in none, as no site joins a cohort with one: their tickets are used up, without fault.

        Args:
            cohort_id: never used before.
        """
        if cohort_id in self._cohort_ids:
            raise ConfigError(f"cohort {cohort_id} was formed before")
        self._outdate()
        group, sites = self._next()
        if not sites:
            return None
        tickets = {site: self._pool.pop(site) for site in sites}
        cohort = Cohort(
            id=cohort_id,
            group=group,
            sites=sites,
            version=self.version,
            taus=tuple(self.version - tickets[site].version for site in sites),
            least=self._masked.least(len(sites)),
            formed_at=now,
        )
        self._cohort_ids.add(cohort_id)
        self._cohorts[cohort_id] = AtWork(cohort, tickets)
        self._in_work.update(sites)
        self._busy.add(group)
        return cohort

    def opened(self, cohort_id: str, survivors: Sequence[str], mean: Vector, *, unspent: Iterable[str] = ()) -> None:
        """The cohort opened: ``mean`` (d,) float32 of the ``survivors``' updates, each scaled by s(tau) at the site.

        It is kept, not copied. ``unspent``: sites of the cohort that surely masked nothing (outside R1), to be asked
        again; the ticket of every other site outside ``survivors`` is used up.

        Raises:
            ConfigError: no such cohort, too few or other survivors, not a finite vector, or a full buffer of groups.
        """
        cohort, tickets = self._cohort(cohort_id)
        staleness = dict(zip(cohort.sites, cohort.taus, strict=True))
        again = set(unspent)
        if len(set(survivors)) != len(survivors) or not set(survivors) <= set(staleness) or again & set(survivors):
            raise ConfigError(f"survivors of cohort {cohort_id} are not a part of it: {', '.join(survivors)}")
        if len(survivors) < cohort.least:
            raise ConfigError(f"cohort {cohort_id} opens with {cohort.least} sites, got {len(survivors)}")
        if mean.dtype != np.float32 or mean.shape != self.model.shape or not np.isfinite(mean).all():
            raise ConfigError(f"want a finite float32 mean {self.model.shape}, got {mean.dtype} {mean.shape}")
        if cohort.group is not None and self.ready_to_apply():
            raise ConfigError("the buffer is full: apply() it before the next group opens")
        del self._cohorts[cohort_id]
        self._opened.append(Opened(cohort.group, {site: staleness[site] for site in sorted(survivors)}, mean))
        self._in_work.difference_update(set(cohort.sites) - set(survivors))
        if cohort.group is None:
            self.aborts.pop(None, None)
        self._park({site: ticket for site, ticket in tickets.items() if site in again})

    def aborted(self, cohort_id: str, spent: Iterable[str], why: str) -> None:
        """The cohort opened nothing. ``spent``: whoever may have masked; their tickets are used up, the others go on
        with theirs and are to be asked ``again``. ``why`` is for the caller's record."""
        cohort, tickets = self._cohort(cohort_id)
        del self._cohorts[cohort_id]
        self._leave(cohort.sites, cohort.group)
        self.aborts[cohort.group] = self.aborts.get(cohort.group, 0) + 1
        used = set(spent)
        self._park({site: ticket for site, ticket in tickets.items() if site not in used})

    # -- the others' calls, where a site may wait in the pool -----------------------------------------------------

    def lose(self, site: str, why: str) -> None:
        """As ``Tickets.lose``. A ready site keeps its ticket: it has the update, and is asked again when it returned. A
        cohort at work is the caller's to tell."""
        super().lose(site, why)
        if (ticket := self._pool.pop(site, None)) is not None:
            self._park({site: ticket})

    def refuse(self, site: str, code: str) -> None:
        """As ``Tickets.refuse``; what the site has in a cohort at work, or in an opened sum, stays."""
        super().refuse(site, code)
        self._take_out(site)

    def take_over(self, now: float) -> None:
        """As ``Tickets.take_over``. Keys of cohorts died with the old process, so pool and cohorts are dissolved: each
        site in them is to be asked ``again``. Who had masked by then says so (refusal ``update_spent``): ``spent``.
        Opened sums stand. No abort is counted."""
        waiting = dict(self._pool)
        for each in self._cohorts.values():
            waiting.update(each.tickets)
            self._leave(each.tickets, each.cohort.group)
        self._pool.clear()
        self._cohorts.clear()
        super().take_over(now)
        self._park(waiting)

    # -- what a mode adds ---------------------------------------------------------------------------------------

    @abstractmethod
    def ready_to_apply(self) -> bool:
        """Whether what was opened makes a version."""

    @abstractmethod
    def _next(self) -> tuple[int | None, tuple[str, ...]]:
        """(group, sites) of the next cohort; no sites while none can form."""

    @abstractmethod
    def _goes(self, site: str) -> bool:
        """Whether a cohort may still form with ``site``, as far as its group goes."""

    @abstractmethod
    def _held(self, site: str) -> bool:
        """Whether ``site`` waits for what others have at work."""

    # -- internals ----------------------------------------------------------------------------------------------

    def _waits(self, site: str) -> bool:
        waiting = site in self._pool or site in self._unspent or site in self._in_work
        return waiting or not self._goes(site) or self._held(site)

    def _take_out(self, site: str) -> None:
        for tickets in (self._pool, self._unspent):
            if (ticket := tickets.pop(site, None)) is not None:
                self._late[ticket.id] = site

    def _outdate(self) -> None:
        for tickets in (self._pool, self._unspent):
            for site, ticket in list(tickets.items()):
                if self.version - ticket.version > self.args.max_staleness:
                    self._late[ticket.id] = site
                    del tickets[site]

    def _park(self, tickets: Mapping[str, Ticket]) -> None:
        self._unspent.update({site: each for site, each in tickets.items() if self.state[site] in ("live", "lost")})

    def _cohort(self, cohort_id: str) -> tuple[Cohort, Mapping[str, Ticket]]:
        if cohort_id not in self._cohorts:
            raise ConfigError(f"no cohort {cohort_id} is at work")
        return self._cohorts[cohort_id].cohort, self._cohorts[cohort_id].tickets

    def _leave(self, sites: Iterable[str], group: int | None) -> None:
        """What ``sites`` had at work ended, or was applied."""
        self._in_work.difference_update(sites)
        self._busy.discard(group)

    def _over(self, group: int | None) -> bool:
        """Whether the cohorts of ``group`` ended too often."""
        return self.aborts.get(group, 0) >= max(1, self._masked.max_aborts)

    def _coming(self, site: str) -> bool:
        """Whether ``site`` is awaited or may be asked, so that it can still become ready."""
        asked = site in self._tickets or site in self._unspent
        return self.state[site] == "live" and (asked or self._has_rounds(site))

    def _may_come(self, site: str) -> bool:
        """As ``_coming``, but a lost site may return."""
        asked = site in self._pool or site in self._tickets or site in self._unspent
        return self.state[site] in ("live", "lost") and (asked or self._has_rounds(site))

    def _enough(self, sites: int) -> bool:
        return self._masked.least(sites) <= sites
