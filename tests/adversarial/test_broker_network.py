"""Attackers on the network of a key broker: strangers, members who flood it, and who poses as the broker itself."""

import base64
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cordon.broker import listener
from cordon.broker.client import BrokerClient
from cordon.broker.config import Limits
from cordon.broker.protocol import MAX_BODY, ChallengeRequest, Refusal
from cordon.broker.tenant import TenantBroker
from cordon.errors import BrokerUnavailable, Refused
from fakes.broker_network import (
    LIMITS,
    RawServer,
    Running,
    answer_of,
    authority,
    post,
    running,
    tls_of_anybody,
    write_broker_identity,
    write_identity,
)
from fakes.key_broker import JOB, OTHER, SITE, VAULT_KEY, Hospitals, Process, mtls_key

ASK = msgspec.json.encode(ChallengeRequest(v=1, job=JOB))


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[Hospitals]:
    made = Hospitals(tmp_path)
    yield made
    made.close()


@pytest.fixture
def broker(hospitals: Hospitals) -> TenantBroker:
    return hospitals.broker()


@pytest.fixture
def server(hospitals: Hospitals, broker: TenantBroker, tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, {broker.site_spki: broker}, clock=lambda: hospitals.now) as made:
        yield made


def limited(hospitals: Hospitals, broker: TenantBroker, **changes: float) -> Running:
    limits = msgspec.structs.replace(LIMITS, **changes)
    return Running(hospitals.folder, {broker.site_spki: broker}, limits, lambda: hospitals.now)


def release(server: Running, process: Process) -> bytes:
    """The key, as an honest process gets it."""
    client = server.client(process.site)
    asked = process.asks(client.challenge(process.job))
    key = process.opens(asked, client.release(asked.evidence, asked.request))
    client.close()
    return key


# -- strangers -------------------------------------------------------------------------------------------------------


def test_who_has_no_certificate_gets_no_answer(server: Running) -> None:
    with server.connect(None) as sock:
        try:
            sock.sendall(post("/v1/challenge", ASK))
        except (ConnectionError, ssl.SSLError):
            return
        assert answer_of(sock) == (0, b"")
    assert server.events == []


def test_who_has_another_authoritys_certificate_gets_no_answer(server: Running) -> None:
    """Even for the very key that the study contract names."""
    with pytest.raises(BrokerUnavailable, match=r"does not accept this site's certificate|closed"):
        server.client(SITE, ca=authority("elsewhere")).challenge(JOB)
    assert server.events == []


def test_who_has_an_expired_certificate_gets_no_answer(server: Running) -> None:
    with pytest.raises(BrokerUnavailable):
        server.client(SITE, days=-0.5).challenge(JOB)
    assert server.events == []


def test_a_coordinator_that_certifies_a_key_of_its_own_for_the_hospitals_name_is_no_member(
    server: Running, hospitals: Hospitals, broker: TenantBroker
) -> None:
    """FLARE's CA is the coordinator's: it can issue a certificate for any name, to any key."""
    client = server.client(SITE, key=mtls_key("coordinator's own"))
    with pytest.raises(Refused, match="not_a_member") as refused:
        client.challenge(JOB)
    assert refused.value.receipt is None
    honest = hospitals.process()
    asked = honest.asks(server.client(SITE).challenge(JOB))
    with pytest.raises(Refused, match="not_a_member"):  # honest evidence, relayed
        client.release(asked.evidence, asked.request)
    assert broker.receipts() == []
    assert broker.spent() == (0, 0.0)
    assert {event.code for event in server.events if event.tenant == ""} == {"not_a_member"}


def test_a_member_of_another_tenant_is_a_stranger_here(server: Running) -> None:
    with pytest.raises(Refused, match="not_a_member"):
        server.client(OTHER).challenge(JOB)


def test_a_strangers_body_is_not_waited_for(server: Running) -> None:
    with server.connect(OTHER) as sock:
        sock.sendall(f"POST /v1/release HTTP/1.1\r\nHost: b\r\nContent-Length: {MAX_BODY}\r\n\r\n".encode())
        began = time.monotonic()
        assert answer_of(sock)[0] == 403
        assert time.monotonic() - began < 1.0


def test_tls_1_2_is_not_spoken(server: Running, tmp_path: Path) -> None:
    context = tls_of_anybody()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*write_identity(tmp_path, SITE))
    with (
        socket.create_connection(("127.0.0.1", server.port), 5) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="b")


# -- who poses as the broker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("certified", [False, True])
def test_an_impostor_with_the_right_name_and_another_key_is_sent_nothing(
    tmp_path: Path, hospitals: Hospitals, certified: bool
) -> None:
    """Also one with a certificate of the federation's CA, which the coordinator can issue to itself."""
    pin = write_broker_identity(tmp_path, "real")[2]
    if certified:
        identity = write_identity(tmp_path, "broker.hospital.example")
    else:
        identity = write_broker_identity(tmp_path, "impostor")[:2]
    with RawServer(identity, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as impostor:
        client = BrokerClient(impostor.url, pin, *write_identity(tmp_path, SITE), 2.0)
        for ask in (
            lambda: client.challenge(JOB),
            lambda: client.release({"a": 1}, {"b": 1}),
            lambda: client.lease_state("a"),
        ):
            with pytest.raises(
                BrokerUnavailable, match=r"another key than the site policy's broker\.spki; nothing was sent"
            ):
                ask()
        time.sleep(0.1)
    assert impostor.connections == 3
    assert impostor.received == b""


def test_an_impostor_cannot_bring_the_client_down_to_tls_1_2(tmp_path: Path) -> None:
    certificate, key, pin = write_broker_identity(tmp_path)  # even with the right key
    with RawServer((certificate, key), b"", ssl.TLSVersion.TLSv1_2) as impostor:
        with pytest.raises(BrokerUnavailable, match="TLS failed"):
            BrokerClient(impostor.url, pin, *write_identity(tmp_path, SITE), 2.0).challenge(JOB)
        assert impostor.received == b""


# -- floods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_bound_is_cut_off(server: Running, declared: bool) -> None:
    with server.connect(SITE) as sock:
        if declared:
            sock.sendall(f"POST /v1/release HTTP/1.1\r\nHost: b\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode())
        else:
            sock.sendall(b"POST /v1/release HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n")
            chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
            for _ in range(MAX_BODY // 65536 + 1):
                sock.sendall(chunk)
        status, body = answer_of(sock)
        assert (status, msgspec.json.decode(body, type=Refusal).code) == (413, "too_large")
        sock.settimeout(5)
        assert answer_of(sock) == (0, b"")


def test_a_body_without_end_ends_the_connection(server: Running) -> None:
    """Chunks for ever, from a client that reads no answer."""
    sent = 0
    with server.connect(SITE) as sock, pytest.raises(OSError):
        sock.sendall(b"POST /v1/release HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        while sent < 64 * MAX_BODY:
            sock.sendall(chunk)
            sent += 65536
            time.sleep(0.001)
    assert sent < 64 * MAX_BODY


def test_slow_heads_and_slow_bodies_are_cut_off(hospitals: Hospitals, broker: TenantBroker) -> None:
    server = limited(hospitals, broker, request_timeout_s=0.5).start()
    try:
        for first, status in ((b"POST /v1/challenge HTTP/1.1\r\nX-", 0), (post("/v1/challenge", ASK)[:-3], 408)):
            with server.connect(SITE) as sock:
                sock.sendall(first)
                began = time.monotonic()
                stop = threading.Event()
                drip = threading.Thread(target=_drip, args=(sock, b"a" if status == 0 else b"", stop))
                drip.start()
                answered = answer_of(sock)[0]
                stop.set()
                drip.join()
                assert answered == status
                assert time.monotonic() - began < 3
        assert release(server, hospitals.process()) == VAULT_KEY
    finally:
        server.stop()


def _drip(sock: ssl.SSLSocket, byte: bytes, stop: threading.Event) -> None:
    while byte and not stop.wait(0.05):
        try:
            sock.sendall(byte)
        except OSError:
            return


def test_a_thousand_mute_connections_keep_no_member_out(hospitals: Hospitals, broker: TenantBroker) -> None:
    server = limited(hospitals, broker, connections=64).start()
    mute = []
    try:
        for _ in range(1000):
            mute.append(socket.create_connection(("127.0.0.1", server.port), 5))
        began = time.monotonic()
        assert release(server, hospitals.process()) == VAULT_KEY
        assert time.monotonic() - began < listener.HANDSHAKE_S
        watch = select.poll()
        for each in mute:
            watch.register(each, select.POLLIN)  # nothing was said to them, so that only an end can be read
        assert len(watch.poll(0)) >= 1000 - 64
    finally:
        for each in mute:
            each.close()
        server.stop()


def test_strangers_who_hold_connections_keep_no_member_out(hospitals: Hospitals, broker: TenantBroker) -> None:
    server = limited(hospitals, broker, connections=listener.PER_CLIENT + 1, request_timeout_s=10).start()
    held = []
    try:
        for _ in range(3 * listener.PER_CLIENT):
            try:
                held.append(server.connect(OTHER))
            except (OSError, ssl.SSLError):
                continue
        assert release(server, hospitals.process()) == VAULT_KEY
    finally:
        for each in held:
            each.close()
        server.stop()


def test_a_member_that_floods_is_told_when_to_come_again_and_holds_up_no_other(hospitals: Hospitals) -> None:
    brokers = {each.site_spki: each for each in (hospitals.broker(SITE), hospitals.broker(OTHER))}
    limits = Limits(requests_per_s=2.0, burst=3)
    with running(hospitals.folder, brokers, limits=limits, clock=lambda: hospitals.now) as server:
        with server.connect(SITE) as sock:
            codes = []
            for _ in range(20):
                sock.sendall(post("/v1/challenge", ASK))
                codes.append(answer_of(sock)[0])
            assert codes[:3] == [200] * 3
            assert codes.count(429) >= 15
            sock.sendall(post("/v1/challenge", ASK))
            assert b"retry-after: 1\r\n" in sock.recv(65536).lower()
        with pytest.raises(Refused, match="rate_limited"):
            server.client(SITE).challenge(JOB)
        assert release(server, hospitals.process(OTHER)) == VAULT_KEY
        time.sleep(1.1)
        assert release(server, hospitals.process()) == VAULT_KEY


@pytest.mark.parametrize(
    "body",
    [
        b'{"v":1,"evidence":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b',"request":{}}',
        b'{"v":1,"evidence":{"a":' + b"[" * 500_000 + b"]" * 500_000 + b'},"request":{}}',
        b'{"v":1,"evidence":{},"request":{"payload":"' + b"A" * 1_900_000 + b'"}}',
        b'{"v":1,"evidence":{},"request":{"payload":1e999,"signatures":[1]}}',
        b'{"v":1,"evidence":{},"request":{},"evidence":{}}',
        b'{"v":1,"evidence":{"payload":"\\ud800"},"request":{"payload":"\\ud800","signatures":[{}]}}',
        b"[" * MAX_BODY,
        b"\x00" * 1000,
    ],
)
def test_garbage_is_a_bad_request_with_a_receipt(server: Running, broker: TenantBroker, body: bytes) -> None:
    with server.connect(SITE) as sock:
        sock.sendall(post("/v1/release", body))
        status, said = answer_of(sock)
    assert (status, json.loads(said)["code"]) == (400, "bad_request")
    assert broker.receipts() == [json.loads(said)["receipt"]]
    assert broker.spent() == (0, 0.0)


def test_no_request_is_smuggled_in_the_body_of_another(server: Running) -> None:
    inner = post("/v1/lease", b'{"v":1,"lease":"x"}')
    with server.connect(SITE) as sock:
        sock.sendall(post("/v1/challenge", inner))
        assert answer_of(sock)[0] == 400
    with server.connect(SITE) as sock:
        both = b"POST /v1/challenge HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        sock.sendall(both + b"0\r\n\r\n" + inner)
        assert answer_of(sock)[0] == 400
    paths = [event.path for event in server.events]
    assert "/v1/lease" not in paths


# -- a broker that dies, and what is left in its log -----------------------------------------------------------------


def test_a_broker_that_dies_before_it_answers_leaves_nothing_known_and_a_new_challenge_works(
    hospitals: Hospitals, broker: TenantBroker
) -> None:
    """The connection ends after the decision was made durable and before its answer was sent."""
    server = limited(hospitals, broker).start()
    process, client = hospitals.process(), server.client(SITE)
    asked = process.asks(client.challenge(JOB))
    decide = broker.release

    def decide_and_die(*args: object) -> object:
        answer = decide(*args)  # type: ignore[arg-type]
        server.cut()
        return answer

    broker.release = decide_and_die  # type: ignore[method-assign, assignment]
    with pytest.raises(BrokerUnavailable):
        client.release(asked.evidence, asked.request)
    del broker.release  # type: ignore[method-assign]
    server.stop()

    again = limited(hospitals, broker).start()
    try:
        client = again.client(SITE)
        with pytest.raises(Refused, match="nonce_unknown"):
            client.release(asked.evidence, asked.request)
        fresh = process.asks(client.challenge(JOB))
        assert process.opens(fresh, client.release(fresh.evidence, fresh.request)) == VAULT_KEY
        assert broker.spent()[0] == 1, "the same process is charged once"
    finally:
        again.stop()


def test_no_secret_is_in_log_answers_or_errors(
    server: Running, hospitals: Hospitals, broker: TenantBroker, capfd: pytest.CaptureFixture[str]
) -> None:
    process, client, errors = hospitals.process(), server.client(SITE), []
    assert release(server, process) == VAULT_KEY
    for attempt in (
        lambda: client.release(process.asks(client.challenge(JOB)).evidence, {"payload": "x"}),
        lambda: client.release({}, process.asks(client.challenge(JOB)).request),
        lambda: server.client(OTHER).challenge(JOB),
    ):
        with pytest.raises(Refused) as refused:
            attempt()
        errors.append(repr(refused.value))
    out, err = capfd.readouterr()
    said = "\n".join([repr(server.events), *errors, json.dumps(broker.receipts()), out, err]).lower()
    assert "released" in said
    secrets = (
        VAULT_KEY,
        b"correct horse battery staple",
        broker.signing_key.private_bytes_raw(),
        process.mtls.private_numbers().d.to_bytes(256, "big"),
    )
    for secret in secrets:
        forms = (secret.hex(), base64.b64encode(secret).decode(), base64.b64encode(secret[:30]).decode(), repr(secret))
        for form in forms:
            assert form.lower() not in said
            assert form.strip("b'").lower()[:24] not in said
