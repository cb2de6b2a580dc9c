"""``cordon attest fault``: a record as a coordinator's manager keeps it, read by somebody else."""

import json
import shutil
from datetime import UTC, datetime

import pytest

from cordon import cli, documents, signing
from cordon.attest import fault, software
from cordon.attest.appraise import appraise, make_evidence, parent_context
from cordon.attest.keys import ProcessKeys
from cordon.attest.policy import SCHEMA
from cordon.flare.kit import load_kit
from fakes.federation_kits import HOSPITALS, SERVER, make_kits

NOW = datetime.now(UTC)
PEER = HOSPITALS[0]


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def record(kits, tmp_path):
    """hospital-a answers with the TEE key of hospital-b."""
    server, site, other = (load_kit(kits / name, NOW) for name in (SERVER, PEER, HOSPITALS[1]))
    assert isinstance(other.attester, software.SoftwareAttester)
    context = parent_context(PEER, server.study.digest, server.trust.policy.digest)
    evidence = make_evidence(other.attester, context, b"n" * 32, ProcessKeys.generate(), site.mtls_key)
    judged = appraise(
        evidence,
        nonce=b"n" * 32,
        context=context,
        mtls_key=site.mtls_key.public_key(),
        trust=server.trust,
        now=NOW,
    )
    made = fault.record(SERVER, server.mtls_key, PEER, server.study.digest, evidence, server.trust, judged, NOW)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(made))
    return path


def _arguments(kits, record, *more):
    local = kits / SERVER / "local"
    return ["attest", "fault", str(record), "--study", str(local / "study.yml"), "--policy",
            str(local / "attestation.yml"), *more]  # fmt: skip


def test_a_proven_fault(kits, record, capsys):
    assert cli.main(_arguments(kits, record, "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["proven"] is True
    assert (said["verifier"], said["peer"]) == (SERVER, PEER)
    assert [each["code"] for each in said["failures"]] == ["tee_holder"]
    assert cli.main(_arguments(kits, record)) == 0
    assert "server accuses hospital-a: proven" in capsys.readouterr().out


def _other_policy(kits, record, tmp_path, signers):
    local = shutil.copytree(kits / SERVER / "local", tmp_path / "local")
    policy = local / "attestation.yml"
    policy.write_text(policy.read_text().replace("lease_s: 120", "lease_s: 121"))
    (local / "attestation.yml.sig").unlink()
    for name in signers:
        key = signing.load_private_key((kits / "state" / "cordon_keys" / f"{name}.policy.key").read_bytes())
        documents.sign_file(policy, SCHEMA, key)
    arguments = _arguments(kits, record, "--json")
    arguments[arguments.index("--policy") + 1] = str(policy)
    return arguments


def test_another_policy_than_the_one_in_force_proves_nothing(kits, record, tmp_path, capsys):
    assert cli.main(_other_policy(kits, record, tmp_path, HOSPITALS)) == 1
    assert json.loads(capsys.readouterr().out)["proven"] is False


@pytest.mark.parametrize("signers", [(), HOSPITALS[1:]])
def test_a_policy_that_not_all_hospitals_signed_is_not_in_force(kits, record, tmp_path, capsys, signers):
    assert cli.main(_other_policy(kits, record, tmp_path, signers)) == 3
    assert "policy_signature" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"payload": "AAAA"}', b'{"payload": "e30="}', b"null"]
)
def test_what_is_no_record(kits, tmp_path, content, capsys):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    assert cli.main(_arguments(kits, path)) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "record_format" in error or "input_empty" in error


def test_a_study_that_nobody_signed(kits, record, tmp_path, capsys):
    study = tmp_path / "study.yml"
    shutil.copy(kits / SERVER / "local" / "study.yml", study)
    arguments = _arguments(kits, record)
    arguments[arguments.index("--study") + 1] = str(study)
    assert cli.main(arguments) == 3
    assert "study_format" in capsys.readouterr().err
