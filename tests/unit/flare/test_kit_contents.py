"""A kit is data: what FLARE and Python act on is as provisioned, and what a federation writes is no hindrance."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nvflare.apis.workspace import Workspace
from nvflare.fuel.utils.config import ConfigFormat
from nvflare.fuel.utils.config_service import ConfigService

from cordon import documents
from cordon.errors import ConfigError
from cordon.flare import kit_contents, kit_files
from cordon.flare.kit import read_kit

NOW = datetime.now(UTC)


@pytest.fixture
def kit(made_kits, tmp_path):
    return shutil.copytree(made_kits / "hospital-a", tmp_path / "hospital-a")


@pytest.fixture
def server(made_kits, tmp_path):
    return shutil.copytree(made_kits / "server", tmp_path / "server")


def test_what_a_running_federation_writes_may_be_there(kit):
    """The names are those that a POC federation left behind."""
    job = kit / "7e78ffc2-e3d2-4947-bf4e-a5f206decaf5"
    for folder in (job / "app_hospital-a" / "config", kit / "quarantine", kit / "cordon_state" / "jobs", kit / "data"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (
        *("attestation.jsonl", "attestation_nonces.json", "attestation_standing.json", "audit.log", "daemon_pid.fl"),
        *("error_log.txt", "log.json", "log.json.1", "log.txt", "log_fl.txt", "pid.fl", "poc_console.log"),
        *("readme.txt", "restart.fl", "shutdown.fl", "signature.json", "_process_rc.txt", "data/patients.csv"),
        *("data/fhir_resources.json", "data/site.yml"),
        *("quarantine/hospital-a.json", f"{job.name}/meta.json", f"{job.name}/fl_app.txt", f"{job.name}/audit.log"),
        *(f"{job.name}/app_hospital-a/config/{each}" for each in ("config_fed_client.json", "contract.yml")),
        *(f"{job.name}/app_hospital-a/{each}" for each in (".__nvfl_sig.json", ".__nvfl_submitter.crt")),
    ):
        (kit / name).write_text("x")
    assert read_kit(kit, NOW).name == "hospital-a"


def test_fresh_collateral_and_other_vendors_files_go_through_their_own_reader(kit):
    folder = kit / "local" / "collateral"
    folder.mkdir()
    (folder / "README.md").write_text("where these come from")
    (folder / "signature.json").write_text("{}")  # FLARE's provisioner signs every folder
    assert read_kit(kit, NOW)
    (folder / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"notes\.txt: not collateral"):
        read_kit(kit, NOW)


def test_a_job_that_ends_meanwhile_is_no_error(kit, monkeypatch):
    job = kit / "job"
    job.mkdir()

    def walk(folder, onerror):
        onerror(FileNotFoundError(2, "No such file", str(job)))
        return iter([])

    monkeypatch.setattr(kit_contents.os, "walk", walk)
    assert list(kit_contents._walk(kit)) == []
    monkeypatch.setattr(kit_contents.os, "walk", lambda _, onerror: onerror(PermissionError(13, "denied", str(job))))
    with pytest.raises(ConfigError, match="job: cannot be looked at: denied"):
        list(kit_contents._walk(kit))


# -- what FLARE does with it: if it changes, so must the list --------------------------------------------------------


def test_every_file_that_flare_starts_from_is_compared(kit, server):
    for root, role, is_server in ((kit, "hospital", False), (server, "coordinator", True)):
        expected = kit_contents.Expected(role, root.name, "server", None if is_server else False, ())
        compared = set(map(str, kit_contents._configs(root, expected)))
        for for_job in (False, True):
            assert set(Workspace(str(root), root.name).get_config_files_for_startup(is_server, for_job)) <= compared
        workspace = Workspace(str(root), root.name)
        assert {workspace.get_log_config_file_path(), workspace.get_authorization_file_path()} <= compared


def test_flare_knows_no_other_formats():
    assert set(ConfigFormat.config_ext_formats()) == {
        f"{form}{end}" for form in kit_contents.FORMATS for end in ("", ".default")
    }


@pytest.mark.parametrize("place", ["", "data/", "7e78ffc2/app_server/config/", "local/mappings/"])
@pytest.mark.parametrize("stem", ["comm_config", "resources"])
def test_flare_finds_settings_anywhere_in_a_kit(kit, monkeypatch, place, stem):
    """Why a name can be refused in data/ too."""
    path = kit / place / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"found": true}')
    (kit / "local" / "resources.json.default").unlink()
    monkeypatch.setattr(ConfigService, "_config_path", [str(kit)])
    assert ConfigService.load_configuration(f"{stem}.json").to_dict() == {"found": True}
    path.unlink()
    assert ConfigService.load_configuration("comm_config.json") is None


# -- values that may vary --------------------------------------------------------------------------------------------


def _change(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_a_coordinator_keeps_its_jobs_where_it_likes(server):
    """`nvflare poc prepare` moves them, into a resources.json that wins over the default."""
    path = server / "local" / "resources.json"
    shutil.copy(server / "local" / "resources.json.default", path)

    def move(tree):
        tree["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = "/srv/flare/snapshots"
        next(each for each in tree["components"] if each["id"] == "job_manager")["args"]["uri_root"] = "/srv/flare/jobs"

    _change(path, move)
    assert read_kit(server, NOW)
    _change(path, lambda tree: tree["snapshot_persistor"]["args"]["storage"]["args"].update(root_dir="/srv/../etc"))
    with pytest.raises(ConfigError, match=r"resources\.json: /snapshot_persistor/args/storage/args/root_dir: "):
        read_kit(server, NOW)


@pytest.mark.parametrize(
    ("target", "good"),
    [
        *((each, True) for each in ("fl.example:8002", "localhost:1", "10.0.0.1:65535", "[::1]:8002")),
        *((each, False) for each in ("fl.example", ":8002", "a b:1", "fl.example:8002/x", "{x}:1", "fl:80021x", 8002)),
    ],
)
def test_where_the_server_is(kit, target, good):
    path = kit / "startup" / "fed_client.json"
    _change(path, lambda tree: tree["servers"][0]["service"].update(target=target))
    if good:
        assert read_kit(kit, NOW)
    else:
        with pytest.raises(ConfigError, match=r"fed_client\.json: /servers/0/service/target: .* is no address"):
            read_kit(kit, NOW)


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({"num_of_gpus": 8, "mem_per_gpu_in_GiB": 80}, True),
        ({"num_of_gpus": -1}, False),
        ({"num_of_gpus": True}, False),
        ({"num_of_gpus": 1.0}, False),
        ({"expiration_period": 301}, False),
        ({"more": 1}, False),
    ],
)
def test_a_hospital_has_the_gpus_that_it_has(kit, change, good):
    path = kit / "local" / "resources.json.default"
    _change(path, lambda tree: tree["components"][0]["args"].update(change))
    if good:
        assert read_kit(kit, NOW)
    else:
        with pytest.raises(ConfigError, match=r"resources\.json\.default: /components/0/args"):
            read_kit(kit, NOW)


@pytest.mark.parametrize("seconds", [0.5, 2, 600, 0.4, 601, True, "2", float("nan"), float("inf")])
def test_how_often_evidence_is_looked_at(kit, seconds):
    path = kit / "local" / "cc_manager__p_resources.json"
    path.write_text(json.dumps(kit_files.components(True, seconds)[path.name]))
    if seconds in (0.5, 2, 600):
        assert read_kit(kit, NOW)
    else:
        with pytest.raises(ConfigError, match=r"check_interval_s: .* is no seconds"):
            read_kit(kit, NOW)


def test_log_streaming_is_what_the_site_policy_says(kit):
    path = kit / "local" / "resources.json.default"
    stock = json.loads(
        kit_contents._template(
            "local_client_resources",
            {"class_allow_list": "[]", "allow_log_streaming": "true", "num_gpus": "0", "gpu_mem": "0"},
        )
    )
    for streaming in (True, False):
        path.write_text(json.dumps(kit_files.restricted(stock, streaming)))
        if streaming:
            with pytest.raises(ConfigError, match=r"resources\.json\.default: "):
                read_kit(kit, NOW)
    assert read_kit(kit, NOW)
    assert kit_files.restricted(stock, True)["components"] == stock["components"]


# -- malformed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"null", b"1" * 5000, b"[" * 100_000, b'{"format_version": 2, "format_version": 2}'],
)
def test_a_file_that_is_not_what_it_should_be(kit, content):
    path = kit / "startup" / "fed_client.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{path}: "):
        read_kit(kit, NOW)


@pytest.mark.parametrize("key", ["format_version", "servers", "client"])
def test_a_key_less(kit, key):
    path = kit / "startup" / "fed_client.json"
    _change(path, lambda tree: tree.pop(key))
    with pytest.raises(ConfigError, match=rf"the whole: lacks \['{key}'\]"):
        read_kit(kit, NOW)


@pytest.mark.parametrize(
    ("organisations", "good"),
    [(["hospital_a"], True), (["a b"], False), (["$(touch x)"], False), ([], False), (["a", "b"], False)],
)
def test_an_organisation_that_would_be_a_command(tmp_path, organisations, good):
    """It stands in sub_start.sh, and on the command line of the image."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organisations])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    path = tmp_path / "client.crt"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    if good:
        assert kit_contents._organisation(path) == organisations[0]
    else:
        with pytest.raises(ConfigError, match=r"client\.crt: want one organisation"):
            kit_contents._organisation(path)


def test_a_document_that_has_the_name_of_a_setting(kit, made_kits):
    """A document may lie where its hospital signed that it does, but not under a name that FLARE takes up."""
    name = "x__p_resources.json"
    shutil.move(kit / "local" / "attestation.yml", kit / "local" / name)
    shutil.move(kit / "local" / "attestation.yml.sig", kit / "local" / f"{name}.sig")
    from cordon import signing

    key = signing.load_private_key((made_kits / "state" / "cordon_keys" / "hospital-a.policy.key").read_bytes())
    path = kit / "local" / "cordon.yml"
    path.write_text(path.read_text().replace("policy: attestation.yml", f"policy: {name}"))
    documents.signature_path(path).unlink()
    documents.sign_file(path, "cordon/site/v1", key)
    with pytest.raises(ConfigError, match=f"{name}: FLARE would read its settings from here"):
        read_kit(kit, NOW)
