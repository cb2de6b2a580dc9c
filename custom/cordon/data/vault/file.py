"""The file of a vault: opened once, read by position (``preadv``), so that several members don't share one."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cordon.errors import VaultError


@contextmanager
def named(path: Path) -> Iterator[None]:
    """The file's name before what is wrong with it: a policy names the vault, and the reader may look after several."""
    try:
        yield
    except VaultError as error:
        raise VaultError(error.reason, f"{path}: {error.detail}") from error


def open_file(path: Path) -> io.FileIO:
    """The regular file at ``path``; VaultError ``unreadable`` if it is none."""
    try:
        # NONBLOCK: a pipe laid in a vault's place must not hold the opener up; it makes no difference to a file.
        file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise VaultError("unreadable", f"{path}: {getattr(error, 'strerror', None) or 'no file name'}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise VaultError("unreadable", f"{path}: not a regular file")
    return file


def read(file: io.FileIO, offset: int, length: int) -> bytes:
    """Up to ``length`` bytes at ``offset``; fewer only at the end of the file."""
    data = bytearray(length)
    return bytes(data[: _read_some(file, offset, memoryview(data))])


def read_into(file: io.FileIO, offset: int, view: memoryview) -> None:
    """Fill ``view`` with the bytes at ``offset``; VaultError ``wrong_end`` if there are fewer."""
    if _read_some(file, offset, view) != len(view):
        raise VaultError("wrong_end", "the file became shorter while it was read")


def _read_some(file: io.FileIO, offset: int, view: memoryview) -> int:
    done = 0
    try:
        while done < len(view) and (count := os.preadv(file.fileno(), [view[done:]], offset + done)):
            done += count
    except OSError as error:
        raise VaultError("unreadable", f"{error.strerror} at byte {offset + done}") from error
    return done
