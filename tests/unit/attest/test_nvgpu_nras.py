"""Tokens of a made-up NRAS: what they have to say, and the ways to forge one."""

import base64
import json
from datetime import timedelta

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cordon.attest.nvgpu import NrasPolicy, nras
from cordon.errors import ConfigError
from fakes.nvidia_pki import ISSUER, KID, NONCE, NOW, NvidiaPki

ANY = NrasPolicy(**(dict.fromkeys(NrasPolicy.__struct_fields__, "any") | {"issuer": ISSUER}))
BOTH = {"GPU-0": {}, "SWITCH-0": {}}


@pytest.fixture(scope="module")
def pki():
    return NvidiaPki()


@pytest.fixture
def judge(pki):
    def call(token=None, policy=ANY, nonce=NONCE, now=NOW, jwks=None):
        given = pki.token() if token is None else token
        return nras.verify(given, jwks=jwks or pki.jwks, nonce=nonce, now=now, policy=policy)

    return call


def failed(appraisal):
    return {check.code for check in appraisal.checks if check.result == "fail"}


def test_a_token_passes(judge, pki):
    wanted = msgspec.structs.replace(
        ANY,
        max_age_s=120.0,
        arch=("hopper", "ls10"),
        driver_version=("550.90.07",),
        vbios_version=("96.00.9F.00.01", "96.10.55.00.01"),
        ocsp="required",
        count=1,
        switches=1,
    )
    appraisal = judge(pki.token(BOTH), wanted)
    assert appraisal.genuine
    assert appraisal.verdict == "pass"
    assert appraisal.type == "nras"
    assert set(appraisal.claims["devices"]) == {"GPU-0", "SWITCH-0"}


def test_without_a_policy(judge):
    appraisal = judge(policy=None)
    assert appraisal.genuine
    assert appraisal.verdict == "not_checked"


def test_without_a_nonce(judge):
    assert judge(nonce=None).verdict == "not_checked"


# -- the attacks on FLARE's GPUAuthorizer (demonstrated on nvflare 2.9.0) ---------------------------------------------


def test_g1_empty_device_claims(judge, pki):
    """The overall token is real; the device's claims are an unsigned or a signed nothing."""
    empty = pki.jwt({})
    assert {"token_submods", "measurements", "debug", "nonce"} <= failed(judge(pki.token(texts={"GPU-0": empty})))
    for text in ("", "{}", "e30.e30.", jwt.encode({}, "k" * 32, algorithm="HS256")):
        assert failed(judge(pki.token(texts={"GPU-0": text}))) == {"token_signature"}


def test_g2_device_claims_of_another_session(judge, pki):
    """A perfect GPU's claims, signed by the service, under an overall token that is not about them."""
    other = json.loads(pki.token({"GPU-0": {"ueid": "1234"}}))[1]["GPU-0"]
    appraisal = judge(pki.token({"GPU-0": {"measres": "fail"}}, texts={"GPU-0": other}))
    assert failed(appraisal) == {"token_submods"}
    assert not appraisal.genuine


def test_g2_devices_added_and_left_out(judge, pki):
    other = json.loads(pki.token({"GPU-1": {}}))[1]
    assert "token_submods" in failed(judge(pki.token(texts=other)))
    head, parts = json.loads(pki.token(BOTH))
    del parts["SWITCH-0"]
    assert failed(judge(json.dumps([head, parts]).encode())) == {"token_submods"}
    nobody = failed(judge(json.dumps([head, {}]).encode()))
    assert {"token_submods", "measurements", "secure_boot", "debug", "report_findings", "certificates"} <= nobody


def test_g3_debug_and_no_secure_boot(judge, pki):
    assert failed(judge(pki.token({"GPU-0": {"dbgstat": "enabled", "secboot": False}}))) == {"debug", "secure_boot"}
    assert failed(judge(pki.token({"GPU-0": {"dbgstat": "enabled"}}), policy=None)) == {"debug"}
    assert failed(judge(pki.token({"GPU-0": {}, "GPU-1": {"secboot": None}}))) == {"secure_boot"}
    assert failed(judge(pki.token({"GPU-0": {"secboot": 1, "dbgstat": None}}))) == {"debug", "secure_boot"}


def test_f4_replay(judge, pki):
    """A token answers one challenge; a verifier that was restarted has another."""
    appraisal = judge(nonce=bytes(32))
    assert failed(appraisal) == {"nonce"}
    assert appraisal.genuine
    assert appraisal.verdict == "fail"
    assert failed(judge(pki.token({"GPU-0": {"eat_nonce": "00" * 32}}))) == {"nonce"}
    assert failed(judge(pki.token(overall={"eat_nonce": None}))) == {"nonce"}


# -- signatures and keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sign",
    [
        {"key": ec.generate_private_key(ec.SECP384R1())},
        {"kid": "unknown"},
        {"key": "k" * 64, "algorithm": "HS256"},
        {"key": "k" * 64, "algorithm": "HS384"},
        {"key": None, "algorithm": "none"},
        {"key": ec.generate_private_key(ec.SECP256R1()), "algorithm": "ES256"},
    ],
)
def test_signed_in_another_way(judge, pki, sign):
    appraisal = judge(pki.token(sign=sign))
    assert failed(appraisal) == {"token_signature"}
    assert not appraisal.genuine
    assert not appraisal.claims  # nothing is read out of what nobody signed
    asked = {check.code for check in judge().checks}
    assert {check.code for check in appraisal.checks} == asked  # every question is there, as not asked


def test_critical_header_extensions(judge, pki):
    """RFC 7515 section 4.1.11: who does not understand a critical extension must not accept the token."""
    claims = jwt.decode(json.loads(pki.token())[0][1], options={"verify_signature": False})
    header = {"kid": KID, "crit": ["x"], "x": 1}
    whole = jwt.PyJWS().encode(json.dumps(claims).encode(), pki.nras, algorithm="ES384", headers=header)
    forged = json.dumps([["JWT", whole], json.loads(pki.token())[1]]).encode()
    assert "token_signature" in failed(judge(forged))


def test_the_key_set_as_a_mac_key(judge, pki):
    """Algorithm confusion: the public key, which everybody has, as an HMAC secret."""

    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    import hmac

    signing_input = part({"alg": "HS384", "kid": KID}) + b"." + part({"x-nvidia-overall-att-result": True})
    mac = base64.urlsafe_b64encode(hmac.digest(pki.jwks, signing_input, "sha384")).rstrip(b"=")
    head, parts = json.loads(pki.token())
    forged = json.dumps([["JWT", (signing_input + b"." + mac).decode()], parts]).encode()
    assert failed(judge(forged)) == {"token_signature"}
    assert head


def test_no_byte_of_the_tokens_can_be_changed(judge, pki):
    whole = json.loads(pki.token())
    text = whole[0][1]
    for position in range(0, len(text), 5):
        other = "A" if text[position] != "A" else "B"
        changed = [["JWT", text[:position] + other + text[position + 1 :]], whole[1]]
        assert failed(judge(json.dumps(changed).encode())) == {"token_signature"}, position


@pytest.mark.parametrize(
    ("jwks", "word"),
    [
        (b"", "not JSON"),
        (b"[]", "list of keys"),
        (b'{"keys": {}}', "list of keys"),
        (b'{"keys": [1]}', "list of keys"),
        (b'{"keys": []}', "no P-384 key"),
        (b'{"keys": [{"kty": "RSA"}, {"kty": "EC", "crv": "P-256"}, {"kty": "oct"}]}', "no P-384 key"),
        (b'{"keys": [{"kty": "EC", "crv": "P-384"}]}', "no kid"),
        (b'{"keys": [{"kty": "EC", "crv": "P-384", "kid": "a", "x": "AA", "y": "AA"}]}', "not a point"),
        (b'{"keys": [{"kty": "EC", "crv": "P-384", "kid": "a", "x": 1}]}', "not a point"),
        (b'{"keys": [{"kty": "EC", "crv": "P-384", "kid": "a", "x": "\xc3\xbc"}]}', "not a point"),
        (b" " * 70_000, "65536"),
    ],
)
def test_key_sets_that_cannot_be_read(judge, jwks, word):
    with pytest.raises(ConfigError, match=rf"^jwks_format: .*{word}"):
        judge(jwks=jwks or b" ")


def test_a_key_id_twice(judge, pki):
    keys = json.loads(pki.jwks)
    with pytest.raises(ConfigError, match=r"^jwks_format: "):
        judge(jwks=json.dumps({"keys": keys["keys"] * 2}).encode())


# -- time, issuer, findings, policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [timedelta(seconds=-61), timedelta(seconds=3601), timedelta(days=365)])
def test_out_of_time(judge, ahead):
    appraisal = judge(now=NOW + ahead)
    assert failed(appraisal) == {"token_time"}
    assert all(check.clock for check in appraisal.checks if check.result == "fail")


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [None, "1", True, 1.5, -1, 10**30, []])
def test_times_that_are_none(judge, pki, name, value):
    assert "token_time" in failed(judge(pki.token({"GPU-0": {name: value}})))


def test_the_devices_time_counts_as_well(judge, pki):
    assert failed(judge(pki.token({"GPU-0": {"exp": int(NOW.timestamp()) - 1}}))) == {"token_time"}


def test_age(judge):
    assert judge(policy=msgspec.structs.replace(ANY, max_age_s=60.0)).verdict == "pass"
    assert failed(judge(policy=msgspec.structs.replace(ANY, max_age_s=59.0))) == {"token_age"}


def test_issuer(judge, pki):
    for changes in ({"overall": {"iss": "https://evil.test"}}, {"devices": {"GPU-0": {"iss": ISSUER + "/"}}}):
        assert failed(judge(pki.token(**changes))) == {"token_issuer"}


@pytest.mark.parametrize("value", [False, None, "true", 1])
def test_overall_result(judge, pki, value):
    appraisal = judge(pki.token(overall={"x-nvidia-overall-att-result": value}))
    assert failed(appraisal) == {"overall_result"}
    assert not appraisal.genuine


@pytest.mark.parametrize("finding", nras.FINDINGS)
def test_findings(judge, pki, finding):
    for value in (False, None, "true"):
        claim = {finding.format(kind="gpu"): value}
        assert failed(judge(pki.token({"GPU-0": claim}))) == {"report_findings"}


def test_certificates_and_revocation(judge, pki):
    name = "x-nvidia-gpu-attestation-report-cert-chain"
    wanted = msgspec.structs.replace(ANY, ocsp="required")
    expired = {name: {"x-nvidia-cert-status": "expired", "x-nvidia-cert-ocsp-status": "good"}}
    assert failed(judge(pki.token({"GPU-0": expired}), wanted)) == {"certificates"}
    revoked = {name: {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "revoked"}}
    assert failed(judge(pki.token({"GPU-0": revoked}), wanted)) == {"ocsp"}
    assert not judge(pki.token({"GPU-0": revoked}), wanted).genuine
    assert failed(judge(pki.token({"GPU-0": {name: None}}), wanted)) == {"certificates", "ocsp"}
    assert failed(judge(pki.token({"GPU-0": {name: "x"}}), wanted)) == {"certificates", "ocsp"}


@pytest.mark.parametrize("value", ["fail", None, True])
def test_measurements(judge, pki, value):
    assert failed(judge(pki.token({"GPU-0": {"measres": value}}))) == {"measurements"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("arch", ("blackwell",)),
        ("driver_version", ("550.90.08",)),
        ("vbios_version", ("96.00.9F.00.02",)),
        ("ueid", ("1",)),
        ("count", 2),
        ("switches", 1),
    ],
)
def test_policy(judge, field, value):
    appraisal = judge(policy=msgspec.structs.replace(ANY, **{field: value}))
    assert failed(appraisal) == {field}
    assert appraisal.genuine


def test_one_device_twice(judge, pki):
    twice = pki.token({"GPU-0": {"ueid": "7"}, "GPU-1": {"ueid": "7"}})
    assert failed(judge(twice, msgspec.structs.replace(ANY, count=2))) == {"duplicate", "count"}


@pytest.mark.parametrize(
    "submods",
    [None, [], "x", {"GPU-0": "x"}, {"GPU-0": ["DIGEST", ["SHA-1", "00"]]}, {"GPU-0": ["DIGEST", ["SHA-256", 1]]}],
)
def test_submods_that_are_none(judge, pki, submods):
    assert failed(judge(pki.token(overall={"submods": submods}))) == {"token_submods"}


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"x",
        b"\xff",
        b"{}",
        b"[]",
        b"[1,2]",
        b'[["JWT"],{}]',
        b'[["JWT",1],{}]',
        b'[["CWT","a"],{}]',
        b'[["JWT","a"],[]]',
        b'[["JWT","a"],{"GPU-0":1}]',
        b'[["JWT","a"],{"CPU-0":"a"}]',
        b'[["JWT","a"],{"GPU-0":"a","GPU-0":"b"}]',
        b"[" * 100_000,
        json.dumps([["JWT", "a"], {f"GPU-{n}": "a" for n in range(65)}]).encode(),
        b" " * (nras.MAX_TOKEN + 1),
    ],
)
def test_tokens_that_cannot_be_read(judge, token):
    with pytest.raises(ConfigError, match=r"^token_format: "):
        judge(token)


def test_a_nonce_of_another_length(judge):
    with pytest.raises(ConfigError, match=r"^nonce_format: "):
        judge(nonce=b"x")
