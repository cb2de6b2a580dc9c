"""Headers and payloads: what a seal binds, and what opens it."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon import messages, sealing
from cordon.errors import UpdateRejected
from cordon.messages import DPEvent, ModelHeader, UpdateHeader
from cordon.sealing import KemKey, decode_kem_key

KEY = KemKey.generate()
PUBLIC = decode_kem_key(KEY.public_bytes)
EVENT = DPEvent(
    mechanism="poisson_subsampled_gaussian",
    noise_multiplier=6.0,
    sampling_rate=0.5,
    steps=5,
    clip_norm=0.5,
    unit="patient",
)
MODEL = ModelHeader(
    v=1, job="j", ticket="t", version=3, model_chain_head="1" * 64, layout_digest="2" * 64, payload_sha256=""
)
UPDATE = UpdateHeader(
    v=1,
    job="j",
    ticket="t",
    base_version=3,
    model_chain_head="1" * 64,
    layout_digest="2" * 64,
    privacy="sealed",
    dp_event=EVENT,
    sealed_to=sealing.kem_digest(KEY.public_bytes),
    payload_sha256="",
    ledger={"payload": "AAAA"},
)


@pytest.mark.parametrize("header", [MODEL, UPDATE], ids=["model", "update"])
@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=2000))
def test_there_and_back(header, plaintext):
    signed, sealed = messages.seal(header, plaintext, PUBLIC)
    assert signed == msgspec.structs.replace(header, payload_sha256=messages.sha256(sealed))
    assert messages.open_payload(signed, sealed, KEY.private) == plaintext


def test_it_also_opens_after_the_header_went_through_json():
    signed, sealed = messages.seal(UPDATE, b"delta", PUBLIC)
    read = msgspec.json.decode(msgspec.json.encode(messages.body_of(signed)), type=UpdateHeader)
    assert messages.open_payload(read, sealed, KEY.private) == b"delta"


def _others(header):
    for name in header.__struct_fields__:
        if name in ("v", "payload_sha256"):
            continue
        value = getattr(header, name)
        other = {str: "f" * 64, int: 4, dict: None}.get(type(value), msgspec.structs.replace(EVENT, steps=6))
        yield name, msgspec.structs.replace(header, **{name: other})


@pytest.mark.parametrize(
    ("header", "other"),
    [
        pytest.param(header, other, id=f"{type(header).__name__}.{name}")
        for header in (MODEL, UPDATE)
        for name, other in _others(header)
    ],
)
def test_every_field_of_the_header_is_bound(header, other):
    _, sealed = messages.seal(header, b"plain", PUBLIC)
    signed_again = msgspec.structs.replace(other, payload_sha256=messages.sha256(sealed))
    with pytest.raises(UpdateRejected) as caught:
        messages.open_payload(signed_again, sealed, KEY.private)
    assert caught.value.code == "bad_seal"


def test_bytes_that_were_not_signed_are_not_opened():
    signed, sealed = messages.seal(UPDATE, b"plain", PUBLIC)
    with pytest.raises(UpdateRejected) as caught:
        messages.open_payload(signed, sealed + b"\0", KEY.private)
    assert caught.value.code == "bad_payload"


def test_two_seals_of_one_update_differ_and_open_alike():
    (one, first), (two, second) = (messages.seal(UPDATE, b"plain", PUBLIC) for _ in range(2))
    assert first != second
    assert messages.open_payload(one, first, KEY.private) == messages.open_payload(two, second, KEY.private)
    with pytest.raises(UpdateRejected):
        messages.open_payload(one, second, KEY.private)


@pytest.mark.parametrize("size", [0, 1, 31, 100_000])
@pytest.mark.parametrize("name", ["w", "delta"])
def test_the_bounds_hold_what_is_sent(size, name):
    packed = messages.pack(name, np.zeros(size, np.float32))
    assert len(packed) <= messages.max_payload(size)
    assert len(sealing.seal(packed, PUBLIC, "p")) <= messages.max_sealed(size)
