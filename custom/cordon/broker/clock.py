"""The broker's clock, which must not go back: deadlines, certificates and leases are judged by it. README.md, "Clock".

The latest instant that a decision saw is in the state, so that a restart forgets none.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta

from cordon.broker.state import put_meta
from cordon.errors import ConfigError, Refused

SLACK_S = 5.0  # an NTP client steps a clock back by less than this
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(instant: datetime) -> int:
    """Since the epoch; ConfigError without a time zone."""
    if instant.utcoffset() is None:
        raise ConfigError("want an instant with a time zone")
    return (instant - _EPOCH) // timedelta(microseconds=1)


def instant(value: int) -> datetime:
    """Inverse of ``microseconds``."""
    return _EPOCH + timedelta(microseconds=value)


def latest(db: sqlite3.Connection, now: datetime) -> datetime:
    """The later of ``now`` and the latest instant that any decision saw: what deadlines are compared with."""
    row = db.execute("SELECT value FROM meta WHERE name = 'clock'").fetchone()
    seen = 0 if row is None else int(row[0])
    return now if microseconds(now) >= seen else instant(seen)


def check(db: sqlite3.Connection, now: datetime) -> None:
    """Refused ``clock_moved_back`` if ``now`` is more than ``SLACK_S`` behind what was seen."""
    behind = (latest(db, now) - now).total_seconds()
    if behind > SLACK_S:
        raise Refused("clock_moved_back", f"the clock is {behind:.0f} s behind what it once was")


def remember(db: sqlite3.Connection, now: datetime) -> None:
    """Remember ``now`` as seen."""
    put_meta(db, "clock", microseconds(now))
