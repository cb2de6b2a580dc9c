"""Two hospitals of a study, each with a tenant at a key broker, a data vault, and job processes that ask for its key.

All that decides is the product's; made up are the processors (``amd_pki``, ``hardware_federation.Machine``).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from cordon import documents, sealing, signing, study
from cordon.attest import software
from cordon.attest.appraise import make_evidence
from cordon.attest.binding import Context, bundle_digest
from cordon.attest.claims import Attester, Report
from cordon.attest.keys import ProcessKeys
from cordon.attest.policy import AttestationPolicy
from cordon.broker import identity
from cordon.broker.config import Gate, Tenant
from cordon.broker.gate import LEASE_TYPE, RECEIPT_TYPE, REQUEST_TYPE, KeyRequest, Lease, Plan, Receipt
from cordon.broker.keys.encrypted_file import FileKek, create_file_kek
from cordon.broker.protocol import WRAP_PURPOSE, Challenge, ChallengeRequest, Release, ReleaseRequest, wrap_context
from cordon.broker.tenant import TenantBroker
from cordon.errors import Refused
from cordon.messages import DPEvent
from cordon.study import StudyContract
from cordon.vault_stamp import Stamp

from . import amd_pki, hardware_federation
from .hardware_federation import Machine
from .policies import policy

NOW = hardware_federation.NOW
SITE, OTHER = "hospital-a", "hospital-b"
JOB, JOB_DIGEST = "6f1a", "ab" * 32
VAULT_KEY = bytes(range(32))
STAMP = Stamp(vault="0a" * 16, version=2, root="2b" * 32)
EVENT = DPEvent(
    mechanism="poisson_subsampled_gaussian",
    noise_multiplier=3.0,
    sampling_rate=0.25,
    steps=8,
    clip_norm=1.0,
    unit="patient",
)
PLAN = Plan(dp_event=EVENT, rounds=12)  # epsilon 4.08 by RDP at delta 1e-5
GATE = Gate(max_releases=100, epsilon=1000.0, delta=1e-5)


@functools.cache
def mtls_key(name: str) -> RSAPrivateKey:
    """The mTLS key of ``name``; made once per process."""
    return generate_private_key(65537, 2048)


@functools.cache
def software_root() -> software.Issued:
    return software.make_root("test", NOW)


@functools.cache
def software_tee(participant: str) -> software.Issued:
    return software.issue(software_root(), participant, NOW)


@dataclass(frozen=True)
class SnpAttester:
    """The processor of ``machine``."""

    machine: Machine
    type: Literal["snp"] = "snp"

    def report(self, report_data: bytes) -> Report:
        anchor = amd_pki.anchor(self.machine.product)
        chain = amd_pki.pem(anchor.ask, anchor.ark)
        return Report(self.machine.snp_report(report_data), {"vek": self.machine.vek_der, "chain": chain})

    def gpu_evidence(self, nonce: bytes) -> None:
        """None: no GPU."""


@dataclass
class Process:
    """A job process at a hospital: its own keys, its machine's TEE, the site's mTLS key."""

    site: str
    study: str
    attester: Attester
    mtls: RSAPrivateKey
    keys: ProcessKeys = field(default_factory=ProcessKeys.generate, repr=False)
    job: str = JOB
    job_digest: str = JOB_DIGEST
    stamp: Stamp = STAMP
    plan: Plan = PLAN

    @property
    def spki(self) -> str:
        """By which a TLS server knows the client."""
        return signing.spki_digest(self.mtls.public_key())

    def context(self, policy_digest: str, **changes: Any) -> Context:
        """What its evidence is for."""
        fields = {"purpose": "release", "site": self.site, "study": self.study, "job": self.job}
        fields |= {"job_digest": self.job_digest, "bundle_digest": bundle_digest(), "policy_digest": policy_digest}
        return Context(**{**fields, **changes})

    def evidence(self, challenge: Challenge, **changes: Any) -> dict[str, Any]:
        context = self.context(challenge.policy_digest, **changes)
        return make_evidence(self.attester, context, challenge.nonce, self.keys, self.mtls)

    def request(self, challenge: Challenge, **changes: Any) -> KeyRequest:
        fields = {"v": 1, "site": self.site, "study": self.study, "job": self.job, "job_digest": self.job_digest}
        fields |= {"nonce": challenge.nonce, "stamp": self.stamp, "plan": self.plan}
        return KeyRequest(**{**fields, **changes})

    def asks(self, challenge: Challenge, evidence: Mapping[str, Any] | None = None, **changes: Any) -> ReleaseRequest:
        """The release request; ``changes`` of the key request."""
        request = self.request(challenge, **changes)
        return ReleaseRequest(
            v=1,
            evidence=dict(evidence or self.evidence(challenge)),
            request=signing.sign(self.keys.signing_key, REQUEST_TYPE, documents.body_of(request)),
        )

    def opens(self, asked: ReleaseRequest, release: Release) -> bytes:
        """The vault key in ``release``, as the real client opens it."""
        request = msgspec.convert(signing.unverified_body(asked.request), KeyRequest)
        context = msgspec.convert(signing.unverified_body(asked.evidence)["context"], Context)
        evidence = bytes.fromhex(sha256(asked.evidence))
        lease = base64.b64decode(release.lease["payload"])
        bound = wrap_context(request, context.canonical(), evidence, lease)
        return sealing.open_sealed(release.wrapped, self.keys.kem_key, WRAP_PURPOSE, *bound)


def sha256(envelope: Mapping[str, Any]) -> str:
    """Hex SHA-256 of the payload text, as receipts name an envelope."""
    return hashlib.sha256(envelope["payload"].encode()).hexdigest()


@dataclass
class Hospitals:
    """The study's documents below ``folder``, the brokers' states, and a clock.

    Args:
        evidence: type that the brokers' policy wants.
        changes: fields of the attestation policy that differ.
    """

    folder: Path
    evidence: Literal["software", "snp"] = "software"
    changes: dict[str, Any] = field(default_factory=dict)
    gate: Gate = GATE
    now: datetime = NOW
    brokers: dict[str, TenantBroker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        passphrase = b"correct horse battery staple"
        create_file_kek(self.folder / "kek", passphrase, log2_n=14)
        self.kek = FileKek(self.folder / "kek", passphrase)
        self.state = self.folder / "state"
        keys = {name: identity.create(name, self.state, self.kek, self.now) for name in (SITE, OTHER)}
        self.contract = self._contract(keys)
        if self.evidence == "software":
            (self.folder / "root.pem").write_bytes(software_root().certificate_pem)
            judged = policy("software", **{"software": {"root": "root.pem"}, **self.changes})
        else:
            base = {"snp": hardware_federation.shipped("snp", "snp")}
            judged = policy("snp", **_merged(base, self.changes))
            hardware_federation.write_collateral(self.folder / "collateral")
        (self.folder / "policy.yml").write_text(yaml.safe_dump(msgspec.to_builtins(judged)))
        self.policy: AttestationPolicy = judged

    def _contract(self, brokers: Mapping[str, str]) -> StudyContract:
        policies = {name: Ed25519PrivateKey.generate() for name in (SITE, OTHER)}
        roster = [
            {
                "name": name,
                "mtls_spki": signing.encode_spki(mtls_key(name).public_key()),
                "policy_spki": signing.encode_spki(policies[name].public_key()),
                "steward_spki": signing.encode_spki(policies[name].public_key()),
                "broker_spki": brokers[name],
            }
            for name in policies
        ]
        tree = {
            "version": study.SCHEMA,
            "study": "trial",
            "profile": "poc" if self.evidence == "software" else "production",
            "coordinator": {"name": "server", "mtls_spki": signing.encode_spki(mtls_key("server").public_key())},
            "roster": roster,
            "contracts": [],
            "models": [],
            "jobs": [],
            "time_grid_s": 1.0,
            "evaluation": {"kind": "none"},
        }
        path = self.folder / "study.yml"
        path.write_text(yaml.safe_dump(tree))
        for key in policies.values():
            documents.sign_file(path, study.SCHEMA, key)
        return study.load_signed(path, self.now)

    def tenant(self, site: str = SITE, **changes: Any) -> Tenant:
        fields = {"name": site, "site": site, "study": "study.yml", "study_digest": self.contract.digest}
        fields |= {"attestation": "policy.yml", "gate": self.gate, "check_s": 2.0}
        return Tenant(**{**fields, "collateral": "collateral" if self.evidence == "snp" else None, **changes})

    def open(self, site: str = SITE, **changes: Any) -> TenantBroker:
        """A broker process of ``site``."""
        broker = TenantBroker.open(self.tenant(site, **changes), self.folder, self.state, self.kek, self.now)
        self.brokers[f"{site}/{len(self.brokers)}"] = broker
        return broker

    def broker(self, site: str = SITE, **changes: Any) -> TenantBroker:
        """As ``open``, with the vault registered."""
        broker = self.open(site, **changes)
        broker.register(STAMP, VAULT_KEY, self.now)
        return broker

    def close(self) -> None:
        for broker in self.brokers.values():
            broker.close()
        self.brokers.clear()

    def restart(self, site: str = SITE, **changes: Any) -> TenantBroker:
        """All broker processes end, and one of ``site`` starts."""
        self.close()
        return self.open(site, **changes)

    def process(self, site: str = SITE, machine: Machine | None = None, **changes: Any) -> Process:
        """A job process at ``site``."""
        attester: Attester = software.SoftwareAttester(software_tee(site))
        if self.evidence == "snp":
            attester = SnpAttester(machine or Machine(chip=f"chip of {site}"))
        return replace(Process(site, self.contract.digest, attester, mtls_key(site)), **changes)

    def challenge(self, broker: TenantBroker, process: Process) -> Challenge:
        return broker.challenge(ChallengeRequest(v=1, job=process.job), process.spki, self.now)

    def released(self, broker: TenantBroker, process: Process, **changes: Any) -> Lease:
        """The lease of a release that opens to the vault's key; ``changes`` of the key request."""
        asked = process.asks(self.challenge(broker, process), **changes)
        return self.opened(broker, process, asked)

    def opened(self, broker: TenantBroker, process: Process, asked: ReleaseRequest, key: bytes = VAULT_KEY) -> Lease:
        """The lease of the release for ``asked``, which opens to ``key``."""
        release = broker.release(asked, process.spki, self.now)
        assert process.opens(asked, release) == key
        body, _ = signing.verify(release.lease, LEASE_TYPE, [broker.signing_key.public_key()], self.now)
        receipt = self.receipt(broker, release.receipt)
        assert (receipt.decision, receipt.verdict, receipt.evidence_sha256) == (
            "released",
            "pass",
            sha256(asked.evidence),
        )
        lease = msgspec.convert(body, Lease, strict=True)
        assert receipt.lease == lease.lease
        return lease

    def refused(
        self, broker: TenantBroker, asked: ReleaseRequest, spki: str | None = None, now: datetime | None = None
    ) -> Receipt:
        """The receipt of the refusal that ``asked`` meets: signed, and the last line of the audit."""
        try:
            broker.release(asked, broker.site_spki if spki is None else spki, self.now if now is None else now)
        except Refused as error:
            receipt = self.receipt(broker, error.receipt)
            assert (receipt.decision, receipt.lease) == (error.code, "")
            assert broker.receipts(receipt.seq - 1) == [error.receipt]
            return receipt
        raise AssertionError("released")

    def receipt(self, broker: TenantBroker, envelope: Any) -> Receipt:
        body, _ = signing.verify(envelope, RECEIPT_TYPE, [broker.signing_key.public_key()], self.now)
        return msgspec.convert(body, Receipt, strict=True)

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def _merged(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name: {**tree[name], **value} for name, value in changes.items() if isinstance(tree.get(name), dict)}
    return {**tree, **changes, **inner}


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[Hospitals]:
    """Software evidence (POC)."""
    made = Hospitals(tmp_path)
    yield made
    made.close()
