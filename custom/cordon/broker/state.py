"""The durable state of one tenant: a SQLite database, and what every use of it has in common. Tables: README.md.

One transaction per decision. WAL with ``synchronous=FULL``: what was committed is on the disk, whatever dies then.
``secure_delete``: a key that was deleted is overwritten with zeros.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cordon import new_file
from cordon.broker.files import check_private, hold, make_private
from cordon.errors import ConfigError
from cordon.study import Name

APPLICATION_ID = 0x43524442  # "CRDB"
SCHEMA_VERSION = 1
BUSY_S = 5.0

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE challenges (nonce_sha256 TEXT PRIMARY KEY, job TEXT NOT NULL, deadline INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX challenges_by_job ON challenges (job);
CREATE INDEX challenges_by_deadline ON challenges (deadline);
CREATE TABLE vaults (vault TEXT PRIMARY KEY, version INTEGER NOT NULL, root TEXT NOT NULL, wrapped BLOB NOT NULL)
  WITHOUT ROWID;
CREATE TABLE charges (id INTEGER PRIMARY KEY, subject TEXT UNIQUE, releases INTEGER NOT NULL, epsilon REAL NOT NULL);
CREATE TABLE leases (lease TEXT PRIMARY KEY, job TEXT NOT NULL, signing_key TEXT NOT NULL, expires INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE INDEX leases_by_key ON leases (signing_key);
CREATE TABLE lease_measurements (lease TEXT NOT NULL REFERENCES leases, measurement TEXT NOT NULL,
  PRIMARY KEY (lease, measurement)) WITHOUT ROWID;
CREATE TABLE revocations (kind TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, value)) WITHOUT ROWID;
CREATE TABLE ledger (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, head TEXT NOT NULL);
CREATE TABLE receipts (seq INTEGER PRIMARY KEY, envelope TEXT NOT NULL, head TEXT NOT NULL);
CREATE TRIGGER ledger_is_final BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER ledger_is_kept BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER receipts_are_final BEFORE UPDATE ON receipts BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER receipts_are_kept BEFORE DELETE ON receipts BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


def database(folder: Path, tenant: str) -> Path:
    """Where the state of ``tenant`` lies; ConfigError for what cannot be a tenant's name."""
    try:
        msgspec.convert(tenant, Name)
    except msgspec.ValidationError as error:
        raise ConfigError(f"not a tenant's name: {error}") from error
    return folder / f"{tenant}.sqlite"


class State:
    """The open database of one tenant. Threads share it: one transaction at a time, here and among processes.

    Raises:
        ConfigError: (everywhere) the database cannot be read or written, is damaged, or of another kind or version.
    """

    def __init__(self, path: Path) -> None:
        check_private(path)
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        self._in_use = hold(path, shared=True)
        try:
            with translated(path):
                self._db = _connect(path)
        except BaseException:
            self._in_use.close()
            raise

    def close(self) -> None:
        """Give the database back; the last one to do so merges its write-ahead log."""
        with self._lock, translated(self.path):
            self._db.close()
        self._in_use.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk when this returns. Within another one of this thread it joins that."""
        with self._lock, translated(self.path):
            if self._depth == 0:
                self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._db
                if self._depth == 1:
                    self._db.execute("COMMIT")
            except BaseException:
                if self._depth == 1 and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For single queries, each of which sees what any process committed before it."""
        with self._lock, translated(self.path):
            yield self._db

    def erase_deleted(self) -> None:
        """Merge and empty the write-ahead log, which still holds what was deleted.

        Raises:
            ConfigError: another process is reading; the deletion itself stands.
        """
        with self._lock, translated(self.path):
            busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise ConfigError(
                f"{self.path}: done, but what was deleted is still in the write-ahead log, which another process reads;"
                " repeat the command to erase it"
            )

    def backup(self, target: Path) -> None:
        """A consistent copy as a new file ``target``, complete and on the disk when this returns."""
        with new_file.create(target) as file, self._lock, translated(target):
            copy = sqlite3.connect(file.name)
            try:
                self._db.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            finally:
                copy.close()


def create(path: Path) -> State:
    """A new, empty database; ConfigError if there is one."""
    make_private(path.parent)
    with new_file.create(path) as file, translated(path):
        db = sqlite3.connect(file.name)
        try:
            kind = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION};"
            db.executescript(f"BEGIN; {_SCHEMA} {kind} COMMIT")
        finally:
            db.close()
    return State(path)


def peek(path: Path) -> sqlite3.Connection:
    """A read-only connection to a database of this kind that nobody uses (a backup)."""
    with translated(path):
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            _check_kind(db, path)
            damage = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        except BaseException:
            db.close()
            raise
    if damage != "ok":
        db.close()
        raise ConfigError(f"{path}: damaged: {damage}")
    return db


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the file system as ConfigError."""
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def get_meta(db: sqlite3.Connection, name: str) -> object:
    """The value of ``name``; ConfigError if there is none."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise ConfigError(f"the broker's state has no {name}: its initialisation did not end; remove it and init again")
    return row[0]


def put_meta(db: sqlite3.Connection, name: str, value: bytes | str | int) -> None:
    """Set ``name``."""
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value))


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        _check_kind(db, path)
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "secure_delete=ON",
            "foreign_keys=ON",
            "trusted_schema=OFF",
        ):
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def _check_kind(db: sqlite3.Connection, path: Path) -> None:
    kind, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if kind != APPLICATION_ID:
        raise ConfigError(f"{path}: not the state of a key broker")
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{path}: schema version {version}, this broker reads {SCHEMA_VERSION}")
    if _objects(db) != _wanted_objects():  # a trigger that somebody put in could undo each charge as it is made
        raise ConfigError(f"{path}: its tables or triggers were changed by other hands; restore a backup")


def _objects(db: sqlite3.Connection) -> frozenset[tuple[str | None, ...]]:
    return frozenset(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


@functools.cache
def _wanted_objects() -> frozenset[tuple[str | None, ...]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(_SCHEMA)
        return _objects(db)
