"""The keys of a tenant's data vaults: of each, the one version that is in use, wrapped by the key encryption key."""

from __future__ import annotations

import hmac
import sqlite3
from dataclasses import dataclass, field

from cordon.broker import ledger
from cordon.broker.keys import KeyEncryption
from cordon.errors import ConfigError, Refused
from cordon.vault_stamp import Stamp

VAULT_KEY_BYTES = 32


@dataclass(frozen=True)
class Registered:
    """A vault's row."""

    stamp: Stamp
    wrapped: bytes = field(repr=False)


def label(tenant: str, stamp: Stamp) -> str:
    """What a wrapped vault key is bound to."""
    return f"cordon/broker/v1|{tenant}|vault-key|{stamp.vault}|{stamp.version}"


def find(db: sqlite3.Connection, vault: str) -> Registered | None:
    """The version in use of ``vault``."""
    row = db.execute("SELECT vault, version, root, wrapped FROM vaults WHERE vault = ?", (vault,)).fetchone()
    return row and Registered(Stamp(vault=row[0], version=row[1], root=row[2]), row[3])


def current(db: sqlite3.Connection, stamp: Stamp) -> Registered:
    """The row of just this version; Refused ``unknown_vault``, ``vault_rolled_back`` or ``vault_unknown_version``."""
    found = find(db, stamp.vault)
    if found is None:
        raise Refused("unknown_vault", f"no key of vault {stamp.vault} is kept here")
    said = f"vault {stamp.vault} is version {stamp.version}, registered is {found.stamp.version}"
    if stamp.version < found.stamp.version:
        raise Refused("vault_rolled_back", said)
    if stamp.version > found.stamp.version:
        raise Refused("vault_unknown_version", f"{said}; register it (`cordon broker add`)")
    if stamp.root != found.stamp.root:
        raise Refused("vault_unknown_version", f"{said}, with another root")
    return found


def every(db: sqlite3.Connection) -> list[Stamp]:
    """The version in use of each vault."""
    rows = db.execute("SELECT vault, version, root FROM vaults ORDER BY vault")
    return [Stamp(vault=vault, version=version, root=root) for vault, version, root in rows]


def forget(db: sqlite3.Connection, vault: str, time: str) -> bool:
    """Delete the key of ``vault``, gone with this transaction. False: it was before.

    Raises:
        ConfigError: no key of it was ever kept here.
    """
    found = find(db, vault)
    if found is None:
        if _forgotten(db, vault) is not None:
            return False
        there = ", ".join(stamp.vault for stamp in every(db)) or "none"
        raise ConfigError(f"no key of vault {vault[:128]!r} is kept here; there are: {there}")
    db.execute("DELETE FROM vaults WHERE vault = ?", (vault,))
    ledger.append(db, "FORGET", vault=vault, version=found.stamp.version, time=time)
    return True


def put(
    db: sqlite3.Connection, tenant: str, stamp: Stamp, key: bytes, keys: KeyEncryption, time: str, allow_older: bool
) -> bool:
    """Make ``stamp`` the version in use; the key of the one before is gone with this transaction. False: nothing new.

    Raises:
        ConfigError: not a vault key; an older version without ``allow_older``; the same one with another root or key.
    """
    if len(key) != VAULT_KEY_BYTES:
        raise ConfigError(f"a vault key has {VAULT_KEY_BYTES} bytes, came {len(key)}")
    found = find(db, stamp.vault)
    if found is not None and found.stamp.version == stamp.version:
        if found.stamp.root != stamp.root:
            raise ConfigError(f"vault {stamp.vault}: version {stamp.version} is registered with another root")
        if not hmac.compare_digest(keys.unwrap(found.wrapped, label(tenant, stamp)), key):
            raise ConfigError(f"vault {stamp.vault}: version {stamp.version} is registered with another key")
        return False
    if found is not None and found.stamp.version > stamp.version and not allow_older:
        raise ConfigError(
            f"vault {stamp.vault}: version {found.stamp.version} is registered, which is newer than {stamp.version};"
            " going back deletes the newer one's key and must be asked for"
        )
    forgotten = _forgotten(db, stamp.vault)
    if found is None and forgotten is not None and forgotten > stamp.version and not allow_older:
        raise ConfigError(
            f"vault {stamp.vault}: version {forgotten} was forgotten, which is newer than {stamp.version};"
            " going back must be asked for"
        )
    db.execute("DELETE FROM vaults WHERE vault = ?", (stamp.vault,))
    wrapped = keys.wrap(key, label(tenant, stamp))
    db.execute("INSERT INTO vaults VALUES (?, ?, ?, ?)", (stamp.vault, stamp.version, stamp.root, wrapped))
    replaced = None if found is None else found.stamp.version
    ledger.append(
        db, "REGISTER", vault=stamp.vault, version=stamp.version, root=stamp.root, replaced=replaced, time=time
    )
    return True


def _forgotten(db: sqlite3.Connection, vault: str) -> int | None:
    """The newest version of ``vault`` whose key was forgotten; None if none was."""
    newest: int | None = db.execute(
        "SELECT max(json_extract(body, '$.version')) FROM ledger"
        " WHERE json_extract(body, '$.kind') = 'FORGET' AND json_extract(body, '$.vault') = ?",
        (vault,),
    ).fetchone()[0]
    return newest
