"""The policy: each field is asked, on its own, and counts unless it says any."""

from datetime import timedelta

import msgspec
import pytest

from cordon import documents
from cordon.attest import snp
from cordon.attest.snp.policy import Minima, SnpPolicy
from cordon.errors import AttestError, ConfigError
from fakes import amd_pki as amd

ANY_TCB = {"milan": "any", "genoa": "any", "turin": "any"}
MILAN = {"boot_loader": 4, "tee": 1, "snp": 24, "microcode": 219}
TURIN = {"fmc": 2, "boot_loader": 3, "tee": 1, "snp": 4, "microcode": 71}
POLICY_BITS = (
    "smt", "migrate_ma", "debug", "single_socket", "cxl_allow", "mem_aes_256_xts", "rapl_dis", "ciphertext_hiding_dram",
    "page_swap_disable",
)  # fmt: skip
PLATFORM_BITS = (
    "smt_en", "tsme_en", "ecc_en", "rapl_dis", "ciphertext_hiding_dram_en", "alias_check_complete", "tio_en",
    "undefined",
)  # fmt: skip
SET_BITS = {"single_socket", "ecc_en", "alias_check_complete"}  # of the made-up report
TCBS = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")

# Exactly what the made-up Milan, VCEK, version 5 says.
EXACT = {
    "product": ["Milan"],
    "signer": ["vcek"],
    "report_version": [5],
    "measurement": ["13" * 48],
    "host_data": ["14" * 32],
    "family_id": ["11" * 16],
    "image_id": ["12" * 16],
    "id_key_digest": ["15" * 48],
    "author_key_digest": ["16" * 48],
    "guest_svn": 3,
    "vmpl": [0],
    "policy": {"abi": {"major": 0, "minor": 0}, **{name: name in SET_BITS for name in POLICY_BITS}},
    "platform_info": {name: name in SET_BITS for name in PLATFORM_BITS},
    "migration_agent": False,
    "chip_id": [amd.CHIP["Milan"].hex()],
    "csp_id": "any",
    "provisional_firmware": False,
    **{name: {**ANY_TCB, "milan": MILAN} for name in TCBS},
    "current_firmware": {"major": 1, "minor": 55, "build": 40},
    "committed_firmware": {"major": 1, "minor": 55, "build": 40},
    "launch_mit_vector": 0b1011,
    "current_mit_vector": 0b1111,
    "crl": "required",
    "crl_max_age_s": 3 * 86400,
}


def policy(**changes):
    return msgspec.convert({**EXACT, **changes}, SnpPolicy)


def open_policy(**changes):
    anything = {name: "any" for name in EXACT}
    anything |= {name: ANY_TCB for name in TCBS}
    anything |= {
        "policy": dict.fromkeys(("abi", *POLICY_BITS), "any"),
        "platform_info": dict.fromkeys(PLATFORM_BITS, "any"),
    }
    return msgspec.convert({**anything, **changes}, SnpPolicy)


def judge(policy, *args, **changes):
    evidence = amd.evidence(*args, **changes)
    return snp.verify(evidence.report, policy=policy, **evidence.rest)


def failed(appraisal):
    return {check.code for check in appraisal.checks if check.result == "fail"}


def bit(section, name, value):
    return {section: {**EXACT[section], name: value}}


def least(name, **numbers):
    return {name: {**ANY_TCB, "milan": {**MILAN, **numbers}}}


# policy field -> (change of EXACT, code)
MISSES = [
    ({"product": ["Genoa", "Turin"]}, "product"),
    ({"signer": ["vlek"]}, "signer"),
    ({"report_version": [2, 3]}, "report_version"),
    ({"measurement": ["13" * 47 + "14"]}, "measurement"),
    ({"host_data": ["00" * 32]}, "host_data"),
    ({"family_id": ["00" * 16]}, "family_id"),
    ({"image_id": ["00" * 16]}, "image_id"),
    ({"id_key_digest": ["00" * 48]}, "id_key_digest"),
    ({"author_key_digest": ["00" * 48]}, "author_key_digest"),
    ({"guest_svn": 4}, "guest_svn"),
    ({"vmpl": [1, 2, 3]}, "vmpl"),
    (bit("policy", "abi", {"major": 0, "minor": 1}), "policy_abi"),
    (bit("policy", "abi", {"major": 1, "minor": 0}), "policy_abi"),
    *[(bit("policy", name, name not in SET_BITS), f"policy_{name}") for name in POLICY_BITS if name != "debug"],
    *[(bit("platform_info", name, name not in SET_BITS), f"platform_info_{name}") for name in PLATFORM_BITS],
    ({"migration_agent": True}, "migration_agent"),
    ({"chip_id": ["00" * 64]}, "chip_id"),
    ({"csp_id": [amd.CSP]}, "csp_id"),
    ({"provisional_firmware": True}, "provisional_firmware"),
    *[(least(name, **{part: number + 1}), name) for name in TCBS for part, number in MILAN.items()],
    ({"current_firmware": {"major": 1, "minor": 55, "build": 41}}, "current_firmware"),
    ({"current_firmware": {"major": 1, "minor": 56, "build": 0}}, "current_firmware"),
    ({"committed_firmware": {"major": 2, "minor": 0, "build": 0}}, "committed_firmware"),
    ({"launch_mit_vector": 0b0100}, "launch_mit_vector"),
    ({"current_mit_vector": 0b10000}, "current_mit_vector"),
    ({"crl_max_age_s": 3 * 86400 - 1}, "crl_age"),
]

# What the evidence says instead -> the codes that fail under EXACT.
FAULTS = [
    ({"policy": 1 << 17 | 1 << 20 | 1 << 19}, {"debug"}),
    ({"policy": 1 << 17 | 1 << 20 | 1 << 16 | 1 << 18}, {"policy_smt", "policy_migrate_ma"}),
    ({"policy": 1 << 17}, {"policy_single_socket"}),
    ({"platform_info": 0b1110_0100}, {"platform_info_tio_en", "platform_info_undefined"}),
    ({"platform_info": 0b100}, {"platform_info_alias_check_complete"}),
    ({"vmpl": 1}, {"vmpl"}),
    ({"vmpl": 0xFFFFFFFF}, {"vmpl"}),
    ({"guest_svn": 2}, {"guest_svn"}),
    ({"report_id_ma": bytes(32)}, {"migration_agent"}),
    ({"measurement": bytes(48)}, {"measurement"}),
    ({"current_tcb": amd.tcb("Milan", microcode=220)}, {"provisional_firmware"}),
    ({"current": bytes([41, 55, 1])}, {"provisional_firmware"}),
    ({"committed_tcb": amd.tcb("Milan", snp=23)}, {"provisional_firmware", "committed_tcb"}),
    ({"launch_tcb": amd.tcb("Milan", tee=0)}, {"launch_tcb"}),
    ({"launch_mit_vector": 0b11}, {"launch_mit_vector"}),
]


def test_exact_policy_passes():
    appraisal = judge(policy(), report_data=amd.REPORT_DATA)
    assert appraisal.verdict == "pass"
    appraisal.require()
    not_pass = {check.code for check in appraisal.checks if check.result != "pass"}
    assert not_pass == {"csp_id"}


@pytest.mark.parametrize(("change", "code"), MISSES)
def test_each_field_is_asked(change, code):
    appraisal = judge(policy(**change))
    assert failed(appraisal) == {code}
    assert (appraisal.genuine, appraisal.verdict) == (True, "fail")
    with pytest.raises(AttestError, match=f"^{code}: "):
        appraisal.require()


@pytest.mark.parametrize(("fields", "codes"), FAULTS)
def test_reports_that_say_something_else(fields, codes):
    appraisal = judge(policy(), report_with=fields)
    assert failed(appraisal) == codes
    assert appraisal.genuine


def test_every_field_has_a_miss():
    asked = {code for _, code in MISSES} | {"debug"}
    appraisal = judge(policy())
    policy_codes = {check.code for check in appraisal.checks if check.kind == "policy"}
    assert asked == policy_codes - {"tcb_order", "report_data"}
    changed = {next(iter(change)) for change, _ in MISSES} | {"crl"}  # crl: required is tested below
    assert changed == {field.name for field in msgspec.structs.fields(SnpPolicy)}


@pytest.mark.parametrize("product", amd.PRODUCTS)
@pytest.mark.parametrize("signer", amd.SIGNERS)
@pytest.mark.parametrize("version", amd.VERSIONS)
def test_an_open_policy_accepts_all_that_is_genuine(product, signer, version):
    appraisal = judge(open_policy(), product, signer, version, crl=None)
    assert appraisal.verdict == "pass"
    assert all(check.waived for check in appraisal.checks if check.result == "not_checked")


def test_a_debug_guest_needs_the_word_any():
    debug = {"policy": 1 << 17 | 1 << 19}
    assert failed(judge(None, report_with=debug)) == {"debug"}
    assert judge(open_policy(), report_with=debug).verdict == "pass"
    with pytest.raises(msgspec.ValidationError, match="debug"):
        policy(**bit("policy", "debug", True))


def test_no_policy_is_no_pass():
    appraisal = judge(None)
    assert (appraisal.genuine, appraisal.verdict) == (True, "not_checked")
    with pytest.raises(AttestError):
        appraisal.require()


def test_a_missing_crl_is_no_pass_where_it_is_required():
    assert judge(policy(), crl=None).verdict == "not_checked"
    assert judge(policy(crl="any", crl_max_age_s="any"), crl=None).verdict == "pass"


def test_crl_any_does_not_overlook_a_revocation():
    appraisal = judge(open_policy(), crl=amd.crl("Milan", (0x10001,)))
    assert failed(appraisal) == {"revoked"}
    assert not appraisal.genuine


def test_crl_age_counts_from_its_issue():
    fresh = amd.crl("Milan", since=amd.NOW - timedelta(seconds=60))
    assert judge(policy(crl_max_age_s=60), crl=fresh).verdict == "pass"
    assert failed(judge(policy(crl_max_age_s=59), crl=fresh)) == {"crl_age"}


def test_vlek_policy():
    wanted = {"signer": ["vlek"], "chip_id": ["00" * 64], "csp_id": ["CN=other", amd.CSP]}
    assert judge(policy(**wanted), "Milan", "vlek").verdict == "pass"
    assert failed(judge(policy(**{**wanted, "csp_id": [amd.CSP + "x"]}), "Milan", "vlek")) == {"csp_id"}


def test_turin_has_minima_of_its_own():
    def turin(**numbers):
        minima = {name: {**ANY_TCB, "turin": {**TURIN, **numbers}} for name in TCBS}
        return policy(product=["Turin"], chip_id=[amd.CHIP["Turin"].hex()], **minima)

    assert judge(turin(), "Turin").verdict == "pass"
    for part, number in TURIN.items():
        assert failed(judge(turin(**{part: number + 1}), "Turin")) == set(TCBS)
    milan_only = {name: {**ANY_TCB, "milan": {**MILAN, "snp": 255}} for name in TCBS}
    assert judge(open_policy(**milan_only), "Turin").verdict == "pass"


def test_mitigations_are_absent_before_version_5():
    for version in (2, 3):
        wanted = {"report_version": [version], "current_mit_vector": "any"}
        assert failed(judge(policy(**wanted), "Milan", "vcek", version)) == {"launch_mit_vector"}
        assert judge(policy(**wanted, launch_mit_vector=0), "Milan", "vcek", version).verdict == "pass"


@pytest.mark.parametrize("name", EXACT)
def test_a_field_left_out_is_an_error(name):
    body = {key: value for key, value in EXACT.items() if key != name}
    with pytest.raises(ConfigError, match=name):
        documents.parse(msgspec.json.encode(body), SnpPolicy, "policy")


@pytest.mark.parametrize(
    "change",
    [
        {"measurement": []},
        {"measurement": ["13" * 47]},
        {"measurement": ["AB" * 48]},
        {"measurement": ["13" * 48 + "\n"]},
        {"product": ["Rome"]},
        {"vmpl": [4]},
        {"guest_svn": -1},
        {"crl": "none"},
        {"crl_max_age_s": 0},
        {"unknown": "any"},
        bit("policy", "smt", 1),
        bit("policy", "unknown", False),
        least("current_tcb", fmc=1),
        least("current_tcb", snp=256),
    ],
)
def test_what_fits_no_field_is_an_error(change):
    with pytest.raises(ConfigError):
        documents.parse(msgspec.json.encode({**EXACT, **change}), SnpPolicy, "policy")


def test_minima_name_every_product():
    assert {field.name for field in msgspec.structs.fields(Minima)} == {product.lower() for product in amd.PRODUCTS}
