"""The newest head of each hospital's ledger that a coordinator has seen: its kit's ``cordon_state/ledger_heads.json``.

A hospital's key broker signs the head of its ledger with every lease, and every update carries it. A broker (or whoever
has its disk) that goes back to an older copy forgets what was spent; who has seen the newer head notices.

Jobs may run at the same time, and then a head that one of them got earlier may arrive later. So a head must not be
behind what was seen *before this job began*, nor behind an earlier one of this job.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from cordon import documents, signing
from cordon.documents import Document
from cordon.errors import ConfigError, SignatureError, UpdateRejected
from cordon.flare import kept_file
from cordon.messages import LedgerHead, verify
from cordon.study import Hospital

HEADS_FILE = Path("cordon_state") / "ledger_heads.json"


class Heads(Document, frozen=True, kw_only=True):
    """The file. Keys: ``<site>/<SPKI digest of its broker's key>``: a new key is in a new contract, and begins anew."""

    version: Literal["cordon/ledger-heads/v1"]
    heads: dict[str, LedgerHead]


class LedgerHeads:
    """What one job holds the hospitals' heads against.

    Args:
        root: the coordinator's kit.

    Raises:
        ConfigError: the file is there and cannot be read: not taken for "nothing seen".
    """

    def __init__(self, root: Path) -> None:
        self._path = root / HEADS_FILE
        self._floor = _read(self._path)

    def check(self, hospital: Hospital, envelope: Any, now: datetime) -> None:
        """Judge what an update of ``hospital`` carries, and remember it durably if it is newer than all before.

        Raises:
            UpdateRejected: ``bad_ledger``: none where the contract names a broker, one where it names none, not signed
                by that broker, older than one that was seen, or another at the same place.
            ConfigError: the file cannot be kept.
        """
        if hospital.broker_spki is None:
            if envelope is not None:
                raise UpdateRejected(
                    "bad_ledger", "carries a ledger head, and the contract names no broker of the site"
                )
            return
        key = hospital.broker_key
        try:
            head = verify(envelope, LedgerHead, key, now)
        except SignatureError as error:
            raise UpdateRejected("bad_ledger", f"no ledger head by the site's broker: {error}") from error
        name = f"{hospital.name}/{signing.spki_digest(key)}"
        _follows(head, self._floor.get(name), or_before=False)
        with kept_file.alone(self._path):
            heads = _read(self._path)
            _follows(head, heads.get(name), or_before=True)
            if name not in heads or head.seq > heads[name].seq:
                kept = Heads(version="cordon/ledger-heads/v1", heads={**heads, name: head})
                kept_file.replace(self._path, msgspec.json.encode(kept))
        self._floor[name] = head


def _follows(head: LedgerHead, seen: LedgerHead | None, *, or_before: bool) -> None:
    """UpdateRejected if ``head`` contradicts ``seen``, or is behind it unless ``or_before``."""
    if seen is None:
        return
    if head.ledger != seen.ledger:
        raise UpdateRejected("bad_ledger", f"head of ledger {head.ledger!r}, {seen.ledger!r} was seen")
    if head.seq < seen.seq and not or_before:
        raise UpdateRejected("bad_ledger", f"the ledger is at {head.seq}, {seen.seq} was seen: it was rolled back")
    if head.seq == seen.seq and head.head != seen.head:
        raise UpdateRejected("bad_ledger", f"another head at {head.seq} than was seen: the ledger was forked")


def _read(path: Path) -> dict[str, LedgerHead]:
    if not os.path.lexists(path):
        return {}
    try:
        return dict(msgspec.json.decode(documents.read_bytes(path), type=Heads, strict=True).heads)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not the ledger heads that were seen ({error}); put back the last copy of it"
        ) from error
