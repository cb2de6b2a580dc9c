"""What the hospital took back: a lease with the process that holds it, a job, or a measurement. Final.

Each question reads the database, so that what one process (``cordon broker revoke``) wrote, the next answer of another
(the server) says.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from cordon.broker import ledger
from cordon.broker.clock import instant, latest, microseconds
from cordon.broker.protocol import LeaseState
from cordon.errors import ConfigError, Refused

Kind = Literal["lease", "job", "measurement"]

_REVOKED = """
SELECT 1 FROM revocations WHERE kind = 'job' AND value = :job
UNION ALL
SELECT 1 FROM revocations JOIN leases ON kind = 'lease' AND value = lease WHERE signing_key = :signing_key
UNION ALL
SELECT 1 FROM revocations JOIN lease_measurements ON kind = 'measurement' AND value = measurement WHERE lease = :lease
LIMIT 1
"""

_REVOKED_LEASE = """
SELECT value FROM revocations WHERE kind = 'lease'
AND (value = :renews OR value IN (SELECT lease FROM leases WHERE signing_key = :signing_key)) LIMIT 1
"""


_HOLDERS = """
SELECT lease FROM leases WHERE expires > :after AND signing_key IN (
SELECT json_extract(body, '$.signing_key') FROM ledger
WHERE json_extract(body, '$.kind') = 'ADMIT' AND json_extract(body, '$.stamp.vault') = :vault) ORDER BY expires, lease
"""


def revoke(db: sqlite3.Connection, kind: Kind, value: str, time: str) -> bool:
    """Take back ``value``; False if it was before; ConfigError for what cannot be one of its kind."""
    if kind == "lease" and not db.execute("SELECT 1 FROM leases WHERE lease = ?", (value,)).fetchone():
        raise ConfigError(f"no lease {value[:128]!r} was given here")
    if kind == "measurement" and not re.fullmatch("([0-9a-f]{64}|[0-9a-f]{96})", value):
        raise ConfigError("a measurement is 64 or 96 lower-case hex digits")
    if not 0 < len(value) <= 128:
        raise ConfigError(f"a {kind} has 1 to 128 characters")
    if db.execute("SELECT 1 FROM revocations WHERE kind = ? AND value = ?", (kind, value)).fetchone():
        return False
    db.execute("INSERT INTO revocations VALUES (?, ?)", (kind, value))
    ledger.append(db, "REVOKE", what=kind, value=value, time=time)
    return True


def revoke_holders(db: sqlite3.Connection, vault: str, now: datetime) -> list[str]:
    """Take back a live lease of each process that was given the key of ``vault``, and so all of its leases."""
    after = microseconds(latest(db, now))
    leases = [row[0] for row in db.execute(_HOLDERS, {"after": after, "vault": vault}).fetchall()]
    # One row per process: with its first lease the others stand no longer.
    return [
        lease
        for lease in leases
        if lease_state(db, lease, now).state == "live" and revoke(db, "lease", lease, now.isoformat())
    ]


def every(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """(kind, value) of all that was taken back."""
    return db.execute("SELECT kind, value FROM revocations ORDER BY kind, value").fetchall()


def knows_job(db: sqlite3.Connection, job: str) -> bool:
    """Whether a lease was ever given to a process of ``job``."""
    return db.execute("SELECT 1 FROM leases WHERE job = ? LIMIT 1", (job,)).fetchone() is not None


def check(db: sqlite3.Connection, job: str, renews: str | None, signing_key: str, measurements: Iterable[str]) -> None:
    """Refused ``measurement_revoked`` or ``lease_revoked`` where one of these was taken back.

    The lease counts by the key of the process that holds it too: it could leave ``renews`` out.
    """
    for value in measurements:
        if _has(db, "measurement", value):
            raise Refused("measurement_revoked", f"the hospital revoked measurement {value}")
    if _has(db, "job", job):
        raise Refused("lease_revoked", "the hospital revoked this job")
    row = db.execute(_REVOKED_LEASE, {"renews": renews, "signing_key": signing_key}).fetchone()
    if row is not None:
        raise Refused("lease_revoked", f"the hospital revoked lease {row[0]}")


def record(
    db: sqlite3.Connection, lease: str, job: str, signing_key: str, expires: datetime, measurements: Iterable[str]
) -> None:
    """Remember a lease, so that it can be asked for and taken back."""
    db.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", (lease, job, signing_key, microseconds(expires)))
    db.executemany(
        "INSERT INTO lease_measurements VALUES (?, ?)", [(lease, value) for value in sorted(set(measurements))]
    )


def lease_state(db: sqlite3.Connection, lease: str, now: datetime) -> LeaseState:
    """Whether ``lease`` stands. A clock that was set back brings no expired one to life."""
    row = db.execute("SELECT job, expires, signing_key FROM leases WHERE lease = ?", (lease,)).fetchone()
    if row is None:
        return LeaseState(v=1, state="unknown")
    if db.execute(_REVOKED, {"lease": lease, "job": row[0], "signing_key": row[2]}).fetchone():
        return LeaseState(v=1, state="revoked")
    return LeaseState(v=1, state="live" if microseconds(latest(db, now)) < row[1] else "expired")


def live(db: sqlite3.Connection, now: datetime) -> list[tuple[str, str, datetime]]:
    """(lease, job, expires) of those that stand, the one that ends first before the others."""
    after = microseconds(latest(db, now))
    rows = db.execute("SELECT lease, job, expires FROM leases WHERE expires > ? ORDER BY expires, lease", (after,))
    found = [(lease, job, instant(expires)) for lease, job, expires in rows.fetchall()]
    return [each for each in found if lease_state(db, each[0], now).state == "live"]


def _has(db: sqlite3.Connection, kind: Kind, value: str) -> bool:
    return db.execute("SELECT 1 FROM revocations WHERE kind = ? AND value = ?", (kind, value)).fetchone() is not None
