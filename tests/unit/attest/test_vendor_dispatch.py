"""From an evidence type to its vendor's verifier: what goes in, and what comes out of whatever a peer sends."""

import hashlib
import json
import typing

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cordon.attest import roots, software, vendor
from cordon.attest.azure.policy import AzurePolicy
from cordon.attest.claims import Report
from cordon.attest.collateral import Collateral
from cordon.attest.dcap.policy import SgxPolicy, TdxPolicy
from cordon.attest.policy import AttestationPolicy, EvidenceType
from cordon.attest.snp import SnpPolicy, certificates
from cordon.attest.vendor import Trust
from fakes import amd_pki, azure_pki, intel_pki
from fakes.hardware_federation import INTEL, amd_crl, tdreport, vendor_root
from fakes.open_policies import anything, policy

NOW = intel_pki.NOW
DATA = bytes(range(64))
KINDS = typing.get_args(EvidenceType)
VEK = amd_pki.vek("Genoa", "vcek", since=amd_pki.NOW.replace(year=2025)).public_bytes(Encoding.DER)
ROOT = software.make_root("test", NOW)
TEE = software.SoftwareAttester(software.issue(ROOT, "hospital-a", NOW))


@pytest.fixture(autouse=True)
def vendors(monkeypatch):
    monkeypatch.setattr(roots, "load", vendor_root)
    certificates.pinned.cache_clear()
    yield
    certificates.pinned.cache_clear()


def _snp(data):
    return Report(amd_pki.report("Genoa", "vcek", 5, report_data=data), {"vek": VEK})


def _tdx(data):
    return Report(INTEL.quote(intel_pki.td_report("1.5", report_data=data), version=5))


def _sgx(data):
    return Report(INTEL.quote(intel_pki.sgx_report(report_data=data), version=3))


def _claims(data):
    made = azure_pki.encode(azure_pki.runtime_claims(user_data=data))
    quote = azure_pki.tpm_quote(hashlib.sha256(data).digest())
    fields = {"message": quote.message.hex(), "signature": quote.signature.hex()}
    return made, json.dumps({**fields, "pcrs": [each.hex() for each in quote.pcrs]}).encode()


def _az_snp(data):
    claims, quote = _claims(data)
    inner = _snp(azure_pki.report_data(claims))
    return Report(azure_pki.hcl_report(inner.report, claims), {**inner.endorsements, "tpm_quote": quote})


def _az_tdx(data):
    claims, quote = _claims(data)
    body = intel_pki.td_report("1.0", report_data=azure_pki.report_data(claims))
    hcl = azure_pki.hcl_report(tdreport(body), claims, "tdx")
    return Report(hcl, {"quote": INTEL.quote(body, version=4), "tpm_quote": quote})


MADE = {
    "software": lambda data: TEE.report(data),
    "snp": _snp,
    "tdx": _tdx,
    "sgx": _sgx,
    "az-snp": _az_snp,
    "az-tdx": _az_tdx,
}


def _section(name):
    if name == "software":
        return {"root": "root.pem", "measurement": "any"}
    body = anything({"snp": SnpPolicy, "tdx": TdxPolicy, "sgx": SgxPolicy, "azure": AzurePolicy}[name])
    return {**body, "crl": "required"} if name == "snp" else body


def _trust(*kinds, **held):
    from cordon.attest.policy import SECTIONS

    sections = {name: _section(name) for kind in kinds for name in SECTIONS[kind]}
    judged_by = msgspec.convert(policy(*kinds, **sections), AttestationPolicy)
    whole = {
        "crls": {"genoa": amd_crl("Genoa"), "milan": b"another product's"},
        "dcap": {intel_pki.FMSPC: INTEL.collateral()},
    }
    return Trust(judged_by, Collateral(**{**whole, **held}), ROOT.certificate)


def _codes(appraisal, result="fail"):
    return {each.code for each in appraisal.checks if each.result == result and not each.waived}


def _sgx_collateral():
    return {"dcap": {intel_pki.FMSPC: INTEL.collateral(tdx=False)}}


def _judge(kind, report=None, data=DATA, **held):
    held = {**(_sgx_collateral() if kind == "sgx" else {}), **held}
    return vendor.verify(kind, report or MADE[kind](DATA), data, _trust(kind, **held), NOW)


def test_every_type_of_a_policy_has_a_verifier():
    assert set(vendor._VERIFIERS) == set(KINDS) == set(MADE)


@pytest.mark.parametrize("kind", KINDS)
def test_genuine_evidence_passes(kind):
    appraisal = _judge(kind)
    assert appraisal.open == []
    assert (appraisal.type, appraisal.genuine, appraisal.verdict) == (kind, True, "pass")
    assert appraisal.claims["report_data"] == DATA.hex()
    assert appraisal.claims["measurement"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_must_be_over_these_bytes(kind):
    codes = _codes(_judge(kind, data=bytes(64)))
    assert codes == ({"user_data", "tpm_extra_data"} if kind.startswith("az") else {"report_data"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "junk", [b"", b"garbage", bytes(1184), b"\xff" * 4000, b"{" * 5000, "\ud800".encode("utf-16", "surrogatepass")]
)
def test_garbage_is_a_verdict(kind, junk):
    """T1: nothing that a peer sends is an exception, and nothing is a pass."""
    honest = MADE[kind](DATA)
    for report in (
        Report(junk, honest.endorsements),
        Report(junk),
        *(Report(honest.report, {**honest.endorsements, name: junk}) for name in honest.endorsements),
    ):
        appraisal = vendor.verify(kind, report, DATA, _trust(kind), NOW)
        assert appraisal.verdict == "fail"
        assert not appraisal.genuine
        assert all(code.replace("_", "").isalnum() and code == code.lower() for code in _codes(appraisal))


@pytest.mark.parametrize(("kind", "code"), [("tdx", "quote_format"), ("sgx", "quote_format"), ("snp", "report_format")])
def test_garbage_is_refused_by_name(kind, code):
    report = Report(b"garbage", {"vek": VEK} if kind == "snp" else {})
    assert _codes(vendor.verify(kind, report, DATA, _trust(kind), NOW)) == {code}


@pytest.mark.parametrize(("kind", "name"), [("snp", "vek"), ("az-snp", "vek"), ("az-tdx", "quote")])
def test_what_must_stand_beside_the_report(kind, name):
    honest = MADE[kind](DATA)
    rest = {key: value for key, value in honest.endorsements.items() if key != name}
    appraisal = vendor.verify(kind, Report(honest.report, rest), DATA, _trust(kind), NOW)
    assert _codes(appraisal) == {"endorsements"}
    assert f"{name} is missing" in appraisal.checks[0].detail


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_evidence_of_one_type_is_none_of_another(kind, other):
    if kind != other:
        honest = MADE[other](DATA)
        appraisal = vendor.verify(
            kind, Report(honest.report, {"vek": VEK, **honest.endorsements}), DATA, _trust(kind), NOW
        )
        assert not appraisal.genuine
        assert appraisal.verdict != "pass"


@pytest.mark.parametrize("kind", ["snp", "az-snp"])
def test_the_list_is_the_one_of_the_product(kind):
    assert {"crl", "revoked"} <= _codes(_judge(kind, crls={"milan": amd_crl("Milan")}), "not_checked")
    assert _codes(_judge(kind, crls={"genoa": amd_crl("Milan")})) == {"crl"}
    assert _codes(_judge(kind, crls={"genoa": amd_crl("Genoa", 0x10001)})) == {"revoked"}


@pytest.mark.parametrize("kind", ["tdx", "sgx", "az-tdx"])
def test_own_collateral_counts_before_what_came_along(kind):
    honest = MADE[kind](DATA)
    good, late = INTEL.collateral(tdx=kind != "sgx"), _late(kind != "sgx")

    def judge(own, sent):
        endorsements = {**honest.endorsements, **({"collateral": sent} if sent else {})}
        held = {"dcap": {intel_pki.FMSPC: own} if own else {}}
        return vendor.verify(kind, Report(honest.report, endorsements), DATA, _trust(kind, **held), NOW).verdict

    assert judge(good, late) == judge(None, good) == judge(good, b"junk") == "pass"
    assert judge(late, good) == judge(None, late) == judge(None, b"junk") == "fail"
    assert judge(None, None) == "not_checked"


def _late(tdx):
    info = intel_pki.changed(INTEL.tcb_info(tdx), nextUpdate=intel_pki.moment(NOW - intel_pki.DAY))
    return INTEL.collateral(tdx, tcb_info=info)


def test_collateral_of_another_platform_is_not_taken():
    assert "tcb_level" in _codes(_judge("tdx", dcap={"ffffffffffff": INTEL.collateral()}), "not_checked")


def test_event_log_is_handed_on():
    honest = _tdx(DATA)
    log = intel_pki.ccel((1, 1, hashlib.sha384(b"something else").digest()))
    appraisal = vendor.verify("tdx", Report(honest.report, {"event_log": log}), DATA, _trust("tdx"), NOW)
    assert _codes(appraisal) == {"event_log"}


def test_software_without_its_root_is_not_checked():
    trust = Trust(_trust("software").policy)
    assert vendor.verify("software", TEE.report(DATA), DATA, trust, NOW).verdict == "not_checked"


def test_a_type_that_the_policy_has_no_section_for():
    assert _codes(vendor.verify("tdx", _tdx(DATA), DATA, _trust("snp"), NOW)) == {"policy"}
    assert _codes(vendor.verify("snp", _snp(DATA), DATA, _trust("tdx"), NOW)) == {"policy"}
