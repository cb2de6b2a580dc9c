"""The client: whom it talks to, what it makes of every answer, and that nothing but its own errors comes out."""

import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon import signing
from cordon.broker import client as client_module
from cordon.broker import tls
from cordon.broker.client import MAX_ANSWER, BrokerClient
from cordon.broker.protocol import Challenge, Refusal
from cordon.errors import BrokerUnavailable, ConfigError, Refused
from fakes.broker_network import RawServer, write_broker_identity, write_identity

CHALLENGE = Challenge(v=1, nonce=bytes(32), policy_digest="0" * 64, expires=datetime(2026, 1, 1, tzinfo=UTC))


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, Path]:
    return write_identity(tmp_path, "hospital-a")


@pytest.fixture
def ask(tmp_path: Path, site: tuple[Path, Path]) -> Callable[..., Challenge]:
    """A challenge from a server that answers with these bytes."""
    certificate, key, pin = write_broker_identity(tmp_path)

    def asked(answer: bytes | None, timeout_s: float = 5.0) -> Challenge:
        with RawServer((certificate, key), answer) as server:
            return BrokerClient(server.url, pin, *site, timeout_s).challenge("job")

    return asked


def test_an_answer_of_the_protocol_is_taken(ask: Callable[..., Challenge]) -> None:
    assert ask(http(msgspec.json.encode(CHALLENGE))) == CHALLENGE


@pytest.mark.parametrize(
    ("status", "code"), [("403 No", "not_a_member"), ("429 Slow", "rate_limited"), ("400 No", "x")]
)
def test_a_refusal_is_raised_with_its_receipt(ask: Callable[..., Challenge], status: str, code: str) -> None:
    receipt = {"payload": "x"}
    with pytest.raises(Refused) as refused:
        ask(http(msgspec.json.encode(Refusal(v=1, code=code, detail="why", receipt=receipt)), status))
    assert (refused.value.code, refused.value.detail, refused.value.receipt) == (code, "why", receipt)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http(b"{}"), "not one of this protocol"),
        (http(b"\xff"), "not one of this protocol"),
        (http(b"[" * 200_000), "not one of this protocol"),
        (http(b"{}", "403 Forbidden"), "not one of this protocol"),
        (http(b"", "500 Error"), "status 500"),
        (http(b"", "503 Busy"), "status 503"),
        (http(b"", "404 None"), "status 404"),
        (http(b"", "302 Found", "Location: https://elsewhere.example/"), "status 302"),
        (http(b"", "401 Who", "WWW-Authenticate: Basic"), "status 401"),
        (b"garbage\r\n\r\n", "no HTTP answer"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "not one of this protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + b"x" * (MAX_ANSWER + 1), "more than"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no HTTP answer"),
    ],
)
def test_any_other_answer_means_that_nothing_is_known(ask: Callable[..., Challenge], answer: bytes, said: str) -> None:
    with pytest.raises(BrokerUnavailable, match=said) as error:
        ask(answer)
    assert "https://127.0.0.1:" in str(error.value)


def test_silence_ends_in_time(ask: Callable[..., Challenge]) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="no answer in time"):
        ask(None, timeout_s=0.3)
    assert time.monotonic() - began < 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.booleans())
def test_no_other_exception_comes_of_any_answer(ask: Callable[..., Challenge], noise: bytes, framed: bool) -> None:
    with pytest.raises((BrokerUnavailable, Refused)):
        ask(http(noise) if framed else b"HTTP/1.1 " + noise)


def test_nobody_there(tmp_path: Path, site: tuple[Path, Path]) -> None:
    pin = write_broker_identity(tmp_path)[2]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}: .*refused"):
        BrokerClient(f"https://127.0.0.1:{port}", pin, *site, 1.0).challenge("job")
    with pytest.raises(BrokerUnavailable, match=r"no-such-host\.invalid"):
        BrokerClient("https://no-such-host.invalid", pin, *site, 1.0).challenge("job")


def test_a_server_that_never_shakes_hands(tmp_path: Path, site: tuple[Path, Path]) -> None:
    pin = write_broker_identity(tmp_path)[2]
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(BrokerUnavailable, match="no answer in time"):
            BrokerClient(url, pin, *site, 0.3).challenge("job")


def test_an_expired_certificate_of_the_right_key_is_not_taken(tmp_path: Path, site: tuple[Path, Path]) -> None:
    certificate, key, pin = write_broker_identity(tmp_path, days=30)
    later = datetime.now(UTC) + timedelta(days=31)
    with (
        RawServer((certificate, key), b"") as server,
        pytest.raises(BrokerUnavailable, match="valid from"),
    ):
        BrokerClient(server.url, pin, *site, 2.0, now=lambda: later).challenge("job")
    assert server.received == b""


def test_a_connection_is_kept_for_the_next_request(tmp_path: Path, site: tuple[Path, Path]) -> None:
    certificate, key, pin = write_broker_identity(tmp_path)
    answer = http(msgspec.json.encode(CHALLENGE), "200 OK", "Connection: keep-alive")
    with RawServer((certificate, key), answer) as server:
        client = BrokerClient(server.url, pin, *site, 2.0)
        for _ in range(3):
            client.challenge("job")
        assert server.connections == 1
        client.close()
        client.challenge("job")
        assert server.connections == 2
        client.close()


def test_one_that_rested_or_ended_is_opened_anew(
    tmp_path: Path, site: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key, pin = write_broker_identity(tmp_path)
    answer = http(msgspec.json.encode(CHALLENGE))  # says nothing of closing, and closes
    with RawServer((certificate, key), answer) as server:
        client = BrokerClient(server.url, pin, *site, 2.0)
        client.challenge("job")
        time.sleep(0.2)
        client.challenge("job")
        assert server.connections == 2
    answer = http(msgspec.json.encode(CHALLENGE), "200 OK", "Connection: keep-alive")
    monkeypatch.setattr(client_module, "REUSE_S", 0.0)
    with RawServer((certificate, key), answer) as server:
        client = BrokerClient(server.url, pin, *site, 2.0)
        for _ in range(2):
            client.challenge("job")
        assert server.connections == 2
        client.close()


def test_a_request_that_failed_is_never_sent_twice(tmp_path: Path, site: tuple[Path, Path]) -> None:
    certificate, key, pin = write_broker_identity(tmp_path)
    with RawServer((certificate, key), b"") as server:
        client = BrokerClient(server.url, pin, *site, 2.0)
        with pytest.raises(BrokerUnavailable):
            client.release({"a": 1}, {"b": 2})
        time.sleep(0.1)
    assert server.received.count(b"POST /v1/release") == 1


def test_threads_take_turns(tmp_path: Path, site: tuple[Path, Path]) -> None:
    certificate, key, pin = write_broker_identity(tmp_path)
    answer = http(msgspec.json.encode(CHALLENGE), "200 OK", "Connection: keep-alive")
    got = []
    with RawServer((certificate, key), answer) as server:
        client = BrokerClient(server.url, pin, *site, 2.0)
        threads = [threading.Thread(target=lambda: got.append(client.challenge("job"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
    assert got == [CHALLENGE] * 8
    assert server.connections == 1


def test_no_proxy_of_the_environment_is_asked(ask: Callable[..., Challenge], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(http(msgspec.json.encode(CHALLENGE))) == CHALLENGE


def test_more_than_the_broker_takes_is_not_sent(tmp_path: Path, site: tuple[Path, Path]) -> None:
    pin = write_broker_identity(tmp_path)[2]
    with pytest.raises(Refused, match="bad_request"):
        BrokerClient("https://127.0.0.1:9", pin, *site, 1.0).release({"a": "x" * 3_000_000}, {})


@pytest.mark.parametrize(
    "url",
    [
        "http://broker.example",
        "https://",
        "https://user:word@broker.example",
        "https://broker.example/path",
        "https://broker.example:99999",
        "https://broker.example:x",
        "https://broker.example?a=b",
        "https://[::1",
        "broker.example",
    ],
)
def test_a_url_that_is_none(tmp_path: Path, site: tuple[Path, Path], url: str) -> None:
    pin = write_broker_identity(tmp_path)[2]
    with pytest.raises(ConfigError, match="broker url"):
        BrokerClient(url, pin, *site, 1.0)


def test_identities_that_cannot_be_used(tmp_path: Path, site: tuple[Path, Path]) -> None:
    pin = write_broker_identity(tmp_path)[2]
    other = write_identity(tmp_path, "hospital-b")
    url = "https://127.0.0.1:9"
    with pytest.raises(ConfigError, match="not base64"):
        BrokerClient(url, "*", *site, 1.0)
    with pytest.raises(ConfigError, match="not that of the certificate"):
        BrokerClient(url, pin, site[0], other[1], 1.0)
    with pytest.raises(ConfigError, match="cannot be read"):
        BrokerClient(url, pin, tmp_path / "none", site[1], 1.0)
    (tmp_path / "text").write_text("text")
    with pytest.raises(ConfigError, match="not PEM"):
        BrokerClient(url, pin, tmp_path / "text", site[1], 1.0)


def test_an_encrypted_key_asks_nobody_for_its_passphrase(tmp_path: Path, site: tuple[Path, Path]) -> None:
    key = signing.load_private_key(site[1].read_bytes())
    locked = serialization.BestAvailableEncryption(b"word")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    site[1].write_bytes(pem)
    with pytest.raises(ConfigError, match="encrypted"):
        BrokerClient("https://127.0.0.1:9", write_broker_identity(tmp_path)[2], *site, 1.0)


def test_a_name_that_no_certificate_can_have() -> None:
    for names in ([], [""], ["x" * 100], ["héllo"]):
        with pytest.raises(ConfigError):
            tls.make_certificate(names, datetime.now(UTC), 30)
