"""What a hospital's job process asks its key broker with: HTTPS with mTLS, the broker known by its pinned key.

The server's key is compared with the pin after the handshake and before any byte of a request is sent. The handshake
itself shows an impostor the client's certificate, which is no secret, and a signature over that one handshake.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from cordon.broker import tls
from cordon.broker.protocol import (
    MAX_BODY,
    Challenge,
    ChallengeRequest,
    LeaseQuery,
    LeaseState,
    Refusal,
    Release,
    ReleaseRequest,
)
from cordon.errors import BrokerUnavailable, ConfigError, Refused

MAX_ANSWER = 1024 * 1024  # bytes
REUSE_S = 30.0  # a connection that rested longer is not used again: the broker closes it after 60 s
DEFAULT_PORT = 443
REFUSALS = (400, 403, 429)  # what the broker decided; all other statuses are its troubles, or somebody else's answer

T = TypeVar("T")


class BrokerClient:
    """One site's way to its broker. A connection is kept from a challenge to the release that answers it.

    Safe for use by several threads; one request at a time. No redirect is followed, no proxy is asked.

    Args:
        url: ``https://host[:port]``.
        server_spki: base64 DER of the broker's TLS key, as the site policy's ``broker.spki``.
        client_certificate, client_key: PEM of the site's FLARE identity (``startup/client.crt``, ``client.key``).
        timeout_s: of each step: connecting, the handshake, sending, each part of the answer.
        now: the clock by which the server certificate's period is judged.

    Raises:
        ConfigError: an argument that cannot be used.
    """

    def __init__(
        self,
        url: str,
        server_spki: str,
        client_certificate: Path,
        client_key: Path,
        timeout_s: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.url = url
        self._host, self._port = _address(url)
        try:
            self._pin = base64.b64decode(server_spki, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError("the broker's spki is not base64 of a SubjectPublicKeyInfo") from error
        self._tls = tls.client_context(client_certificate, client_key)
        self._timeout_s = timeout_s
        self._now = now
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    def challenge(self, job: str) -> Challenge:
        """A fresh nonce for evidence about ``job``.

        Raises (as all here):
            Refused: the broker decided against it; with its signed receipt, where it made one.
            BrokerUnavailable: nothing is known: no connection, another server, no answer, or not one of this protocol.
        """
        return self._post("/v1/challenge", ChallengeRequest(v=1, job=job), Challenge)

    def release(self, evidence: dict[str, object], request: dict[str, object]) -> Release:
        """The key, wrapped to the process that ``evidence`` is about; ``request`` is its signed ``KeyRequest``.

        Never sent twice: after BrokerUnavailable nobody knows whether the broker decided, so ask for a new challenge.
        """
        return self._post("/v1/release", ReleaseRequest(v=1, evidence=evidence, request=request), Release)

    def lease_state(self, lease: str) -> LeaseState:
        """Whether the lease of this id still stands."""
        return self._post("/v1/lease", LeaseQuery(v=1, lease=lease), LeaseState)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        with self._lock:
            self._drop()

    def _post(self, path: str, question: msgspec.Struct, schema: type[T]) -> T:
        body = msgspec.json.encode(question)
        if len(body) > MAX_BODY:
            raise Refused("bad_request", f"the request has {len(body)} bytes, the broker takes {MAX_BODY}")
        with self._lock:
            try:
                status, answer = self._exchange(path, body)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                self._drop()
                raise BrokerUnavailable(f"key broker {self.url}: {_cause(error)}") from error
            except BaseException:
                self._drop()  # an answer may still be on its way, and would be taken for the next one's
                raise
        if status == 200:
            return self._parse(answer, schema)
        if status in REFUSALS:
            refusal = self._parse(answer, Refusal)
            raise Refused(refusal.code, refusal.detail, refusal.receipt)
        raise BrokerUnavailable(f"key broker {self.url}: answered {path} with HTTP status {status}")

    def _exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        connection = self._connected()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER + 1)
        if len(answer) > MAX_ANSWER:
            raise BrokerUnavailable(f"key broker {self.url}: an answer of more than {MAX_ANSWER} bytes")
        if response.will_close or not response.isclosed():  # the end of it did not come
            self._drop()
        self._used = time.monotonic()
        return response.status, answer

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is not None and time.monotonic() - self._used < REUSE_S and self._alive(self._connection):
            return self._connection
        self._drop()
        plain = socket.create_connection((self._host, self._port), self._timeout_s)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = self._tls.wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise
        try:
            self._check_pin(secured)
        except BaseException:
            secured.close()
            raise
        made = http.client.HTTPConnection(self._host, self._port)
        made.auto_open = 0  # it must never open a plain connection by itself
        made.sock = secured
        self._connection = made
        return made

    def _check_pin(self, secured: ssl.SSLSocket) -> None:
        try:
            certificate = tls.decode_certificate(secured.getpeercert(binary_form=True) or b"")
            key = tls.spki_of(certificate)
            if key != self._pin:
                raise BrokerUnavailable(
                    f"key broker {self.url}: the server there has another key than the site policy's broker.spki; "
                    "nothing was sent. Either it is not the broker, or its key was changed and the policy was not"
                )
            tls.check_period(certificate, self._now(), "the broker's certificate")
        except ConfigError as error:
            raise BrokerUnavailable(f"key broker {self.url}: {error}") from error

    def _alive(self, connection: http.client.HTTPConnection) -> bool:
        """Nothing to read on a resting connection: what could be there is only its end."""
        sock = connection.sock
        if sock is None:
            return False
        sock.settimeout(0.0)
        try:
            sock.recv(1)
            return False  # the end, or bytes that nobody asked for
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        finally:
            sock.settimeout(self._timeout_s)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _parse(self, answer: bytes, schema: type[T]) -> T:
        try:
            return msgspec.json.decode(answer, type=schema, strict=True)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BrokerUnavailable(
                f"key broker {self.url}: its answer is not one of this protocol: {error}"
            ) from error


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"broker url {url!r}: {error}") from error
    extra = parts.username or parts.password or parts.query or parts.fragment or parts.path not in ("", "/")
    if parts.scheme != "https" or not host or extra:
        raise ConfigError(f"broker url {url!r}: want https://host[:port] and nothing else")
    return host, DEFAULT_PORT if port is None else port


def _cause(error: Exception) -> str:
    """In words. What TLS 1.3 says of a client certificate comes only with the first answer."""
    ended = ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError  # RemoteDisconnected, too
    if isinstance(error, ended):
        return "it closed the connection without an answer (where it always does: is this site's certificate expired?)"
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason or error)
        if "CERTIFICATE_REQUIRED" in reason or "UNKNOWN_CA" in reason or "CERTIFICATE_EXPIRED" in reason:
            return f"it does not accept this site's certificate ({reason})"
        return f"TLS failed ({reason})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return f"no HTTP answer ({type(error).__name__})"
