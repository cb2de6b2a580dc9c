"""MAA tokens: what a good one shows, every reason to refuse one, and the attacks on JWTs."""

import base64
import hashlib
import hmac
import json
import random
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.attest.azure import jose, maa
from cordon.attest.azure.policy import MaaPolicy
from cordon.errors import ConfigError
from fakes import azure_pki
from fakes.open_policies import anything

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NONCE = b"n" * 32


def snp_policy(**changes):
    wanted = {
        "issuer": [azure_pki.ISSUER],
        "max_age_s": 600,
        "nonce": "required",
        "policy_hash": [azure_pki.POLICY_HASH],
        "isolation_tee": ["sevsnpvm"],
        "compliance_status": ["azure-compliant-cvm"],
        "debug": False,
        "migration": False,
        "vmpl": 0,
        "measurement": ["6a" * 48],
        "host_data": ["00" * 32],
        "id_key_digest": ["94" * 48],
        "min_svn": {"bootloader": 4, "tee": 0, "snpfw": 24, "microcode": 219, "guest": 12},
        "tcb_status": "any",
        "vm_unique_id": [azure_pki.VM_ID.lower()],
        "secure_boot": True,
        "debuggers_disabled": True,
        **changes,
    }
    return msgspec.convert(wanted, MaaPolicy)


def tdx_policy(**changes):
    wanted = {
        "isolation_tee": ["tdxvm"],
        "measurement": ["02" * 48],
        "host_data": ["00" * 48],
        "tcb_status": ["UpToDate"],
        **dict.fromkeys(("migration", "vmpl", "id_key_digest", "min_svn"), "any"),
        **changes,
    }
    return snp_policy(**wanted)


def claims(**changes):
    return azure_pki.token_claims(NOW, NONCE, **changes)


def tee_claims(**changes):
    return claims(**{"x-ms-isolation-tee": azure_pki.snp_tee(**changes)})


def judge(body=None, *, token=None, **given):
    token = azure_pki.token(claims() if body is None else body) if token is None else token
    arguments = {"jwks": azure_pki.jwks(), "now": NOW, "nonce": NONCE, "policy": snp_policy(), **given}
    return maa.verify(token, **arguments)


def failed(appraisal):
    return {each.code for each in appraisal.checks if each.result == "fail"}


def unmade(appraisal):
    return {each.code for each in appraisal.checks if each.result == "not_checked" and not each.waived}


def test_a_good_token_about_an_snp_vm_passes():
    appraisal = judge()
    appraisal.require()
    assert appraisal.type == "maa" and appraisal.genuine
    assert appraisal.claims["report_data"] == "ab" * 64 and appraisal.claims["measurement"] == "6a" * 48
    assert appraisal.claims["isolation_tee"] == "sevsnpvm" and msgspec.json.encode(appraisal.to_json())
    codes = [each.code for each in appraisal.checks]
    assert len(codes) == len(set(codes))


def test_a_good_token_about_a_tdx_vm_passes():
    appraisal = judge(claims(tee="tdxvm"), policy=tdx_policy())
    appraisal.require()
    assert appraisal.claims["measurement"] == "02" * 48


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"iss": "https://other.neu.attest.azure.net"}, "issuer"),
        ({"iss": azure_pki.ISSUER + "/"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"iss": [azure_pki.ISSUER]}, "issuer"),
        ({"x-ms-policy-hash": "other"}, "maa_policy_hash"),
        ({"x-ms-runtime": None}, "nonce"),
        ({"x-ms-runtime": {"client-payload": {"nonce": ""}}}, "nonce"),
        ({"x-ms-runtime": {"client-payload": {"nonce": base64.b64encode(b"o" * 32).decode()}}}, "nonce"),
        ({"x-ms-runtime": {"client-payload": {"nonce": [1]}}}, "nonce"),
        ({"nonce": "00" * 32}, "nonce"),
        ({"secureboot": False}, "secure_boot"),
        ({"secureboot": None}, "secure_boot"),
        ({"secureboot": "true"}, "secure_boot"),
        ({"x-ms-azurevm-debuggersdisabled": False}, "debuggers_disabled"),
        ({"x-ms-azurevm-vmid": "7DF7B373-B947-4AAA-96E5-C358F2A03D20"}, "vm_unique_id"),
    ],
)
def test_a_claim_about_vm_or_issuer_that_is_not_wanted_fails_by_name(change, code):
    appraisal = judge(claims(**change))
    assert failed(appraisal) == {code} and appraisal.genuine


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"x-ms-compliance-status": "not-compliant"}, "compliance_status"),
        ({"x-ms-compliance-status": "azure-compliant-uvm"}, "compliance_status"),
        ({"x-ms-compliance-status": None}, "compliance_status"),
        ({"x-ms-sevsnpvm-is-debuggable": True}, "debug"),
        ({"x-ms-sevsnpvm-is-debuggable": None}, "debug"),
        ({"x-ms-sevsnpvm-is-debuggable": 0}, "debug"),
        ({"x-ms-sevsnpvm-is-debuggable": "false"}, "debug"),
        ({"x-ms-sevsnpvm-migration-allowed": True}, "migration"),
        ({"x-ms-sevsnpvm-vmpl": 1}, "vmpl"),
        ({"x-ms-sevsnpvm-vmpl": False}, "vmpl"),
        ({"x-ms-sevsnpvm-launchmeasurement": "66" * 48}, "measurement"),
        ({"x-ms-sevsnpvm-launchmeasurement": "6a" * 47}, "measurement"),
        ({"x-ms-sevsnpvm-launchmeasurement": None}, "measurement"),
        ({"x-ms-sevsnpvm-hostdata": "01" * 32}, "host_data"),
        ({"x-ms-sevsnpvm-idkeydigest": "00" * 48}, "id_key_digest"),
        ({"x-ms-sevsnpvm-bootloader-svn": 3}, "svn_bootloader"),
        ({"x-ms-sevsnpvm-snpfw-svn": None}, "svn_snpfw"),
        ({"x-ms-sevsnpvm-microcode-svn": "219"}, "svn_microcode"),
        ({"x-ms-sevsnpvm-tee-svn": False}, "svn_tee"),
        ({"x-ms-sevsnpvm-guestsvn": 1}, "svn_guest"),
    ],
)
def test_a_claim_about_the_tee_that_is_not_wanted_fails_by_name(change, code):
    appraisal = judge(tee_claims(**change))
    assert failed(appraisal) == {code} and appraisal.genuine


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"tdx_td_attributes_debug": True}, "debug"),
        ({"tdx_td_attributes_debug": None}, "debug"),
        ({"dbgstat": "enabled"}, "debug"),
        ({"tdx_td_attributes": "0100001000000000"}, "debug"),
        ({"tdx_td_attributes": "zz"}, "debug"),
        ({"tdx_mrtd": "66" * 48}, "measurement"),
        ({"tdx_mrconfigid": "66" * 48}, "host_data"),
        ({"attester_tcb_status": "OutOfDate"}, "tcb_status"),
        ({"attester_tcb_status": None}, "tcb_status"),
    ],
)
def test_a_claim_about_a_td_that_is_not_wanted_fails_by_name(change, code):
    body = claims(**{"x-ms-isolation-tee": azure_pki.tdx_tee(**change)})
    appraisal = judge(body, policy=tdx_policy())
    assert failed(appraisal) == {code} and appraisal.genuine


def test_a_td_is_no_snp_vm():
    assert "isolation_type" in failed(judge(claims(tee="tdxvm")))


@pytest.mark.parametrize(
    "change",
    [
        {"x-ms-isolation-tee": None},
        {"x-ms-isolation-tee": "sevsnpvm"},
        {"x-ms-isolation-tee": {}},
        {"x-ms-isolation-tee": {"x-ms-attestation-type": "sgx"}},
        {"x-ms-isolation-tee": {"x-ms-attestation-type": ["sevsnpvm"]}},
    ],
)
def test_a_trusted_launch_vm_has_no_tee(change):
    """The same keys sign tokens about VMs that their host can read."""
    appraisal = judge(claims(**change))
    assert {"isolation_tee", "debug", "measurement"} <= failed(appraisal) and not appraisal.genuine


def test_a_token_of_another_kind_is_refused():
    """An SGX or ACI token carries claims of the same names at its top."""
    appraisal = judge(claims(**{"x-ms-attestation-type": "sevsnpvm"}))
    assert failed(appraisal) == {"attestation_type"} and not appraisal.genuine


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({"exp": int(NOW.timestamp())}, {"exp"}),
        ({"exp": None}, {"exp"}),
        ({"exp": 1e12}, {"exp"}),
        ({"exp": True}, {"exp"}),
        ({"exp": "4102444800"}, {"exp"}),
        ({"nbf": int(NOW.timestamp()) + 1}, {"nbf"}),
        ({"nbf": None}, {"nbf"}),
        ({"iat": int(NOW.timestamp()) + 1}, {"iat", "max_age"}),
        ({"iat": None}, {"iat", "max_age"}),
        ({"iat": int(NOW.timestamp()) - 601}, {"max_age"}),
        ({"iat": -(10**400), "exp": 10**400}, {"exp", "iat", "max_age"}),
    ],
)
def test_a_token_out_of_its_time_fails(change, codes):
    appraisal = judge(claims(**change))
    assert failed(appraisal) == codes
    assert appraisal.genuine is (codes == {"max_age"})


def test_time_is_now_and_nothing_else():
    token = azure_pki.token(claims())
    assert failed(judge(token=token, now=NOW - timedelta(seconds=61))) == {"nbf", "iat", "max_age"}
    assert {"exp", "max_age"} == failed(judge(token=token, now=NOW + timedelta(seconds=3600)))


def test_now_has_a_time_zone():
    with pytest.raises(ConfigError, match=r"^now: "):
        judge(now=NOW.replace(tzinfo=None))


@pytest.mark.parametrize("form", ["client_raw", "client_hex", "plain_hex", "plain_base64url"])
def test_forms_of_the_nonce(form):
    kind, encoding = form.split("_")
    text = {
        "raw": base64.b64encode(NONCE).decode(),
        "base64url": azure_pki.b64url(NONCE),
        "hex": NONCE.hex() if kind == "plain" else base64.b64encode(NONCE.hex().encode()).decode(),
    }[encoding]
    change = (
        {"nonce": text, "x-ms-runtime": {}}
        if kind == "plain"
        else {"x-ms-runtime": {"client-payload": {"nonce": text}}}
    )
    assert judge(claims(**change)).verdict == "pass"


def test_without_a_nonce_no_verdict_unless_the_policy_says_any():
    assert unmade(judge(nonce=None)) == {"nonce"}
    assert judge(nonce=None, policy=snp_policy(nonce="any")).verdict == "pass"
    assert failed(judge(claims(**{"x-ms-runtime": None}), policy=snp_policy(nonce="any"))) == {"nonce"}


def test_without_a_policy_only_genuineness_and_debug_are_judged():
    appraisal = judge(policy=None)
    assert appraisal.genuine and appraisal.verdict == "not_checked" and not failed(appraisal)
    assert failed(judge(tee_claims(**{"x-ms-sevsnpvm-is-debuggable": True}), policy=None)) == {"debug"}


def test_a_policy_that_says_any_everywhere_waives_all_but_what_makes_it_genuine():
    policy = msgspec.convert(anything(MaaPolicy), MaaPolicy)
    appraisal = judge(tee_claims(**{"x-ms-sevsnpvm-is-debuggable": True}), policy=policy)
    assert appraisal.verdict == "pass"
    assert judge(claims(exp=0), policy=policy).verdict == "fail"


def test_fields_of_the_policy_are_all_required():
    whole = msgspec.to_builtins(snp_policy())
    for field in whole:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({name: value for name, value in whole.items() if name != field}, MaaPolicy)
    for bad in ({"debug": True}, {"issuer": []}, {"min_svn": {}}, {"min_svn": {"other": 1}}, {"vmpl": 4}, {"more": 1}):
        with pytest.raises(msgspec.ValidationError):
            snp_policy(**bad)


# Attacks


def signed_parts(header, body):
    return f"{azure_pki.b64url(azure_pki.encode(header))}.{azure_pki.b64url(azure_pki.encode(body))}"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, "rs256", "RS512", "PS256", ["RS256"]])
@pytest.mark.parametrize("with_signature", [True, False])
def test_attacker_names_another_algorithm(alg, with_signature):
    token = azure_pki.token(claims(), alg=alg)
    token = token if with_signature else token.rpartition(b".")[0] + b"."
    appraisal = judge(token=token)
    assert "jwt_header" in failed(appraisal) and not appraisal.genuine and appraisal.verdict == "fail"
    assert ("jwt_signature" in failed(appraisal)) is not with_signature


def test_attacker_uses_the_public_key_as_an_hmac_secret():
    public = azure_pki.key("maa").public_key()
    for encoding, form in (
        (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.PEM, PublicFormat.PKCS1),
    ):
        secret = public.public_bytes(encoding, form)
        signed = signed_parts({"alg": "HS256", "kid": "maa"}, claims())
        mac = azure_pki.b64url(hmac.digest(secret, signed.encode(), "sha256"))
        assert {"jwt_header", "jwt_signature"} <= failed(judge(token=f"{signed}.{mac}".encode()))


def test_attacker_signs_with_a_key_of_their_own():
    own = azure_pki.jwk(azure_pki.key("attacker"), "maa")
    for token in (
        azure_pki.token(claims(), signer="attacker"),
        azure_pki.token(claims(), signer="attacker", kid="maa"),
        azure_pki.token(claims(), signer="attacker", kid="maa", jwk=own),
        azure_pki.token(claims(), signer="attacker", kid="maa", jku="https://attacker.example/certs"),
        azure_pki.token(claims(), signer="attacker", kid=None, jwk=own),
        azure_pki.token(claims(), signer="attacker", kid=["maa"]),
    ):
        appraisal = judge(token=token)
        assert not appraisal.genuine and appraisal.verdict == "fail"


def test_kid_names_exactly_one_pinned_key():
    twice = azure_pki.encode({"keys": [azure_pki.jwk(azure_pki.key(name), "maa") for name in ("maa", "other")]})
    appraisal = judge(jwks=twice)
    assert failed(appraisal) == {"jwt_key"} and unmade(appraisal) == {"jwt_signature"}
    assert judge(jwks=azure_pki.jwks("maa", "other")).verdict == "pass"
    assert "jwt_key" in failed(judge(jwks=azure_pki.jwks("other")))


def test_a_critical_extension_is_not_skipped():
    for name in ("crit", "b64", "zip"):
        assert failed(judge(token=azure_pki.token(claims(), **{name: ["exp"]}))) == {"jwt_header"}


def test_a_short_key_is_no_key():
    small = azure_pki.key("small", 1024)
    signed = azure_pki.token(claims()).rpartition(b".")[0]
    token = signed + b"." + azure_pki.b64url(azure_pki.rs256(small, signed)).encode()
    jwks = azure_pki.encode({"keys": [azure_pki.jwk(small, "maa")]})
    assert failed(judge(token=token, jwks=jwks)) == {"jwt_signature"}


def test_every_single_byte_change_of_a_token_is_rejected():
    token = azure_pki.token(claims())
    rng = random.Random(3)
    for at in range(len(token)):
        changed = bytearray(token)
        changed[at] ^= rng.choice([1, 0x20, 0x80, 0x10])
        try:
            assert not judge(token=bytes(changed)).genuine, at
        except ConfigError as error:
            assert str(error).startswith("token_format: ")


def test_a_relayed_token_of_somebody_elses_vm_fails_on_its_measurement_and_nonce():
    """Anybody may rent a confidential VM and get a genuine token of the shared regional instance."""
    body = azure_pki.token_claims(
        NOW, b"m" * 32, **{"x-ms-isolation-tee": azure_pki.snp_tee(**{"x-ms-sevsnpvm-launchmeasurement": "66" * 48})}
    )
    appraisal = judge(body)
    assert appraisal.genuine and failed(appraisal) == {"nonce", "measurement"}


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b".",
        b"..",
        b"a.b",
        b"a.b.c.d",
        b"\xff\xfe.a.b",
        "\u00e9.a.b".encode(),
        b"e30=.e30.AA",
        b"e30.e30.A",
        b"e31.e30.AA",
        b"e30 .e30.AA",
        b"W10.e30.AA",
        b"A" * 70_000,
        f"{azure_pki.b64url(b'{}')}.{azure_pki.b64url(b'[' * 3000)}.AA".encode(),
        f"{azure_pki.b64url(b'{}')}.{azure_pki.b64url(bytes([0x22, 0xFF, 0x22]))}.AA".encode(),
        f"{azure_pki.b64url(b'{}')}.{azure_pki.b64url(b'NaN')}.AA".encode(),
    ],
)
def test_what_is_no_token_is_an_error(token):
    with pytest.raises(ConfigError, match=r"^token_format: "):
        judge(token=token)


def test_attacker_writes_a_claim_twice():
    """One reader takes the first, another the last."""
    honest = azure_pki.encode(claims())
    doubled = honest[:-1] + b',"x-ms-policy-hash":"other"}'
    nested = honest.replace(b'"x-ms-sevsnpvm-vmpl":0', b'"x-ms-sevsnpvm-vmpl":3,"x-ms-sevsnpvm-vmpl":0')
    assert nested != honest
    for body in (doubled, nested):
        with pytest.raises(ConfigError, match=r"^token_format: .*twice"):
            judge(token=azure_pki.token(body))


def certificate(private, name="maa", digest=None):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder(subject, subject, private.public_key(), 1, NOW - timedelta(1), NOW + timedelta(1))
    return base64.b64encode(made.sign(private, digest or hashes.SHA256()).public_bytes(Encoding.DER)).decode()


def test_keys_come_as_numbers_or_as_certificates():
    chain = [certificate(azure_pki.key("maa"))]
    for key in (
        {"kid": "maa", "kty": "RSA", "x5c": chain},
        azure_pki.jwk(azure_pki.key("maa"), "maa", x5c=chain, use="sig"),
    ):
        others = [{"kid": "ec", "kty": "EC", "crv": "P-256"}]
        assert judge(jwks=azure_pki.encode({"keys": [key, *others]})).verdict == "pass"


@pytest.mark.parametrize(
    "keys",
    [
        lambda: {},
        lambda: {"keys": []},
        lambda: {"keys": {}},
        lambda: {"keys": ["maa"]},
        lambda: {"keys": [{"kty": "RSA"}]},
        lambda: {"keys": [{"kid": "maa", "kty": "RSA"}]},
        lambda: {"keys": [{"kid": "maa", "kty": "RSA", "x5c": []}]},
        lambda: {"keys": [{"kid": "maa", "kty": "RSA", "x5c": ["AAAA"]}]},
        lambda: {"keys": [{"kid": "maa", "kty": "RSA", "x5c": ["*"]}]},
        lambda: {"keys": [{"kid": "maa", "kty": "RSA", "x5c": [certificate(ec.generate_private_key(ec.SECP256R1()))]}]},
        lambda: {"keys": [azure_pki.jwk(azure_pki.key("maa"), "maa", x5c=[certificate(azure_pki.key("other"))])]},
        lambda: {"keys": [{**azure_pki.jwk(azure_pki.key("maa"), "maa"), "e": "Aw"}]},
        lambda: {"keys": [azure_pki.jwk(azure_pki.key("maa"), "maa")] * 65},
    ],
)
def test_what_is_no_key_set_is_an_error(keys):
    with pytest.raises(ConfigError, match=r"^jwks_format: "):
        judge(jwks=azure_pki.encode(keys()))


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=60).map(lambda data: b"e30." + base64.urlsafe_b64encode(data).rstrip(b"=") + b".AA"),
    )
)
def test_only_config_error_leaks(data):
    for arguments in ({"token": data}, {"jwks": data}):
        try:
            assert not judge(**arguments).genuine
        except ConfigError:
            continue


def test_claims_of_any_type_get_a_verdict():
    values = [None, True, 0, -1, 10**30, 1e300, "", "x" * 2000, "\u00e9", [], [1], {}, {"a": 1}]
    rng = random.Random(5)
    for _ in range(400):
        tee = azure_pki.snp_tee() if rng.random() < 0.5 else azure_pki.tdx_tee()
        body = {**claims(), "x-ms-isolation-tee": tee}
        for tree in (body, tee):
            for name in rng.sample(sorted(tree), 3):
                tree[name] = rng.choice(values)
        appraisal = judge(token=b".".join([*signed_parts({"alg": "RS256"}, body).encode().split(b"."), b"AA"]))
        assert appraisal.verdict == "fail" and json.dumps(appraisal.to_json())


def test_text_in_messages_is_bounded_and_plain():
    assert jose.said(None) == "absent" and len(jose.said("\n" * 1000)) <= 160 and "\n" not in jose.said("\n")
    assert hashlib.sha256(jose.unbase64url("-_8", "x", 2)).digest() and jose.unbase64url("-_8=", "x", 2) == b"\xfb\xff"
