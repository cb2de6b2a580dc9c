"""SGX verifier against a fake Intel."""

import hashlib

import pytest

from cordon import documents
from cordon.attest import sgx
from cordon.attest.dcap.policy import SgxPolicy
from cordon.errors import ConfigError
from fakes.intel_pki import CPU_SVN, FMSPC, INSTANCE, NOW, PPID, IntelPki, changed, sgx_report
from fakes.open_policies import anything

PKI = IntelPki()
COLLATERAL = PKI.collateral(False)
H32 = "11" * 32


def policy(**fields):
    body = anything(SgxPolicy) | {"debug": False} | fields
    return documents.parse(documents.signing.canonical(body), SgxPolicy, "policy")


def quote(**report):
    return PKI.quote(sgx_report(**report), version=3)


def verify(data=None, collateral=COLLATERAL, **given):
    return sgx.verify(quote() if data is None else data, collateral=collateral, now=NOW, root=PKI.root, **given)


def failed(appraisal, *kinds):
    return {each.code for each in appraisal.checks if each.result == "fail" and each.kind in (kinds or (each.kind,))}


def attributes(*flags, xfrm=0xE7):
    return sum(1 << flag for flag in flags).to_bytes(8, "little") + xfrm.to_bytes(8, "little")


def test_good_quote_is_genuine_and_passes_a_policy():
    appraisal = verify(policy=policy(tcb_status=["UpToDate"]))
    assert appraisal.genuine
    assert appraisal.verdict == "pass"
    assert appraisal.type == "sgx"
    assert appraisal.claims["measurement"] == hashlib.sha256(b"enclave").hexdigest()
    assert appraisal.claims["report_data"] == bytes(range(64)).hex()
    assert appraisal.claims["flags"] == ["init", "mode64"]


def test_codes_are_unique_and_the_same_with_and_without_anything():
    codes = [each.code for each in verify(policy=policy()).checks]
    assert len(codes) == len(set(codes))
    assert [each.code for each in verify(PKI.quote(), collateral=None).checks] == codes
    assert [each.code for each in verify(quote(), collateral=None).checks] == codes


def test_tdx_quote_is_no_sgx_quote():
    appraisal = verify(PKI.quote(), PKI.collateral(), policy=policy())
    assert failed(appraisal) == {"tee_type"}
    assert not appraisal.genuine
    assert appraisal.verdict == "fail"


def test_enclave_in_a_quote_of_another_version_is_refused():
    for version in (4, 5):
        appraisal = verify(PKI.quote(sgx_report(), version=version, tee_type=0))
        assert "tee_type" in failed(appraisal)
        assert not appraisal.genuine


def test_without_collateral_nothing_is_established():
    appraisal = verify(collateral=None, policy=policy())
    assert (appraisal.genuine, appraisal.verdict, failed(appraisal)) == (False, "not_checked", set())


FAULTS = {
    "not initialised": ({"attributes": attributes(2)}, "init"),
    "unknown attribute": ({"attributes": attributes(0, 2, 3)}, "report_reserved"),
    "reserved bytes": ({"reserved3": b"\1" + bytes(31)}, "report_reserved"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_every_fault_of_the_report_is_refused_by_name(case):
    change, code = FAULTS[case]
    appraisal = verify(quote(**change), policy=policy())
    assert failed(appraisal, "genuine") == {code}
    assert not appraisal.genuine


@pytest.mark.parametrize(
    ("collateral", "code"),
    [
        (PKI.collateral(True), "qe_identity"),
        (PKI.collateral(False, tcb_info=PKI.tcb_info(True)), "tcb_info"),
        (PKI.collateral(False, tcb_info=PKI.tcb_info(False, status="Revoked")), "tcb_level"),
        (PKI.collateral(False, tcb_info=changed(PKI.tcb_info(False), tcbLevels=[])), "tcb_level"),
        (PKI.collateral(False, qe_identity=changed(PKI.qe_identity(False), version=3)), "qe_identity"),
        (PKI.collateral(False, pck_crl=PKI.pck_crl(4).hex()), "crl"),
    ],
    ids=["TDX collateral", "TDX TCB info", "revoked", "no level", "identity version", "PCK revoked"],
)
def test_every_fault_of_the_collateral_is_refused_by_name(collateral, code):
    appraisal = verify(collateral=collateral)
    assert {code, "quote_verification"} <= failed(appraisal)
    assert not appraisal.genuine


def test_debug_enclave_fails_unless_the_policy_says_any():
    debug = quote(attributes=attributes(0, 1, 2))
    appraisal = verify(debug)
    assert appraisal.genuine
    assert failed(appraisal) == {"debug"}
    assert failed(verify(debug, policy=policy())) == {"debug"}
    assert verify(debug, policy=policy(debug="any")).verdict == "pass"


KSS = {
    "attributes": attributes(0, 2, 7),
    "isv_ext_prod_id": b"x" * 16,
    "isv_family_id": b"f" * 16,
    "config_id": b"c" * 64,
    "config_svn": b"\5\0",
}
FIELDS = {
    "tcb_status": (["UpToDate"], ["OutOfDate"]),
    "min_tcb_evaluation_number": (17, 18),
    "smt": (True, False),
    "dynamic_platform": (True, False),
    "cached_keys": (True, False),
    "fmspc": ([FMSPC], ["0" * 12]),
    "ppid": ([PPID], []),
    "platform_instance_id": ([INSTANCE], ["0" * 32]),
    "min_qe_svn": (6, 7),
    "min_pce_svn": (13, 14),
    "collateral_max_age_s": (5 * 86400, 60),
    "mr_enclave": ([hashlib.sha256(b"enclave").hexdigest(), H32], [H32]),
    "mr_signer": ([hashlib.sha256(b"signer").hexdigest()], [H32]),
    "isv_prod_id": ([1, 7], [1]),
    "min_isv_svn": (3, 4),
    "misc_select": (["00000000"], ["01000000"]),
    "attributes": ([attributes(0, 2, 7)[:8].hex()], [attributes(0, 2)[:8].hex()]),
    "xfrm": (["e700000000000000"], ["0300000000000000"]),
    "mode64": (True, False),
    "provision_key": (False, True),
    "einittoken_key": (False, True),
    "key_separation": (True, False),
    "isv_ext_prod_id": ([(b"x" * 16).hex()], ["00" * 16]),
    "isv_family_id": ([(b"f" * 16).hex()], ["00" * 16]),
    "config_id": ([(b"c" * 64).hex()], ["00" * 64]),
    "min_config_svn": (5, 6),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_policy_field_passes_and_fails(field):
    has, has_not = FIELDS[field]
    data = quote(**KSS)
    assert verify(data, policy=policy(**{field: has})).verdict == "pass"
    appraisal = verify(data, policy=policy(**{field: has_not}))
    assert appraisal.verdict == "fail"
    assert failed(appraisal) == {field}
    assert appraisal.genuine


def test_every_field_is_tried():
    assert FIELDS.keys() | {"debug", "advisory_ids", "out_of_date_grace_s"} == set(SgxPolicy.__struct_fields__)


def test_report_data_must_be_the_one_asked_for():
    assert verify(report_data=bytes(range(64)), policy=policy()).verdict == "pass"
    assert failed(verify(report_data=bytes(64), policy=policy())) == {"report_data"}


def test_no_byte_of_a_quote_can_be_changed():
    """By our own checks already; with collateral, every 29th byte, where dcap-qvl must refuse as well."""
    original = quote()
    for place in range(len(original)):
        data = bytearray(original)
        data[place] ^= 1 << place % 8
        try:
            appraisal = verify(bytes(data), COLLATERAL if place % 29 == 0 else None)
        except ConfigError:
            continue
        assert failed(appraisal, "genuine"), place
        assert not appraisal.genuine, place


def test_level_must_be_reached_in_every_component():
    info = PKI.tcb_info(False)
    for place in range(16):
        higher = bytearray(CPU_SVN)
        higher[place] += 1
        info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"] = [{"svn": svn} for svn in higher]
        assert "tcb_level" in failed(verify(collateral=PKI.collateral(False, tcb_info=info)))
