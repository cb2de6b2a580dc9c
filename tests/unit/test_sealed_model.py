"""A model at rest: who may open it opens it, alone or with another; the header says what it is to anybody."""

import base64
import hashlib
import io
import json
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cordon import release_key, sealed_model, stream
from cordon.errors import ConfigError, CordonError, PolicyRefused, SealError
from cordon.sealed_model import Subject, decode_share, encode_share, make_share, open_model, read, seal
from cordon.sealing import KemKey
from cordon.study import ReleaseRight

VECTOR = Path(__file__).resolve().parents[1] / "vectors" / "sealed_model_v1.json"
KEYS = {name: KemKey.generate() for name in ("anna", "boris", "carla")}
STRANGER = KemKey.generate()
PAIRS = list(combinations(("anna", "boris", "carla"), 2))
MODEL = save({"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
SUBJECT = Subject(
    study="a" * 64,
    study_name="wdbc",
    job="oncology",
    job_id="11111111-2222",
    job_digest="b" * 64,
    version=3,
    layout_digest="c" * 64,
)


def right(persons, names=tuple(KEYS)):
    return ReleaseRight(holders={name: KEYS[name].public_bytes for name in names}, persons=persons)


def opened(data, *names, shares=()):
    sealed, pieces = open_model(io.BytesIO(data), [KEYS[name] for name in names], shares)
    return sealed.header, b"".join(pieces)


ALONE, TOGETHER = seal(MODEL, SUBJECT, right(1)), seal(MODEL, SUBJECT, right(2))


def share(data, sender, recipient):
    made = make_share(read(io.BytesIO(data)), KEYS[sender], KEYS[recipient].public_bytes)
    return decode_share(encode_share(made))


@pytest.mark.parametrize("name", KEYS)
def test_each_holder_opens_a_one_person_model(name):
    header, model = opened(ALONE, name)
    assert model == MODEL
    assert header.sha256 == hashlib.sha256(MODEL).hexdigest()
    assert (header.version, header.persons, set(header.holders)) == (3, 1, set(KEYS))


@pytest.mark.parametrize("pair", PAIRS)
def test_any_two_holders_at_one_machine_open_a_two_person_model(pair):
    assert opened(TOGETHER, *pair)[1] == MODEL
    assert opened(TOGETHER, *reversed(pair))[1] == MODEL


@pytest.mark.parametrize("pair", PAIRS)
def test_any_two_holders_at_two_machines_open_a_two_person_model(pair):
    for sender, recipient in (pair, pair[::-1]):
        assert opened(TOGETHER, recipient, shares=[share(TOGETHER, sender, recipient)])[1] == MODEL


@pytest.mark.parametrize("name", KEYS)
def test_one_person_alone_is_told_whom_to_ask(name):
    with pytest.raises(PolicyRefused) as caught:
        opened(TOGETHER, name)
    assert caught.value.reasons[0][0] == "two_persons"
    others = sorted(set(KEYS) - {name})
    assert f"ask one of {', '.join(others)}" in str(caught.value)
    assert "version 3 of job oncology" in str(caught.value)


def test_a_stranger_is_told_who_has_the_right():
    with pytest.raises(PolicyRefused, match=r"not_a_holder.*anna.*boris.*carla"):
        open_model(io.BytesIO(ALONE), [STRANGER])
    with pytest.raises(PolicyRefused, match="no key is given"):
        open_model(io.BytesIO(ALONE), [])


def test_no_share_where_one_person_is_enough_or_the_second_is_the_same():
    with pytest.raises(PolicyRefused, match="no_share: boris opens this model alone"):
        share(ALONE, "anna", "boris")
    with pytest.raises(PolicyRefused, match="no_share: both keys are of anna"):
        share(TOGETHER, "anna", "anna")


def test_no_share_for_or_of_a_stranger():
    sealed = read(io.BytesIO(TOGETHER))
    with pytest.raises(PolicyRefused, match="not_a_holder"):
        make_share(sealed, KEYS["anna"], STRANGER.public_bytes)
    with pytest.raises(PolicyRefused, match="not_a_holder"):
        make_share(sealed, STRANGER, KEYS["anna"].public_bytes)


def test_two_seals_of_one_model_have_nothing_in_common():
    again = seal(MODEL, SUBJECT, right(1))
    assert read(io.BytesIO(again)).id != read(io.BytesIO(ALONE)).id
    assert again[-64:] != ALONE[-64:]


def test_a_model_of_several_chunks():
    model = bytes(range(256)) * 12000  # just under 3 MiB
    data = seal(model, SUBJECT, right(2))
    assert opened(data, "anna", "carla")[1] == model
    assert len(data) - len(TOGETHER) == len(model) - len(MODEL) + 2 * stream.TAG_BYTES


def test_an_empty_model():
    assert opened(seal(b"", SUBJECT, right(1)), "anna")[1] == b""


def test_sixteen_holders_in_pairs_fit_the_header():
    keys = {f"holder-{at:055d}": KemKey.generate() for at in range(16)}
    release = ReleaseRight(holders={name: key.public_bytes for name, key in keys.items()}, persons=2)
    data = seal(MODEL, SUBJECT, release)
    names = list(keys)
    assert len(read(io.BytesIO(data)).header.stanzas) == 120
    _, pieces = open_model(io.BytesIO(data), [keys[names[4]], keys[names[11]]])
    assert b"".join(pieces) == MODEL


@pytest.mark.parametrize(
    "change", [{"job": "../x"}, {"version": -1}, {"job_id": ""}, {"study": "x"}, {"job_id": "a\n"}, {"job": "a" * 64}]
)
def test_a_subject_that_no_reader_accepts_is_not_sealed(change):
    with pytest.raises(ConfigError, match="cannot be sealed"):
        seal(MODEL, msgspec.structs.replace(SUBJECT, **change), right(1))


def test_nothing_of_the_model_is_in_the_file_and_no_key_in_a_repr():
    data = seal(MODEL + b"zz-marker-zz" * 5, SUBJECT, right(2))
    assert b"zz-marker-zz" not in data
    assert KEYS["anna"].secret.hex() not in repr(KEYS["anna"])
    assert len(repr(read(io.BytesIO(data)).header)) < 30_000


# -- the format, read by hand -----------------------------------------------------------------------------------------


def by_hand(data, secrets):
    """The model, by the module's description alone: its header, and the bytes that it opens to."""

    def lp(part):
        return len(part).to_bytes(4, "big") + part

    assert data[:12] == bytes.fromhex("8f636f72646f6e4d00000001")
    length = int.from_bytes(data[12:16], "big")
    header = json.loads(data[16 : 16 + length])
    file_id = hashlib.sha256(lp(b"cordon/model-at-rest/id/v1") + lp(data[: 16 + length])).digest()
    bare = {key: value for key, value in header.items() if key != "stanzas"}
    context = json.dumps(bare, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    for stanza in header["stanzas"]:
        if set(stanza["holders"]) <= set(secrets):
            key = bytes(32)
            for name, text in zip(stanza["holders"], stanza["shares"], strict=True):
                names = [each.encode() for each in (*stanza["holders"], name)]
                info = b"".join(lp(part) for part in (b"cordon/model-at-rest/v1", context, *names))
                part = suite.decrypt(base64.b64decode(text), secrets[name].private, info=info)
                key = bytes(a ^ b for a, b in zip(key, part, strict=True))
            info = lp(b"cordon/model-at-rest/body/v1") + lp(file_id)
            cipher = AESGCM(HKDF(hashes.SHA256(), 32, None, info).derive(key))
            return header, cipher.decrypt(bytes(11) + b"\x01", data[16 + length :], None)
    raise AssertionError("no stanza for these keys")


@pytest.mark.parametrize(("data", "names"), [(ALONE, ["boris"]), (TOGETHER, ["anna", "carla"])])
def test_the_format_is_the_description(data, names):
    header, model = by_hand(data, {name: KEYS[name] for name in names})
    assert model == MODEL
    assert header["holders"] == {name: release_key.fingerprint(key.public_bytes) for name, key in KEYS.items()}


@pytest.mark.parametrize("case", json.loads(VECTOR.read_text())["cases"], ids=lambda case: case["name"])
def test_the_vectors_open_today_as_on_the_day_they_were_made(case):
    data = base64.b64decode(case["file"])
    keys = {name: KemKey.from_secret(bytes.fromhex(secret)) for name, secret in case["secrets"].items()}
    shares = [decode_share(each.encode()) for each in case["shares"]]
    sealed, pieces = open_model(io.BytesIO(data), [keys[name] for name in case["open_with"]], shares)
    assert b"".join(pieces).hex() == case["model"]
    assert sealed.id == case["id"]
    assert by_hand(data, keys)[1].hex() == case["model"]


# -- what is no sealed model ------------------------------------------------------------------------------------------


def prefix(header, form=1, length=None):
    length = len(header) if length is None else length
    return sealed_model.MAGIC + form.to_bytes(4, "big") + length.to_bytes(4, "big") + header


def header_of(data):
    return json.loads(data[16 : 16 + int.from_bytes(data[12:16], "big")])


def canonical(tree):
    return json.dumps(tree, separators=(",", ":"), sort_keys=True).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "does not begin"),
        (MODEL, "does not begin"),
        (ALONE[:15], "want format 1"),
        (ALONE[:200], "only"),
        (prefix(b"{}", form=2), "want format 1"),
        (prefix(b"{}", length=2**20 + 1), "at most"),
        (prefix(b"{}"), "missing required field"),
        (prefix(b"[]"), "Expected `object`"),
        (prefix(b"\xff\xfe"), "malformed"),
        (prefix(b"[" * 100_000), "header of the sealed model"),
        (prefix(canonical(header_of(ALONE) | {"x": 1})), "unknown field"),
        (prefix(canonical(header_of(ALONE) | {"v": 2})), "Invalid enum value"),
        (prefix(canonical(header_of(ALONE) | {"study_name": "\x1b[2J"})), "study_name"),
        (prefix(json.dumps(header_of(ALONE)).encode()), "not canonical"),
        (prefix(canonical(header_of(ALONE) | {"stanzas": []})), "not all groups"),
        (prefix(canonical(header_of(ALONE) | {"persons": 2})), "not all groups"),
        (prefix(canonical(header_of(TOGETHER) | {"persons": 1})), "not all groups"),
        (prefix(canonical(header_of(ALONE) | {"stanzas": header_of(ALONE)["stanzas"][::-1]})), "not all groups"),
        (prefix(canonical(header_of(ALONE) | {"stanzas": header_of(TOGETHER)["stanzas"]})), "not all groups"),
    ],
)
def test_what_is_no_sealed_model_is_a_config_error(data, said):
    with pytest.raises(ConfigError, match=said):
        read(io.BytesIO(data))


@given(data=st.binary(max_size=200), head=st.booleans())
@settings(max_examples=100, deadline=None)
def test_strangers_bytes_raise_nothing_else(data, head):
    with pytest.raises(ConfigError):
        open_model(io.BytesIO(prefix(data) if head else data), [KEYS["anna"]])


@given(at=st.integers(0, len(TOGETHER) - 1), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_changed_or_cut_file_opens_or_raises_anything_else(at, bit, cut):
    data = TOGETHER[:at] if cut else TOGETHER[:at] + bytes([TOGETHER[at] ^ 1 << bit]) + TOGETHER[at + 1 :]
    with pytest.raises((ConfigError, SealError, PolicyRefused)):
        opened(data, "anna", "boris")


SHARE = encode_share(share(TOGETHER, "anna", "boris"))


@given(data=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_strangers_bytes_are_no_share(data):
    with pytest.raises(ConfigError):
        decode_share(data)


@given(at=st.integers(0, len(SHARE) - 2), bit=st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_no_changed_share_opens_or_raises_anything_else(at, bit):
    data = SHARE[:at] + bytes([SHARE[at] ^ 1 << bit]) + SHARE[at + 1 :]
    with pytest.raises(CordonError):
        opened(TOGETHER, "boris", shares=[decode_share(data)])


def test_a_share_file_has_a_limit():
    with pytest.raises(ConfigError, match="larger than"):
        decode_share(SHARE + bytes(9000))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        sealed_model.open_file(tmp_path / "none", [KEYS["anna"]])
    (tmp_path / "m").write_bytes(ALONE)
    assert sealed_model.open_file(tmp_path / "m", [KEYS["anna"]])[1] == MODEL
