"""Somebody shows evidence that is not its own, not fresh, or not about what it claims. Each attempt fails by name."""

import base64
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon import signing
from cordon.attest import software
from cordon.attest.appraise import EVIDENCE_TYPE, Evidence, appraise, make_evidence, parent_context
from cordon.attest.keys import ProcessKeys
from cordon.attest.nonce import Nonces
from cordon.attest.policy import AttestationPolicy
from cordon.attest.vendor import Trust
from cordon.attest.verifier import Verifier
from cordon.errors import AttestError, ConfigError
from cordon.flare.kit import check_profile
from fakes.policies import policy as make

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
STUDY, NONCE = "5" * 64, b"n" * 32
POLICY = make("software", max_age_s=30.0, lease_s=90.0)
ROOT = software.make_root("workspace", NOW)
MTLS = {name: generate_private_key(65537, 2048) for name in ("hospital-a", "hospital-b", "server")}
TEE = {name: software.SoftwareAttester(software.issue(ROOT, name, NOW)) for name in MTLS}
KEYS = ProcessKeys.generate()


def _context(site="hospital-a", **changes):
    context = parent_context(site, STUDY, POLICY.digest)
    return msgspec.convert({**msgspec.to_builtins(context), **changes}, type(context))


def _evidence(site="hospital-a", *, tee=None, mtls=None, context=None, nonce=NONCE):
    return make_evidence(tee or TEE[site], context or _context(site), nonce, KEYS, mtls or MTLS[site])


def _judge(evidence, site="hospital-a", *, nonce=NONCE, context=None, policy=POLICY, root=ROOT):
    return appraise(
        evidence,
        nonce=nonce,
        context=context or _context(site),
        mtls_key=MTLS[site].public_key(),
        trust=Trust(policy, software_root=root.certificate),
        now=NOW,
    )


def _failed(appraisal):
    with pytest.raises(AttestError):
        appraisal.require()
    return {code for code, result, _ in appraisal.codes if result == "fail"}


def _resigned(evidence, mtls, **changes):
    """The body changed and signed again: what a host can do that holds the mTLS key but not the TEE."""
    return signing.sign(mtls, EVIDENCE_TYPE, {**signing.unverified_body(evidence), **changes})


def _b64(data):
    return base64.b64encode(data).decode()


def test_honest_evidence_passes():
    assert _judge(_evidence()).verdict == "pass"


def test_replayed_nonce():
    assert _failed(_judge(_evidence(nonce=b"o" * 32))) == {"nonce"}
    # writing the new nonce over the old report does not help: the report covers the old one
    assert _failed(_judge(_resigned(_evidence(nonce=b"o" * 32), MTLS["hospital-a"], nonce=_b64(NONCE)))) == {
        "report_data"
    }


def test_replay_after_the_verifier_restarts(tmp_path):
    def start():
        return Verifier(Trust(POLICY, software_root=ROOT.certificate), STUDY, Nonces(tmp_path / "nonces.json"))

    first = start()
    nonce = first.challenge("hospital-a", NOW)
    evidence, key = _evidence(nonce=nonce), MTLS["hospital-a"].public_key()
    assert first.judge("hospital-a", key, nonce, evidence, NOW).verdict == "pass"
    second = start()
    assert not second.live("hospital-a", NOW)
    assert second.judge("hospital-a", key, nonce, evidence, NOW).codes[0][0] == "nonce_unknown"


def test_late_answer(tmp_path):
    verifier = Verifier(Trust(POLICY, software_root=ROOT.certificate), STUDY, Nonces(tmp_path / "nonces.json"))
    nonce = verifier.challenge("hospital-a", NOW)
    late = NOW + timedelta(seconds=31)
    appraisal = verifier.judge("hospital-a", MTLS["hospital-a"].public_key(), nonce, _evidence(nonce=nonce), late)
    assert appraisal.codes[0][0] == "nonce_expired"


def test_a_challenge_to_another_site_is_not_answered_here(tmp_path):
    verifier = Verifier(Trust(POLICY, software_root=ROOT.certificate), STUDY, Nonces(tmp_path / "nonces.json"))
    nonce = verifier.challenge("hospital-b", NOW)
    appraisal = verifier.judge("hospital-a", MTLS["hospital-a"].public_key(), nonce, _evidence(nonce=nonce), NOW)
    assert appraisal.codes[0][0] == "nonce_misused"


def test_relayed_evidence_of_another_site():
    # hospital-a (no TEE of its own) forwards what hospital-b answered
    assert _failed(_judge(_evidence("hospital-b"))) == {"mtls_signature"}
    # ... and signs it with its own mTLS key
    assert "report_data" in _failed(_judge(_resigned(_evidence("hospital-b"), MTLS["hospital-a"])))
    # ... and has hospital-b's TEE make a report over hospital-a's statement (a rented or lent TEE)
    assert _failed(_judge(_evidence("hospital-a", tee=TEE["hospital-b"]))) == {"tee_holder"}


def test_a_site_that_calls_itself_another():
    assert _failed(_judge(_evidence("hospital-b"), "hospital-a")) == {"mtls_signature"}
    context = _context("hospital-b")
    assert _failed(_judge(_evidence("hospital-a", context=context))) == {"context_site"}


def test_other_mtls_key():
    stranger = generate_private_key(65537, 2048)
    assert _failed(_judge(_evidence(mtls=stranger))) == {"mtls_signature"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"purpose": "job"}, "context_purpose"),
        ({"job": "0b5c"}, "context_job"),
        ({"job_digest": "1" * 64}, "context_job_digest"),
        ({"study": "6" * 64}, "context_study"),
        ({"policy_digest": "7" * 64}, "context_policy_digest"),
    ],
)
def test_evidence_for_something_else(change, code):
    evidence = _evidence(context=_context(**change))
    assert _failed(_judge(evidence)) == {code}
    # relabelled to what the verifier wants: the report covers the true context
    relabelled = _resigned(evidence, MTLS["hospital-a"], context=msgspec.to_builtins(_context()))
    assert _failed(_judge(relabelled)) == {"report_data"}


def test_parent_evidence_does_not_serve_for_a_job():
    job = _context(purpose="job", job="0b5c", job_digest="1" * 64)
    assert _failed(_judge(_evidence(), context=job)) == {"context_purpose", "context_job", "context_job_digest"}


def test_swapped_keys():
    other = ProcessKeys.generate()
    for change in (
        {"kem_public_key": _b64(other.kem_public_bytes)},
        {"signing_public_key": _b64(other.signing_public_bytes)},
    ):
        assert _failed(_judge(_resigned(_evidence(), MTLS["hospital-a"], **change))) == {"report_data"}


def test_claimed_bundle_of_a_listed_release():
    listed = msgspec.convert({**msgspec.to_builtins(POLICY), "bundle_digest": ["8" * 64]}, AttestationPolicy)
    relabelled = {**msgspec.to_builtins(_context(policy_digest=listed.digest)), "bundle_digest": "8" * 64}
    honest = _evidence(context=_context(policy_digest=listed.digest))
    wanted = _context(policy_digest=listed.digest)
    assert _failed(_judge(honest, context=wanted, policy=listed)) == {"bundle_digest"}
    forged = _resigned(honest, MTLS["hospital-a"], context=relabelled)
    assert _failed(_judge(forged, context=wanted, policy=listed)) == {"report_data"}


def test_other_root():
    root = software.make_root("workspace", NOW)
    tee = software.SoftwareAttester(software.issue(root, "hospital-a", NOW))
    assert _failed(_judge(_evidence(tee=tee))) == {"report_chain"}


def test_a_report_signed_by_no_certified_key():
    body = signing.unverified_body(_evidence())
    fake = software.SoftwareAttester(software.make_root("workspace", NOW))
    report = fake.report(b"\0" * 64).report
    assert _failed(_judge(_resigned(_evidence(), MTLS["hospital-a"], report=_b64(report)))) == {"report_chain"}
    assert body["type"] == "software"


def _production():
    return make("snp-h100")


@pytest.mark.parametrize("kind", ["software", "snp", "tdx", "sgx", "SOFTWARE", ""])
def test_software_evidence_under_a_production_policy(kind):
    """Whatever type it claims: what is accepted is said by the policy, and unverifiable is no pass."""
    policy = _production()
    context = _context(policy_digest=policy.digest)
    evidence = _resigned(_evidence(context=context), MTLS["hospital-a"], type=kind)
    appraisal = _judge(evidence, context=context, policy=policy)
    with pytest.raises(AttestError):
        appraisal.require()
    assert appraisal.verdict == "fail"


def test_a_production_policy_cannot_name_software():
    tree = msgspec.to_builtins(_production())
    software_section = {"root": "r.pem", "measurement": "any"}
    for change in (
        {"evidence": ["software"]},
        {"software": software_section},
        {"evidence": ["snp", "software"], "software": software_section},
        {"evidence": ["software"], "software": software_section, "snp": "none"},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({**tree, **change}, AttestationPolicy)


def test_a_poc_policy_does_not_serve_a_production_study(tmp_path):
    class Study:
        profile = "production"

    with pytest.raises(ConfigError, match="profile poc"):
        check_profile(POLICY, Study, tmp_path / "attestation.yml")
    Study.profile = "poc"
    with pytest.raises(ConfigError, match="profile production"):
        check_profile(_production(), Study, tmp_path / "attestation.yml")
    Study.profile = "production"
    check_profile(_production(), Study, tmp_path / "attestation.yml")


# -- evidence that is meant to break the judge: rightly signed by a member, and malformed inside ---------------------


def _der(tag, *parts):
    content = b"".join(parts)
    assert len(content) < 128
    return bytes([tag, len(content)]) + content


EC_KEY, UNKNOWN = _der(6, bytes.fromhex("2a8648ce3d0201")), _der(6, bytes.fromhex("2a0304"))
POINT = _der(3, b"\0\4" + b"\1" * 8)
PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
BREAKERS = {
    "key of an unknown algorithm": (
        {"signing_public_key": _b64(_der(0x30, _der(0x30, UNKNOWN), POINT))},
        "process_keys",
    ),
    "key on an unknown curve": (
        {"signing_public_key": _b64(_der(0x30, _der(0x30, EC_KEY, UNKNOWN), POINT))},
        "process_keys",
    ),
    "key that is no DER": ({"signing_public_key": _b64(b"\x30\xff")}, "process_keys"),
    "KEM key of junk": ({"kem_public_key": _b64(b"\xff" * 1216)}, "process_keys"),
    "report that is not UTF-8": ({"report": _b64(b'"\xff')}, "report_format"),
    "report nested deep": ({"report": _b64(b"[" * 12000)}, "report_format"),
    "report with a lone surrogate": ({"report": _b64(b'{"certificate":"\\ud800x","envelope":1}')}, "report_format"),
    "report with a NUL": ({"report": _b64(b'{"certificate":"\\u0000","envelope":1}')}, "report_format"),
    "report whose certificate is empty DER": (
        {"report": _b64(json.dumps({"certificate": PEM.format(_b64(b"\x30\0")), "envelope": 1}).encode())},
        "report_format",
    ),
    "GPU evidence of odd numbers": ({"gpu_evidence": [{"uuid": {"a": [1.5]}}]}, "gpu"),
}


@pytest.mark.parametrize(("change", "code"), BREAKERS.values(), ids=BREAKERS)
def test_malformed_evidence_of_a_member_is_a_verdict(change, code):
    assert code in _failed(_judge(_resigned(_evidence(), MTLS["hospital-a"], **change)))


HONEST = signing.unverified_body(_evidence())
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=80) | JSON.map(lambda tree: json.dumps(tree).encode()) | st.just(b"[" * 5000)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(Evidence.__struct_fields__), JSON | BYTES.map(_b64))
def test_anything_in_any_field_is_judged(field, value):
    try:
        evidence = _resigned(_evidence(), MTLS["hospital-a"], **{field: value})
    except ConfigError:  # cannot be said in canonical JSON, hence not sent in it; raw payloads are tested below
        return
    appraisal = _judge(evidence)
    if field == "endorsements" and appraisal.verdict == "pass":  # software evidence has none, and looks at none
        assert set(map(type, value.values())) <= {str} and len(value) <= 8
        assert appraisal.kem_public_bytes == KEYS.kem_public_bytes
        assert appraisal.signing_key == KEYS.signing_key.public_key()
        return
    assert appraisal.verdict in ("fail", "not_checked") or value == HONEST[field]


@settings(max_examples=200, deadline=None)
@given(BYTES)
def test_any_signed_payload_is_judged(payload):
    message = signing._pae(EVIDENCE_TYPE, payload)
    signature = MTLS["hospital-a"].sign(message, signing._PSS, signing.hashes.SHA256())
    entry = {"keyid": signing.spki_digest(MTLS["hospital-a"].public_key()), "sig": _b64(signature)}
    envelope = {"payloadType": EVIDENCE_TYPE, "payload": _b64(payload), "signatures": [entry]}
    assert _judge(envelope).verdict == "fail"


def test_a_payload_type_that_is_a_bomb_is_judged():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert _judge({**_evidence(), "payloadType": deep}).verdict == "fail"
    while deep:  # taken apart by hand: freeing it at once would use up the C stack
        deep = deep.pop()


@settings(max_examples=300, deadline=None)
@given(BYTES, st.binary(max_size=20), st.integers(0, 400))
def test_any_report_is_refused_by_name(junk, splice, at):
    genuine = TEE["hospital-a"].report(b"\0" * 64).report
    for report in (junk, genuine[:at] + splice + genuine[at + len(splice) :]):
        if report != genuine:
            with pytest.raises(AttestError):
                software.verify(report, ROOT.certificate, NOW)
