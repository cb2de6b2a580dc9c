"""The open buffer: at most one update per site, in an order that doesn't depend on who was first."""

from __future__ import annotations

from dataclasses import dataclass, field

from cordon.errors import ConfigError
from cordon.params import Vector


@dataclass(frozen=True)
class Entry:
    """One accepted update: ``delta`` (d,) float32, made ``staleness`` versions ago and scaled by s(tau)."""

    delta: Vector
    staleness: int


@dataclass
class Buffer:
    """Up to ``capacity`` distinct sites. A second update of a site is an error: a fast liar would fill it alone."""

    capacity: int
    _entries: dict[str, Entry] = field(default_factory=dict)

    def __contains__(self, site: str) -> bool:
        return site in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        return len(self._entries) >= self.capacity

    @property
    def sites(self) -> tuple[str, ...]:
        """Who is in, sorted."""
        return tuple(sorted(self._entries))

    def add(self, site: str, entry: Entry) -> None:
        """Put in the update of ``site``; ConfigError if it already has one here or the buffer is full."""
        if site in self._entries or self.full:
            raise ConfigError(f"buffer is full or already holds an update of {site}")
        self._entries[site] = entry

    def discard(self, site: str) -> None:
        """Take out what ``site`` put in, if anything."""
        self._entries.pop(site, None)

    def drain(self) -> list[tuple[str, Entry]]:
        """All entries sorted by site (so float sums don't depend on arrival), and an empty buffer."""
        entries = sorted(self._entries.items())
        self._entries.clear()
        return entries
