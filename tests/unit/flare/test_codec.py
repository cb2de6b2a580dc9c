"""FLModel <-> messages: exactly one payload and one dict of parts, or nothing."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from cordon.errors import SignatureError
from cordon.flare import codec

BYTES = np.arange(4, dtype=np.uint8)


@given(st.binary(max_size=200), st.dictionaries(st.text(), st.text()))
def test_there_and_back(payload, parts):
    assert codec.from_model(codec.to_model(parts, payload)) == (parts, payload)


def test_what_flare_adds_to_meta_is_not_read():
    model = codec.to_model({"a": 1}, b"x")
    model.meta.update({"props": {}, "client_name": "hospital-a", "model": "other"})
    assert codec.from_model(model) == ({"a": 1}, b"x")


def _model(params=None, meta=None, **more):
    return FLModel(params_type=ParamsType.FULL, params=params, meta=meta, **more)


@pytest.mark.parametrize(
    "model",
    [
        _model({"payload": BYTES}, {}),
        _model({"payload": BYTES}, {"cordon": [1]}),
        _model({"payload": BYTES}, {"cordon": None}),
        _model({"payload": BYTES}, {"other": {}}),
        _model({}, {"cordon": {}}),
        _model({"delta": BYTES}, {"cordon": {}}),
        _model({"payload": BYTES, "more": BYTES}, {"cordon": {}}),
        _model({"payload": BYTES.astype(np.int8)}, {"cordon": {}}),
        _model({"payload": BYTES.astype(np.float32)}, {"cordon": {}}),
        _model({"payload": BYTES.reshape(2, 2)}, {"cordon": {}}),
        _model({"payload": np.uint8(7)}, {"cordon": {}}),
        _model({"payload": BYTES.tobytes()}, {"cordon": {}}),
        _model({"payload": [1, 2]}, {"cordon": {}}),
        _model({"payload": None}, {"cordon": {}}),
        FLModel(metrics={"auc": 0.9}, meta={"cordon": {}}),
    ],
)
def test_anything_else_is_no_message(model):
    with pytest.raises(SignatureError):
        codec.from_model(model)


def test_a_payload_over_the_limit():
    with pytest.raises(SignatureError, match="larger than 3 bytes"):
        codec.from_model(codec.to_model({}, b"1234"), limit=3)
    assert codec.from_model(codec.to_model({}, b"123"), limit=3)[1] == b"123"


def test_a_policy_digest_is_one():
    assert codec.policy_digest({"policy_digest": "0a" * 32}) == "0a" * 32


@pytest.mark.parametrize("value", [None, 7, "", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n", b"0" * 64])
def test_anything_else_is_no_policy_digest(value):
    with pytest.raises(SignatureError):
        codec.policy_digest({"policy_digest": value})


def test_a_challenge_has_32_bytes():
    assert codec.nonce({"nonce": base64.b64encode(b"n" * 32).decode()}) == b"n" * 32


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"nonce": None},
        {"nonce": 5},
        {"nonce": [1]},
        {"nonce": "not base64!"},
        {"nonce": "ü" * 44},
        {"nonce": ""},
        {"nonce": base64.b64encode(b"n" * 31).decode()},
        {"nonce": base64.b64encode(b"n" * 33).decode()},
    ],
)
def test_anything_else_is_no_challenge(parts):
    with pytest.raises(SignatureError):
        codec.nonce(parts)
