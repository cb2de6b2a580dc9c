"""The gates: what FLARE may deploy, and what the lead reads when it may not."""

import io
import shutil
import zipfile

import pytest
from nvflare.private.fed.utils.app_deployer import AppDeployer

from cordon.errors import AttestError
from cordon.flare.cc_manager import CordonCCManager
from cordon.flare.deployer import ConfigurationOnly, SiteAppDeployer
from fakes.in_process import JOB_ID, Engine, job_files

META = {"name": "oncology"}


def app(files=None, folder="config"):
    """The zipped app as FLARE sends it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (files or job_files()).items():
            archive.writestr(f"{folder}/{name}", data)
    return buffer.getvalue()


class Attested(CordonCCManager):
    def require_coordinator(self):
        pass


class NotAttested(CordonCCManager):
    def require_coordinator(self):
        raise AttestError([("coordinator_not_attested", "no live verdict")])


@pytest.fixture
def deploy(kits, monkeypatch):
    """Deploys at hospital-a; returns (what FLARE is told, whether FLARE's own deployer ran)."""
    deployed = []
    monkeypatch.setattr(AppDeployer, "deploy", lambda *args: deployed.append(args))

    def run(data, meta=META, manager=None):
        manager = Attested() if manager is None else manager
        engine = Engine(kits / "hospital-a", "hospital-a", components={"cc_manager": manager})
        said = SiteAppDeployer().deploy(engine.get_workspace(), JOB_ID, meta, "app", data, engine.new_context())
        assert bool(deployed) == (said == "")
        return said

    return run


def test_an_allowed_job_is_deployed(deploy):
    assert deploy(app()) == ""


def test_flare_s_own_refusal_comes_through(deploy, monkeypatch):
    monkeypatch.setattr(AppDeployer, "deploy", lambda *args: "signature does not fit")
    assert deploy(app()) == "signature does not fit"


@pytest.mark.parametrize(
    ("data", "meta", "why"),
    [
        (app(job_files(executor={"model": "ResNet"})), META, "unknown model 'ResNet'"),
        (app(job_files({"rounds_per_site": 5000})), META, "epsilon_over_policy"),
        (app(job_files({"rounds_per_site": 5000})), META, "rounds_over_cap"),
        (app(), {"name": "oncology-2"}, "job_not_allowed"),
        (app(), {}, "job_not_allowed"),
        (b"not a zip", META, "not a zip file"),
        (b"", META, "not a zip file"),
        (app(folder="custom"), META, "configuration only"),
        (app({**job_files(), "extra.py": b"import os"}), META, "must hold exactly"),
    ],
)
def test_what_the_hospital_does_not_allow_is_refused_with_site_and_reason(deploy, data, meta, why):
    said = deploy(data, meta)
    assert said.startswith("hospital-a refuses job ")
    assert why in said


def test_no_job_from_a_coordinator_that_is_not_attested(deploy):
    said = deploy(app(), manager=NotAttested())
    assert said.startswith("hospital-a refuses job 'oncology': coordinator_not_attested")


def test_no_job_without_our_manager(deploy):
    assert "not provisioned by Cordon" in deploy(app(), manager=object())


def test_no_job_while_the_mapping_is_missing_or_unconfirmed(deploy, kits):
    mapping = next((kits / "hospital-a" / "local" / "mappings").glob("*.yml"))
    signature = mapping.with_name(mapping.name + ".sig")
    kept = signature.read_bytes()
    signature.unlink()
    assert "not signed" in deploy(app())
    signature.write_bytes(kept)
    mapping.unlink()
    assert "cordon sign --key STEWARD_KEY --as mapping" in deploy(app())


def test_no_job_with_a_changed_kit(deploy, kits):
    policy = kits / "hospital-a" / "local" / "cordon.yml"
    policy.write_text(policy.read_text().replace("epsilon: 4.0", "epsilon: 400.0"))
    assert "changed after it was signed" in deploy(app())


# -- the coordinator's gate ------------------------------------------------------------------------------------------


@pytest.fixture
def submitted(tmp_path):
    """An app as FLARE unpacks it at the coordinator."""
    config = tmp_path / "app_server" / "config"
    config.mkdir(parents=True)
    for name, data in job_files().items():
        (config / name).write_bytes(data)
    for name in (".__nvfl_sig.json", ".__nvfl_submitter.crt"):
        (config / name).write_text("x")
        (config.parent / name).write_text("x")
    return config.parent


def test_the_coordinator_takes_a_job(submitted):
    assert ConfigurationOnly().validate(str(submitted)) == ("", {})


@pytest.mark.parametrize(
    "file",
    [
        "config/comm_config.json",  # FLARE looks it up in the whole kit, and imports what its comm_driver_path names
        "config/drivers/evil.py",
        "config/resources.json",
        "comm_config.json",
        "custom/evil.py",
        "data/x.csv",
    ],
)
def test_the_coordinator_takes_configuration_only(submitted, file):
    (submitted / file).parent.mkdir(exist_ok=True)
    (submitted / file).write_text('{"comm_driver_path": "."}')
    said, properties = ConfigurationOnly().validate(str(submitted))
    assert said.startswith("the coordinator refuses the job: ")
    assert file.split("/")[1 if file.startswith("config/") else 0] in said
    assert properties == {}


def test_the_coordinator_takes_no_job_whose_rule_would_show_an_update(submitted):
    """One that releases a single hospital's update, or cannot work with the buffer."""
    for changes in (
        {"rule": "krum", "rule_args": {"f": 0}},
        {"rule": "median"},
        {"rule": "trimmed_mean", "rule_args": {"f": 2}},
    ):
        (submitted / "config" / "config_fed_server.json").write_bytes(job_files(changes)["config_fed_server.json"])
        assert ConfigurationOnly().validate(str(submitted))[0].startswith("the coordinator refuses the job: ")


def test_the_coordinator_s_gate_stays_shut_when_it_stumbles(submitted, monkeypatch):
    monkeypatch.setattr("cordon.flare.deployer.jobs.from_folder", lambda *_: 1 / 0)
    assert "could not be judged" in ConfigurationOnly().validate(str(submitted))[0]
    shutil.rmtree(submitted)
    assert "could not be judged" in ConfigurationOnly().validate(str(submitted))[0]
