"""A hospital's folder with all that ``cordon broker`` reads, and the command as a process. Time is the machine's."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cordon import new_file
from cordon.attest import software
from cordon.broker.client import BrokerClient
from cordon.broker.protocol import Release
from cordon.data import vault
from cordon.vault_stamp import Stamp

from .broker_network import authority, write_identity
from .key_broker import GATE, JOB, OTHER, SITE, Hospitals, Process

PASSPHRASE = b"correct horse battery staple"


class Ward:
    """A hospital's folder: broker.yml, its documents, a sealed vault with its key; job processes of the hospital.

    Time is the machine's, as the command has no other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        now = datetime.now(UTC)
        self.hospitals = Hospitals(folder, now=now)  # makes key encryption key, state and signed contract, too
        root = software.make_root("ward", now)
        (folder / "root.pem").write_bytes(root.certificate_pem)
        for site in (SITE, OTHER):
            write_identity(folder, site)
        self._tees = {site: software.issue(root, site, now) for site in (SITE, OTHER)}
        (folder / "passphrase").write_bytes(PASSPHRASE)
        (folder / "passphrase").chmod(0o600)
        (folder / "ca.pem").write_bytes(authority().pem)
        (folder / "patients.csv").write_text("id\n1\n")
        new_file.write(folder / "vault.key", bytes(range(32)))
        with open(folder / "patients.csv", "rb") as patients:
            self.stamp: Stamp = vault.seal([("patients.csv", patients)], folder / "data.vault", bytes(range(32)))
        self.tree: dict[str, Any] = {
            "version": "cordon/broker/v1",
            "listen": {"host": "127.0.0.1", "port": 0},
            "tls": {"certificate": "tls.crt", "key": "tls.key", "client_ca": "ca.pem"},
            "state": "state",
            "keys": {"backend": "file", "path": "kek", "passphrase": {"file": "passphrase"}},
            "tenants": [self.tenant(SITE), self.tenant(OTHER)],
        }
        self.write()

    def tenant(self, name: str) -> dict[str, Any]:
        return {**msgspec.to_builtins(self.hospitals.tenant(name)), "gate": msgspec.to_builtins(GATE)}

    def write(self, **changes: Any) -> None:
        self.config = self.folder / "broker.yml"
        self.config.write_text(yaml.safe_dump({**self.tree, **changes}))

    def process(self, site: str = SITE, job: str = JOB) -> Process:
        """A process of ``job`` at ``site``, with fresh keys."""
        attester = software.SoftwareAttester(self._tees[site])
        return self.hospitals.process(site, attester=attester, stamp=self.stamp, job=job)

    def release(self, client: BrokerClient, process: Process) -> Release:
        asked = process.asks(client.challenge(JOB))
        release = client.release(asked.evidence, asked.request)
        assert process.opens(asked, release) == bytes(range(32))
        return release

    @contextlib.contextmanager
    def serving(self, *options: str, default: bool = True, cores: set[int] | None = None) -> Iterator["Served"]:
        """The command as a process, on these cores only, once it listens."""
        words = ["broker"] if default else ["broker", "serve"]
        log = self.folder / "log"
        with open(log, "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "cordon.cli", *words, "--config", str(self.config), *options],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
            )
            try:
                assert process.stdout is not None
                yield Served(self.folder, process, process.stdout.readline().strip(), log)
            finally:
                process.kill()
                process.wait(10)
                process.stdout.close()


class Served:
    """A broker that runs; ``line``: what it printed when it listened."""

    def __init__(self, folder: Path, process: "subprocess.Popen[str]", line: str, log: Path) -> None:
        self.folder, self.process, self.line, self.log = folder, process, line, log
        self.url = json.loads(line)["url"] if line.startswith("{") else line.removeprefix("listening on ")

    def client(self, pin: str, site: str = SITE) -> BrokerClient:
        """A client with the identity of ``site``."""
        return BrokerClient(self.url, pin, self.folder / f"{site}.crt", self.folder / f"{site}.key", 10.0)
