"""Leases: who passed, until when, and when to ask again."""

from datetime import timedelta

import pytest

from cordon.attest import software
from cordon.attest.appraise import make_evidence, parent_context
from cordon.attest.nonce import Nonces
from cordon.attest.verifier import Verifier


@pytest.fixture
def verifier(world, tmp_path):
    return Verifier(world.trust, world.study, Nonces(tmp_path / "n.json"))


def _answer(world, verifier, now, mtls=None):
    nonce = verifier.challenge("hospital-a", now)
    context = parent_context("hospital-a", world.study, world.policy.digest)
    evidence = make_evidence(world.attester, context, nonce, world.keys, mtls or world.mtls)
    return verifier.judge("hospital-a", world.mtls.public_key(), nonce, evidence, now)


def test_a_pass_gives_a_lease_that_ends(world, verifier):
    assert not verifier.live("hospital-a", world.now)
    assert _answer(world, verifier, world.now).verdict == "pass"
    assert verifier.live("hospital-a", world.now + timedelta(seconds=89))
    assert not verifier.live("hospital-a", world.now + timedelta(seconds=90))
    assert not verifier.live("hospital-a", world.now - timedelta(seconds=1))  # clock set back
    assert not verifier.live("hospital-b", world.now)


def test_it_is_renewed_in_its_last_third(world, verifier):
    assert verifier.due("hospital-a", world.now)
    _answer(world, verifier, world.now)
    assert not verifier.due("hospital-a", world.now + timedelta(seconds=59))
    assert verifier.due("hospital-a", world.now + timedelta(seconds=60))


def test_a_failure_ends_the_lease_at_once_and_waits_before_asking_again(world, verifier):
    _answer(world, verifier, world.now)
    later = world.now + timedelta(seconds=10)
    nonce = verifier.challenge("hospital-a", later)
    assert verifier.judge("hospital-a", world.mtls.public_key(), nonce, None, later).verdict == "fail"
    assert not verifier.live("hospital-a", later)
    assert not verifier.due("hospital-a", later)
    assert verifier.due("hospital-a", later + timedelta(seconds=31))
    assert _answer(world, verifier, later + timedelta(seconds=31)).verdict == "pass"  # it may come back


def test_an_answer_counts_once(world, verifier):
    nonce = verifier.challenge("hospital-a", world.now)
    context = parent_context("hospital-a", world.study, world.policy.digest)
    evidence = make_evidence(world.attester, context, nonce, world.keys, world.mtls)
    judge = lambda: verifier.judge("hospital-a", world.mtls.public_key(), nonce, evidence, world.now)  # noqa: E731
    assert judge().verdict == "pass"
    assert judge().codes[0][0] == "nonce_unknown"
    assert not verifier.live("hospital-a", world.now)


def test_a_fault_that_anybody_can_repeat_is_quarantine_and_the_rest_is_not(world, verifier):
    """Silence, garbage and a stranger's signature prove nothing against the site whose name is on them."""
    key, later = world.mtls.public_key(), world.now + timedelta(seconds=31)
    for evidence in (None, {"payload": 3}, world.evidence()):  # the last one answers another challenge
        verifier.judge("hospital-a", key, verifier.challenge("hospital-a", world.now), evidence, world.now)
        assert verifier.standings["hospital-a"].state == "unattested"
        assert verifier.standings["hospital-a"].reasons
    world.attester = software.SoftwareAttester(software.issue(world.root, "hospital-b", world.now))
    assert _answer(world, verifier, later).verdict == "fail"
    assert verifier.standings["hospital-a"].state == "quarantined"
    assert verifier.standings["hospital-a"].reasons == ("tee_holder",)
