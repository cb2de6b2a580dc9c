"""What a hospital's kit remembers of its key broker, outside of any job's process.

* ``key_leases.jsonl``: one line per decision about the data key, with the broker's receipt, so that the hospital can
  compare what its broker signed with what its broker keeps. Never a key, sealed or not.
* ``cordon_state/ledger_head.json``: the newest ledger head seen, as the broker signed it. A broker that comes back with
  an older copy of its ledger has forgotten releases, and so part of what was spent: its keys are not taken. The file is
  what `cordon broker restore --last-seen` wants.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from cordon import documents, signing
from cordon.errors import ConfigError, Refused, SignatureError
from cordon.flare import kept_file
from cordon.messages import LedgerHead

LEASES_FILE = "key_leases.jsonl"
HEAD_FILE = Path("cordon_state") / "ledger_head.json"
MAX_HEAD = 64 * 1024  # bytes


def append(
    root: Path,
    now: datetime,
    *,
    job: str,
    lease: str,
    decision: str,
    code: str,
    expires: datetime | None,
    receipt: Mapping[str, Any] | None,
) -> None:
    """Write down what came of asking for, renewing or holding a lease, durably.

    Args:
        root: of the kit.
        lease: id; '' where none was given.
        decision: ``released``, ``renewed``, ``refused``, ``unavailable``, or ``ended``: the lease stands no longer.
        code: of ``broker.gate.REASONS``, or ``broker_unavailable``, ``not_opened`` (the key that came does not open),
            ``evidence_unavailable``, ``site_error`` (its own records), ``closed`` by the holder; '' of a release.
        expires: by the broker's clock.
        receipt: the broker's DSSE envelope, as it came; its digest is that of the payload text, as for evidence.

    Raises:
        ConfigError: it cannot be written. Nobody trains on a key whose release is not written down.
    """
    payload = None if receipt is None else receipt.get("payload")
    line = {
        "time": now.isoformat(),
        "job": job,
        "lease": lease,
        "decision": decision,
        "code": code,
        "expires": None if expires is None else expires.isoformat(),
        "receipt_sha256": hashlib.sha256(payload.encode()).hexdigest() if isinstance(payload, str) else None,
        "receipt": None if receipt is None else dict(receipt),
    }
    path, data = root / LEASES_FILE, (json.dumps(line) + "\n").encode()
    try:
        # One write to a file opened for appending: lines of two processes do not mix.
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # cut short by a full disk: this one stays readable
                data = b"\n" + data
            if os.write(descriptor, data) != len(data):
                raise ConfigError(f"{path}: the line was cut short; is the disk full?")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def seen_head(root: Path) -> LedgerHead | None:
    """The newest head that this kit has seen; None before the first.

    Raises:
        ConfigError: there is a file and it does not say. It is not taken for "none": then cutting it short would be
            enough to bring an old ledger back.
    """
    path = root / HEAD_FILE
    if not os.path.lexists(path):
        return None
    try:
        envelope = msgspec.json.decode(documents.read_bytes(path, MAX_HEAD))
        return msgspec.convert(
            signing.unverified_body(envelope), LedgerHead, strict=True
        )  # verified before it was kept
    except (SignatureError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not a ledger head: {error}; the security team compares the ledger with `cordon broker status`, "
            "then removes the file"
        ) from error


def remember_head(root: Path, head: LedgerHead, envelope: Mapping[str, Any], before: LedgerHead | None) -> None:
    """Keep ``head`` if it is the newest.

    Args:
        envelope: over ``head``, verified.
        before: ``seen_head`` from *before* the broker was asked: what its answer must not be behind. Another job of
            this site may have seen a later one meanwhile, and that is no fault.

    Raises:
        Refused: ``ledger_rolled_back``: an older head, another at the same place, or of another ledger.
        ConfigError: the file cannot be read or written.
    """
    with kept_file.alone(root / HEAD_FILE) as path:
        newest = seen_head(root)
        for known in (before, newest):
            if known is None:
                continue
            want = f"this kit has seen {_said(known)}"
            if head.ledger != known.ledger:
                raise Refused("ledger_rolled_back", f"the broker shows {_said(head)}, {want}")
            if head.seq == known.seq and head.head != known.head:
                raise Refused("ledger_rolled_back", f"two heads at one place: {_said(head)}, {want}")
        if before is not None and head.seq < before.seq:
            raise Refused("ledger_rolled_back", f"the broker shows {_said(head)}, this kit has seen {_said(before)}")
        if newest is None or head.seq > newest.seq:
            kept_file.replace(path, msgspec.json.encode(envelope))


def _said(head: LedgerHead) -> str:
    return f"{head.ledger} at {head.seq} ({head.head[:16]}...)"
