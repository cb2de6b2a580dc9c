"""A hospital's side of a job: attest, train under differential privacy, sign, send at the tick.

Tasks (names are the job's):

* ``attest``: the coordinator's challenge. Reply: this job process's evidence (its keys live and die with the job), this
  site's own challenge, and, if its data or policy forbids training, a signed refusal with a reason code.
* ``train``: a signed global model under a ticket. Reply: the clipped, noised, signed delta; or a signed refusal.

The first ``train`` brings the coordinator's evidence for this site's challenge; its signing key is pinned for the job.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from cordon import job as jobs
from cordon import messages, models, signing
from cordon.attest.appraise import appraise, make_evidence
from cordon.attest.binding import NONCE_BYTES, Context, bundle_digest
from cordon.attest.keys import ProcessKeys
from cordon.data.harmonise import Patients
from cordon.data.load import load_patients
from cordon.dp.train import clip_update, train_round
from cordon.errors import AttestError, ConfigError, CordonError, DataError, PolicyRefused, PrivacyError, SignatureError
from cordon.flare import codec, plan
from cordon.flare.kit import Kit, load_kit
from cordon.params import Layout

ATTEST_TASK = "attest"
TRAIN_TASK = "train"


@dataclass
class Session:
    """What a job process at a site knows; made at the first task, gone with the process."""

    kit: Kit
    job: jobs.Job
    job_id: str
    keys: ProcessKeys
    nonce: bytes = b""
    challenged_at: float = 0.0  # monotonic seconds
    coordinator_key: signing.PublicKey | None = None
    patients: Patients | None = None
    layout: Layout | None = None
    rounds_used: int = 0
    version: int = -1
    head: str = ""
    sent: dict[str, Shareable] = field(default_factory=dict)
    """ticket -> reply: a repeated ticket gets the identical bytes, so that a re-send is never a second release."""


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
            parts, payload = codec.from_model(FLModelUtils.from_shareable(shareable))
            if self._session is None:
                self._session = _open_session(fl_ctx)
            if task_name == ATTEST_TASK:
                return self._attest(self._session, parts, fl_ctx)
            if task_name == TRAIN_TASK:
                return self._train(self._session, parts, payload, fl_ctx, abort_signal)
        except CordonError as error:
            if abort_signal.triggered:
                return make_reply(ReturnCode.TASK_ABORTED)
            self.log_error(fl_ctx, f"{task_name}: {type(error).__name__}: {error}")
            if self._session is None:
                return make_reply(ReturnCode.EXECUTION_EXCEPTION)
            return self._refuse(self._session, refusal_code(error), parts)
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _attest(self, session: Session, parts: dict[str, Any], fl_ctx: FLContext) -> Shareable:
        session.nonce, session.challenged_at = secrets.token_bytes(NONCE_BYTES), time.monotonic()
        evidence = make_evidence(
            session.kit.attester,
            job_context(session.kit, session.job, session.job_id, session.kit.name, parts.get("policy_digest", "")),
            codec.nonce(parts),
            session.keys,
            session.kit.mtls_key,
        )
        reply: dict[str, Any] = {
            "evidence": evidence,
            "nonce": base64.b64encode(session.nonce).decode(),
            "policy_digest": session.kit.attest_policy_digest,
        }
        try:
            plan.judge_job(session.kit, session.job)
            session.layout = plan.layout(session.job)
            session.patients = self._load(session, fl_ctx)
        except CordonError as error:
            self.log_error(fl_ctx, f"this site does not train: {type(error).__name__}: {error}")
            reply["refusal"] = _refusal(session, "", refusal_code(error))
        return FLModelUtils.to_shareable(codec.to_model(reply))

    def _load(self, session: Session, fl_ctx: FLContext) -> Patients:
        kit = session.kit
        if kit.policy is None:
            raise ConfigError(f"{kit.name} is the coordinator: it has no patient data")
        data = kit.policy.data
        source = kit.policy.resolve(kit.root / "local", data.source)
        mapping = kit.mapping(session.job)
        loaded = load_patients(plan.feature_contract(session.job), mapping, data.connector, source)
        rejected = sum(loaded.conservation.rejected.values())
        self.log_info(fl_ctx, f"data ready from {data.connector}; {rejected} rows rejected (see `cordon data check`)")
        return loaded.patients

    def _train(
        self, session: Session, parts: dict[str, Any], payload: bytes, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        started = time.time()
        if session.patients is None or session.layout is None:
            raise DataError("this site refused to train when it attested", "data_error")
        # 1. Who sends: the coordinator's job process, attested for this site's challenge, once per job.
        if session.coordinator_key is None:
            session.coordinator_key = _appraise_coordinator(session, parts.get("evidence"))
        header = _model_header(session, parts.get("model"), payload)

        # 2. A ticket is served once; the same ticket again gets the same bytes.
        if header.ticket in session.sent:
            return session.sent[header.ticket]
        job = session.job
        if session.rounds_used >= job.controller.rounds_per_site:
            raise PrivacyError(f"all {job.controller.rounds_per_site} rounds of the plan are used")

        # 3. One round of DP-SGD, then the clip to the public bound. The round counts before its first noisy step.
        session.rounds_used += 1
        unsafe = session.kit.policy.unsafe_poc if session.kit.policy else None
        y = session.patients.y
        if unsafe is not None:
            from cordon.flare import unsafe_poc

            y = unsafe_poc.labels(unsafe, y)
        module = models.build(job.executor.model, job.executor.model_args, session.patients.x.shape[1])
        models.set_vector(module, messages.unpack("w", payload, session.layout.size))
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

        # 4. Sign, wait for the tick (a finish time would tell the site's size), send.
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
        session.sent = {header.ticket: reply}
        delay = unsafe.extra_delay_s if unsafe is not None else 0.0
        _wait_until(session.kit.study.next_tick(time.time() + delay), abort_signal)
        self.log_info(
            fl_ctx, f"round {session.rounds_used} from version {header.version}: {time.time() - started:.1f} s"
        )
        return reply

    def _refuse(self, session: Session, code: str, parts: dict[str, Any]) -> Shareable:
        ticket = ""  # what a broken message leaves: the refusal then names none
        with contextlib.suppress(SignatureError):
            ticket = str(signing.unverified_body(parts.get("model")).get("ticket", ""))[:64]
        return FLModelUtils.to_shareable(codec.to_model({"refusal": _refusal(session, ticket, code)}))


def refusal_code(error: CordonError) -> str:
    """The reason code that may leave the site for ``error`` (``messages.REFUSAL_REASONS``)."""
    if isinstance(error, DataError):
        return error.code if error.code in messages.REFUSAL_REASONS else "data_error"
    for kind, code in (
        (PolicyRefused, "policy_refused"),
        (AttestError, "attestation_failed"),
        (SignatureError, "bad_message"),
        (PrivacyError, "plan_exhausted"),
    ):
        if isinstance(error, kind):
            return code
    return "site_error"


def job_context(kit: Kit, job: jobs.Job, job_id: str, site: str, policy_digest: str) -> Context:
    """What the evidence of ``site``'s job process is about."""
    return Context(
        purpose="job",
        site=site,
        study=kit.study.digest,
        job=job_id,
        job_digest=job.digest,
        bundle_digest=bundle_digest(),
        policy_digest=policy_digest,
    )


def load_job(fl_ctx: FLContext) -> tuple[jobs.Job, str, Path]:
    """(job as deployed in this run, FLARE's job id, kit root)."""
    job_id = fl_ctx.get_job_id()
    workspace = fl_ctx.get_engine().get_workspace()
    meta = json.loads(Path(workspace.get_job_meta_path(job_id)).read_text())
    job = jobs.from_folder(str(meta["name"]), Path(workspace.get_app_config_dir(job_id)))
    return job, job_id, Path(workspace.get_root_dir())


def _open_session(fl_ctx: FLContext) -> Session:
    job, job_id, root = load_job(fl_ctx)
    kit = load_kit(root, datetime.now(UTC))
    if kit.policy is not None:
        import torch

        torch.set_num_threads(kit.policy.caps.threads)
    return Session(kit=kit, job=job, job_id=job_id, keys=ProcessKeys.generate())


def _appraise_coordinator(session: Session, evidence: Any) -> signing.PublicKey:
    kit, nonce = session.kit, session.nonce
    session.nonce = b""  # single use: gone before it is checked
    if not nonce:
        raise AttestError([("no_challenge", "the coordinator sent a model without answering this site's challenge")])
    if time.monotonic() - session.challenged_at > kit.attest_policy.max_age_s:
        raise AttestError([("nonce", f"answered later than {kit.attest_policy.max_age_s:g} s after the challenge")])
    appraisal = appraise(
        evidence,
        nonce=nonce,
        context=job_context(kit, session.job, session.job_id, kit.study.coordinator.name, kit.attest_policy_digest),
        mtls_key=kit.study.coordinator.mtls_key,
        policy=kit.attest_policy,
        roots=kit.attest_roots,
        now=datetime.now(UTC),
    )
    return appraisal.signing_key  # raises unless the verdict is pass


def _model_header(session: Session, envelope: Any, payload: bytes) -> messages.ModelHeader:
    """The verified header of a global model; it must be of this job and lie on the chain seen so far."""
    if session.coordinator_key is None or session.layout is None:
        raise SignatureError("a model before the coordinator was appraised")
    header = messages.verify(envelope, messages.ModelHeader, session.coordinator_key, datetime.now(UTC))
    if header.job != session.job_id or header.layout_digest != session.layout.digest:
        raise SignatureError("model is of another job or layout")
    if header.payload_sha256 != messages.sha256(payload):
        raise SignatureError("model is not the signed one")
    # Showing different sites different models would let a coordinator read one site's update out of the next version.
    if header.version < session.version or (
        header.version == session.version and header.model_chain_head != session.head
    ):
        raise SignatureError(f"model version {header.version} is not on the chain seen at version {session.version}")
    if header.version == session.version + 1 and session.version >= 0:
        want = messages.chain_head(session.head, header.version, header.payload_sha256)
        if header.model_chain_head != want:
            raise SignatureError(f"model version {header.version} does not continue the chain")
    session.version, session.head = header.version, header.model_chain_head
    return header


def _refusal(session: Session, ticket: str, code: str) -> dict[str, Any]:
    return messages.sign(session.keys.signing_key, messages.Refusal(v=1, job=session.job_id, ticket=ticket, code=code))


def _wait_until(instant: float, abort_signal: Signal) -> None:
    while (left := instant - time.time()) > 0 and not abort_signal.triggered:
        time.sleep(min(left, 0.2))
