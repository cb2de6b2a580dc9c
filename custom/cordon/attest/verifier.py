"""One verifier's standing view of its peers: challenges out, verdicts in, leases that end by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

from cordon import signing
from cordon.attest.appraise import Appraisal, Check, appraise, parent_context
from cordon.attest.nonce import Nonces
from cordon.attest.policy import AttestationPolicy
from cordon.errors import AttestError

PURPOSE = "parent"


@dataclass(frozen=True)
class Lease:
    """A passed verdict and how long it holds."""

    granted: datetime
    expires: datetime


class Verifier:
    """Challenges peers for admission and remembers who passed. Not thread-safe: the caller holds a lock.

    Args:
        policy: by which evidence is judged.
        roots: evidence type -> root certificate of the software TEE.
        study_digest: digest of the study contract that both sides must hold.
        nonces: this verifier's open challenges.
    """

    def __init__(
        self, policy: AttestationPolicy, roots: Mapping[str, x509.Certificate], study_digest: str, nonces: Nonces
    ) -> None:
        self._policy = policy
        self._roots = roots
        self._study_digest = study_digest
        self._nonces = nonces
        self._leases: dict[str, Lease] = {}
        self._not_before: dict[str, datetime] = {}

    def challenge(self, peer: str, now: datetime) -> bytes:
        """A fresh nonce for ``peer``; the answer counts once and for ``policy.max_age_s`` seconds."""
        return self._nonces.issue(peer, PURPOSE, "", now, self._policy.max_age_s)

    def judge(self, peer: str, mtls_key: signing.PublicKey, nonce: bytes, envelope: Any, now: datetime) -> Appraisal:
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
            context=parent_context(peer, self._study_digest, self._policy.digest),
            mtls_key=mtls_key,
            policy=self._policy,
            roots=self._roots,
            now=now,
        )
        if appraisal.verdict == "pass":
            self._leases[peer] = Lease(now, now + timedelta(seconds=self._policy.lease_s))
        else:
            self._end(peer, now)
        return appraisal

    def reject(self, peer: str, failures: list[tuple[str, str]], now: datetime) -> Appraisal:
        """A failing verdict for (code, detail) reasons outside the evidence; ends the lease of ``peer`` at once."""
        self._end(peer, now)
        checks = tuple(Check(code, "fail", detail) for code, detail in failures)
        return Appraisal("unknown", checks, None, None)

    def _end(self, peer: str, now: datetime) -> None:
        self._leases.pop(peer, None)
        self.postpone(peer, now, min(30.0, self._policy.lease_s / 3))

    def postpone(self, peer: str, now: datetime, seconds: float) -> None:
        """Ask ``peer`` again no earlier than ``seconds`` from ``now``: a bad or dead peer must not cost much."""
        self._not_before[peer] = now + timedelta(seconds=seconds)

    def live(self, peer: str, now: datetime) -> bool:
        """Whether ``peer`` passed, and its lease has not ended. A clock set back before the grant ends it too."""
        lease = self._leases.get(peer)
        return lease is not None and lease.granted <= now < lease.expires

    def due(self, peer: str, now: datetime) -> bool:
        """Whether to ask ``peer`` again: no live lease or its last third has begun, and not postponed."""
        if peer in self._not_before and now < self._not_before[peer]:
            return False
        lease = self._leases.get(peer)
        return lease is None or not self.live(peer, now) or now >= lease.expires - (lease.expires - lease.granted) / 3
