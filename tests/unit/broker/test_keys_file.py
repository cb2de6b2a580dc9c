"""The key store in an encrypted file: its bytes, its bounds, and who may read it."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from cordon.broker.keys import FileKeys, Secret, create_file_kek, open_backend
from cordon.broker.keys import encrypted_file as file
from cordon.broker.keys import wrapped as blob
from cordon.broker.keys.encrypted_file import FileKek
from cordon.errors import ConfigError, SealError
from fakes import key_stores
from fakes.key_stores import private_file

PASSPHRASE = b"a passphrase for tests"


def counting(size: int, start: int = 0) -> bytes:
    return bytes((start + index) % 256 for index in range(size))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "kek"
    create_file_kek(path, PASSPHRASE, log2_n=14)
    return path


# -- bytes ----------------------------------------------------------------------------------------------------------


def test_the_worked_example_of_the_readme(tmp_path: Path) -> None:
    """With counting bytes for randomness; scrypt a second time by hashlib."""
    readme = (Path(file.__file__).parent / "README.md").read_text()
    path = tmp_path / "kek"
    create_file_kek(path, PASSPHRASE, log2_n=14, random=counting)
    data = path.read_bytes()
    assert data[:28].hex() == "434f52444b454b310e080100" + counting(16).hex()
    assert data[28:40] == counting(12)
    assert f"{data[40:].hex()}" in readme
    key = hashlib.scrypt(PASSPHRASE, salt=counting(16), n=1 << 14, r=8, p=1, dklen=32)
    assert AESGCM(key).decrypt(data[28:40], data[40:], data[:28]) == counting(32)
    kek = FileKek(path, PASSPHRASE, counting)
    wrapped = kek.wrap(bytes(32), "hospital-a|vault|ct-2026")
    assert wrapped[:18].hex() == "010100000000" + counting(12).hex()
    assert wrapped[18:].hex() in readme
    label = b"hospital-a|vault|ct-2026"
    aad = b"\0\0\0\x15cordon/wrapped-key/v1" + b"\0\0\0\x01\x01" + len(label).to_bytes(4, "big") + label
    assert AESGCM(counting(32)).decrypt(wrapped[6:18], wrapped[18:], aad) == bytes(32)


def test_the_libraries_of_other_key_stores_are_not_loaded() -> None:
    code = "import sys, cordon.broker.keys; print({'pkcs11', 'hvac', 'requests'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_byte_changed_anywhere_in_the_file_and_it_does_not_open(path: Path) -> None:
    data = path.read_bytes()
    assert len(data) == file.FILE_BYTES == 88
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x04
        path.write_bytes(changed)
        with pytest.raises(ConfigError):
            FileKek(path, PASSPHRASE)
    path.write_bytes(data)
    FileKek(path, PASSPHRASE)


@pytest.mark.parametrize("data", [b"", b"CORDKEK1", bytes(88), bytes(10**6)])
def test_what_is_no_kek_file_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        FileKek(path, PASSPHRASE)


@pytest.mark.parametrize(
    "log2_n, r, p", [(63, 8, 1), (19, 8, 1), (13, 8, 1), (0, 8, 1), (17, 255, 1), (17, 8, 255), (17, 8, 0)]
)
def test_a_hostile_file_cannot_ask_for_memory_or_time(
    path: Path, log2_n: int, r: int, p: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(path.read_bytes())
    data[8:11] = bytes([log2_n, r, p])
    path.write_bytes(data)
    monkeypatch.setattr(file, "Scrypt", lambda **_: pytest.fail("was computed"))
    with pytest.raises(ConfigError, match="out of bounds"):
        FileKek(path, PASSPHRASE)


@given(data=st.binary(max_size=200), backend=st.sampled_from([blob.FILE, blob.PKCS11, blob.TRANSIT]))
def test_decoding_any_bytes_raises_nothing_else_than_seal_error(data: bytes, backend: int) -> None:
    for each in (data, bytes([1, backend, 0, 0, 0, backend == blob.TRANSIT]) + data):
        try:
            decoded = blob.Wrapped.decode(each, backend)
        except SealError:
            continue
        assert decoded.encode() == each


def test_a_key_wrapped_by_another_backend_is_named_so(path: Path) -> None:
    kek = FileKek(path, PASSPHRASE)
    wrapped = bytearray(kek.wrap(bytes(32), "label"))
    wrapped[1] = blob.PKCS11
    with pytest.raises(SealError, match="wrapped by backend pkcs11, the one configured is file"):
        kek.unwrap(bytes(wrapped), "label")


# -- making one -----------------------------------------------------------------------------------------------------


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["kek"]


def test_an_existing_kek_is_never_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        create_file_kek(path, PASSPHRASE, log2_n=14)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["kek"]


def test_a_link_laid_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "kek.part").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "kek2").symlink_to(tmp_path / "elsewhere")
    for name in ("kek", "kek2"):
        with pytest.raises(ConfigError, match="exists"):
            create_file_kek(tmp_path / name, PASSPHRASE, log2_n=14)
    assert not (tmp_path / "elsewhere").exists()


def test_of_two_that_make_it_at_once_one_wins(tmp_path: Path) -> None:
    results: list[str] = []

    def make() -> None:
        try:
            create_file_kek(tmp_path / "kek", PASSPHRASE, log2_n=14)
            results.append("made")
        except ConfigError:
            results.append("refused")

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["made", "refused", "refused", "refused"]
    FileKek(tmp_path / "kek", PASSPHRASE)


def test_a_short_passphrase_is_refused_without_being_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="11 bytes, want 16") as raised:
        create_file_kek(tmp_path / "kek", b"hospital123", log2_n=14)
    assert "hospital123" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        create_file_kek(tmp_path / "absent" / "kek", PASSPHRASE, log2_n=14)


# -- passphrase -----------------------------------------------------------------------------------------------------


def config(**passphrase: str) -> FileKeys:
    return FileKeys(path="kek", passphrase=Secret(**passphrase))


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_the_passphrase_comes_from_a_file(path: Path, ending: str) -> None:
    private_file(path.parent / "secret", PASSPHRASE.decode() + ending)
    open_backend(config(file="secret"), path.parent, {}).close()


def test_the_passphrase_comes_from_the_environment(path: Path) -> None:
    open_backend(config(env="KEK_SECRET"), path.parent, {"KEK_SECRET": PASSPHRASE.decode()}).close()
    with pytest.raises(ConfigError, match="environment variable KEK_SECRET is not set"):
        open_backend(config(env="KEK_SECRET"), path.parent, {})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o444, 0o610])
@pytest.mark.parametrize("name", ["kek", "secret"])
def test_a_file_that_others_may_use_is_refused(path: Path, name: str, mode: int) -> None:
    private_file(path.parent / "secret", PASSPHRASE.decode())
    (path.parent / name).chmod(mode)
    with pytest.raises(ConfigError, match=f"{name} is open to group or others .* `chmod 600` it"):
        open_backend(config(file="secret"), path.parent, {})


def test_a_link_to_a_mounted_secret_is_followed_to_its_mode(path: Path) -> None:
    target = private_file(path.parent / "mounted", PASSPHRASE.decode())
    (path.parent / "secret").symlink_to(target)
    open_backend(config(file="secret"), path.parent, {}).close()
    target.chmod(0o644)
    with pytest.raises(ConfigError, match="open to group or others"):
        open_backend(config(file="secret"), path.parent, {})


@pytest.mark.parametrize("text", ["", "\n", "x" * 1025, "x" * 10**6])
def test_an_empty_or_endless_secret_is_refused(path: Path, text: str) -> None:
    private_file(path.parent / "secret", text)
    with pytest.raises(ConfigError, match=r"secret (has|is larger)"):
        open_backend(config(file="secret"), path.parent, {})


def test_what_is_no_file_is_refused_and_does_not_block(path: Path) -> None:
    os.mkfifo(path.parent / "pipe", 0o600)
    for name in ("pipe", ".", "absent", "a\0b"):
        with pytest.raises(ConfigError, match="passphrase"):
            open_backend(config(file=name), path.parent, {})


def test_another_passphrase_does_not_open_and_is_not_told(path: Path) -> None:
    private_file(path.parent / "secret", "another passphrase, quite wrong")
    with pytest.raises(ConfigError, match="another passphrase, or the file was changed") as raised:
        open_backend(config(file="secret"), path.parent, {})
    assert "quite wrong" not in key_stores.told(raised.value)


@pytest.mark.parametrize("fields", [{}, {"file": "a", "env": "B"}, {"env": "A B"}, {"env": ""}, {"file": ""}])
def test_a_secret_names_one_source(fields: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, Secret)


def test_restoring_the_kek_file_and_the_passphrase_is_all_it_takes(
    path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Backup and restore as README.md says, on another machine's disk."""
    wrapped = FileKek(path, PASSPHRASE).wrap(b"vault key", "label")
    elsewhere = tmp_path_factory.mktemp("restored") / "kek"
    shutil.copy(path, elsewhere)
    assert FileKek(elsewhere, PASSPHRASE).unwrap(wrapped, "label") == b"vault key"
