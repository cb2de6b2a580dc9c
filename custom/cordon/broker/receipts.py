"""One signed receipt per decision, chained: what an auditor re-reads years later without the broker.

``head(n) = digest("cordon/receipt/v1", RFC 8785 form of receipt n)`` is ``previous`` of receipt n + 1; '' in the first.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from cordon import signing
from cordon.broker.gate import RECEIPT_TYPE, Receipt
from cordon.documents import body_of
from cordon.errors import SignatureError

Point = tuple[int, str]
"""(seq, head) of a receipt; (0, '') before the first."""


def append(db: sqlite3.Connection, key: signing.PrivateKey, **facts: Any) -> dict[str, Any]:
    """The next receipt of this tenant, signed. ``facts``: fields of ``Receipt`` but ``v``, ``seq``, ``previous``."""
    seq, previous = last(db)
    envelope = signing.sign(key, RECEIPT_TYPE, body_of(Receipt(v=1, seq=seq + 1, previous=previous, **facts)))
    head = _head(signing.unverified_body(envelope))
    db.execute("INSERT INTO receipts VALUES (?, ?, ?)", (seq + 1, json.dumps(envelope), head))
    return envelope


def last(db: sqlite3.Connection) -> Point:
    """Where the chain stands."""
    row = db.execute("SELECT seq, head FROM receipts ORDER BY seq DESC LIMIT 1").fetchone()
    return (row[0], row[1]) if row else (0, "")


def after(db: sqlite3.Connection, since: int, limit: int) -> list[dict[str, Any]]:
    """The envelopes of receipts ``since + 1`` on, at most ``limit``."""
    rows = db.execute("SELECT envelope FROM receipts WHERE seq > ? ORDER BY seq LIMIT ?", (since, limit))
    try:
        return [msgspec.json.decode(row[0], type=dict[str, Any]) for row in rows]
    except msgspec.DecodeError as error:
        raise SignatureError(f"a receipt after number {since} is no JSON object: it was changed or damaged") from error


def verify_receipts(
    envelopes: Iterable[Any], key: signing.PublicKey, now: datetime, start: Point = (0, "")
) -> tuple[list[Receipt], Point]:
    """The receipts in ``envelopes`` and where their chain ends, for anybody who has the broker's public key.

    That receipts were cut off at the end does not show in what is left: compare the returned point with a receipt, or
    with ``receipts`` of an ADMIT row under a ledger head, that a site holds.

    Args:
        key: the broker's, from the study contract (``Hospital.broker_key``).
        start: where an earlier part ended.

    Raises:
        SignatureError: one was changed, made by another key, taken out, put in, doubled or moved.
    """
    receipts: list[Receipt] = []
    seq, head = start
    for envelope in envelopes:
        body, _ = signing.verify(envelope, RECEIPT_TYPE, [key], now)
        try:
            receipt = msgspec.convert(body, Receipt, strict=True)
        except msgspec.ValidationError as error:
            raise SignatureError(f"receipt after number {seq} does not fit its schema: {error}") from error
        if (receipt.seq, receipt.previous) != (seq + 1, head):
            raise SignatureError(
                f"receipt {receipt.seq} does not follow receipt {seq}: one is missing, moved or put in"
            )
        receipts.append(receipt)
        seq, head = receipt.seq, _head(body)
    return receipts, (seq, head)


def _head(body: dict[str, Any]) -> str:
    return signing.digest("cordon/receipt/v1", signing.canonical(body))
