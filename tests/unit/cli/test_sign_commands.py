"""cordon keygen, sign, check."""

import json
import shutil
import stat

import pytest

from cordon import documents, signing
from cordon.cli import main
from cordon.data import contract


@pytest.fixture
def mapping(repo_root, tmp_path):
    return shutil.copy(repo_root / "provisioning" / "poc" / "mappings" / "hospital-a.yml", tmp_path / "m.yml")


def test_keygen_sign_verify(tmp_path, mapping, capsys):
    key, public = tmp_path / "k.pem", tmp_path / "k.pub"
    assert main(["keygen", "--out", str(key), "--pub", str(public)]) == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    spki = capsys.readouterr().out.split("spki: ")[1].strip()
    assert main(["sign", "--key", str(key), "--as", "mapping", str(mapping)]) == 0
    for trusted in (signing.load_public_key(public.read_bytes()), signing.decode_spki(spki)):
        from datetime import UTC, datetime

        documents.load_signed(mapping, contract.Mapping, contract.MAPPING_SCHEMA, [trusted], datetime.now(UTC))


def test_a_key_is_never_overwritten(tmp_path, capsys):
    key = tmp_path / "k.pem"
    key.write_text("precious")
    assert main(["keygen", "--out", str(key)]) == 3
    assert key.read_text() == "precious"
    assert "never overwritten" in capsys.readouterr().err


def test_nothing_is_signed_that_no_kit_would_accept(tmp_path, mapping, capsys):
    key = tmp_path / "k.pem"
    main(["keygen", "--out", str(key)])
    assert main(["sign", "--key", str(key), "--as", "site", str(mapping)]) == 3
    assert not documents.signature_path(mapping).exists()
    assert "version" in capsys.readouterr().err


def test_an_unreadable_key_is_a_usage_error(tmp_path, mapping):
    assert main(["sign", "--key", str(tmp_path / "none.pem"), "--as", "mapping", str(mapping)]) == 3


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("contract", "jobs/oncology/app/config/contract.yml"),
        ("mapping", "provisioning/poc/mappings/hospital-b.yml"),
        ("attestation", "cc_config/policy/software.yml"),
    ],
)
def test_check_says_the_digest(repo_root, capsys, kind, path):
    assert main(["check", kind, str(repo_root / path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert len(bytes.fromhex(said["digest"])) == 32


def test_check_of_a_job_folder(repo_root, tmp_path, capsys):
    folder = tmp_path / "oncology"
    (folder / "app" / "config").mkdir(parents=True)
    shutil.copy(repo_root / "jobs/oncology/meta.json", folder)
    for name in ("config_fed_server.json", "config_fed_client.json", "contract.yml"):
        shutil.copy(repo_root / "jobs/oncology/app/config" / name, folder / "app" / "config")
    assert main(["check", "job", str(folder)]) == 0
    server = folder / "app" / "config" / "config_fed_server.json"
    server.write_text(server.read_text().replace("AsyncController", "Controller"))
    assert main(["check", "job", str(folder)]) == 3
    assert "AsyncController" in capsys.readouterr().err


def test_check_of_what_does_not_fit(repo_root):
    assert main(["check", "study", str(repo_root / "cc_config/policy/software.yml")]) == 3
    assert main(["check", "job", str(repo_root / "docker")]) == 3
