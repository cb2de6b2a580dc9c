"""The key broker of a POC workspace, as provisioning makes it: kits, contract and broker name each other's keys."""

import os
import shutil
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import yaml

from cordon import documents, signing
from cordon.broker.config import BrokerConfig
from cordon.data import vault
from cordon.errors import ConfigError, CordonError
from cordon.flare import poc, poc_broker, poc_documents
from cordon.flare.kit import load_kit
from cordon.flare.provision import CordonBuilder
from fakes.federation_kits import BROKER, HOSPITALS, PLAIN, make_kits

VAULTED = HOSPITALS[:2]
STAMP = vault.Stamp(vault="a" * 32, version=1, root="b" * 64)
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """Two hospitals with a vault, two without."""
    return make_kits(tmp_path_factory.mktemp("vaulted"), vaults=VAULTED)


@pytest.fixture
def broker(kits, tmp_path):
    """A copy of the broker's folder, to be changed."""
    return Path(shutil.copytree(kits / poc_broker.FOLDER, tmp_path / poc_broker.FOLDER))


def test_a_tenant_for_each_hospital_with_a_vault_and_no_other(kits):
    assert poc_broker.hospitals(kits / poc_broker.FOLDER) == VAULTED
    agreed = load_kit(kits / HOSPITALS[0], NOW).study
    for name in HOSPITALS:
        kit = load_kit(kits / name, NOW)
        assert (kit.policy.broker is None) == (agreed.hospital(name).broker_spki is None) == (name not in VAULTED)
    with pytest.raises(ConfigError, match=f"no tenant of {HOSPITALS[3]}"):
        poc_broker.register(
            kits / poc_broker.FOLDER, HOSPITALS[3], vault.Stamp(vault="a" * 32, version=1, root="b" * 64), b"", NOW
        )


def test_what_kit_contract_and_broker_say_is_one(kits):
    folder = kits / poc_broker.FOLDER
    for name in VAULTED:
        kit = load_kit(kits / name, NOW)
        assert kit.policy.broker.url == f"https://{BROKER.host}:{BROKER.port}"
        tls = signing.load_public_key((folder / "tls.pem").read_bytes())
        assert kit.policy.broker.spki == signing.encode_spki(tls)
        with poc_broker.opened(folder, name, NOW) as opened:
            assert opened.signing_key.public_key() == kit.study.hospital(name).broker_key
            assert opened.study == kit.study.digest and opened.policy_digest == kit.attest_policy_digest
            assert opened.spent() == (0, 0.0)


def test_everything_secret_is_its_owners_alone_and_in_no_kit(kits):
    folder = kits / poc_broker.FOLDER
    private = [folder / "tls.key", folder / poc_broker.KEK, folder / poc_broker.PASSPHRASE]
    private += [*(folder / poc_broker.STATE).iterdir(), kits / "state" / poc_documents.KEYS / poc_documents.RELEASE_KEY]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / poc_broker.STATE)} == {0o700}
    secrets = [path.read_bytes().strip() for path in private if path.suffix != ".lock"]
    for path in (each for name in ("server", *HOSPITALS) for each in (kits / name).rglob("*") if each.is_file()):
        data = path.read_bytes()
        assert not any(secret and secret in data for secret in secrets), path


def test_provisioning_again_keeps_every_identity(kits, broker):
    before = {path: path.read_bytes() for path in broker.rglob("*") if path.is_file() and path.name != "tls.pem"}
    keeper = poc_broker.prepare(broker, BROKER, VAULTED, NOW)
    agreed = load_kit(kits / HOSPITALS[0], NOW).study
    assert keeper.spki == {name: agreed.hospital(name).broker_spki for name in VAULTED}
    assert keeper.tls_spki == load_kit(kits / HOSPITALS[0], NOW).policy.broker.spki
    for path, data in before.items():
        if path.parent.name != poc_broker.STATE:
            assert path.read_bytes() == data, path


def test_a_vault_key_reaches_the_broker_and_is_in_no_file_in_the_clear(broker):
    key = os.urandom(vault.KEY_BYTES)
    poc_broker.register(broker, VAULTED[0], STAMP, key, NOW)
    assert not any(key in path.read_bytes() for path in broker.rglob("*") if path.is_file())
    with poc_broker.opened(broker, VAULTED[0], NOW) as opened:
        assert opened.register(STAMP, key, NOW) is False  # it is known
        with pytest.raises(ConfigError, match="another key"):
            opened.register(STAMP, bytes(32), NOW)
    with poc_broker.opened(broker, VAULTED[1], NOW) as other:
        assert other.register(STAMP, key, NOW) is True  # each tenant's own


def test_a_config_of_another_contract_opens_nothing(broker):
    path = broker / poc_broker.CONFIG
    tree = yaml.safe_load(path.read_text())
    tree["tenants"][0]["study_digest"] = "0" * 64
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="tenant pins 0000"), poc_broker.opened(broker, VAULTED[0], NOW):
        pass


@pytest.mark.parametrize(
    ("changes", "arguments", "reason"),
    [
        (
            {"data": {}},
            {"broker": None},
            "hospital-a: a vault wants a key broker: give CordonBuilder the argument broker",
        ),
        ({"broker": {"url": "https://a:1", "spki": "x" * 60}}, {}, "must leave out broker: provisioning fills it in"),
        ({"data": {"unsafe_source": "../data/patients.csv"}}, {}, "either a vault or an unsafe_source"),
    ],
    ids=["no broker", "a broker of its own", "vault and plain data"],
)
def test_what_cannot_be_provisioned_is_said(tmp_path, changes, arguments, reason):
    with pytest.raises(ConfigError, match=reason):
        make_kits(tmp_path, ("hospital-a",), site={"hospital-a": changes}, vaults=("hospital-a",), **arguments)


def test_without_vaults_there_is_no_broker(tmp_path):
    made = make_kits(tmp_path, ("hospital-a",), broker=None)
    assert not (made / poc_broker.FOLDER).exists()
    policy = load_kit(made / "hospital-a", NOW).policy
    assert policy.broker is None and policy.data.unsafe_source == PLAIN["unsafe_source"]


def test_a_study_that_names_its_release_right_itself_is_no_template(tmp_path):
    with pytest.raises(ConfigError, match="must leave out release"):
        make_kits(tmp_path, ("hospital-a",), study={"release": {"holders": {}}})


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ({}, "missing required field"),
        ({"host": "a b", "port": 1, "max_releases": 1, "epsilon": 1.0}, "host"),
        ({"host": "a", "port": 0, "max_releases": 1, "epsilon": 1.0}, "port"),
        ({"host": "a", "port": 1, "max_releases": 1, "epsilon": 1.0, "user": "x"}, "user"),
        ("https://a:1", "Expected `object`"),
    ],
)
def test_a_broker_argument_that_does_not_fit(argument, reason):
    with pytest.raises(ConfigError, match=rf"argument broker: .*{reason}"):
        poc_broker.place(argument)
    assert poc_broker.place(None) is None


def test_a_production_project_has_no_broker_to_make():
    builder = CordonBuilder("production", "signed", broker=msgspec.to_builtins(BROKER))
    with pytest.raises(ConfigError, match="in production each hospital runs its own"):
        builder._check_mode("normal")


# -- the process -------------------------------------------------------------------------------------------------------


@pytest.fixture
def federation(broker, tmp_path):
    """A workspace whose broker takes any free port."""
    path = broker / poc_broker.CONFIG
    settings = yaml.safe_load(path.read_text())
    settings["listen"]["port"] = 0
    path.write_text(yaml.safe_dump(settings))
    documents.load(path, BrokerConfig)
    made = poc.Poc(
        workspace=tmp_path / "ws", home=tmp_path / "home", project="p", server="server", sites=HOSPITALS, port=1
    )
    made.temporary.mkdir(parents=True)
    (tmp_path / "ws" / "p").mkdir(parents=True)
    broker.rename(made.broker)
    return made


def test_the_broker_is_started_found_and_ended(federation):
    federation._start_broker()
    try:
        (process,) = federation.processes()
        assert process.cmdline()[-2:] == ["--config", str(federation.broker / poc_broker.CONFIG)]
        assert "listening on https://127.0.0.1:" in (federation.broker / poc.BROKER_LOG).read_text()
        key = os.urandom(vault.KEY_BYTES)  # taken into keeping beside the running broker
        poc_broker.register(federation.broker, VAULTED[0], STAMP, key, NOW)
    finally:
        federation.stop(grace_s=5)
    assert federation.processes() == []
    federation.stop()  # again, and nothing to do


def test_a_broker_that_cannot_start_says_why(federation):
    (federation.broker / poc_broker.PASSPHRASE).write_text("another passphrase, long enough")
    with pytest.raises(CordonError, match=r"the key broker ended \(3\):(.|\n)*another passphrase"):
        federation._start_broker()
    federation.stop()
    assert sys.executable and federation.processes() == []
