"""Shamir's secret sharing of 32-byte secrets over GF(p), p = 2^256 + 297, the least prime over 2^256.

Shamir 1979, "How to share a secret". A secret s is the constant term of a polynomial of degree t - 1 whose other
coefficients are uniform in GF(p); the share of member x, 1 <= x < 2^16, is its value at x, 33 bytes big-endian. Any
t shares give s; t - 1 are as likely under every s. All 2^256 secrets fit, and so does every share.

``combine`` takes all shares it can get and wants all of them on one polynomial: with n shares it notices up to n - t
wrong ones. With exactly t shares any values are on some polynomial: whoever combines checks the secret against what its
owner committed to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from cordon.errors import ConfigError, ProtocolAbort

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
MAX_MEMBER = 2**16 - 1

_DRAWN_BYTES = 49  # of randomness for one coefficient: reduced mod p it is within 2^-134 of uniform


def split(secret: bytes, members: Sequence[int], t: int, random: Callable[[int], bytes]) -> dict[int, bytes]:
    """Shares of ``secret`` (32 bytes): member -> 33 bytes. Any ``t`` of them give it back.

    Args:
        members: distinct numbers from 1.
        random: n -> n random bytes.

    Raises:
        ConfigError: not 32 bytes, members that are none or twice there, or t is not in 1..len(members).
    """
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if len(set(members)) != len(members) or not all(1 <= x <= MAX_MEMBER for x in members):
        raise ConfigError(f"members are distinct numbers in 1..{MAX_MEMBER}")
    if not 1 <= t <= len(members):
        raise ConfigError(f"threshold {t} with {len(members)} members: want 1..{len(members)}")
    drawn = [int.from_bytes(random(_DRAWN_BYTES), "big") % PRIME for _ in range(t - 1)]
    shares = {}
    for x in members:
        value = 0
        for coefficient in drawn:  # Horner, the highest power first
            value = (value + coefficient) * x % PRIME
        shares[x] = ((value + int.from_bytes(secret, "big")) % PRIME).to_bytes(SHARE_BYTES, "big")
    return shares


def combine(shares: Mapping[int, bytes], t: int) -> bytes:
    """The secret of ``shares`` (member -> 33 bytes), all of which must be on one polynomial of degree below ``t``.

    Raises:
        ProtocolAbort: ``bad_reconstruction``: fewer than t shares, one that is none, more than one polynomial, or a
            secret over 32 bytes.
    """
    if not 1 <= t <= len(shares):
        raise ProtocolAbort("bad_reconstruction", f"{len(shares)} shares, want {max(t, 1)} or more")
    members = tuple(sorted(shares))
    if not all(1 <= x <= MAX_MEMBER for x in members):
        raise ProtocolAbort("bad_reconstruction", f"a share of no member in 1..{MAX_MEMBER}")
    values = [int.from_bytes(shares[x], "big") for x in members]
    if any(len(share) != SHARE_BYTES for share in shares.values()) or any(value >= PRIME for value in values):
        raise ProtocolAbort("bad_reconstruction", f"a share is not {SHARE_BYTES} bytes of a number below 2^256 + 297")
    secret, *rest = (sum(map(int.__mul__, row, values[:t])) % PRIME for row in _weights(members, t))
    if rest != values[t:]:
        raise ProtocolAbort("bad_reconstruction", f"the {len(shares)} shares are not on one polynomial of degree < {t}")
    if secret >= 1 << 8 * SECRET_BYTES:
        raise ProtocolAbort("bad_reconstruction", f"the shares give more than {SECRET_BYTES} bytes")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=64)
def _weights(members: tuple[int, ...], t: int) -> tuple[tuple[int, ...], ...]:
    """Lagrange weights that take the values at the first ``t`` members to those at 0 and at each of the other members.

    One cohort combines many secrets over the same members, so the inverses are worth keeping; members are public.
    """
    known = members[:t]
    bottoms = []
    for x in known:
        bottom = 1
        for other in known:
            if other != x:
                bottom = bottom * (x - other) % PRIME
        bottoms.append(pow(bottom, -1, PRIME))
    rows = []
    for point in (0, *members[t:]):
        row = []
        for x, bottom in zip(known, bottoms, strict=True):
            for other in known:
                if other != x:
                    bottom = bottom * (point - other) % PRIME
            row.append(bottom)
        rows.append(tuple(row))
    return tuple(rows)
