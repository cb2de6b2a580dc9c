"""Provisioning for real: FLARE's own commands with our project files; the kits are opened and checked."""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import verify_folder_signature

from cordon import documents, job, signing, study
from cordon.attest import policy as attestation
from cordon.broker.config import BrokerConfig
from cordon.errors import ConfigError, MappingError, SignatureError
from cordon.flare import cc_profile, poc_broker, poc_documents
from cordon.flare.kit import load_kit, read_kit
from cordon.flare.provision import project_folder
from cordon.sealing import KemKey
from cordon.site import pin

HOSPITALS = [f"hospital-{letter}" for letter in "abcde"]
ADMINS = ["admin@cordon.example", "lead@cordon.example"]
JOB_CLASSES = {
    "cordon.flare.controllers.AsyncController",
    "cordon.flare.executors.DPTrainExecutor",
    "cordon.flare.persistor.SafetensorsPersistor",
}


def _nvflare(repo_root, home, *args, cwd=None, **variables):
    environment = {
        **os.environ,
        "HOME": str(home),
        "PYTHONPATH": str(repo_root / "custom"),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-m", "nvflare.cli", *args],
        env=environment,
        cwd=cwd or home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def poc(repo_root, tmp_path_factory):
    """Kits of `nvflare poc prepare -i provisioning/project.poc.yml`, run from the repository's root."""
    home = tmp_path_factory.mktemp("home")
    done = _nvflare(
        repo_root,
        home,
        *("poc", "prepare", "-i", "provisioning/project.poc.yml"),
        cwd=repo_root,
        NVFLARE_POC_WORKSPACE=str(home / "poc"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "poc" / "cordon_poc" / "prod_00"


@pytest.fixture(scope="module")
def oncology(repo_root):
    config = repo_root / "jobs" / "oncology" / "app" / "config"
    return job.from_files("oncology", {name: (config / name).read_bytes() for name in job.FILES})


def test_every_kit_loads_and_knows_its_part(poc, oncology):
    kits = {name: load_kit(poc / name, datetime.now(UTC)) for name in ("server", *HOSPITALS)}
    assert kits["server"].role == "coordinator"
    assert kits["server"].policy is None
    assert kits["server"].evaluation_source == poc / "server" / "data" / "reference.csv"
    assert len({kit.study.digest for kit in kits.values()}) == 1
    assert len({kit.attest_policy_digest for kit in kits.values()}) == 1
    for name in HOSPITALS:
        kit = kits[name]
        assert (kit.name, kit.role, kit.policy.site) == (name, "hospital", name)
        assert kit.mapping(oncology).connector == kit.policy.data.connector
        assert oncology.contract_digest in kit.policy.allow.contracts
        assert oncology.contract_digest in kit.study.contracts


def test_components_of_each_side(poc):
    for name in ("server", *HOSPITALS):
        local = poc / name / "local"
        manager = json.loads((local / "cc_manager__p_resources.json").read_text())["components"]
        assert [(each["id"], each["path"]) for each in manager] == [
            ("cc_manager", "cordon.flare.cc_manager.CordonCCManager")
        ]
        assert (local / "app_deployer__p_resources.json").exists() == (name != "server")
        resources = json.loads((local / "resources.json.default").read_text())
        assert set(resources["class_allow_list"]) == JOB_CLASSES
        assert resources["class_list_enforcement_mode"] == "enforce"
    for name in HOSPITALS:
        resources = json.loads((poc / name / "local" / "resources.json.default").read_text())
        assert resources["allow_log_streaming"] is False
        assert "site_log_streamer" not in [each["id"] for each in resources["components"]]
    # the copy that `poc prepare` makes of the server's resources for its own storage keeps the list
    resources = json.loads((poc / "server" / "local" / "resources.json").read_text())
    assert set(resources["class_allow_list"]) == JOB_CLASSES


def test_the_allow_list_admits_the_classes_and_nothing_that_their_modules_import(poc):
    resources = json.loads((poc / "hospital-a" / "local" / "resources.json.default").read_text())
    entries = ComponentPathAuthorizer._normalize_allow_list(resources["class_allow_list"])

    def admitted(path):
        return any(ComponentPathAuthorizer._path_matches_prefix(path, entry) for entry in entries)

    assert all(admitted(path) for path in JOB_CLASSES)
    for path in (
        "cordon.flare.executors.time.sleep",
        "cordon.flare.executors.Path",
        "subprocess.Popen",
        "nvflare.app_common.workflows.fedavg.FedAvg",
        "cordon.flare.deployer.SiteAppDeployer",
    ):
        assert not admitted(path), path


def test_the_allow_list_is_what_the_jobs_use(repo_root):
    used = set()
    for path in (repo_root / "jobs").glob("*/app/config/config_fed_*.json"):

        def visit(tree):
            if isinstance(tree, dict):
                if isinstance(tree.get("path"), str):
                    used.add(tree["path"])
                tree = list(tree.values())
            if isinstance(tree, list):
                for each in tree:
                    visit(each)

        visit(json.loads(path.read_text()))
    for path in (repo_root / "cc_config").glob("*.yml"):
        config = cc_profile.load(path)
        assert set(config.class_allow_list) == (used if config.runs_jobs else set()), path
    assert used == JOB_CLASSES


def test_roles(poc):
    for name in ("server", *HOSPITALS):
        local = poc / name / "local"
        assert not (local / "authorization.json").exists()  # it would win over the default
        permissions = json.loads((local / "authorization.json.default").read_text())["permissions"]
        for role, rights in permissions.items():
            assert rights["byoc"] == "none", role
            assert rights["shell_commands"] == "none", role
        assert permissions["lead"]["download_job"] == "n:submitter"
        assert permissions["lead"]["submit_job"] == "any"
        assert permissions["org_admin"]["submit_job"] == "none"


def test_no_kit_holds_a_key_of_somebody_else(poc):
    state = poc.parent / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    secrets, broker = {}, poc.parent / "cordon_broker"
    own = [broker / name for name in ("tls.key", "kek", "passphrase")]
    for path in sorted([*(state / "cordon_keys").glob("*.key"), *own]):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        secrets[path.name] = path.read_bytes()
    # policy and steward of each hospital; root of the software TEE, release key of the lead; the broker's three
    assert len(secrets) == 2 * len(HOSPITALS) + 2 + 3
    assert stat.S_IMODE(broker.stat().st_mode) == 0o700
    seen = set()
    for path in poc.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret in data for secret in secrets.values()), path
            if path.suffix == ".key":
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert data not in seen, path
                seen.add(data)


def test_kits_and_the_broker_name_each_other(poc):
    """A tenant per hospital, its key in the contract, its TLS key and address in every site's signed policy."""
    now, folder = datetime.now(UTC), poc.parent / "cordon_broker"
    settings = documents.load(folder / "broker.yml", BrokerConfig)
    agreed = read_kit(poc / "server", now).study
    certificate = signing.load_public_key((folder / "tls.pem").read_bytes())
    assert [each.site for each in settings.tenants] == HOSPITALS
    for name in HOSPITALS:
        kit = read_kit(poc / name, now)
        assert kit.policy.broker.url == f"https://127.0.0.1:{settings.listen.port}" == "https://127.0.0.1:8004"
        assert kit.policy.broker.spki == signing.encode_spki(certificate)
        with poc_broker.opened(folder, name, now) as broker:
            assert broker.signing_key.public_key() == agreed.hospital(name).broker_key
            assert broker.study == kit.study.digest == agreed.digest
            assert broker.policy_digest == kit.attest_policy_digest
    assert len({agreed.hospital(name).broker_spki for name in HOSPITALS}) == len(HOSPITALS)
    assert list(agreed.release.holders) == ["lead"] and agreed.release.persons == 1
    own = poc_documents.release_key(poc.parent / "state")
    assert agreed.release.holders["lead"] == own.public_bytes


def test_flare_signed_the_whole_kit(poc):
    """signature.json covers what we wrote, so CordonBuilder ran before SignatureBuilder."""
    for name in ("server", *HOSPITALS):
        kit = poc / name
        for folder in (kit, kit / "local", kit / "startup"):
            assert (folder / "signature.json").exists(), folder
        signed = json.loads((kit / "local" / "signature.json").read_text())
        assert {"study.yml", "attestation.yml", "cc_manager__p_resources.json", "resources.json.default"} <= set(signed)
    assert _flare_signature_holds(poc / "hospital-a")


def _flare_signature_holds(kit):
    """Whether signature.json of every folder of the kit covers its files, signed by the kit's CA."""
    root_ca = kit / "startup" / "rootCA.pem"
    return verify_folder_signature(str(kit), str(root_ca), single_signer=True, signature_file="signature.json")


def test_logs_go_into_the_kit(poc):
    for name in ("server", *HOSPITALS):
        config = json.loads((poc / name / "local" / "log_config.json.default").read_text())
        files = [handler["filename"] for handler in config["handlers"].values() if "filename" in handler]
        assert files
        assert not any(Path(file).is_absolute() for file in files)


def test_every_identity_has_its_own_kit(poc):
    for name in ADMINS:
        assert (poc / name / "startup" / "client.crt").exists()
    for name in HOSPITALS:
        assert (poc / f"admin@{name}.example" / "startup" / "client.crt").exists()


# -- a kit that was touched ------------------------------------------------------------------------------------------


@pytest.fixture
def kit(poc, tmp_path):
    return shutil.copytree(poc / "hospital-a", tmp_path / "hospital-a")


@pytest.mark.parametrize("name", ["study.yml", "cordon.yml", "attestation.yml"])
def test_a_changed_or_unsigned_document_stops_the_kit(kit, name):
    path = kit / "local" / name
    original = path.read_bytes()
    path.write_bytes(original + b"# one more comment\n")
    with pytest.raises(SignatureError, match=name):
        load_kit(kit, datetime.now(UTC))
    path.write_bytes(original)
    load_kit(kit, datetime.now(UTC))
    documents.signature_path(path).unlink()
    with pytest.raises(SignatureError, match=f"{name}: not signed"):
        load_kit(kit, datetime.now(UTC))
    path.unlink()
    with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
        load_kit(kit, datetime.now(UTC))


def test_a_missing_or_changed_mapping_is_said_in_words(kit, oncology):
    loaded = load_kit(kit, datetime.now(UTC))
    path = kit / "local" / "mappings" / "wdbc-1.0.0.yml"
    path.write_bytes(path.read_bytes() + b"# changed\n")
    with pytest.raises(MappingError, match="changed after it was signed"):
        loaded.mapping(oncology)
    path.unlink()
    with pytest.raises(MappingError, match=r"wdbc-1\.0\.0\.yml: missing; wanted: a mapping .* cordon sign") as caught:
        loaded.mapping(oncology)
    assert caught.value.code == "data_mapping"


def test_another_hospitals_documents_do_not_fit(kit, poc):
    for name in ("cordon.yml", "cordon.yml.sig"):
        shutil.copy(poc / "hospital-b" / "local" / name, kit / "local" / name)
    with pytest.raises(SignatureError, match=r"cordon\.yml"):
        load_kit(kit, datetime.now(UTC))


def test_a_tee_key_of_another_participant_is_refused(kit, poc):
    shutil.copytree(poc / "hospital-b" / "local" / "software_tee", kit / "local" / "software_tee", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match="not the TEE key of hospital-a"):
        load_kit(kit, datetime.now(UTC))
    shutil.rmtree(kit / "local" / "software_tee")
    with pytest.raises(ConfigError, match="software_tee"):
        load_kit(kit, datetime.now(UTC))


# -- commands --------------------------------------------------------------------------------------------------------


def test_a_broken_cc_config_ends_the_command_with_its_name(repo_root, tmp_path):
    project = yaml.safe_load((repo_root / "provisioning" / "project.poc.yml").read_text())
    project["participants"][1]["cc_config"] = "none.yml"
    project["builders"][3]["args"]["base"] = str(repo_root / "provisioning")
    for each in project["participants"][:1] + project["participants"][2:6]:
        each["cc_config"] = str(repo_root / "cc_config" / "software.yml")
    file = tmp_path / "project.yml"
    file.write_text(yaml.safe_dump(project))
    done = _nvflare(repo_root, tmp_path, "poc", "prepare", "-i", str(file), NVFLARE_POC_WORKSPACE=str(tmp_path / "poc"))
    assert done.returncode == 3
    assert "provisioning stopped, no kit was made" in done.stderr
    assert "none.yml: cannot be read" in done.stderr
    assert not list((tmp_path / "poc").rglob("startup"))


def test_paths_resolve_against_the_project_file(tmp_path, monkeypatch):
    file = tmp_path / "there" / "project.yml"
    file.parent.mkdir()
    file.write_text("x")
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["poc", "prepare", "-i", "there/project.yml"],
        ["poc", "prepare", "--project-input", str(file), "--force"],
        ["poc", "prepare", "--project_input=there/project.yml"],
        ["provision", "--project-file", "there/project.yml"],
        ["provision", "-w", "ws", "-p", "there/project.yml"],
    ):
        assert project_folder(arguments) == file.parent
    assert project_folder(["poc", "start", "-p", "server"]) == tmp_path
    assert project_folder([]) == tmp_path


# -- containers: POC kits by `nvflare provision`, on purpose ----------------------------------------------------------


def _prod(workspace, project):
    return workspace / project / "prod_00"


def test_the_containers_project_makes_kits_that_load(repo_root, tmp_path):
    arguments = ("provision", "-p", "docker/project.yml", "-w", str(tmp_path / "ws"))
    done = _nvflare(repo_root, tmp_path, *arguments, cwd=repo_root)
    assert done.returncode == 0, done.stdout + done.stderr
    prod = _prod(tmp_path / "ws", "cordon_containers")
    kits = {name: load_kit(prod / name, datetime.now(UTC)) for name in ("coordinator", "hospital-a", "hospital-b")}
    assert {name: (kit.name, kit.role) for name, kit in kits.items()} == {
        "coordinator": ("coordinator", "coordinator"),
        "hospital-a": ("hospital-a", "hospital"),
        "hospital-b": ("hospital-b", "hospital"),
    }
    for kit in kits.values():
        assert [hospital.name for hospital in kit.study.roster] == ["hospital-a", "hospital-b"]
        assert kit.study.profile == "poc"
    for name in ("hospital-a", "hospital-b"):
        config = json.loads((prod / name / "startup" / "fed_client.json").read_text())
        assert config["servers"][0]["service"]["target"] == "coordinator:8002"
    config = json.loads((prod / "lead@cordon.example" / "startup" / "fed_admin.json").read_text())
    assert (config["admin"]["host"], config["admin"]["port"]) == ("localhost", 8002)


def _containers_project(repo_root, folder, **arguments):
    """A copy of docker/project.yml with other arguments of CordonBuilder; None takes one out."""
    project = yaml.safe_load((repo_root / "docker" / "project.yml").read_text())
    builder = next(each for each in project["builders"] if each["path"].endswith(".CordonBuilder"))
    changed = {**builder["args"], "base": str(repo_root / "docker"), **arguments}
    builder["args"] = {key: value for key, value in changed.items() if value is not None}
    file = folder / "project.yml"
    file.write_text(yaml.safe_dump(project))
    return file


@pytest.mark.parametrize(
    ("arguments", "command", "reason"),
    [
        ({"unsafe_containers": None}, "provision", "profile 'poc' does not fit this command"),
        ({"unsafe_containers": False}, "provision", "profile 'poc' does not fit this command"),
        ({}, "poc", "profile 'poc' does not fit this command"),
        ({"profile": "production"}, "provision", "true with profile poc only"),
        ({"unsafe_containers": "no"}, "provision", "unsafe_containers is true or false"),
        ({"broker": None}, "provision", "a vault wants a key broker: give CordonBuilder the argument broker"),
        ({"broker": {"host": "broker"}}, "provision", "argument broker: Object missing required field `port`"),
    ],
    ids=["no flag", "flag off", "the other command", "production", "not a boolean", "no broker", "half a broker"],
)
def test_poc_kits_by_nvflare_provision_are_refused_unless_asked_for(repo_root, tmp_path, arguments, command, reason):
    file, workspace = _containers_project(repo_root, tmp_path, **arguments), tmp_path / "ws"
    words = ("provision", "-p", str(file), "-w", str(workspace))
    if command == "poc":
        words = ("poc", "prepare", "-i", str(file))
    done = _nvflare(repo_root, tmp_path, *words, NVFLARE_POC_WORKSPACE=str(workspace))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "provisioning stopped, no kit was made" in done.stderr and reason in done.stderr
    assert not list(workspace.rglob("startup"))


# -- production: certificates, then contract, then kits --------------------------------------------------------------


def _run(repo_root, folder, *more):
    """The documented command, with the project file of a coordinator that keeps copies of what the repository ships."""
    file = folder / "provisioning" / "project.yml"
    done = _nvflare(repo_root, folder, "provision", "-p", str(file), "-w", str(folder / "ws"), *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _run_here(folder):
    """The same in this process; the folder of the new kits."""
    project = yaml.safe_load((folder / "provisioning" / "project.yml").read_text())
    project["builders"][3]["args"]["base"] = str(folder / "provisioning")
    context = Provisioner(str(folder / "ws"), prepare_builders(project)).provision(prepare_project(project))
    assert not context.get("__build_error__")
    return Path(context.get_result_location())


@pytest.fixture(scope="module")
def production(repo_root, tmp_path_factory):
    """(folder of the coordinator, what the command said), after the first run."""
    folder = tmp_path_factory.mktemp("production")
    shutil.copytree(repo_root / "cc_config", folder / "cc_config")
    (folder / "provisioning").mkdir()
    shutil.copy(repo_root / "provisioning" / "project.yml", folder / "provisioning")
    return folder, _run(repo_root, folder)


def test_the_first_run_issues_certificates_and_nothing_that_starts(production):
    folder, said = production
    assert "no study contract yet, so only certificates were issued" in said
    prod = folder / "ws" / "cordon" / "prod_00"
    files = [path for path in prod.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".crt", ".pem", ".yml"}
    roster = yaml.safe_load((prod / "roster.yml").read_text())
    assert [each["name"] for each in roster] == ["fl.coordinator.example", "hospital-a", "hospital-b", "hospital-c"]
    certificate = prod / "hospital-a" / "startup" / "client.crt"
    assert roster[1]["mtls_spki"] == signing.encode_spki(signing.load_public_key(certificate.read_bytes()))


@pytest.fixture(scope="module")
def packaged(production, repo_root):
    """(the kits of the second run, the hospitals' public policy keys)."""
    folder, _ = production
    keys = _sign_everything(folder / "ws" / "cordon" / "prod_00" / "roster.yml", folder, repo_root)
    _run(repo_root, folder, "--force")
    return folder / "ws" / "cordon" / "prod_01", keys


def test_the_second_run_packages_what_the_hospitals_signed(production, packaged, monkeypatch, tmp_path):
    prod, keys = packaged
    signed = production[0] / "provisioning" / "signed"
    kit = prod / "hospital-a"
    for source, target in (("study.yml", "study.yml"), ("hospital-a.yml", "cordon.yml")):
        assert (kit / "local" / target).read_bytes() == (signed / source).read_bytes()
        assert (kit / "local" / f"{target}.sig").read_bytes() == (signed / f"{source}.sig").read_bytes()
    assert not list(prod.rglob("software_tee"))
    assert not list(prod.rglob("*.policy.key"))
    for name, evidence in (("fl.coordinator.example", "snp"), ("hospital-a", "snp"), ("hospital-b", "tdx")):
        assert read_kit(prod / name, datetime.now(UTC)).name == name
        tee = yaml.safe_load((prod / name / "local" / "tee.yml").read_text())
        assert tee == {"version": "cordon/tee/v1", "evidence": evidence, "gpu": "nvidia", "device": "tsm", "vek": None}

    # started where its hospital pinned the study, and nowhere without the hardware that tee.yml names
    monkeypatch.delenv("CORDON_PIN", raising=False)
    with pytest.raises(ConfigError, match=r"/etc/cordon/pin\.yml: missing; a production kit starts only where"):
        load_kit(kit, datetime.now(UTC))
    pin_file = tmp_path / "pin.yml"
    digests = read_kit(kit, datetime.now(UTC)).policy_digests
    agreed = study.load_signed(signed / "study.yml", datetime.now(UTC))
    made = pin.make(agreed, "hospital-a", keys["hospital-a"], digests)
    pin_file.write_text(yaml.safe_dump(documents.body_of(made)))
    monkeypatch.setenv("CORDON_PIN", str(pin_file))
    for each in (kit, prod / "fl.coordinator.example"):
        with pytest.raises(ConfigError, match="tsm_absent"):
            load_kit(each, datetime.now(UTC))


def _identities(prod):
    """Who has which certificate and key in these kits, and the fingerprint of the CA that each trusts."""
    found = {}
    for path in prod.glob("*/startup/*.crt"):
        root = x509.load_pem_x509_certificate((path.parent / "rootCA.pem").read_bytes())
        found[path.parent.parent.name] = path.read_bytes(), root.fingerprint(hashes.SHA256())
    return found


def test_provisioning_again_keeps_the_ca_every_certificate_and_so_the_contract(production, packaged):
    folder, _ = production
    first, second = folder / "ws" / "cordon" / "prod_00", packaged[0]
    third = _run_here(folder)
    assert third.name == "prod_02"
    identities = _identities(first)
    assert len(identities) == 4 + 5
    assert len({root for _, root in identities.values()}) == 1
    assert _identities(second) == _identities(third) == identities
    names = ("fl.coordinator.example", "hospital-a", "hospital-b", "hospital-c")
    assert {path.parent.parent.name for path in first.glob("*/startup/*.key")} == set()
    for name in names:
        for prod in (second, third):
            assert _flare_signature_holds(prod / name), prod / name
        assert (
            read_kit(third / name, datetime.now(UTC)).study.digest
            == read_kit(second / name, datetime.now(UTC)).study.digest
        )
        keys = [path.read_bytes() for prod in (second, third) for path in (prod / name / "startup").glob("*.key")]
        assert len(keys) == 2 and keys[0] == keys[1]
    # and the signature means something
    resources = third / "hospital-a" / "local" / "resources.json.default"
    resources.write_bytes(resources.read_bytes() + b" ")
    assert not _flare_signature_holds(third / "hospital-a")


def test_a_hospital_that_joins_later(production, packaged, repo_root, tmp_path, capsys):
    """The contract is between the three until four signed another; nobody's certificate changes for it."""
    folder = shutil.copytree(production[0], tmp_path / "coordinator")
    file, signed = folder / "provisioning" / "project.yml", folder / "provisioning" / "signed"
    project = yaml.safe_load(file.read_text())
    three = project["participants"]
    joins = {**next(each for each in three if each["name"] == "hospital-a"), "name": "hospital-d", "org": "hospital_d"}
    before = _identities(packaged[0])

    for participants in ([each for each in three if each["name"] != "hospital-c"], [*three, joins]):
        file.write_text(yaml.safe_dump({**project, "participants": participants}))
        with pytest.raises(SystemExit):
            _run_here(folder)
        said = capsys.readouterr().err
        assert "is between fl.coordinator.example, hospital-a, hospital-b, hospital-c" in said
        assert "move study.yml and its signature out of the folder" in said

    for path in signed.glob("study.yml*"):
        path.rename(tmp_path / path.name)
    prod = _run_here(folder)
    assert not list(prod.rglob("start.sh"))
    roster = yaml.safe_load((prod / "roster.yml").read_text())
    assert [each["name"] for each in roster[1:]] == ["hospital-a", "hospital-b", "hospital-c", "hospital-d"]
    after = _identities(prod)
    assert {name: after[name] for name in before} == before
    assert after["hospital-d"][1] == before["hospital-a"][1]

    shutil.rmtree(signed)
    keys = _sign_everything(prod / "roster.yml", folder, repo_root)
    prod = _run_here(folder)
    kits = [read_kit(prod / name, datetime.now(UTC)) for name in ("hospital-a", "hospital-d")]
    assert kits[0].study.digest == kits[1].study.digest
    agreed = study.load_signed(tmp_path / "study.yml", datetime.now(UTC))
    old = pin.make(agreed, "hospital-a", packaged[1]["hospital-a"])
    with pytest.raises(SignatureError, match="wants study contract"):
        pin.check(old, kits[0].study, "hospital-a", "the old pin")
    pin.check(pin.make(kits[0].study, "hospital-a", keys["hospital-a"]), kits[0].study, "hospital-a", "a new one")


def _sign_everything(roster_file, folder, repo_root):
    """What the hospitals and the coordinator do between the two runs; the hospitals' public policy keys."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    server, *hospitals = yaml.safe_load(roster_file.read_text())
    keys = {each["name"]: Ed25519PrivateKey.generate() for each in hospitals}
    signed = folder / "provisioning" / "signed"
    signed.mkdir()
    for each in hospitals:
        own = signing.encode_spki(keys[each["name"]].public_key())
        each["policy_spki"] = each["steward_spki"] = each["broker_spki"] = own
    contract = {
        "version": "cordon/study/v1",
        "study": "trial",
        "profile": "production",
        "coordinator": server,
        "roster": hospitals,
        "contracts": ["a" * 64],
        "models": ["FullyConnectedNet"],
        "jobs": ["oncology"],
        "time_grid_s": 60.0,
        "evaluation": {"kind": "none"},
        "release": {"holders": {"lead": base64.b64encode(KemKey.generate().public_bytes).decode()}},
    }
    (signed / "study.yml").write_text(yaml.safe_dump(contract))
    coordinator = {
        "version": "cordon/coordinator/v1",
        "name": server["name"],
        "attestation": {"policy": "attestation.yml"},
        "evaluation": {"source": None},
    }
    (signed / "coordinator.yml").write_text(yaml.safe_dump(coordinator))
    template = yaml.safe_load((repo_root / "provisioning" / "poc" / "hospital-a.yml").read_text())
    template["allow"] |= {"studies": ["trial"], "contracts": ["a" * 64], "privacy_modes": ["sealed"]}
    for name, key in keys.items():
        documents.sign_file(signed / "study.yml", study.SCHEMA, key)
        broker = {"url": f"https://broker.{name}.example:8004", "spki": signing.encode_spki(key.public_key())}
        (signed / f"{name}.yml").write_text(yaml.safe_dump({**template, "site": name, "broker": broker}))
        documents.sign_file(signed / f"{name}.yml", "cordon/site/v1", key)

    project = yaml.safe_load((folder / "provisioning" / "project.yml").read_text())
    configs = {each["cc_config"] for each in project["participants"] if "cc_config" in each}
    for path in {folder / "provisioning" / each for each in configs}:
        for key in keys.values():
            documents.sign_file(cc_profile.policy_path(path, cc_profile.load(path)), attestation.SCHEMA, key)
    return {name: key.public_key() for name, key in keys.items()}
