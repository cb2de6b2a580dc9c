"""The broker on the network: HTTPS with mTLS, one small JSON request and one answer (``protocol``; README.md).

A client is known by the key of its TLS certificate alone. The certificate comes from the federation's CA, which belongs
to the coordinator; so that CA admits nobody here: it only keeps off who has no certificate of it, and a key counts if a
tenant's study contract names it.

What a member may make the broker do is bounded, too: its rate is asked before its body is read (``rate``), a body has
at most ``protocol.MAX_BODY`` bytes and ``Limits.request_timeout_s`` to come, a tenant decides one thing at a time, and
no more than ``MAX_WAITING`` requests of all wait for that. Connections: ``listener``.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

import msgspec
from aiohttp import StreamReader, web

from cordon import signing
from cordon.broker.config import Limits
from cordon.broker.listener import Connection, Listener, refusal
from cordon.broker.protocol import (
    MAX_BODY,
    Challenge,
    ChallengeRequest,
    LeaseQuery,
    LeaseState,
    Release,
    ReleaseRequest,
)
from cordon.broker.rate import TokenBuckets
from cordon.errors import CordonError, Refused

MAX_WAITING = 64
THREADS = 4
UNLOGGED = ("challenge", "live")
STATUS = {"bad_request": 400, "rate_limited": 429}  # other refusals: 403

T = TypeVar("T")


class Tenant(Protocol):
    """What ``tenant.TenantBroker`` is to the network. Each call is made in a thread, never two of a tenant at once.

    What it refuses it raises as Refused; any other CordonError means that it cannot decide now.
    """

    @property
    def name(self) -> str: ...

    def challenge(self, asked: ChallengeRequest, client_spki: str, now: datetime) -> Challenge: ...

    def release(self, asked: ReleaseRequest, client_spki: str, now: datetime) -> Release: ...

    def lease_state(self, asked: LeaseQuery, client_spki: str, now: datetime) -> LeaseState: ...

    def refuse(self, code: str, detail: str, client_spki: str, now: datetime) -> Refused: ...


@dataclass(frozen=True)
class Event:
    """What the log may hold of one answer: no body, no evidence, no key but the client's digest."""

    time: datetime
    tenant: str
    client: str
    path: str
    status: int
    code: str
    detail: str = ""
    lease: str = ""


@dataclass(eq=False)
class _Answer(Exception):
    """An answer other than 200."""

    status: int
    code: str
    detail: str
    receipt: Mapping[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False


class BrokerServer:
    """Serves ``members`` from ``start`` to ``stop``.

    Args:
        members: SPKI digest of a client's mTLS key -> its tenant.
        tls: as ``tls.server_context`` makes it.
        clock: the time of decisions; timeouts and rates go by monotonic clocks.
        log: called once per decision and refusal (not for what is fine and decides nothing: a challenge, a lease
            that stands) and for troubles of the broker's own, in the event loop.
    """

    def __init__(
        self,
        members: Mapping[str, Tenant],
        tls: ssl.SSLContext,
        limits: Limits,
        clock: Callable[[], datetime],
        log: Callable[[Event], None],
    ) -> None:
        self._members = dict(members)
        self._limits = limits
        self._clock = clock
        self._log = log
        self._listener = Listener(self._answer, tls, limits, self._members, self._trouble)
        self._buckets = TokenBuckets(self._members, limits.requests_per_s, limits.burst)
        self._locks = {tenant.name: asyncio.Lock() for tenant in self._members.values()}
        self._pool = ThreadPoolExecutor(min(THREADS, max(1, len(self._locks))), thread_name_prefix="decide")
        self._waiting = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. PortInUse if it is taken, ConfigError if the address cannot be used."""
        return await self._listener.start(host, port)

    async def stop(self) -> None:
        """Accept nothing more, finish what is under way, close everything."""
        await self._listener.stop(2 * self._limits.request_timeout_s)
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    async def _answer(self, request: web.BaseRequest, connection: Connection) -> web.Response:
        tenant = self._members.get(connection.key)
        known = (tenant.name if tenant else "", connection.client, request.path if request.path in _ROUTES else "other")
        try:
            body, code, lease = await self._decide(request, tenant, connection.key)
        except _Answer as answer:
            self._log(Event(self._clock(), *known, answer.status, answer.code, answer.detail))
            response = refusal(answer.status, answer.code, answer.detail, answer.receipt, answer.headers)
            if answer.close:
                response.force_close()
            return response
        if code not in UNLOGGED:
            self._log(Event(self._clock(), *known, 200, code, lease=lease))
        return web.Response(body=body, content_type="application/json")

    async def _decide(self, request: web.BaseRequest, tenant: Tenant | None, client: str) -> tuple[bytes, str, str]:
        """(body of the answer, for the log: what it says, the lease that it is about). Cheap questions first."""
        # 1. Who asks, and how often: before a byte of the body is taken.
        if tenant is None:
            raise _Answer(403, "not_a_member", "no tenant of this broker has this client's mTLS key", close=True)
        wait_s = self._buckets.take(client, time.monotonic())
        if wait_s > 0:
            said = f"over {self._limits.requests_per_s:g} requests/s; again in {wait_s:.1f} s"
            raise _Answer(429, "rate_limited", said, headers={"Retry-After": str(math.ceil(wait_s))})
        # 2. What is asked.
        route = _ROUTES.get(request.path)
        if route is None:
            raise _Answer(404, "bad_http", f"no such path; there are {', '.join(_ROUTES)}", close=True)
        if request.method != "POST":
            raise _Answer(405, "bad_http", "want POST", headers={"Allow": "POST"}, close=True)
        body = await self._body(request)
        if self._waiting >= MAX_WAITING:
            raise _Answer(503, "internal", "too many requests are under way", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            # 3. The tenant decides, and signs a receipt also of a release request that cannot be read.
            schema, method = route
            asked = parse(body, schema)
            if isinstance(asked, str):
                if schema is not ReleaseRequest:
                    raise _Answer(400, "bad_request", asked)
                refused = await self._in_turn(tenant, tenant.refuse, "bad_request", asked, client)
                raise _Answer(400, refused.code, refused.detail, refused.receipt)
            answer = await self._in_turn(tenant, getattr(tenant, method), asked, client)
        finally:
            self._waiting -= 1
        return msgspec.json.encode(answer), *_said(answer, asked)

    async def _in_turn(self, tenant: Tenant, call: Callable[..., T], *args: Any) -> T:
        """``call`` in a thread: it waits for the disk, and perhaps for a key store elsewhere."""
        loop = asyncio.get_running_loop()
        try:
            async with self._locks[tenant.name]:
                return await loop.run_in_executor(self._pool, lambda: call(*args, self._clock()))
        except Refused as error:
            status = STATUS.get(error.code, 403)
            after = {"Retry-After": "1"} if status == 429 else {}
            raise _Answer(status, error.code, error.detail, error.receipt, after) from error
        except CordonError as error:  # the key store, the disk, collateral that cannot be read
            self._trouble(f"{tenant.name} cannot decide: {type(error).__name__}: {error}")
            raise _Answer(503, "internal", "the broker cannot decide now; its log says why") from error

    async def _body(self, request: web.BaseRequest) -> bytes:
        if "Content-Encoding" in request.headers:
            raise _Answer(400, "bad_http", "no Content-Encoding is accepted", close=True)
        too_large = _Answer(413, "too_large", f"a body has at most {MAX_BODY} bytes", close=True)
        if request.content_length is not None and request.content_length > MAX_BODY:
            raise too_large
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                body = await _read(request.content, MAX_BODY + 1)
        except TimeoutError as error:
            wanted = f"the body did not come within {self._limits.request_timeout_s:g} s"
            raise _Answer(408, "bad_http", wanted, close=True) from error
        except web.RequestPayloadError as error:  # a chunk or a length that is none
            raise _Answer(400, "bad_http", "the body is not as its head says", close=True) from error
        if len(body) > MAX_BODY:
            raise too_large
        return body

    def _trouble(self, what: str) -> None:
        self._log(Event(self._clock(), "", "", "", 503, "internal", what))


_ROUTES: dict[str, tuple[type[msgspec.Struct], str]] = {
    "/v1/challenge": (ChallengeRequest, "challenge"),
    "/v1/release": (ReleaseRequest, "release"),
    "/v1/lease": (LeaseQuery, "lease_state"),
}


def parse(body: bytes, schema: type[T]) -> T | str:
    """``body`` as ``schema``; else in words what does not fit, without repeating what came."""
    try:
        return msgspec.json.decode(body, type=schema, strict=True)
    except msgspec.ValidationError as error:
        return f"the body does not fit its schema: {str(error)[:200]}"
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError):
        return "the body is not JSON, or too deep"


async def _read(content: StreamReader, limit: int) -> bytes:
    """Up to ``limit`` bytes."""
    parts: list[bytes] = []
    left = limit
    while left > 0 and (part := await content.read(min(left, 65536))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _said(answer: Any, asked: Any) -> tuple[str, str]:
    """For the log: (code, id of the lease)."""
    if isinstance(answer, Release):
        return "released", str(signing.unverified_body(answer.lease).get("lease", ""))
    if isinstance(asked, LeaseQuery):
        return answer.state, asked.lease if answer.state != "unknown" else ""
    return "challenge", ""
