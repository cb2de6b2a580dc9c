"""Sealing: what is bound must be known, and nothing else opens."""

import pytest
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.errors import ConfigError, SealError
from cordon.sealing import (
    KEM_BYTES,
    KEM_SECRET_BYTES,
    OVERHEAD,
    KemKey,
    decode_kem_key,
    open_sealed,
    seal,
)
from cordon.signing import lp

KEY, OTHER = KemKey.generate(), KemKey.generate()
PUBLIC = decode_kem_key(KEY.public_bytes)


@given(plaintext=st.binary(max_size=300), bound=st.lists(st.binary(max_size=20), max_size=3))
@settings(max_examples=25, deadline=None)
def test_what_is_sealed_opens_to_the_same(plaintext, bound):
    sealed = seal(plaintext, PUBLIC, "cordon/test/v1", *bound)
    assert len(sealed) == len(plaintext) + OVERHEAD
    assert open_sealed(sealed, KEY.private, "cordon/test/v1", *bound) == plaintext


def test_it_is_hpke_with_the_context_in_info():
    """As RFC 9180 section 8.1 wants it of single-shot applications; opened here without this package."""
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    sealed = seal(b"model", PUBLIC, "cordon/test/v1", b"a", b"bc")
    info = lp(b"cordon/test/v1") + lp(b"a") + lp(b"bc")
    assert suite.decrypt(sealed, KEY.private, info=info) == b"model"


@pytest.mark.parametrize(
    ("purpose", "bound"),
    [
        ("cordon/test/v2", (b"a", b"bc")),
        ("cordon/test/v1", (b"ab", b"c")),
        ("cordon/test/v1", (b"a",)),
        ("cordon/test/v1", (b"a", b"bc", b"")),
        ("cordon/test/v1", (b"bc", b"a")),
        ("cordon/test/v1", ()),
    ],
)
def test_another_purpose_or_another_list_of_parts_does_not_open(purpose, bound):
    sealed = seal(b"model", PUBLIC, "cordon/test/v1", b"a", b"bc")
    with pytest.raises(SealError, match="does not open"):
        open_sealed(sealed, KEY.private, purpose, *bound)


def test_another_key_does_not_open():
    with pytest.raises(SealError, match="does not open"):
        open_sealed(seal(b"model", PUBLIC, "p"), OTHER.private, "p")


def test_no_byte_may_change_and_none_may_be_missing():
    sealed = seal(b"model", PUBLIC, "p")
    for at in range(0, len(sealed), 7):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(SealError):
            open_sealed(changed, KEY.private, "p")
    for length in (0, 1, OVERHEAD - 1, OVERHEAD, len(sealed) - 1):
        with pytest.raises(SealError):
            open_sealed(sealed[:length], KEY.private, "p")


def test_a_key_goes_through_its_secret_and_its_public_bytes():
    assert (len(KEY.secret), len(KEY.public_bytes)) == (KEM_SECRET_BYTES, KEM_BYTES)
    again = KemKey.from_secret(KEY.secret)
    assert again.public_bytes == KEY.public_bytes
    assert open_sealed(seal(b"x", PUBLIC, "p"), again.private, "p") == b"x"
    for wrong in (b"", KEY.secret[:-1], KEY.secret + b"x"):
        with pytest.raises(ConfigError, match="private key has"):
            KemKey.from_secret(wrong)
    with pytest.raises(ConfigError, match="KEM key has"):
        decode_kem_key(KEY.public_bytes[:-1])
    with pytest.raises(ConfigError, match="not an ML-KEM"):
        decode_kem_key(b"\xff" * KEM_BYTES)


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")])
def test_a_point_of_low_order_is_no_key(point):
    """OpenSSL would take it, and fail only when something is sealed to it (RFC 7748, section 6.1)."""
    with pytest.raises(ConfigError, match="not an ML-KEM"):
        decode_kem_key(KEY.public_bytes[:-32] + point)


def test_a_key_does_not_show_itself():
    assert KEY.secret.hex() not in repr(KEY)
    assert "secret" not in repr(KEY)
    assert "private" not in repr(KEY)
