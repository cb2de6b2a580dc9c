"""A small file in the kit that job processes, several at a time, read and replace."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cordon.errors import ConfigError


@contextmanager
def alone(path: Path) -> Iterator[Path]:
    """``path`` while no other job's process of this kit is at it; what the system refuses is a ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield path
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be kept: {error.strerror}") from error


def replace(path: Path, data: bytes) -> None:
    """``data`` as the content of ``path``, in one step and on the disk; by who is ``alone``."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
