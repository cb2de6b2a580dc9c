"""Key files of the release right: there and back, and nothing else is taken for one."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cordon import release_key
from cordon.errors import ConfigError
from cordon.sealing import KemKey

KEY = KemKey.generate()
PRIVATE, PUBLIC = release_key.encode_private(KEY), release_key.encode_public(KEY.public_bytes)


@pytest.mark.parametrize("text", [PRIVATE, PRIVATE.replace(b"\n", b"\r\n"), PRIVATE + b"\n\n", PRIVATE.strip()])
def test_a_private_key_there_and_back(text):
    again = release_key.decode_private(text)
    assert (again.secret, again.public_bytes) == (KEY.secret, KEY.public_bytes)


def test_a_public_key_there_and_back():
    assert release_key.decode_public(PUBLIC) == KEY.public_bytes
    assert len(PUBLIC.splitlines()) == 1


def test_the_private_file_says_what_it_is():
    assert PRIVATE.startswith(b"-----BEGIN CORDON RELEASE PRIVATE KEY-----\n")
    assert max(map(len, PRIVATE.splitlines())) < 80


def test_the_halves_are_not_taken_for_one_another():
    with pytest.raises(ConfigError, match="this is a private release key"):
        release_key.decode_public(PRIVATE)
    with pytest.raises(ConfigError, match="not a private release key"):
        release_key.decode_private(PUBLIC)


@given(data=st.binary(max_size=300))
@example(data=PRIVATE[:-5])
@example(data=PRIVATE.replace(PRIVATE.splitlines()[1], b"%" * 64))
@example(data=PRIVATE.replace(PRIVATE.splitlines()[1] + b"\n", b""))
@example(data=b"\n".join([PRIVATE.splitlines()[0], PRIVATE.splitlines()[-1]]))
@example(data=PRIVATE.splitlines()[0])
@example(data=PRIVATE + bytes(5000))
@example(data=PUBLIC[:-9])
@example(data=b"\xff" * 100)
@settings(max_examples=60, deadline=None)
def test_what_is_no_key_is_a_config_error_that_quotes_nothing(data):
    for decode in (release_key.decode_private, release_key.decode_public):
        with pytest.raises(ConfigError) as caught:
            decode(data)
        for line in PRIVATE.splitlines()[1:-1]:
            assert line.decode() not in str(caught.value)
