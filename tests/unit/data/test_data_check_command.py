"""``cordon data check``: verdict, exit codes, and never a value."""

import argparse
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import new_file, signing
from cordon.cli import data
from cordon.data.vault import seal
from cordon.errors import CordonError

POLICY = """\
version: cordon/site/v1
site: hospital-e
allow: {studies: [s], jobs: [oncology], models: [m], privacy_modes: [sealed], contracts: []}
dp: {epsilon: 4.0, delta: 1.0e-5, unit: patient, adjacency: add_or_remove_one, min_noise: 0.5}
data: {connector: csv, unsafe_source: ../data/e.csv, mapping: mappings/wdbc-1.0.0.yml}
attestation: {policy: attestation.yml}
"""


@pytest.fixture
def kit(tmp_path, hospital, repo_root):
    local = tmp_path / "kit" / "local"
    (local / "mappings").mkdir(parents=True)
    (local / "cordon.yml").write_text(POLICY)
    mapping = repo_root / "provisioning" / "poc" / "mappings" / "hospital-e.yml"
    (local / "mappings" / "wdbc-1.0.0.yml").write_bytes(mapping.read_bytes())
    (tmp_path / "kit" / "data").mkdir()
    hospital("csv").rename(tmp_path / "kit" / "data" / "e.csv")
    return tmp_path / "kit"


def check(kit, repo_root, *more):
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers(required=True))
    contract = repo_root / "jobs" / "oncology" / "app" / "config" / "contract.yml"
    args = parser.parse_args(
        ["data", "check", "--policy", str(kit / "local" / "cordon.yml"), "--contract", str(contract), *more]
    )
    try:
        return args.run(args)
    except CordonError as error:
        return error.exit_code


def test_good_data(kit, repo_root, capsys):
    assert check(kit, repo_root) == 0
    out = capsys.readouterr().out
    assert "signature is not checked" in out
    assert out.split("patients in")[1].split()[0] == "30"
    assert out.split("values in")[1].split()[0] == "930"


def test_rejected_rows_are_listed_without_values(kit, repo_root, capsys):
    path = kit / "data" / "e.csv"
    lines = path.read_text().splitlines()
    cells = lines[4].split(",")
    cells[1] = "424242.5"
    lines[4] = ",".join(cells)
    path.write_text("\n".join(lines))
    assert check(kit, repo_root) == 0  # 1 of 30 is within the contract's 5 %
    out = capsys.readouterr().out
    assert "e.csv:5  mean_radius  out_of_range" in out
    assert "424242" not in out
    assert check(kit, repo_root, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and document["signature"] == "not_checked"
    assert document["rows"]["rejected"] == {"out_of_range": 1, "patient_rejected": 30}


def test_bad_data_shows_the_table_and_exits_1(kit, repo_root, capsys):
    path = kit / "data" / "e.csv"
    path.write_text(path.read_text().replace(".", ","))
    assert check(kit, repo_root, "--json") == 1
    text = path.read_text().splitlines()
    path.write_text("\n".join([text[0], *(line.split(",")[0] + ",nan" * 30 + ",M" for line in text[1:])]))
    capsys.readouterr()
    assert check(kit, repo_root, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["code"] == "data_not_finite" and not document["ok"]
    assert len(document["examples"]) == data.SHOWN


def test_unreadable_input_exits_3(kit, repo_root):
    (kit / "local" / "mappings" / "wdbc-1.0.0.yml").unlink()
    assert check(kit, repo_root) == 3
    (kit / "local" / "cordon.yml").write_text("version: [")
    assert check(kit, repo_root) == 3


def test_missing_source_exits_1(kit, repo_root):
    (kit / "data" / "e.csv").unlink()
    assert check(kit, repo_root) == 1


@pytest.fixture
def vault_kit(kit):
    """The same site with its data in a vault; the key lies beside the kit."""
    policy = kit / "local" / "cordon.yml"
    spki = signing.encode_spki(Ed25519PrivateKey.generate().public_key())
    text = policy.read_text().replace("unsafe_source: ../data/e.csv", "vault: ../data/e.vault")
    policy.write_text(text + f"broker: {{url: 'https://broker.example', spki: {spki}}}\n")
    with open(kit / "data" / "e.csv", "rb") as file:
        seal([("e.csv", file)], kit / "data" / "e.vault", b"k" * 32, chunk=4096)
    (kit / "data" / "e.csv").unlink()
    new_file.write(kit / "key", b"k" * 32)
    return kit


def test_a_vault_is_read_with_its_key(vault_kit, repo_root, capsys):
    assert check(vault_kit, repo_root, "--key", str(vault_kit / "key")) == 0
    out = capsys.readouterr().out
    assert "newest version of the vault is not checked" in out
    assert out.split("patients in")[1].split()[0] == "30"
    assert check(vault_kit, repo_root, "--key", str(vault_kit / "key"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["newest_vault"] == "not_checked"


def test_a_vault_wants_its_key_and_a_plain_source_none(vault_kit, kit, repo_root):
    assert check(vault_kit, repo_root) == 3
    (vault_kit / "key").write_bytes(b"o" * 32)
    assert check(vault_kit, repo_root, "--key", str(vault_kit / "key")) == 1
    (vault_kit / "key").write_bytes(b"o" * 31)
    assert check(vault_kit, repo_root, "--key", str(vault_kit / "key")) == 3
    (kit / "local" / "cordon.yml").write_text(POLICY)
    assert check(kit, repo_root, "--key", str(vault_kit / "key")) == 3


def test_a_tampered_vault_exits_1_and_a_missing_one_3(vault_kit, repo_root):
    (vault_kit / "key").write_bytes(b"k" * 32)
    path = vault_kit / "data" / "e.vault"
    data = bytearray(path.read_bytes())
    data[6000] ^= 1
    path.write_bytes(data)
    assert check(vault_kit, repo_root, "--key", str(vault_kit / "key")) == 1
    path.write_bytes(b"patient_id,x\n" * 100)
    assert check(vault_kit, repo_root, "--key", str(vault_kit / "key")) == 3
    path.unlink()
    assert check(vault_kit, repo_root, "--key", str(vault_kit / "key")) == 3
