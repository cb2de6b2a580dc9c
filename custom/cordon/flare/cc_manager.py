"""Admission to the federation by evidence: the component ``cc_manager`` in the parent process of each side.

The verifier challenges (nonce of its own, over a private cell channel), the prover answers with evidence, the verifier
appraises it against the study contract's key for that peer and gives a lease. The coordinator challenges each connected
hospital of the roster; each hospital challenges the coordinator. What a peer calls itself, and its client type, decide
nothing: whoever has no live lease gets no job. A failure quarantines that one peer, never the federation.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.fuel.f3.cellnet.core_cell import Message, TargetMessage
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.private.defs import ClientType, InternalFLContextKey, new_cell_message

from cordon import signing
from cordon.attest import fault, standing
from cordon.attest.appraise import EvidenceAppraisal, make_evidence, parent_context
from cordon.attest.binding import NONCE_BYTES
from cordon.attest.keys import ProcessKeys
from cordon.attest.nonce import Nonces
from cordon.attest.verifier import Verifier
from cordon.errors import AttestError, ConfigError, CordonError
from cordon.flare import audit, gates
from cordon.flare.kit import STANDING_FILE, Kit, load_kit

CHANNEL = "cordon_attest"
TOPIC = "challenge"
FAULT_FOLDER = "quarantine"
NONCE_FILE = "attestation_nonces.json"
EXIT_BAD_KIT = 3
MAX_RECORDS = 32  # of faults per peer: evidence has up to 1 MiB, and a peer can fail in another way every half minute
SOFTWARE_WAIT_S, HARDWARE_WAIT_S = 5.0, 60.0
ASK_WINDOW_S, MAX_ASKS = 10.0, 8  # challenges per member within the window


class CordonCCManager(FLComponent):
    """Mutual attestation of coordinator and hospitals.

    Args:
        check_interval_s: seconds between looks at who must be challenged.
        reply_timeout_s: seconds to wait for an answer; default: 5 where this side's own evidence is software, else a
            minute (a busy firmware and eight GPUs take their time), and never longer than the policy's ``max_age_s``.
    """

    def __init__(self, check_interval_s: float = 2.0, reply_timeout_s: float | None = None) -> None:
        super().__init__()
        self.check_interval_s = check_interval_s
        self.reply_timeout_s = reply_timeout_s
        self._kit: Kit | None = None
        self._keys: ProcessKeys | None = None
        self._verifier: Verifier | None = None
        self._engine: Any = None
        self._lock = threading.Lock()  # guards verifier and audit file
        self._round = threading.Lock()  # one round of challenges at a time
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked: dict[str, list[float]] = {}  # member -> monotonic seconds of its recent challenges
        self._sessions: dict[str, str] = {}  # hospital -> FLARE's token of its registration
        self._quiet_until: dict[str, float] = {}  # silent peer -> when to ask it again, monotonic seconds
        self._silent: dict[str, int] = {}  # peer -> how often in a row it did not answer
        self._ended: set[str] = set()
        self._accused: dict[str, tuple[str, ...]] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE's entry. Events of job processes don't come here: the component is the parent's only."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            self._bootstrap(fl_ctx)
        elif event_type == EventType.SYSTEM_START:
            self._start()
        elif event_type == EventType.SYSTEM_END:
            self._end()
        elif event_type == EventType.CLIENT_REGISTER_RECEIVED:
            self._admit_registration(fl_ctx)
        elif event_type == EventType.AFTER_CLIENT_REGISTER:
            self._forget(self._ready()[0].study.coordinator.name)  # a server that lost us may be another one now
        elif event_type == EventType.SUBMIT_JOB:
            self._refuse_code(fl_ctx)
        elif event_type == EventType.BEFORE_CHECK_CLIENT_RESOURCES:
            self._challenge_due()
        elif event_type == EventType.AFTER_CHECK_CLIENT_RESOURCES:
            self._leave_out_unattested(fl_ctx)

    def require_coordinator(self) -> None:
        """AttestError unless this hospital holds a live lease for the coordinator; asks once more before giving up."""
        kit, _ = self._ready()
        name = kit.study.coordinator.name
        if not self.attested(name):
            self._quiet_until.pop(name, None)  # it just sent a job, so it is there
            self._challenge_due()
        if not self.attested(name):
            raise AttestError([("coordinator_not_attested", f"{name} has not shown acceptable evidence")])

    def attested(self, peer: str) -> bool:
        """Whether ``peer`` holds a live lease."""
        _, verifier = self._ready()
        with self._lock:
            return verifier.live(peer, datetime.now(UTC))

    # -- start and end -----------------------------------------------------------------------------------------------

    def _bootstrap(self, fl_ctx: FLContext) -> None:
        """Load the kit. A process without a valid one must not run, and FLARE goes on after a handler's exception."""
        try:
            root = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())
            kit = load_kit(root, datetime.now(UTC))
            nonces = Nonces(kit.root / NONCE_FILE)
            self._verifier = Verifier(kit.trust, kit.study.digest, nonces)
            standing.write(kit.root / STANDING_FILE, {})  # what an earlier process granted ended with it
            self._keys = ProcessKeys.generate()
            self._engine = fl_ctx.get_engine()
            kit.attester.report(bytes(64))  # a TEE that makes no report now would leave this side out later, unsaid
            gates.install(kit, self._engine.get_cell().core_cell, self.logger)
            self._kit = kit
        except Exception as error:
            if isinstance(error, CordonError):
                reason = f"{type(error).__name__}: {error}"
            else:
                reason = f"internal error: {error!r}"
            self.logger.critical(f"this kit does not start: {reason}")
            print(f"cordon: this kit does not start: {reason}", file=sys.stderr, flush=True)
            os._exit(EXIT_BAD_KIT)
        self.log_info(fl_ctx, f"kit of {kit.name} ({kit.role}), study {kit.study.study}, evidence {kit.attester.type}")

    def _start(self) -> None:
        self._ready()
        self._stop.clear()
        self._engine.get_cell().register_request_cb(channel=CHANNEL, topic=TOPIC, cb=self._answer)
        self._thread = threading.Thread(target=self._watch, name="cordon-attest", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self._challenge_due()
            except Exception:  # whatever one round meets, the watch goes on: leases end by themselves
                self.logger.exception("a round of challenges failed")
            self._stop.wait(self.check_interval_s)

    def _ready(self) -> tuple[Kit, Verifier]:
        if self._kit is None or self._verifier is None:
            raise AttestError([("not_started", "the kit has not been loaded")])
        return self._kit, self._verifier

    # -- prover ------------------------------------------------------------------------------------------------------

    def _answer(self, request: Message) -> Message:
        """Evidence for a challenge. It holds no secret, so anybody whom the gates let in may ask, now and then."""
        kit, _ = self._ready()
        asked = request.payload
        nonce, policy_digest = (asked.get("nonce"), asked.get("policy_digest")) if isinstance(asked, dict) else (0, 0)
        if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES or not isinstance(policy_digest, str):
            return make_reply(ReturnCode.INVALID_REQUEST, "want nonce (32 bytes) and policy_digest")
        if len(policy_digest) > 128 or self._keys is None:
            return make_reply(ReturnCode.INVALID_REQUEST, "policy_digest is not a digest")
        if not self._may_ask(FQCN.get_root(str(request.get_header(MessageHeaderKey.ORIGIN)))):
            return make_reply(ReturnCode.SERVICE_UNAVAILABLE, "no member, or asked too often")
        context = parent_context(kit.name, kit.study.digest, policy_digest)
        try:
            evidence = make_evidence(kit.attester, context, nonce, self._keys, kit.mtls_key)
        except ConfigError as error:  # the device is busy, or a GPU left confidential computing mode
            self.logger.error(f"no evidence can be made: {error}")
            return make_reply(ReturnCode.SERVICE_UNAVAILABLE, "no evidence can be made now")
        return make_reply(ReturnCode.OK, body={"evidence": evidence})

    def _may_ask(self, member: str) -> bool:
        """Whether ``member`` may have evidence (again).

        A report costs the hardware up to seconds: one member who keeps asking would leave the others without. The gates
        tie a message's origin to its sender's certificate, and all processes of a member share one allowance.
        """
        kit, _ = self._ready()
        if member not in (FQCN.ROOT_SERVER, *(hospital.name for hospital in kit.study.roster)):
            return False
        now = time.monotonic()
        with self._lock:
            recent = [at for at in self._asked.get(member, []) if now - at < ASK_WINDOW_S]
            self._asked[member] = recent
            if len(recent) >= MAX_ASKS:
                return False
            recent.append(now)
            return True

    # -- verifier ----------------------------------------------------------------------------------------------------

    def _challenge_due(self) -> None:
        """Challenge every connected peer whose lease is due; a dead one delays the others once."""
        kit, verifier = self._ready()
        with self._round:
            peers = self._peers(kit)
            now = datetime.now(UTC)
            self._note_ended(now)
            with self._lock:
                due = {
                    name: (fqcn, key, verifier.challenge(name, now))
                    for name, (fqcn, key) in peers.items()
                    if verifier.due(name, now) and time.monotonic() >= self._quiet_until.get(name, 0.0)
                }
            if not due:
                return
            self._refresh_collateral(kit, verifier)
            # Who was silent last time is asked after the others were settled: FLARE waits for all of a batch.
            for batch in (
                [name for name in due if name not in self._silent],
                [name for name in due if name in self._silent],
            ):
                self._challenge(kit, {name: due[name] for name in batch})

    def _challenge(self, kit: Kit, due: dict[str, tuple[str, signing.PublicKey, bytes]]) -> None:
        """Ask the peers of one batch, and settle each by its answer."""
        if not due:
            return
        messages = {  # by cell address: FLARE sends to the key, whatever the message's target says
            fqcn: TargetMessage(
                target=fqcn,
                channel=CHANNEL,
                topic=TOPIC,
                message=new_cell_message({}, {"nonce": nonce, "policy_digest": kit.attest_policy_digest}),
            )
            for fqcn, _, nonce in due.values()
        }
        replies = self._engine.get_cell().broadcast_multi_requests(messages, timeout=self._patience(kit), optional=True)
        for name, (fqcn, key, nonce) in due.items():
            try:
                self._settle(name, key, nonce, replies.get(fqcn))
            except Exception as error:  # whatever it answered costs this peer its lease, and no other
                self.logger.exception(f"{name}: its answer could not be settled")
                self._reject(name, "internal_error", f"{type(error).__name__} while its evidence was judged")

    def _patience(self, kit: Kit) -> float:
        """Seconds to wait for answers: less than a challenge lives, so that a silent peer spoils nobody's answer."""
        default = SOFTWARE_WAIT_S if kit.attester.type == "software" else HARDWARE_WAIT_S
        wanted = default if self.reply_timeout_s is None else self.reply_timeout_s
        return min(wanted, kit.attest_policy.max_age_s / 4)

    def _settle(self, name: str, key: signing.PublicKey, nonce: bytes, reply: Message | None) -> None:
        """The verdict on one peer's answer, in force before it is written down."""
        kit, verifier = self._ready()
        if reply is None or reply.get_header(MessageHeaderKey.RETURN_CODE) != ReturnCode.OK:
            self._no_answer(name)
            return
        evidence = reply.payload.get("evidence") if isinstance(reply.payload, dict) else None
        with self._lock:
            appraisal = verifier.judge(name, key, nonce, evidence, datetime.now(UTC))
            standing.write(kit.root / STANDING_FILE, verifier.standings)
        self._record(name, evidence, appraisal)

    def _reject(self, name: str, code: str, detail: str) -> None:
        kit, verifier = self._ready()
        with self._lock:
            appraisal = verifier.reject(name, [(code, detail)], datetime.now(UTC))
        try:
            with self._lock:
                standing.write(kit.root / STANDING_FILE, verifier.standings)
            self._audit(name, appraisal.verdict, appraisal.type, appraisal.codes)
        except OSError:  # a full disk: the lease has ended in memory, the file is gone, and the next peer's turn comes
            self.logger.exception(f"{name}: its verdict could not be written down")

    def _refresh_collateral(self, kit: Kit, verifier: Verifier) -> None:
        """Judge by the CRLs and the like that are there now, so that a revocation counts without a restart."""
        trust, problem = kit.fresh_trust()
        if problem:
            self.logger.error(f"collateral is not read anew: {problem}")
        with self._lock:
            verifier.trust = trust

    def _note_ended(self, now: datetime) -> None:
        """Write down leases that ended by themselves, once each."""
        _, verifier = self._ready()
        with self._lock:
            ended = [
                name
                for name, each in verifier.standings.items()
                if each.state == "attested" and not each.live(now) and name not in self._ended
            ]
        for name in ended:
            self._ended.add(name)
            self.logger.error(f"{name}: its lease ended; it takes no part until it shows evidence again")
            self._audit(name, "not_checked", "unknown", [("lease_ended", "not_checked", "the lease was not renewed")])

    def _peers(self, kit: Kit) -> dict[str, tuple[str, signing.PublicKey]]:
        """name -> (cell address, mTLS key of the study contract) of everybody whom this side must challenge."""
        if kit.role == "hospital":
            return {kit.study.coordinator.name: (FQCN.ROOT_SERVER, kit.study.coordinator.mtls_key)}
        connected = {client.name: client for client in self._engine.get_clients()}
        for name, client in connected.items():  # FLARE gives a token per registration, after it saw the certificate
            if self._sessions.get(name) != client.token:
                self._sessions[name] = client.token
                self._forget(name)
        return {
            hospital.name: (connected[hospital.name].get_fqcn(), hospital.mtls_key)
            for hospital in kit.study.roster
            if hospital.name in connected
        }

    def _forget(self, name: str) -> None:
        kit, verifier = self._ready()
        with self._lock:
            held = verifier.live(name, datetime.now(UTC))
            verifier.forget(name)
            standing.write(kit.root / STANDING_FILE, verifier.standings)
        self._silent.pop(name, None)
        self._quiet_until.pop(name, None)
        if held:
            self._audit(
                name, "not_checked", "unknown", [("registered_anew", "not_checked", "its lease ended with that")]
            )

    def _no_answer(self, name: str) -> None:
        """Silence ends no lease (a dropped packet is no fault) and gives none; said once per silence."""
        kit, _ = self._ready()
        times = self._silent[name] = self._silent.get(name, 0) + 1
        pause = min(self._patience(kit) * 2 ** min(times - 1, 10), kit.attest_policy.lease_s / 3)
        self._quiet_until[name] = time.monotonic() + pause
        if times == 1:
            self._audit(name, "not_checked", "unknown", [("no_answer", "not_checked", "no answer to the challenge")])

    def _record(self, name: str, evidence: Any, appraisal: EvidenceAppraisal) -> None:
        kit, verifier = self._ready()
        self._silent.pop(name, None)
        self._ended.discard(name)
        self._audit(name, appraisal.verdict, appraisal.type, appraisal.codes, evidence)
        if appraisal.verdict == "pass":
            self._accused.pop(name, None)
            self.logger.info(f"{name}: evidence passed ({appraisal.statement})")
            return
        misses = "; ".join(f"{each.code}: {each.detail}" for each in appraisal.open)
        faults = fault.proven(appraisal)
        if not faults:
            self.logger.error(f"{name}: not attested until its evidence passes: {misses}")
            return
        self.logger.error(f"{name}: quarantined until its evidence passes: {misses}")
        codes = tuple(code for code, _ in faults)
        if self._accused.get(name) != codes:  # once per kind of fault: it is asked again every half minute
            now = datetime.now(UTC)
            record = fault.record(
                kit.name, kit.mtls_key, name, kit.study.digest, evidence, verifier.trust, appraisal, now
            )
            folder = kit.root / FAULT_FOLDER
            folder.mkdir(mode=0o700, exist_ok=True)
            if len(list(folder.glob(f"{name}-????????T*Z.json"))) < MAX_RECORDS:
                (folder / f"{name}-{now:%Y%m%dT%H%M%S%fZ}.json").write_text(json.dumps(record), encoding="utf-8")
            self._accused[name] = codes

    def _audit(
        self, peer: str, verdict: str, kind: str, codes: list[tuple[str, str, str]], evidence: Any = None
    ) -> None:
        kit, verifier = self._ready()
        now = datetime.now(UTC)
        with self._lock:
            state = verifier.standings.get(peer, standing.UNKNOWN)
            audit.append(
                kit.root,
                now,
                peer=peer,
                verdict=verdict,
                kind=kind,
                state=state.state,
                lease_until=state.expires if state.live(now) else None,
                policy_digest=verifier.trust.policy.digest,
                codes=codes,
                evidence=evidence,
            )

    # -- FLARE's gates -----------------------------------------------------------------------------------------------

    def _admit_registration(self, fl_ctx: FLContext) -> None:
        """Refuse a stranger at the door. The lease is what counts: an admin is exempt here and gets no job anyway."""
        try:
            kit, _ = self._ready()
        except AttestError as error:  # FLARE refuses on this exception only and goes on after any other
            raise NotAuthenticated("the coordinator is not ready") from error
        if fl_ctx.get_prop(FLContextKey.CLIENT_TYPE) == ClientType.ADMIN:
            return
        session = fl_ctx.get_prop(InternalFLContextKey.CLIENT_REG_SESSION)
        peer = fl_ctx.get_peer_context()
        name = getattr(session, "client_name", None) or (peer.get_identity_name() if peer is not None else "")
        if name not in [hospital.name for hospital in kit.study.roster]:
            raise NotAuthenticated(f"{name!r} is not a hospital of study {kit.study.study}")

    def _refuse_code(self, fl_ctx: FLContext) -> None:
        meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        if meta.get(AppValidationKey.BYOC, False):
            reason = "the job brings its own code (byoc): jobs are configuration only in confidential mode"
            fl_ctx.set_prop(key=FLContextKey.JOB_BLOCK_REASON, value=reason, sticky=False, private=True)

    def _leave_out_unattested(self, fl_ctx: FLContext) -> None:
        """Turn a site's "has resources" into "no" in place, so that the scheduler leaves it out."""
        result = fl_ctx.get_prop(FLContextKey.RESOURCE_CHECK_RESULT) or {}
        answers = dict(result)
        for site in answers:  # everybody out first: FLARE goes on after a handler's exception
            result[site] = (False, f"{site} is not attested: it has no live lease")
        result.update({site: answer for site, answer in answers.items() if self.attested(site)})
