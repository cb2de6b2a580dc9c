"""``attestation.jsonl`` in the kit: one line per decision about evidence, of the parent and of job processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cordon.attest.appraise import MAX_EVIDENCE

AUDIT_FILE = "attestation.jsonl"


def append(
    root: Path,
    now: datetime,
    *,
    peer: str,
    verdict: str,
    kind: str,
    state: str,
    lease_until: datetime | None,
    policy_digest: str,
    codes: Sequence[tuple[str, str, str]],
    evidence: Any = None,
    job: str = "",
) -> None:
    """Write down who was judged, by which policy, on which evidence (its SHA-256), and what came of it.

    Args:
        root: of the kit.
        state: as in ``attest.standing``; of a job process: ``attested`` or ``unattested`` for this job.
        job: FLARE's job id; '' for a parent process.
    """
    line = {
        "time": now.isoformat(),
        "peer": peer,
        "job": job,
        "verdict": verdict,
        "type": kind,
        "state": state,
        "lease_until": None if lease_until is None else lease_until.isoformat(),
        "policy_digest": policy_digest,
        "evidence_sha256": _evidence_digest(evidence),
        "codes": list(codes),
    }
    # One write to a file opened for appending: lines of two processes do not mix.
    descriptor = os.open(root / AUDIT_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def _evidence_digest(evidence: Any) -> str | None:
    """SHA-256 of the payload as it came, for an auditor to look up; None without one that could be evidence."""
    payload = evidence.get("payload") if isinstance(evidence, dict) else None
    if not isinstance(payload, str) or len(payload) > MAX_EVIDENCE:
        return None
    return hashlib.sha256(payload.encode("utf-8", "replace")).hexdigest()
