"""One POC federation for all tests that need one: coordinator and five sites, as real FLARE processes."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cordon.demo.kits import fill_kits
from cordon.flare import poc
from cordon.report import events

PROJECT = Path("provisioning") / "project.poc.yml"
SERVER_CONFIG = "app/config/config_fed_server.json"
CLIENT_CONFIG = "app/config/config_fed_client.json"


@pytest.fixture(scope="session")
def federation(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[poc.Poc]:
    """Started, all sites connected, every kit filled with its share of the demo's patients."""
    prepared = poc.prepare(repo_root / PROJECT, tmp_path_factory.mktemp("federation"))
    assert len(list(fill_kits(prepared.workspace, seed=0))) == 6
    prepared.start()
    try:
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


class Lead:
    """The lead, through FLARE's own command line."""

    def __init__(self, federation: poc.Poc) -> None:
        self.federation = federation

    def nvflare(self, *args: str) -> tuple[int, str]:
        """(exit code, output) of an ``nvflare`` command with the lead's kit."""
        done = subprocess.run(
            [sys.executable, "-m", "nvflare.cli", *args, "--startup-kit", str(self.federation.kit(poc.LEAD))],
            env=self.federation.environment(),
            cwd=self.federation.home,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    def submit(self, folder: Path) -> str:
        """``nvflare job submit``: the job's id."""
        code, output = self.nvflare("job", "submit", "-j", str(folder), "--format", "json")
        assert code == 0, output
        return str(json.loads(output[output.index("{") :])["data"]["job_id"])

    def wait(self, job_id: str, timeout_s: float = 180) -> dict[str, Any]:
        """The job's record once it has ended."""
        deadline = time.monotonic() + timeout_s
        with self.federation.session() as session:
            while time.monotonic() < deadline:
                meta = session.get_job_meta(job_id)
                if str(meta["status"]).startswith("FINISHED"):
                    return dict(meta)
                time.sleep(1)
        raise AssertionError(f"job {job_id} did not end within {timeout_s} s")

    def result(self, job_id: str, target: Path) -> tuple[Path, tuple[events.Event, ...]]:
        """(downloaded result folder with events and model, its events)."""
        with self.federation.session() as session:
            folder = Path(session.download_job_result(job_id, str(target)))
        found = next(iter(folder.rglob("events.jsonl")))
        return found.parent, events.read(found)


@pytest.fixture
def lead(federation: poc.Poc) -> Lead:
    return Lead(federation)
