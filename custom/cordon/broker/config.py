"""The broker's configuration (``broker.yml``, schema ``cordon/broker/v1``): the hospital's security team writes it.

Paths resolve against the file's folder.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from cordon.broker.keys import KeyBackend
from cordon.documents import Document
from cordon.study import Name, Sha256

SCHEMA = "cordon/broker/v1"


class Listen(Document, frozen=True, kw_only=True):
    """``port`` 0 takes a free one and prints it."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)]


class Tls(Document, frozen=True, kw_only=True):
    """``certificate``, ``key``: PEM, of the broker; sites pin its SPKI. ``client_ca``: PEM of the CA that issued the
    sites' FLARE certificates (``rootCA.pem``). It admits nobody by itself: the study contract's ``mtls_spki`` does."""

    certificate: str
    key: str
    client_ca: str


class Gate(Document, frozen=True, kw_only=True):
    """The tenant's budget: ``max_releases`` keys released to new processes; ``epsilon`` the sum over the plans of all
    admitted jobs, by the RDP accountant at ``delta``."""

    max_releases: Annotated[int, Meta(ge=0)]
    epsilon: Annotated[float, Meta(ge=0)]
    delta: Annotated[float, Meta(gt=0, lt=1)]


class Tenant(Document, frozen=True, kw_only=True):
    """One hospital in one study. ``study_digest`` pins the contract at ``study``; ``attestation`` is the policy file by
    which evidence is judged, ``collateral`` the folder with what the vendors publish (CRLs, TCB info, RIMs)."""

    name: Name
    site: Name
    study: str
    study_digest: Sha256
    attestation: str
    gate: Gate
    collateral: str | None = None
    check_s: Annotated[float, Meta(ge=0.5, le=60)] = 2.0


class Limits(Document, frozen=True, kw_only=True):
    """Per client key and for all. Times in seconds."""

    requests_per_s: Annotated[float, Meta(gt=0, le=10_000)] = 5.0
    burst: Annotated[int, Meta(ge=1, le=100_000)] = 20
    connections: Annotated[int, Meta(ge=1, le=10_000)] = 256
    request_timeout_s: Annotated[float, Meta(gt=0, le=300)] = 10.0


class BrokerConfig(Document, frozen=True, kw_only=True):
    """``state``: folder of the broker's databases, one per tenant, mode 0700."""

    version: Annotated[str, Meta(pattern=r"\Acordon/broker/v1\Z")]
    listen: Listen
    tls: Tls
    state: str
    keys: KeyBackend
    tenants: Annotated[tuple[Tenant, ...], Meta(min_length=1, max_length=1000)]
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        names = [tenant.name for tenant in self.tenants]
        if len(names) != len(set(names)):
            raise ValueError("two tenants share a name")
