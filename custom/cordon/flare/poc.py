"""A POC federation as one value: prepared, started, used, and gone without a trace.

Everything goes through FLARE's own ``nvflare poc`` commands and its Session API. Every process of the federation
carries two environment variables (workspace, and pid of the driver), so that ``stop`` finds exactly its own processes,
nothing is killed by name, and a federation whose driver died is found by the next one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from cordon.errors import ConfigError, CordonError, PortInUse
from cordon.flare import poc_broker

WORKSPACE_VARIABLE = "CORDON_POC_WORKSPACE"
DRIVER_VARIABLE = "CORDON_POC_DRIVER"
STARTUP_TIMEOUT_S = 90
BROKER_TIMEOUT_S = 30.0
BROKER_LOG = "broker.log"
DRIVER_FILE = "driver"  # beside a workspace: whose it is
LEAD = "lead@cordon.example"
BUILDER = "cordon.flare.provision.CordonBuilder"

# Keys of FLARE's record of a job (``Session.get_job_meta``).
STATUS = JobMetaKey.STATUS.value
DEPLOY_DETAIL = JobMetaKey.JOB_DEPLOY_DETAIL.value
SCHEDULE_HISTORY = JobMetaKey.SCHEDULE_HISTORY.value


@dataclass(frozen=True)
class Poc:
    """A POC workspace. ``home`` replaces the user's home for FLARE, whose registry of kits is not ours to change."""

    workspace: Path
    home: Path
    project: str
    server: str
    sites: tuple[str, ...]
    port: int
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False, compare=False)

    def kit(self, name: str) -> Path:
        """The startup kit of a participant."""
        return self.workspace / self.project / "prod_00" / name

    @property
    def state(self) -> Path:
        """FLARE's provisioning state, with everybody's private keys."""
        return self.workspace / self.project / "state"

    @property
    def broker(self) -> Path:
        """The key broker's folder: its configuration, keys, state and log."""
        return self.workspace / self.project / poc_broker.FOLDER

    @property
    def temporary(self) -> Path:
        """Where every process of this federation puts its temporary files."""
        return self.home / "tmp"

    def environment(self) -> dict[str, str]:
        """Environment of every process of this federation."""
        paths = {
            "HOME": str(self.home),
            "NVFLARE_POC_WORKSPACE": str(self.workspace),
            WORKSPACE_VARIABLE: str(self.workspace),
            DRIVER_VARIABLE: driver_id(),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "/usr/bin:/bin")]),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",  # several sites share this machine
            "PYTHONUNBUFFERED": "1",
        }
        kept = {key: value for key, value in os.environ.items() if key not in ("NVFLARE_HOME", "NVFL_WORKSPACE")}
        return {**kept, **paths}

    def start(self, timeout_s: int = STARTUP_TIMEOUT_S) -> None:
        """Start broker, server and sites and wait until all are connected."""
        check_port(self.port)
        if (self.broker / poc_broker.CONFIG).exists():
            self._start_broker()
        _nvflare(self, "poc", "start", "--timeout", str(timeout_s), timeout_s=timeout_s + 60)

    def _start_broker(self) -> None:
        """As ``cordon broker --config F`` at a terminal; returns when it listens."""
        log = self.broker / BROKER_LOG
        before = log.stat().st_size if log.exists() else 0  # what an earlier one said is not said by this one
        command = [sys.executable, "-m", "cordon.cli", "broker", "--config", str(self.broker / poc_broker.CONFIG)]
        with open(log, "ab") as out:
            process = subprocess.Popen(
                command,
                env=self.environment(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(process)
        deadline = time.monotonic() + BROKER_TIMEOUT_S
        while "listening on " not in (said := log.read_bytes()[before:].decode(errors="replace")):
            if process.poll() is not None:
                raise CordonError(f"the key broker ended ({process.returncode}):\n{said.strip()[-2000:]}")
            if time.monotonic() > deadline:
                raise CordonError(f"the key broker did not listen within {BROKER_TIMEOUT_S:.0f} s: {log}")
            time.sleep(0.1)

    @contextlib.contextmanager
    def session(self, user: str = LEAD, timeout_s: float = 20.0) -> Iterator[Session]:
        """A FLARE API session as ``user``, closed at the end."""
        session = new_secure_session(user, str(self.kit(user)), timeout=timeout_s)
        try:
            yield session
        finally:
            session.close()

    def processes(self, participant: str | None = None) -> list[psutil.Process]:
        """All live processes of this federation, or of one participant."""
        kit = None if participant is None else str(self.kit(participant))
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(WORKSPACE_VARIABLE) != str(self.workspace) or process.pid == os.getpid():
                    continue
                if kit is None or any(kit in part for part in process.cmdline()):
                    found.append(process)
        return found

    def stop(self, grace_s: float = 10.0) -> None:
        """End every process of this federation: asked first, killed after ``grace_s``."""
        for name in (*self.sites, self.server):
            with contextlib.suppress(OSError):
                (self.kit(name) / "shutdown.fl").touch()
        _end(self.processes, grace_s)
        for process in self._children:
            process.wait(grace_s)
        self._children.clear()


def prepare(template: Path, folder: Path, port: int | None = None, *, all_honest: bool = False) -> Poc:
    """Provision ``template`` (a project file) as a POC workspace under ``folder`` on free ports.

    ``all_honest``: no site lies on purpose, whatever the template says.

    Raises:
        PortInUse: ``port`` was asked for and is taken.
        CordonError: FLARE's provisioning failed; the message ends with what it said.
    """
    if port is not None:
        check_port(port)
    port = port or free_port()
    project = yaml.safe_load(template.read_text())
    servers = [entry for entry in project["participants"] if entry["type"] == "server"]
    if len(servers) != 1:
        raise ConfigError(f"{template}: want one server, got {len(servers)}")
    servers[0]["fed_learn_port"] = servers[0]["admin_port"] = port
    for builder in project["builders"]:
        if builder["path"] == BUILDER:  # the copy lies elsewhere: its paths still mean the template's folder
            builder["args"]["base"] = str(template.parent.resolve())
            if all_honest:
                builder["args"]["all_honest"] = True
            if builder["args"].get("broker") is not None:
                builder["args"]["broker"]["port"] = free_port(other_than=port)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DRIVER_FILE).write_text(driver_id())
    file = folder / "project.poc.yml"
    file.write_text(yaml.safe_dump(project, sort_keys=False))
    poc = Poc(
        workspace=folder.resolve() / "poc",
        home=folder.resolve() / "home",
        project=project["name"],
        server=servers[0]["name"],
        sites=tuple(entry["name"] for entry in project["participants"] if entry["type"] == "client"),
        port=port,
    )
    poc.temporary.mkdir(parents=True, exist_ok=True)
    _nvflare(poc, "poc", "prepare", "-i", str(file), "--force", timeout_s=120)
    return poc


def free_port(other_than: int | None = None) -> int:
    """A TCP port that is free now on all interfaces, as FLARE binds it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = int(probe.getsockname()[1])
        if port != other_than:
            return port


def check_port(port: int) -> None:
    """Raise PortInUse if ``port`` is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise PortInUse(
                f"port {port} is in use; choose another with --port, or leave --port out and a free one is taken"
            ) from error


def driver_id() -> str:
    """This process, told apart from a later one with the same pid: ``pid:start time``."""
    return f"{os.getpid()}:{psutil.Process().create_time()}"


def reap_orphans() -> int:
    """End this user's processes of federations whose driver no longer lives, and remove their workspaces.

    Returns:
        How many processes there were.
    """
    folders: set[Path] = set()

    def orphans() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                variables = process.environ()
                driver = variables.get(DRIVER_VARIABLE)
                if driver is None or process.pid == os.getpid() or process.uids().real != os.getuid() or _lives(driver):
                    continue
                found.append(process)
                folders.add(Path(variables.get(WORKSPACE_VARIABLE, "")).parent)
        return found

    count = len(orphans())
    if count:
        _end(orphans, 2.0)
    for folder in folders:
        remove_abandoned(folder)
    return count


def remove_abandoned(folder: Path) -> None:
    """Delete a workspace's folder, private keys included, if the driver that made it no longer lives."""
    mark = folder / DRIVER_FILE
    if mark.is_file() and not _lives(mark.read_text()):
        shutil.rmtree(folder, ignore_errors=True)


def _lives(driver: str) -> bool:
    pid, _, created = driver.partition(":")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(created)) < 1.0
    except psutil.Error:
        return False
    except ValueError:
        return True  # not a mark of ours: hands off


def _end(find: Any, grace_s: float) -> None:
    deadline = time.monotonic() + grace_s
    for process in find():
        with contextlib.suppress(psutil.Error):
            process.terminate()
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    # A process may start another while it is being ended: kill until none is found.
    for _ in range(50):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)
        left = find()
        if not left:
            return
    raise CordonError(f"processes that cannot be ended: {', '.join(str(process.pid) for process in left)}")


def _nvflare(poc: Poc, *args: str, timeout_s: float) -> str:
    """Run an ``nvflare`` command in a session of its own (a Ctrl-C at the terminal is ours to handle)."""
    command = [sys.executable, "-m", "nvflare.cli", *args]
    done = subprocess.run(
        command,
        env=poc.environment(),
        cwd=poc.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        start_new_session=True,
    )
    if done.returncode != 0:
        raise CordonError(f"`nvflare {' '.join(args)}` failed ({done.returncode}):\n{done.stdout.strip()[-2000:]}")
    return done.stdout
