"""One POC federation for all tests that need one: coordinator and five sites, as real FLARE processes."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cordon.demo.kits import fill_kits
from cordon.flare import poc
from fakes.lead import PROJECT, Lead

SERVER_CONFIG = "app/config/config_fed_server.json"
CLIENT_CONFIG = "app/config/config_fed_client.json"


@pytest.fixture(scope="session")
def federation(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[poc.Poc]:
    """Started, all sites connected, every kit filled with its share of the demo's patients."""
    prepared = poc.prepare(repo_root / PROJECT, tmp_path_factory.mktemp("federation"))
    assert len(list(fill_kits(prepared.workspace, seed=0))) == 6
    try:
        prepared.start()
        yield prepared
    finally:
        prepared.stop()
        assert prepared.processes() == []


@pytest.fixture
def job_variant(repo_root: Path, tmp_path: Path) -> Callable[..., Path]:
    """jobs/oncology with some controller and executor arguments changed."""

    def make(controller: dict[str, Any] | None = None, executor: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / "oncology"
        shutil.copytree(repo_root / "jobs" / "oncology", folder)
        server, client = folder / SERVER_CONFIG, folder / CLIENT_CONFIG
        config = json.loads(server.read_text())
        config["workflows"][0]["args"].update(controller or {})
        server.write_text(json.dumps(config))
        config = json.loads(client.read_text())
        args = config["executors"][0]["executor"]["args"]
        for key, value in (executor or {}).items():
            args[key] = {**args[key], **value} if isinstance(args[key], dict) else value
        client.write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def lead(federation: poc.Poc) -> Lead:
    return Lead(federation)
