"""The hospital's ledger: an append-only chain of what was agreed, charged and revoked. Rows: README.md, "Ledger".

``head(n) = digest("cordon/broker-ledger/v1", head(n-1), n, RFC 8785 form of row n)``; head(-1) is ''.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from cordon.broker.state import get_meta
from cordon.errors import SignatureError
from cordon.messages import LedgerHead
from cordon.signing import canonical, digest


def append(db: sqlite3.Connection, kind: str, *, seq: int | None = None, **row: Any) -> LedgerHead:
    """A row of ``kind``; the head after it.

    Args:
        db: in a transaction.
        seq: number of the row where it is not the next one, but a later one (after a restore).
    """
    last = db.execute("SELECT seq, head FROM ledger ORDER BY seq DESC LIMIT 1").fetchone() or (-1, "")
    number = last[0] + 1 if seq is None else seq
    body = canonical({"kind": kind, **row})
    db.execute("INSERT INTO ledger VALUES (?, ?, ?)", (number, body.decode(), chain(last[1], number, body)))
    return head(db)


def head(db: sqlite3.Connection) -> LedgerHead:
    """The head as it stands."""
    seq, value = db.execute("SELECT seq, head FROM ledger ORDER BY seq DESC LIMIT 1").fetchone()
    return LedgerHead(v=1, ledger=str(get_meta(db, "ledger")), seq=seq, head=value)


def last(db: sqlite3.Connection, *kinds: str) -> dict[str, Any]:
    """The newest row that is one of ``kinds``; {} if there is none."""
    rows = db.execute("SELECT body FROM ledger ORDER BY seq DESC")
    bodies: Iterable[dict[str, Any]] = (_decoded(row[0]) for row in rows)
    return next((body for body in bodies if body.get("kind") in kinds), {})


def rows(db: sqlite3.Connection) -> list[tuple[int, dict[str, Any], str]]:
    """(seq, row, head) of all, re-computed on the way.

    Raises:
        SignatureError: a row was changed, or the chain is broken.
    """
    found = [(seq, body, head) for seq, body, head in db.execute("SELECT seq, body, head FROM ledger ORDER BY seq")]
    verified, previous, after = [], "", -1
    for seq, text, value in found:
        body = _decoded(text)
        jumped = seq != after + 1 and body.get("kind") != "RESTORED"
        if jumped or chain(previous, seq, text.encode()) != value:
            raise SignatureError(f"ledger row {seq} does not follow row {after}: changed, taken out or put in")
        verified.append((seq, body, value))
        previous, after = value, seq
    return verified


def chain(previous: str, seq: int, body: bytes) -> str:
    """The head after row ``seq``."""
    return digest("cordon/broker-ledger/v1", previous.encode(), str(seq).encode(), body)


def _decoded(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise SignatureError("a ledger row is no JSON object: it was changed or damaged") from error
