"""What a site's job process knows: opened at its first task, gone with the process.

Guards that must hold whatever the coordinator sends live here: one run per job id, rounds counted before the first
noisy step, each ticket served once, one chain of models.
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

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from cordon import job as jobs
from cordon import messages, models, signing
from cordon.attest.appraise import EvidenceAppraisal, appraise
from cordon.attest.binding import Context, bundle_digest
from cordon.attest.keys import ProcessKeys
from cordon.data.harmonise import Patients
from cordon.errors import AttestError, PrivacyError, SignatureError
from cordon.flare import audit, plan
from cordon.flare.kit import Kit, load_kit
from cordon.params import Layout

RUNS = Path("cordon_state") / "jobs"  # in the kit; FLARE's own run folder is emptied at each deployment
MAX_LINKS = 100_000
NOT_ATTESTED, NO_EVIDENCE = "coordinator_not_attested", "evidence_unavailable"


@dataclass
class Session:
    """``coordinator_key`` is pinned once appraised; ``patients`` and ``layout`` are set where the site trains."""

    kit: Kit
    job: jobs.Job
    job_id: str
    keys: ProcessKeys
    nonce: bytes = b""
    challenged_at: float = 0.0  # monotonic seconds
    coordinator_key: signing.PublicKey | None = None
    coordinator_until: float = 0.0  # monotonic seconds: end of the lease of the coordinator's job process
    patients: Patients | None = None
    layout: Layout | None = None
    claimed: bool = False
    rounds_used: int = 0
    version: int = -1
    head: str = ""
    payload_sha256: str = ""
    served: set[str] = field(default_factory=set)
    last_reply: tuple[str, Shareable] | None = None
    """(ticket, reply): a repeated ticket gets the identical bytes, so that a re-send is never a second release."""

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

    def appraise_coordinator(self, evidence: Any) -> None:
        """Pin the coordinator's signing key, or renew its lease, if its evidence answers this site's open challenge.

        Raises:
            AttestError: it does not, or the renewal is of another process than the one that was pinned.
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
        key = appraisal.signing_key  # raises unless the verdict is pass
        if self.coordinator_key is not None and signing.spki_digest(key) != signing.spki_digest(self.coordinator_key):
            raise AttestError([("process_keys", "evidence of another process than the one pinned for this job")])
        self.coordinator_key, self.coordinator_until = key, time.monotonic() + kit.attest_policy.lease_s

    def require_coordinator(self) -> None:
        """AttestError unless the coordinator's parent and job process both hold a live lease at this site, now."""
        name, now = self.kit.study.coordinator.name, datetime.now(UTC)
        standing = self.kit.standing(name)
        if not standing.live(now):
            raise AttestError([(NOT_ATTESTED, f"{name}: {standing.said(now)}")])
        if self.coordinator_key is None or time.monotonic() >= self.coordinator_until:
            raise AttestError([(NOT_ATTESTED, f"the job process of {name} has not renewed its evidence")])

    def accept_model(self, parts: Mapping[str, Any], payload: bytes) -> messages.ModelHeader:
        """The verified header of a global model of this job that continues the chain seen so far; SignatureError else.

        Showing sites different models would let a coordinator read one site's update out of the next version. So every
        model must lie on one chain: from the public first model on, each link is recomputed here.
        """
        if self.coordinator_key is None or self.layout is None:
            raise SignatureError("a model before the coordinator was appraised")
        header = messages.verify(parts.get("model"), messages.ModelHeader, self.coordinator_key, datetime.now(UTC))
        if header.job != self.job_id or header.layout_digest != self.layout.digest:
            raise SignatureError("model is of another job or layout")
        if header.payload_sha256 != messages.sha256(payload):
            raise SignatureError("model is not the signed one")
        if header.version < self.version:
            raise SignatureError(f"model version {header.version} is older than {self.version}, which was seen")
        head, last = self.head, self.payload_sha256
        for number, digest in enumerate(_links(parts.get("links"), self.version, header.version), self.version + 1):
            if number == 0 and digest != self._first_model():
                raise SignatureError("the chain does not begin with the job's public first model")
            head, last = messages.chain_head(head, number, digest), digest
        if head != header.model_chain_head or last != header.payload_sha256:
            raise SignatureError(f"model version {header.version} does not continue the chain seen at {self.version}")
        self.version, self.head, self.payload_sha256 = header.version, head, last
        return header

    def _first_model(self) -> str:
        """SHA-256 of the payload of version 0: MONAI's initialisation under the job's public seed."""
        asks, features = self.job.executor, plan.feature_contract(self.job).features
        seed = self.job.controller.init_seed
        return messages.sha256(
            messages.pack("w", models.initial_vector(asks.model, asks.model_args, len(features), seed))
        )


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


def _links(links: Any, seen: int, wanted: int) -> list[str]:
    """Payload digests of versions ``seen`` + 1 to ``wanted`` out of ``{"after": version, "sha256": [...]}``."""
    after, digests = (links.get("after"), links.get("sha256")) if isinstance(links, dict) else (None, None)
    if not isinstance(after, int) or not isinstance(digests, list) or len(digests) > MAX_LINKS:
        raise SignatureError("the message holds no links of the model chain")
    if not -1 <= after <= seen or after + len(digests) != wanted or not all(isinstance(each, str) for each in digests):
        raise SignatureError(f"links of the model chain do not lead from version {seen} to {wanted}")
    return digests[seen - after :]
