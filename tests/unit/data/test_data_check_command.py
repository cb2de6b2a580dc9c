"""``cordon data check``: verdict, exit codes, and never a value."""

import argparse
import json

import pytest

from cordon.cli import data
from cordon.errors import CordonError

POLICY = """\
version: cordon/site/v1
site: hospital-e
allow: {studies: [s], jobs: [oncology], models: [m], privacy_modes: [unsafe_plain], contracts: []}
dp: {epsilon: 4.0, delta: 1.0e-5, unit: patient, adjacency: add_or_remove_one, min_noise: 0.5}
data: {connector: csv, source: ../data/e.csv, mapping: mappings/wdbc-1.0.0.yml}
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
