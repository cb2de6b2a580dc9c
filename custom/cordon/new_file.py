"""Files that appear whole or not at all, and never overwrite another: keys, vaults, opened models, databases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cordon.errors import ConfigError


@contextmanager
def create(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """The file ``<path>.part`` (its ``name``) to be filled; at the end of the block it is on the disk as ``path``.

    Where the block raises, nothing is left of it. An OSError in the block counts as one of writing.

    Raises:
        ConfigError: ``path`` exists, or was made meanwhile; ``<path>.part`` exists; or it cannot be written.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{path}: exists already, and is never overwritten")
    part = path.with_name(path.name + ".part")
    try:
        file = open(part, "x+b", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, mode))  # noqa: SIM115
    except FileExistsError as error:
        raise ConfigError(f"{part}: exists: another command is at work, or was cut short; then remove it") from error
    except OSError as error:
        raise ConfigError(f"{part}: cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)  # unlike a rename it fails where something has taken the name meanwhile
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise ConfigError(f"{path}: exists already, and is never overwritten") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """``data`` as the new file ``path``; as ``create``."""
    with create(path, mode) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
