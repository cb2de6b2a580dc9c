"""Starts the FLARE parent process of the kit mounted at /kit, or tells whether it is connected.

entrypoint.py start client|server     entrypoint.py health client|server

1. The kit's startup/ and local/ are copied into /workspace, where FLARE runs. What is mounted belongs to the host, who
   could change it between check and use; the copy is this container's own (compose.yml keeps it in memory).
2. The copy is read as Cordon will read it: its documents are signed, of the study that the hospital pinned
   (/etc/cordon/pin.yml), the hardware that it names is there, and FLARE's own files say what provisioning writes and
   nothing more. FLARE acts on them only after that.
3. FLARE is started with the command in the kit's own startup/sub_start.sh, without its restart loop (the container
   engine restarts) and without its `PYTHONPATH=/local/custom`: nothing from outside the image becomes importable, and
   no script of the kit is run.
"""

import json
import os
import shutil
import sys
from pathlib import Path

KIT = Path("/kit")
WORKSPACE = Path("/workspace")
PARTS = ("startup", "local")
MODULES = {
    "client": "nvflare.private.fed.app.client.client_train",
    "server": "nvflare.private.fed.app.server.server_train",
}
TCP_ESTABLISHED, TCP_LISTEN = "01", "0A"
# FLARE takes settings and whole logging configurations from variables, Python code: only what is named here is kept.
SPEAKING = ("PYTHON", "NVFL", "FL_")
KEPT = ("NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT",)
FIXED = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # /workspace is not importable


class KitError(Exception):
    """The mounted kit is missing, of the other role, unreadable, or Cordon refuses it."""

    def __init__(self, message: str, exit_code: int = 3) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KitError(
            f"cannot read {path}: {error.strerror}. "
            f"Mount the kit's startup/ and local/ at {KIT}, readable for uid {os.getuid()}"
        ) from error


def identity(certificate: bytes) -> tuple[str, str]:
    """(name, organisation) as the certificate says: the same that FLARE holds the peer to."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    subject = x509.load_pem_x509_certificate(certificate).subject
    values = []
    for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        found = subject.get_attributes_for_oid(oid)
        if len(found) != 1:
            raise KitError(f"the kit's certificate names {len(found)} values for {oid.dotted_string}, expected one")
        values.append(str(found[0].value))
    return values[0], values[1]


def copy_kit(kit: Path = KIT, workspace: Path = WORKSPACE) -> None:
    """Put the kit's startup/ and local/ in place of those in ``workspace``."""
    for part in PARTS:
        target = workspace / part
        if target.is_symlink():
            raise KitError(f"{target} is a link")
        target.mkdir(mode=0o700, exist_ok=True)
        for old in target.iterdir():  # the folder itself stays: it may be a mount
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()
        _copy(kit / part, target)


def _copy(source: Path, target: Path) -> None:
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except OSError as error:
        raise KitError(
            f"cannot read {source}: {error.strerror}. "
            f"Mount the kit's startup/ and local/ at {KIT}, readable for uid {os.getuid()}"
        ) from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            (target / entry.name).mkdir(mode=0o700)
            _copy(Path(entry.path), target / entry.name)
        elif entry.is_file(follow_symlinks=False):
            with open(target / entry.name, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(read(Path(entry.path)))
        else:
            raise KitError(f"{entry.path} is a link or a special file; a kit has none")


def environment(given: dict[str, str]) -> dict[str, str]:
    """``given`` without what would speak to Python or FLARE."""
    kept = {name: value for name, value in given.items() if name in KEPT or not name.startswith(SPEAKING)}
    return {**kept, **FIXED}


def command(role: str, workspace: Path = WORKSPACE) -> list[str]:
    startup = workspace / "startup"
    read(startup / f"fed_{role}.json")
    name, org = identity(read(startup / f"{role}.crt"))
    settings = ["secure_train=true"]
    if role == "client":
        settings.append(f"uid={name}")
    settings += [f"org={org}", "config_folder=config"]
    options = ["-m", str(workspace), "-s", f"fed_{role}.json", "--set", *settings]
    return [sys.executable, "-u", "-m", MODULES[role], *options]


def check(workspace: Path = WORKSPACE) -> None:
    """KitError, with Cordon's reason, unless the kit may start here."""
    from datetime import UTC, datetime

    from cordon.errors import CordonError
    from cordon.flare.kit import load_kit

    try:
        load_kit(workspace, datetime.now(UTC))
    except CordonError as error:
        raise KitError(str(error), error.exit_code) from error
    except ImportError as error:  # poc_only.txt
        raise KitError(f"{error}: a production image leaves the POC parts out that this kit asks for") from error


def connected(role: str, workspace: Path = WORKSPACE, proc: Path = Path("/proc/net")) -> bool:
    """A server is well when it listens on its port, a client when it holds a connection to the server's port."""
    config = json.loads(read(workspace / "startup" / f"fed_{role}.json"))
    port = int(config["servers"][0]["service"]["target"].rpartition(":")[2])
    wanted = (2, TCP_ESTABLISHED) if role == "client" else (1, TCP_LISTEN)
    for table in ("tcp", "tcp6"):
        path = proc / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()  # number, local address:port, remote address:port, state, ...
            if fields[3] == wanted[1] and int(fields[wanted[0]].rpartition(":")[2], 16) == port:
                return True
    return False


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[0] not in ("start", "health") or argv[1] not in MODULES:
        print("usage: entrypoint.py start|health client|server", file=sys.stderr)
        return 3
    action, role = argv
    try:
        if action == "health":
            return 0 if connected(role) else 1
        copy_kit(KIT, WORKSPACE)
        arguments = command(role, WORKSPACE)
        check(WORKSPACE)
        (WORKSPACE / "transfer").mkdir(exist_ok=True)
    except KitError as error:
        print(f"cordon: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError, KeyError, IndexError) as error:
        print(f"cordon: {error}", file=sys.stderr)
        return 3
    os.execve(arguments[0], arguments, environment(dict(os.environ)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
