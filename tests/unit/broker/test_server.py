"""The server: what it answers to a member, to a stranger and to HTTP that is none of its protocol; how it ends."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cordon import signing
from cordon.broker import listener
from cordon.broker.config import Limits
from cordon.broker.gate import RECEIPT_TYPE
from cordon.broker.protocol import MAX_BODY, Challenge, ChallengeRequest, LeaseQuery, LeaseState, ReleaseRequest
from cordon.broker.server import parse
from cordon.broker.tenant import TenantBroker
from cordon.errors import BrokerUnavailable, ConfigError, PortInUse, Refused
from fakes.broker_network import Running, answer_of, post, running
from fakes.key_broker import JOB, OTHER, SITE, Hospitals, mtls_key

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


class Slow:
    """A tenant that takes its time over a challenge, or cannot decide."""

    def __init__(self, name: str = "slow", seconds: float = 0.0, error: Exception | None = None) -> None:
        self.name, self.seconds, self.error = name, seconds, error
        self.at_once, self.most, self.begun = 0, 0, threading.Event()

    def challenge(self, asked: ChallengeRequest, client_spki: str, now: Any) -> Challenge:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.begun.set()
        time.sleep(self.seconds)
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        return Challenge(v=1, nonce=bytes(32), policy_digest="0" * 64, expires=now)

    def release(self, asked: ReleaseRequest, client_spki: str, now: Any) -> Any:
        raise AssertionError("not asked for here")

    def lease_state(self, asked: LeaseQuery, client_spki: str, now: Any) -> LeaseState:
        return LeaseState(v=1, state="unknown")

    def refuse(self, code: str, detail: str, client_spki: str, now: Any) -> Refused:
        return Refused(code, detail)


def spki(site: str = SITE) -> str:
    return signing.spki_digest(mtls_key(site).public_key())


def ask(server: Running, request: bytes, site: str = SITE) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer to raw bytes."""
    with server.connect(site) as sock:
        sock.sendall(request)
        status, body = answer_of(sock)
    return status, json.loads(body or "{}")


def test_a_member_gets_challenge_release_and_lease_over_one_connection(
    server: Running, hospitals: Hospitals, broker: TenantBroker
) -> None:
    process, client = hospitals.process(), server.client(SITE)
    asked = process.asks(client.challenge(JOB))
    release = client.release(asked.evidence, asked.request)
    lease = signing.unverified_body(release.lease)["lease"]
    assert len(process.opens(asked, release)) == 32
    assert client.lease_state(lease).state == "live"
    broker.revoke(hospitals.now, lease=lease)
    assert client.lease_state(lease).state == "revoked"
    said = [(event.tenant, event.path, event.status, event.code, event.lease) for event in server.events]
    assert said == [
        (SITE, "/v1/release", 200, "released", lease),
        (SITE, "/v1/lease", 200, "revoked", lease),
    ], "a challenge and a lease that stands decide nothing"


def test_two_tenants_know_their_own_site_only(hospitals: Hospitals, tmp_path: Path) -> None:
    brokers = {each.site_spki: each for each in (hospitals.broker(SITE), hospitals.broker(OTHER))}
    with running(tmp_path, brokers, clock=lambda: hospitals.now) as server:
        mine, theirs = server.client(SITE), server.client(OTHER)
        asked = hospitals.process(OTHER).asks(mine.challenge(JOB))
        with pytest.raises(Refused, match="nonce_unknown"):
            theirs.release(asked.evidence, asked.request)
        lease = signing.unverified_body(
            (lambda own: mine.release(own.evidence, own.request))(hospitals.process().asks(mine.challenge(JOB))).lease
        )["lease"]
        assert mine.lease_state(lease).state == "live"
        assert theirs.lease_state(lease).state == "unknown"


def test_a_refusal_carries_its_signed_receipt(server: Running, hospitals: Hospitals, broker: TenantBroker) -> None:
    client, process = server.client(SITE), hospitals.process(OTHER)
    asked = process.asks(client.challenge(JOB))
    with pytest.raises(Refused) as refused:
        client.release(asked.evidence, asked.request)
    assert refused.value.code == "evidence_refused"
    body, _ = signing.verify(refused.value.receipt, RECEIPT_TYPE, [broker.signing_key.public_key()], hospitals.now)
    assert body["decision"] == "evidence_refused"


def test_a_release_request_that_cannot_be_read_gets_a_receipt_too(server: Running, broker: TenantBroker) -> None:
    status, said = ask(server, post("/v1/release", b'{"v": 1, "evidence": []}'))
    assert (status, said["code"]) == (400, "bad_request")
    assert broker.receipts() == [said["receipt"]]


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (post("/v1/challenge", b'{"v": 2, "job": "a"}'), 400, "bad_request"),
        (post("/v1/challenge", b'{"v": 1, "job": "a", "extra": 1}'), 400, "bad_request"),
        (post("/v1/challenge", b"\xff\xfe"), 400, "bad_request"),
        (post("/v1/challenge", b""), 400, "bad_request"),
        (post("/v1/nothing", ASK), 404, "bad_http"),
        (post("/", ASK), 404, "bad_http"),
        (post("/v1/challenge/../release", ASK), 404, "bad_http"),
        (b"GET /v1/challenge HTTP/1.1\r\nHost: b\r\n\r\n", 405, "bad_http"),
        (post("/v1/challenge", ASK, "Content-Encoding: gzip"), 400, "bad_http"),
        (b"POST /v1/challenge HTTP/1.1\r\nHost: b\r\nContent-Length: x\r\n\r\n", 400, "bad_http"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", 400, "bad_http"),
    ],
)
def test_what_is_not_the_protocol_is_refused(
    server: Running, request_bytes: bytes, status: int, code: str, broker: TenantBroker
) -> None:
    answered, said = ask(server, request_bytes)
    assert (answered, said.get("code")) == (status, code)
    assert broker.receipts() == []
    assert set(said) == {"v", "code", "detail", "receipt"}


def test_a_body_in_chunks_is_taken_as_one(server: Running) -> None:
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (ASK[:5], ASK[5:]))
    head = b"POST /v1/challenge HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, _ = ask(server, head + parts + b"0\r\n\r\n")
    assert status == 200


def test_what_came_is_not_in_the_answer_or_in_the_log(server: Running) -> None:
    secret = b"SECRET-IN-A-REQUEST"
    for request in (
        post("/v1/" + secret.decode(), ASK),
        post("/v1/challenge", b'{"v": 1, "job": "' + secret * 50 + b'"}'),
        post("/v1/challenge", secret),
        secret + b" / HTTP/9\r\n\r\n",
    ):
        _, said = ask(server, request)
        assert secret.decode() not in json.dumps(said)
    assert secret.decode() not in repr(server.events)


def test_a_tenant_that_cannot_decide_is_no_refusal(tmp_path: Path) -> None:
    with running(tmp_path, {spki(): Slow(error=ConfigError("disk full at /var/lib"))}) as server:
        status, said = ask(server, post("/v1/challenge", ASK))
        assert (status, said["code"]) == (503, "internal")
        assert "disk" not in said["detail"]
        assert any("disk full" in event.detail for event in server.events)


def test_an_error_in_the_broker_is_told_without_its_words(tmp_path: Path) -> None:
    with running(tmp_path, {spki(): Slow(error=ZeroDivisionError("a key was here"))}) as server:
        status, said = ask(server, post("/v1/challenge", ASK))
        assert (status, said["code"]) == (500, "internal")
        logged = [event.detail for event in server.events]
        assert any("ZeroDivisionError at " in detail for detail in logged)
        assert "a key was here" not in repr((said, logged))


def test_one_tenant_decides_one_thing_at_a_time_and_holds_up_no_other(tmp_path: Path) -> None:
    slow, quick = Slow("slow", 0.2), Slow("quick")
    with running(tmp_path, {spki(SITE): slow, spki(OTHER): quick}) as server:
        threads = [threading.Thread(target=server.client(SITE).challenge, args=(JOB,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        slow.begun.wait(5)
        began = time.monotonic()
        server.client(OTHER).challenge(JOB)
        assert time.monotonic() - began < 0.6
        for thread in threads:
            thread.join()
    assert slow.most == 1


def test_more_than_may_wait_are_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cordon.broker.server.MAX_WAITING", 1)
    slow = Slow("slow", 0.5)
    with running(tmp_path, {spki(): slow}) as server:
        first = threading.Thread(target=server.client(SITE).challenge, args=(JOB,))
        first.start()
        slow.begun.wait(5)
        with pytest.raises(BrokerUnavailable, match="503"):
            server.client(SITE).challenge(JOB)
        first.join()
        server.client(SITE).challenge(JOB)


def test_stopping_finishes_what_is_under_way(tmp_path: Path) -> None:
    slow, answers = Slow("slow", 0.5), []
    with running(tmp_path, {spki(): slow}) as server:
        thread = threading.Thread(target=lambda: answers.append(server.client(SITE).challenge(JOB)))
        thread.start()
        slow.begun.wait(5)
    thread.join()
    assert len(answers) == 1
    with pytest.raises(BrokerUnavailable, match="refused"):
        server.client(SITE).challenge(JOB)


def test_a_resting_connection_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "IDLE_S", 0.3)
    with running(tmp_path, {spki(): Slow()}) as server, server.connect(SITE) as sock:
        sock.sendall(post("/v1/challenge", ASK))
        assert answer_of(sock)[0] == 200
        began = time.monotonic()
        assert answer_of(sock) == (0, b"")
        assert 0.1 < time.monotonic() - began < 2


def test_a_port_that_is_taken_is_said(server: Running) -> None:
    with pytest.raises(PortInUse, match=str(server.port)):
        listener.listen("127.0.0.1", server.port)
    with pytest.raises(ConfigError, match=r"listen\.host"):
        listener.listen("no such host", 0)


@pytest.mark.parametrize("depth", [10, 100_000])
def test_deep_json_is_no_more_than_a_bad_request(depth: int) -> None:
    body = b'{"v":1,"evidence":{"a":' + b"[" * depth + b"]" * depth + b'},"request":{}}'
    assert len(body) < MAX_BODY
    assert isinstance(parse(body, ReleaseRequest), ReleaseRequest if depth == 10 else str)


def test_more_job_processes_than_connections_of_one_site_are_all_served(tmp_path: Path) -> None:
    with running(tmp_path, {spki(): Slow()}) as server:
        clients = [server.client(SITE) for _ in range(listener.PER_CLIENT + 4)]
        for _ in range(2):
            for client in clients:
                client.challenge(JOB)


class Rested:
    """A connection as ``admit`` sees it."""

    def __init__(self, key: str, resting: bool = True) -> None:
        self.key, self.resting, self.aborted = key, resting, False

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def door() -> Any:
    limits = Limits(connections=listener.PER_CLIENT + 1)
    return listener.Listener(None, None, limits, (), print)  # type: ignore[arg-type]


def test_a_members_oldest_resting_connection_makes_room_for_its_next(door: Any) -> None:
    own = [Rested("a", resting=index != 0) for index in range(listener.PER_CLIENT)]
    assert all(door.admit(each) for each in own)
    assert door.admit(Rested("a"))
    assert [each.aborted for each in own] == [index == 1 for index in range(listener.PER_CLIENT)]


def test_a_member_whose_connections_are_all_at_work_gets_no_more(door: Any) -> None:
    own = [Rested("a", resting=False) for _ in range(listener.PER_CLIENT)]
    assert all(door.admit(each) for each in own)
    assert not door.admit(Rested("a"))
    assert door.admit(Rested("b"))
    assert not door.admit(Rested("c", resting=False)), "no more than limits.connections of all"
    door.leave(own[0])
    assert door.admit(Rested("a"))


def test_strangers_make_room_for_members_and_never_the_other_way(door: Any) -> None:
    stranger, member = Rested(""), Rested("a")
    assert door.admit(stranger)
    others = [Rested("b") for _ in range(listener.PER_CLIENT - 1)]
    assert all(door.admit(each) for each in [member, *others])
    assert door.admit(Rested("c"))
    assert stranger.aborted
    assert not door.admit(Rested(""))
    assert not member.aborted
    assert not any(each.aborted for each in others)
