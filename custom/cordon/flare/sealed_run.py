"""Sealed mode at the coordinator: each update opens in this process, is judged by itself and goes into the buffer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cordon import messages
from cordon.asyncfl.coordinator import Coordinator
from cordon.errors import UpdateRejected
from cordon.flare import aggregation, plan
from cordon.flare.admission import Peer
from cordon.params import Vector
from cordon.signing import PublicKey

if TYPE_CHECKING:
    from cordon.flare.run import Run

TRUST = (
    "Each hospital encrypts its clipped and noised update to the coordinator's job process, after it judged "
    "that process's evidence. Neither the network nor FLARE nor the coordinator's disk sees it; the job process does, "
    "one by one. So one has to trust the hardware and software that the evidence shows, and where they fail, the noise "
    "alone protects a patient. With software evidence that means whoever owns the coordinator's machine."
)


class SealedMode:
    """What ``Run`` asks of this mode; ``open``: tickets may be had from the start."""

    answer = "update"
    trust = TRUST
    open = True
    terms = None
    ended = None

    def __init__(self, run: Run) -> None:
        self._run = run
        self.max_payload = messages.max_sealed(run.layout.size)

    def new_state(self, sites: Sequence[str], weights: Mapping[str, float], initial: Vector) -> Coordinator:
        """The state machine of a job that begins."""
        job, layout = self._run.job, self._run.layout
        self.state = Coordinator(
            job.controller,
            sites,
            weights,
            initial,
            layout.digest,
            dp_event=plan.round_event(job),
            rule=aggregation.of(job.controller),
        )
        return self.state

    def go_on(self, state: Coordinator) -> None:
        """With the state machine of a process that died."""
        self.state = state

    @property
    def full(self) -> bool:
        """Whether the next version can be made."""
        return self.state.ready()

    def step(self, now: float) -> None:
        """Nothing here waits for a clock but tickets."""

    def admitted(self, peer: Peer) -> None:
        """Its next model brings this process's evidence."""

    def lost(self, site: str) -> None:
        """Nothing beside its ticket."""

    def refused(self, peer: Peer, refusal: messages.Refusal) -> bool:
        """Whether a refusal was about something else than a ticket: never."""
        return False

    def judge(self, peer: Peer, key: PublicKey, parts: dict[str, Any], payload: bytes, now: datetime) -> None:
        """An update: into the buffer, or why not.

        Raises:
            SignatureError: not signed by ``key``, which ``peer`` attested.
        """
        run = self._run
        header = messages.verify(parts.get("update"), messages.UpdateHeader, key, now)
        if header.job != run.job_id:
            run.fault(peer, UpdateRejected("bad_header", "update is of another job"), header.ticket)
            return
        if header.sealed_to != run.sealed_to:
            # For a process before this one: no fault, and no answer to this one's question, which stands.
            run.rejected(peer, UpdateRejected("bad_seal", "sealed to another process; no fault"), header.ticket)
            return
        if (ticket := run.answered(peer, header.ticket)) is None:
            return
        try:
            run.ledger_heads.check(run.kit.study.hospital(peer.name), header.ledger, now)
            packed = messages.open_payload(header, payload, run.keys.kem_key)
            delta = messages.unpack("delta", packed, run.layout.size)
        except UpdateRejected as error:
            run.fault(peer, error, header.ticket)
            return
        try:
            accepted = self.state.submit(peer.name, header, delta)
        except UpdateRejected as error:
            run.rejected(peer, error, header.ticket)
            return
        peer.evidence, peer.version = None, header.base_version
        run.log.write(
            "update",
            site=peer.name,
            ticket=header.ticket,
            base_version=header.base_version,
            staleness=accepted.staleness,
            norm=accepted.norm,
            seconds=time.monotonic() - ticket.issued_at,
        )
