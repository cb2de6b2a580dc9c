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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec
from nvflare.app_common.abstract.fl_model import FLModel
from safetensors.numpy import save as save_safetensors

from cordon import documents, messages, models, sealed_model, signing
from cordon import job as jobs
from cordon.asyncfl.coordinator import Coordinator
from cordon.attest.appraise import EvidenceAppraisal
from cordon.attest.keys import ProcessKeys
from cordon.attest.verdict import printable
from cordon.data.contract import FeatureContract
from cordon.data.reference import read_reference
from cordon.errors import AttestError, ConfigError, SignatureError, UpdateRejected
from cordon.evaluation import auc_and_accuracy
from cordon.flare import codec, persistor, plan
from cordon.flare.admission import Admission, Peer
from cordon.flare.data_key import leave_no_core
from cordon.flare.executors import ATTEST_TASK, TRAIN_TASK
from cordon.flare.kit import Kit
from cordon.flare.ledger_heads import LedgerHeads
from cordon.flare.session import MENDABLE
from cordon.report.events import EVENTS_FILE, MAX_CODES, EventLog
from cordon.robust.rules import RULES
from cordon.sealing import kem_digest
from cordon.study import ReleaseRight

MAX_REFERENCE = 1024**3  # bytes of an evaluation set
RETRY_S = 5.0

TRUST = {
    "sealed": "Each hospital encrypts its clipped and noised update to the coordinator's job process, after it judged "
    "that process's evidence. Neither the network nor FLARE nor the coordinator's disk sees it; the job process does, "
    "one by one. So one has to trust the hardware and software that the evidence shows, and where they fail, the noise "
    "alone protects a patient. With software evidence that means whoever owns the coordinator's machine.",
}
MODEL_TRUST = "The models lie on the coordinator's disk encrypted to the release right: {holders} ({how})."


class Flare(Protocol):
    """What a run needs of FLARE: its workflow class, ``controllers.AsyncController``."""

    engine: Any
    abort_signal: Any

    def send(self, task: str, model: FLModel, site: str) -> None:
        """Give ``site`` a task; its answer, or what FLARE reports instead, goes into the inbox."""

    def save_model(self, model: FLModel) -> None: ...
    def info(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def exception(self, text: str) -> None: ...


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
        state: Coordinator | None = None,
    ) -> None:
        if kit.coordinator is None:
            raise ConfigError(f"{kit.name} is not a coordinator's kit")
        if kit.study.release is None:
            raise ConfigError(f"study {kit.study.study} gives nobody the release right: no model could ever be opened")
        self.release = kit.study.release
        self.flare, self.inbox, self.kit, self.job, self.job_id = flare, inbox, kit, job, job_id
        leave_no_core()
        self.keys = ProcessKeys.generate()
        self.sealed_to = kem_digest(self.keys.kem_public_bytes)
        self.admission = Admission(kit, job, job_id, self.keys)
        self.layout = plan.layout(job)
        executor, args = job.executor, job.controller
        features = plan.feature_contract(job)
        initial = models.initial_vector(executor.model, executor.model_args, len(features.features), args.init_seed)
        self.module = models.build(executor.model, executor.model_args, len(features.features))
        if state is None:
            connected = {client.name for client in flare.engine.get_clients()}
            sites = [hospital.name for hospital in kit.study.roster if hospital.name in connected]
            state = Coordinator(
                args,
                sites,
                {site: kit.study.weight(site) for site in sites},
                initial,
                self.layout.digest,
                dp_event=plan.round_event(job),
                rule=RULES[args.rule],
            )
        else:
            state.take_over(time.monotonic())
        self.state = state
        self.peers = {site: Peer(site, resend=state.outstanding(site) is not None) for site in state.sites}
        self.ledger_heads = LedgerHeads(kit.root)
        self.reference = _reference(kit, features)
        self.max_payload = messages.max_sealed(self.layout.size)
        self.log = EventLog(run_dir / EVENTS_FILE, time.monotonic)

    def train(self) -> None:
        """Attest all sites, then issue, judge, apply until the job is done."""
        self._announce()
        # Sites whose evidence the job still waits for before it may end.
        awaited = {name for name in self.peers if self.state.state[name] not in ("refused", "excluded")}
        for name in filter(awaited.__contains__, self.peers):
            self._challenge(self.peers[name])
            if (ticket := self.state.outstanding(name)) is not None:
                self.log.write("ticket", site=name, ticket=ticket.id, version=ticket.version)
        if self.state.ready():
            self._apply()
        while not self.flare.abort_signal.triggered:
            for kind, site, what in self._arrivals():
                if kind in ("result", "error"):
                    awaited.discard(site)
                self._take(kind, site, what)
                if self.state.ready():  # at once: sites send at the same ticks, so more may wait in the same batch
                    self._apply()
            now = time.monotonic()
            for peer in self.peers.values():
                self._watch(peer, now)
                if peer.overdue:
                    awaited.discard(peer.name)
            for ticket in self.state.expired(now):
                self._lose(ticket.site, f"no answer within {self.job.controller.ticket_timeout_s:.0f} s")
            # While evidence is awaited, only the last planned version ends the job: more sites may still come.
            done = not awaited or self.state.version >= self.job.controller.versions
            reason = self.state.finished() if done else None
            if reason is not None:
                self.log.write("done", versions=self.state.version, reason=reason)
                self.flare.info(f"done after {self.state.version} versions: {reason}")
                return
            for site in self.state.wants():
                peer = self.peers[site]
                if self.admission.renewal_due(peer, now):
                    self._challenge(peer)
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
            if peer.keys is None and kind == "result" and codec.has(what, "update"):
                self.flare.info(f"ignoring an update of {site}, which has not shown evidence to this process")
            elif peer.nonce and kind in ("result", "error") and (peer.keys is None or codec.has(what, "evidence")):
                self._admit(peer, kind, what)  # else a late answer to a ticket while a renewal is on its way
            else:
                self._judge(peer, kind, what)
        except Exception as error:
            self.flare.exception(f"a message of {site} could not be judged")
            self._lose(site, f"internal error while judging its message ({type(error).__name__}); see the job's log")

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

    def _announce(self) -> None:
        args, dp, study = self.job.controller, self.job.executor.dp, self.kit.study
        self.log.write(
            "job",
            job_id=self.job_id,
            job=self.job.name,
            study=study.study,
            profile=study.profile,
            privacy=args.privacy,
            rule=args.rule,
            rule_args=args.rule_args,
            server_opt=msgspec.to_builtins(args.server_opt),
            buffer=args.buffer,
            versions=args.versions,
            rounds_per_site=args.rounds_per_site,
            norm_bound=args.norm_bound,
            max_staleness=args.max_staleness,
            sites=list(self.peers),
            evaluation={
                "kind": study.evaluation.kind,
                "name": study.evaluation.name,
                "rows": 0 if self.reference is None else len(self.reference[1]),
            },
            dp={
                "noise_multiplier": dp.noise_multiplier,
                "sampling_rate": dp.sampling_rate,
                "steps": dp.steps,
                "clip_norm": dp.clip_norm,
                "unit": dp.unit,
                "expected_batch_size": dp.expected_batch_size,
            },
            delta=dp.delta,
            trust=f"{TRUST[args.privacy]} {_model_trust(self.release)}",
        )

    def _challenge(self, peer: Peer) -> None:
        self.flare.send(ATTEST_TASK, codec.to_model(self.admission.challenge(peer)), peer.name)

    def _watch(self, peer: Peer, now: float) -> None:
        """Take a site out whose parent process lost its lease or that leaves a challenge open; ask again when due."""
        if self.state.state[peer.name] in ("refused", "excluded"):
            return
        held = self.admission.parent_standing(peer)
        if held and not peer.held:
            self._lose(peer.name, f"not attested with the coordinator: {held}")
        elif peer.held and not held and peer.keys is not None:
            self.state.returned(peer.name)
        peer.held = held
        if self.admission.late(peer) and not peer.overdue:
            peer.overdue = True
            self._lose(peer.name, f"no evidence within {self.kit.attest_policy.max_age_s:.0f} s")
        if peer.ask_at is not None and now >= peer.ask_at:
            self._challenge(peer)

    def _admit(self, peer: Peer, kind: str, what: Any) -> None:
        """The site's answer to the challenge: its attested key, or why it is not part of this job."""
        if kind != "result":
            peer.nonce = b""
            self._lose(peer.name, f"no evidence: error inside the site ({what}); its own log has the details")
            return
        if self.admission.late(peer):
            # Too old to count; the site is there, so it may show fresh evidence. Until then the job goes on without it.
            self._lose(peer.name, "evidence came too late; challenged anew")
            self._challenge(peer)
            return
        try:
            parts, _ = codec.from_model(what, limit=0)
            if "evidence" not in parts and "refusal" in parts:  # nobody signed it with a key that is known yet
                self._unavailable(peer, "it says that it makes no evidence now")
                return
            appraisal = self.admission.judge(peer, parts)
            self.log.write(
                "attested", site=peer.name, verdict=appraisal.verdict, type=appraisal.type, codes=_codes(appraisal)
            )
            key = appraisal.signing_key  # raises unless the verdict is pass
            if "refusal" in parts:
                self._refused(peer, parts["refusal"], key)
                return
            self.admission.admit(peer, appraisal, parts)
            if not peer.held:
                self.state.returned(peer.name)  # where its answer came after the job stopped waiting for it
            waiting, resend = peer.waiting, peer.resend
            peer.waiting, peer.resend = None, False
            if waiting is not None:
                self._judge(peer, "result", waiting)
            elif resend:  # the same ticket: a site that trained for it sends the same bytes
                self._ask(peer)
        except ConfigError as error:  # this side's own device makes no evidence now: not the site's fault
            self._unavailable(peer, f"the coordinator makes no evidence now ({printable(str(error), 200)})")
        except (AttestError, SignatureError) as error:
            peer.nonce, peer.waiting = b"", None
            self.flare.warning(f"{peer.name} is not admitted: {printable(str(error), 300)}")
            self._out(peer.name, "attestation_failed")

    def _unavailable(self, peer: Peer, why: str) -> None:
        """No evidence could be made, on either side: ask again for as long as the job goes on."""
        peer.nonce, peer.ask_at = b"", time.monotonic() + RETRY_S
        self._lose(peer.name, f"{why}; it is asked again")

    def _judge(self, peer: Peer, kind: str, what: Any) -> None:
        """An answer to a ticket: an update to buffer, a refusal, an error, or a fault."""
        if kind == "disconnected":
            self._lose(peer.name, "disconnected")
            return
        if kind == "reconnected":
            if peer.keys is not None and not peer.held:  # else its evidence, when it comes, brings it back
                self.state.returned(peer.name)
            return
        if kind == "error":
            self._lose(peer.name, f"error inside the site ({what}); its own log has the details")
            return
        if peer.keys is None or peer.held:  # quarantined since: what it made does not count
            return
        if not (peer.leased(time.monotonic()) or codec.has(what, "refusal")):
            # The round took longer than the lease: first fresh evidence.
            peer.waiting = what
            if not peer.nonce:
                self._challenge(peer)
            return
        try:
            parts, payload = codec.from_model(what, limit=self.max_payload)
            if "refusal" in parts:
                self._refused(peer, parts["refusal"], peer.keys.signing_key)
                return
            now = datetime.now(UTC)
            header = messages.verify(parts.get("update"), messages.UpdateHeader, peer.keys.signing_key, now)
        except SignatureError as error:
            self._fault(peer, UpdateRejected("bad_signature", str(error)), "")
            return
        if header.job != self.job_id:
            self._fault(peer, UpdateRejected("bad_header", "update is of another job"), header.ticket)
            return
        if header.sealed_to != self.sealed_to:
            # For a process before this one: no fault, and no answer to this one's question, which stands.
            self._rejected(peer, UpdateRejected("bad_seal", "sealed to another process; no fault"), header.ticket)
            return
        try:
            ticket = self.state.answered(peer.name, header.ticket)
        except UpdateRejected as error:
            self._rejected(peer, error, header.ticket)
            # A slow site answers a ticket that was given up: it lives, so it may have another.
            self.state.returned(peer.name)
            return
        try:
            self.ledger_heads.check(self.kit.study.hospital(peer.name), header.ledger, now)
            packed = messages.open_payload(header, payload, self.keys.kem_key)
            delta = messages.unpack("delta", packed, self.layout.size)
        except UpdateRejected as error:
            self._fault(peer, error, header.ticket)
            return
        try:
            accepted = self.state.submit(peer.name, header, delta)
        except UpdateRejected as error:
            self._rejected(peer, error, header.ticket)
            return
        peer.evidence, peer.version = None, header.base_version
        self.log.write(
            "update",
            site=peer.name,
            ticket=header.ticket,
            base_version=header.base_version,
            staleness=accepted.staleness,
            norm=accepted.norm,
            seconds=time.monotonic() - ticket.issued_at,
        )

    def _fault(self, peer: Peer, error: UpdateRejected, ticket: str) -> None:
        """A message that fails before the state machine sees it."""
        self.state.fault(peer.name, error.code, error.detail)
        self._rejected(peer, error, ticket)

    def _rejected(self, peer: Peer, error: UpdateRejected, ticket: str) -> None:
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

    def _refused(self, peer: Peer, envelope: Any, key: signing.PublicKey) -> None:
        refusal = messages.verify(envelope, messages.Refusal, key, datetime.now(UTC))
        code = refusal.code if refusal.code in messages.REFUSAL_REASONS else "site_error"
        self.flare.warning(f"{peer.name} does not train: {code}: {messages.REFUSAL_REASONS[code]}")
        if code in MENDABLE:  # ask again, with fresh evidence
            peer.ask_at, peer.resend = time.monotonic() + RETRY_S, True
            if self.state.outstanding(peer.name) is None:  # nothing of its to wait for until it is asked again
                self._lose(peer.name, f"{code}; it is asked again")
        else:
            self._out(peer.name, code)

    def _out(self, site: str, code: str) -> None:
        self.state.refuse(site, code)
        self.log.write("refused", site=site, reason=code)

    def _lose(self, site: str, why: str) -> None:
        self.state.lose(site, why)
        self.log.write("lost", site=site, reason=why)
        self.flare.warning(f"{site} is lost: {why}")

    def _issue(self, peer: Peer, now: float) -> None:
        ticket = self.state.issue(peer.name, secrets.token_hex(16), now)
        self.log.write("ticket", site=peer.name, ticket=ticket.id, version=ticket.version)
        self._ask(peer)

    def _ask(self, peer: Peer) -> None:
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
            "links": {"after": peer.version, "sha256": self.state.links[peer.version + 1 : ticket.version + 1]},
        }
        if peer.evidence is not None:
            parts["evidence"] = peer.evidence
        self.flare.send(TRAIN_TASK, codec.to_model(parts, sealed), peer.name)

    def _apply(self) -> None:
        version = self.state.apply()
        model = save_safetensors(self.layout.unflatten(self.state.model))
        self.flare.save_model(persistor.to_model(self._sealed(model, version.number)))
        auc = accuracy = None
        if self.reference is not None:
            models.set_vector(self.module, self.state.model)
            auc, accuracy = auc_and_accuracy(self.module, *self.reference)
        self.log.write(
            "version",
            version=version.number,
            sites=list(version.sites),
            staleness=list(version.staleness),
            auc=auc,
            accuracy=accuracy,
            sha256=messages.sha256(model),
            step_norm=version.step_norm,
        )

    def _sealed(self, model: bytes, version: int) -> bytes:
        """``model`` as it lies on this machine's disk: for the holders of the study's release right."""
        subject = sealed_model.Subject(
            study=self.kit.study.digest,
            study_name=self.kit.study.study,
            job=self.job.name,
            job_id=self.job_id,
            job_digest=self.job.digest,
            version=version,
            layout_digest=self.layout.digest,
        )
        return sealed_model.seal(model, subject, self.release)


def _model_trust(release: ReleaseRight) -> str:
    how = "any one of them" if release.persons == 1 else "two of them together"
    return MODEL_TRUST.format(holders=", ".join(sorted(release.holders)), how=how)


def _codes(appraisal: EvidenceAppraisal) -> list[tuple[str, str, str]]:
    """The checks for the event log: those that count first, no more than a line holds (eight GPUs make 200)."""
    told = sorted(appraisal.checks, key=lambda each: (each.waived, each.result == "pass"))
    return [(each.code, each.result, each.detail[:300]) for each in told[:MAX_CODES]]


def _reference(kit: Kit, features: FeatureContract) -> tuple[Any, Any] | None:
    """(x, y) of the evaluation set that the study contract names, or None where it names none (production default)."""
    evaluation, source = kit.study.evaluation, kit.evaluation_source
    if evaluation.kind == "none":
        return None
    if source is None:
        raise ConfigError(
            f"the study evaluates on {evaluation.name!r}, but local/coordinator.yml names no source for it"
        )
    if evaluation.sha256 not in (None, messages.sha256(documents.read_bytes(source, MAX_REFERENCE))):
        raise ConfigError(
            f"{source}: not the evaluation set {evaluation.name!r} that the study contract names (SHA-256)"
        )
    return read_reference(source, features)
