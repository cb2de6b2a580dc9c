"""Looks for known bytes in large amounts of others: raw, as hex, as base64, and numbers as decimal text."""

import base64
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

WINDOW = 32  # bytes of a plaintext that are looked for: two different ones share as many by no accident
PREFIX = 8
CHUNK = 8 * 1024 * 1024


def forms(plaintext: bytes, windows: int = 3) -> Iterator[bytes]:
    """What of ``plaintext`` (float32 numbers) would be found wherever it lies: some windows in every encoding."""
    step = max(4, (len(plaintext) - WINDOW) // max(1, windows - 1) // 4 * 4)
    for at in range(0, len(plaintext) - WINDOW + 1, step):
        window = plaintext[at : at + WINDOW]
        if len(set(window)) < WINDOW // 4:  # zeros are everywhere
            continue
        yield window
        yield window.hex().encode()
        yield window.hex().upper().encode()
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for shift in range(3):  # where in a group of three bytes the window begins
                yield encode(bytes(shift) + window)[4 if shift else 0 : -4]
        for number in np.frombuffer(window[:12], np.float32):
            if len(text := repr(float(number))) >= 16:
                yield text.encode()


class Needles:
    """Many byte strings of ``PREFIX`` bytes or more, each with the name under which it is reported."""

    def __init__(self, named: Mapping[bytes, str]) -> None:
        self.named = {needle: name for needle, name in named.items() if len(needle) >= PREFIX}
        assert len(self.named) == len(named), "a needle is too short"
        self._by_prefix: dict[int, list[bytes]] = {}
        for needle in self.named:
            self._by_prefix.setdefault(int.from_bytes(needle[:PREFIX], "little"), []).append(needle)
        self._prefixes = np.array(sorted(self._by_prefix), np.uint64)

    def found_in(self, hay: bytes) -> set[str]:
        """Names of those that ``hay`` holds."""
        found: set[str] = set()
        longest = max(map(len, self.named), default=0)
        for start in range(0, len(hay), CHUNK):
            part = hay[start : start + CHUNK + longest]
            for offset in range(PREFIX):
                usable = (len(part) - offset) // PREFIX * PREFIX
                if usable <= 0:
                    continue
                words = np.frombuffer(part, "<u8", usable // PREFIX, offset)
                spots = np.searchsorted(self._prefixes, words)
                hits = np.flatnonzero(self._prefixes[np.minimum(spots, len(self._prefixes) - 1)] == words)
                for hit in hits:
                    at = offset + int(hit) * PREFIX
                    for needle in self._by_prefix[int(words[hit])]:
                        if part.startswith(needle, at):
                            found.add(self.named[needle])
        return found


class DiskWatch:
    """Reads everything under some folders again and again, and keeps what it saw: files come and go during a job."""

    def __init__(self, folders: Iterable[Path], every_s: float = 0.5) -> None:
        self.folders, self.every_s = tuple(folders), every_s
        self.seen: dict[Path, bytes] = {}
        self.replaced: list[tuple[Path, bytes]] = []
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "DiskWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def everything(self) -> Iterator[tuple[Path, bytes]]:
        """(path, content) of all files, old contents included."""
        yield from self.replaced
        yield from self.seen.items()

    def look(self) -> None:
        """Read what is new or changed."""
        for folder in self.folders:
            for path in folder.rglob("*"):
                try:
                    if path.is_symlink() or not path.is_file():
                        continue
                    found = path.stat()
                    stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
                    if self._stamps.get(path) == stamp:
                        continue
                    data = path.read_bytes()
                except FileNotFoundError:
                    continue
                self._stamps[path] = stamp
                before = self.seen.get(path)
                if before is not None and not data.startswith(before):  # a log grows: what it held, it holds
                    self.replaced.append((path, before))
                self.seen[path] = data

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self.look()
