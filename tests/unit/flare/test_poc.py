"""The parts of a POC federation that need no federation: ports, environment, whose process is whose."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cordon.errors import CordonError, PortInUse
from cordon.flare import poc

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


@pytest.fixture
def federation(tmp_path):
    return poc.Poc(
        workspace=tmp_path / "poc",
        home=tmp_path / "home",
        project="p",
        server="server",
        sites=("hospital-a", "hospital-b"),
        port=8002,
    )


@pytest.fixture
def start(monkeypatch):
    """Starts real processes and ends what a test left of them. Those of others on this machine are out of its sight."""
    started = []
    monkeypatch.setattr(
        poc.psutil, "process_iter", lambda: [psutil.Process(each.pid) for each in started if alive(each)]
    )

    def alive(process):
        return process.poll() is None

    def run(command=SLEEP, **variables):
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"up\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.wait(10)
        process.stdout.close()


def _dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(10)
    assert not psutil.pid_exists(process.pid)
    return process.pid


def test_free_ports_are_free_and_not_always_the_same():
    ports = {poc.free_port() for _ in range(5)}
    assert all(1024 <= port <= 65535 for port in ports)
    for port in ports:
        poc.check_port(port)


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_a_taken_port_is_said_in_words(address):
    with socket.socket() as holder:
        holder.bind((address, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} is in use; choose another with --port"):
            poc.check_port(port)
    poc.check_port(port)


def test_a_port_taken_is_said_before_anything_is_made(tmp_path):
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        with pytest.raises(PortInUse):
            poc.prepare(tmp_path / "project.yml", tmp_path / "work", holder.getsockname()[1])
    assert list(tmp_path.iterdir()) == []


def test_environment(federation, monkeypatch):
    monkeypatch.setenv("NVFLARE_HOME", "/elsewhere")
    monkeypatch.setenv("NVFL_WORKSPACE", "/elsewhere")
    monkeypatch.setenv("KEPT", "yes")
    got = federation.environment()
    assert got["HOME"] == str(federation.home)
    assert got["NVFLARE_POC_WORKSPACE"] == got[poc.WORKSPACE_VARIABLE] == str(federation.workspace)
    assert got[poc.DRIVER_VARIABLE] == poc.driver_id() and got[poc.DRIVER_VARIABLE].startswith(f"{os.getpid()}:")
    assert Path(got["TMPDIR"]).is_relative_to(federation.home)
    assert got["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert got["OMP_NUM_THREADS"] == "1"
    assert got["KEPT"] == "yes"
    assert not {"NVFLARE_HOME", "NVFL_WORKSPACE"} & set(got)


def test_only_its_own_processes_are_its_own(federation, start):
    own = start(**federation.environment())
    other = start(**{**federation.environment(), poc.WORKSPACE_VARIABLE: "/another/workspace"})
    plain = start()
    found = {process.pid for process in federation.processes()}
    assert own.pid in found
    assert not {other.pid, plain.pid, os.getpid()} & found


def test_processes_of_one_participant(federation, start):
    kit = federation.kit("hospital-a")
    one = start([*SLEEP, "--workspace", str(kit)], **federation.environment())
    start([*SLEEP, str(federation.kit("hospital-b"))], **federation.environment())
    assert [process.pid for process in federation.processes("hospital-a")] == [one.pid]


def test_stop_ends_its_own_processes_and_no_other(federation, start):
    for name in ("server", "hospital-a", "hospital-b"):
        federation.kit(name).mkdir(parents=True)
    own, stubborn, other = (
        start(**federation.environment()),
        start(STUBBORN, **federation.environment()),
        start(**{poc.WORKSPACE_VARIABLE: "/another/workspace"}),
    )
    federation.stop(grace_s=0.5)
    own.wait(5)
    stubborn.wait(5)
    assert other.poll() is None
    assert federation.processes() == []
    assert all((federation.kit(name) / "shutdown.fl").exists() for name in ("server", "hospital-a", "hospital-b"))


def test_orphans_of_a_dead_driver_are_ended_and_those_of_a_living_one_are_not(start):
    orphan = start(**{poc.DRIVER_VARIABLE: f"{_dead_pid()}:1.0"})
    kept = start(**{poc.DRIVER_VARIABLE: poc.driver_id()})
    odd = start(**{poc.DRIVER_VARIABLE: "not a number"})
    assert poc.reap_orphans() == 1
    orphan.wait(5)
    assert kept.poll() is None
    assert odd.poll() is None
    assert poc.reap_orphans() == 0


def test_a_project_without_a_server(tmp_path):
    template = tmp_path / "project.yml"
    template.write_text("name: p\nparticipants: []\nbuilders: []\n")
    with pytest.raises(Exception, match="want one server, got 0"):
        poc.prepare(template, tmp_path / "work")


def test_a_command_of_flare_that_fails_is_said(federation):
    federation.temporary.mkdir(parents=True)
    began = time.monotonic()
    with pytest.raises(poc.CordonError, match="`nvflare no-such-command` failed"):
        poc._nvflare(federation, "no-such-command", timeout_s=60)
    assert time.monotonic() - began < 60


def test_a_workspace_is_removed_only_when_its_driver_is_gone(tmp_path):
    """It holds private keys: a driver that was killed must not leave them for ever, a live one must not lose them."""
    marks = {"dead": f"{_dead_pid()}:1.0", "reused pid": f"{os.getpid()}:1.0", "mine": poc.driver_id(), "odd": "x"}
    for name, mark in marks.items():
        (tmp_path / name / "poc").mkdir(parents=True)
        (tmp_path / name / poc.DRIVER_FILE).write_text(mark)
    (tmp_path / "strange" / "poc").mkdir(parents=True)
    for folder in list(tmp_path.iterdir()):
        poc.remove_abandoned(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "odd", "strange"]


def test_a_broker_that_ends_at_its_second_start_is_not_taken_for_the_first(federation, monkeypatch):
    """Its log is appended to, and the first one did listen."""
    federation.broker.mkdir(parents=True)
    federation.home.mkdir()
    (federation.broker / poc.BROKER_LOG).write_text("cordon broker: listening on 127.0.0.1:1\n")
    real = subprocess.Popen
    monkeypatch.setattr(
        poc.subprocess, "Popen", lambda command, **how: real([sys.executable, "-c", "print('no port')"], **how)
    )
    with pytest.raises(CordonError, match=r"(?s)the key broker ended \(0\):\nno port"):
        federation._start_broker()
    monkeypatch.undo()
    federation.stop(1.0)
