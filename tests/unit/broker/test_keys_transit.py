"""The key store in Vault's transit engine.

Most run against a small server of our own, which records what it is asked and answers as the public API documentation
says; they show what the client sends and how it takes answers, and nothing about Vault. Those named ``openbao`` run
against the real OpenBao and are skipped without it. HashiCorp's own program was never run.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cordon.broker.keys import KeyEncryption, Secret, VaultTransit, open_backend
from cordon.broker.keys import wrapped as blob
from cordon.errors import ConfigError, CordonError, SealError
from fakes import key_stores
from fakes.key_stores import Bao, TransitServer

LABEL = "hospital-a|vault|ct-2026"
KEY = b"thirty-two bytes of a vault key!"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TransitServer]:
    with key_stores.transit_server(tmp_path) as server:
        server.keys = {"kek": [bytes(range(32))]}
        yield server


def opened(url: str, folder: Path, **changes: Any) -> KeyEncryption:
    fields = {"url": url, "key_name": "kek", "token": Secret(file="token"), "ca": "ca.pem", "timeout_s": 2.0}
    return open_backend(VaultTransit(**(fields | changes)), folder, {})


# -- what is asked --------------------------------------------------------------------------------------------------


def test_what_is_sent_is_what_the_api_documents(server: TransitServer, tmp_path: Path) -> None:
    kek = opened(server.url, tmp_path)
    assert [(method, path) for method, path, _, _ in server.requests][:3] == [
        ("GET", "/v1/transit/keys/kek"),
        ("POST", "/v1/transit/encrypt/kek"),
        ("POST", "/v1/transit/decrypt/kek"),
    ]
    server.requests.clear()
    wrapped = kek.wrap(KEY, LABEL)
    kek.unwrap(wrapped, LABEL)
    (_, _, headers, sent), (_, _, _, asked) = server.requests
    aad = base64.b64encode(blob.associated_data(blob.TRANSIT, LABEL)).decode()
    assert sent == {"plaintext": base64.b64encode(KEY).decode(), "associated_data": aad}
    assert asked == {
        "ciphertext": "vault:v1:" + base64.b64encode(wrapped[6:]).decode(),
        "associated_data": aad,
    }
    assert headers["X-Vault-Token"] == key_stores.TOKEN
    assert wrapped[:6].hex() == "010300000001"


def test_a_rotated_key_opens_the_old_and_wraps_by_the_new(server: TransitServer, tmp_path: Path) -> None:
    kek = opened(server.url, tmp_path)
    old = kek.wrap(KEY, LABEL)
    server.keys["kek"].append(bytes(32))
    new = kek.wrap(KEY, LABEL)
    assert (old[2:6].hex(), new[2:6].hex()) == ("00000001", "00000002")
    assert kek.unwrap(old, LABEL) == kek.unwrap(new, LABEL) == KEY
    with pytest.raises(SealError):
        kek.unwrap(new[:2] + old[2:6] + new[6:], LABEL)


def test_a_renewed_token_is_taken_without_a_restart(server: TransitServer, tmp_path: Path) -> None:
    key_stores.private_file(tmp_path / "token", "hvs.expired")
    with pytest.raises(ConfigError, match="token refused"):
        opened(server.url, tmp_path)
    key_stores.private_file(tmp_path / "token", key_stores.TOKEN)
    kek = opened(server.url, tmp_path)
    key_stores.private_file(tmp_path / "token", "hvs.expired")
    with pytest.raises(ConfigError, match="token refused"):
        kek.wrap(KEY, LABEL)
    key_stores.private_file(tmp_path / "token", key_stores.TOKEN)
    kek.wrap(KEY, LABEL)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes",
    [
        {"exportable": True},
        {"allow_plaintext_backup": True},
        {"derived": True},
        {"type": "chacha20-poly1305"},
        {"type": "rsa-2048"},
        {"supports_decryption": None},
    ],
)
def test_a_key_that_could_be_copied_out_or_is_another_is_refused(
    server: TransitServer, tmp_path: Path, attributes: dict[str, Any]
) -> None:
    server.attributes = attributes
    with pytest.raises(ConfigError, match=f"{next(iter(attributes))} is"):
        opened(server.url, tmp_path)


def test_a_server_that_ignores_associated_data_is_refused(server: TransitServer, tmp_path: Path) -> None:
    """Vault before 1.13 does, without a word: wrapped keys could be exchanged between rows."""
    server.ignore_associated_data = True
    with pytest.raises(ConfigError, match="ignores the label"):
        opened(server.url, tmp_path)


@pytest.mark.parametrize(
    "changes, wanted", [({"key_name": "absent"}, "no such key"), ({"ca": "absent"}, "absent is not there")]
)
def test_what_is_missing_is_named(server: TransitServer, tmp_path: Path, changes: dict[str, str], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        opened(server.url, tmp_path, **changes)


def test_a_key_deleted_meanwhile_is_no_matter_of_the_wrapped_bytes(server: TransitServer, tmp_path: Path) -> None:
    kek = opened(server.url, tmp_path)
    wrapped = kek.wrap(KEY, LABEL)
    server.keys.clear()
    with pytest.raises(ConfigError, match="does the key exist"):
        kek.unwrap(wrapped, LABEL)


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://127.0.0.1:8200"},
        {"url": "https://user:secret@vault"},
        {"url": "https://vault/path"},
        {"url": "https://vault\n"},
        {"mount": "../sys"},
        {"mount": "transit/"},
        {"key_name": "../../sys/seal"},
        {"key_name": "kek?x"},
        {"key_name": ".."},
        {"timeout_s": 0},
        {"timeout_s": 1e9},
        {"verify": False},
    ],
)
def test_a_configuration_that_would_leave_tls_or_the_key_is_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "backend": "hashicorp-vault",
        "url": "https://vault:8200",
        "key_name": "kek",
        "ca": "ca.pem",
    }
    good["token"] = {"env": "VAULT_TOKEN"}
    msgspec.convert(good, VaultTransit)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good | change, VaultTransit)


# -- network --------------------------------------------------------------------------------------------------------


def test_a_server_with_another_certificate_gets_no_token(server: TransitServer, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    key_stores.server_certificate(elsewhere)
    with pytest.raises(ConfigError, match=r"not reachable \(SSLError\)"):
        opened(server.url, tmp_path, ca="elsewhere/ca.pem")
    assert server.requests == []


def test_a_server_of_another_name_gets_no_token(server: TransitServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not reachable"):
        opened(server.url.replace("127.0.0.1", "localhost"), tmp_path)
    assert server.requests == []


def test_the_environment_does_not_change_where_and_how_it_connects(
    server: TransitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"HTTPS_PROXY": "http://127.0.0.1:1", "REQUESTS_CA_BUNDLE": "/absent", "CURL_CA_BUNDLE": "/absent"}
    values |= {
        "VAULT_ADDR": "https://127.0.0.1:1",
        "VAULT_TOKEN": "other",
        "VAULT_SKIP_VERIFY": "1",
        "VAULT_CACERT": "/absent",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    opened(server.url, tmp_path).close()
    assert {headers["X-Vault-Token"] for _, _, headers, _ in server.requests} == {key_stores.TOKEN}


def test_a_redirect_is_not_followed_with_the_token(server: TransitServer, tmp_path: Path) -> None:
    kek = opened(server.url, tmp_path)
    server.requests.clear()
    server.answer = (307, {"Location": f"{server.url}/v1/transit/encrypt/stolen"}, b"")
    with pytest.raises(ConfigError, match="something else than Vault's JSON"):
        kek.wrap(KEY, LABEL)
    assert [path for _, path, _, _ in server.requests] == ["/v1/transit/encrypt/kek"]


def test_a_server_that_is_gone_is_named(server: TransitServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"key 'kek' of https://127.0.0.1:1/v1/transit: not reachable"):
        opened("https://127.0.0.1:1", tmp_path)


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "status, body",
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"\xff\xfe"),
        (200, b"[]"),
        (200, b"null"),
        (200, b"[" * 60_000),
        (200, b'{"data": null}'),
        (200, b'{"data": []}'),
        (200, b'{"data": {}}'),
        (200, b'{"data": {"ciphertext": 1, "plaintext": 1}}'),
        (200, b'{"data": {"ciphertext": "vault:v1:", "plaintext": ""}}'),
        (200, b'{"data": {"ciphertext": "vault:v0:AAAA", "plaintext": "AAAA"}}'),
        (200, b'{"data": {"ciphertext": "vault:v1:A A=", "plaintext": "\\u00e9"}}'),
        (200, b'{"data": {"ciphertext": "vault:v99999999999:AAAA", "plaintext": "AA=="}}'),
        (204, b""),
        (400, b"[]"),
        (400, b'{"errors": 1}'),
        (400, b'{"errors": [1]}'),
        (404, b"{}"),
        (418, b"{}"),
        (429, b"{}"),
        (500, b"{}"),
        (503, b'{"errors": ["Vault is sealed"]}'),
    ],
)
def test_no_answer_of_the_server_raises_anything_else(
    server: TransitServer, tmp_path: Path, status: int, body: bytes
) -> None:
    kek = opened(server.url, tmp_path)
    wrapped = kek.wrap(KEY, LABEL)
    server.answer = (status, JSON, body)
    with pytest.raises(ConfigError):
        kek.wrap(KEY, LABEL)
    with pytest.raises((ConfigError, SealError)) as raised:
        kek.unwrap(wrapped, LABEL)
    assert isinstance(raised.value, ConfigError) or status == 400
    server.answer = None
    assert kek.unwrap(wrapped, LABEL) == KEY


def test_an_answer_without_end_is_cut(server: TransitServer, tmp_path: Path) -> None:
    kek = opened(server.url, tmp_path)
    wrapped = kek.wrap(KEY, LABEL)
    good = json.dumps({"data": {"plaintext": base64.b64encode(KEY).decode()}}).encode()
    server.answer = (200, JSON, good + b" " * 60_000)
    assert kek.unwrap(wrapped, LABEL) == KEY
    server.answer = (200, JSON, good + b" " * 66_000)
    with pytest.raises(ConfigError, match="over 65536 bytes"):
        kek.unwrap(wrapped, LABEL)
    server.answer = (200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(good + b" " * 10**7))
    with pytest.raises(ConfigError, match="over 65536 bytes"):
        kek.unwrap(wrapped, LABEL)
    server.answer = None
    assert kek.unwrap(wrapped, LABEL) == KEY


def test_an_answer_that_breaks_off_or_is_not_in_its_encoding(server: TransitServer, tmp_path: Path) -> None:
    kek = opened(server.url, tmp_path)
    server.answer = (200, JSON | {"Content-Encoding": "gzip"}, b"{}")
    with pytest.raises(ConfigError, match="not reachable"):
        kek.wrap(KEY, LABEL)
    server.answer = (200, JSON | {"Transfer-Encoding": "chunked"}, b"zz\r\n")
    with pytest.raises(ConfigError):
        kek.wrap(KEY, LABEL)


def test_a_server_that_repeats_the_request_in_its_errors_is_not_repeated(server: TransitServer, tmp_path: Path) -> None:
    kek = opened(server.url, tmp_path)
    wrapped = kek.wrap(KEY, LABEL)
    secret = [key_stores.TOKEN, base64.b64encode(KEY).decode(), KEY.decode()]
    told = [repr(kek), repr(vars(kek))]
    for status in (400, 403, 404, 500):
        server.answer = (status, JSON, json.dumps({"errors": secret}).encode())
        for call in (lambda: kek.wrap(KEY, LABEL), lambda: kek.unwrap(wrapped, LABEL)):
            with pytest.raises(CordonError) as raised:
                call()
            told.append(str(raised.value))
            assert raised.value.__suppress_context__ and raised.value.__cause__ is None, "a traceback would print it"
    assert not [value for value in secret for text in told if value in text]


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "nul\0", "é"])
def test_a_token_that_would_break_the_header_is_refused_and_not_told(
    server: TransitServer, tmp_path: Path, token: str
) -> None:
    key_stores.private_file(tmp_path / "token", token)
    with pytest.raises(ConfigError, match="printable ASCII") as raised:
        opened(server.url, tmp_path)
    assert token not in key_stores.told(raised.value)


# -- the real OpenBao -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bao_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openbao")


@pytest.fixture(scope="module")
def bao(bao_folder: Path) -> Iterator[Bao]:
    with key_stores.openbao(bao_folder) as bao:
        yield bao


def test_openbao_refuses_what_its_policy_does_not_name(bao: Bao, bao_folder: Path) -> None:
    """The policy of README.md is enough, and a key that is not there is not made by asking for it."""
    opened(bao.url, bao_folder).close()
    with pytest.raises(ConfigError, match="token refused"):
        opened(bao.url, bao_folder, key_name="absent")


def test_openbao_rotates_and_keeps_what_was_wrapped(bao: Bao, bao_folder: Path) -> None:
    kek = opened(bao.url, bao_folder)
    old = kek.wrap(KEY, LABEL)
    bao.ask("POST", "transit/keys/kek/rotate")
    new = kek.wrap(KEY, LABEL)
    assert int.from_bytes(new[2:6], "big") == int.from_bytes(old[2:6], "big") + 1
    assert kek.unwrap(old, LABEL) == kek.unwrap(new, LABEL) == KEY
    bao.ask("POST", "transit/keys/kek/config", min_decryption_version=int.from_bytes(new[2:6], "big"))
    with pytest.raises(SealError, match="min_decryption_version"):
        kek.unwrap(old, LABEL)
    assert kek.unwrap(new, LABEL) == KEY
    kek.close()


@pytest.mark.parametrize("attribute", ["exportable", "allow_plaintext_backup", "derived"])
def test_openbao_key_that_could_be_copied_out_is_refused(bao: Bao, bao_folder: Path, attribute: str) -> None:
    bao.ask("POST", f"transit/keys/{attribute}", **{attribute: True})
    rules = 'path "transit/*" { capabilities = ["read", "update"] }'
    bao.ask("POST", "sys/policies/acl/wide", policy=rules)
    token = bao.ask("POST", "auth/token/create", policies=["wide"], no_default_policy=True)["auth"]["client_token"]
    key_stores.private_file(bao_folder / "wide", token)
    with pytest.raises(ConfigError, match=f"{attribute} is True, want False"):
        opened(bao.url, bao_folder, key_name=attribute, token=Secret(file="wide"))


def test_openbao_revoked_token_and_sealed_server_are_named(bao: Bao, bao_folder: Path) -> None:
    """Last: it seals the server."""
    token = bao.ask("POST", "auth/token/create", policies=["broker"], no_default_policy=True)["auth"]["client_token"]
    key_stores.private_file(bao_folder / "short", token)
    kek = opened(bao.url, bao_folder, token=Secret(file="short"))
    wrapped = kek.wrap(KEY, LABEL)
    bao.ask("POST", "auth/token/revoke", token=token)
    with pytest.raises(ConfigError, match="token refused"):
        kek.unwrap(wrapped, LABEL)
    bao.ask("POST", "sys/seal")
    with pytest.raises(ConfigError, match="is it unsealed"):
        kek.unwrap(wrapped, LABEL)
