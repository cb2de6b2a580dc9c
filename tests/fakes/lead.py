"""The lead of a POC federation, who submits jobs and fetches their results with FLARE's own commands and API."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cordon.flare import poc
from cordon.report import events

PROJECT = Path("provisioning") / "project.poc.yml"


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
