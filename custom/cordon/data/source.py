"""A hospital's source as named members that are opened read-only and bounded in size.

Connectors ask for members and get file objects, so that an encrypted vault stands in for a folder.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cordon.data.vault import Vault
from cordon.errors import SourceError

MAX_MEMBER = 16 * 1024**3  # bytes of one streamed member
MAX_LINE = 4 * 1024**2  # bytes of one line of a streamed member
MAX_MEMBERS = 1_000_000


class Source(Protocol):
    """Named members, each readable as a seekable file object."""

    @property
    def name(self) -> str:
        """What error messages call the source."""

    def members(self) -> tuple[str, ...]:
        """Names of all members, sorted; SourceError if the source is missing or unreadable."""

    def single(self) -> str:
        """The name of the only member of a source that must be one file; SourceError if it is none."""

    def open(self, member: str, limit: int = MAX_MEMBER) -> io.BufferedReader:
        """``member`` for reading; SourceError if it is missing, unreadable or larger than ``limit`` bytes."""

    def lines(self, member: str) -> Iterator[tuple[int, bytes]]:
        """(line number from 1, line) of every non-blank line of ``member``; a line over the bound ends the reading."""
        with self.open(member) as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise SourceError(f"{member}:{number}: a line is longer than the {MAX_LINE} bytes allowed")
                if not line.isspace():
                    yield number, line


@dataclass(frozen=True)
class FolderSource(Source):
    """A file, or a folder whose regular files (no links, no sub-folders) are the members."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def members(self) -> tuple[str, ...]:
        try:
            if self.root.is_file():
                return (self.root.name,)
            with os.scandir(self.root) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        except OSError as error:
            raise SourceError(f"{self.root}: cannot be read: {error.strerror}") from error
        if len(names) > MAX_MEMBERS:
            raise SourceError(f"{self.root}: more than {MAX_MEMBERS} files")
        return tuple(names)

    def single(self) -> str:
        if not self.root.is_file():
            raise SourceError(f"{self.root}: want one file, and there is none")
        return self.root.name

    def path(self, member: str) -> Path:
        """Where ``member`` lies; only for readers that cannot work from a file object."""
        if Path(member).name != member:
            raise SourceError(f"{member}: not the name of a member")
        return self.root if self.root.is_file() and member == self.root.name else self.root / member

    def open(self, member: str, limit: int = MAX_MEMBER) -> io.BufferedReader:
        path = self.path(member)
        try:
            file = open(path, "rb")  # noqa: SIM115 - the caller closes it
            status = os.fstat(file.fileno())
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            file.close()
            raise SourceError(f"{path}: not a regular file of at most {limit} bytes")
        return file


@dataclass(frozen=True)
class VaultSource(Source):
    """An open vault: members are decrypted into memory while they are read, and nowhere else."""

    vault: Vault

    @property
    def name(self) -> str:
        return str(self.vault.path)

    def members(self) -> tuple[str, ...]:
        return tuple(sorted(self.vault.members()))

    def single(self) -> str:
        return self.vault.single()

    def open(self, member: str, limit: int = MAX_MEMBER) -> io.BufferedReader:
        return self.vault.open(member, limit)
