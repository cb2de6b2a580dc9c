"""The buffer: one update per site, order of arrival forgotten."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.asyncfl.buffer import Buffer, Entry
from cordon.errors import ConfigError


def entry(value: float) -> Entry:
    return Entry(np.array([value], np.float32), 0)


@given(st.permutations(["a", "b", "c", "d"]))
def test_drain_forgets_who_was_first(order: list[str]) -> None:
    buffer = Buffer(4)
    for site in order:
        assert not buffer.full
        buffer.add(site, entry(ord(site)))
    assert buffer.full
    assert buffer.sites == ("a", "b", "c", "d")
    assert [(site, e.delta[0]) for site, e in buffer.drain()] == [(site, ord(site)) for site in "abcd"]
    assert len(buffer) == 0


def test_a_second_update_of_a_site_is_refused() -> None:
    buffer = Buffer(3)
    buffer.add("a", entry(1))
    with pytest.raises(ConfigError, match="already holds an update of a"):
        buffer.add("a", entry(2))
    assert buffer.drain()[0][1].delta[0] == 1


def test_no_more_than_capacity() -> None:
    buffer = Buffer(1)
    buffer.add("a", entry(1))
    with pytest.raises(ConfigError, match="full"):
        buffer.add("b", entry(1))


def test_discard() -> None:
    buffer = Buffer(2)
    buffer.add("a", entry(1))
    buffer.discard("a")
    buffer.discard("never there")
    assert "a" not in buffer
    assert len(buffer) == 0
