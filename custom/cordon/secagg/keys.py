"""Keys of one cohort: X25519 (RFC 7748) between two sites, HKDF-SHA256 (RFC 5869) for every use of what they agree on.

Every derived key is ``HKDF-SHA256(salt = none, ikm, info = lp(label) || lp(ctx) || lp(name) ..., length)``, with lp of
``cordon.signing`` and ctx the hex digest of all that the cohort agreed on, the X25519 keys of its tickets among it:

=================  ===========================  ===========  =========================  ======
function           label                        ikm          names                      length
=================  ===========================  ===========  =========================  ======
``agree``          the caller's                 X25519       i, j as given              32
``mask_key``       cordon/secagg/pair-mask/v1   X25519       both, the lesser first     16
``self_mask_key``  cordon/secagg/self-mask/v1   seed         the site                   16
=================  ===========================  ===========  =========================  ======

So a key is of one pair (in ``agree`` of one direction), one cohort and one use: where two sites hold different views of
any of it they get unrelated keys. A public key of low order would make the shared secret known to everyone (it is all
zero: RFC 7748, section 6.1) and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cordon.errors import ConfigError, ProtocolAbort
from cordon.secagg import masking
from cordon.signing import lp

KEY_BYTES = 32  # X25519 public and private, what ``agree`` gives, and the seed of a self mask

_PAIR_MASK = "cordon/secagg/pair-mask/v1"
_SELF_MASK = "cordon/secagg/self-mask/v1"


@dataclass(frozen=True)
class Pair:
    """An X25519 key pair of one cohort. ``secret``: the private key's 32 bytes, which are shared among the others."""

    private: X25519PrivateKey = field(repr=False)
    public: bytes
    secret: bytes = field(repr=False)


def pair(random: Callable[[int], bytes]) -> Pair:
    """A fresh pair from ``random``: n -> n random bytes."""
    return pair_of(random(KEY_BYTES))


def pair_of(secret: bytes) -> Pair:
    """The pair of ``secret``: its owner's, or put together from shares. ConfigError if it has not 32 bytes."""
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"an X25519 private key has {KEY_BYTES} bytes, not {len(secret)}")
    private = X25519PrivateKey.from_private_bytes(secret)
    return Pair(private, private.public_key().public_bytes_raw(), secret)


def check_public(public: bytes) -> None:
    """ProtocolAbort ``bad_message`` if ``public`` is no X25519 key or one of low order: nobody can agree with it."""
    _exchange(X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES)), public)


def agree(private: X25519PrivateKey, public: bytes, label: str, ctx: str, i: str, j: str) -> bytes:
    """32 bytes that only the holders of the two keys know, for what goes from ``i`` to ``j``.

    Both call it with the same ``i`` and ``j``, each with its own private and the other's public key. (i, j) and (j, i)
    give different keys: so each may encrypt one message under a fixed nonce.

    Raises:
        ProtocolAbort: ``bad_message``: ``public`` is no X25519 key, or one of low order.
    """
    return _derive(_exchange(private, public), KEY_BYTES, label, ctx, i, j)


def mask_key(private: X25519PrivateKey, public: bytes, ctx: str, own: str, peer: str) -> bytes:
    """Key of the one mask that two sites have in a cohort: 16 bytes, the same for (own, peer) as for (peer, own).

    Raises as ``agree``; ConfigError if both are one site.
    """
    if own == peer:
        raise ConfigError(f"{own} has no pair mask with itself")
    return _derive(_exchange(private, public), masking.KEY_BYTES, _PAIR_MASK, ctx, *sorted((own, peer)))


def self_mask_key(seed: bytes, ctx: str, site: str) -> bytes:
    """Key of the mask that ``site`` has alone: 16 bytes, of the 32-byte ``seed`` that is shared among the others."""
    if len(seed) != KEY_BYTES:
        raise ConfigError(f"the seed of a self mask has {KEY_BYTES} bytes, not {len(seed)}")
    return _derive(seed, masking.KEY_BYTES, _SELF_MASK, ctx, site)


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolAbort("bad_message", "a public key is no X25519 key, or one of low order") from error


def _derive(ikm: bytes, length: int, *info: str) -> bytes:
    encoded = b"".join(lp(part.encode()) for part in info)
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=encoded).derive(ikm)
