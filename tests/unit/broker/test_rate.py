"""Token buckets: what each member may ask, by a clock that the test holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.broker.rate import TokenBuckets


def test_a_burst_passes_and_then_one_by_one() -> None:
    buckets = TokenBuckets(["a"], per_s=2.0, burst=3)
    assert [buckets.take("a", 10.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert buckets.take("a", 10.5) == 0.0
    assert buckets.take("a", 10.5) == 0.5


def test_being_refused_costs_nothing() -> None:
    buckets = TokenBuckets(["a"], per_s=1.0, burst=1)
    buckets.take("a", 0.0)
    for _ in range(1000):
        assert buckets.take("a", 0.5) == 0.5
    assert buckets.take("a", 1.0) == 0.0


def test_rest_does_not_add_up_beyond_the_burst() -> None:
    buckets = TokenBuckets(["a"], per_s=10.0, burst=2)
    assert [buckets.take("a", 1e9) for _ in range(3)] == [0.0, 0.0, 0.1]


def test_one_member_does_not_use_up_anothers() -> None:
    buckets = TokenBuckets(["a", "b"], per_s=1.0, burst=1)
    buckets.take("a", 0.0)
    assert buckets.take("a", 0.0) > 0
    assert buckets.take("b", 0.0) == 0.0


def test_a_clock_that_goes_back_refills_nothing() -> None:
    buckets = TokenBuckets(["a"], per_s=1.0, burst=1)
    buckets.take("a", 100.0)
    assert buckets.take("a", 0.0) == 1.0
    assert buckets.take("a", 100.5) == 0.5


def test_a_stranger_has_no_bucket() -> None:
    with pytest.raises(KeyError):
        TokenBuckets(["a"], 1.0, 1).take("stranger", 0.0)


@given(
    st.lists(st.floats(0, 50, allow_nan=False), max_size=200).map(sorted),
    st.floats(0.1, 100),
    st.integers(1, 50),
)
def test_never_more_than_burst_and_rate_allow(times: list[float], per_s: float, burst: int) -> None:
    buckets = TokenBuckets(["a"], per_s, burst)
    passed = [at for at in times if buckets.take("a", at) == 0.0]
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            span = passed[last] - passed[first]
            assert last - first + 1 <= burst + span * per_s + 1e-6


@given(st.floats(0.01, 1000), st.integers(1, 5), st.floats(0, 1e6))
def test_after_the_wait_that_was_named_it_passes(per_s: float, burst: int, start: float) -> None:
    buckets = TokenBuckets(["a"], per_s, burst)
    for _ in range(burst):
        assert buckets.take("a", start) == 0.0
    wait_s = buckets.take("a", start)
    assert wait_s == pytest.approx(1 / per_s)
    assert buckets.take("a", start + wait_s * (1 + 1e-6) + 1e-6) == 0.0
