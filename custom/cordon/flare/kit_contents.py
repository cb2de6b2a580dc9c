"""What the files of a kit can make FLARE do: a closed list, so that a kit is data and never code.

FLARE builds objects, opens addresses and imports modules by what it finds in a workspace, before any handler of ours
runs. Whoever made the kit, or mounts it, could so run anything inside the attested process, whose measurement would
stay right. What nvflare 2.9 reads, and what is allowed here:

* ``startup/`` and ``local/``: FLARE's files must say what provisioning writes (``kit_files``, FLARE's own templates),
  and beside them are only the documents that the kit itself names. Everything else is refused by name: further
  ``*resources.json``, ``privacy.json``, ``comm_config.json``, ``custom/``, links, other formats of the same files.
* the rest of the kit (logs, records, job runs, data): FLARE looks some config files up in the whole tree, and Python
  imports from the folder that a process starts in. So no file there has a name that either would take up.

The files are read again by FLARE later: who can change them in between is not stopped here (docker/entrypoint.py is).
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.resources
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from cordon import documents
from cordon.errors import ConfigError
from cordon.flare import kit_files

SIGNATURE = "signature.json"  # FLARE's, in any folder; FLARE itself looks at that of startup/ only
FORMATS = (".json", ".conf", ".yml", ".yaml")  # nvflare.fuel.utils.config; each also with ".default"
SOUGHT = ("fed_server", "fed_client", "resources", "comm_config")  # by ConfigService, in the whole workspace

_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]*")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):[0-9]{1,5}")


@dataclass(frozen=True)
class Expected:
    """Whose kit it is, as its signed documents say.

    Attributes:
        log_streaming: as the site's policy says; None for the coordinator.
        files: the documents that this kit reads; each may have a signature beside it.
        folders: folders that are read, file by file, by something stricter than this.
    """

    role: Literal["coordinator", "hospital"]
    name: str
    coordinator: str
    log_streaming: bool | None
    files: tuple[Path, ...]
    folders: tuple[Path, ...] = ()

    @property
    def base(self) -> str:
        """FLARE's word for the role."""
        return "server" if self.role == "coordinator" else "client"


def check(root: Path, expected: Expected) -> None:
    """ConfigError, with the file's name, unless all that FLARE acts on in the kit at ``root`` is as provisioned."""
    startup, local = root / "startup", root / "local"
    wanted = _configs(root, expected)
    scripts = _scripts(startup, expected)
    pems = [startup / f"{expected.base}.crt", startup / f"{expected.base}.key", startup / "rootCA.pem"]
    named = [*wanted, *scripts, *pems, local / "privacy.json.sample"]
    for document in expected.files:
        named += [document, documents.signature_path(document)]
    for folder in (startup, local):
        _closed(folder, frozenset(named), expected.folders)
    for path, tree in wanted.items():
        other = path.with_name(f"{path.name}.default")  # which FLARE reads if the file without it is not there
        if path.exists():
            _matches(path, tree)
        elif path.suffix == ".json" and not other.exists():
            raise ConfigError(f"{path}: missing: FLARE would start without attestation, roles or limits")
    for path, texts in scripts.items():
        if path.exists() and documents.read_bytes(path) not in texts:
            raise ConfigError(f"{path}: not the script that nvflare {_version()} and provisioning write for this kit")
    _nothing_taken_up(root, frozenset(wanted))


# -- what is in startup/ and local/ ----------------------------------------------------------------------------------


def _closed(folder: Path, named: frozenset[Path], folders: tuple[Path, ...]) -> None:
    """Raise for anything in ``folder`` that is not named, whatever it is."""
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder of the kit itself")
    for path in _walk(folder):
        if path.is_symlink():
            raise ConfigError(f"{path}: is a link; what a kit holds lies in the kit")
        if path.is_dir():
            inside = path in folders or any(each.is_relative_to(path) for each in (*named, *folders))
            if not inside:
                raise ConfigError(f"{path}: not a folder that a kit has")
        elif path not in named and path.name != SIGNATURE and path.parent not in folders:
            raise ConfigError(
                f"{path}: not a file that a kit has: FLARE acts on files by their names, so none is ignored"
            )
        elif not path.is_file():
            raise ConfigError(f"{path}: not a regular file")


def _configs(root: Path, expected: Expected) -> dict[Path, Any]:
    """File that FLARE interprets -> what it must say; strings in ``_FREE`` stand for a value that may vary."""
    hospital, local = expected.role == "hospital", root / "local"
    values = {
        **{"name": "<text>", "target": "<address>", "scheme": "grpc", "conn_sec": "mtls", "admin_port": '"<port>"'},
        **{"admin_server": expected.name, "server_identity": expected.coordinator, "fqsn": expected.name},
        **{"is_leaf": "true", "require_signed_jobs_config": "", "auth_identity_config": ""},
    }
    fed = f"fed_{expected.base}"
    wanted: dict[Path, Any] = {root / "startup" / f"{fed}.json": json.loads(_template(fed, values))}
    for name, tree in kit_files.components(hospital, "<seconds>").items():
        wanted[local / name] = tree
    stock = {"class_allow_list": "[]", "allow_log_streaming": "true", "num_gpus": '"<count>"', "gpu_mem": '"<count>"'}
    resources = json.loads(_template(f"local_{expected.base}_resources", stock))
    if not hospital:
        _store_anywhere_else(resources)
    both = {
        "resources.json": kit_files.restricted(resources, expected.log_streaming),
        "authorization.json": kit_files.AUTHORIZATION,
        "log_config.json": json.loads(_template("log_config", {})),
    }
    for name, tree in both.items():
        wanted[local / name] = wanted[local / f"{name}.default"] = tree
    return wanted


def _store_anywhere_else(resources: dict[str, Any]) -> None:
    """The coordinator keeps jobs and snapshots where it likes: ``nvflare poc prepare`` moves them."""
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = "<place>"
    for component in resources["components"]:
        if component["id"] == "job_manager":
            component["args"]["uri_root"] = "<place>"


def _scripts(startup: Path, expected: Expected) -> dict[Path, list[bytes]]:
    """File -> what it may be. The image runs none of them; elsewhere they are what starts first."""
    values = {
        "type": expected.base,
        "app_name": f"{expected.base}_train",
        "cln_uid": "" if expected.base == "server" else f"uid={expected.name}",
        "org_name": _organisation(startup / f"{expected.base}.crt"),
    }
    folders = ("config", "")  # nvflare provision | nvflare package
    start = _template("start_svr_sh" if expected.base == "server" else "start_cln_sh", {})
    return {
        startup / "start.sh": [(kit_files.waits_less(start) if expected.base == "server" else start).encode()],
        startup / "sub_start.sh": [
            _template("sub_start_sh", {**values, "config_folder": folder}).encode() for folder in folders
        ],
        startup / "stop_fl.sh": [_template("stop_fl_sh", {}).encode()],
    }


def _organisation(certificate: Path) -> str:
    """As the certificate says, if it is one word: FLARE puts it into a shell script and a command line."""
    try:
        subject = x509.load_pem_x509_certificate(documents.read_bytes(certificate)).subject
        names = [str(each.value) for each in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    except ValueError as error:
        raise ConfigError(f"{certificate}: not a certificate") from error
    if len(names) != 1 or not _TEXT.fullmatch(names[0]):
        raise ConfigError(f"{certificate}: want one organisation, of letters, digits, '_', '.', '-'; got {names}")
    return names[0]


# -- what a file says ------------------------------------------------------------------------------------------------


def _text(found: Any) -> bool:
    return isinstance(found, str) and _TEXT.fullmatch(found) is not None


def _address(found: Any) -> bool:
    return isinstance(found, str) and _ADDRESS.fullmatch(found) is not None


def _place(found: Any) -> bool:
    return isinstance(found, str) and PurePosixPath(found).is_absolute() and ".." not in PurePosixPath(found).parts


def _count(found: Any, most: int = 65535) -> bool:
    return type(found) is int and 0 <= found <= most


def _seconds(found: Any) -> bool:
    return type(found) in (int, float) and 0.5 <= found <= 600  # as cc_profile.AttestationConfig


_FREE: dict[str, Callable[[Any], bool]] = {
    "<text>": _text,
    "<address>": _address,
    "<place>": _place,
    "<port>": _count,
    "<count>": _count,
    "<seconds>": _seconds,
}


def _matches(path: Path, wanted: Any) -> None:
    """ConfigError unless the JSON file at ``path`` means ``wanted``."""
    try:
        found = json.loads(documents.read_bytes(path).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    where = _differs(found, wanted, "")
    if where is not None:
        raise ConfigError(f"{path}: {where}; FLARE builds and opens what stands there, so nothing else may")


def _differs(found: Any, wanted: Any, at: str) -> str | None:
    """Where ``found`` is not ``wanted``, and how; None if it is."""
    place = at or "the whole"
    if isinstance(wanted, str) and wanted in _FREE:
        return None if _FREE[wanted](found) else f"{place}: {found!r:.100} is no {wanted[1:-1]}"
    if type(found) is not type(wanted):
        return f"{place}: want {type(wanted).__name__}, got {found!r:.100}"
    if isinstance(wanted, dict):
        missing, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        if missing or more:
            return f"{place}: lacks {missing}, has {more} beyond what provisioning writes"
        keys: Iterable[Any] = wanted
    elif isinstance(wanted, list):
        if len(found) != len(wanted):
            return f"{place}: {len(found)} entries, provisioning writes {len(wanted)}"
        keys = range(len(wanted))
    else:
        return None if found == wanted else f"{place}: {found!r:.100} in place of {wanted!r:.100}"
    return next((said for key in keys if (said := _differs(found[key], wanted[key], f"{at}/{key}"))), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


@functools.cache
def _templates() -> dict[str, str]:
    """FLARE's own, as installed beside this package."""
    text = importlib.resources.files("nvflare").joinpath("lighter", "templates", "master_template.yml").read_text()
    sections: dict[str, str] = yaml.safe_load(text)
    return sections


def _template(section: str, values: dict[str, str]) -> str:
    """A template filled as ``nvflare.lighter.utils.sh_replace`` does it."""
    text = _templates()[section]
    for name, value in values.items():
        text = text.replace("{~~" + name + "~~}", value)
    return text


def _version() -> str:
    from nvflare import __version__

    return str(__version__)


# -- the rest of the kit ---------------------------------------------------------------------------------------------


def _nothing_taken_up(root: Path, wanted: frozenset[Path]) -> None:
    """Raise for a file beyond ``wanted``, anywhere in the kit, that FLARE or Python would take for its own."""
    taken = {f"{name}{form}{default}" for name in SOUGHT for form in FORMATS for default in ("", ".default")}
    code = tuple(importlib.machinery.all_suffixes())
    for path in _walk(root):
        merged = path.parent in (root / "startup", root / "local") and path.name.endswith("resources.json")
        if path not in wanted and (path.name in taken or merged):
            raise ConfigError(f"{path}: FLARE would read its settings from here")
        if path.name.endswith(code):
            raise ConfigError(f"{path}: Python could import this: a kit holds no code")
        if path.is_symlink() and path.is_dir():
            raise ConfigError(f"{path}: a link to a folder: Python could import what lies there")


def _walk(folder: Path) -> Iterable[Path]:
    """Everything below ``folder``, links not followed; what vanishes meanwhile (a job that ends) is passed over."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise ConfigError(f"{error.filename}: cannot be looked at: {error.strerror}") from error

    for here, folders, files in os.walk(folder, onerror=fail):
        yield from (Path(here, name) for name in (*folders, *files))
