"""What every key store does alike: one class, run against each of them.

``transit`` runs against a small server of our own, which answers as Vault's public API documentation says; that shows
what is asked and how answers are taken, and nothing about Vault. ``openbao`` runs against the real program.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cordon.broker.keys import (
    FileKeys,
    KeyBackend,
    KeyEncryption,
    Pkcs11Keys,
    Secret,
    VaultTransit,
    create_file_kek,
    open_backend,
    rewrap,
)
from cordon.broker.keys import wrapped as blob
from cordon.broker.keys.hsm import create_pkcs11_kek
from cordon.errors import ConfigError, SealError
from fakes import key_stores

LABEL = "hospital-a|vault|ct-2026"
KEY = bytes(range(32))


@dataclass
class Store:
    """Two KEKs of one kind of backend, and a way to open them again."""

    folder: Path
    configs: tuple[KeyBackend, KeyBackend]

    def open(self, index: int = 0) -> KeyEncryption:
        return open_backend(self.configs[index], self.folder, {})


def _file(folder: Path) -> Iterator[Store]:
    key_stores.private_file(folder / "passphrase", "a passphrase for tests")
    for name in ("kek", "other"):
        create_file_kek(folder / name, b"a passphrase for tests", log2_n=14)
    passphrase = Secret(file="passphrase")
    yield Store(folder, (FileKeys(path="kek", passphrase=passphrase), FileKeys(path="other", passphrase=passphrase)))


def _pkcs11(folder: Path) -> Iterator[Store]:
    with key_stores.soft_token(folder) as module:

        def config(name: str) -> Pkcs11Keys:
            return Pkcs11Keys(module=str(module), token_label="cordon", key_label=name, pin=Secret(file="pin"))

        for name in ("kek", "other"):
            create_pkcs11_kek(config(name), folder, {})
        yield Store(folder, (config("kek"), config("other")))


def _transit_configs(url: str) -> tuple[VaultTransit, VaultTransit]:
    def config(name: str) -> VaultTransit:
        return VaultTransit(url=url, key_name=name, token=Secret(file="token"), ca="ca.pem")

    return config("kek"), config("other")


def _transit(folder: Path) -> Iterator[Store]:
    with key_stores.transit_server(folder) as server:
        server.keys = {"kek": [secrets.token_bytes(32)], "other": [secrets.token_bytes(32)]}
        yield Store(folder, _transit_configs(server.url))


def _openbao(folder: Path) -> Iterator[Store]:
    with key_stores.openbao(folder) as bao:
        yield Store(folder, _transit_configs(bao.url))


MAKERS: dict[str, Callable[[Path], Iterator[Store]]] = {
    "file": _file,
    "pkcs11": _pkcs11,
    "transit": _transit,
    "openbao": _openbao,
}


@pytest.fixture(scope="module", params=list(MAKERS))
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def kek(store: Store) -> Iterator[KeyEncryption]:
    opened = store.open()
    yield opened
    opened.close()


class TestKeyEncryption:
    @pytest.mark.parametrize("size", [1, 16, 32, 96, blob.MAX_KEY_BYTES])
    def test_a_key_comes_back(self, kek: KeyEncryption, size: int) -> None:
        key = secrets.token_bytes(size)
        wrapped = kek.wrap(key, LABEL)
        assert len(wrapped) == size + blob.OVERHEAD
        assert kek.unwrap(wrapped, LABEL) == key

    def test_a_key_comes_back_after_a_restart(self, store: Store, kek: KeyEncryption) -> None:
        wrapped = kek.wrap(KEY, LABEL)
        again = store.open()
        try:
            assert again.unwrap(wrapped, LABEL) == KEY
        finally:
            again.close()
        assert kek.unwrap(wrapped, LABEL) == KEY  # the first is not disturbed by the end of the second

    @pytest.mark.parametrize("label", ["hospital-b|vault|ct-2026", LABEL + " ", LABEL[:-1], "é" * 512])
    def test_a_key_moved_to_another_row_does_not_open(self, kek: KeyEncryption, label: str) -> None:
        with pytest.raises(SealError, match="does not open"):
            kek.unwrap(kek.wrap(KEY, LABEL), label)

    def test_a_key_changed_at_any_byte_does_not_open(self, kek: KeyEncryption) -> None:
        wrapped = kek.wrap(KEY, LABEL)
        for position in range(len(wrapped)):
            for change in (0x01, 0x80):
                changed = bytearray(wrapped)
                changed[position] ^= change
                with pytest.raises(SealError):
                    kek.unwrap(bytes(changed), LABEL)
        assert kek.unwrap(wrapped, LABEL) == KEY

    def test_a_key_cut_or_with_bytes_added_does_not_open(self, kek: KeyEncryption) -> None:
        wrapped = kek.wrap(KEY, LABEL)
        cut = [wrapped[:size] for size in (0, 1, 6, 18, 33, 34, 35, len(wrapped) - 1)]
        for changed in (*cut, wrapped + b"\0", wrapped * 2, wrapped + bytes(blob.MAX_KEY_BYTES), bytes(10**6)):
            with pytest.raises(SealError):
                kek.unwrap(changed, LABEL)

    def test_a_key_of_another_kek_does_not_open(self, store: Store, kek: KeyEncryption) -> None:
        other = store.open(1)
        try:
            wrapped = other.wrap(KEY, LABEL)
            with pytest.raises(SealError, match="does not open"):
                kek.unwrap(wrapped, LABEL)
            assert other.unwrap(wrapped, LABEL) == KEY
        finally:
            other.close()

    @pytest.mark.parametrize("key", [b"", bytes(blob.MAX_KEY_BYTES + 1)], ids=["empty", "over-long"])
    def test_a_key_of_no_allowed_size_is_refused(self, kek: KeyEncryption, key: bytes) -> None:
        with pytest.raises(ConfigError, match="1 to 4096 bytes"):
            kek.wrap(key, LABEL)

    @pytest.mark.parametrize("label", ["", "é" * 513, "\ud800"], ids=["empty", "over-long", "lone surrogate"])
    def test_a_label_of_no_allowed_form_is_refused(self, kek: KeyEncryption, label: str) -> None:
        with pytest.raises(ConfigError, match="label"):
            kek.wrap(KEY, label)

    def test_the_same_key_is_never_wrapped_to_the_same_bytes(self, kek: KeyEncryption) -> None:
        nonces = {kek.wrap(KEY, LABEL)[blob.HEADER_BYTES :][: blob.NONCE_BYTES] for _ in range(20)}
        assert len(nonces) == 20

    def test_many_threads_at_once(self, kek: KeyEncryption) -> None:
        failures: list[BaseException] = []
        start = threading.Barrier(8)

        def work(number: int) -> None:
            try:
                start.wait(10)
                for turn in range(10):
                    key = secrets.token_bytes(32)
                    wrapped = kek.wrap(key, f"thread {number}")
                    assert kek.unwrap(wrapped, f"thread {number}") == key
                    if turn % 3 == 0:  # failures between, so that one thread's error is not another's
                        with pytest.raises(SealError):
                            kek.unwrap(wrapped, "other")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []

    def test_a_key_moves_to_a_new_kek_and_leaves_the_old_one(self, store: Store, kek: KeyEncryption) -> None:
        new = store.open(1)
        try:
            wrapped = kek.wrap(KEY, LABEL)
            moved = rewrap(kek, new, wrapped, LABEL)
            assert new.unwrap(moved, LABEL) == KEY
            assert kek.unwrap(wrapped, LABEL) == KEY, "a crash after rewrap loses nothing"
            with pytest.raises(SealError):
                kek.unwrap(moved, LABEL)
            with pytest.raises(SealError):
                rewrap(kek, new, wrapped, "another label")
        finally:
            new.close()

    def test_nothing_is_answered_after_close(self, store: Store, kek: KeyEncryption) -> None:
        closed = store.open()
        wrapped = closed.wrap(KEY, LABEL)
        closed.close()
        closed.close()
        with pytest.raises(ConfigError, match="closed"):
            closed.wrap(KEY, LABEL)
        with pytest.raises(ConfigError, match="closed"):
            closed.unwrap(wrapped, LABEL)
        assert kek.unwrap(wrapped, LABEL) == KEY

    def test_no_secret_in_repr_and_messages(self, store: Store, kek: KeyEncryption) -> None:
        secret = {
            path.read_text().strip() for path in store.folder.iterdir() if path.name in ("passphrase", "pin", "token")
        }
        assert secret
        told = [repr(kek), str(kek), kek.name, repr(store.configs)]
        for wrong in (b"", bytes(50), kek.wrap(KEY, "elsewhere")):
            with pytest.raises(SealError) as raised:
                kek.unwrap(wrong, LABEL)
            told.append(key_stores.told(raised.value))
        for each in told:
            assert not [value for value in (*secret, KEY.hex(), repr(KEY)) if value in each]
