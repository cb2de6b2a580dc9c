"""Reports of the software TEE."""

from datetime import timedelta

import msgspec
import pytest

from cordon import signing
from cordon.attest import software
from cordon.errors import AttestError, ConfigError

DATA = b"d" * 64


def _codes(report, world, **changes):
    with pytest.raises(AttestError) as caught:
        software.verify(report, **{"root": world.root.certificate, "now": world.now, **changes})
    return [code for code, _ in caught.value.failures]


def test_a_genuine_report_gives_its_claims(world):
    appraisal = software.verify(world.attester.report(DATA).report, world.root.certificate, world.now)
    claims = appraisal.claims
    assert claims["report_data"] == DATA.hex()
    assert claims["holder"] == "hospital-a"
    assert len(bytes.fromhex(claims["measurement"])) == 32
    assert appraisal.genuine
    assert appraisal.verdict == "not_checked"  # no policy
    assert "proves nothing about hardware" in appraisal.codes[0][2]


def test_files_round_trip(world):
    tee = world.attester.tee
    loaded = software.load_attester(tee.certificate_pem, tee.key_pem)
    appraisal = software.verify(loaded.report(DATA).report, world.root.certificate, world.now, "any")
    assert appraisal.verdict == "pass"
    assert appraisal.claims["holder"] == "hospital-a"


def test_every_byte_matters(world):
    report = world.attester.report(DATA).report
    for index in range(0, len(report), 7):
        changed = bytearray(report)
        changed[index] ^= 1
        with pytest.raises(AttestError):
            software.verify(bytes(changed), world.root.certificate, world.now)


def test_another_root_is_refused(world):
    other = software.make_root("test", world.now)  # same name, other key
    assert _codes(world.attester.report(DATA).report, world, root=other.certificate) == ["report_chain"]


def test_the_root_itself_is_no_tee_key(world):
    report = software.SoftwareAttester(world.root).report(DATA).report
    assert _codes(report, world) == ["report_chain"]


def test_a_key_certified_by_a_tee_key_is_refused(world):
    below = software.issue(world.attester.tee, "hospital-a", world.now)
    assert _codes(software.SoftwareAttester(below).report(DATA).report, world) == ["report_chain"]


def test_certificates_have_a_lifetime(world):
    report = world.attester.report(DATA).report
    for days in (-1, 400):
        assert _codes(report, world, now=world.now + timedelta(days=days)) == ["report_time"]


def test_a_signature_by_another_key_is_refused(world):
    other = software.SoftwareAttester(software.issue(world.root, "hospital-b", world.now))
    mine, theirs = (msgspec.json.decode(each.report(DATA).report) for each in (world.attester, other))
    spliced = signing.canonical({"certificate": mine["certificate"], "envelope": theirs["envelope"]})
    assert _codes(spliced, world) == ["report_signature"]


@pytest.mark.parametrize("report", [b"", b"{}", b"[]", b"\xff", b'{"certificate": 1, "envelope": 2}', b"x" * 20_000])
def test_garbage_is_named_as_such(world, report):
    assert _codes(report, world) == ["report_format"]


def test_a_key_file_of_another_kind_is_refused(world, mtls_key):
    from cryptography.hazmat.primitives import serialization

    pem = mtls_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigError, match="Ed25519"):
        software.load_attester(world.attester.tee.certificate_pem, pem)
