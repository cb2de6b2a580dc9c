"""DSSE over canonical JSON: what is refused, and why."""

import base64
import copy
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cordon import signing
from cordon.errors import ConfigError, SignatureError
from cordon.signing import TrustedKey, add_signature, canonical, digest, lp, sign, spki_digest, verify

NOW = datetime(2026, 11, 24, tzinfo=UTC)
TYPE = "application/vnd.cordon.test.v1+json"
KEY, OTHER, THIRD = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
RSA = rsa.generate_private_key(65537, 2048)
BODY = {"b": 1, "a": [True, None, "x"], "c": {"d": 0.5}}


def b64(data):
    return base64.b64encode(data).decode()


def raw_envelope(payload, *keys, kind=TYPE):
    """An envelope over any payload bytes, signed properly: what a trusted but careless or hostile signer could make."""
    message = signing._pae(kind, payload)
    entries = [{"keyid": spki_digest(key.public_key()), "sig": b64(key.sign(message))} for key in keys]
    return {"payloadType": kind, "payload": b64(payload), "signatures": entries}


def check(envelope, *keys, kind=TYPE, now=NOW, threshold=1):
    return verify(
        envelope,
        kind,
        [getattr(key, "public_key", lambda k=key: k)() if not isinstance(key, TrustedKey) else key for key in keys],
        now,
        threshold,
    )


@pytest.mark.parametrize("key", [KEY, RSA], ids=["ed25519", "rsa"])
def test_what_is_signed_is_read(key):
    envelope = json.loads(json.dumps(sign(key, TYPE, BODY)))
    assert check(envelope, key) == (BODY, (spki_digest(key.public_key()),))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**52), 2.0**52)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_any_json_object_comes_back(body):
    assert check(sign(KEY, TYPE, body), KEY)[0] == body


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4), st.data())
def test_any_flipped_bit_is_refused(body, data):
    envelope = sign(KEY, TYPE, body)
    where = data.draw(st.sampled_from(["payload", "sig"]))
    holder = envelope if where == "payload" else envelope["signatures"][0]
    raw = bytearray(base64.b64decode(holder[where]))
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    holder[where] = b64(bytes(raw))
    with pytest.raises(SignatureError):
        check(envelope, KEY)


@given(json_values)
def test_any_json_is_no_envelope(value):
    with pytest.raises(SignatureError):
        check(value, KEY)


def test_known_answer():
    """The signed bytes are the DSSE v1 encoding over RFC 8785 JSON, by an independent construction."""
    envelope = sign(KEY, TYPE, BODY)
    payload = b'{"a":[true,null,"x"],"b":1,"c":{"d":0.5}}'
    assert base64.b64decode(envelope["payload"]) == payload
    message = b" ".join([b"DSSEv1", str(len(TYPE)).encode(), TYPE.encode(), str(len(payload)).encode(), payload])
    KEY.public_key().verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)


def test_dsse_published_pre_authentication_vector():
    """protocol.md of DSSE: PAE("http://example.com/HelloWorld", "hello world")."""
    assert signing._pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


# -- Type confusion


def test_another_payload_type_is_refused():
    with pytest.raises(SignatureError, match="payload type"):
        check(sign(KEY, TYPE, BODY), KEY, kind="application/vnd.cordon.ticket.v1+json")


def test_relabelled_payload_type_is_refused():
    envelope = {**sign(KEY, TYPE, BODY), "payloadType": "application/vnd.cordon.ticket.v1+json"}
    with pytest.raises(SignatureError, match="signed by 0"):
        check(envelope, KEY, kind="application/vnd.cordon.ticket.v1+json")


@pytest.mark.parametrize("kind", [None, 1, [TYPE], {"a": 1}, TYPE.upper(), TYPE + " ", ""])
def test_payload_type_of_another_form(kind):
    with pytest.raises(SignatureError):
        check({**sign(KEY, TYPE, BODY), "payloadType": kind}, KEY)


def test_the_algorithm_is_the_keys_not_the_messages():
    """A PKCS#1 v1.5 signature by the trusted RSA key, and an Ed25519 signature under the RSA key's id, are refused."""
    payload = canonical(BODY)
    message = signing._pae(TYPE, payload)
    for signature in (RSA.sign(message, padding.PKCS1v15(), hashes.SHA256()), KEY.sign(message)):
        envelope = raw_envelope(payload)
        envelope["signatures"] = [{"keyid": spki_digest(RSA.public_key()), "sig": b64(signature)}]
        with pytest.raises(SignatureError, match="signed by 0"):
            check(envelope, RSA)


# -- Who signed


def test_a_stranger_is_refused_and_cannot_name_itself_trusted():
    envelope = sign(OTHER, TYPE, BODY)
    with pytest.raises(SignatureError, match="signed by 0"):
        check(envelope, KEY)
    envelope["signatures"][0]["keyid"] = spki_digest(KEY.public_key())
    with pytest.raises(SignatureError, match="signed by 0"):
        check(envelope, KEY)


def test_no_trusted_keys_means_no():
    with pytest.raises(SignatureError, match="signed by 0"):
        check(sign(KEY, TYPE, BODY))


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_below_one_is_refused(threshold):
    with pytest.raises(SignatureError):
        check(sign(KEY, TYPE, BODY), KEY, threshold=threshold)


def test_duplicated_signatures_count_once():
    envelope = sign(KEY, TYPE, BODY)
    envelope["signatures"] *= 3
    assert check(envelope, KEY, OTHER)[1] == (spki_digest(KEY.public_key()),)
    with pytest.raises(SignatureError, match="signed by 1 trusted keys, want 2"):
        check(envelope, KEY, OTHER, threshold=2)


def test_a_key_that_is_trusted_twice_counts_once():
    with pytest.raises(SignatureError, match="signed by 1 trusted keys, want 2"):
        check(sign(KEY, TYPE, BODY), KEY, KEY, threshold=2)


def test_threshold_counts_distinct_trusted_keys():
    envelope = add_signature(sign(KEY, TYPE, BODY), OTHER)
    assert set(check(envelope, KEY, OTHER, THIRD, threshold=2)[1]) == {
        spki_digest(k.public_key()) for k in (KEY, OTHER)
    }
    with pytest.raises(SignatureError, match="want 3"):
        check(envelope, KEY, OTHER, THIRD, threshold=3)
    with pytest.raises(SignatureError, match="want 2"):
        check(envelope, KEY, THIRD, threshold=2)


def test_a_strangers_signature_beside_a_good_one_does_no_harm_and_no_good():
    envelope = add_signature(sign(KEY, TYPE, BODY), OTHER)
    assert check(envelope, KEY)[1] == (spki_digest(KEY.public_key()),)


def test_a_broken_signature_before_a_good_one_of_the_same_key():
    envelope = sign(KEY, TYPE, BODY)
    good = envelope["signatures"][0]
    envelope["signatures"] = [{**good, "sig": b64(bytes(64))}, good]
    assert len(check(envelope, KEY)[1]) == 1


def test_adding_twice_with_one_key_replaces():
    envelope = add_signature(add_signature(sign(KEY, TYPE, BODY), OTHER), OTHER)
    assert len(envelope["signatures"]) == 2


def test_adding_to_a_non_canonical_payload_is_refused():
    with pytest.raises(SignatureError, match="not canonical"):
        add_signature(raw_envelope(b'{"b": 1, "a": 2}', KEY), OTHER)


# -- When


def test_validity_period_of_a_key():
    envelope = sign(KEY, TYPE, BODY)
    trusted = TrustedKey(KEY.public_key(), NOW, NOW + timedelta(days=1))
    for now in (NOW, NOW + timedelta(days=1)):
        check(envelope, trusted, now=now)
    with pytest.raises(SignatureError, match="valid from"):
        check(envelope, trusted, now=NOW - timedelta(seconds=1))
    with pytest.raises(SignatureError, match="expired"):
        check(envelope, trusted, now=NOW + timedelta(days=1, seconds=1))


# -- One encoding per value


@pytest.mark.parametrize(
    "payload",
    [
        b'{"b":1,"a":2}',  # order
        b'{"a": 2}',  # blanks
        b'{"a":2}\n',
        b'{"a":2.0}',  # number form
        b'{"a":1e2}',
        b'{"a":-0}',
        b'{"a":"\\u0061"}',  # needless escape
        b'{"a":1,"a":2}',  # doubled key: two readers, two meanings
        b'{"a":9007199254740993}',  # beyond what RFC 8785 can say
        b'{"a":NaN}',
        b'{"a":"\xff"}',  # not UTF-8
        b'{"a":"\\ud800"}',  # lone surrogate
        b"[1]",
        b'"text"',
        b"null",
        b"1",
        b"",
        b"{",
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_a_payload_that_is_not_canonical_is_refused_though_signed(payload):
    with pytest.raises(SignatureError):
        check(raw_envelope(payload, KEY), KEY)


@pytest.mark.parametrize("text", ["e30", "e30=\n", " e30=", "e31=", "e30==", "é30=", "e3_=", "", 7, None, ["e30="]])
def test_base64_has_one_form(text):
    """'e30=' is '{}'; 'e31=' decodes to the same bytes with stray bits set."""
    envelope = {**raw_envelope(b"{}", KEY), "payload": text}
    with pytest.raises(SignatureError):
        check(envelope, KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"signatures": []},
        {"signatures": {}},
        {"signatures": "x"},
        {"signatures": [None]},
        {"signatures": [{"keyid": "x"}]},
        {"signatures": [{"keyid": "x", "sig": "", "alg": "none"}]},
    ],
)
def test_malformed_envelopes(change):
    with pytest.raises(SignatureError):
        check({**sign(KEY, TYPE, BODY), **change}, KEY)


@pytest.mark.parametrize("keyid", [None, 1, [], {}, ["a"]])
def test_key_id_of_another_type_is_no_crash(keyid):
    envelope = sign(KEY, TYPE, BODY)
    envelope["signatures"][0]["keyid"] = keyid
    with pytest.raises(SignatureError, match="signed by 0"):
        check(envelope, KEY)


def test_missing_parts():
    for name in ("payloadType", "payload", "signatures"):
        envelope = copy.deepcopy(sign(KEY, TYPE, BODY))
        del envelope[name]
        with pytest.raises(SignatureError, match="not a DSSE envelope"):
            check(envelope, KEY)


def test_sizes_are_bounded_before_work_is_done(monkeypatch):
    envelope = sign(KEY, TYPE, BODY)
    envelope["signatures"] *= signing.MAX_SIGNATURES + 1
    with pytest.raises(SignatureError, match="want 1 to"):
        check(envelope, KEY)
    monkeypatch.setattr(base64, "b64decode", lambda *a, **k: pytest.fail("decoded before the bound was looked at"))
    with pytest.raises(SignatureError, match="at most"):
        check({**sign(KEY, TYPE, BODY), "payload": "A" * (signing.MAX_ENVELOPE * 4 // 3 + 8)}, KEY)


def test_unverified_body_says_what_it_can_and_raises_otherwise():
    assert signing.unverified_body(sign(KEY, TYPE, BODY)) == BODY
    payloads = (b"[", b"[]", b'{"a":"\xff"}', b"[" * 100_000)
    for envelope in (None, [], "x", {}, {"payload": 1}, *({"payload": b64(payload)} for payload in payloads)):
        with pytest.raises(SignatureError):
            signing.unverified_body(envelope)


def test_a_whole_float_beyond_the_safe_integers_fails_closed():
    """RFC 8785 writes 2.0**53 without a point; read back it is an integer that JSON readers disagree on: refused."""
    with pytest.raises(SignatureError):
        check(sign(KEY, TYPE, {"a": 2.0**53}), KEY)
    assert check(sign(KEY, TYPE, {"a": 1e300}), KEY)[0] == {"a": 1e300}


# -- Hashing


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_two_lists_of_parts_hash_alike_only_if_equal(one, two):
    assert (digest("l", *one) == digest("l", *two)) == (one == two)


def test_digest_separates_labels_and_parts():
    assert digest("a", b"b") != digest("ab") != digest("", b"ab")
    assert lp(b"") == bytes(4)


def test_canonical_refuses_what_json_cannot_say():
    for body in ({"a": float("nan")}, {"a": float("inf")}, {"a": 2**53}, {"a": b"x"}, {"a": object()}, {1: 2}):
        with pytest.raises(ConfigError, match="canonical JSON"):
            canonical(body)
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ConfigError, match="canonical JSON"):
        canonical(nested)


# -- Keys


def encodings(key):
    public = key.public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return [public.public_bytes(form, spki) for form in (serialization.Encoding.PEM, serialization.Encoding.DER)]


def certificate(key):
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hospital-a")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW, NOW + timedelta(days=1))
    return builder.sign(key, None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256())


@pytest.mark.parametrize("key", [KEY, RSA], ids=["ed25519", "rsa"])
def test_public_keys_in_every_form(key):
    made = certificate(key)
    forms = encodings(key) + [
        made.public_bytes(form) for form in (serialization.Encoding.PEM, serialization.Encoding.DER)
    ]
    assert {spki_digest(signing.load_public_key(form)) for form in forms} == {spki_digest(key.public_key())}
    assert spki_digest(signing.decode_spki(signing.encode_spki(key.public_key()))) == spki_digest(key.public_key())


@pytest.mark.parametrize("key", [KEY, RSA], ids=["ed25519", "rsa"])
def test_private_keys_in_every_form(key):
    for form in (serialization.Encoding.PEM, serialization.Encoding.DER):
        data = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        assert spki_digest(signing.load_private_key(data).public_key()) == spki_digest(key.public_key())


@pytest.mark.parametrize(
    "weak",
    [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 1024)],  # noqa: S505 - to be refused
    ids=["ec", "rsa-1024"],
)
def test_other_and_weak_keys_are_refused(weak):
    for data in encodings(weak):
        with pytest.raises(ConfigError, match="not accepted"):
            signing.load_public_key(data)
    data = weak.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigError, match="not accepted"):
        signing.load_private_key(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_no_key(data):
    for read in (signing.load_public_key, signing.load_private_key):
        for junk in (data, b"-----BEGIN PUBLIC KEY-----" + data, b"-----BEGIN CERTIFICATE-----" + data):
            with pytest.raises(ConfigError):
                read(junk)


@pytest.mark.parametrize(
    "der",
    [
        "300d300506032a0304030400010101",  # algorithm 1.2.3.4
        "3017300f06072a8648ce3d020106032a0304030400040101",  # EC on curve 1.2.3.4
    ],
    ids=["algorithm", "curve"],
)
def test_a_key_of_an_unknown_kind_is_refused(der):
    data = bytearray.fromhex(der)
    data[1] = len(data) - 2
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(data) + b"\n-----END PUBLIC KEY-----\n"
    for each in (bytes(data), pem, pem.replace(b"PUBLIC KEY", b"CERTIFICATE")):
        with pytest.raises(ConfigError):
            signing.load_public_key(each)
    for each in (bytes(data), pem.replace(b"PUBLIC", b"PRIVATE")):
        with pytest.raises(ConfigError):
            signing.load_private_key(each)


def test_a_certificate_of_an_unknown_version_is_no_key():
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(KEY, None)
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert spki_digest(signing.load_public_key(der)) == spki_digest(KEY.public_key())
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1
    with pytest.raises(ConfigError, match="not a public key or certificate"):
        signing.load_public_key(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"))


def test_encrypted_private_key_is_refused_in_words():
    data = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(ConfigError, match="unencrypted"):
        signing.load_private_key(data)


@given(st.text(max_size=60))
def test_any_text_is_no_spki(text):
    with pytest.raises(ConfigError):
        signing.decode_spki(text)
