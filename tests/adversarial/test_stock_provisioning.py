"""A mistake, or a hand, in a project's cc_config: stock provisioning goes on, Cordon's stops.

nvflare/lighter/cc_provision/impl/cc.py of nvflare 2.9.0 is run as it ships, in `nvflare provision`'s own steps.
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml
from nvflare.app_opt.confidential_computing.mock_authorizer import MockAuthorizer
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from fakes.stock_flare import StockFederation

STOCK = "nvflare.lighter.cc_provision.impl.cc.CCBuilder"
SITES, HOSPITALS = ("site-1", "site-2"), ("hospital-a", "hospital-b")
CC_CONFIG = {
    "compute_env": "onprem_cvm",
    "cc_cpu_mechanism": "amd_sev_snp",
    "cc_issuers": [
        {
            "id": "snp_authorizer",
            "path": "nvflare.app_opt.confidential_computing.snp_authorizer.SNPAuthorizer",
            "token_expiration": 150,
            "args": {"snpguest_binary": "/host/bin/snpguest"},
        }
    ],
    "cc_attestation": {"check_frequency": 120},
}


def _project(builder, cc_configs):
    """A project of a server and the other participants in ``cc_configs`` (name -> path)."""
    participants = [{"name": "server", "type": "server", "org": "o", "fed_learn_port": 8002, "admin_port": 8003}]
    participants += [{"name": name, "type": "client", "org": "o"} for name in cc_configs if name != "server"]
    for each in participants:
        each["cc_config"] = str(cc_configs[each["name"]])
    participants.append({"name": "admin@nvidia.com", "type": "admin", "org": "o", "role": "project_admin"})
    implementation = "nvflare.lighter.impl."
    builders = [
        {"path": implementation + "workspace.WorkspaceBuilder"},
        {
            "path": implementation + "static_file.StaticFileBuilder",
            "args": {"config_folder": "config", "scheme": "grpc"},
        },
        {"path": implementation + "cert.CertBuilder"},
        builder,
        {"path": implementation + "signature.SignatureBuilder"},
    ]
    return {"api_version": 3, "name": "p", "participants": participants, "builders": builders}


@pytest.fixture
def stock(tmp_path):
    """A project as FLARE has it: a server, two sites, each with a cc_config file of its own in ``tmp_path``."""
    paths = {name: tmp_path / f"{name}.yml" for name in ("server", *SITES)}
    for path in paths.values():
        path.write_text(yaml.safe_dump(CC_CONFIG))
    return _project({"path": STOCK}, paths)


@pytest.fixture(params=["poc", "production"])
def cordon(request, repo_root, tmp_path):
    """(project, mode): the same with Cordon's builder, profiles and names; one file for each in ``tmp_path``."""
    profile = "software.yml" if request.param == "poc" else "hospital-snp-h100.yml"
    folder = Path(shutil.copytree(repo_root / "cc_config", tmp_path / "cc_config"))
    paths = {name: folder / f"{name}.yml" for name in ("server", *HOSPITALS)}
    for path in paths.values():
        shutil.copy(folder / profile, path)
    documents = "poc" if request.param == "poc" else str(tmp_path / "signed")
    args = {"profile": request.param, "documents": documents, "base": str(repo_root / "provisioning")}
    if request.param == "poc":
        args["contracts"] = ["../jobs/oncology/app/config/contract.yml"]
        args["broker"] = {"host": "127.0.0.1", "port": 8004, "max_releases": 10, "epsilon": 4.0}
    builder = {"path": "cordon.flare.provision.CordonBuilder", "args": args}
    return _project(builder, paths), "poc" if request.param == "poc" else "normal"


def _provision(project, workspace, mode="normal"):
    project = copy.deepcopy(project)
    made = Provisioner(str(workspace), prepare_builders(project)).provision(prepare_project(project), mode=mode)
    return Path(made.get_result_location())


def _manager(kit):
    """The CC manager in a kit, None if the kit has none."""
    path = kit / "local" / "cc_manager__p_resources.json"
    if not path.exists():
        return None
    (component,) = json.loads(path.read_text())["components"]
    return component


def _spoil(path, how):
    """Make the cc_config at ``path`` unusable."""
    if how == "missing":
        path.unlink()
    elif how == "typing error":
        path.write_text(path.read_text().replace("compute_env: ", "compute_env: on"))
    elif how == "not YAML":
        path.write_text("[1, 2")
    elif how == "empty":
        path.write_text("")


SPOILT = pytest.mark.parametrize("how", ["missing", "typing error", "not YAML", "empty"])


def test_control_stock_enables_who_is_configured(stock, tmp_path):
    kits = _provision(stock, tmp_path / "ws")
    for name in ("server", *SITES):
        assert _manager(kits / name)["args"]["cc_enabled_sites"] == ["server", *SITES]


def test_control_cordon_goes_on_when_all_is_well(cordon, tmp_path):
    """POC makes kits; production, which has no signed study contract here, gets as far as certificates."""
    project, mode = cordon
    made = _provision(project, tmp_path / "ws", mode)
    for name in ("server", *HOSPITALS):
        assert (made / name / "startup" / "rootCA.pem").exists()
        assert (made / name / "startup" / "start.sh").exists() == (mode == "poc")


@SPOILT
def test_ccbuilder_stock_goes_on_without_a_site_whose_config_is_wrong(stock, tmp_path, capsys, how):
    """The cc_config of site-1 is missing or wrong, by mistake or by whoever runs provisioning.

    cc.py:117-123 prints a line and goes on. Site-1 gets a kit without a CC manager, and all others' lists (161-163)
    leave it out, so that each of them takes it without evidence from then on (cc_manager.py:288-290): shown with the
    very list in the server's kit.
    """
    _spoil(tmp_path / "site-1.yml", how)
    kits = _provision(stock, tmp_path / "ws")
    assert "CC is not enabled for site-1" in capsys.readouterr().out
    assert _manager(kits / "site-1") is None
    assert (kits / "site-1" / "startup" / "start.sh").exists()
    enabled = _manager(kits / "server")["args"]["cc_enabled_sites"]
    assert enabled == ["server", "site-2"]
    federation = StockFederation(tmp_path / "run", without=["site-1"], enabled=enabled)
    assert federation.server.register("site-1", {"site-1": []})
    federation.server.schedule({"site-1": (True, "r"), "site-2": (True, "r")})
    assert not federation.server.down


def _refused(project, mode, workspace, capsys):
    """What provisioning says when it stops; fails if anything that could start is left."""
    with pytest.raises(SystemExit) as caught:
        _provision(project, workspace, mode)
    assert caught.value.code not in (0, None)
    assert not list(workspace.rglob("start.sh"))
    assert not list(workspace.rglob("prod_*"))
    said = capsys.readouterr().err
    assert "provisioning stopped, no kit was made" in said
    return said


@SPOILT
def test_ccbuilder_cordon_stops(cordon, tmp_path, capsys, how):
    """The same mistake: no kit is made for anybody, and the message names the file."""
    project, mode = cordon
    path = tmp_path / "cc_config" / "hospital-a.yml"
    _spoil(path, how)
    assert str(path) in _refused(project, mode, tmp_path / "ws", capsys)


MOCK_AUTHORIZER = "nvflare.app_opt.confidential_computing.mock_authorizer.MockAuthorizer"


def test_mock_stock_provisions_it_for_production(stock, tmp_path):
    """``compute_env: mock`` in `nvflare provision`: cc.py:34-39 and 46 take it.

    Every participant then verifies with it, too: 149-156 make a verifier of each site's authorizers at each site. So
    the server takes what any site files under the mock's namespace, also from a site that has hardware.
    """
    issuer = {"id": "mock", "path": MOCK_AUTHORIZER, "token_expiration": 150}
    config = {**CC_CONFIG, "compute_env": "mock", "cc_issuers": [issuer]}
    (tmp_path / "site-1.yml").write_text(yaml.safe_dump(config))
    kits = _provision(stock, tmp_path / "ws")
    for name in ("server", *SITES):
        manager = _manager(kits / name)["args"]
        assert "mock" in manager["cc_verifier_ids"]
        assert "site-1" in manager["cc_enabled_sites"]
        assert (kits / name / "local" / "mock__p_resources.json").exists()
    federation = StockFederation(tmp_path / "run", without=SITES)
    federation.server.manager.cc_verifiers["x-mock"] = MockAuthorizer()
    info = [{"_cc_token": "garbage", "_cc_namespace": "x-mock"}]
    assert federation.server.register("site-2", {"site-2": info})
    assert not federation.server.down


def test_mock_cordon_stops(cordon, tmp_path, capsys):
    """Mock is no environment of Cordon's, in POC neither."""
    project, mode = cordon
    path = tmp_path / "cc_config" / "hospital-a.yml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join("compute_env: mock" if each.startswith("compute_env") else each for each in lines))
    said = _refused(project, mode, tmp_path / "ws", capsys)
    assert str(path) in said
    assert "compute_env" in said


@pytest.mark.parametrize("cordon", ["production"], indirect=True)
def test_mock_cordon_stops_at_its_own_software_tee_too(cordon, repo_root, tmp_path, capsys):
    """What stands in Cordon's POC for hardware is no environment of production's."""
    project, mode = cordon
    path = tmp_path / "cc_config" / "hospital-a.yml"
    shutil.copy(repo_root / "cc_config" / "software.yml", path)
    assert f"{path}: evidence software does not fit profile production" in _refused(
        project, mode, tmp_path / "ws", capsys
    )
