"""Appraisal: verdicts, codes, keys; attacks are in tests/adversarial/test_impostor_evidence.py."""

import json
import re
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon import signing
from cordon.attest import appraise as module
from cordon.attest.vendor import Trust
from cordon.attest.verdict import Check
from cordon.errors import AttestError
from fakes.policies import SHIPPED

GPU = yaml.safe_load((SHIPPED / "snp-h100.yml").read_text())["gpu"]
README = Path(module.__file__).parent / "README.md"


def test_good_evidence_passes_and_survives_json(world):
    appraisal = world.judge(json.loads(json.dumps(world.evidence())))
    assert appraisal.verdict == "pass"
    assert {result for _, result, _ in appraisal.codes} == {"pass", "not_checked"}
    assert "proves nothing about hardware" in appraisal.statement
    appraisal.require()


def test_the_attested_keys_are_those_of_the_process(world):
    appraisal = world.judge(world.evidence())
    envelope = signing.sign(world.keys.signing_key, "text/x", {"a": 1})
    assert signing.verify(envelope, "text/x", [appraisal.signing_key], world.now)[0] == {"a": 1}
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    sealed = suite.encrypt(b"secret", appraisal.kem_key, info=b"i")
    assert suite.decrypt(sealed, world.keys.kem_key, info=b"i") == b"secret"


def test_no_key_comes_out_of_evidence_that_failed(world):
    appraisal = world.judge(world.evidence(), nonce=b"m" * 32)
    for name in ("signing_key", "kem_key"):
        with pytest.raises(AttestError, match="nonce"):
            getattr(appraisal, name)


def test_all_failures_come_together(world):
    evidence = world.evidence(purpose="job", job="j1")
    with pytest.raises(AttestError) as caught:
        world.judge(evidence, nonce=b"m" * 32).require()
    assert [code for code, _ in caught.value.failures] == ["context_purpose", "context_job", "nonce"]


def test_any_waives_and_a_list_decides(world, make_policy):
    digest = world.context().bundle_digest
    for allowed, verdict in (("any", "pass"), ((digest,), "pass"), (("0" * 64,), "fail"), ((), "fail")):
        for change in ({"bundle_digest": allowed}, {"software": {"measurement": allowed}}):
            world.policy = make_policy(**change)
            appraisal = world.judge(world.evidence())
            assert appraisal.verdict == verdict, (change, allowed)
            code = "bundle_digest" if "bundle_digest" in change else "measurement"
            result = {code: result for code, result, _ in appraisal.codes}[code]
            assert result == ("not_checked" if allowed == "any" else verdict)


def test_what_could_not_be_checked_is_no_pass(world, make_policy):
    appraisal = world.judge(world.evidence(), trust=Trust(world.policy))
    assert {code for code, result, _ in appraisal.codes if result == "not_checked"} == {"report_chain", "bundle_digest"}
    with pytest.raises(AttestError, match="report_chain"):
        appraisal.require()
    world.policy = make_policy(gpu=GPU)
    assert world.judge(world.evidence()).verdict == "fail"
    world.policy = make_policy(gpu="any")
    assert world.judge(world.evidence()).verdict == "pass"


def test_gpu_evidence_is_bound_and_not_believed_unchecked(world, make_policy, monkeypatch):
    monkeypatch.setattr(type(world.attester), "gpu_evidence", lambda self, nonce: [{"uuid": "GPU-1"}])
    assert {code: r for code, r, _ in world.judge(world.evidence()).codes}["gpu"] == "fail"  # the policy says none
    world.policy = make_policy(gpu=GPU)
    appraisal = world.judge(world.evidence())
    assert appraisal.verdict == "fail"
    assert {code: r for code, r, _ in appraisal.codes}["report_data"] == "pass"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_garbage_gets_a_verdict_and_never_a_pass(world, garbage):
    assert world.judge(garbage).verdict == "fail"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(module.Evidence.__struct_fields__),
    st.none() | st.integers() | st.text() | st.binary(max_size=40).map(bytes.hex),
)
def test_a_signed_but_malformed_body_never_passes(world, field, value):
    body = {**signing.unverified_body(world.evidence()), field: value}
    if body != signing.unverified_body(world.evidence()):
        try:
            envelope = signing.sign(world.mtls, module.EVIDENCE_TYPE, body)
        except Exception:  # not expressible as canonical JSON: it cannot be sent
            return
        assert world.judge(envelope).verdict != "pass" or (field, value) == ("gpu_evidence", None)


def test_oversized_evidence_is_not_decoded(world):
    evidence = {**world.evidence(), "payload": "A" * (module.MAX_EVIDENCE + 1)}
    assert world.judge(evidence).codes[0][:2] == ("evidence_format", "fail")


def test_every_code_is_documented(world):
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", README.read_text(), flags=re.MULTILINE))
    names = ("appraise", "fault", "nonce", "software", "vendor", "verifier")
    source = "".join((README.parent / f"{name}.py").read_text() for name in names)
    used = set(re.findall(r'\b(?:Check|check|listed)\(\s*"([a-z_]+)"', source))
    used |= set(re.findall(r'AttestError\(\[\("([a-z_]+)"', source)) | set(
        re.findall(r'ConfigError\(f?"([a-z_]+): ', source)
    )
    used |= {f"context_{f}" for f in ("purpose", "site", "study", "job", "job_digest", "policy_digest")}
    assert used == documented
    assert {code for code, _, _ in world.judge(world.evidence()).codes} <= documented


def test_a_check_is_a_plain_triple(world):
    check = Check("a", "pass", "b")
    assert module.EvidenceAppraisal("software", (check,)).codes == [("a", "pass", "b")]
