"""What an attester offers: a TEE as the prover sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cordon.attest.policy import EvidenceType


@dataclass(frozen=True)
class Report:
    """A TEE's report over 64 bytes, and what its host has to say for it.

    ``endorsements``: signed by the vendor, not by the prover: ``vek`` (certificate of the key that signed, DER or PEM),
    ``chain`` (PEM), ``event_log`` (CCEL), ``collateral`` (Intel's, JSON), and on Azure ``quote``, ``tpm_quote``.
    """

    report: bytes
    endorsements: Mapping[str, bytes] = field(default_factory=dict)


class Attester(Protocol):
    """A TEE as the prover sees it."""

    @property
    def type(self) -> EvidenceType: ...

    def report(self, report_data: bytes) -> Report:
        """The TEE's report over 64 bytes."""

    def gpu_evidence(self, nonce: bytes) -> list[dict[str, Any]] | None:
        """Evidence of each GPU for ``nonce``, or None without GPUs."""
