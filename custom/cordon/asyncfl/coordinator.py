"""The coordinator of one asynchronous job: who gets a ticket, which update counts, when a version is made.

Pure: time is an argument, nothing is drawn, sent or logged. The FLARE controller and the simulated-clock bench drive
the same object. Update rule (README.md), over a buffer of distinct sites::

    W(t+1) = W(t) + ServerOpt( R({ s(tau_i) delta_i }, p renormalised over the buffer) )

A site is ``live`` (may get a ticket), ``lost`` (no answer in time; ``returned`` makes it live again), ``refused`` (said
no: out) or ``excluded`` (too many faults: out, and its update in the open buffer, if any, is taken out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cordon.asyncfl import staleness
from cordon.asyncfl.buffer import Buffer, Entry
from cordon.asyncfl.records import Accepted, Ticket, Version
from cordon.asyncfl.server_opt import make
from cordon.errors import ConfigError, UpdateRejected
from cordon.job import ControllerArgs
from cordon.messages import REJECT_REASONS, DPEvent, UpdateHeader, chain_head, pack, sha256
from cordon.params import Vector

Rule = Callable[..., NDArray[np.float64]]
State = Literal["live", "lost", "refused", "excluded"]

NORM_SLACK = 1e-5  # relative: sites clip in float32


class Coordinator:
    """State machine of one job.

    Args:
        args: the job's controller arguments.
        sites: who takes part; at least ``args.buffer`` distinct names.
        weights: site -> public weight p > 0; uniform where empty.
        initial: (d,) float32, model version 0.
        layout_digest: of the model; updates must name the same.
        dp_event: the mechanism of one round as the job's plan fixes it; updates must name the same.
        rule: R(updates (n, d), weights (n,), **args.rule_args) -> (d,), from ``cordon.robust.rules``.
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
        rule: Rule,
    ) -> None:
        if len(set(sites)) != len(sites) or len(sites) < args.buffer:
            names = ", ".join(sites) or "none"
            raise ConfigError(f"a buffer of {args.buffer} wants as many distinct sites, got {names}")
        if weights and not set(sites) <= set(weights):
            raise ConfigError(f"no weight for {', '.join(sorted(set(sites) - set(weights)))}")
        if initial.ndim != 1 or not np.isfinite(initial).all():
            raise ConfigError("the first model must be a finite vector")
        self._check_rule(rule, args)
        self.args = args
        self.sites = tuple(sites)
        self.version = 0
        self.model: Vector = initial.astype(np.float32)
        self.links = [sha256(pack("w", self.model))]  # digest of each version's packed model
        self.head = chain_head("", 0, self.links[0])
        self.rounds_used = dict.fromkeys(sites, 0)
        self.faults: dict[str, list[tuple[str, str]]] = {site: [] for site in sites}
        self.state: dict[str, State] = dict.fromkeys(sites, "live")
        self._weights = {site: float(weights[site]) if weights else 1.0 for site in sites}
        self._layout_digest = layout_digest
        self._dp_event = dp_event
        self._rule = rule
        self._optimizer = make(args.server_opt)
        self._buffer = Buffer(args.buffer)
        self._tickets: dict[str, Ticket] = {}  # site -> outstanding ticket
        self._used: dict[str, str] = {}  # id of every ticket ever issued -> its site
        self._late: dict[str, str] = {}  # id of a ticket that is not open -> site that may still answer it, once

    # -- tickets ------------------------------------------------------------------------------------------------

    @property
    def excluded(self) -> tuple[str, ...]:
        """Sites that are out for their faults, in the order of ``sites``."""
        return tuple(site for site in self.sites if self.state[site] == "excluded")

    @property
    def buffered(self) -> tuple[str, ...]:
        """Sites with an update in the open buffer, sorted."""
        return self._buffer.sites

    def wants(self) -> list[str]:
        """Sites that should get a ticket now.

        Live, rounds left, none outstanding, and not in the open buffer: a site waits until its last update was applied,
        so that a fast one gets no more say than the others.
        """
        return [site for site in self.sites if self._may_start(site) and site not in self._buffer]

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
        if site not in self.wants() or ticket_id in self._used:
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

    # -- updates ------------------------------------------------------------------------------------------------

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

    def submit(self, site: str, header: UpdateHeader, delta: Vector) -> Accepted:
        """Judge an update of ``site`` (its signature already verified) and put it into the open buffer.

        Args:
            delta: (d,) float32.

        Raises:
            UpdateRejected: with the reason. Counted as a fault of ``site``, which is excluded after ``max_faults``; a
                still trusted one is free for a new ticket.
        """
        # 1. An outstanding ticket of this very site.
        self._known(site)
        if self._buffer.full:
            raise ConfigError("the buffer is full: apply() it before the next update")
        ticket = self.answered(site, header.ticket)
        # 2. Made from what the ticket names, as the plan says.
        if header.base_version != ticket.version or header.model_chain_head != ticket.head:
            raise self.fault(site, "wrong_base", f"base {header.base_version}, the ticket is for {ticket.version}")
        if header.layout_digest != self._layout_digest:
            raise self.fault(site, "bad_layout", "layout digest differs from the job's model")
        if header.privacy != self.args.privacy or header.dp_event != self._dp_event:
            raise self.fault(site, "wrong_privacy", f"says {header.privacy[:40]!r} and {header.dp_event}")
        # 3. A vector within the public bounds.
        if delta.dtype != np.float32 or delta.shape != self.model.shape:
            want, got = self.model.shape, (str(delta.dtype), delta.shape)
            raise self.fault(site, "bad_payload", f"want float32 {want}, got {got}")
        if not np.isfinite(delta).all():
            raise self.fault(site, "not_finite", "holds NaN or infinity")
        norm, bound = float(np.linalg.norm(delta.astype(np.float64))), self.args.norm_bound
        if norm > bound * (1 + NORM_SLACK):
            raise self.fault(site, "over_norm_bound", f"L2 norm {norm:.4g} is over {bound:g}")
        # 4. Not too old. Slow is no crime, but a site that is always this slow would only burn its rounds.
        tau = self.version - ticket.version
        if tau > self.args.max_staleness:
            raise self.fault(site, "too_stale", f"{tau} versions old, {self.args.max_staleness} allowed")
        del self._tickets[site]
        self._buffer.add(site, Entry(delta.copy(), tau))
        return Accepted(tau, norm)

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
            self._buffer.discard(site)
        return UpdateRejected(code, detail)

    # -- versions -----------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether the open buffer is full."""
        return self._buffer.full

    def apply(self) -> Version:
        """Make the next version from the full buffer and open an empty one."""
        if not self._buffer.full:
            raise ConfigError(f"buffer holds {len(self._buffer)} of {self.args.buffer} updates")
        entries = self._buffer.drain()
        updates = np.stack([staleness.weight(entry.staleness) * entry.delta.astype(np.float64) for _, entry in entries])
        weights = np.array([self._weights[site] for site, _ in entries])
        step = self._optimizer.step(self._rule(updates, weights / weights.sum(), **self.args.rule_args))
        self.model = (self.model + step).astype(np.float32)
        self.version += 1
        self.links.append(sha256(pack("w", self.model)))
        self.head = chain_head(self.head, self.version, self.links[-1])
        return Version(
            number=self.version,
            sites=tuple(site for site, _ in entries),
            staleness=tuple(entry.staleness for _, entry in entries),
            step_norm=float(np.linalg.norm(step)),
        )

    def finished(self) -> str | None:
        """Why the job is over, or None while it goes on."""
        if self.version >= self.args.versions:
            return f"all {self.args.versions} versions made"
        able = sum(site in self._buffer or site in self._tickets or self._may_start(site) for site in self.sites)
        if able < self.args.buffer:
            return f"{able} sites can still contribute, a version wants {self.args.buffer}"
        return None

    # -- internals ----------------------------------------------------------------------------------------------

    def _may_start(self, site: str) -> bool:
        rounds_left = self.rounds_used[site] < self.args.rounds_per_site
        return self.state[site] == "live" and site not in self._tickets and rounds_left

    def _void(self, site: str) -> None:
        ticket = self._tickets.pop(site, None)
        if ticket is not None:
            self._late[ticket.id] = site

    def _known(self, site: str) -> None:
        if site not in self.state:
            raise ConfigError(f"{site} does not take part in this job")

    @staticmethod
    def _check_rule(rule: Rule, args: ControllerArgs) -> None:
        """The rule's own refusals (arguments, three sites per coordinate) before anything is trained, not after."""
        try:
            rule(np.zeros((args.buffer, 1)), np.ones(args.buffer), **args.rule_args)
        except TypeError as error:
            raise ConfigError(f"rule {args.rule} does not take {', '.join(sorted(args.rule_args))}") from error
