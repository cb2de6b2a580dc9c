"""The broker of one tenant: a hospital's keys, budget and record in one study. Specification: README.md."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from cordon import documents, messages, signing, study
from cordon.attest.policy import AttestationPolicy
from cordon.attest.vendor import Trust
from cordon.broker import challenges, clock, consistency, decide, identity, ledger, receipts, revocation, state, vaults
from cordon.broker.config import Tenant
from cordon.broker.decide import Case, Verifier
from cordon.broker.keys import KeyEncryption
from cordon.broker.keys.wrapped import Random
from cordon.broker.protocol import (
    Challenge,
    ChallengeRequest,
    LeaseQuery,
    LeaseState,
    Release,
    ReleaseRequest,
)
from cordon.broker.release import Decider
from cordon.broker.release_gate import ReleaseGate, Terms, spending
from cordon.broker.state import State
from cordon.broker.trust import TrustFiles
from cordon.documents import body_of
from cordon.errors import ConfigError, Refused
from cordon.study import StudyContract
from cordon.vault_stamp import Stamp


class TenantBroker:
    """All that a tenant's broker does. Safe for use by several threads, and beside other processes on one database.

    Every method may raise ConfigError: state, key store or collateral cannot be used, and nothing was released.
    """

    def __init__(
        self,
        tenant: Tenant,
        contract: StudyContract,
        trust: Callable[[], Trust],
        opened: State,
        keys: KeyEncryption,
        now: datetime,
        random: Random = secrets.token_bytes,
    ) -> None:
        """As ``open``, of parts. ``trust`` is asked for at each decision."""
        self.tenant = tenant
        self._state = opened
        self._keys = keys
        self._random = random
        mtls_key = contract.hospital(tenant.site).mtls_key
        self.site_spki = signing.spki_digest(mtls_key)
        self.study = contract.digest
        policy = trust().policy
        self.policy_digest = policy.digest
        self._max_age_s, self._lease_s = policy.max_age_s, policy.lease_s
        with opened.reading() as db:
            self.signing_key = identity.signing_key(db, tenant.name, keys)
        named = contract.hospital(tenant.site).broker_spki
        if named is None and contract.profile != "poc":
            raise ConfigError(f"the study contract names no broker_spki for {tenant.site}; outside POC it must")
        if named is not None and named != signing.encode_spki(self.signing_key.public_key()):
            raise ConfigError(f"the study contract names another broker_spki for {tenant.site} than this broker's key")
        terms = Terms(tenant.name, tenant.gate, tenant.check_s, policy.lease_s)
        self._decider = Decider(
            tenant.name,
            opened,
            keys,
            self.signing_key,
            Verifier(tenant.site, self.study, mtls_key, self.site_spki, trust, self.policy_digest),
            ReleaseGate(opened, terms, random),
        )
        with opened.transaction() as db:
            consistency.check(db)
            self._record_terms(db, now)

    @classmethod
    def open(cls, tenant: Tenant, base: Path, folder: Path, keys: KeyEncryption, now: datetime) -> TenantBroker:
        """The broker of ``tenant``, as its signed contract and policy say.

        Args:
            base: folder against which paths in ``tenant`` resolve.
            folder: of the databases.

        Raises:
            ConfigError, SignatureError: no state, or one whose tables and ledger differ; or contract, policy,
                collateral or key do not fit one another.
        """
        contract = study.load_signed(base / tenant.study, now)
        if contract.digest != tenant.study_digest:
            raise ConfigError(
                f"{base / tenant.study}: digest {contract.digest}, tenant pins {tenant.study_digest};"
                " if this is the contract that the hospital signed, put its digest into study_digest"
            )
        policy_path = base / tenant.attestation
        policy = documents.load(policy_path, AttestationPolicy)
        if policy.profile == "poc" and contract.profile != "poc":
            raise ConfigError(f"{policy_path}: profile poc, for a study of profile {contract.profile}")
        trust = TrustFiles(policy, policy_path, None if tenant.collateral is None else base / tenant.collateral)
        opened = State(state.database(folder, tenant.name))
        try:
            return cls(tenant, contract, trust, opened, keys, now)
        except BaseException:
            opened.close()
            raise

    @property
    def name(self) -> str:
        """Of the tenant."""
        return self.tenant.name

    def close(self) -> None:
        """Let go of the database."""
        self._state.close()

    # -- for the site ------------------------------------------------------------------------------------------------

    def challenge(self, asked: ChallengeRequest, client_spki: str, now: datetime) -> Challenge:
        """A nonce for the key of a job. Makes no receipt: nothing is decided yet.

        Args:
            client_spki: SPKI digest (hex) of the key by which the TLS client authenticated.

        Raises:
            Refused: ``not_a_member``, ``clock_moved_back``, ``rate_limited``.
        """
        self._decider.check_client(client_spki)
        with self._state.transaction() as db:
            clock.check(db, now)
            clock.remember(db, clock.latest(db, now))
            nonce, deadline = challenges.issue(db, asked.job, now, self._max_age_s, self._random)
        return Challenge(v=1, nonce=nonce, policy_digest=self.policy_digest, expires=deadline)

    def release(self, asked: ReleaseRequest, client_spki: str, now: datetime) -> Release:
        """The vault key for the process that the evidence binds.

        Raises:
            Refused: with the reason, and the receipt of it.
        """
        return self._decider.release(asked, client_spki, now)

    def lease_state(self, asked: LeaseQuery, client_spki: str, now: datetime) -> LeaseState:
        """Whether a lease of this site still stands."""
        if not decide.same(client_spki, self.site_spki):
            return LeaseState(v=1, state="unknown")
        with self._state.reading() as db:
            return revocation.lease_state(db, asked.lease, now)

    def refuse(self, code: str, detail: str, client_spki: str, now: datetime) -> Refused:
        """A refusal, with its receipt, of a release request that could not even be read."""
        with self._state.transaction() as db:
            receipt = self._decider.receipt(db, Case(), now, code, f"client key {client_spki[:64]}: {detail}")
        return Refused(code, detail, receipt)

    # -- for the hospital --------------------------------------------------------------------------------------------

    def register(self, stamp: Stamp, vault_key: bytes, now: datetime, *, allow_older: bool = False) -> bool:
        """Make ``stamp`` the one version of its vault that is in use; the key of the one before is destroyed.

        Returns:
            False if it was before.

        Raises:
            ConfigError: an older version without ``allow_older``; the version in use, with another root or key.
        """
        with self._state.transaction() as db:
            new = vaults.put(db, self.tenant.name, stamp, vault_key, self._keys, now.isoformat(), allow_older)
        self._state.erase_deleted()
        return new

    def forget(self, vault: str, now: datetime) -> tuple[bool, list[str]]:
        """Destroy the key of ``vault``, and take back the leases of the processes that were given it.

        Returns:
            (False if it was forgotten before, the leases taken back: one for each process).

        Raises:
            ConfigError: no key of it was ever kept here.
        """
        with self._state.transaction() as db:
            new = vaults.forget(db, vault, now.isoformat())
            ended = revocation.revoke_holders(db, vault, now) if new else []
        self._state.erase_deleted()
        return new, ended

    def revoke(
        self, now: datetime, *, job: str | None = None, lease: str | None = None, measurement: str | None = None
    ) -> bool:
        """Take back one of these, for good; the next answer of every process says so. False if it was before."""
        asked: dict[revocation.Kind, str | None] = {"job": job, "lease": lease, "measurement": measurement}
        given = [(kind, value) for kind, value in asked.items() if value is not None]
        if len(given) != 1:
            raise ConfigError("revoke wants one of job, lease, measurement")
        with self._state.transaction() as db:
            return revocation.revoke(db, *given[0], now.isoformat())

    def knows_job(self, job: str) -> bool:
        """Whether a lease was ever given to a process of ``job``."""
        with self._state.reading() as db:
            return revocation.knows_job(db, job)

    def vaults(self) -> list[Stamp]:
        """The version in use of each vault whose key is kept here."""
        with self._state.reading() as db:
            return vaults.every(db)

    def revocations(self) -> list[tuple[str, str]]:
        """(kind, value) of all that was taken back."""
        with self._state.reading() as db:
            return revocation.every(db)

    def receipts(self, since: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Envelopes of the receipts after number ``since``, for ``receipts.verify_receipts``."""
        with self._state.reading() as db:
            return receipts.after(db, since, limit)

    def head(self) -> dict[str, Any]:
        """The head of the ledger, signed."""
        with self._state.reading() as db:
            return messages.sign(self.signing_key, ledger.head(db))

    def spent(self) -> tuple[int, float]:
        """Releases and epsilon charged so far."""
        with self._state.reading() as db:
            return spending(db)

    def live_leases(self, now: datetime) -> list[tuple[str, str, datetime]]:
        """(lease, job, expires) of those that stand."""
        with self._state.reading() as db:
            return revocation.live(db, now)

    def ledger_rows(self) -> list[tuple[int, dict[str, Any], str]]:
        """(seq, row, head) of the whole ledger, its chain checked; SignatureError if it is broken."""
        with self._state.reading() as db:
            return ledger.rows(db)

    def backup(self, target: Path) -> None:
        """A copy of the state as the new file ``target``; it opens with the same key encryption key only."""
        self._state.backup(target)

    def accept_clock(self, now: datetime) -> bool:
        """Start again from ``now``, after a clock that was wrongly ahead; leases granted ahead of ``now`` end.

        False, and nothing is done, where the clock is not behind: no request is refused because of it.
        """
        with self._state.transaction() as db:
            try:
                clock.check(db, now)
            except Refused:
                seen = clock.latest(db, now)
            else:
                return False
            until = clock.microseconds(now) + round(self._lease_s * 1e6)
            db.execute("UPDATE leases SET expires = 0 WHERE expires > ?", (until,))
            db.execute("DELETE FROM challenges")
            clock.remember(db, now)
            ledger.append(db, "CLOCK", seen=seen.isoformat(), time=now.isoformat())
            return True

    def _record_terms(self, db: sqlite3.Connection, now: datetime) -> None:
        """By what this broker decides from now on, as a row, if that changed."""
        terms: dict[str, Any] = {
            "site": self.tenant.site,
            "study": self.study,
            "policy": self.policy_digest,
            "gate": body_of(self.tenant.gate),
            "check_s": self.tenant.check_s,
        }
        before = ledger.last(db, "TERMS")
        if {name: before.get(name) for name in terms} != terms:
            ledger.append(db, "TERMS", **terms, time=now.isoformat())
