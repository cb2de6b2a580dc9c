"""Keys of a cohort: standard vectors, both sides alike, and another key for whatever differs."""

from __future__ import annotations

import itertools
import secrets

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from cordon.errors import ConfigError, ProtocolAbort
from cordon.secagg import keys, masking, wire
from cordon.signing import lp

# RFC 7748, section 6.1
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

# Points of low order, in all encodings below 2^255: the list of https://cr.yp.to/ecdh.html#validate.
P = 2**255 - 19
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (P - 1).to_bytes(32, "little"),
    P.to_bytes(32, "little"),
    (P + 1).to_bytes(32, "little"),
]

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=12)
CTX = "ab" * 32


def test_the_public_key_and_what_two_agree_on_are_those_of_rfc_7748() -> None:
    bob = keys.pair_of(BOB)
    assert bob.public == BOB_PUBLIC
    assert keys._exchange(bob.private, ALICE_PUBLIC) == SHARED


def test_the_derivation_is_hkdf_sha256_as_in_rfc_5869_test_case_3() -> None:
    """Zero-length salt and info, L = 42: the function that keys are derived with."""
    okm = HKDF(algorithm=SHA256(), length=42, salt=None, info=b"").derive(b"\x0b" * 22)
    assert okm.hex() == ("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")
    assert keys._derive(b"\x0b" * 22, 42) == okm


def test_the_derivations_are_those_of_the_table() -> None:
    one, two = keys.pair(secrets.token_bytes), keys.pair(secrets.token_bytes)
    shared = one.private.exchange(two.private.public_key())

    def derived(ikm: bytes, length: int, *parts: str) -> bytes:
        info = b"".join(lp(part.encode()) for part in parts)
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(ikm)

    assert keys.agree(one.private, two.public, "x/v1", CTX, "b", "a") == derived(shared, 32, "x/v1", CTX, "b", "a")
    assert keys.mask_key(one.private, two.public, CTX, "b", "a") == derived(
        shared, 16, "cordon/secagg/pair-mask/v1", CTX, "a", "b"
    )
    assert keys.self_mask_key(b"s" * 32, CTX, "a") == derived(b"s" * 32, 16, "cordon/secagg/self-mask/v1", CTX, "a")


@given(NAMES, NAMES, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_both_sides_get_the_same_keys(own: str, peer: str, one_secret: bytes, two_secret: bytes) -> None:
    one, two = keys.pair_of(one_secret), keys.pair_of(two_secret)
    args = ("share", CTX, own, peer)
    assert keys.agree(one.private, two.public, *args) == keys.agree(two.private, one.public, *args)
    if own != peer:
        mine = keys.mask_key(one.private, two.public, CTX, own, peer)
        assert mine == keys.mask_key(two.private, one.public, CTX, peer, own)
        assert len(mine) == masking.KEY_BYTES


def test_whatever_differs_gives_another_key() -> None:
    pairs = [keys.pair(secrets.token_bytes) for _ in range(3)]
    found = []
    for one, two in itertools.combinations(pairs, 2):
        for ctx, (i, j) in itertools.product((CTX, "cd" * 32), (("a", "b"), ("a", "c"), ("ab", "c"), ("a", "bc"))):
            found.append(keys.mask_key(one.private, two.public, ctx, i, j))
            for label in ("share", "other"):
                found += [keys.agree(one.private, two.public, label, ctx, *names)[:16] for names in ((i, j), (j, i))]
    for seed, ctx, name in itertools.product((b"s" * 32, b"t" * 32), (CTX, "cd" * 32), ("a", "b")):
        found.append(keys.self_mask_key(seed, ctx, name))
    assert len(set(found)) == len(found)


def test_every_pair_of_every_cohort_has_a_mask_key_of_its_own() -> None:
    sites = {f"site-{number}": keys.pair(secrets.token_bytes) for number in range(8)}
    seen = {
        keys.mask_key(sites[i].private, sites[j].public, ctx, i, j)
        for i, j in itertools.combinations(sites, 2)
        for ctx in ("01" * 32, "02" * 32)  # even if a site should use its keys twice
    }
    assert len(seen) == 8 * 7 // 2 * 2


def test_a_secret_put_together_from_shares_is_the_owners_pair() -> None:
    own, peer = keys.pair(secrets.token_bytes), keys.pair(secrets.token_bytes)
    again = keys.pair_of(own.secret)
    assert again.public == own.public
    assert keys.mask_key(again.private, peer.public, CTX, "a", "b") == keys.mask_key(
        peer.private, own.public, CTX, "b", "a"
    )


@pytest.mark.parametrize("public", LOW_ORDER, ids=lambda public: public.hex()[:8])
def test_a_public_key_of_low_order_is_refused(public: bytes) -> None:
    own = keys.pair(secrets.token_bytes)
    for flipped in (public, public[:31] + bytes([public[31] | 0x80])):  # X25519 ignores the highest bit
        with pytest.raises(ProtocolAbort, match="low order"):
            keys.check_public(flipped)
        with pytest.raises(ProtocolAbort, match="low order"):
            keys.agree(own.private, flipped, "share", CTX, "a", "b")
        with pytest.raises(ProtocolAbort, match="low order"):
            keys.mask_key(own.private, flipped, CTX, "a", "b")


@given(st.binary(max_size=40))
def test_whatever_comes_as_a_public_key_is_a_key_or_the_abort(public: bytes) -> None:
    try:
        keys.check_public(public)
        assert len(public) == wire.KEY_BYTES
    except ProtocolAbort as error:
        assert error.code == "bad_message"


def test_secrets_of_other_sizes_and_a_pair_of_one_are_refused() -> None:
    for size in (0, 16, 31, 33):
        with pytest.raises(ConfigError, match="32 bytes"):
            keys.pair_of(bytes(size))
        with pytest.raises(ConfigError, match="32 bytes"):
            keys.self_mask_key(bytes(size), CTX, "a")
    own = keys.pair(secrets.token_bytes)
    with pytest.raises(ConfigError, match="itself"):
        keys.mask_key(own.private, own.public, CTX, "a", "a")


def test_a_pair_shows_nothing_of_its_secret() -> None:
    own = keys.pair(secrets.token_bytes)
    assert own.secret.hex() not in repr(own)
    assert repr(own.secret) not in repr(own)
    assert repr(own) == f"Pair(public={own.public!r})"
