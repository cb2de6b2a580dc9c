"""s(tau) against Xie et al. 2019, section 5.2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.errors import ConfigError
from cordon.job import Staleness
from cordon.staleness import weight

functions = st.builds(
    Staleness,
    function=st.sampled_from(["constant", "polynomial", "hinge"]),
    a=st.floats(0, 100),
    b=st.integers(0, 1000),
)


@given(functions, st.integers(0, 10_000))
def test_fresh_counts_as_one_and_later_never_more(staleness: Staleness, tau: int) -> None:
    assert weight(0, staleness) == 1.0
    assert 0 <= weight(tau + 1, staleness) <= weight(tau, staleness) <= 1.0


@given(st.integers(0, 10_000))
def test_the_default_is_one_over_the_root(tau: int) -> None:
    assert weight(tau, Staleness()) ** 2 * (1 + tau) == pytest.approx(1.0)


@given(st.floats(0, 10), st.integers(0, 100))
def test_polynomial(a: float, tau: int) -> None:
    assert weight(tau, Staleness(function="polynomial", a=a)) == pytest.approx((tau + 1) ** -a)


@given(st.floats(0, 10), st.integers(0, 10), st.integers(0, 100))
def test_hinge(a: float, b: int, tau: int) -> None:
    wanted = 1.0 if tau <= b else 1 / (a * (tau - b) + 1)
    assert weight(tau, Staleness(function="hinge", a=a, b=b)) == pytest.approx(wanted)


@given(functions)
def test_negative_staleness_is_refused(staleness: Staleness) -> None:
    with pytest.raises(ConfigError, match="negative"):
        weight(-1, staleness)
