"""Cosine spread and outliers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cordon.asyncfl.divergence import CHUNK, cosine, measure, norm

vectors = arrays(np.float32, 5, elements=st.floats(-100, 100, width=32))


@given(vectors, vectors)
def test_cosine_is_the_textbook_one_and_stays_in_its_range(a: np.ndarray, b: np.ndarray) -> None:
    x, y = a.astype(np.float64), b.astype(np.float64)
    sizes = np.linalg.norm(x) * np.linalg.norm(y)
    assert -1.0 <= cosine(a, b) <= 1.0
    assert cosine(a, b) == pytest.approx(float(x @ y / sizes) if sizes else 0.0, abs=1e-9)


def test_long_vectors_are_summed_in_double_precision() -> None:
    ones = np.ones(2 * CHUNK + 7, np.float32)
    assert norm(ones) == pytest.approx(len(ones) ** 0.5, rel=1e-12)
    assert cosine(ones, -ones) == -1.0
    ones[CHUNK + 1 :] = 0
    assert norm(ones) == pytest.approx((CHUNK + 1) ** 0.5, rel=1e-12)


def test_spread() -> None:
    rows = [np.array(each, np.float32) for each in ([1, 0], [1, 1], [0, 1], [-1, 0])]
    found = measure(rows, np.array([2.0, 0.0]), np.ones(4), "abcd")
    assert (found.least, found.greatest) == (-1.0, 1.0)
    assert found.median == pytest.approx(0.5**0.5 / 2)
    assert found.outliers == ()


def test_an_outlier_is_a_row_that_was_dropped_or_counted_less_than_half() -> None:
    rows = [np.ones(2)] * 5
    assert measure(rows, rows[0], np.array([1.0, 1.0, 0.0, 1.0, 1.0]), "abcde").outliers == ("c",)
    assert measure(rows, rows[0], np.array([1.0, 0.9, 0.4, 0.3, 1.0]), "abcde").outliers == ("d",)
    assert measure(rows, rows[0], np.zeros(5), "abcde").outliers == tuple("abcde")
