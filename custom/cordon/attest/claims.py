"""What a verified report claims, whatever TEE it came from, and what an attester offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from cordon.attest.policy import EvidenceType


@dataclass(frozen=True)
class Claims:
    """Facts signed by a TEE.

    ``report_data`` 64 bytes; ``measurement`` lower-case hex; ``holder`` the participant to whom the TEE key was issued,
    None where the vendor certifies chips and not participants.
    """

    type: EvidenceType
    report_data: bytes
    measurement: str
    holder: str | None


class Attester(Protocol):
    """A TEE as the prover sees it."""

    @property
    def type(self) -> EvidenceType: ...

    def report(self, report_data: bytes) -> bytes:
        """The TEE's report over 64 bytes."""

    def gpu_evidence(self, nonce: bytes) -> list[dict[str, Any]] | None:
        """Evidence of each GPU for ``nonce``, or None without GPUs."""
