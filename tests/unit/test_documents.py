"""Documents: strict, bounded, typed; a detached signature covers exactly the bytes that are parsed."""

import base64
import hashlib
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import field

from cordon import documents, signing
from cordon.documents import MAX_DOCUMENT, Document
from cordon.errors import ConfigError, SignatureError
from cordon.job import contract_digest

NOW = datetime(2026, 11, 24, tzinfo=UTC)
KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))


class Inner(Document, frozen=True, kw_only=True):
    count: int


class Example(Document, frozen=True, kw_only=True):
    name: str
    inner: Inner
    ratio: float = 0.5
    tags: dict[str, int] = field(default_factory=dict)


GOOD = b"name: a\ninner: {count: 1}\n"


def test_yaml_and_json_mean_the_same():
    assert documents.parse(GOOD, Example, "x") == documents.parse(b'{"name":"a","inner":{"count":1}}', Example, "x")
    assert documents.parse(GOOD, Example, "x") == Example(name="a", inner=Inner(count=1))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"name: a\n", "inner"),
        (GOOD + b"colour: red\n", "colour"),
        (b"name: a\ninner: {count: 1, more: 2}\n", "more"),
        (b"name: 7\ninner: {count: 1}\n", "str"),
        (b"name: a\ninner: {count: '1'}\n", "int"),
        (b"name: a\ninner: {count: true}\n", "int"),
        (b"name: a\ninner: {count: 1.5}\n", "int"),
        (GOOD + b"ratio: 'x'\n", "float"),
        (b"", "object"),
        (b"- a\n- b\n", "object"),
        (b"name: [a\n", "not YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"name: a\x00\ninner: {count: 1}\n", "not YAML"),
        (GOOD + b"---\n" + GOOD, "not YAML"),
        (GOOD + b"name: b\n", "duplicate key at line"),
        (b"name: a\ninner: {count: 1, count: 2}\n", "duplicate key"),
        (GOOD + b"tags: {1: 1, '1': 2}\n", "duplicate key"),
        (GOOD + b"tags: &t {a: 1}\n", None),
        (b"name: &n a\ninner: {count: 1}\ntags: {*n : 1}\n", "aliases"),
        (b"name: a\ninner: &i {count: 1}\ntags: *i\n", "aliases"),
        (b"name: !!python/object/apply:os.system ['true']\ninner: {count: 1}\n", "not YAML"),
        (b"name: !local a\ninner: {count: 1}\n", "not YAML"),
        (GOOD + b"? {a: b}\n: c\n", "x: "),
        (GOOD + b"? [a, b]\n: c\n", "x: "),
        (GOOD + b"tags: " + b"[" * 5000, "not YAML"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_name(data, match):
    if match is None:  # an anchor that nobody refers to is harmless
        documents.parse(data, Example, "x")
        return
    with pytest.raises(ConfigError, match=match) as caught:
        documents.parse(data, Example, "x")
    assert str(caught.value).startswith("x: ")
    assert caught.value.exit_code == 3


def test_an_expansion_bomb_is_refused_at_once():
    bomb = b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    for last, here in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{here}: &{here} [{', '.join([f'*{last}'] * 9)}]\n".encode()
    with pytest.raises(ConfigError, match="aliases"):
        documents.parse(bomb, Example, "x")


def test_merge_keys_cannot_hide_a_second_meaning():
    with pytest.raises(ConfigError):
        documents.parse(GOOD + b"<<: {name: b}\n", Example, "x")


def test_size_bound_is_exact(tmp_path):
    path = tmp_path / "x.yml"
    fits = GOOD + b"#" * (MAX_DOCUMENT - len(GOOD))
    path.write_bytes(fits)
    assert documents.load(path, Example).name == "a"
    path.write_bytes(fits + b"#")
    with pytest.raises(ConfigError, match=r"x\.yml: larger than the 1048576 bytes"):
        documents.load(path, Example)
    with pytest.raises(ConfigError, match="larger"):
        documents.parse(fits + b"#", Example, "x")


def test_missing_file_and_folder_are_named(tmp_path):
    for path, why in ((tmp_path / "none.yml", "cannot be read"), (tmp_path, "not a regular file")):
        with pytest.raises(ConfigError, match=f"{re.escape(str(path))}: {why}"):
            documents.load(path, Example)


def test_pipes_and_devices_are_not_opened(tmp_path):
    """A pipe blocks whoever opens it, /dev/zero never ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="not a regular file"):
            documents.read_bytes(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data):
    try:
        documents.parse(data, Example, "x")
    except ConfigError as error:
        assert str(error).startswith("x: ")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abn:&*!?<>|{}[],'\"#-%@ \n\t1\\", max_size=60))
def test_any_yaml_like_text_is_parsed_or_refused(text):
    try:
        documents.parse(text.encode(), Example, "x")
    except ConfigError as error:
        assert str(error).startswith("x: ")


TAGS = ("timestamp", "bool", "int", "float", "binary", "omap", "pairs", "set", "null", "str", "seq", "map", "merge")


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("value", ["x", "''", "[]", "{}", "[1]", "{a: 1}", "2020-99-99", "1:", "-", "é", "9" * 5000])
def test_a_value_that_does_not_fit_its_tag_is_refused(tag, value):
    for schema in (dict, Example):
        try:
            documents.parse(f"a: !!{tag} {value}".encode(), schema, "x")
        except ConfigError as error:
            assert str(error).startswith("x: ")


@pytest.mark.parametrize(
    "text", ["a: !!timestamp x", "a: " + "9" * 5000, "a: 2020-13-45", "a: !!bool x", "a: !!int ''"]
)
def test_what_yaml_itself_chokes_on(text):
    with pytest.raises(ConfigError, match=r"^x: "):
        documents.parse(text.encode(), dict, "x")
    with pytest.raises(ConfigError, match=r"^contract\.yml: "):
        contract_digest(text.encode())


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60)
    | st.tuples(st.sampled_from(TAGS), st.text(alphabet="0123456789.:-+exob_ T'[]{}", max_size=20)).map(
        lambda pair: f"a: !!{pair[0]} {pair[1]}"
    )
)
def test_any_text_has_a_contract_digest_or_is_refused(text):
    try:
        digest = contract_digest(text.encode(errors="surrogatepass"))
    except ConfigError as error:
        assert str(error)
    else:
        assert re.fullmatch(r"[0-9a-f]{64}", digest)


def test_numbers_that_no_canonical_form_can_say():
    for text in (b"a: 0x" + b"f" * 5000, b"a: .nan", b"a: 9007199254740993", b"a: 2020-01-02", b'a: "\\ud800"'):
        with pytest.raises(ConfigError):
            contract_digest(text)


@given(st.text(min_size=1, max_size=20), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_written_is_read_back(name, count, ratio):
    body = {"name": name, "inner": {"count": count}, "ratio": ratio}
    text = yaml.safe_dump(body)
    assert documents.body_of(documents.parse(text.encode(), Example, "x")) == {**body, "tags": {}}


def test_content_digest_ignores_layout_and_sees_content():
    one = documents.parse(GOOD, Example, "x")
    two = documents.parse(b"# note\ninner:\n  count: 1\nname: 'a'\nratio: 0.5\n", Example, "x")
    three = documents.parse(b"name: a\ninner: {count: 2}\n", Example, "x")
    assert documents.content_digest(one) == documents.content_digest(two) != documents.content_digest(three)
    canonical = b'{"inner":{"count":1},"name":"a","ratio":0.5,"tags":{}}'
    assert documents.content_digest(one) == signing.digest("cordon/document/v1", canonical)


@pytest.fixture
def signed(tmp_path):
    path = tmp_path / "x.yml"
    path.write_bytes(GOOD)
    documents.sign_file(path, "test/v1", KEY)
    return path


def load(path, keys=(KEY,), schema="test/v1", threshold=1):
    return documents.load_signed(path, Example, schema, [key.public_key() for key in keys], NOW, threshold)


def test_signed_document_is_read(signed):
    assert load(signed).name == "a"
    body = json.loads(base64.b64decode(json.loads(documents.signature_path(signed).read_text())["payload"]))
    assert body == {"document": "test/v1", "sha256": hashlib.sha256(GOOD).hexdigest()}


@pytest.mark.parametrize("change", [b"#", b" ", b"\n", b"tags: {a: 1}\n"])
def test_any_changed_byte_breaks_the_signature(signed, change):
    signed.write_bytes(GOOD + change)
    with pytest.raises(SignatureError, match="changed after it was signed"):
        load(signed)


def test_signature_of_another_kind_of_document_is_refused(signed):
    with pytest.raises(SignatureError, match="another kind than test/v2"):
        load(signed, schema="test/v2")


def test_signature_by_a_stranger_is_refused(signed):
    with pytest.raises(SignatureError, match="signed by 0 trusted keys"):
        load(signed, keys=(OTHER,))


def test_signature_of_another_file_is_refused(signed):
    twin = signed.with_name("y.yml")
    twin.write_bytes(GOOD.replace(b"a", b"b", 1))
    documents.signature_path(twin).write_bytes(documents.signature_path(signed).read_bytes())
    with pytest.raises(SignatureError, match="changed"):
        load(twin)


def test_missing_and_broken_signature_files(signed):
    signature = documents.signature_path(signed)
    for content in (b"", b"{", b"null", b"[]", b"\xff", b'{"payloadType": 1}', b'{"a":"\xff"}', b"[" * 100_000):
        signature.write_bytes(content)
        with pytest.raises(SignatureError, match=r"x\.yml\.sig"):
            load(signed)
    signature.unlink()
    with pytest.raises(SignatureError, match="cordon sign"):
        load(signed)


def test_an_envelope_of_another_payload_type_is_refused(signed):
    body = {"document": "test/v1", "sha256": hashlib.sha256(GOOD).hexdigest()}
    envelope = signing.sign(KEY, "application/vnd.cordon.other.v1+json", body)
    documents.signature_path(signed).write_text(json.dumps(envelope))
    with pytest.raises(SignatureError, match="payload type"):
        load(signed)


def test_several_signers_add_up_and_resigning_after_a_change_starts_over(signed):
    with pytest.raises(SignatureError, match="signed by 1 trusted keys, want 2"):
        load(signed, keys=(KEY, OTHER), threshold=2)
    documents.sign_file(signed, "test/v1", OTHER)
    assert load(signed, keys=(KEY, OTHER), threshold=2).name == "a"
    signed.write_bytes(GOOD + b"# changed\n")
    documents.sign_file(signed, "test/v1", OTHER)
    with pytest.raises(SignatureError, match="signed by 1 trusted keys, want 2"):
        load(signed, keys=(KEY, OTHER), threshold=2)


def test_signing_twice_with_one_key_counts_once(signed):
    documents.sign_file(signed, "test/v1", KEY)
    envelope = json.loads(documents.signature_path(signed).read_text())
    assert len(envelope["signatures"]) == 1
    with pytest.raises(SignatureError, match="signed by 1"):
        load(signed, keys=(KEY, OTHER), threshold=2)


def test_what_was_verified_is_what_is_parsed(signed, monkeypatch):
    """The file is read once: an attacker who swaps it between check and use gains nothing."""
    reads = []
    original = documents.read_bytes

    def counting(path, limit=MAX_DOCUMENT):
        reads.append(path.name)
        return original(path, limit)

    monkeypatch.setattr(documents, "read_bytes", counting)
    load(signed)
    assert reads == ["x.yml", "x.yml.sig"]
