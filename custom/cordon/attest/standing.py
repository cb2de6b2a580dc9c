"""Where each peer stands with a verifier, and the file in which its parent process tells its job processes.

A lease ends by itself, so a parent that died leaves no peer attested for ever.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from cordon import documents
from cordon.documents import Document
from cordon.errors import ConfigError


class Standing(Document, frozen=True, kw_only=True):
    """One peer's standing.

    ``attested``: evidence passed; holds from ``granted`` until ``expires``. ``quarantined``: evidence failed by a fault
    that a third party can verify (``fault``). ``unattested``: everything else, e.g. a late, missing or misdirected
    answer. ``reasons``: codes of what failed. All three can change with the next answer.
    """

    state: Literal["attested", "quarantined", "unattested"]
    granted: datetime | None = None
    expires: datetime | None = None
    reasons: tuple[str, ...] = ()

    def live(self, now: datetime) -> bool:
        """Whether this is a lease that holds at ``now``. A clock set back before the grant ends it too."""
        if self.state != "attested" or self.granted is None or self.expires is None:
            return False
        return self.granted <= now < self.expires

    def said(self, now: datetime) -> str:
        """For people: the state, and why."""
        if self.state == "attested":
            return "attested" if self.live(now) else "its lease ended"
        return f"{self.state}: {', '.join(self.reasons) or 'no evidence yet'}"


UNKNOWN = Standing(state="unattested")


def write(path: Path, standings: Mapping[str, Standing]) -> None:
    """Replace the file at ``path`` as one step: a reader sees the old content or the new.

    Where that fails (a full disk) the file is removed before the error goes on: the old content could say of a peer
    whose evidence just failed that it is attested.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(msgspec.json.encode(dict(standings)))
        part.replace(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Standing]:
    """peer -> standing as the parent process last wrote it.

    Raises:
        ConfigError: no such file, or not ours: then nobody is attested.
    """
    try:
        return msgspec.json.decode(documents.read_bytes(path), type=dict[str, Standing])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a list of standings: {error}") from error
