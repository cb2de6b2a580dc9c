"""One decision about a key: README.md, "Decision", step by step."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import messages, sealing, signing
from cordon.attest.appraise import EvidenceAppraisal
from cordon.attest.binding import Context
from cordon.attest.verdict import printable
from cordon.broker import challenges, clock, decide, ledger, receipts, revocation, vaults
from cordon.broker.decide import Case, Verifier
from cordon.broker.gate import LEASE_TYPE, BudgetGate, KeyRequest
from cordon.broker.keys import KeyEncryption
from cordon.broker.protocol import WRAP_PURPOSE, Release, ReleaseRequest, wrap_context
from cordon.broker.state import State
from cordon.documents import body_of
from cordon.errors import Refused


@dataclass(frozen=True)
class _Ready:
    """A request that passed, with the vault's key fetched in advance."""

    request: KeyRequest
    appraisal: EvidenceAppraisal
    context: Context
    measurements: frozenset[str]
    registered: vaults.Registered | None
    key: bytes | None = field(repr=False)


class Decider:
    """Decides for one tenant. ``key``: the broker's long-lived one."""

    def __init__(
        self,
        tenant: str,
        state: State,
        keys: KeyEncryption,
        key: Ed25519PrivateKey,
        verifier: Verifier,
        gate: BudgetGate,
    ) -> None:
        self._tenant = tenant
        self._state = state
        self._keys = keys
        self._key = key
        self._verifier = verifier
        self._gate = gate

    def check_client(self, client_spki: str) -> None:
        """Refused ``not_a_member`` unless the TLS client's key is the site's."""
        if not decide.same(client_spki, self._verifier.client_spki):
            raise Refused("not_a_member", "the TLS client's key is not the one in the study contract")

    def release(self, asked: ReleaseRequest, client_spki: str, now: datetime) -> Release:
        """As ``TenantBroker.release``."""
        case = Case.of(asked)
        refused: Refused | None = None
        ready: _Ready | None = None
        nonce: bytes | None = None
        try:
            # 1. The client and the clock: without them certificates and deadlines say nothing.
            self.check_client(client_spki)
            with self._state.reading() as db:
                clock.check(db, now)
            # 2. What is asked for, unverified, to find the challenge that it answers.
            request = decide.read_request(asked.request)
            case.job, nonce = request.job, request.nonce
            # 3. The challenge is open. It is used up below, whatever comes of it.
            with self._state.reading() as db:
                challenges.check(db, request.nonce, request.job, now)
            # 4. Evidence, 5. signature of the request; without holding up others.
            ready = self._judge(case, asked, request, now)
        except Refused as error:
            refused = error

        answer: Release | None = None
        with self._state.transaction() as db:
            if nonce is not None and not challenges.use(db, nonce):
                refused = refused or Refused("nonce_unknown", "the challenge was used up by another request")
            if refused is None and ready is not None:
                db.execute("SAVEPOINT decision")
                try:
                    answer = self._admit(db, case, ready, now)
                except Refused as error:
                    db.execute("ROLLBACK TO decision")
                    refused = error
            if refused is not None:
                detail = printable(refused.detail, decide.MAX_DETAIL)  # may hold a stranger's text; goes to the log too
                refused = Refused(refused.code, detail, self.receipt(db, case, now, refused.code, detail))
            clock.remember(db, clock.latest(db, now))
        # On the disk now: whatever dies from here on was charged, and gave nothing out.
        if answer is None:
            raise refused or AssertionError("a decision is a release or a refusal")
        return answer

    def _judge(self, case: Case, asked: ReleaseRequest, request: KeyRequest, now: datetime) -> _Ready:
        appraisal = decide.judge_evidence(case, asked.evidence, request, self._verifier, now)
        decide.verify_request(asked.request, appraisal.signing_key, request, self._verifier, now)
        context = decide.context_of(asked.evidence)
        self._gate.prepare(request)
        with self._state.reading() as db:
            registered = vaults.find(db, request.stamp.vault)
        key = None
        if registered is not None and registered.stamp == request.stamp:  # a key store may be a slow machine elsewhere
            key = self._unwrap(registered)
        measurements = frozenset(decide.measurements_of(appraisal, context))
        return _Ready(request, appraisal, context, measurements, registered, key)

    def _admit(self, db: sqlite3.Connection, case: Case, ready: _Ready, now: datetime) -> Release:
        request, signing_key = ready.request, signing.spki_digest(ready.appraisal.signing_key)
        # 6. Not taken back; 7. the vault's version in use.
        revocation.check(db, request.job, request.renews, signing_key, ready.measurements)
        registered = vaults.current(db, request.stamp)
        key = ready.key if ready.key is not None and ready.registered == registered else self._unwrap(registered)
        # 8. The budget.
        before = ledger.head(db)
        lease = self._gate.admit(request, signing_key, clock.latest(db, now))
        revocation.record(db, lease.lease, lease.job, signing_key, lease.expires, ready.measurements)
        # 9. The key, for the attested process alone, and the receipt.
        body = body_of(lease)
        bound = wrap_context(
            request, ready.context.canonical(), bytes.fromhex(case.evidence_sha256), signing.canonical(body)
        )
        charged = "charged" if lease.ledger != before else "the same process again: nothing charged"
        return Release(
            v=1,
            lease=signing.sign(self._key, LEASE_TYPE, body),
            ledger=messages.sign(self._key, lease.ledger),
            receipt=self.receipt(db, case, now, "released", charged, lease.lease),
            wrapped=sealing.seal(key, ready.appraisal.kem_key, WRAP_PURPOSE, *bound),
        )

    def receipt(
        self, db: sqlite3.Connection, case: Case, now: datetime, decision: str, detail: str, lease: str = ""
    ) -> dict[str, Any]:
        """The signed receipt of ``decision``."""
        return receipts.append(
            db,
            self._key,
            tenant=self._tenant,
            time=now,
            decision=decision,
            detail=printable(detail, decide.MAX_DETAIL),
            lease=lease,
            policy_digest=self._verifier.policy_digest,
            **case.facts(),
        )

    def _unwrap(self, registered: vaults.Registered) -> bytes:
        return self._keys.unwrap(registered.wrapped, vaults.label(self._tenant, registered.stamp))
