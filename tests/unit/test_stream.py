"""STREAM: any length, there and back; nothing may be changed, moved, missing or added."""

import io

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon import stream
from cordon.errors import ConfigError, SealError

KEY = bytes(range(32))
SIZE = 64
SEALED = SIZE + stream.TAG_BYTES


def _encrypt(data, size=SIZE):
    return b"".join(stream.encrypt(KEY, io.BytesIO(data), size))


def _decrypt(data, key=KEY, size=SIZE):
    return b"".join(stream.decrypt(key, io.BytesIO(data), size))


@pytest.mark.parametrize("length", [0, 1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 3 * SIZE + 5])
def test_there_and_back(length):
    data = bytes(each % 251 for each in range(length))
    sealed = _encrypt(data)
    assert len(sealed) == length + stream.TAG_BYTES * max(1, -(-length // SIZE))
    assert _decrypt(sealed) == data


def test_it_is_what_the_description_says():
    """Written out by hand: two full chunks and a short one."""
    data = bytes(2 * SIZE + 3)
    cipher = AESGCM(KEY)
    wanted = cipher.encrypt(bytes(12), data[:SIZE], None)
    wanted += cipher.encrypt(bytes(10) + b"\x01\x00", data[:SIZE], None)
    wanted += cipher.encrypt(bytes(10) + b"\x02\x01", data[:3], None)
    assert _encrypt(data) == wanted


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:SEALED],
        lambda data: data[: 2 * SEALED],
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data[SEALED:],
        lambda data: data[SEALED : 2 * SEALED] + data[:SEALED] + data[2 * SEALED :],
        lambda data: data[:SEALED] + data,
        lambda data: data + b"\x00",
        lambda data: data + data[-19:],
        lambda data: data[: 2 * SEALED] + AESGCM(KEY).encrypt(stream.nonce(2, True), b"", None),
    ],
    ids=[
        *("one chunk", "no end", "one byte", "no tag", "nothing", "no first", "swapped", "twice", "more", "end twice"),
        "an empty last chunk",
    ],
)
def test_a_changed_stream_does_not_open(change):
    sealed = _encrypt(bytes(range(2 * SIZE + 3)))
    with pytest.raises(SealError):
        _decrypt(change(sealed))


def test_every_byte_counts():
    sealed = _encrypt(bytes(SIZE + 2))
    for at in range(len(sealed)):
        with pytest.raises(SealError):
            _decrypt(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
    with pytest.raises(SealError):
        _decrypt(sealed, bytes(32))


@given(data=st.binary(max_size=400))
@settings(max_examples=50, deadline=None)
def test_strangers_bytes_do_not_open(data):
    with pytest.raises(SealError):
        _decrypt(data)


class _Trickle(io.BytesIO):
    """A pipe: gives less than asked."""

    def read(self, size=-1):
        return super().read(min(size, 7))


def test_a_source_may_give_less_at_a_time():
    data = bytes(range(200))
    assert b"".join(stream.encrypt(KEY, _Trickle(data), SIZE)) == _encrypt(data)
    assert b"".join(stream.decrypt(KEY, _Trickle(_encrypt(data)), SIZE)) == data


def test_a_disk_error_is_named():
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    for run in (stream.encrypt, stream.decrypt):
        with pytest.raises(ConfigError, match="Input/output error"):
            list(run(KEY, Broken(), SIZE))
