"""One verifier's standing view of its peers: challenges out, verdicts in, leases that end by themselves."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from cordon import signing
from cordon.attest.appraise import EvidenceAppraisal, appraise, parent_context
from cordon.attest.fault import proven
from cordon.attest.nonce import Nonces
from cordon.attest.standing import UNKNOWN, Standing
from cordon.attest.vendor import Trust
from cordon.attest.verdict import Check
from cordon.errors import AttestError

PURPOSE = "parent"


class Verifier:
    """Challenges peers for admission and remembers who passed. Not thread-safe: the caller holds a lock.

    Args:
        trust: by which evidence is judged; replaced where the verifier's collateral is read anew.
        study_digest: digest of the study contract that both sides must hold.
        nonces: this verifier's open challenges.
    """

    def __init__(self, trust: Trust, study_digest: str, nonces: Nonces) -> None:
        self.trust = trust
        self._study_digest = study_digest
        self._nonces = nonces
        self.standings: dict[str, Standing] = {}
        self._postponed: dict[str, tuple[datetime, datetime]] = {}  # since, until

    def challenge(self, peer: str, now: datetime) -> bytes:
        """A fresh nonce for ``peer``; the answer counts once and for ``policy.max_age_s`` seconds."""
        return self._nonces.issue(peer, PURPOSE, "", now, self.trust.policy.max_age_s)

    def judge(
        self, peer: str, mtls_key: signing.PublicKey, nonce: bytes, envelope: Any, now: datetime
    ) -> EvidenceAppraisal:
        """The verdict on ``peer``'s answer. A pass renews its lease; anything else ends it at once.

        Args:
            mtls_key: of ``peer``, from the signed study contract.
        """
        try:
            self._nonces.take(nonce, peer, PURPOSE, "", now)
        except AttestError as error:
            return self.reject(peer, error.failures, now)
        appraisal = appraise(
            envelope,
            nonce=nonce,
            context=parent_context(peer, self._study_digest, self.trust.policy.digest),
            mtls_key=mtls_key,
            trust=self.trust,
            now=now,
        )
        if appraisal.verdict == "pass":
            until = now + timedelta(seconds=self.trust.policy.lease_s)
            self.standings[peer] = Standing(state="attested", granted=now, expires=until)
        else:
            self._end(peer, appraisal, now)
        return appraisal

    def reject(self, peer: str, failures: list[tuple[str, str]], now: datetime) -> EvidenceAppraisal:
        """A failing verdict for (code, detail) reasons outside the evidence; ends the lease of ``peer`` at once."""
        appraisal = EvidenceAppraisal("unknown", tuple(Check(code, "fail", detail) for code, detail in failures))
        self._end(peer, appraisal, now)
        return appraisal

    def forget(self, peer: str) -> None:
        """``peer`` registered anew, so it may be another process: its lease ends.

        It is asked at once, unless it is postponed: else one that fails could register again and again.
        """
        self.standings[peer] = Standing(state="unattested", reasons=("registered_anew",))

    def _end(self, peer: str, appraisal: EvidenceAppraisal, now: datetime) -> None:
        faults = proven(appraisal)
        reasons = faults or [(each.code, "") for each in appraisal.checks if each.result != "pass" and not each.waived]
        self.standings[peer] = Standing(
            state="quarantined" if faults else "unattested", reasons=tuple(code for code, _ in reasons)
        )
        self.postpone(peer, now, min(30.0, self.trust.policy.lease_s / 3))

    def postpone(self, peer: str, now: datetime, seconds: float) -> None:
        """Ask ``peer`` again no earlier than ``seconds`` from ``now``: a bad or dead peer must not cost much."""
        self._postponed[peer] = (now, now + timedelta(seconds=seconds))

    def live(self, peer: str, now: datetime) -> bool:
        """Whether ``peer`` passed, and its lease has not ended."""
        return self.standings.get(peer, UNKNOWN).live(now)

    def due(self, peer: str, now: datetime) -> bool:
        """Whether to ask ``peer`` again: no live lease or its last third has begun, and not postponed."""
        since, until = self._postponed.get(peer, (now, now))
        if since <= now < until:  # a clock set back ends it
            return False
        lease = self.standings.get(peer, UNKNOWN)
        if not lease.live(now) or lease.granted is None or lease.expires is None:
            return True
        return now >= lease.expires - (lease.expires - lease.granted) / 3
