"""What a site's job process knows: opened at its first task, gone with the process.

Guards that must hold whatever the coordinator sends live here: one run per job id, rounds counted before the first
noisy step, each ticket served once, one chain of models, one coordinator process at a time and none that was replaced.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from nvflare.apis.fl_context import FLContext

from cordon import job as jobs
from cordon import messages, signing
from cordon.attest.appraise import EvidenceAppraisal, appraise
from cordon.attest.binding import Context, bundle_digest
from cordon.attest.keys import AttestedKeys, ProcessKeys
from cordon.data.harmonise import Patients
from cordon.errors import AttestError, BrokerUnavailable, PrivacyError, Refused, SignatureError
from cordon.flare import audit, plan
from cordon.flare.data_key import PASSING, DataKey
from cordon.flare.key_request import NO_EVIDENCE
from cordon.flare.kit import Kit, load_kit
from cordon.flare.masked_site import MaskedSite
from cordon.flare.model_chain import ModelChain
from cordon.params import Layout, Vector

RUNS = Path("cordon_state") / "jobs"  # in the kit; FLARE's own run folder is emptied at each deployment
NOT_ATTESTED = "coordinator_not_attested"
NO_KEY_NOW = "key_unavailable"
MENDABLE = frozenset({NOT_ATTESTED, NO_EVIDENCE, NO_KEY_NOW})
"""Refusals that say nothing about the next time: the coordinator asks again."""


@dataclass(frozen=True)
class Trained:
    """An update that this process holds until it gets a new ticket. Its plaintext leaves sealed only.

    ``header``: as far as the update goes; ``sealed_to``, ``payload_sha256`` and ``ledger`` are those of each sending.
    """

    header: messages.UpdateHeader
    plaintext: bytes = field(repr=False)


@dataclass
class Session:
    """``coordinator`` is pinned once its evidence passed and its model fits; ``patients``, ``layout`` are set where the
    site trains; ``data_key`` where its data lie in a vault."""

    kit: Kit
    job: jobs.Job
    job_id: str
    keys: ProcessKeys
    nonce: bytes = b""
    challenged_at: float = 0.0  # monotonic seconds
    coordinator: AttestedKeys | None = None
    coordinator_until: float = 0.0  # monotonic seconds: end of the lease of the coordinator's job process
    replaced: set[str] = field(default_factory=set)  # names of the keys of its earlier processes
    data_key: DataKey | None = None
    patients: Patients | None = field(default=None, repr=False)
    layout: Layout | None = None
    claimed: bool = False
    rounds_used: int = 0
    chain: ModelChain = field(default_factory=ModelChain)
    served: set[str] = field(default_factory=set)
    trained: Trained | None = None
    """The last one. Its ticket repeated gets the same plaintext, so that a re-send is never a second release."""
    local: Vector | None = field(default=None, repr=False)
    """The job's local parameters after the last round: they stay in this process."""
    masked: MaskedSite | None = None
    """Set in masked mode, once the site has taken the job: what it holds to in secure aggregation."""

    def claim(self) -> None:
        """Take this job id for this process, durably, before any data are loaded.

        Raises:
            PrivacyError: an earlier process had it. Its rounds may be spent, and only the plan of *one* run was judged;
                a coordinator could otherwise abort and start the same job again for more rounds than the plan has.
        """
        if self.claimed:
            return
        folder = self.kit.root / RUNS
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / self.job_id, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError as error:
            raise PrivacyError(f"job {self.job_id} already ran here; a new run needs a new job") from error
        os.fsync(descriptor)
        os.close(descriptor)
        self.claimed = True

    def begin_round(self, ticket: str) -> None:
        """Count a round and its ticket as used: before the first noisy step, so that an abort counts too."""
        if ticket in self.served:
            raise SignatureError("the ticket was served before and its update is gone: it is not trained twice")
        if self.rounds_used >= self.job.controller.rounds_per_site:
            raise PrivacyError(f"all {self.job.controller.rounds_per_site} rounds of the plan are used")
        self.served.add(ticket)
        self.rounds_used += 1

    def appraise_coordinator(self, evidence: Any) -> AttestedKeys:
        """The keys of the coordinator's job process, if its evidence answers this site's open challenge.

        They may be those of the process that is pinned (a renewal), or of a new one: keys are never stored, so a
        process that was started again has others. Not those of one that was replaced: two that take turns could have
        each of this site's updates mixed with other sites' updates twice.

        Raises:
            AttestError: it does not, or its keys are partly or wholly those of another process.
        """
        kit, nonce = self.kit, self.nonce
        self.nonce = b""  # single use: gone before it is checked
        if not nonce:
            raise AttestError([("no_challenge", "a model came without an answer to this site's challenge")])
        if time.monotonic() - self.challenged_at > kit.attest_policy.max_age_s:
            late = f"answered later than {kit.attest_policy.max_age_s:g} s after the challenge"
            raise AttestError([(NOT_ATTESTED, late)])  # no fault: it may answer a fresh challenge
        name = kit.study.coordinator.name
        mtls_key = kit.study.coordinator.mtls_key
        appraisal = judge_process(kit, self.job, self.job_id, name, mtls_key, nonce, evidence)
        keys = appraisal.process_keys  # raises unless the verdict is pass
        if not self.replaced.isdisjoint(keys.names):
            raise AttestError([("process_keys", "evidence of a process of the coordinator that was replaced")])
        pinned = self.coordinator
        if pinned is not None and pinned != keys and not set(pinned.names).isdisjoint(keys.names):
            raise AttestError(
                [("process_keys", "one key is that of the process pinned for this job, the other is not")]
            )
        return keys

    def meet(self, parts: Mapping[str, Any]) -> AttestedKeys:
        """The coordinator's keys for a message without a model; its evidence, if it comes along, is judged first.

        The first process may be met so, or the pinned one again. Another one is pinned with a model only: what tells a
        new process from an older copy is that it continues the chain.
        """
        if self.coordinator is None or (self.nonce and "evidence" in parts):
            self.require_parent()
            keys = self.appraise_coordinator(parts.get("evidence"))
            if self.coordinator not in (None, keys):
                raise SignatureError("another process of the coordinator, without a model of the chain")
            self.pin(keys)
        return self.require_coordinator()

    def pin(self, keys: AttestedKeys) -> None:
        """From now on these are the coordinator's; those of the process before are refused for good."""
        if self.coordinator is not None and self.coordinator != keys:
            self.replaced.update(self.coordinator.names)
        self.coordinator = keys
        self.coordinator_until = time.monotonic() + self.kit.attest_policy.lease_s

    def require_coordinator(self) -> AttestedKeys:
        """The coordinator's keys; AttestError unless its parent and job process both hold a live lease here, now."""
        self.require_parent()
        if self.coordinator is None or time.monotonic() >= self.coordinator_until:
            name = self.kit.study.coordinator.name
            raise AttestError([(NOT_ATTESTED, f"the job process of {name} has not renewed its evidence")])
        return self.coordinator

    def require_parent(self) -> None:
        """AttestError unless the coordinator's parent process holds a live lease at this site, now."""
        name, now = self.kit.study.coordinator.name, datetime.now(UTC)
        standing = self.kit.standing(name)
        if not standing.live(now):
            raise AttestError([(NOT_ATTESTED, f"{name}: {standing.said(now)}")])

    def hold_data_key(self) -> DataKey:
        """The key of the site's vault under a live lease: the one that is held, or one that its broker releases now.

        Raises:
            Refused, BrokerUnavailable, VaultError ...: as ``DataKey.acquire``.
        """
        held = self.data_key
        try:
            self.require_data_key()
        except BrokerUnavailable:  # the lease ran out while the broker was silent: asked anew, it may release again
            self.close()
            held = None
        if held is None:  # the one that ran out stays until there is another: without, nothing would hold updates back
            try:
                held = DataKey.acquire(self.kit, self.job, self.job_id, self.keys)
            except Refused as error:
                if error.code not in PASSING:
                    self.patients = self.trained = None
                raise
            self.data_key = held
        return held

    def require_data_key(self) -> None:
        """Raise Refused or BrokerUnavailable unless the lease of the site's data key is live, now; where it has one.

        Refused is final: the process lets go of the data and of what it made of them.
        """
        if self.data_key is None:
            return
        try:
            self.data_key.require()
        except Refused:
            self.patients = self.trained = None
            raise

    def close(self) -> None:
        """The data key and its lease end with the job."""
        if self.data_key is not None:
            self.data_key.close()

    def accept_model(
        self, parts: Mapping[str, Any], payload: bytes, keys: AttestedKeys
    ) -> tuple[messages.ModelHeader, Vector]:
        """(header, model) of a global model of this job, from the holder of ``keys``, that continues the chain so far.

        Raises:
            SignatureError: not signed by that process, not for this job, or off the chain.
            UpdateRejected: the payload is not the signed one, not sealed to this process under this header, no model.
        """
        # 1. The message: signed, of this job, sealed to this process.
        if self.layout is None:
            raise SignatureError("a model before this site attested")
        header = messages.verify(parts.get("model"), messages.ModelHeader, keys.signing_key, datetime.now(UTC))
        if header.job != self.job_id or header.layout_digest != self.layout.digest:
            raise SignatureError("model is of another job or layout")
        packed = messages.open_payload(header, payload, self.keys.kem_key)

        # 2. The next on the one chain of models, or the newest once more.
        first = "" if self.chain.models else self.first_model()
        chain = self.chain.follow(header, parts.get("links"), messages.sha256(packed), first)

        # 3. The model itself.
        model = messages.unpack("w", packed, self.layout.size)
        if not np.isfinite(model).all():
            raise SignatureError("the global model holds NaN or infinity")
        self.chain = chain
        return header, model

    def seal_update(self, coordinator: AttestedKeys) -> tuple[dict[str, Any], bytes]:
        """(signed header, payload) of the update that this process holds, for ``coordinator`` alone to open.

        Raises:
            PrivacyError: a masked job: its updates leave under masks, with their share of noise, or not at all.
        """
        if self.job.controller.masked is not None:
            raise PrivacyError("this job is masked: no update of one site leaves it")
        if self.trained is None:
            raise SignatureError("there is no update to send")
        ledger = None if self.data_key is None else self.data_key.ledger
        header = msgspec.structs.replace(self.trained.header, sealed_to=coordinator.names[1], ledger=ledger)
        signed, sealed = messages.seal(header, self.trained.plaintext, coordinator.kem_key)
        return messages.sign(self.keys.signing_key, signed), sealed

    def first_model(self) -> str:
        """SHA-256 of the packed version 0."""
        return messages.sha256(messages.pack("w", plan.first_model(self.job)))


def open_session(fl_ctx: FLContext) -> Session:
    """The session of this job process, with fresh keys."""
    job, job_id, root = load_job(fl_ctx)
    return Session(kit=load_kit(root, datetime.now(UTC)), job=job, job_id=job_id, keys=ProcessKeys.generate())


def load_job(fl_ctx: FLContext) -> tuple[jobs.Job, str, Path]:
    """(job as deployed in this run, FLARE's job id, kit root)."""
    job_id = fl_ctx.get_job_id()
    workspace = fl_ctx.get_engine().get_workspace()
    meta = json.loads(Path(workspace.get_job_meta_path(job_id)).read_text())
    job = jobs.from_folder(str(meta["name"]), Path(workspace.get_app_config_dir(job_id)))
    return job, job_id, Path(workspace.get_root_dir())


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


def judge_process(
    kit: Kit, job: jobs.Job, job_id: str, peer: str, mtls_key: signing.PublicKey, nonce: bytes, evidence: Any
) -> EvidenceAppraisal:
    """The verdict on the evidence of ``peer``'s job process, written down in the kit; both sides judge so.

    Args:
        mtls_key: of ``peer``, from the signed study contract.
        nonce: this side's challenge, already used up.
    """
    now = datetime.now(UTC)
    appraisal = appraise(
        evidence,
        nonce=nonce,
        context=job_context(kit, job, job_id, peer, kit.attest_policy_digest),
        mtls_key=mtls_key,
        trust=kit.fresh_trust()[0],
        now=now,
    )
    passed = appraisal.verdict == "pass"
    audit.append(
        kit.root,
        now,
        peer=peer,
        job=job_id,
        verdict=appraisal.verdict,
        kind=appraisal.type,
        state="attested" if passed else "unattested",
        lease_until=now + timedelta(seconds=kit.attest_policy.lease_s) if passed else None,
        policy_digest=kit.attest_policy_digest,
        codes=appraisal.codes,
        evidence=evidence,
    )
    return appraisal
