"""A hospital's side of a job: attest, train under differential privacy, sign, send at the tick.

Tasks (names are the job's):

* ``attest``: the coordinator's challenge. Reply: this job process's evidence (its keys live and die with the job), this
  site's own challenge, and, if its data or policy forbids training, a signed refusal with a reason code.
* ``train``: a signed global model under a ticket. Reply: the clipped, noised, signed delta; or a signed refusal.

The first ``train`` brings the coordinator's evidence for this site's challenge; its signing key is pinned for the job.
Both evidences are renewed before their leases end. A coordinator that lost its lease gets no training and no update.
Every reply leaves at a tick of the study's public time grid: how long loading or training took tells a site's size.
Nothing is logged through FLARE's context: such lines can be asked for from the console.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from typing import Any

import numpy as np
import torch
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from cordon import messages, models, signing
from cordon.attest.appraise import make_evidence
from cordon.attest.binding import NONCE_BYTES
from cordon.data.harmonise import Patients
from cordon.data.load import load_patients
from cordon.dp.train import clip_update, train_round
from cordon.errors import (
    AttestError,
    ConfigError,
    CordonError,
    DataError,
    PolicyRefused,
    PrivacyError,
    SignatureError,
    UpdateRejected,
)
from cordon.flare import codec, plan
from cordon.flare.session import NO_EVIDENCE, NOT_ATTESTED, Session, job_context, open_session

ATTEST_TASK = "attest"
TRAIN_TASK = "train"


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
    ) -> None:
        super().__init__()
        self.model = model
        self.model_args = model_args
        self.contract = contract
        self.dp = dp
        self.learning_rate = learning_rate
        self.engine = engine
        self._session: Session | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """FLARE's entry. An error inside the site leaves it as a reason code only; its own log has the rest."""
        parts: dict[str, Any] = {}
        try:
            if self._session is None:
                self._session = open_session(fl_ctx)
            parts, payload = codec.from_model(FLModelUtils.from_shareable(shareable))
            if task_name == ATTEST_TASK:
                reply = self._attest(self._session, parts)
            elif task_name == TRAIN_TASK:
                reply = self._train(self._session, parts, payload, abort_signal)
            else:
                return make_reply(ReturnCode.TASK_UNKNOWN)
        except CordonError as error:
            if abort_signal.triggered:
                return make_reply(ReturnCode.TASK_ABORTED)
            self.logger.error(f"{task_name}: {type(error).__name__}: {error}")
            if self._session is None:
                return make_reply(ReturnCode.EXECUTION_EXCEPTION)
            reply = _refuse(self._session, refusal_code(error), parts)
        unsafe = self._session.kit.policy.unsafe_poc if self._session.kit.policy else None
        delay = unsafe.extra_delay_s if unsafe is not None and task_name == TRAIN_TASK else 0.0
        _wait_until(self._session.kit.study.next_tick(time.time() + delay), abort_signal)
        return make_reply(ReturnCode.TASK_ABORTED) if abort_signal.triggered else reply

    def _attest(self, session: Session, parts: dict[str, Any]) -> Shareable:
        session.nonce, session.challenged_at = secrets.token_bytes(NONCE_BYTES), time.monotonic()
        context = job_context(session.kit, session.job, session.job_id, session.kit.name, codec.policy_digest(parts))
        nonce = codec.nonce(parts)
        try:
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
            if session.patients is None:
                session.layout = plan.layout(session.job)
                session.patients = self._load(session)
        except CordonError as error:
            self.logger.error(f"this site does not train: {type(error).__name__}: {error}")
            reply["refusal"] = _refusal(session, "", refusal_code(error))
        return FLModelUtils.to_shareable(codec.to_model(reply))

    def _load(self, session: Session) -> Patients:
        kit = session.kit
        if kit.policy is None:
            raise ConfigError(f"{kit.name} is the coordinator: it has no patient data")
        torch.set_num_threads(kit.policy.caps.threads)
        data = kit.policy.data
        source = kit.policy.resolve(kit.local, data.source)
        loaded = load_patients(plan.feature_contract(session.job), kit.mapping(session.job), data.connector, source)
        self.logger.info(f"data ready from {data.connector} (`cordon data check` tells what was rejected and why)")
        return loaded.patients

    def _train(self, session: Session, parts: dict[str, Any], payload: bytes, abort_signal: Signal) -> Shareable:
        # 1. Who sends: the coordinator's job process, attested for this site's challenge, within its lease.
        if not session.challenged_at:
            raise SignatureError("a model before the coordinator's challenge")
        if session.patients is None or session.layout is None or session.kit.policy is None:
            raise DataError("this site refused to train when it attested", "data_error")
        if session.coordinator_key is None or (session.nonce and "evidence" in parts):
            session.appraise_coordinator(parts.get("evidence"))
        session.require_coordinator()
        header = session.accept_model(parts, payload)
        model = messages.unpack("w", payload, session.layout.size)
        if not np.isfinite(model).all():
            raise SignatureError("the global model holds NaN or infinity")

        # 2. A ticket is served once; the last one repeated gets the same bytes. A round counts before its first step.
        if session.last_reply is not None and session.last_reply[0] == header.ticket:
            return session.last_reply[1]
        session.begin_round(header.ticket)

        # 3. One round of DP-SGD, then the clip to the public bound.
        job, unsafe = session.job, session.kit.policy.unsafe_poc
        y = session.patients.y
        if unsafe is not None:
            from cordon.flare import unsafe_poc  # not in production images

            y = unsafe_poc.labels(unsafe, y)
        module = models.build(job.executor.model, job.executor.model_args, session.patients.x.shape[1])
        models.set_vector(module, model)
        delta = train_round(
            module,
            session.patients.x,
            y,
            job.executor.dp,
            job.executor.learning_rate,
            should_stop=lambda: bool(abort_signal.triggered),
        )
        delta = clip_update(delta, job.controller.norm_bound)
        if unsafe is not None:
            delta = unsafe_poc.update(unsafe, delta)

        # 4. Sign what is sent. Nothing is released to a coordinator whose lease ended meanwhile: it gets these bytes,
        # which are spent, when it asks for the same ticket with fresh evidence.
        packed = messages.pack("delta", delta)
        update = messages.UpdateHeader(
            v=1,
            job=session.job_id,
            ticket=header.ticket,
            base_version=header.version,
            model_chain_head=header.model_chain_head,
            layout_digest=session.layout.digest,
            privacy=job.controller.privacy,
            dp_event=plan.round_event(job),
            payload_sha256=messages.sha256(packed),
        )
        envelope = messages.sign(session.keys.signing_key, update)
        reply = FLModelUtils.to_shareable(codec.to_model({"update": envelope}, packed))
        session.last_reply = (header.ticket, reply)
        session.require_coordinator()
        self.logger.info(f"round {session.rounds_used} from version {header.version} is ready")
        return reply


def refusal_code(error: CordonError) -> str:
    """The reason code that may leave the site for ``error`` (``messages.REFUSAL_REASONS``)."""
    if isinstance(error, AttestError) and error.failures[0][0] in (NOT_ATTESTED, NO_EVIDENCE):
        return error.failures[0][0]
    if isinstance(error, DataError):
        return error.code if error.code in messages.REFUSAL_REASONS else "data_error"
    for kind, code in (
        (PolicyRefused, "policy_refused"),
        (AttestError, "attestation_failed"),
        (SignatureError, "bad_message"),
        (UpdateRejected, "bad_message"),
        (PrivacyError, "plan_exhausted"),
    ):
        if isinstance(error, kind):
            return code
    return "site_error"


def _refuse(session: Session, code: str, parts: dict[str, Any]) -> Shareable:
    ticket = ""  # what a broken message leaves: the refusal then names none
    with contextlib.suppress(SignatureError):
        ticket = str(signing.unverified_body(parts.get("model")).get("ticket", ""))[:64]
    return FLModelUtils.to_shareable(codec.to_model({"refusal": _refusal(session, ticket, code)}))


def _refusal(session: Session, ticket: str, code: str) -> dict[str, Any]:
    return messages.sign(session.keys.signing_key, messages.Refusal(v=1, job=session.job_id, ticket=ticket, code=code))


def _wait_until(instant: float, abort_signal: Signal) -> None:
    while (left := instant - time.time()) > 0 and not abort_signal.triggered:
        time.sleep(min(left, 0.2))
