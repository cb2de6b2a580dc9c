"""Asking a hospital's key broker for the data key, once: the request, and every check of the answer.

::

    challenge(job) -> nonce, policy digest
    evidence with purpose "release" over that nonce (same ProcessKeys as the job's evidence) + signed KeyRequest
    release -> {lease, ledger head, receipt: signed by the broker_key of the study contract} + key sealed to our KEM key

What the broker says of itself counts for nothing: its signing key comes from the study contract, its TLS key from the
site's signed policy, and every field of the lease must be what was asked. An answer that does not fit is no answer
(BrokerUnavailable): whoever gave it was not the hospital's broker, or not in answer to this.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from cordon import messages, signing
from cordon.attest.appraise import make_evidence
from cordon.attest.binding import Context, bundle_digest
from cordon.attest.keys import ProcessKeys
from cordon.broker.gate import LEASE_TYPE, RECEIPT_TYPE, REQUEST_TYPE, KeyRequest, Lease, Plan, Receipt
from cordon.broker.protocol import WRAP_PURPOSE, Challenge, LeaseState, Release, wrap_context
from cordon.documents import Document, body_of
from cordon.errors import AttestError, BrokerUnavailable, ConfigError, SignatureError
from cordon.flare import key_records, plan
from cordon.flare.kit import Kit
from cordon.job import Job
from cordon.messages import LedgerHead
from cordon.sealing import open_sealed
from cordon.vault_stamp import Stamp

NO_EVIDENCE = "evidence_unavailable"
TIMEOUT_S = 10.0  # of one request to the broker
MAX_LEASE_S = 24 * 3600.0

EVIDENCE_LOCK = threading.Lock()
"""Held while evidence is made: a renewal's thread and the job's own use the same devices, and a vTPM has one slot."""

T = TypeVar("T", bound=Document)


class Broker(Protocol):
    """What is asked of a broker (``broker.client.BrokerClient``).

    All raise Refused (with its reason code) or BrokerUnavailable.
    """

    def challenge(self, job: str) -> Challenge: ...

    def release(self, evidence: dict[str, Any], request: dict[str, Any]) -> Release: ...

    def lease_state(self, lease: str) -> LeaseState: ...

    def close(self) -> None: ...


def connect(kit: Kit) -> Broker:
    """The broker that the kit's policy names; no certificate authority is asked who it is."""
    from cordon.broker.client import BrokerClient

    if kit.policy is None or kit.policy.broker is None:
        raise ConfigError(f"{kit.root}: the site's policy names no broker")
    startup, where = kit.root / "startup", kit.policy.broker
    return BrokerClient(where.url, where.spki, startup / "client.crt", startup / "client.key", timeout_s=TIMEOUT_S)


@dataclass(frozen=True)
class Granted:
    """A verified answer, without the key. ``until``: end of the lease on our clock; ``lasts``: length in seconds."""

    lease: Lease
    ledger: dict[str, Any]
    receipt: dict[str, Any]
    until: float
    lasts: float


@dataclass(frozen=True)
class Asking:
    """What all requests of one job's process have in common.

    ``path``, ``stamp``: the vault, and its stamp as computed from the file. ``now``: time of day, for the records.
    ``clock``: seconds, only ever forward; leases are measured on it.
    """

    kit: Kit = field(repr=False)
    job: Job
    job_id: str
    keys: ProcessKeys
    path: Path
    stamp: Stamp
    broker: Broker
    now: Callable[[], datetime]
    clock: Callable[[], float]

    def ask(self, renews: str | None = None) -> tuple[Granted, bytes]:
        """A lease, and the vault's key.

        Raises:
            Refused: by the broker; or ``ledger_rolled_back``, by this kit.
            BrokerUnavailable: no answer, or one that is not the contract's broker's, or not to this request.
            SealError: the key in the answer does not open.
            AttestError: ``evidence_unavailable``: this machine's device makes none at the moment.
            ConfigError: the kit's records cannot be kept.
        """
        kit, seen = self.kit, key_records.seen_head(self.kit.root)
        challenge = self.broker.challenge(self.job_id)
        context = Context(
            purpose="release",
            site=kit.name,
            study=kit.study.digest,
            job=self.job_id,
            job_digest=self.job.digest,
            bundle_digest=bundle_digest(),
            policy_digest=challenge.policy_digest,
        )
        try:
            with EVIDENCE_LOCK:
                evidence = make_evidence(kit.attester, context, challenge.nonce, self.keys, kit.mtls_key)
        except ConfigError as error:  # a device that is busy, or a GPU that left confidential computing mode
            raise AttestError([(NO_EVIDENCE, str(error))]) from error
        request = KeyRequest(
            v=1,
            site=kit.name,
            study=kit.study.digest,
            job=self.job_id,
            job_digest=self.job.digest,
            nonce=challenge.nonce,
            stamp=self.stamp,
            plan=Plan(dp_event=plan.round_event(self.job, kit.policy), rounds=self.job.controller.rounds_per_site),
            renews=renews,
        )
        started = self.clock()  # before it is sent: the lease never ends later here than at the broker
        release = self.broker.release(evidence, signing.sign(self.keys.signing_key, REQUEST_TYPE, body_of(request)))
        evidence_sha256 = hashlib.sha256(evidence["payload"].encode()).digest()

        # 1. Signed by the broker that the contract names, and about what was asked.
        lease = self._lease(release, request)
        receipt = self._signed(release.receipt, Receipt, RECEIPT_TYPE)
        told = (receipt.decision, receipt.lease, receipt.job, receipt.evidence_sha256)
        if told != ("released", lease.lease, self.job_id, evidence_sha256.hex()):
            raise _strange(f"its receipt is about another decision: {receipt.decision}, lease {receipt.lease}")

        # 2. By a broker that has forgotten nothing.
        key_records.remember_head(kit.root, self._head(release, lease), release.ledger, seen)

        # 3. Opens with this process's key, for just this evidence and lease.
        bound = wrap_context(request, context.canonical(), evidence_sha256, signing.canonical(body_of(lease)))
        key = open_sealed(release.wrapped, self.keys.kem_key, WRAP_PURPOSE, *bound)
        lasts = (lease.expires - lease.granted).total_seconds()
        return Granted(lease, release.ledger, release.receipt, started + lasts, lasts), key

    def _lease(self, release: Release, request: KeyRequest) -> Lease:
        lease = self._signed(release.lease, Lease, LEASE_TYPE)
        asked = {name: getattr(request, name) for name in ("site", "study", "job", "job_digest", "stamp")}
        asked["signing_key"] = signing.spki_digest(self.keys.signing_key.public_key())
        if others := [name for name, value in asked.items() if getattr(lease, name) != value]:
            raise _strange(f"its lease is for another {', '.join(others)} than was asked for")
        if lease.granted.tzinfo is None or lease.expires.tzinfo is None:
            raise _strange("its lease has times without a time zone")
        lasts = (lease.expires - lease.granted).total_seconds()
        if not 0 < lasts <= MAX_LEASE_S:
            raise _strange(f"its lease lasts {lasts:g} s, want more than 0 and at most {MAX_LEASE_S:g}")
        return lease

    def _head(self, release: Release, lease: Lease) -> LedgerHead:
        key = self.kit.study.hospital(self.kit.name).broker_key
        try:
            head = messages.verify(release.ledger, LedgerHead, key, self.now())
        except SignatureError as error:
            raise _strange(f"its ledger head does not verify by the contract's broker_spki: {error}") from error
        if head != lease.ledger:
            raise _strange("its ledger head is another than the one in its lease")
        return head

    def _signed(self, envelope: dict[str, Any], schema: type[T], payload_type: str) -> T:
        key = self.kit.study.hospital(self.kit.name).broker_key
        try:
            body, _ = signing.verify(envelope, payload_type, [key], self.now())
            return msgspec.convert(body, schema, strict=True)
        except (SignatureError, msgspec.ValidationError) as error:
            what = schema.__name__.lower()
            raise _strange(f"its {what} does not verify by the contract's broker_spki: {error}") from error


def _strange(why: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"the broker did not answer as the hospital's: {why}")
