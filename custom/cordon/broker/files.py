"""Files and folders that are the owner's alone, and who holds a database."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import IO

from cordon.errors import ConfigError


def make_private(folder: Path) -> None:
    """``folder`` of mode 0700, made if absent; ConfigError if others can look into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_mode(folder, folder.stat())
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from error


def check_private(path: Path) -> None:
    """ConfigError unless ``path`` is a file, and it and its folder are the owner's alone."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ConfigError(f"{path}: not a regular file")
        _check_mode(path, path.lstat())
        _check_mode(path.parent, path.parent.stat())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no state here (`cordon broker init` makes it)") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _check_mode(path: Path, found: os.stat_result) -> None:
    if found.st_mode & 0o077:
        raise ConfigError(f"{path}: mode {stat.S_IMODE(found.st_mode):04o} is open to others; `chmod go= {path}` it")


def hold(path: Path, *, shared: bool) -> IO[bytes]:
    """A lock beside the database at ``path``, until it is closed: ``shared`` by all who use it, else for one alone.

    Raises:
        ConfigError: somebody holds it who does not share it.
    """
    name = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(f"{path}: in use; stop the broker and other commands of this tenant first") from error
    return file
