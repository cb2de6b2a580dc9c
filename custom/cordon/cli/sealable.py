"""What ``cordon vault seal`` takes from a folder: everything in it, or it is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cordon.data.source import FolderSource
from cordon.errors import ConfigError


def apart(folder: Path, *others: Path | None) -> None:
    """ConfigError if one of ``others`` lies in ``folder``: its key, or its vault, would be sealed with the data."""
    for other in filter(None, others):
        if os.path.realpath(other.parent) == os.path.realpath(folder):
            raise ConfigError(f"{other}: lies in the folder to seal, {folder}; keep keys, stamps and vaults elsewhere")


def names_of(path: Path, source: FolderSource) -> tuple[tuple[str, ...], int]:
    """(names, bytes in all) of the files to seal; ConfigError if some of what lies there would be left out."""
    names = source.members()
    try:
        if path.is_dir():
            if left := sorted({entry.name for entry in os.scandir(path)} - set(names)):
                raise ConfigError(f"{path}: only regular files can be sealed; here is also {', '.join(left[:10])}")
            if not names:
                raise ConfigError(f"{path}: no file in this folder")
        for name in names:
            for journal in (f"{name}-wal", f"{name}-journal"):  # of SQLite: the newest rows may be in there alone
                beside = source.path(name).with_name(journal)
                if beside.is_file() and beside.stat().st_size:
                    raise ConfigError(f"{beside}: the database is in use; close it, or checkpoint it, before sealing")
        return names, sum(source.path(name).stat().st_size for name in names)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def opened(source: FolderSource, names: tuple[str, ...]) -> Iterator[tuple[str, BinaryIO]]:
    """(name, file) of each, one after the other."""
    for name in names:
        with source.open(name) as file:
            yield name, file
