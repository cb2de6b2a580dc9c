"""The study contract (``study.yml``, schema ``cordon/study/v1``): what the hospitals agreed, signed by all of them.

It is the root of identity: keys of peers come from its roster and never from a message or from FLARE's headers.
"""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from cordon import documents
from cordon.documents import Document
from cordon.errors import ConfigError
from cordon.sealing import KEM_BYTES, decode_kem_key
from cordon.signing import PublicKey, decode_spki

SCHEMA = "cordon/study/v1"

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Spki = Annotated[str, Meta(min_length=40, max_length=2048)]
"""Base64 DER SubjectPublicKeyInfo."""


KemPublicKey = Annotated[bytes, Meta(min_length=KEM_BYTES, max_length=KEM_BYTES)]
"""Base64 of ML-KEM-768 encapsulation key || X25519 public key (``cordon.sealing``)."""


class Hospital(Document, frozen=True, kw_only=True):
    """One member of the study: its FLARE name and the keys that speak for it."""

    name: Name
    mtls_spki: Spki
    policy_spki: Spki
    steward_spki: Spki
    broker_spki: Spki | None = None

    @property
    def mtls_key(self) -> PublicKey:
        return decode_spki(self.mtls_spki)

    @property
    def policy_key(self) -> PublicKey:
        return decode_spki(self.policy_spki)

    @property
    def steward_key(self) -> PublicKey:
        return decode_spki(self.steward_spki)

    @property
    def broker_key(self) -> PublicKey:
        """Of the hospital's key broker: signs leases, receipts and ledger heads."""
        if self.broker_spki is None:
            raise ConfigError(f"the study contract names no broker_spki for {self.name}")
        return decode_spki(self.broker_spki)


class Coordinator(Document, frozen=True, kw_only=True):
    """The server: its FLARE name (CN of its certificate) and mTLS key."""

    name: Name
    mtls_spki: Spki

    @property
    def mtls_key(self) -> PublicKey:
        return decode_spki(self.mtls_spki)


class Evaluation(Document, frozen=True, kw_only=True):
    """What the coordinator may evaluate on. ``none`` is the production default."""

    kind: Literal["none", "public", "consented"]
    name: str = ""
    sha256: Sha256 | None = None


class ReleaseRight(Document, frozen=True, kw_only=True):
    """Who may open the study's models at rest (``cordon model open``): ``persons`` of the ``holders`` together."""

    holders: Annotated[dict[Name, KemPublicKey], Meta(min_length=1, max_length=16)]
    persons: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if len(self.holders) < self.persons:
            raise ValueError(f"release wants {self.persons} persons and names {len(self.holders)} holders")
        if len(set(self.holders.values())) != len(self.holders):
            raise ValueError("two holders of the release right share a key")
        for name, key in self.holders.items():
            try:
                decode_kem_key(key)
            except ConfigError as error:
                raise ValueError(f"release key of {name}: {error}") from error


class StudyContract(Document, frozen=True, kw_only=True):
    """Terms of a study.

    ``profile`` separates the two worlds: ``poc`` allows the software TEE and modes named ``unsafe_``; ``production``
    refuses both everywhere. ``weights`` are the public aggregation weights p (None = uniform). ``contracts`` are
    digests of feature contracts. ``time_grid_s`` is the public grid on which sites send: a finish time tells a size.
    """

    version: Literal["cordon/study/v1"]
    study: Name
    profile: Literal["poc", "production"]
    coordinator: Coordinator
    roster: Annotated[tuple[Hospital, ...], Meta(min_length=1, max_length=1000)]
    weights: dict[Name, Annotated[float, Meta(gt=0)]] | None = None
    contracts: tuple[Sha256, ...]
    models: tuple[str, ...]
    jobs: tuple[Name, ...]
    time_grid_s: Annotated[float, Meta(ge=0)]
    evaluation: Evaluation
    release: ReleaseRight | None = None

    def __post_init__(self) -> None:
        names = [hospital.name for hospital in self.roster] + [self.coordinator.name]
        if len(names) != len(set(names)):
            raise ValueError("roster names are not unique")
        keys = [hospital.mtls_spki for hospital in self.roster] + [self.coordinator.mtls_spki]
        if len(keys) != len(set(keys)):
            raise ValueError("two members share an mTLS key")
        if self.weights is not None and set(self.weights) != {hospital.name for hospital in self.roster}:
            raise ValueError("weights must name every hospital of the roster and no other")
        if self.profile == "production" and self.time_grid_s <= 0:
            raise ValueError("time_grid_s 0 (off) is refused outside POC: a finish time tells a site's size")

    def hospital(self, name: str) -> Hospital:
        """The roster entry of ``name``; ConfigError for a stranger."""
        for hospital in self.roster:
            if hospital.name == name:
                return hospital
        raise ConfigError(f"{name} is not a hospital of study {self.study}")

    def weight(self, name: str) -> float:
        """p of ``name``: a public constant, 1/N where the contract says uniform."""
        self.hospital(name)
        return 1.0 / len(self.roster) if self.weights is None else self.weights[name]

    def next_tick(self, now: float) -> float:
        """The first instant of the public time grid that is not before ``now`` (seconds since the epoch)."""
        return now if self.time_grid_s == 0 else math.ceil(now / self.time_grid_s) * self.time_grid_s

    @property
    def digest(self) -> str:
        return documents.content_digest(self)


def load_signed(path: Path, now: datetime) -> StudyContract:
    """The contract at ``path``, signed by the policy key of *every* hospital in its roster.

    The roster names its own signers, so what this shows is agreement among them. Whether they are the right ones is
    for the reader to pin: a site by its own entry, an auditor by the digest.
    """
    data = documents.read_bytes(path)  # once: what is verified is what was parsed, whatever the disk says next
    contract = documents.parse(data, StudyContract, str(path))
    keys = [hospital.policy_key for hospital in contract.roster]
    documents.check_signature(path, data, SCHEMA, keys, now, threshold=len(keys))
    return contract
