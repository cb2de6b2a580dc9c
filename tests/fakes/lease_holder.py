"""A hospital's job process and the hospital's own broker, whose answers a test may lose, change or forge on the way.

Kit, vault, broker and evidence are the product's. The way between is this module's ``Wire``, or the real client and
server (``Network``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from cordon import documents, job, sealing, signing
from cordon.attest.binding import Context
from cordon.attest.keys import ProcessKeys
from cordon.broker import tls
from cordon.broker.client import BrokerClient
from cordon.broker.config import BrokerConfig, Limits
from cordon.broker.gate import LEASE_TYPE, RECEIPT_TYPE, KeyRequest, Lease
from cordon.broker.keys import open_backend
from cordon.broker.protocol import (
    WRAP_PURPOSE,
    Challenge,
    ChallengeRequest,
    LeaseQuery,
    LeaseState,
    Release,
    ReleaseRequest,
    wrap_context,
)
from cordon.broker.server import BrokerServer
from cordon.broker.tenant import TenantBroker
from cordon.errors import BrokerUnavailable, Refused
from cordon.flare import key_records, poc_broker
from cordon.flare.data_key import DataKey
from cordon.flare.kit import Kit, load_kit
from cordon.messages import LedgerHead
from cordon.messages import sign as sign_message

from .in_process import job_files

JOB_ID = "3d7c2a56-0001-4000-8000-000000000001"
CHECK_S = 0.5  # the least that a broker's configuration takes
MARGIN_S = 2.0


class Seconds:
    """A clock that goes forward when a test says so."""

    def __init__(self) -> None:
        self.value = 1000.0

    def __call__(self) -> float:
        return self.value


@dataclass
class Wire:
    """Between one process and its broker, without a network. ``ahead``: of the broker's clock."""

    broker: TenantBroker
    ahead: timedelta = timedelta()
    silent: bool = False
    asked: list[str] = field(default_factory=list)
    released: list[tuple[ReleaseRequest, Release]] = field(default_factory=list)
    change: Callable[[ReleaseRequest, Release], Release] = lambda asked, release: release
    closed: bool = False

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def _pass(self, what: str) -> None:
        self.asked.append(what)
        if self.silent:
            raise BrokerUnavailable("no answer in time")

    def challenge(self, job: str) -> Challenge:
        self._pass("challenge")
        return self.broker.challenge(ChallengeRequest(v=1, job=job), self.broker.site_spki, self.now())

    def release(self, evidence: dict[str, Any], request: dict[str, Any]) -> Release:
        self._pass("release")
        asked = ReleaseRequest(v=1, evidence=evidence, request=request)
        release = over_the_wire(self.broker.release(over_the_wire(asked), self.broker.site_spki, self.now()))
        self.released.append((asked, release))
        return self.change(asked, release)

    def lease_state(self, lease: str) -> LeaseState:
        self._pass("lease_state")
        return self.broker.lease_state(LeaseQuery(v=1, lease=lease), self.broker.site_spki, self.now())

    def close(self) -> None:
        self.closed = True


def over_the_wire(value: Any) -> Any:
    """``value`` as the other side reads it."""
    return msgspec.json.decode(msgspec.json.encode(value), type=type(value), strict=True)


@dataclass
class Holder:
    """One job's process at ``kit``; every process has keys of its own."""

    kit: Kit
    wire: Wire
    job: job.Job
    job_id: str = JOB_ID
    keys: ProcessKeys = field(default_factory=ProcessKeys.generate, repr=False)
    clock: Seconds = field(default_factory=Seconds)
    ahead: timedelta = timedelta()  # of this host's time of day

    def acquire(self, **changes: Any) -> DataKey:
        arguments = {"connect": lambda kit: self.wire, "clock": self.clock}
        arguments["now"] = lambda: datetime.now(UTC) + self.ahead
        return DataKey.acquire(self.kit, self.job, self.job_id, self.keys, **{**arguments, **changes})

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What is written down in the kit."""
        path = self.kit.root / key_records.LEASES_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def told(self) -> list[tuple[str, str]]:
        return [(line["decision"], line["code"]) for line in self.lines]


@contextlib.contextmanager
def holding(kits: Path, site: str = "hospital-a", **tenant: Any) -> Iterator[Holder]:
    """A process of ``site``, and its broker with some of its configuration changed."""
    with opened(kits / poc_broker.FOLDER, site, **tenant) as broker:
        made = job.from_files("oncology", job_files())
        yield Holder(load_kit(kits / site, datetime.now(UTC)), Wire(broker), made)


@contextlib.contextmanager
def opened(folder: Path, site: str, **changes: Any) -> Iterator[TenantBroker]:
    """The tenant of ``site``."""
    settings = documents.load(folder / poc_broker.CONFIG, BrokerConfig)
    tenant = next(each for each in settings.tenants if each.site == site)
    tenant = msgspec.structs.replace(tenant, **{"check_s": CHECK_S, **changes})
    keys = open_backend(settings.keys, folder)
    try:
        broker = TenantBroker.open(tenant, folder, folder / settings.state, keys, datetime.now(UTC))
        try:
            yield broker
        finally:
            broker.close()
    finally:
        keys.close()


class Network:
    """The real server in a thread of its own; ``port`` is a free one."""

    def __init__(self, broker: TenantBroker, folder: Path) -> None:
        self._broker = broker
        # The kits' certificates were issued by nobody but themselves, so each is its own CA.
        site = folder.parent / broker.tenant.site / "startup" / "client.crt"
        self._tls: ssl.SSLContext = tls.server_context(folder / "tls.pem", folder / "tls.key", site)
        self.pin = tls.pin_of(tls.load_certificate(folder / "tls.pem"))
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Network:
        self._thread.start()
        server = BrokerServer(
            {self._broker.site_spki: self._broker},
            self._tls,
            Limits(requests_per_s=1000.0, burst=1000),
            lambda: datetime.now(UTC),
            lambda event: None,
        )
        self._server: BrokerServer | None = server
        self.port = self._run(server.start("127.0.0.1", 0))
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def stop(self) -> None:
        """No broker any more."""
        if self._server is not None:
            self._run(self._server.stop())
        self._server = None

    def client(self, kit: Kit) -> BrokerClient:
        startup = kit.root / "startup"
        return BrokerClient(
            f"https://127.0.0.1:{self.port}", self.pin, startup / "client.crt", startup / "client.key", timeout_s=2.0
        )

    def _run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)


def raises_within(seconds: float, what: Callable[[], None]) -> Exception:
    """What ``what`` raises before ``seconds`` have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            what()
        except (Refused, BrokerUnavailable) as error:
            return error
        time.sleep(0.02)
    raise AssertionError(f"still allowed after {seconds} s")


def until(seconds: float, holds: Callable[[], bool]) -> None:
    """Wait for ``holds``."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not after {seconds} s"
        time.sleep(0.02)


def forge(
    asked: ReleaseRequest,
    release: Release,
    key: signing.PrivateKey,
    *,
    vault_key: bytes = bytes(32),
    ledger: LedgerHead | None = None,
    receipt: dict[str, Any] | None = None,
    **lease: Any,
) -> Release:
    """``release`` made anew by ``key`` in all its parts, with other fields of the lease: consistent in itself."""
    body = {**signing.unverified_body(release.lease), **documents.body_of(lease)}
    if ledger is not None:
        body["ledger"] = documents.body_of(ledger)
    made = msgspec.convert(body, Lease, strict=True)
    said = {**signing.unverified_body(release.receipt), "lease": made.lease, **(receipt or {})}
    request = msgspec.convert(signing.unverified_body(asked.request), KeyRequest, strict=True)
    evidence = signing.unverified_body(asked.evidence)
    context = msgspec.convert(evidence["context"], Context, strict=True)
    kem = sealing.decode_kem_key(msgspec.convert(evidence["kem_public_key"], bytes, strict=True))
    digest = bytes.fromhex(signing.unverified_body(release.receipt)["evidence_sha256"])
    bound = wrap_context(request, context.canonical(), digest, signing.canonical(documents.body_of(made)))
    return Release(
        v=1,
        lease=signing.sign(key, LEASE_TYPE, documents.body_of(made)),
        ledger=sign_message(key, made.ledger),
        receipt=signing.sign(key, RECEIPT_TYPE, said),
        wrapped=sealing.seal(vault_key, kem, WRAP_PURPOSE, *bound),
    )


__all__ = [
    "CHECK_S",
    "JOB_ID",
    "MARGIN_S",
    "Holder",
    "Network",
    "Seconds",
    "Wire",
    "forge",
    "holding",
    "opened",
    "over_the_wire",
    "raises_within",
    "until",
]
