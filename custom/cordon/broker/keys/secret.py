"""A secret that the configuration names and does not hold: passphrase, PIN or token."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from cordon.documents import Document
from cordon.errors import ConfigError

MAX_SECRET_BYTES = 1024


class Secret(Document, frozen=True, kw_only=True):
    """Where a secret is: ``file`` (a systemd credential, a Docker secret) or environment variable ``env``.

    ``env`` is weaker: every child process inherits it and root reads it in ``/proc/<pid>/environ``.
    """

    file: Annotated[str, Meta(min_length=1)] | None = None
    env: Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,127}\Z")] | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.env is None):
            raise ValueError("a secret names either a file or an env")

    def read(self, what: str, folder: Path, environ: Mapping[str, str]) -> bytes:
        """The secret, without the line end at its end. ``what``: how messages call it.

        Raises:
            ConfigError: missing, empty, over ``MAX_SECRET_BYTES``, or a file that others than its owner may use.
        """
        if self.file is not None:
            source = f"file {folder / self.file}"
            data = read_private(folder / self.file, what, MAX_SECRET_BYTES + 2)
        else:
            source = f"environment variable {self.env}"
            value = environ.get(str(self.env))
            if value is None:
                raise ConfigError(f"{what}: {source} is not set")
            data = os.fsencode(value)
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        if not 0 < len(data) <= MAX_SECRET_BYTES:
            raise ConfigError(f"{what}: {source} has {len(data)} bytes, want 1 to {MAX_SECRET_BYTES}")
        return data


def read_private(path: Path, what: str, limit: int) -> bytes:
    """The bytes of ``path``, at most ``limit``, if nobody but its owner (and root) can read or change it.

    Raises:
        ConfigError: not there, no regular file, too large, or open to group or others.
    """
    try:
        # A pipe would block the open, so that it is judged after. A link is followed: mounted secrets are links.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{what}: {path} is no regular file")
            if mode & 0o077:
                wanted = f"is open to group or others (mode {stat.S_IMODE(mode):04o}); `chmod 600` it"
                raise ConfigError(f"{what}: {path} {wanted}")
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{what}: the path of its file is none") from error
    if len(data) > limit:
        raise ConfigError(f"{what}: {path} is larger than {limit} bytes")
    return data
