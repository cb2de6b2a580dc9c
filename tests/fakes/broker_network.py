"""A key broker's server on a free port of this machine, in a thread, and certificates as FLARE makes them."""

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.x509.oid import NameOID

from cordon.broker import tls
from cordon.broker.client import BrokerClient
from cordon.broker.config import Limits
from cordon.broker.server import BrokerServer, Event, Tenant

from .key_broker import mtls_key

LIMITS = Limits(requests_per_s=10_000, burst=10_000, request_timeout_s=2.0)


@dataclass(frozen=True)
class Authority:
    """A CA like FLARE's: RSA-2048, self-signed."""

    certificate: x509.Certificate
    key: RSAPrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, key: RSAPrivateKey, days: float = 30.0) -> x509.Certificate:
        """A certificate for ``key``, from a day ago until ``days`` from now."""
        return _certificate(name, key, self.certificate.subject, self.key, days, is_ca=False)


@functools.cache
def authority(name: str = "federation") -> Authority:
    """The CA of this name."""
    key = mtls_key(f"CA {name}")
    return Authority(_certificate(name, key, _name(name), key, 30.0, is_ca=True), key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    name: str, key: RSAPrivateKey, issuer: x509.Name, issuer_key: RSAPrivateKey, days: float, is_ca: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def write_identity(
    folder: Path, name: str, key: RSAPrivateKey | None = None, ca: Authority | None = None, days: float = 30.0
) -> tuple[Path, Path]:
    """(certificate, key) files of ``name`` in ``folder``."""
    key = key or mtls_key(name)
    certificate = (ca or authority()).issue(name, key, days)
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    return paths


def write_broker_identity(folder: Path, name: str = "broker", days: int = 30) -> tuple[Path, Path, str]:
    """(certificate, key, pin) of a broker."""
    certificate, key = tls.make_certificate(["broker.hospital.example"], datetime.now(UTC), days)
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    for path, data in zip(paths, (certificate, key), strict=True):
        path.write_bytes(data)
    return *paths, tls.pin_of(x509.load_pem_x509_certificate(certificate))


@dataclass
class Running:
    """A server that runs in a thread. ``events``: what it logged."""

    folder: Path
    members: Mapping[str, Tenant]
    limits: Limits = LIMITS
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        certificate, key, self.pin = write_broker_identity(self.folder)
        (self.folder / "ca.pem").write_bytes(authority().pem)
        self._context = tls.server_context(certificate, key, self.folder / "ca.pem")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> "Running":
        self._thread.start()
        self.port = self._run(self._start())
        return self

    def stop(self) -> None:
        self._run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """End every connection at once, as a process that dies does; from another thread than the server's."""
        self._run(self._cut())

    async def _cut(self) -> None:
        manager = self.server._listener._manager
        for connection in manager.connections if manager is not None else []:
            if isinstance(connection.transport, asyncio.Transport):
                connection.transport.abort()
        await asyncio.sleep(0)

    async def _start(self) -> int:
        self.server = BrokerServer(self.members, self._context, self.limits, self.clock, self.events.append)
        return await self.server.start("127.0.0.1", 0)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def client(self, name: str, timeout_s: float = 5.0, **identity: Any) -> BrokerClient:
        """A site's client, with its FLARE identity."""
        return BrokerClient(self.url, self.pin, *write_identity(self.folder, name, **identity), timeout_s)

    def connect(self, name: str | None, timeout_s: float = 5.0, **identity: Any) -> ssl.SSLSocket:
        """A bare TLS connection, with or without an identity."""
        context = tls_of_anybody()
        if name is not None:
            context.load_cert_chain(*write_identity(self.folder, name, **identity))
        plain = socket.create_connection(("127.0.0.1", self.port), timeout_s)
        return context.wrap_socket(plain, server_hostname="broker")


def tls_of_anybody() -> ssl.SSLContext:
    """A client's context that verifies nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def running(folder: Path, members: Mapping[str, Tenant], **settings: Any) -> Iterator[Running]:
    """A server while the block runs."""
    made = Running(folder, members, **settings).start()
    try:
        yield made
    finally:
        made.stop()


def answer_of(sock: ssl.SSLSocket) -> tuple[int, bytes]:
    """(status, body) of the next answer; (0, b'') if the connection ended."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            part = sock.recv(65536)
            if not part:
                return 0, b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("ascii").lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        while len(body) < length:
            body += sock.recv(65536)
    except (ConnectionError, ssl.SSLError):
        return 0, b""
    return int(lines[0].split()[1]), body


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: broker", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class RawServer:
    """A TLS server that is no broker: answers each request with fixed bytes. ``received``: what came after handshakes.

    Args:
        answer: bytes to send once a request came, closing then unless they say keep-alive; None: says nothing.
        maximum: highest TLS version.
    """

    def __init__(
        self, identity: tuple[Path, Path], answer: bytes | None, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> None:
        self.received = b""
        self.connections = 0
        self._answer = answer
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*identity)
        self._context.maximum_version = maximum
        self._context.num_tickets = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "RawServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with contextlib.suppress(OSError):  # wakes accept
            socket.create_connection(self._socket.getsockname(), 1).close()
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while not self._done.is_set():
            plain, _ = self._socket.accept()
            plain.settimeout(3)
            with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as secured:
                self.connections += 1
                while part := secured.recv(65536):
                    self.received += part
                    if self._answer is not None and b"}" in part:
                        secured.sendall(self._answer)
                        if b"keep-alive" not in self._answer:
                            break
                    if self._answer is None:
                        self._done.wait(3)
