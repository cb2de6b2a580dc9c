"""What the POC's key broker decided for each hospital, from its own signed receipts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cordon import documents
from cordon.broker.gate import Receipt
from cordon.broker.receipts import verify_receipts
from cordon.flare import poc, poc_broker
from cordon.report.record import KeyReleases

PAGE = 1000


def key_releases(federation: poc.Poc) -> dict[str, KeyReleases]:
    """Hospital -> decisions about the key of its vault; SignatureError if its chain of receipts is broken."""
    return {site: of_receipts(receipts(federation, site)[0]) for site in poc_broker.hospitals(federation.broker)}


def receipts(federation: poc.Poc, site: str) -> tuple[list[Receipt], list[dict[str, Any]]]:
    """All receipts of a hospital's tenant, verified, and their envelopes."""
    now, envelopes = datetime.now(UTC), list[dict[str, Any]]()
    with poc_broker.opened(federation.broker, site, now) as broker:
        while page := broker.receipts(since=len(envelopes), limit=PAGE):
            envelopes += page
        verified, _ = verify_receipts(envelopes, broker.signing_key.public_key(), now)
    return verified, envelopes


def of_receipts(receipts: Iterable[Receipt]) -> KeyReleases:
    """The decisions in numbers."""
    every = list(receipts)
    released = [each for each in every if each.decision == "released"]
    return KeyReleases(
        released=len(released),
        leases=len({each.lease for each in released}),
        refused=dict(sorted(Counter(each.decision for each in every if each.decision != "released").items())),
        evidence=tuple(sorted({each.evidence_type for each in released})),
    )


def keep(federation: poc.Poc, target: Path) -> None:
    """What an auditor needs, into ``target``: the broker's log, every receipt's envelope, one a line, and the study
    contract, which names the key that signed them. No key and no state."""
    if not (federation.broker / poc_broker.CONFIG).exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    log = federation.broker / poc.BROKER_LOG
    if log.exists():
        (target / log.name).write_bytes(log.read_bytes())
    contract = federation.kit(federation.server) / "local" / "study.yml"
    for path in (contract, documents.signature_path(contract)):
        (target / path.name).write_bytes(path.read_bytes())
    for site in poc_broker.hospitals(federation.broker):
        lines = [json.dumps(envelope) + "\n" for envelope in receipts(federation, site)[1]]
        (target / f"{site}.receipts.jsonl").write_text("".join(lines))
