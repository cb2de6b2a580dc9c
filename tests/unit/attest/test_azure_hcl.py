"""HCL report and runtime claims: what is read, what is refused, and what holds them to the hardware's report."""

import random
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.attest import azure
from cordon.attest.azure import hcl
from cordon.errors import ConfigError
from fakes import azure_pki

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FOLDER = "attestation/{}/azure-vtpm-trustee"


def hardware(claims_json, tee="snp"):
    report = bytearray({"snp": 1184, "tdx": 1024}[tee])
    at = {"snp": 0x50, "tdx": 0x80}[tee]
    report[at : at + 64] = azure_pki.report_data(claims_json)
    return bytes(report)


def report(tee="snp", claims=None, **changes):
    claims_json = azure_pki.encode(azure_pki.runtime_claims() if claims is None else claims)
    return azure_pki.hcl_report(hardware(claims_json, tee), claims_json, tee, **changes)


def results(data, tee="snp"):
    return {each.code: each.result for each in hcl.checks(hcl.parse(data), tee)}


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_a_whole_report_passes_every_check_of_its_form(tee):
    assert set(results(report(tee), tee).values()) == {"pass"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"request_type": 1}, "hcl_header"),
        ({"status": 1}, "hcl_header"),
        ({"reserved": b"\0" * 11 + b"\1"}, "hcl_header"),
        ({"report_size": 2600}, "hcl_header"),
        ({"data_size": 20}, "hcl_header"),
        ({"data_version": 2}, "hcl_header"),
        ({"hash_type": 2}, "hcl_header"),
        ({"report_type": 3}, "hcl_report_type"),
        ({"report_type": 4}, "hcl_report_type"),
    ],
)
def test_an_unmeasured_field_has_one_value(change, code):
    assert {name for name, result in results(report(**change)).items() if result == "fail"} == {code}


def test_padding_after_the_claims_and_after_a_tdreport_is_zero():
    data = bytearray(report("tdx"))
    assert results(bytes(data[:-1]) + b"\1", "tdx")["hcl_padding"] == "fail"
    data[32 + 1024] = 1
    assert results(bytes(data), "tdx")["hcl_padding"] == "fail"


def test_claims_that_the_hardware_did_not_sign_fail():
    genuine, forged = (
        azure_pki.encode(azure_pki.runtime_claims()),
        azure_pki.encode(azure_pki.runtime_claims(b"\1" * 64)),
    )
    assert results(azure_pki.hcl_report(hardware(genuine), forged))["runtime_data"] == "fail"


def test_upper_half_of_report_data_is_zero():
    claims_json = azure_pki.encode(azure_pki.runtime_claims())
    signed = bytearray(hardware(claims_json))
    signed[0x50 + 63] = 1
    assert results(azure_pki.hcl_report(bytes(signed), claims_json))["runtime_data"] == "fail"


@pytest.mark.parametrize("data", [b"", b"HCLA", bytes(1235), bytes(2600), bytes(20 * 1024)])
def test_bytes_that_are_no_report_are_an_error_with_its_code(data):
    with pytest.raises(ConfigError, match=r"^hcl_format: "):
        azure.hardware_report(data)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"signature": b"HCLB"}, "hcl_format"),
        ({"version": 0}, "hcl_format"),
        ({"version": 3}, "hcl_format"),
        ({"variable_data_size": 0xFFFFFFFF}, "hcl_format"),
        ({"size": 20 * 1024}, "hcl_format"),
        ({"variable_data_size": 0}, "runtime_claims"),
        ({"variable_data_size": 10}, "runtime_claims"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_code(change, code):
    with pytest.raises(ConfigError, match=rf"^{code}: "):
        azure.hardware_report(report(**change))


@pytest.mark.parametrize(
    "claims",
    [
        b"[]",
        b"null",
        b'{"user-data": "00", "user-data": "11"}',
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b"[" * 5000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_runtime_claims_are_strict_json(claims):
    with pytest.raises(ConfigError, match=r"^runtime_claims: "):
        hcl.parse(azure_pki.hcl_report(hardware(claims), claims, size=8000))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("ab" * 64, b"\xab" * 64),
        ("AB" * 64, b"\xab" * 64),
        ("ab" * 63, None),
        ("ab" * 63 + " a", None),
        ("\u0661" * 128, None),
        ("zz" * 64, None),
        (7, None),
        (None, None),
    ],
)
def test_user_data_is_64_bytes_in_hex_of_either_case(value, wanted):
    found = hcl.parse(report(claims=azure_pki.runtime_claims(**{"user-data": value})))
    assert found.user_data == wanted


def test_the_inner_report_is_handed_out_by_its_type():
    assert len(azure.hardware_report(report("snp"))) == 1184
    assert len(azure.hardware_report(report("tdx"))) == 1024


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_real_reports_bind_their_claims(vectors, tee):
    data = (vectors / FOLDER.format(tee) / "hcl-report.bin").read_bytes()
    assert set(results(data, tee).values()) == {"pass"}
    assert results(data, {"snp": "tdx", "tdx": "snp"}[tee])["hcl_report_type"] == "fail"


def test_the_guest_sets_user_data(vectors):
    """The challenge that the quote's extraData names is in the runtime claims too: NV index 0x01400002 works."""
    evidence = azure.read_evidence((vectors / FOLDER.format("snp") / "evidence-v2.json").read_bytes())
    challenge = hcl.parse(evidence.hcl_report).user_data
    assert challenge is not None and any(challenge)
    assert challenge[:48] in evidence.tpm_quote.message and challenge[48:] == bytes(16)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_but_config_error_leaks(data):
    """Truncations, random bytes and spliced lengths."""
    whole = report()
    broken = data.draw(
        st.one_of(
            st.binary(max_size=1500),
            st.integers(0, len(whole)).map(lambda size: whole[:size]),
            st.tuples(st.integers(0, len(whole) - 4), st.integers(0, 2**32 - 1)).map(
                lambda at: whole[: at[0]] + struct.pack("<I", at[1]) + whole[at[0] + 4 :]
            ),
            st.binary(max_size=300).map(lambda claims: azure_pki.hcl_report(hardware(claims), claims)),
        )
    )
    try:
        appraisal = azure.verify(broken, tee="snp", tpm_quote=None, now=NOW)
    except ConfigError:
        return
    assert not appraisal.genuine and appraisal.verdict != "pass"


def test_random_json_in_the_claims_gets_a_verdict():
    """Claims of any type where others are expected."""
    values = [None, True, 0, -1, 1e9, "", "x", [], [1], {}, {"kid": "HCLAkPub"}]
    rng = random.Random(7)
    for _ in range(300):
        claims = {name: rng.choice(values) for name in ("keys", "vm-configuration", "user-data")}
        if rng.random() < 0.5:
            claims["keys"] = [
                {name: rng.choice(values) for name in ("kty", "n", "e")} | {"kid": "HCLAkPub"}
                for _ in range(rng.choice([1, 2]))
            ]
        appraisal = azure.verify(report(claims=claims), tee="snp", tpm_quote=None, now=NOW)
        assert {each.code: each.result for each in appraisal.checks}["ak_key"] == "fail"
