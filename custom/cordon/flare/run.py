"""The coordinator's side of a job: attest every site, then true per-client asynchrony over ``cordon.asyncfl``.

A site gets a ticket as soon as the buffer that holds its last update was applied; nobody waits for the slowest. All
decisions are those of the pure ``Coordinator`` state machine; here are messages, seals, signatures and the event log
(``events.jsonl`` in the job's run folder, from which report and metrics are made).

This process's keys are never stored. A ``Run`` given the state machine of one that died goes on from it with new keys:
it challenges every site, and asks again for what is outstanding.
"""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cordon import job as jobs
from cordon import messages
from cordon.asyncfl.records import Ticket
from cordon.attest.keys import ProcessKeys
from cordon.attest.verdict import printable
from cordon.errors import ConfigError, SignatureError, UpdateRejected
from cordon.flare import announcement, codec, plan
from cordon.flare.admission import Admission, Peer
from cordon.flare.data_key import leave_no_core
from cordon.flare.entry import Entry
from cordon.flare.executors import ATTEST_TASK, TRAIN_TASK
from cordon.flare.kit import Kit
from cordon.flare.ledger_heads import LedgerHeads
from cordon.flare.masked_run import MaskedMode
from cordon.flare.mode import RETRY_S, Flare, Mode
from cordon.flare.sealed_run import SealedMode
from cordon.flare.session import MENDABLE
from cordon.flare.versions import Versions
from cordon.report.events import EVENTS_FILE, EventLog
from cordon.sealing import kem_digest
from cordon.signing import PublicKey

MODES: Mapping[str, type[Mode]] = {"sealed": SealedMode, "masked": MaskedMode}


class Run:
    """One job run: the state machine, the peers' keys, and what is written down."""

    def __init__(
        self,
        flare: Flare,
        inbox: queue.Queue[tuple[str, str, Any]],
        kit: Kit,
        job: jobs.Job,
        job_id: str,
        run_dir: Path,
        state: Any = None,
    ) -> None:
        if kit.coordinator is None:
            raise ConfigError(f"{kit.name} is not a coordinator's kit")
        self.flare, self.inbox, self.kit, self.job, self.job_id = flare, inbox, kit, job, job_id
        leave_no_core()
        self.keys = ProcessKeys.generate()
        self.sealed_to = kem_digest(self.keys.kem_public_bytes)
        self.admission = Admission(kit, job, job_id, self.keys)
        self._entry = Entry(self)
        self.layout = plan.layout(job)
        self._versions = Versions(kit, job, job_id, self.layout, plan.feature_contract(job))
        self.mode: Mode = MODES[job.controller.privacy](self)
        if state is None:
            connected = {client.name for client in flare.engine.get_clients()}
            sites = [hospital.name for hospital in kit.study.roster if hospital.name in connected]
            state = self.mode.new_state(sites, {site: kit.study.weight(site) for site in sites}, plan.first_model(job))
        else:
            state.take_over(time.monotonic())
            self.mode.go_on(state)
        self.state = state
        self.peers = {site: Peer(site, resend=state.outstanding(site) is not None) for site in state.sites}
        self.awaited: set[str] = set()  # sites whose evidence the job still waits for before it may end
        self.ledger_heads = LedgerHeads(kit.root)
        self.log = EventLog(run_dir / EVENTS_FILE, time.monotonic)

    def train(self) -> None:
        """Attest all sites, then issue, judge, apply until the job is done."""
        trust = f"{self.mode.trust} {self._versions.trust}"
        rows, terms = self._versions.rows, self.mode.terms
        self.log.write(
            "job", **announcement.job_event(self.kit, self.job, self.job_id, list(self.peers), rows, terms, trust)
        )
        awaited = self.awaited
        awaited |= {name for name in self.peers if self.state.state[name] not in ("refused", "excluded")}
        for name in filter(awaited.__contains__, self.peers):
            self.challenge(self.peers[name])
            if (ticket := self.state.outstanding(name)) is not None:
                self.log.write("ticket", site=name, ticket=ticket.id, version=ticket.version)
        self.apply()
        while not self.flare.abort_signal.triggered:
            for kind, site, what in self._arrivals():
                if kind in ("result", "error"):
                    awaited.discard(site)
                self._take(kind, site, what)
                self.apply()  # at once: sites send at the same ticks, so more may wait in the same batch
            now = time.monotonic()
            for peer in self.peers.values():
                self._entry.watch(peer, now)
                if peer.overdue:
                    awaited.discard(peer.name)
            for ticket in self.state.expired(now):
                self.lose(ticket.site, f"no answer within {self.job.controller.ticket_timeout_s:.0f} s")
            self.mode.step(now)
            self.apply()
            # While evidence is awaited, only the last planned version ends the job: more sites may still come.
            done = not awaited or self.state.version >= self.job.controller.versions
            reason = self.mode.ended or (self.state.finished() if done else None)
            if reason is not None:
                self.log.write("done", versions=self.state.version, reason=reason)
                self.flare.info(f"done after {self.state.version} versions: {reason}")
                return
            for site in self.state.wants() if self.mode.open else ():
                peer = self.peers[site]
                if self.admission.renewal_due(peer, now):
                    self.challenge(peer)
                elif peer.leased(now) and not peer.nonce:
                    self._issue(peer, now)
        self.log.write("done", versions=self.state.version, reason="aborted")

    def _take(self, kind: str, site: str, what: Any) -> None:
        """One arrival. Whatever a site makes of its message, it ends that site's part and not the job."""
        peer = self.peers.get(site)
        if peer is None:
            self.flare.warning(f"ignoring {kind} from {site}: not a site of this job")
            return
        try:
            if peer.keys is None and kind == "result" and codec.has(what, self.mode.answer):
                self.flare.info(f"ignoring an update of {site}, which has not shown evidence to this process")
            elif peer.nonce and kind in ("result", "error") and (peer.keys is None or codec.has(what, "evidence")):
                self._entry.admit(peer, kind, what)  # else a late answer to a ticket while a renewal is on its way
            else:
                self.judge(peer, kind, what)
        except Exception as error:
            self.flare.exception(f"a message of {site} could not be judged")
            self.lose(site, f"internal error while judging its message ({type(error).__name__}); see the job's log")

    def close(self) -> None:
        """Nothing more is written."""
        self.log.close()

    def _arrivals(self) -> list[tuple[str, str, Any]]:
        """What came in: waits up to 0.1 s for the first, then takes all there is."""
        arrived = []
        try:
            arrived.append(self.inbox.get(timeout=0.1))
            while True:
                arrived.append(self.inbox.get_nowait())
        except queue.Empty:
            return arrived

    def challenge(self, peer: Peer) -> None:
        """Ask ``peer`` for fresh evidence."""
        self.flare.send(ATTEST_TASK, codec.to_model(self.admission.challenge(peer)), peer.name)

    def judge(self, peer: Peer, kind: str, what: Any) -> None:
        """An answer to a ticket: an update to buffer, a refusal, an error, or a fault."""
        if kind == "disconnected":
            self.lose(peer.name, "disconnected")
            return
        if kind == "reconnected":
            if peer.keys is not None and not peer.held:  # else its evidence, when it comes, brings it back
                self.state.returned(peer.name)
            return
        if kind == "error":
            self.lose(peer.name, f"error inside the site ({what}); its own log has the details")
            return
        if peer.keys is None or peer.held:  # quarantined since: what it made does not count
            return
        if not (peer.leased(time.monotonic()) or codec.has(what, "refusal")):
            # The round took longer than the lease: first fresh evidence.
            peer.waiting = what
            if not peer.nonce:
                self.challenge(peer)
            return
        key = peer.keys.signing_key
        try:
            parts, payload = codec.from_model(what, limit=self.mode.max_payload)
            if "refusal" in parts:
                self.refused(peer, parts["refusal"], key)
            else:
                self.mode.judge(peer, key, parts, payload, datetime.now(UTC))
        except SignatureError as error:
            self.fault(peer, UpdateRejected("bad_signature", str(error)), "")

    # -- what a mode and this loop share: judgements, losses, tickets -------------------------------------------------

    def answered(self, peer: Peer, ticket_id: str) -> Ticket | None:
        """The open ticket that ``peer`` answers; None, and written down, if there is none of that id."""
        try:
            return self.state.answered(peer.name, ticket_id)
        except UpdateRejected as error:
            self.rejected(peer, error, ticket_id)
            # A slow site answers a ticket that was given up: it lives, so it may have another.
            self.state.returned(peer.name)
            return None

    def fault(self, peer: Peer, error: UpdateRejected, ticket: str) -> None:
        """A message that fails before the state machine sees it."""
        self.state.fault(peer.name, error.code, error.detail)
        self.rejected(peer, error, ticket)

    def rejected(self, peer: Peer, error: UpdateRejected, ticket: str) -> None:
        """Write down what does not count, and whether the site is out for it."""
        faults = len(self.state.faults[peer.name])
        self.log.write(
            "rejected",
            site=peer.name,
            ticket=ticket[:64],
            reason=error.code,
            detail=printable(error.detail, 300),
            faults=faults,
        )
        self.flare.warning(f"update of {peer.name} rejected: {printable(str(error), 300)}")
        if peer.name in self.state.excluded and not peer.out:
            peer.out = True
            self.log.write("excluded", site=peer.name, reason=f"{faults} faults, last {error.code}")

    def refused(self, peer: Peer, envelope: Any, key: PublicKey) -> None:
        """A refusal of ``peer``; SignatureError if ``key`` did not sign it."""
        refusal = messages.verify(envelope, messages.Refusal, key, datetime.now(UTC))
        if self.mode.refused(peer, refusal):
            return
        code = refusal.code if refusal.code in messages.REFUSAL_REASONS else "site_error"
        self.flare.warning(f"{peer.name} does not train: {code}: {messages.REFUSAL_REASONS[code]}")
        if code in MENDABLE:  # ask again, with fresh evidence
            peer.ask_at, peer.resend = time.monotonic() + RETRY_S, True
            if self.state.outstanding(peer.name) is None:  # nothing of its to wait for until it is asked again
                self.lose(peer.name, f"{code}; it is asked again")
        else:
            self.leave(peer.name, code)

    def leave(self, site: str, code: str) -> None:
        """``site`` takes no part any more; ``code`` is one of ``messages.REFUSAL_REASONS``."""
        self.state.refuse(site, code)
        self.log.write("refused", site=site, reason=code)
        self.mode.lost(site)

    def lose(self, site: str, why: str) -> None:
        """``site`` is not there now; it may come back."""
        self.state.lose(site, why)
        self.log.write("lost", site=site, reason=why)
        self.flare.warning(f"{site} is lost: {why}")
        self.mode.lost(site)

    def _issue(self, peer: Peer, now: float) -> None:
        ticket = self.state.issue(peer.name, secrets.token_hex(16), now)
        self.log.write("ticket", site=peer.name, ticket=ticket.id, version=ticket.version)
        self.ask(peer)

    def ask(self, peer: Peer) -> None:
        """Send ``peer`` the model of its open ticket, sealed to its process, and this process's evidence if the site
        has not used that yet."""
        ticket = self.state.outstanding(peer.name)
        if ticket is None or peer.keys is None:
            return
        header, sealed = messages.seal(
            messages.ModelHeader(
                v=1,
                job=self.job_id,
                ticket=ticket.id,
                version=ticket.version,
                model_chain_head=ticket.head,
                layout_digest=self.layout.digest,
                payload_sha256="",
            ),
            messages.pack("w", ticket.model),
            peer.keys.kem_key,
        )
        parts: dict[str, Any] = {
            "model": messages.sign(self.keys.signing_key, header),
            "links": self.links(peer.name, ticket.version),
        }
        if peer.evidence is not None:
            parts["evidence"] = peer.evidence
        self.flare.send(TRAIN_TASK, codec.to_model(parts, sealed), peer.name)

    def links(self, site: str, version: int) -> dict[str, Any]:
        """What leads ``site`` along the model chain to ``version``, from the last model that it has certainly seen."""
        seen = min(self.peers[site].version, version)
        return {"after": seen, "sha256": self.state.links[seen + 1 : version + 1]}

    def apply(self) -> None:
        """Make the versions that can be made now."""
        while self.mode.full:
            self._apply()

    def _apply(self) -> None:
        version = self.state.apply()
        sealed, fields = self._versions.keep(self.state.model, version)
        self.flare.save_model(sealed)
        self.log.write("version", **fields)
