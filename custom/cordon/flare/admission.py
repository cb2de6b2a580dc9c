"""The coordinator's view of the sites of one job: who showed evidence, with which key, and for how much longer.

A site takes part while two things hold: its *job process* showed evidence (its keys sign this job's updates and open
this job's models), renewed before the lease ends; and its *parent process* stands attested with the coordinator's
parent (``Kit.standing``). A site whose parent loses its lease gets no ticket and its updates don't count, until it has
one again. A job process whose own evidence fails is out of this job; whether the site gets the next one is its parent's
matter. No other site is touched.
"""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cordon import job as jobs
from cordon.attest.appraise import EvidenceAppraisal, make_evidence
from cordon.attest.binding import NONCE_BYTES
from cordon.attest.keys import AttestedKeys, ProcessKeys
from cordon.errors import AttestError, SignatureError
from cordon.flare import codec
from cordon.flare.kit import Kit
from cordon.flare.session import job_context, judge_process

MIN_LEASE_S, MAX_LEASE_S = 5.0, 86400.0


@dataclass
class Peer:
    """A site as this job knows it. Times are monotonic seconds."""

    name: str
    nonce: bytes = b""  # the open challenge, if there is one
    challenged_at: float = 0.0
    overdue: bool = False  # the open challenge was not answered in time
    ask_at: float | None = None  # when to challenge a site that could not trust the coordinator
    keys: AttestedKeys | None = None
    renew_at: float = 0.0
    lease_until: float = 0.0
    held: str = ""  # why its parent process is not attested, '' if it is
    out: bool = False  # excluded, and said so
    version: int = -1  # the last model that it has certainly seen
    resend: bool = False  # its open ticket is to be sent again once its evidence is fresh
    waiting: Any = None  # an answer that came after the lease ended: it counts if the renewal passes
    evidence: dict[str, Any] | None = None
    """The coordinator's own evidence for this site's challenge, sent along until the site has used it."""

    def leased(self, now: float) -> bool:
        """Whether it may have a ticket."""
        return self.keys is not None and now < self.lease_until and not self.held


class Admission:
    """Challenges and judges the job processes of the sites, and makes this job process's own evidence."""

    def __init__(self, kit: Kit, job: jobs.Job, job_id: str, keys: ProcessKeys) -> None:
        self._kit, self._job, self._job_id, self._keys = kit, job, job_id, keys

    def challenge(self, peer: Peer) -> dict[str, Any]:
        """The parts of a fresh challenge to ``peer``; whatever came before is void."""
        peer.nonce, peer.challenged_at, peer.overdue = secrets.token_bytes(NONCE_BYTES), time.monotonic(), False
        peer.ask_at = peer.evidence = None  # the site's own challenge before this one is void, so the answer to it too
        return {"nonce": base64.b64encode(peer.nonce).decode(), "policy_digest": self._kit.attest_policy_digest}

    def late(self, peer: Peer) -> bool:
        """Whether an answer to the open challenge of ``peer`` would come too late to count."""
        return bool(peer.nonce) and time.monotonic() - peer.challenged_at > self._kit.attest_policy.max_age_s

    def judge(self, peer: Peer, parts: dict[str, Any]) -> EvidenceAppraisal:
        """The verdict on an answer. The challenge is used up before it is looked at."""
        nonce, peer.nonce = peer.nonce, b""
        mtls_key = self._kit.study.hospital(peer.name).mtls_key
        return judge_process(self._kit, self._job, self._job_id, peer.name, mtls_key, nonce, parts.get("evidence"))

    def admit(self, peer: Peer, appraisal: EvidenceAppraisal, parts: dict[str, Any]) -> None:
        """Give ``peer`` a lease, and answer its own challenge.

        Raises:
            AttestError: the verdict is not pass, or a renewal came with other keys: another process.
            SignatureError: the answer holds no challenge of the site's.
        """
        keys = appraisal.process_keys  # raises unless the verdict is pass
        if peer.keys not in (None, keys):
            raise AttestError([("process_keys", "the renewal is of another process than the one attested first")])
        peer.evidence = make_evidence(
            self._kit.attester,
            job_context(self._kit, self._job, self._job_id, self._kit.name, codec.policy_digest(parts)),
            codec.nonce(parts),
            self._keys,
            self._kit.mtls_key,
        )
        now, lease = time.monotonic(), min(self._kit.attest_policy.lease_s, _lease_s(parts))
        peer.keys, peer.renew_at, peer.lease_until = keys, now + lease * 2 / 3, now + lease

    def renewal_due(self, peer: Peer, now: float) -> bool:
        """Whether ``peer``, idle, should show fresh evidence before its next ticket."""
        return peer.keys is not None and not peer.nonce and now >= peer.renew_at

    def parent_standing(self, peer: Peer) -> str:
        """Why the parent process of ``peer`` is not attested now; '' if it is."""
        standing, now = self._kit.standing(peer.name), datetime.now(UTC)
        return "" if standing.live(now) else standing.said(now)


def _lease_s(parts: dict[str, Any]) -> float:
    """How long the site itself trusts this coordinator's evidence; its policy may want it sooner than ours."""
    value = parts.get("lease_s")
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_LEASE_S <= value <= MAX_LEASE_S:
        raise SignatureError("the message names no lease")
    return float(value)
