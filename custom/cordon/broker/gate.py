"""What a key is asked for with, what is given for it, and the gate between: ``admit(KeyRequest) -> Lease``.

A hospital's budget is checked where its data key is released, outside of whatever the job's process does. The broker
appraises the evidence first; the gate decides whether this request, of a process that passed, is within budget.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Protocol

from msgspec import Meta

from cordon.documents import Document
from cordon.messages import DPEvent, LedgerHead
from cordon.study import Name, Sha256
from cordon.vault_stamp import Stamp

REQUEST_TYPE = "application/vnd.cordon.key-request.v1+json"
LEASE_TYPE = "application/vnd.cordon.lease.v1+json"
RECEIPT_TYPE = "application/vnd.cordon.receipt.v1+json"

REASONS = {
    "bad_request": "the request does not fit its schema, or is not signed by the key that its evidence binds",
    "not_a_member": "no tenant of this broker has the mTLS key that asked",
    "nonce_unknown": "no open challenge with this nonce: never issued, used, or expired",
    "nonce_expired": "the answer came after the challenge's deadline",
    "nonce_misused": "the challenge was made for another site or job",
    "evidence_refused": "the evidence does not show what the broker's policy asks; the receipt lists each check",
    "measurement_revoked": "the hospital revoked this measurement",
    "wrong_study": "the request is for another study than the tenant's",
    "unknown_vault": "no key of this vault is kept here",
    "vault_rolled_back": "the vault is an older version than the one registered",
    "vault_unknown_version": "the vault is of a version, or has a root, that was never registered",
    "releases_exhausted": "the tenant's count of releases is used up",
    "epsilon_over_ceiling": "the job's plan does not fit what is left of the tenant's epsilon",
    "lease_revoked": "the hospital revoked the lease or the job that this renews",
    "clock_moved_back": "the broker's clock is behind what it saw before, so no deadline can be trusted",
    "lease_expired": "the holder's lease ran out and was not renewed (said by the holder)",
    "ledger_rolled_back": "the broker showed an older ledger, or another, than the kit has seen (said by the holder)",
    "rate_limited": "too many requests from this client",
}
"""Stable codes of a refusal; a receipt carries one of them, or ``released``."""

Text = Annotated[str, Meta(max_length=128)]
JobId = Annotated[str, Meta(pattern=r"\A[!-~]{1,128}\Z")]
"""As a person reads it and types it again, who revokes a job: no blanks, nothing invisible, no look-alikes."""
Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Plan(Document, frozen=True, kw_only=True):
    """All that a job will do to this hospital's patients: ``rounds`` times ``dp_event``."""

    dp_event: DPEvent
    rounds: Annotated[int, Meta(ge=1, le=100_000)]


class KeyRequest(Document, frozen=True, kw_only=True):
    """Body of a DSSE envelope (REQUEST_TYPE) by the attested signing key: what the key is for.

    ``site`` FLARE name; ``study`` digest of the study contract; ``job`` FLARE's job id; ``job_digest`` digest of the
    job folder (all as in the evidence's context); ``nonce`` the broker's challenge, which the evidence answers too;
    ``stamp`` as read from the vault file; ``plan`` the whole job's; ``renews`` id of the lease that this goes on from.
    """

    v: Literal[1]
    site: Name
    study: Sha256
    job: JobId
    job_digest: Sha256
    nonce: Nonce
    stamp: Stamp
    plan: Plan
    renews: Text | None = None


class Lease(Document, frozen=True, kw_only=True):
    """Body of a DSSE envelope (LEASE_TYPE) by the broker's long-lived key: the right to use a key, until ``expires``.

    ``signing_key``: SPKI digest of the attested key that may use it; ``check_s``: how often the holder asks whether the
    lease still stands; ``ledger``: head of the hospital's ledger after this request.
    """

    v: Literal[1]
    lease: Text
    tenant: Name
    site: Name
    study: Sha256
    job: JobId
    job_digest: Sha256
    stamp: Stamp
    signing_key: Sha256
    granted: datetime
    expires: datetime
    check_s: Annotated[float, Meta(gt=0, le=60)]
    ledger: LedgerHead


class Receipt(Document, frozen=True, kw_only=True):
    """Body of a DSSE envelope (RECEIPT_TYPE): one decision of the broker, as an auditor re-reads it years later.

    ``decision`` is ``released`` or one of REASONS; ``verdict`` that of the evidence; ``codes`` (code, result) of each
    check; ``not_checked`` the codes of those that were not made, waived ones included; digests are hex SHA-256 of an
    envelope's payload text, '' where there was none. ``seq`` and ``previous`` chain the receipts of a tenant.
    """

    v: Literal[1]
    tenant: Name
    time: datetime
    decision: Text
    detail: Annotated[str, Meta(max_length=1000)]
    job: Text
    lease: Text
    evidence_type: Text
    evidence_sha256: str
    request_sha256: str
    policy_digest: str
    verdict: Literal["pass", "fail", "not_checked"]
    codes: tuple[tuple[str, str], ...]
    not_checked: tuple[str, ...]
    seq: Annotated[int, Meta(ge=1)]
    previous: str


class BudgetGate(Protocol):
    """The budget of one tenant. A ledger of DP events stands behind it; ``ReleaseGate`` is the smallest one."""

    def prepare(self, request: KeyRequest) -> None:
        """What may take long and needs no state (accounting), before the state is locked.

        Raises:
            Refused: ``bad_request`` for a plan that cannot be accounted.
        """

    def admit(self, request: KeyRequest, signing_key: str, now: datetime) -> Lease:
        """A lease for ``request``, charged. A renewal by the same process charges nothing.

        The broker calls this in the transaction of its decision. What is charged must be durable when that transaction
        is, or earlier: before the key is given out. What is charged for a decision that then fails stays charged.

        Args:
            signing_key: SPKI digest of the key that the evidence binds and that signed ``request``.

        Raises:
            Refused: ``releases_exhausted``, ``epsilon_over_ceiling``, ``lease_revoked`` ...: nothing was charged.
        """
