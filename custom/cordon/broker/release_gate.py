"""The smallest budget gate: a count of releases and a sum of epsilons, durable in the tenant's database."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta

from cordon.broker import ledger, receipts
from cordon.broker.config import Gate
from cordon.broker.gate import KeyRequest, Lease, Plan
from cordon.broker.keys.wrapped import Random
from cordon.broker.state import State
from cordon.documents import body_of, content_digest
from cordon.errors import ConfigError, Refused
from cordon.signing import digest

# As a job's config bounds them (``cordon.job.DPPlan``); far outside, accountants overflow.
_SCALE = (1e-3, 1e3)
_RATE = (1e-6, 1.0)
_STEPS = (1, 100_000)


@dataclass(frozen=True)
class Terms:
    """What a lease of this tenant says beside the request. ``lease_s``: how long it holds."""

    tenant: str
    gate: Gate
    check_s: float
    lease_s: float


class ReleaseGate:
    """``BudgetGate`` of one tenant. What is charged is charged with the transaction that ``state`` is in, if any."""

    def __init__(self, state: State, terms: Terms, random: Random) -> None:
        self._state = state
        self._terms = terms
        self._random = random

    def prepare(self, request: KeyRequest) -> None:
        """The accountant remembers the figure."""
        self.price(request.plan)

    def price(self, plan: Plan) -> float:
        """Epsilon of ``plan`` by RDP at the tenant's delta; the same plan is computed once.

        Raises:
            Refused: ``bad_request`` for a plan that no accountant takes.
        """
        from cordon.dp import accounting  # loads scipy

        event = plan.dp_event
        bounded = (
            ("noise_multiplier", event.noise_multiplier, _SCALE),
            ("sampling_rate", event.sampling_rate, _RATE),
            ("steps", event.steps, _STEPS),
            ("clip_norm", event.clip_norm, _SCALE),
        )
        for name, value, (low, high) in bounded:
            if not low <= value <= high:
                raise Refused("bad_request", f"plan: {name} is {value:g}, want {low:g} to {high:g}")
        try:
            return accounting.epsilon([(event, plan.rounds)], self._terms.gate.delta, accountant="rdp")
        except ConfigError as error:
            raise Refused("bad_request", f"plan: {error}") from error

    def admit(self, request: KeyRequest, signing_key: str, now: datetime) -> Lease:
        """A lease; charged unless the same process asked before with the same job, plan and vault.

        That is a renewal, or the answer was lost. Another process of the job is another look at the data.

        Raises:
            Refused: ``releases_exhausted`` or ``epsilon_over_ceiling``, with the figures; ``bad_request``.
        """
        price = self.price(request.plan)
        lease = self._random(16).hex()
        with self._state.transaction() as db:
            if not _charged(db, request, signing_key):
                self._charge(db, request, signing_key, lease, price, now)
            return Lease(
                v=1,
                lease=lease,
                tenant=self._terms.tenant,
                site=request.site,
                study=request.study,
                job=request.job,
                job_digest=request.job_digest,
                stamp=request.stamp,
                signing_key=signing_key,
                granted=now,
                expires=now + timedelta(seconds=self._terms.lease_s),
                check_s=self._terms.check_s,
                ledger=ledger.head(db),
            )

    def _charge(
        self, db: sqlite3.Connection, request: KeyRequest, signing_key: str, lease: str, price: float, now: datetime
    ) -> None:
        limits = self._terms.gate
        releases, spent = spending(db)
        if releases >= limits.max_releases:
            raise Refused("releases_exhausted", f"{releases} of {limits.max_releases} releases are used")
        if not spent + price <= limits.epsilon:  # written so that a NaN is refused
            said = f"the plan costs epsilon {price:.4g}, {spent:.4g} of {limits.epsilon:.4g} are spent"
            raise Refused("epsilon_over_ceiling", f"{said} (RDP, delta {limits.delta:g} per plan)")
        db.execute(
            "INSERT INTO charges (subject, releases, epsilon) VALUES (?, 1, ?)", (_subject(request, signing_key), price)
        )
        seq, value = receipts.last(db)
        ledger.append(
            db,
            "ADMIT",
            lease=lease,
            job=request.job,
            job_digest=request.job_digest,
            signing_key=signing_key,
            stamp=body_of(request.stamp),
            plan=body_of(request.plan),
            epsilon=price,
            gate=body_of(limits),
            receipts=[seq, value],
            time=now.isoformat(),
        )


def spending(db: sqlite3.Connection) -> tuple[int, float]:
    """Releases and epsilon charged so far."""
    releases, spent = db.execute(
        "SELECT coalesce(sum(releases), 0), coalesce(sum(epsilon), 0.0) FROM charges"
    ).fetchone()
    return int(releases), float(spent)


def _charged(db: sqlite3.Connection, request: KeyRequest, signing_key: str) -> bool:
    subject = _subject(request, signing_key)
    return db.execute("SELECT 1 FROM charges WHERE subject = ?", (subject,)).fetchone() is not None


def _subject(request: KeyRequest, signing_key: str) -> str:
    """What is paid for once: one process, one job, one plan, one vault."""
    parts = (signing_key, request.job, request.job_digest, content_digest(request.plan), request.stamp.vault)
    return digest("cordon/broker-charge/v1", *(part.encode() for part in parts))
