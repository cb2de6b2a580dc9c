"""A coordinator frames an honest site: it shows a fault record that the site never earned. Nobody needs to believe it.

A third party judges the site's own signed evidence again, by the policy that it knows to be in force.
"""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from cordon import signing
from cordon.attest import fault, software
from cordon.attest.appraise import appraise, make_evidence, parent_context
from cordon.attest.keys import ProcessKeys
from cordon.attest.vendor import Trust
from cordon.errors import AttestError, SignatureError
from fakes.policies import policy

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
STUDY, NONCE = "5" * 64, b"n" * 32
ROOT = software.make_root("workspace", NOW)
SITE, COORDINATOR, OTHER = (generate_private_key(65537, 2048) for _ in range(3))
HONEST = software.SoftwareAttester(software.issue(ROOT, "hospital-a", NOW))
LENT = software.SoftwareAttester(software.issue(ROOT, "hospital-b", NOW))
TRUST = Trust(policy("software"), software_root=ROOT.certificate)


def _evidence(attester=HONEST, trust=TRUST, mtls=SITE, site="hospital-a", study=STUDY, nonce=NONCE):
    context = parent_context(site, study, trust.policy.digest)
    return make_evidence(attester, context, nonce, ProcessKeys.generate(), mtls)


def _judged(evidence, trust=TRUST, nonce=NONCE, now=NOW):
    context = parent_context("hospital-a", STUDY, trust.policy.digest)
    return appraise(evidence, nonce=nonce, context=context, mtls_key=SITE.public_key(), trust=trust, now=now)


def _accused(evidence, trust=TRUST, nonce=NONCE, now=NOW):
    """What an honest coordinator's code makes of ``evidence``; None where it proves no fault."""
    judged = _judged(evidence, trust, nonce, now)
    return fault.record("server", COORDINATOR, "hospital-a", STUDY, evidence, trust, judged, now)


def _forged(evidence, key=COORDINATOR, **changes):
    """A record written by hand: a coordinator signs what it likes."""
    body = {
        "v": 1,
        "verifier": "server",
        "peer": "hospital-a",
        "study": STUDY,
        "policy_digest": TRUST.policy.digest,
        "time": NOW.isoformat(),
        "evidence": evidence,
        "failures": [["measurement", "made up"]],
    }
    return signing.sign(key, fault.FAULT_TYPE, {**body, **changes})


def _third_party(record, trust=TRUST, now=NOW + timedelta(days=1)):
    return fault.verify(
        record,
        verifier_key=COORDINATOR.public_key(),
        peer="hospital-a",
        peer_key=SITE.public_key(),
        study=STUDY,
        trust=trust,
        now=now,
    )


def _unproven(record, **changes):
    with pytest.raises(AttestError, match="fault_unproven"):
        _third_party(record, **changes)


def test_a_true_fault_is_found_again():
    assert [code for code, _ in _third_party(_accused(_evidence(LENT)))] == ["tee_holder"]


def test_good_evidence_with_an_invented_list_of_failures():
    assert _accused(_evidence()) is None
    _unproven(_forged(_evidence()))


def test_a_replay_that_only_the_verifier_says_it_is():
    old = _evidence(nonce=b"o" * 32)
    assert _judged(old).verdict == "fail"
    assert _accused(old) is None
    _unproven(_forged(old))


def test_a_policy_that_no_hospital_agreed_to():
    """The site is asked to answer for a policy that it cannot meet; the third party holds the agreed one."""
    trap = Trust(policy("software", software={"measurement": ["0" * 64]}), software_root=ROOT.certificate)
    record = _accused(_evidence(trust=trap), trust=trap)
    assert record is not None
    _unproven(record)
    _unproven(_forged(_evidence(trust=trap)))


def test_evidence_of_somebody_else():
    _unproven(_forged(_evidence(LENT, mtls=OTHER, site="hospital-b")))
    _unproven(_forged(_evidence(LENT, mtls=OTHER)))
    _unproven(_forged(_evidence(LENT), peer="hospital-b"))


def test_evidence_that_was_made_for_another_study():
    _unproven(_forged(_evidence(study="6" * 64)))
    _unproven(_forged(_evidence(), study="6" * 64))


def test_changed_evidence():
    evidence = _evidence()
    body = {**signing.unverified_body(evidence), "report": "AAAA"}
    _unproven(_forged({**evidence, "payload": signing.sign(OTHER, "x", body)["payload"]}))
    for garbage in ({}, {"payload": 3}, {**evidence, "signatures": []}):
        _unproven(_forged(garbage))


def test_an_old_answer_shown_after_its_certificate_ended():
    """The time of a record is the verifier's word; what fails by the clock alone proves nothing."""
    late = NOW + timedelta(days=500)
    assert _judged(_evidence(), now=late).verdict == "fail"
    assert _accused(_evidence(), now=late) is None
    _unproven(_forged(_evidence(), time=late.isoformat()), now=late + timedelta(days=1))
    _unproven(_forged(_evidence(LENT), time=late.isoformat()))  # of the future


@pytest.mark.parametrize(
    "time", ["2026-06-01T12:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", 1e30]
)
def test_a_record_of_no_time(time):
    _unproven(_forged(_evidence(LENT), time=time))


def test_a_record_by_somebody_else():
    with pytest.raises(SignatureError):
        _third_party(_forged(_evidence(LENT), key=OTHER))
    record = _accused(_evidence(LENT))
    with pytest.raises(SignatureError):
        _third_party({**record, "payloadType": "text/plain"})


def test_silence_and_garbage_are_no_fault():
    for garbage in (None, {}, [], {"payload": "AAAA", "payloadType": "x", "signatures": []}):
        assert _accused(garbage) is None


@pytest.mark.parametrize("field", fault.FaultRecord.__struct_fields__)
def test_every_field_must_be_there(field):
    body = signing.unverified_body(_accused(_evidence(LENT)))
    del body[field]
    _unproven(signing.sign(COORDINATOR, fault.FAULT_TYPE, body))


def test_the_record_survives_json():
    record = msgspec.json.decode(msgspec.json.encode(_accused(_evidence(LENT))))
    assert _third_party(record)
