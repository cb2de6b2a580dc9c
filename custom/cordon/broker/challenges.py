"""Challenges of one tenant: 32 random bytes, single use, with a deadline, for the key of one job.

As ``attest.nonce``, in the tenant's database: the nonce is used up in the transaction of the decision about its answer,
so that it counts once, whatever dies when.
"""

from __future__ import annotations

import hashlib
import sqlite3
from datetime import datetime, timedelta

from cordon.attest.binding import NONCE_BYTES
from cordon.broker.clock import microseconds
from cordon.broker.keys.wrapped import Random
from cordon.errors import Refused

MAX_OPEN = 10_000


def issue(db: sqlite3.Connection, job: str, now: datetime, ttl_s: float, random: Random) -> tuple[bytes, datetime]:
    """A fresh challenge and its deadline. An earlier one for the same job is void; the state holds digests only."""
    db.execute("DELETE FROM challenges WHERE deadline < ? OR job = ?", (microseconds(now), job))
    if db.execute("SELECT count(*) FROM challenges").fetchone()[0] >= MAX_OPEN:
        raise Refused("rate_limited", f"{MAX_OPEN} challenges are open; each ends {ttl_s:g} s after it was made")
    nonce = random(NONCE_BYTES)
    deadline = now + timedelta(seconds=ttl_s)
    db.execute("INSERT INTO challenges VALUES (?, ?, ?)", (_key(nonce), job, microseconds(deadline)))
    return nonce, deadline


def check(db: sqlite3.Connection, nonce: bytes, job: str, now: datetime) -> None:
    """Refused ``nonce_unknown``, ``nonce_expired`` or ``nonce_misused`` unless it is open, in time and for ``job``."""
    row = db.execute("SELECT job, deadline FROM challenges WHERE nonce_sha256 = ?", (_key(nonce),)).fetchone()
    if row is None:
        raise Refused("nonce_unknown", "no open challenge with this nonce: never issued here, used, or expired")
    if microseconds(now) > row[1]:
        raise Refused("nonce_expired", f"the answer came {(microseconds(now) - row[1]) / 1e6:.1f} s after the deadline")
    if job != row[0]:
        raise Refused("nonce_misused", "the challenge was made for another job")


def use(db: sqlite3.Connection, nonce: bytes) -> bool:
    """Use up ``nonce``, whatever comes of it; whether it was open."""
    return db.execute("DELETE FROM challenges WHERE nonce_sha256 = ?", (_key(nonce),)).rowcount == 1


def _key(nonce: bytes) -> str:
    return hashlib.sha256(nonce).hexdigest()
