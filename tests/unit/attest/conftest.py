"""A prover and a verifier as plain values."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from cordon.attest import software
from cordon.attest.appraise import EvidenceAppraisal, appraise, make_evidence, parent_context
from cordon.attest.keys import ProcessKeys
from cordon.attest.policy import AttestationPolicy
from cordon.attest.vendor import Trust
from fakes.policies import policy as make

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
STUDY = "5" * 64


def policy(**changes):
    return make("software", **{"max_age_s": 30.0, "lease_s": 90.0, **changes})


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

    @property
    def trust(self):
        return Trust(self.policy, software_root=self.root.certificate)

    def context(self, **changes):
        context = parent_context("hospital-a", STUDY, self.policy.digest)
        return type(context)(**{**{f: getattr(context, f) for f in context.__struct_fields__}, **changes})

    def evidence(self, **changes):
        return make_evidence(self.attester, self.context(**changes), self.nonce, self.keys, self.mtls)

    def judge(self, evidence, **changes) -> EvidenceAppraisal:
        arguments = {
            "nonce": self.nonce,
            "context": self.context(),
            "mtls_key": self.mtls.public_key(),
            "trust": self.trust,
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
