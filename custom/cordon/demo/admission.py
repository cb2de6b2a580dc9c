"""Who has attested whom, from the parents' audit files (``attestation.jsonl`` in each kit)."""

from __future__ import annotations

import json
import time
from typing import Any

from cordon.errors import CordonError
from cordon.flare import poc

ADMISSION_TIMEOUT_S = 60.0


def wait_for_admission(federation: poc.Poc) -> None:
    """Until the coordinator has a live verdict on every site and every site one on the coordinator."""
    deadline = time.monotonic() + ADMISSION_TIMEOUT_S
    while True:
        missing = _not_admitted(federation)
        if not missing:
            return
        if time.monotonic() > deadline:
            raise CordonError(f"not attested within {ADMISSION_TIMEOUT_S:.0f} s: {', '.join(missing)}")
        time.sleep(0.2)


def _not_admitted(federation: poc.Poc) -> list[str]:
    passed = {(line["by"], line["peer"]) for line in _attestation_lines(federation) if line["verdict"] == "pass"}
    wanted = [(federation.server, site) for site in federation.sites]
    wanted += [(site, federation.server) for site in federation.sites]
    return [f"{peer} by {by}" for by, peer in wanted if (by, peer) not in passed]


def _attestation_lines(federation: poc.Poc) -> list[dict[str, Any]]:
    lines = []
    for name in (federation.server, *federation.sites):
        path = federation.kit(name) / "attestation.jsonl"
        if path.exists():
            complete = path.read_text().splitlines(keepends=True)
            lines += [{"by": name, **json.loads(line)} for line in complete if line.endswith("\n")]
    return lines


def admissions(federation: poc.Poc) -> tuple[str, ...]:
    """Every verdict of a parent on a parent, in words, for the report."""
    return tuple(
        f"{line['by']} on {line['peer']}: {line['verdict']} ({line['type']})" for line in _attestation_lines(federation)
    )
