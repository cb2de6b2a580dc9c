"""A hospital's side of a job: attest, get the data key, train under differential privacy, seal, sign, send at the tick.

Tasks (names are the job's):

* ``attest``: the coordinator's challenge. Reply: this job process's evidence (its keys live and die with the job), this
  site's own challenge, and, if its data, key broker or policy forbids training, a signed refusal with a reason code.
* ``train``: a signed global model under a ticket, sealed to this process. Reply: in sealed mode the clipped, noised
  delta, sealed to the coordinator's process and signed; in masked mode a signed ticket: the delta is ready to be
  masked, and stays here. Or a signed refusal.
* ``secagg`` (masked mode): one message of secure aggregation (``masked_site``). Reply: the site's own, or a refusal.

The first of these brings the coordinator's evidence for this site's challenge; both its keys are pinned. Both
evidences are renewed before their leases end. A coordinator that lost its lease, or a site whose data key was taken
back: no training and no update. In the clear, model and update are in this process's memory and nowhere else.
Replies to the first two leave at a tick of the study's public time grid: how long loading or training took tells a
site's size.
Nothing is logged through FLARE's context: such lines can be asked for from the console.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from cordon import job as jobs
from cordon import messages, models, signing
from cordon.attest.appraise import make_evidence
from cordon.attest.binding import NONCE_BYTES
from cordon.attest.keys import AttestedKeys
from cordon.data.load import load_patients
from cordon.data.source import FolderSource, Source
from cordon.dp.train import clip_update, train_round, unnoised_step
from cordon.errors import (
    AttestError,
    BrokerUnavailable,
    ConfigError,
    CordonError,
    DataError,
    PolicyRefused,
    PrivacyError,
    ProtocolAbort,
    Refused,
    SealError,
    SignatureError,
    UpdateRejected,
)
from cordon.flare import codec, masked_site, plan
from cordon.flare.data_key import PASSING
from cordon.flare.key_request import EVIDENCE_LOCK, NO_EVIDENCE
from cordon.flare.masked_site import MaskedSite
from cordon.flare.session import NO_KEY_NOW, NOT_ATTESTED, Session, Trained, job_context, open_session

ATTEST_TASK = "attest"
TRAIN_TASK = "train"
SECAGG_TASK = "secagg"


class DPTrainExecutor(Executor):
    """Runs a job's rounds at a hospital. Arguments: ``cordon.job.ExecutorArgs`` (names, units and ranges there)."""

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any],
        contract: str,
        dp: dict[str, Any],
        learning_rate: float,
        engine: str = "opacus",
        local_parameters: list[str] | tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.model_args = model_args
        self.contract = contract
        self.dp = dp
        self.learning_rate = learning_rate
        self.engine = engine
        self.local_parameters = local_parameters
        self._session: Session | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """FLARE's entry. An error inside the site leaves it as a reason code only; its own log has the rest."""
        parts: dict[str, Any] = {}
        try:
            if self._session is None:
                self._session = open_session(fl_ctx)
            if task_name not in jobs.TASKS[self._session.job.controller.privacy]:
                return make_reply(ReturnCode.TASK_UNKNOWN)
            limit = _limit(self._session) if task_name == TRAIN_TASK else 0
            parts, payload = codec.from_model(FLModelUtils.from_shareable(shareable), limit)
            if task_name == ATTEST_TASK:
                reply = self._attest(self._session, parts)
            elif task_name == TRAIN_TASK:
                reply = self._train(self._session, parts, payload, abort_signal)
            else:
                reply = self._aggregate(self._session, parts)
        except CordonError as error:
            if abort_signal.triggered:
                return make_reply(ReturnCode.TASK_ABORTED)
            self.logger.error(f"{task_name}: {type(error).__name__}: {error}")
            if self._session is None:
                return make_reply(ReturnCode.EXECUTION_EXCEPTION)
            reply = _refuse(self._session, refusal_code(error), parts)
        unsafe = self._session.kit.policy.unsafe_poc if self._session.kit.policy else None
        delay = unsafe.extra_delay_s if unsafe is not None and task_name == TRAIN_TASK else 0.0
        if task_name != SECAGG_TASK:  # how long those take depends on no patient, and a cohort has four of them
            _wait_until(self._session.kit.study.next_tick(time.time() + delay), abort_signal)
        if abort_signal.triggered:
            return make_reply(ReturnCode.TASK_ABORTED)
        if any(codec.has(reply, part) for part in ("update", *masked_site.ANSWERS)):
            try:  # the tick may have been long in coming
                _require_leases(self._session)
            except CordonError as error:
                self.logger.error(f"the answer is not sent: {type(error).__name__}: {error}")
                reply = _refuse(self._session, refusal_code(error), parts)
        return FLModelUtils.to_shareable(reply)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """The data key ends with the run."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.END_RUN and self._session is not None:
            self._session.close()

    def _attest(self, session: Session, parts: dict[str, Any]) -> FLModel:
        session.nonce, session.challenged_at = secrets.token_bytes(NONCE_BYTES), time.monotonic()
        context = job_context(session.kit, session.job, session.job_id, session.kit.name, codec.policy_digest(parts))
        nonce = codec.nonce(parts)
        try:
            with EVIDENCE_LOCK:
                evidence = make_evidence(session.kit.attester, context, nonce, session.keys, session.kit.mtls_key)
        except ConfigError as error:  # a device that is busy, or a GPU that left confidential computing mode
            raise AttestError([(NO_EVIDENCE, str(error))]) from error
        reply: dict[str, Any] = {
            "evidence": evidence,
            "nonce": base64.b64encode(session.nonce).decode(),
            "policy_digest": session.kit.attest_policy_digest,
            "lease_s": session.kit.attest_policy.lease_s,
        }
        try:
            plan.judge_job(session.kit, session.job)
            session.claim()
            session.layout = plan.layout(session.job)
            if session.job.controller.masked is not None and session.masked is None:
                masked = MaskedSite(session)
                masked.judge_noise()  # before it is set: a second challenge must not get past a refusal of the first
                session.masked = masked
            self._load(session)
        except CordonError as error:
            self.logger.error(f"this site does not train: {type(error).__name__}: {error}")
            reply["refusal"] = _refusal(session, "", refusal_code(error))
        return codec.to_model(reply)

    def _load(self, session: Session) -> None:
        """The site's patients into this process's memory, and a live lease for them, if it has not both already."""
        kit, contract = session.kit, plan.feature_contract(session.job)
        if kit.policy is None:
            raise ConfigError(f"{kit.name} is the coordinator: it has no patient data")
        data, mapping = kit.policy.data, kit.mapping(session.job)  # before a key is asked for: that is counted
        if data.unsafe_source is None:
            session.hold_data_key()
        if session.patients is not None:
            return
        torch.set_num_threads(kit.policy.caps.threads)
        with _source(session) as source:
            session.patients = load_patients(contract, mapping, data.connector, source).patients
        self.logger.info(f"data ready from {data.connector} (`cordon data check` tells what was rejected and why)")

    def _train(self, session: Session, parts: dict[str, Any], payload: bytes, abort_signal: Signal) -> FLModel:
        # 1. Who sends: the coordinator's job process, attested for this site's challenge, within its lease. Another
        # process than before is pinned only once its model continues the chain of models that this site has seen.
        if not session.challenged_at:
            raise SignatureError("a model before the coordinator's challenge")
        session.require_data_key()
        if session.patients is None or session.layout is None or session.kit.policy is None:
            raise DataError("this site refused to train when it attested", "data_error")
        if session.coordinator is None or (session.nonce and "evidence" in parts):
            session.require_parent()
            coordinator = session.appraise_coordinator(parts.get("evidence"))
            header, model = session.accept_model(parts, payload, coordinator)
            session.pin(coordinator)
        else:
            header, model = session.accept_model(parts, payload, session.require_coordinator())

        # 2. A ticket is served once; the last one repeated gets the same update under a new seal, which costs nothing.
        # A round counts before its first step.
        if session.trained is not None and session.trained.header.ticket == header.ticket:
            return _answer(session, parts)
        if session.masked is not None and (code := session.masked.may_train()):
            return _refuse(session, code, parts)
        session.begin_round(header.ticket)

        # 3. One round of DP-SGD, then the clip to the public bound.
        job, unsafe = session.job, session.kit.policy.unsafe_poc
        y = session.patients.y
        if unsafe is not None:
            from cordon.flare import unsafe_poc  # not in production images

            y = unsafe_poc.labels(unsafe, y)
        module, local = plan.network(job), job.executor.local_parameters
        models.set_vector(module, model, local)
        if session.local is not None:
            models.set_local(module, session.local, local)

        def should_stop() -> bool:
            session.require_data_key()  # taken back: not one step more
            return bool(abort_signal.triggered)

        # Where noise is shared out, this step has none yet: it stays in this process until it is masked.
        train = unnoised_step if plan.distributed(job) else train_round
        delta = train(
            module, session.patients.x, y, job.executor.dp, job.executor.learning_rate, should_stop=should_stop
        )
        delta, own = models.layout_of(module).split(delta, local)
        session.local = models.get_local(module, local) + own
        delta = clip_update(delta, job.controller.norm_bound)
        if unsafe is not None:
            delta = unsafe_poc.update(unsafe, delta)
            if session.masked is not None:
                delta = unsafe_poc.within(delta, job.controller.norm_bound)

        # 4. Seal and sign, or say that it is ready. Not to a coordinator whose lease ended meanwhile: it gets what is
        # kept here, and spent, when it asks for the same ticket with fresh evidence.
        update = messages.UpdateHeader(
            v=1,
            job=session.job_id,
            ticket=header.ticket,
            base_version=header.version,
            model_chain_head=header.model_chain_head,
            layout_digest=session.layout.digest,
            privacy=job.controller.privacy,
            dp_event=plan.round_event(job),
            sealed_to="",
            payload_sha256="",
        )
        session.trained = Trained(update, messages.pack("delta", delta))
        self.logger.info(f"round {session.rounds_used} from version {header.version} is ready")
        return _answer(session, parts)

    def _aggregate(self, session: Session, parts: dict[str, Any]) -> FLModel:
        """One message of secure aggregation, from the coordinator's process as it is pinned, within both leases."""
        if not session.challenged_at:
            raise SignatureError("a message before the coordinator's challenge")
        session.require_data_key()
        if session.masked is None or session.patients is None:
            raise DataError("this site refused to train when it attested", "data_error")
        session.meet(parts)
        reply, payload = session.masked.serve(parts, datetime.now(UTC))
        return codec.to_model(reply, payload)


def _limit(session: Session) -> int:
    """Bytes of payload that a model may have, before any of it is copied; 0 before this site knows the layout."""
    return 0 if session.layout is None else messages.max_sealed(session.layout.size)


def _source(session: Session) -> AbstractContextManager[Source]:
    """Where the site's data are read from: its vault under the key that is held, or plain files (POC only)."""
    kit = session.kit
    if kit.policy is not None and kit.policy.data.unsafe_source is not None:
        return contextlib.nullcontext(FolderSource(kit.policy.resolve(kit.local, kit.policy.data.unsafe_source)))
    return session.hold_data_key().source()


def _require_leases(session: Session) -> AttestedKeys:
    """The coordinator's keys, if it may be told something about this site's data now."""
    session.require_data_key()
    return session.require_coordinator()


def _answer(session: Session, parts: dict[str, Any]) -> FLModel:
    """The update that the session holds, sealed for the coordinator's process as it is pinned now; in masked mode the
    ticket that says that it is ready, unless it was masked."""
    keys = _require_leases(session)
    if session.masked is None:
        envelope, sealed = session.seal_update(keys)
        return codec.to_model({"update": envelope}, sealed)
    if session.masked.spent:
        return _refuse(session, masked_site.SPENT, parts)
    return codec.to_model({"ready": session.masked.ready(keys.signing_key)})


def refusal_code(error: CordonError) -> str:
    """The reason code that may leave the site for ``error`` (``messages.REFUSAL_REASONS``)."""
    if isinstance(error, AttestError) and error.failures[0][0] in (NOT_ATTESTED, NO_EVIDENCE):
        return error.failures[0][0]
    if isinstance(error, Refused) and error.code in PASSING:
        return NO_KEY_NOW
    if isinstance(error, DataError):
        return error.code if error.code in messages.REFUSAL_REASONS else "data_error"
    for kind, code in (
        (Refused, "key_refused"),
        (SealError, "key_refused"),  # the broker's answer: what the coordinator seals is judged as its message
        (BrokerUnavailable, NO_KEY_NOW),
        (PolicyRefused, "policy_refused"),
        (AttestError, "attestation_failed"),
        (SignatureError, "bad_message"),
        (UpdateRejected, "bad_message"),
        (PrivacyError, "plan_exhausted"),
        (ProtocolAbort, "cohort_aborted"),
    ):
        if isinstance(error, kind):
            return code
    return "site_error"


def _refuse(session: Session, code: str, parts: dict[str, Any]) -> FLModel:
    ticket = str(parts.get("cohort", ""))[:64]  # in masked mode; what a broken message leaves: the refusal names none
    with contextlib.suppress(SignatureError):
        ticket = str(signing.unverified_body(parts.get("model")).get("ticket", ""))[:64]
    return codec.to_model({"refusal": _refusal(session, ticket, code)})


def _refusal(session: Session, ticket: str, code: str) -> dict[str, Any]:
    return messages.sign(session.keys.signing_key, messages.Refusal(v=1, job=session.job_id, ticket=ticket, code=code))


def _wait_until(instant: float, abort_signal: Signal) -> None:
    while (left := instant - time.time()) > 0 and not abort_signal.triggered:
        time.sleep(min(left, 0.2))
