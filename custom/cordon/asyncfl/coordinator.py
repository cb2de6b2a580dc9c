"""The coordinator of one asynchronous sealed job: which update counts, when a version is made.

Pure: time is an argument, nothing is drawn, sent or logged. The FLARE controller and the simulated-clock bench drive
the same object. Update rule (README.md), over a buffer of distinct sites::

    W(t+1) = W(t) + ServerOpt( R({ s(tau_i) delta_i }, p) )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cordon import staleness
from cordon.asyncfl.buffer import Buffer, Entry
from cordon.asyncfl.divergence import norm
from cordon.asyncfl.records import Accepted, Version
from cordon.asyncfl.tickets import Claim, Tickets
from cordon.asyncfl.versions import Aggregator
from cordon.errors import ConfigError
from cordon.job import ControllerArgs
from cordon.messages import DPEvent
from cordon.params import Vector

NORM_SLACK = 1e-5  # relative: sites clip in float32


class Coordinator(Tickets):
    """State machine of one sealed job; arguments as ``Tickets``.

    Args:
        sites: who takes part; at least ``args.buffer`` distinct names.
        rule: called with the buffer's rows, scaled by s(tau) and sorted by site, and their weights p. That it suits
            the buffer (``robust.check``) is the caller's to check before.
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
        rule: Aggregator,
    ) -> None:
        if len(set(sites)) != len(sites) or len(sites) < args.buffer:
            names = ", ".join(sites) or "none"
            raise ConfigError(f"a buffer of {args.buffer} wants as many distinct sites, got {names}")
        super().__init__(args, sites, weights, initial, layout_digest, dp_event=dp_event, rule=rule)
        self._buffer = Buffer(args.buffer)

    @property
    def buffered(self) -> tuple[str, ...]:
        """Sites with an update in the open buffer, sorted."""
        return self._buffer.sites

    def submit(self, site: str, header: Claim, delta: Vector) -> Accepted:
        """Judge an update of ``site`` (its signature already verified) and put it into the open buffer.

        Args:
            delta: (d,) float32.

        Raises:
            UpdateRejected: with the reason. Counted as a fault of ``site``, which is excluded after ``max_faults``; a
                still trusted one is free for a new ticket.
        """
        # 1. An outstanding ticket of this very site, and made from what it names, as the plan says.
        self._known(site)
        if self._buffer.full:
            raise ConfigError("the buffer is full: apply() it before the next update")
        ticket = self._judge(site, header)
        # 2. A vector within the public bounds.
        if delta.dtype != np.float32 or delta.shape != self.model.shape:
            want, got = self.model.shape, (str(delta.dtype), delta.shape)
            raise self.fault(site, "bad_payload", f"want float32 {want}, got {got}")
        if not np.isfinite(delta).all():
            raise self.fault(site, "not_finite", "holds NaN or infinity")
        size, bound = norm(delta), self.args.norm_bound
        if size > bound * (1 + NORM_SLACK):
            raise self.fault(site, "over_norm_bound", f"L2 norm {size:.4g} is over {bound:g}")
        # 3. Not too old.
        tau = self._staleness(site, ticket)
        del self._tickets[site]
        # A copy, scaled: what was submitted cannot be changed afterwards, and nothing is scaled twice.
        self._buffer.add(site, Entry(delta * np.float32(staleness.weight(tau, self.args.staleness)), tau))
        return Accepted(tau, size)

    def ready(self) -> bool:
        """Whether the open buffer is full."""
        return self._buffer.full

    def apply(self) -> Version:
        """Make the next version from the full buffer and open an empty one."""
        if not self._buffer.full:
            raise ConfigError(f"buffer holds {len(self._buffer)} of {self.args.buffer} updates")
        entries = self._buffer.drain()
        sites, taus = tuple(site for site, _ in entries), tuple(entry.staleness for _, entry in entries)
        rows = [entry.delta for _, entry in entries]
        aggregate, divergence = self._versions.mix(rows, [self._weights[site] for site in sites], sites)
        del entries, rows  # as large as the model, each; the next step makes more such
        step_norm = self._versions.add(aggregate)
        return Version(self.version, sites, taus, step_norm, divergence=divergence)

    def finished(self) -> str | None:
        """Why the job is over, or None while it goes on."""
        if self.version >= self.args.versions:
            return f"all {self.args.versions} versions made"
        able = sum(site in self._buffer or site in self._tickets or self._may_start(site) for site in self.sites)
        if able < self.args.buffer:
            return f"{able} sites can still contribute, a version wants {self.args.buffer}"
        return None

    def _waits(self, site: str) -> bool:
        return site in self._buffer

    def _take_out(self, site: str) -> None:
        self._buffer.discard(site)
