"""Putting a tenant's state back from a backup. What was decided since the backup is lost, and said to be: README.md."""

from __future__ import annotations

import os
import sqlite3
from datetime import datetime
from pathlib import Path

from cordon import new_file
from cordon.broker import clock, consistency, identity, ledger, release_gate, state
from cordon.broker.files import hold, make_private
from cordon.broker.keys import KeyEncryption
from cordon.errors import ConfigError
from cordon.messages import LedgerHead


def restore(
    backup: Path,
    name: str,
    folder: Path,
    keys: KeyEncryption,
    now: datetime,
    *,
    lost_epsilon: float,
    last_seen: LedgerHead | None = None,
) -> LedgerHead:
    """The state of tenant ``name`` from ``backup``; the head of its ledger then.

    Every lease and challenge of the backup ends, since what became of them later is not known.

    Args:
        lost_epsilon: what the jobs admitted since the backup may have cost; it is charged.
        last_seen: the latest head that anybody holds (verified with the broker's key: a site's lease, an update). The
            ledger goes on after it, so that those who saw it accept what comes; each row that is lost counts as a
            release. None: no later head was seen than the backup's.

    Raises:
        ConfigError: there is a state (move it away if it is the one that is lost), or the backup is damaged, another
            tenant's, under another key encryption key, or not older than ``last_seen`` says.
    """
    target = state.database(folder, name)
    make_private(folder)
    with hold(target, shared=False):
        if target.exists():
            raise ConfigError(
                f"{target}: there is a state{_position(target)}; a restore overwrites none, move it away first"
            )
        for suffix in ("-wal", "-shm", "-journal"):  # SQLite would replay a lost state's log into the restored one
            left = target.with_name(target.name + suffix)
            if left.exists():
                raise ConfigError(f"{left}: belongs to the state that is lost; move it away with it")
        with new_file.create(target) as file:
            _copy(backup, Path(file.name))
            head = _end_gap(Path(file.name), name, keys, now, lost_epsilon, last_seen)
    return head


def _position(target: Path) -> str:
    db = state.peek(target)
    try:
        with state.translated(target):
            return f" at ledger row {ledger.head(db).seq}"
    finally:
        db.close()


def _copy(backup: Path, part: Path) -> None:
    source = state.peek(backup)
    try:
        with state.translated(part):
            copy = sqlite3.connect(part)
            try:
                source.backup(copy)
            finally:
                copy.close()
    finally:
        source.close()
    os.chmod(part, 0o600)


def _end_gap(
    part: Path, name: str, keys: KeyEncryption, now: datetime, lost_epsilon: float, last_seen: LedgerHead | None
) -> LedgerHead:
    """Append the RESTORED row, charge what is lost, and end what was open."""
    if not 0 <= lost_epsilon < float("inf"):
        raise ConfigError(f"lost_epsilon is {lost_epsilon:g}, want what was spent since the backup: 0 or more")
    with state.translated(part):
        db = sqlite3.connect(part, isolation_level=None)
        try:
            identity.signing_key(db, name, keys)
            consistency.check(db)
            before = ledger.head(db)
            lost = 0
            if last_seen is not None:
                if last_seen.ledger != before.ledger:
                    raise ConfigError(
                        f"the head that was seen is of ledger {last_seen.ledger}, the backup of {before.ledger}"
                    )
                lost = last_seen.seq - before.seq
                if lost < 0:
                    raise ConfigError(f"the head that was seen is row {last_seen.seq}, the backup has row {before.seq}")
                if lost == 0 and last_seen.head != before.head:
                    raise ConfigError(f"row {before.seq} has another head in the backup than was seen")
            db.execute("PRAGMA secure_delete=ON")
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM challenges")
            db.execute("UPDATE leases SET expires = 0")
            db.execute("INSERT INTO charges (subject, releases, epsilon) VALUES (NULL, ?, ?)", (lost, lost_epsilon))
            clock.remember(db, clock.latest(db, now))
            seen = None if last_seen is None else {"seq": last_seen.seq, "head": last_seen.head}
            releases, spent = release_gate.spending(db)
            head = ledger.append(
                db,
                "RESTORED",
                seq=before.seq + lost + 1,
                backup={"seq": before.seq, "head": before.head},
                seen=seen,
                lost={"rows": lost, "epsilon": lost_epsilon},
                spent={"releases": releases, "epsilon": spent},
                time=now.isoformat(),
            )
            db.execute("COMMIT")
            return head
        finally:
            db.close()
