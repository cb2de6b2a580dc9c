"""Shamir's sharing over GF(2^256 + 297): any t give the secret, t - 1 nothing, and a wrong share is noticed."""

from __future__ import annotations

import math
import secrets
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.errors import ConfigError, ProtocolAbort
from cordon.secagg import shamir, wire
from cordon.secagg.shamir import PRIME, combine, split

SECRETS = st.binary(min_size=32, max_size=32)
EDGES = [bytes(32), b"\xff" * 32, bytes(31) + b"\x01", b"\x80" + bytes(31)]


@st.composite
def sharings(draw: st.DrawFn, spare: int = 0) -> tuple[bytes, list[int], int]:
    """(secret, members, t), with ``spare`` members more than t at least."""
    members = draw(st.lists(st.integers(1, shamir.MAX_MEMBER), min_size=1 + spare, max_size=12, unique=True))
    return draw(SECRETS | st.sampled_from(EDGES)), members, draw(st.integers(1, len(members) - spare))


def value(share: bytes) -> int:
    return int.from_bytes(share, "big")


def interpolate(points: dict[int, int], at: int) -> int:
    """Lagrange's formula as in the textbook, over the rationals' numerators and denominators."""
    total = 0
    for x, y in points.items():
        weight = Fraction(1)
        for other in points:
            if other != x:
                weight *= Fraction(at - other, x - other)
        total += y * weight.numerator * pow(weight.denominator, -1, PRIME)
    return total % PRIME


# A certificate, by elliptic curves, that 2^256 + 297 is prime (Atkin, Morain 1993, "Elliptic Curves and Primality
# Proving"), made by PARI's primecert. Each step: N, t, s, a, a point (x, y) on y^2 = x^3 + a x + b; the next N is
# (N + 1 - t) / s.
CERTIFICATE = [
    (
        115792089237316195423570985008687907853269984665640564039457584007913129640233,
        676157696592370069875827994030925098995,
        212302783497,
        0,
        (
            114865047438969653416035148300802289460324879660255208459553094806265581261795,
            23504950005698939021433592101469092391141011807763475533674245143267266954436,
        ),
    ),
    (
        545410132312054334513740127256641118105565254274515386805587041087,
        -1270540403762411095790121860079221,
        866077,
        0,
        (
            108861301644045698740365056788567880594853197177286306925325256605,
            131577735490282993990200023750384385920308505508014950149914249856,
        ),
    ),
    (
        629747854188547132083798700642832437122760466662445922161017,
        1573624606280445360257811281075,
        315058923,
        0,
        (
            18427927501997247702885662167900784569517061100695055716210,
            288687912133552406979587135705881823336487005933380611266416,
        ),
    ),
    (
        1998825642492744546339348403857962824676068677166741,
        81212854067730943894439725,
        296851,
        1998825642492744546339348403857962824676065286071957,
        (1397711684976765095152428791108640599853971555529573, 497741177876610535195171306480918176007797745290092),
    ),
    (
        6733430719427404813658530113238994502107538067,
        151592743172335034192584,
        1494551836438492,
        0,
        (348298473337137857760178882712870982538685972, 689560525867114730503741663282592859412251727),
    ),
    (
        4505317617803829107732829339877,
        2402735442947254,
        208048,
        0,
        (1822753735722361515018457415325, 943694733519133063563116652984),
    ),
    (21655183504786523806993513, -8760076275482, 23221348, 0, (20992072551980141502626703, 2701306093674379553786953)),
]
Point = tuple[int, int] | None  # None: at infinity


def add(one: Point, other: Point, a: int, n: int) -> Point:
    """Sum on y^2 = x^3 + a x + b modulo n; ValueError where n turns out to have a factor."""
    if one is None or other is None:
        return one or other
    (x1, y1), (x2, y2) = one, other
    if x1 == x2 and (y1 + y2) % n == 0:
        return None
    slope = (3 * x1 * x1 + a) * pow(2 * y1, -1, n) if one == other else (y2 - y1) * pow(x2 - x1, -1, n)
    x3 = (slope * slope - x1 - x2) % n
    return x3, (slope * (x1 - x3) - y1) % n


def times(k: int, point: Point, a: int, n: int) -> Point:
    total: Point = None
    while k:
        if k & 1:
            total = add(total, point, a, n)
        point, k = add(point, point, a, n), k >> 1
    return total


def small_prime(n: int) -> bool:
    """Miller and Rabin's test with the first 12 primes: exact below 3.1e23 (Sorenson, Webster 2015)."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        powers = [pow(base, odd << k, n) for k in range(twos)]
        if powers[0] != 1 and n - 1 not in powers:
            return False
    return True


def test_the_modulus_is_proven_prime() -> None:
    """Goldwasser and Kilian: n is prime if, of a point P on a curve modulo n, m P is at infinity and (m/q) P is not,
    for a prime q > (n^(1/4) + 1)^2."""
    n = PRIME
    for given_n, t, s, a, (x, y) in CERTIFICATE:
        assert n == given_n
        q, rest = divmod(n + 1 - t, s)
        root = math.isqrt(math.isqrt(n)) + 1  # over n^(1/4)
        assert rest == 0
        assert q > (root + 1) ** 2
        b = (y * y - x * x * x - a * x) % n
        assert math.gcd(4 * a**3 + 27 * b * b, n) == 1
        small = times(s, (x, y), a, n)
        assert small is not None
        assert times(q, small, a, n) is None
        n = q
    assert n < 10**23
    assert small_prime(n)


def test_no_number_between_2_to_the_256_and_the_modulus_is_prime() -> None:
    assert PRIME == 2**256 + 297
    assert all(pow(3, n - 1, n) != 1 for n in range(2**256 + 1, PRIME, 2))


@settings(max_examples=60, deadline=None)
@given(sharings(), st.randoms(use_true_random=False))
def test_any_t_shares_or_more_give_the_secret(case: tuple[bytes, list[int], int], random: object) -> None:
    secret, members, t = case
    shares = split(secret, members, t, secrets.token_bytes)
    assert set(shares) == set(members)
    assert {len(share) for share in shares.values()} == {shamir.SHARE_BYTES}
    for count in {t, len(members)}:
        chosen = random.sample(members, count)  # type: ignore[attr-defined]
        assert combine({x: shares[x] for x in chosen}, t) == secret


@settings(max_examples=60, deadline=None)
@given(sharings(), SECRETS)
def test_t_minus_one_shares_fit_every_secret_equally(case: tuple[bytes, list[int], int], other: bytes) -> None:
    """For any other secret there is one, and only one, polynomial of degree < t through it and the t - 1 shares: as all
    coefficients are uniform, both secrets are as likely."""
    secret, members, t = case
    shares = split(secret, members, t, secrets.token_bytes)
    seen = {x: value(shares[x]) for x in members[: t - 1]}
    fitting = {0: int.from_bytes(other, "big"), **seen}
    free = next(x for x in range(1, 50) if x not in seen)
    completed = {**{x: shares[x] for x in seen}, free: interpolate(fitting, free).to_bytes(33, "big")}
    assert combine(completed, t) == other


def test_the_coefficients_are_as_random_as_the_source_says() -> None:
    """Shares with the same randomness differ by the difference of their secrets, and by nothing else."""
    drawn = [secrets.token_bytes(49) for _ in range(4)]
    asked: list[int] = []

    def source(first: list[bytes]) -> object:
        left = list(first)

        def random(size: int) -> bytes:
            asked.append(size)
            return left.pop(0)

        return random

    one = split(bytes(32), range(1, 8), 5, source(drawn))  # type: ignore[arg-type]
    two = split(bytes(31) + b"\x07", range(1, 8), 5, source(drawn))  # type: ignore[arg-type]
    assert asked == [49] * 8
    assert all((value(two[x]) - value(one[x])) % PRIME == 7 for x in one)
    # degree t - 1: the highest coefficient is the first draw
    coefficients = [int.from_bytes(part, "big") % PRIME for part in drawn]
    at = 3
    assert value(one[at]) == sum(c * at ** (4 - k) for k, c in enumerate(coefficients)) % PRIME


@settings(max_examples=80, deadline=None)
@given(sharings(spare=1), st.data())
def test_one_wrong_share_among_more_than_t_is_noticed(case: tuple[bytes, list[int], int], data: st.DataObject) -> None:
    secret, members, t = case
    shares = split(secret, members, t, secrets.token_bytes)
    liar = data.draw(st.sampled_from(members))
    lie = data.draw(st.integers(0, PRIME - 1).filter(lambda v: v != value(shares[liar])))
    shares[liar] = lie.to_bytes(33, "big")
    with pytest.raises(ProtocolAbort) as caught:
        combine(shares, t)
    assert caught.value.code == "bad_reconstruction"


def test_n_minus_t_wrong_shares_are_noticed_even_if_they_are_on_a_polynomial_of_their_own() -> None:
    one = split(b"a" * 32, range(1, 8), 4, secrets.token_bytes)
    other = split(b"b" * 32, range(1, 8), 4, secrets.token_bytes)
    with pytest.raises(ProtocolAbort, match="bad_reconstruction"):
        combine({x: (other if x <= 3 else one)[x] for x in one}, 4)


def test_exactly_t_shares_with_a_wrong_one_give_another_secret() -> None:
    """The limit that the docstring states: here only the owner's commitment tells."""
    shares = split(bytes(32), range(1, 5), 3, secrets.token_bytes)
    shares[1] = ((value(shares[1]) + 1) % PRIME).to_bytes(33, "big")
    del shares[4]
    try:
        assert combine(shares, 3) != bytes(32)
    except ProtocolAbort as error:  # one secret in 2^247 or so is over 32 bytes
        assert error.code == "bad_reconstruction"


def test_a_polynomial_of_too_high_a_degree_is_noticed() -> None:
    shares = split(b"s" * 32, range(1, 9), 5, secrets.token_bytes)
    with pytest.raises(ProtocolAbort, match="one polynomial of degree < 4"):
        combine(shares, 4)


def test_too_few_shares_give_nothing() -> None:
    shares = split(b"s" * 32, range(1, 6), 3, secrets.token_bytes)
    with pytest.raises(ProtocolAbort, match="2 shares, want 3"):
        combine({x: shares[x] for x in (1, 2)}, 3)
    for t in (0, -1):
        with pytest.raises(ProtocolAbort):
            combine(shares, t)
    with pytest.raises(ProtocolAbort):
        combine({}, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.integers(-2, 2**17), st.binary(min_size=31, max_size=34), max_size=6),
    st.integers(-1, 7),
)
def test_whatever_comes_as_shares_gives_32_bytes_or_the_abort(shares: dict[int, bytes], t: int) -> None:
    try:
        assert len(combine(shares, t)) == 32
    except ProtocolAbort as error:
        assert error.code == "bad_reconstruction"


def test_a_share_that_is_no_element_of_the_field_is_refused() -> None:
    shares = split(b"s" * 32, range(1, 4), 2, secrets.token_bytes)
    for bad in (PRIME.to_bytes(33, "big"), b"\xff" * 33, b"", shares[1][1:], b"\x00" + shares[1]):
        with pytest.raises(ProtocolAbort, match="a share is not 33 bytes"):
            combine({**shares, 1: bad}, 2)


def test_a_secret_over_32_bytes_is_refused() -> None:
    for over in (2**256, PRIME - 1):
        with pytest.raises(ProtocolAbort, match="more than 32 bytes"):
            combine({x: over.to_bytes(33, "big") for x in (1, 2, 3)}, 1)
    assert combine({x: (2**256 - 1).to_bytes(33, "big") for x in (1, 2, 3)}, 1) == b"\xff" * 32


def test_no_error_says_anything_of_a_share() -> None:
    shares = split(b"s" * 32, range(1, 5), 2, secrets.token_bytes)
    with pytest.raises(ProtocolAbort) as caught:
        combine({**shares, 1: shares[2]}, 2)
    assert not any(
        share.hex()[:8] in str(caught.value) or str(value(share)) in str(caught.value) for share in shares.values()
    )


@pytest.mark.parametrize(
    ("secret", "members", "t"),
    [
        (bytes(31), [1, 2, 3], 2),
        (bytes(33), [1, 2, 3], 2),
        (bytes(32), [1, 2, 2], 2),
        (bytes(32), [0, 1, 2], 2),  # the share at 0 is the secret
        (bytes(32), [1, 2, -1], 2),
        (bytes(32), [1, 2, 2**16], 2),
        (bytes(32), [PRIME, 1, 2], 2),
        (bytes(32), [1, 2, 3], 0),
        (bytes(32), [1, 2, 3], 4),
        (bytes(32), [], 1),
    ],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, members: list[int], t: int) -> None:
    with pytest.raises(ConfigError):
        split(secret, members, t, secrets.token_bytes)


def test_sizes_are_those_of_the_wire_format() -> None:
    assert shamir.SHARE_BYTES == wire.SHARE_BYTES
    assert (PRIME - 1).bit_length() <= 8 * wire.SHARE_BYTES
