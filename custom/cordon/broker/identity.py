"""The broker's long-lived key: it signs leases, ledger heads and receipts, and the study contract names it.

It is made with the tenant's state and kept there, wrapped by the key encryption key.
"""

from __future__ import annotations

import secrets
import sqlite3
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import documents, signing
from cordon.broker import clock, ledger, state
from cordon.broker.config import Tenant
from cordon.broker.keys import KeyEncryption
from cordon.broker.keys.wrapped import Random
from cordon.errors import ConfigError, SealError
from cordon.study import StudyContract


def init(tenant: Tenant, base: Path, folder: Path, keys: KeyEncryption, now: datetime) -> str:
    """Make the state of ``tenant`` and its long-lived signing key; the SPKI that goes into the study contract.

    The contract may not exist yet, since it names this key.

    Raises:
        ConfigError: there is a state already, or the contract at ``tenant.study`` names another key for the site.
    """
    path = base / tenant.study
    if path.exists():
        named = documents.load(path, StudyContract).hospital(tenant.site).broker_spki
        if named is not None:
            raise ConfigError(
                f"{path}: names a broker_spki for {tenant.site} already; restore that broker's state from a backup,"
                " or have the hospitals sign a contract without it first"
            )
    return create(tenant.name, folder, keys, now)


def create(name: str, folder: Path, keys: KeyEncryption, now: datetime, random: Random = secrets.token_bytes) -> str:
    """As ``init``, for who has no configuration yet."""
    key = Ed25519PrivateKey.generate()
    ledger_id = random(16).hex()
    secret = key.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    wrapped = keys.wrap(secret, _label(name, ledger_id))
    spki = signing.encode_spki(key.public_key())
    made = state.create(state.database(folder, name))
    try:
        with made.transaction() as db:
            for entry, value in (("tenant", name), ("ledger", ledger_id), ("signing_key", wrapped)):
                state.put_meta(db, entry, value)
            clock.remember(db, now)
            ledger.append(db, "OPEN", ledger=ledger_id, tenant=name, broker=spki, time=now.isoformat())
    finally:
        made.close()
    return spki


def signing_key(db: sqlite3.Connection, name: str, keys: KeyEncryption) -> Ed25519PrivateKey:
    """The key in the state of tenant ``name``.

    Raises:
        ConfigError: the state is another tenant's, or its keys are under another key encryption key.
    """
    tenant, ledger_id = str(state.get_meta(db, "tenant")), str(state.get_meta(db, "ledger"))
    if tenant != name:
        raise ConfigError(f"this is the state of tenant {tenant}, want {name}")
    wrapped = state.get_meta(db, "signing_key")
    if not isinstance(wrapped, bytes):
        raise ConfigError(f"the state of tenant {name} holds no signing key")
    try:
        return Ed25519PrivateKey.from_private_bytes(keys.unwrap(wrapped, _label(name, ledger_id)))
    except (SealError, ValueError) as error:
        raise ConfigError(
            f"the keys of tenant {name} do not open with this key encryption key ({keys.name})"
        ) from error


def _label(name: str, ledger_id: str) -> str:
    return f"cordon/broker/v1|{name}|signing-key|{ledger_id}"
