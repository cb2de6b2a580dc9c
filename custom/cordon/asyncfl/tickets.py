"""Who may have a ticket: leave to train one round from one version. The part that both coordinators share.

A site is ``live`` (may get a ticket), ``lost`` (no answer in time; ``returned`` makes it live again), ``refused`` (said
no: out) or ``excluded`` (too many faults: out, and what it has waiting is taken out).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from cordon.asyncfl.records import Ticket, Version
from cordon.asyncfl.versions import Aggregator, Versions
from cordon.errors import ConfigError, UpdateRejected
from cordon.job import ControllerArgs
from cordon.messages import REJECT_REASONS, DPEvent
from cordon.params import Vector

State = Literal["live", "lost", "refused", "excluded"]


class Claim(Protocol):
    """What a site says that it trained: ``messages.UpdateHeader`` and ``secagg.wire.Ticket`` fit."""

    @property
    def ticket(self) -> str: ...
    @property
    def base_version(self) -> int: ...
    @property
    def model_chain_head(self) -> str: ...
    @property
    def layout_digest(self) -> str: ...
    @property
    def privacy(self) -> str: ...
    @property
    def dp_event(self) -> DPEvent: ...


class Tickets(ABC):
    """Sites, their tickets and faults, and the versions of the model. ``Coordinator`` and ``MaskedCoordinator`` add
    what becomes of an answer.

    Args:
        args: the job's controller arguments.
        sites: who takes part, distinct names.
        weights: site -> public weight p > 0; uniform where empty.
        initial: (d,) float32, model version 0.
        layout_digest: of the model; updates must name the same.
        dp_event: the mechanism of one round as the job's plan fixes it; updates must name the same.
        rule: the aggregation of a version; None where nothing is mixed here.
    """

    def __init__(
        self,
        args: ControllerArgs,
        sites: Sequence[str],
        weights: Mapping[str, float],
        initial: Vector,
        layout_digest: str,
        *,
        dp_event: DPEvent,
        rule: Aggregator | None,
    ) -> None:
        if len(set(sites)) != len(sites):
            raise ConfigError(f"want distinct sites, got {', '.join(sites)}")
        if weights and not set(sites) <= set(weights):
            raise ConfigError(f"no weight for {', '.join(sorted(set(sites) - set(weights)))}")
        self.args = args
        self.sites = tuple(sites)
        self.rounds_used = dict.fromkeys(sites, 0)
        self.faults: dict[str, list[tuple[str, str]]] = {site: [] for site in sites}
        self.state: dict[str, State] = dict.fromkeys(sites, "live")
        self._weights = {site: float(weights[site]) if weights else 1.0 for site in sites}
        self._layout_digest = layout_digest
        self._dp_event = dp_event
        self._versions = Versions(initial, args.server_opt, rule)
        self._tickets: dict[str, Ticket] = {}  # site -> outstanding ticket
        self._used: dict[str, str] = {}  # id of every ticket ever issued -> its site
        self._late: dict[str, str] = {}  # id of a ticket that is not open -> site that may still answer it, once

    # -- the model ----------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Number of the newest model."""
        return self._versions.number

    @property
    def model(self) -> Vector:
        """The newest model (d,) float32."""
        return self._versions.model

    @property
    def links(self) -> list[str]:
        """Digest of each version's packed model, from version 0."""
        return self._versions.links

    @property
    def head(self) -> str:
        """Head of the chain over ``links``."""
        return self._versions.head

    # -- tickets ------------------------------------------------------------------------------------------------

    @property
    def excluded(self) -> tuple[str, ...]:
        """Sites that are out for their faults, in the order of ``sites``."""
        return tuple(site for site in self.sites if self.state[site] == "excluded")

    def wants(self) -> list[str]:
        """Sites that should get a ticket now.

        Live, rounds left, none outstanding, and nothing of theirs waits to be applied: a site waits until its last
        update was applied, so that a fast one gets no more say than the others.
        """
        return [site for site in self.sites if self._may_start(site)]

    def outstanding(self, site: str) -> Ticket | None:
        """The ticket that ``site`` has not answered yet."""
        return self._tickets.get(site)

    def issue(self, site: str, ticket_id: str, now: float) -> Ticket:
        """A ticket for ``site`` on the newest model. It uses up a round whatever comes of it: that may be spent.

        Args:
            ticket_id: unguessable and never used before.
            now: seconds, monotonic.

        Raises:
            ConfigError: ``site`` is not in ``wants()`` or the id was used before.
        """
        self._known(site)
        if not self._may_start(site) or ticket_id in self._used:
            raise ConfigError(f"no ticket {ticket_id} for {site}: it may not start a round now, or the id is used")
        ticket = Ticket(ticket_id, site, self.version, self.head, now, self.model)
        self._used[ticket_id] = site
        self._tickets[site] = ticket
        self.rounds_used[site] += 1
        return ticket

    def take_over(self, now: float) -> None:
        """Go on in a new process: its clock stands at ``now``; what was sent to the old one may be lost or come again.

        Outstanding tickets stand, and their time begins anew. The answer to any other ticket is no fault, once: the
        site cannot know that the old process had counted it.
        """
        self._tickets = {site: replace(ticket, issued_at=now) for site, ticket in self._tickets.items()}
        standing = {ticket.id for ticket in self._tickets.values()}
        self._late.update({each: site for each, site in self._used.items() if each not in standing})

    def expired(self, now: float) -> list[Ticket]:
        """Outstanding tickets older than ``ticket_timeout_s``; the caller decides and calls ``lose``."""
        return [ticket for ticket in self._tickets.values() if now - ticket.issued_at > self.args.ticket_timeout_s]

    def lose(self, site: str, why: str) -> None:
        """No answer: the ticket of ``site`` is void and the site gets none until it ``returned``.

        ``why`` is for the caller's record; being slow or cut off is no fault.
        """
        self._known(site)
        self._void(site)
        if self.state[site] == "live":
            self.state[site] = "lost"

    def returned(self, site: str) -> None:
        """A lost site is there again. (One that refused or was excluded stays out.)"""
        self._known(site)
        if self.state[site] == "lost":
            self.state[site] = "live"

    def refuse(self, site: str, code: str) -> None:
        """``site`` said no (a signed refusal): it is out, without fault; what it had in the buffer stays.

        ``code`` is for the caller's record.
        """
        self._known(site)
        self._void(site)
        if self.state[site] != "excluded":
            self.state[site] = "refused"

    # -- answers ------------------------------------------------------------------------------------------------

    def answered(self, site: str, ticket_id: str) -> Ticket:
        """The outstanding ticket of ``site`` that it answers; the first check of an update, cheap enough for a replay.

        Raises:
            UpdateRejected: ``unknown_ticket``, a fault of ``site`` that leaves its open ticket as it is. The one
                exception is the answer to a ticket that ``lose`` voided or ``take_over`` found counted: it is refused,
                once, without fault. A slow hospital is honest and cannot know that its ticket was given up; counting
                it would let whoever delays the network expel it.
        """
        self._known(site)
        ticket = self._tickets.get(site)
        if ticket is None or ticket_id != ticket.id:
            if self._late.get(ticket_id) == site:
                del self._late[ticket_id]
                raise UpdateRejected("unknown_ticket", "answers a ticket that was given up or counted before; no fault")
            raise self.fault(site, "unknown_ticket", "no outstanding ticket of this site has that id", void=False)
        return ticket

    def fault(self, site: str, code: str, detail: str, *, void: bool = True) -> UpdateRejected:
        """Count a fault of ``site`` and give the exception to raise; for the caller's own checks too (bad signature).

        Args:
            code: one of ``REJECT_REASONS``.
            void: whether the outstanding ticket is used up by it. Not so for an unknown ticket: a replayed old message
                must not cancel the round that the site is working on.
        """
        self._known(site)
        if code not in REJECT_REASONS:
            raise ConfigError(f"unknown reason {code!r}")
        if self.state[site] == "excluded":
            return UpdateRejected(code, detail)  # already out; its record stays as long as it was
        self.faults[site].append((code, detail))
        if void:
            self._tickets.pop(site, None)
        if len(self.faults[site]) >= self.args.max_faults:
            self.state[site] = "excluded"
            self._tickets.pop(site, None)
            self._take_out(site)
        return UpdateRejected(code, detail)

    # -- what a coordinator adds --------------------------------------------------------------------------------

    @abstractmethod
    def apply(self) -> Version:
        """Make the next version."""

    @abstractmethod
    def finished(self) -> str | None:
        """Why the job is over, or None while it goes on."""

    @abstractmethod
    def _waits(self, site: str) -> bool:
        """Whether something of ``site`` waits to be applied (or asked for again), so that it gets no new ticket."""

    @abstractmethod
    def _take_out(self, site: str) -> None:
        """``site`` was excluded: what it has waiting does not count."""

    # -- internals ----------------------------------------------------------------------------------------------

    def _judge(self, site: str, claim: Claim) -> Ticket:
        """The first checks of an answer: an outstanding ticket of this very site, made as ticket and plan say."""
        ticket = self.answered(site, claim.ticket)
        if claim.base_version != ticket.version or claim.model_chain_head != ticket.head:
            raise self.fault(site, "wrong_base", f"base {claim.base_version}, the ticket is for {ticket.version}")
        if claim.layout_digest != self._layout_digest:
            raise self.fault(site, "bad_layout", "layout digest differs from the job's model")
        if claim.privacy != self.args.privacy or claim.dp_event != self._dp_event:
            raise self.fault(site, "wrong_privacy", f"says {claim.privacy[:40]!r} and {claim.dp_event}")
        return ticket

    def _staleness(self, site: str, ticket: Ticket) -> int:
        """tau of an answer to ``ticket`` now, unless it is over the bound. Slow is no crime, but a site that is always
        this slow would only burn its rounds."""
        tau = self.version - ticket.version
        if tau > self.args.max_staleness:
            raise self.fault(site, "too_stale", f"{tau} versions old, {self.args.max_staleness} allowed")
        return tau

    def _has_rounds(self, site: str) -> bool:
        return self.rounds_used[site] < self.args.rounds_per_site

    def _may_start(self, site: str) -> bool:
        free = site not in self._tickets and not self._waits(site)
        return self.state[site] == "live" and free and self._has_rounds(site)

    def _void(self, site: str) -> None:
        ticket = self._tickets.pop(site, None)
        if ticket is not None:
            self._late[ticket.id] = site

    def _known(self, site: str) -> None:
        if site not in self.state:
            raise ConfigError(f"{site} does not take part in this job")
