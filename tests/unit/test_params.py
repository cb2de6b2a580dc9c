"""Named arrays <-> one vector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.errors import ConfigError
from cordon.params import Layout

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
layouts = st.dictionaries(st.text("abc.", min_size=1, max_size=5), shapes, max_size=5)


def arrays_for(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@given(layouts)
def test_flatten_and_unflatten_are_inverse(shapes: dict[str, tuple[int, ...]]) -> None:
    arrays = arrays_for(shapes)
    layout = Layout.of(arrays)
    vector = layout.flatten(arrays)
    assert vector.shape == (layout.size,)
    assert vector.dtype == np.float32
    back = layout.unflatten(vector)
    assert set(back) == set(arrays)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


@given(layouts)
def test_insertion_order_does_not_matter(shapes: dict[str, tuple[int, ...]]) -> None:
    arrays = arrays_for(shapes)
    turned = dict(reversed(arrays.items()))
    assert Layout.of(arrays).digest == Layout.of(turned).digest
    assert np.array_equal(Layout.of(arrays).flatten(arrays), Layout.of(arrays).flatten(turned))


def test_digest_tells_names_and_shapes_apart() -> None:
    zeros = np.zeros
    digests = {
        Layout.of(arrays).digest
        for arrays in (
            {"a": zeros((2, 3), np.float32)},
            {"a": zeros((3, 2), np.float32)},
            {"a": zeros(6, np.float32)},
            {"b": zeros(6, np.float32)},
            {"a": zeros(3, np.float32), "b": zeros(3, np.float32)},
        )
    }
    assert len(digests) == 5


@pytest.mark.parametrize("size", [0, 5, 7])
def test_a_vector_of_another_size_is_refused(size: int) -> None:
    layout = Layout.of({"a": np.zeros((2, 3), np.float32)})
    with pytest.raises(ConfigError, match="does not fit"):
        layout.unflatten(np.zeros(size, np.float32))


def test_arrays_of_another_layout_are_refused() -> None:
    layout = Layout.of({"a": np.zeros((2, 3), np.float32)})
    with pytest.raises(ConfigError, match="do not fit"):
        layout.flatten({"a": np.zeros((3, 2), np.float32)})


def test_unflatten_copies() -> None:
    layout = Layout.of({"a": np.zeros(2, np.float32)})
    vector = np.zeros(2, np.float32)
    layout.unflatten(vector)["a"][0] = 1
    assert vector[0] == 0


# -- parameters that stay at a site ----------------------------------------------------------------------------------

NET = Layout.of({"body.weight": np.zeros((2, 3)), "head.bias": np.zeros(2), "norm.weight": np.zeros(())})


def test_the_shared_layout_leaves_out_exactly_the_names_given() -> None:
    assert NET.without([]) == NET
    assert NET.without(["head.bias"]).shapes == (("body.weight", (2, 3)), ("norm.weight", ()))
    assert NET.only(["norm.weight", "head.bias"]).shapes == (("head.bias", (2,)), ("norm.weight", ()))
    assert NET.without(["head.bias"]).digest != NET.digest


@pytest.mark.parametrize(
    ("local", "match"),
    [
        (["head"], "no parameter head; there are body.weight, head.bias, norm.weight"),
        (["head.*"], "no parameter"),
        (["HEAD.bias"], "no parameter"),
        (["head.bias", "head.bias"], "twice"),
        (["body.weight", "head.bias", "norm.weight"], "nothing is left"),
    ],
)
def test_local_names_that_do_not_fit_are_refused(local: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        NET.without(local)


@given(layouts, st.data())
def test_split_and_join_are_inverse_and_agree_with_the_layouts(
    shapes: dict[str, tuple[int, ...]], data: st.DataObject
) -> None:
    layout = Layout.of(arrays_for(shapes))
    local = data.draw(st.lists(st.sampled_from(sorted(shapes)), unique=True)) if shapes else []
    vector = np.random.default_rng(1).normal(size=layout.size).astype(np.float32)
    shared, own = layout.split(vector, local)
    assert np.array_equal(layout.join(shared, own, local), vector)
    named = layout.unflatten(vector)
    assert np.array_equal(own, layout.only(local).flatten({name: named[name] for name in local}))
    if len(local) < len(shapes):
        kept = layout.without(local)
        assert np.array_equal(shared, kept.flatten({name: named[name] for name, _ in kept.shapes}))


def test_parts_of_another_size_are_refused() -> None:
    shared, own = NET.split(np.zeros(9, np.float32), ["head.bias"])
    with pytest.raises(ConfigError, match="do not fit"):
        NET.join(own, shared, ["head.bias"])
    with pytest.raises(ConfigError, match="does not fit"):
        NET.split(np.zeros(8, np.float32), ["head.bias"])
