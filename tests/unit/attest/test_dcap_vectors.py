"""Quotes of real machines, with the verdicts and instants that their index states."""

import json
from datetime import UTC, datetime

import pytest

from cordon import documents
from cordon.attest import sgx, tdx
from cordon.attest.dcap import event_log, quote, reports
from cordon.attest.dcap.policy import SgxPolicy, TdxPolicy
from cordon.errors import ConfigError
from fakes.open_policies import anything

# What signs the bytes of a quote, whatever its collateral says.
SIGNATURES = ("pck_root", "pck_chain", "pck_certificate", "qe_report_signature", "attestation_key", "quote_signature")


@pytest.fixture(scope="module")
def read(vectors):
    def file(name):
        data = (vectors / "attestation" / "tdx" / name).read_bytes()
        return bytes.fromhex(data.decode().strip().removeprefix("0x")) if name.endswith(".hex") else data

    return file


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def failed(appraisal):
    return {each.code for each in appraisal.checks if each.result == "fail"}


def result(appraisal, *codes):
    found = {each.code: each.result for each in appraisal.checks}
    return {found[code] for code in codes}


def tdx_policy(**fields):
    return documents.parse(documents.signing.canonical(anything(TdxPolicy) | {"debug": False} | fields), TdxPolicy, "p")


TDX = ("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json")
OLD = ("dcap-qvl/tdx_quote_outdated", "dcap-qvl/tdx_quote_outdated_collateral.json")
SGX = ("dcap-qvl/sgx_quote", "dcap-qvl/sgx_quote_collateral.json")
SPR = ("go-tdx-guest/tdx_prod_quote_SPR_E4.dat", "derived/collateral_spr_e4.assembled.json")
V5 = ("go-tdx-guest/quote_v5_sample.dat", "derived/collateral_v5.assembled.json")


@pytest.mark.parametrize("when", ["2025-06-19T10:33", "2025-07-01T00:00", "2025-07-19T10:00"])
def test_tdx_quote_is_genuine_and_up_to_date_inside_its_window(read, when):
    data, collateral = map(read, TDX)
    strict = tdx_policy(
        tcb_status=["UpToDate"], advisory_ids=[], fmspc=["b0c06f000000"], sept_ve_disable=True, smt=True
    )
    appraisal = tdx.verify(data, collateral=collateral, now=at(when), policy=strict)
    assert appraisal.genuine
    assert appraisal.verdict == "pass"
    assert appraisal.claims["report_data"].startswith("9a9d48e7")
    assert appraisal.claims["tcb"]["status"] == "UpToDate"
    assert appraisal.claims["collateral"]["expires"] == "2025-07-19T10:00:35Z"


@pytest.mark.parametrize(
    "when",
    ["1960-01-01", "2024-01-01", "2025-06-19T10:32", "2025-07-19T10:16", "2025-07-20", "2026-11-24", "2200-01-01"],
)
def test_tdx_quote_is_nothing_outside_its_window(read, when):
    data, collateral = map(read, TDX)
    appraisal = tdx.verify(data, collateral=collateral, now=at(when))
    assert not appraisal.genuine
    assert {"collateral_validity", "quote_verification"} <= failed(appraisal)
    assert result(appraisal, *SIGNATURES) == {"pass"}


def test_tdx_quote_that_reaches_no_level_is_refused(read):
    data, collateral = map(read, OLD)
    appraisal = tdx.verify(data, collateral=collateral, now=at("2026-02-18T11:00"))
    assert failed(appraisal) == {"tcb_level", "quote_verification"}
    assert result(appraisal, *SIGNATURES) == {"pass"}
    assert appraisal.claims["quote_version"] == 5


@pytest.mark.parametrize(("when", "more"), [("2023-07-01", set()), ("2023-07-10", {"collateral_validity"})])
def test_spr_e4_reaches_no_level_and_carries_a_message(read, when, more):
    data, collateral = map(read, SPR)
    appraisal = tdx.verify(data, collateral=collateral, now=at(when))
    assert failed(appraisal) == {"tcb_level", "quote_verification", "quote_tail"} | more
    assert result(appraisal, *SIGNATURES) == {"pass"}
    assert appraisal.claims["flags"] == ["pks"]


@pytest.mark.parametrize("when", ["2023-07-01", "2026-01-27T12:00", "2026-02-10", "2026-03-01"])
def test_collateral_of_mixed_windows_is_refused_at_every_time(read, when):
    data, collateral = map(read, V5)
    appraisal = tdx.verify(data, collateral=collateral, now=at(when))
    assert not appraisal.genuine
    assert "collateral_validity" in failed(appraisal)


def test_sgx_quote_is_genuine_and_its_status_is_for_the_policy(read):
    data, collateral = map(read, SGX)
    now = at("2025-07-01")
    appraisal = sgx.verify(data, collateral=collateral, now=now)
    assert appraisal.genuine
    assert appraisal.verdict == "not_checked"
    assert appraisal.claims["tcb"]["status"] == "ConfigurationAndSWHardeningNeeded"
    assert appraisal.claims["tcb"]["advisory_ids"] == ["INTEL-SA-00289", "INTEL-SA-00615"]
    body = anything(SgxPolicy) | {"debug": False}
    for statuses, verdict in ((["UpToDate"], "fail"), (["ConfigurationAndSWHardeningNeeded"], "pass")):
        wanted = documents.parse(documents.signing.canonical(body | {"tcb_status": statuses}), SgxPolicy, "p")
        assert sgx.verify(data, collateral=collateral, now=now, policy=wanted).verdict == verdict


def test_each_verifier_refuses_the_other_s_quotes(read):
    now = at("2025-07-01")
    for verify, (name, collateral) in ((tdx.verify, SGX), (sgx.verify, TDX)):
        appraisal = verify(read(name), collateral=read(collateral), now=now)
        assert failed(appraisal) == {"tee_type"}
        assert (appraisal.genuine, appraisal.verdict) == (False, "fail")
    swapped = tdx.verify(read(TDX[0]), collateral=read(SGX[1]), now=now)
    assert {"tcb_info", "qe_identity", "tcb_level", "quote_verification"} <= failed(swapped)


# name: (flags of the TD, version)
ALONE = {
    "dcap-qvl/quote-from-tappd.hex": (["sept_ve_disable"], 4),
    "dcap-qvl/tdx-quote.hex": (["sept_ve_disable"], 4),
    "go-tdx-guest/quote_v5_sample.dat": (["sept_ve_disable"], 5),
    "go-tdx-guest-ccel/cos-113-tdx-quote.dat": (["sept_ve_disable"], 4),
    "trustee/tdx_quote_4.dat": (["debug", "sept_ve_disable"], 4),
    "trustee/tdx_quote_5.dat": (["sept_ve_disable"], 5),
    "trustee/tdx_quote_6.dat": (["sept_ve_disable"], 4),
    "azure-vtpm-trustee/td-quote.bin": ([], 4),
}


@pytest.mark.parametrize("name", ALONE)
def test_quote_without_collateral_has_good_signatures_and_no_verdict(read, name):
    flags, version = ALONE[name]
    appraisal = tdx.verify(read(name), now=at("2026-03-01"))
    assert result(appraisal, *SIGNATURES, "pck_validity", "certification_data", "quote_tail") == {"pass"}
    assert not appraisal.genuine
    assert (appraisal.claims["flags"], appraisal.claims["quote_version"]) == (flags, version)
    assert appraisal.verdict == ("fail" if "debug" in flags else "not_checked")
    assert failed(appraisal) == ({"debug"} if "debug" in flags else set())


def test_debug_enclave_of_occlum_fails(read):
    appraisal = sgx.verify(read("trustee/occlum_quote.dat"), now=at("2026-03-01"))
    assert result(appraisal, *SIGNATURES) == {"pass"}
    assert failed(appraisal) == {"debug"}


def test_report_data_of_the_dstack_and_gcp_quotes(read):
    nonce = read("go-tdx-guest-ccel/nonce.dat")
    data = read("go-tdx-guest-ccel/cos-113-tdx-quote.dat")
    for wanted, answer in ((nonce, {"pass"}), (b"\1" * 64, {"fail"})):
        assert result(tdx.verify(data, now=at("2026-03-01"), report_data=wanted), "report_data") == answer


def test_ccel_of_the_same_machine_replays_and_of_another_does_not(read):
    log = read("go-tdx-guest-ccel/ccel_data.dat")
    data = read("go-tdx-guest-ccel/cos-113-tdx-quote.dat")
    now = at("2026-03-01")
    assert result(tdx.verify(data, event_log=log, now=now), "event_log") == {"pass"}
    assert len(event_log.parse(log)) == 43
    assert result(tdx.verify(read(TDX[0]), event_log=log, now=now), "event_log") == {"fail"}
    for event in event_log.parse(log)[::7]:
        if event.type == event_log.EV_NO_ACTION:
            continue
        place = log.index(event.digest)
        changed = log[:place] + bytes([log[place] ^ 1]) + log[place + 1 :]
        assert result(tdx.verify(data, event_log=changed, now=now), "event_log") == {"fail"}


def test_claims_of_the_debug_quote_are_those_that_trustee_parses(read):
    expected = json.loads(read("trustee/parse_tdx_claims_expected.json"))
    body = expected["quote"]["body"]
    claims = tdx.verify(read("trustee/tdx_quote_4.dat"), now=at("2026-03-01")).claims
    names = {"tcb_svn": "tee_tcb_svn", "mrsigner_seam": "mr_signer_seam", **{f"rtmr_{n}": f"rtmr{n}" for n in range(4)}}
    assert {name: claims[names.get(name, name)] for name in body} == body
    assert claims["report_data"] == expected["report_data"]
    assert claims["platform"]["platform_instance_id"] != ""
    logged = [each for each in expected["uefi_event_logs"] if each["index"]]
    events = [event_log.Event(each["index"], 0, bytes.fromhex(each["digests"][0]["digest"]), b"") for each in logged]
    assert event_log.replay(events)[2:] == (
        bytes(48),
        bytes(48),
    )  # the file lists a part of the log: RTMR2 and 3 stay zero


def test_no_byte_of_a_real_quote_can_be_changed(read):
    """Every byte of a TDX and an SGX quote, by our own checks; every 41st of the others."""
    for name, step in ({TDX[0]: 1, SGX[0]: 1} | dict.fromkeys([OLD[0], *ALONE], 41)).items():
        original = read(name)
        end = len(original) - len(quote.parse(original).tail)
        verify = sgx.verify if name == SGX[0] else tdx.verify
        for place in range(0, end, step):
            data = original[:place] + bytes([original[place] ^ (1 << place % 8)]) + original[place + 1 :]
            try:
                appraisal = verify(data, now=at("2026-03-01"))
            except ConfigError:
                continue
            assert failed(appraisal) - {"debug"}, (name, place)


def test_padding_may_be_zero_and_nothing_else(read):
    data = read("go-tdx-guest-ccel/cos-113-tdx-quote.dat")
    now = at("2026-03-01")
    for place in (5000, 6000, len(data) - 1):
        assert result(tdx.verify(data[:place] + b"\1" + data[place + 1 :], now=now), "quote_tail") == {"fail"}
    assert result(tdx.verify(data.rstrip(b"\0"), now=now), "quote_tail") == {"pass"}
    cut = reports.td_report(quote.parse(data.rstrip(b"\0")).body)
    assert cut == reports.td_report(quote.parse(data).body)
