"""Connections of the broker: TLS handshakes, HTTP/1.1 by aiohttp, and the bounds on both.

What anybody may make the broker hold is bounded before it is held:

* connections in their handshake: ``Limits.connections``; one more drops the oldest, so that a flood cannot lock the
  door for longer than an honest handshake takes;
* established ones: ``Limits.connections``; ``PER_CLIENT`` of one member, and of all strangers together; one more takes
  the place of the oldest that rests, a stranger's or the member's own;
* time: ``HANDSHAKE_S``; ``Limits.request_timeout_s`` for the head of the first request; ``IDLE_S`` for the next one's;
* bytes of a request's head: ``MAX_LINE`` per line, ``MAX_HEADERS`` lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec
from aiohttp import web

from cordon import signing
from cordon.broker.config import Limits
from cordon.broker.protocol import Refusal
from cordon.errors import ConfigError, PortInUse

BACKLOG = 1024
HANDSHAKE_S = 5.0
IDLE_S = 60.0  # between challenge and release a TEE and its GPUs make evidence
PER_CLIENT = 16
MAX_LINE = 4096
MAX_HEADERS = 32

Answer = Callable[[web.BaseRequest, "Connection"], Awaitable[web.Response]]


class Listener:
    """Accepts connections from ``start`` to ``stop`` and gives each request to ``answer``.

    Args:
        tls: as ``tls.server_context`` makes it.
        members: SPKI digests of the client keys that count.
        note: told of troubles of the broker's own (never of a client's), in the event loop.
    """

    def __init__(
        self, answer: Answer, tls: ssl.SSLContext, limits: Limits, members: Collection[str], note: Callable[[str], None]
    ) -> None:
        self.limits = limits
        self.members = members
        self.note = note
        self._answer = answer
        self._tls = tls
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first
        self._open: dict[str, dict[Connection, None]] = {}  # member, or '' for strangers -> its own, oldest first
        self._accepting: asyncio.Task[None] | None = None
        self._manager: web.Server | None = None
        self._socket: socket.socket | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. PortInUse if it is taken, ConfigError if the address cannot be used."""
        self._socket = listen(host, port)
        self._manager = web.Server(self._handle)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._socket, self._manager))
        return int(self._socket.getsockname()[1])

    async def stop(self, timeout_s: float) -> None:
        """Accept nothing more; close what rests; wait up to ``timeout_s`` for what is under way."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._socket is not None:
            self._socket.close()
        for task in list(self._handshakes):
            task.cancel()
        if self._manager is not None:
            self._manager.pre_shutdown()
            await self._manager.shutdown(timeout_s)

    async def _accept(self, listener: socket.socket, manager: web.Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of file descriptors, or the peer went away already
                self.note(f"cannot accept a connection: {error.strerror}")
                await asyncio.sleep(0.1)
                continue
            if len(self._handshakes) >= self.limits.connections:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            task = loop.create_task(self._shake_hands(accepted, manager))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _shake_hands(self, accepted: socket.socket, manager: web.Server) -> None:
        loop = asyncio.get_running_loop()
        accepted.setblocking(False)
        try:
            with contextlib.suppress(OSError):  # also ssl.SSLError and a timeout: not a client of ours
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.connect_accepted_socket(
                    lambda: Connection(self, manager, loop),
                    accepted,
                    ssl=self._tls,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=1.0,
                )
        except asyncio.CancelledError:
            accepted.close()  # where the transport was not there yet to close it
            raise

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if not isinstance(connection, Connection):
            raise TypeError("a request that came over no connection of this listener")
        connection.expect(None)
        try:
            return await self._answer(request, connection)
        finally:
            connection.expect(IDLE_S)

    def admit(self, connection: Connection) -> bool:
        """Count ``connection``; one that rests makes room where there are too many. False if none can."""
        own = self._open.setdefault(connection.key, {})  # '' for all strangers together
        full = sum(map(len, self._open.values())) >= self.limits.connections
        if len(own) >= PER_CLIENT:
            crowd = [own]
        else:
            crowd = [self._open.get("", {}), own] if full else []
        if crowd:
            resting = next((each for part in crowd for each in part if each.resting), None)
            if resting is None:
                return False
            self.leave(resting)
            resting.abort()
        own[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """``connection`` has ended, or is about to."""
        self._open.get(connection.key, {}).pop(connection, None)


class Connection(web.RequestHandler):
    """One TLS connection, with a deadline for whatever is awaited.

    ``client``: SPKI digest of its certificate, '' if that cannot be a member's. ``key``: the same if it is a member's.
    """

    __slots__ = ("_deadline", "_listener", "client", "key")

    def __init__(self, listener: Listener, manager: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=2 * IDLE_S,  # the deadline below comes first
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            lingering_time=0.5,
            auto_decompress=False,
        )
        self.client = self.key = ""
        self._listener = listener
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.client = _client_of(transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
        self.key = self.client if self.client in self._listener.members else ""
        if self._listener.admit(self):
            self.expect(self._listener.limits.request_timeout_s)
        else:
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.leave(self)
        self.expect(None)
        super().connection_lost(exc)

    def expect(self, seconds: float | None) -> None:
        """The head of the next request must be complete within ``seconds``; None: one is being answered."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if seconds is not None and self.transport is not None:
            self._deadline = self._loop.call_later(seconds, self.abort)

    @property
    def resting(self) -> bool:
        """No request is being answered."""
        return self._deadline is not None

    def abort(self) -> None:
        """End it at once."""
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """aiohttp would answer with what came, and log what the exception says, which could be anything."""
        if status == 400:
            response = refusal(400, "bad_http", "not an HTTP/1.1 request within the bounds")
        else:
            at = "".join(
                f" at {each.filename}:{each.lineno}"
                for each in traceback.extract_tb(getattr(exc, "__traceback__", None))[-1:]
            )
            self._listener.note(f"internal error: {type(exc).__name__}{at}")
            response = refusal(status, "internal", "an error in the broker; its log says where")
        response.force_close()
        return response


def refusal(
    status: int,
    code: str,
    detail: str,
    receipt: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Any answer other than 200."""
    said = Refusal(v=1, code=code, detail=detail[:1000], receipt=None if receipt is None else dict(receipt))
    return web.Response(status=status, body=msgspec.json.encode(said), content_type="application/json", headers=headers)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. PortInUse if the port is taken, ConfigError if the address cannot be used."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"listen.host: {host!r} is not an address of this machine: {error}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"{host}:{port} is in use; stop what listens there, or set another listen.port") from error
        raise ConfigError(f"listen: {host}:{port}: {error.strerror}") from error
    return made


def _client_of(certificate: bytes | None) -> str:
    try:
        return signing.spki_digest(signing.load_public_key(certificate or b""))
    except ConfigError:
        return ""
