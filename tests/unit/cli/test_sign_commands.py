"""cordon keygen, sign, check."""

import json
import shutil
import stat
from contextlib import nullcontext
from pathlib import Path

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


def changed_job(repo_root, folder, **changes):
    """jobs/oncology_masked with some of the controller's arguments changed."""
    made = Path(shutil.copytree(repo_root / "jobs" / "oncology_masked", folder / "oncology_masked"))
    server = made / "app" / "config" / "config_fed_server.json"
    config = json.loads(server.read_text())
    args = config["workflows"][0]["args"]
    args.update({**changes, "masked": {**args["masked"], **changes.get("masked", {})}})
    server.write_text(json.dumps(config))
    return made


def test_check_of_a_masked_job_says_whom_so_many_sites_have_to_trust(repo_root, capsys):
    assert main(["check", "job", str(repo_root / "jobs" / "oncology_masked"), "--sites", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["sites"], said["privacy"]) == (5, "masked")
    assert "no protection against a lying site" in said["trust"]


@pytest.mark.parametrize(
    ("sites", "changes", "reasons"),
    [
        (3, {}, ["buffer = 4 > N = 3 sites"]),
        (5, {"masked": {"u_min": 3, "c": 2}}, ["c = 2 > u_min - 2 = 1"]),
        (5, {"rule": "median"}, ["rule = median"]),
        (
            6,
            {"rule": "median", "buffer": 3, "masked": {"groups": {"size": 3, "f": 1, "may_stop": 1}}},
            ["floor(N/g) = floor(6/3) = 2 groups < 2f + 1 + may_stop = 4", "buffer = 3 > floor(N/g) - may_stop = 1"],
        ),
        (
            9,
            {"rule": "median", "buffer": 3, "masked": {"groups": {"size": 3, "f": 1, "drop_outs": 1}}},
            ["K = 3 < max(t, u_min) + drop_outs = max(3, 3) + 1 = 4"],
        ),
        (9, {"buffer": 3, "masked": {"groups": {"size": 3, "f": 1}}}, ["weighted_mean bears f = 0"]),
    ],
)
def test_check_of_a_job_names_every_inequality_that_so_many_sites_break(
    repo_root, tmp_path, capsys, sites, changes, reasons
):
    folder = changed_job(repo_root, tmp_path, **changes)
    assert main(["check", "job", str(folder)]) == 0  # only N can tell
    assert main(["check", "job", str(folder), "--sites", str(sites)]) == 3
    said = capsys.readouterr().err
    assert all(reason in said for reason in reasons), said


def test_check_of_feasible_groups(repo_root, tmp_path, capsys):
    folder = changed_job(repo_root, tmp_path, rule="median", buffer=3, masked={"groups": {"size": 3, "f": 1}})
    assert main(["check", "job", str(folder), "--sites", "9"]) == 0
    assert "bears 1 lying site in all" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"rule": "median"}, {"rule": "krum", "rule_args": {"f": 0}}])
def test_check_of_a_sealed_job_whose_release_would_show_a_hospital(repo_root, tmp_path, capsys, changes):
    folder = Path(shutil.copytree(repo_root / "jobs" / "oncology", tmp_path / "oncology"))
    server = folder / "app" / "config" / "config_fed_server.json"
    config = json.loads(server.read_text())
    config["workflows"][0]["args"].update(changes)
    server.write_text(json.dumps(config))
    assert main(["check", "job", str(folder), "--sites", "5"]) == 3
    assert "fewer than 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["study", "x", "--sites", "5"],
        ["kit", "x", "--sites", "5"],
        ["job", "x", "--sites", "0"],
        ["job", "x", "--sites", "1001"],
        ["job", "x", "--sites", "five"],
    ],
)
def test_sites_are_a_number_and_go_with_a_job(args, capsys):
    with pytest.raises(SystemExit) if args[0] == "job" else nullcontext() as stopped:
        assert main(["check", *args]) == 3
    assert stopped is None or stopped.value.code == 3
    assert "--sites" in capsys.readouterr().err


def test_check_of_what_does_not_fit(repo_root):
    assert main(["check", "study", str(repo_root / "cc_config/policy/software.yml")]) == 3
    assert main(["check", "job", str(repo_root / "docker")]) == 3
