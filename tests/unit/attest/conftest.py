"""A prover and a verifier as plain values."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from cordon.attest import software
from cordon.attest.appraise import Appraisal, appraise, make_evidence, parent_context
from cordon.attest.keys import ProcessKeys
from cordon.attest.policy import AttestationPolicy

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
STUDY = "5" * 64


def policy(**changes):
    fields = {
        "version": "cordon/attestation/v1",
        "name": "test",
        "profile": "poc",
        "evidence": ("software",),
        "allow_software": True,
        "measurement": "any",
        "bundle_digest": "any",
        "gpu": "none",
        "root": "root.pem",
        "max_age_s": 30.0,
        "lease_s": 90.0,
    }
    return AttestationPolicy(**{**fields, **changes})


@dataclass
class World:
    """hospital-a proves to somebody who knows its mTLS key."""

    root: software.Issued
    attester: software.SoftwareAttester
    mtls: RSAPrivateKey
    keys: ProcessKeys
    policy: AttestationPolicy
    nonce: bytes = b"n" * 32
    now: datetime = NOW
    study: str = STUDY

    def context(self, **changes):
        context = parent_context("hospital-a", STUDY, self.policy.digest)
        return type(context)(**{**{f: getattr(context, f) for f in context.__struct_fields__}, **changes})

    def evidence(self, **changes):
        return make_evidence(self.attester, self.context(**changes), self.nonce, self.keys, self.mtls)

    def judge(self, evidence, **changes) -> Appraisal:
        arguments = {
            "nonce": self.nonce,
            "context": self.context(),
            "mtls_key": self.mtls.public_key(),
            "policy": self.policy,
            "roots": {"software": self.root.certificate},
            "now": NOW,
        }
        return appraise(evidence, **{**arguments, **changes})


@pytest.fixture(scope="session")
def mtls_key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


@pytest.fixture
def make_policy():
    return policy


@pytest.fixture
def world(mtls_key) -> World:
    root = software.make_root("test", NOW)
    attester = software.SoftwareAttester(software.issue(root, "hospital-a", NOW))
    return World(root, attester, mtls_key, ProcessKeys.generate(), policy())
