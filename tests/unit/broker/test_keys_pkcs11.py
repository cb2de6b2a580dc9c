"""The key store in a PKCS#11 token, with SoftHSM as the token."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag

from cordon.broker.keys import KeyEncryption, Pkcs11Keys, Secret, open_backend, rewrap
from cordon.broker.keys import wrapped as blob
from cordon.broker.keys.hsm import Pkcs11Kek, create_pkcs11_kek
from cordon.errors import ConfigError, SealError
from fakes import key_stores

LABEL = "hospital-a|vault|ct-2026"


class Token:
    """A SoftHSM token and what its owner does with it."""

    def __init__(self, folder: Path, module: Path) -> None:
        self.folder = folder
        self.module = module

    def config(self, key: str = "kek", **changes: Any) -> Pkcs11Keys:
        fields: dict[str, Any] = {"module": str(self.module), "token_label": "cordon", "key_label": key}
        return Pkcs11Keys(**(fields | {"pin": Secret(file="pin")} | changes))

    def create(self, key: str = "kek") -> None:
        create_pkcs11_kek(self.config(key), self.folder, {})

    def open(self, key: str = "kek", **changes: Any) -> KeyEncryption:
        return open_backend(self.config(key, **changes), self.folder, {})

    def session(self) -> pkcs11.Session:
        return pkcs11.lib(str(self.module)).get_token(token_label="cordon").open(rw=True, user_pin=key_stores.PIN)


@pytest.fixture
def token(tmp_path: Path) -> Iterator[Token]:
    with key_stores.soft_token(tmp_path) as module:
        yield Token(tmp_path, module)


def test_the_kek_is_made_in_the_token_and_cannot_be_read(token: Token) -> None:
    token.create()
    session = token.session()
    key = session.get_key(label="kek")
    assert key[Attribute.LOCAL] and key[Attribute.NEVER_EXTRACTABLE] and key[Attribute.ALWAYS_SENSITIVE]
    assert not key[Attribute.MODIFIABLE]
    assert not key[Attribute.WRAP] and not key[Attribute.DERIVE]
    with pytest.raises(pkcs11.AttributeSensitive):
        key[Attribute.VALUE]
    with pytest.raises(pkcs11.PKCS11Error):
        key[Attribute.EXTRACTABLE] = True
    session.close()


def test_the_token_encrypts_with_the_label_as_associated_data(token: Token) -> None:
    """Against a second implementation: the same key in software."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    session = token.session()
    key = session.create_object(
        {
            Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.VALUE: bytes(range(32)),
            Attribute.ENCRYPT: True,
            Attribute.TOKEN: False,
        }
    )
    nonce, aad = bytes(12), blob.associated_data(blob.PKCS11, LABEL)
    sealed = key.encrypt(b"key", mechanism=Mechanism.AES_GCM, mechanism_param=pkcs11.GCMParams(nonce, aad, 128))
    assert sealed == AESGCM(bytes(range(32))).encrypt(nonce, b"key", aad)
    session.close()


def test_an_existing_kek_is_never_overwritten(token: Token) -> None:
    token.create()
    kek = token.open()
    wrapped = kek.wrap(b"key", LABEL)
    with pytest.raises(ConfigError, match="exists"):
        token.create()
    assert kek.unwrap(wrapped, LABEL) == b"key"
    kek.close()


@pytest.mark.parametrize(
    "length, template, wanted",
    [
        (256, {Attribute.EXTRACTABLE: True}, "EXTRACTABLE is True, want False"),
        (256, {Attribute.SENSITIVE: False}, "SENSITIVE is False, want True"),
        (256, {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}, "ALWAYS_SENSITIVE is False"),
        (128, {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}, "VALUE_LEN is 16, want 32"),
    ],
)
def test_a_kek_that_could_be_copied_out_is_refused(
    token: Token, length: int, template: dict[Attribute, bool], wanted: str
) -> None:
    session = token.session()
    session.generate_key(
        KeyType.AES,
        length,
        label="kek",
        store=True,
        capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
        template={Attribute.EXTRACTABLE: False} | template,
    )
    session.close()
    with pytest.raises(ConfigError, match=wanted):
        token.open()


def test_a_kek_that_was_extractable_once_is_refused(token: Token) -> None:
    session = token.session()
    key = session.generate_key(KeyType.AES, 256, label="kek", store=True, template={Attribute.EXTRACTABLE: True})
    key[Attribute.EXTRACTABLE] = False
    session.close()
    with pytest.raises(ConfigError, match="NEVER_EXTRACTABLE is False"):
        token.open()


def test_a_kek_brought_in_from_outside_is_refused(token: Token) -> None:
    session = token.session()
    session.create_object(
        {
            Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.LABEL: "kek",
            Attribute.VALUE: bytes(32),
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.ENCRYPT: True,
            Attribute.DECRYPT: True,
        }
    )
    session.close()
    with pytest.raises(ConfigError, match="LOCAL is False"):
        token.open()


def test_two_keys_of_one_label_are_refused(token: Token) -> None:
    token.create()
    session = token.session()
    session.generate_key(KeyType.AES, 256, label="kek", store=True)
    session.close()
    with pytest.raises(ConfigError, match="several keys"):
        token.open()


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"module": "absent.so"}, "absent.so is not there"),
        ({"module": "pin"}, "cannot be used"),
        ({"token_label": "elsewhere"}, "token 'elsewhere': not found"),
        ({"key_label": "absent"}, "key 'absent' of token 'cordon': no such AES key"),
    ],
)
def test_what_is_missing_is_named(token: Token, changes: dict[str, str], wanted: str) -> None:
    token.create()
    with pytest.raises(ConfigError, match=wanted):
        token.open(**changes)


def test_a_wrong_pin_is_sent_once_and_not_told(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that tries again for each request would have the token locked by the third."""
    token.create()
    key_stores.private_file(token.folder / "wrong", "pin-that-is-wrong")
    with pytest.raises(ConfigError, match="PIN refused") as raised:
        token.open(pin=Secret(file="wrong"))
    assert "pin-that-is-wrong" not in key_stores.told(raised.value)

    pins = [b"pin-that-is-wrong", key_stores.PIN.encode()]
    sent: list[bytes] = []

    def read_pin() -> bytes:
        sent.append(pins[-1])
        return pins.pop()

    kek = Pkcs11Kek(token.module, "cordon", "kek", read_pin)
    wrapped = kek.wrap(b"key", LABEL)
    kek._session.close()  # type: ignore[union-attr]
    for wanted in ("PIN refused", "none is sent again", "none is sent again"):
        with pytest.raises(ConfigError, match=wanted):
            kek.unwrap(wrapped, LABEL)
    assert len(sent) == 2
    kek.close()


def test_a_lost_session_is_opened_anew(token: Token) -> None:
    token.create()
    kek = token.open()
    wrapped = kek.wrap(b"key", LABEL)
    for _ in range(3):
        kek._session.close()  # type: ignore[attr-defined]
        assert kek.unwrap(wrapped, LABEL) == b"key"
    kek._session.close()  # type: ignore[attr-defined]
    with pytest.raises(SealError):
        kek.unwrap(wrapped, "another label")
    kek.close()


def test_a_token_that_is_pulled_out_is_named_and_found_again(token: Token) -> None:
    token.create()
    kek = token.open()
    wrapped = kek.wrap(b"key", LABEL)
    tokens = token.folder / "tokens"
    shutil.move(tokens, token.folder / "drawer")
    for _ in range(3):
        with pytest.raises(ConfigError, match="'cordon'"):
            kek.unwrap(wrapped, LABEL)
        with pytest.raises(ConfigError, match="'cordon'"):
            kek.wrap(b"key", LABEL)
    shutil.move(token.folder / "drawer", tokens)
    restarted = reopened(token)
    assert restarted.unwrap(wrapped, LABEL) == b"key"
    restarted.close()


def reopened(token: Token) -> KeyEncryption:
    """As after a restart of the broker."""
    pkcs11.lib(str(token.module)).finalize()
    return token.open()


def test_restoring_the_token_is_all_it_takes(token: Token) -> None:
    """Backup and restore as README.md says for SoftHSM: its token folder and the PIN."""
    token.create()
    kek = token.open()
    wrapped = kek.wrap(b"key", LABEL)
    kek.close()
    shutil.copytree(token.folder / "tokens", token.folder / "backup")
    shutil.rmtree(token.folder / "tokens")
    shutil.move(token.folder / "backup", token.folder / "tokens")
    restored = reopened(token)
    assert restored.unwrap(wrapped, LABEL) == b"key"
    restored.close()


def test_a_key_moves_from_a_file_into_the_token(token: Token) -> None:
    from cordon.broker.keys import create_file_kek
    from cordon.broker.keys.encrypted_file import FileKek

    token.create()
    create_file_kek(token.folder / "kek", b"a passphrase for tests", log2_n=14)
    old, new = FileKek(token.folder / "kek", b"a passphrase for tests"), token.open()
    moved = rewrap(old, new, old.wrap(b"key", LABEL), LABEL)
    assert moved[1] == blob.PKCS11
    assert new.unwrap(moved, LABEL) == b"key"
    new.close()


def test_the_token_is_asked_one_thing_at_a_time(token: Token) -> None:
    """A session has one operation; a module need not bear two (SoftHSM is too quick to show it)."""

    class Slow:
        def __init__(self, key: Any) -> None:
            self.key = key
            self.inside = 0
            self.most = 0

        def encrypt(self, data: bytes, **arguments: Any) -> bytes:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.01)
            self.inside -= 1
            return bytes(self.key.encrypt(data, **arguments))

    token.create()
    kek = token.open()
    slow = kek._key = Slow(kek._key)  # type: ignore[attr-defined]
    threads = [threading.Thread(target=kek.wrap, args=(b"key", LABEL)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert slow.most == 1
    kek.close()
