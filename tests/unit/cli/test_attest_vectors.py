"""Every vector of the INDEX through the command line: genuine or not, and the exit code of the verdict.

A row is what the INDEX says of the files; without a policy nothing passes, so 2 (not checked) is the best there is.
"""

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509

from cordon.attest import roots
from cordon.attest.dcap.policy import SgxPolicy, TdxPolicy
from cordon.attest.snp.policy import SnpPolicy
from cordon.cli import main
from fakes import open_policies

JUNE_2026 = "2026-06-01T00:00:00Z"
YES, NO = True, False


def run(capsys, *args):
    """(exit code, JSON object) of ``cordon attest verify ... --json``."""
    code = main(["attest", "verify", *map(str, args), "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    said = json.loads(out)
    if code == 3:
        assert err == f"cordon: {said['error']['code']}: {said['error']['detail']}\n"
    else:
        assert err == ""
        assert set(said) == {"genuine", "verdict", "checks", "claims"}
        assert code == {"pass": 0, "fail": 1, "not_checked": 2}[said["verdict"]]
        assert all(set(check) == {"code", "result", "detail"} for check in said["checks"])
        assert {check["result"] for check in said["checks"]} <= {"pass", "fail", "not_checked"}
        assert (said["verdict"] == "fail") == ("fail" in {check["result"] for check in said["checks"]})
    return code, said


def results(said):
    return {check["code"]: check["result"] for check in said["checks"]}


# -- AMD SEV-SNP ----------------------------------------------------------------------------------------------------

SNP = [
    # report, VEK, more arguments, time, genuine, exit
    ("genoa-v3-msft/report.bin", "genoa-v3-msft/vcek.pem", [], JUNE_2026, YES, 2),
    ("genoa-v3-msft/report.bin", "genoa-v3-msft/vcek.pem", [], "2026-02-04T00:00:00Z", NO, 1),
    ("genoa-v3-msft/report.bin", "genoa-v3-msft/vcek.pem", [], "2033-02-06T00:00:00Z", NO, 1),
    ("genoa-v5-routex/report.bin", "genoa-v5-routex/chain.pem", [], JUNE_2026, YES, 2),
    ("milan-v2-automata-azure/vcek.pem", "milan-v2-automata-azure/vcek.pem", [], JUNE_2026, NO, 3),
    ("milan-v2-debug-gosevguest/report.bin", "milan-v2-debug-gosevguest/vcek.der", [], JUNE_2026, YES, 1),
    ("milan-v2-lit/report-bad-sig.bin", "milan-v2-virtee/vcek.der", [], JUNE_2026, NO, 3),
    ("milan-v2-lit/report-corrupt.bin", "milan-v2-virtee/vcek.der", [], JUNE_2026, NO, 3),
    ("milan-v2-trustee/report.bin", "milan-v2-trustee/vcek.der", [], JUNE_2026, YES, 2),
    ("milan-v2-trustee/report.bin", "milan-v2-trustee/vcek-invalid-legacy.der", [], JUNE_2026, NO, 1),
    ("milan-v2-trustee/report.bin", "milan-v2-trustee/vcek-invalid-new.der", [], JUNE_2026, NO, 1),
    ("milan-v2-virtee/report.bin", "milan-v2-virtee/vcek.der", [], JUNE_2026, YES, 2),
    ("milan-v2-virtee/report.bin", "milan-v2-virtee/vcek.der", ["--product", "milan"], JUNE_2026, YES, 2),
    ("milan-v2-virtee/report.bin", "milan-v2-virtee/vcek.der", ["--product", "genoa"], JUNE_2026, NO, 1),
    ("milan-v3-routex/report.bin", "milan-v3-routex/chain.pem", [], JUNE_2026, YES, 2),
    ("milan-v3-vlek-trustee/report.bin", "milan-v3-vlek-trustee/vlek.der", [], "2025-06-01T00:00:00Z", YES, 2),
    ("milan-v3-vlek-trustee/report.bin", "milan-v3-vlek-trustee/vlek.der", [], JUNE_2026, NO, 1),
    ("turin-v5-routex/report.bin", "turin-v5-routex/chain.pem", [], JUNE_2026, YES, 2),
    # a report with the key of another chip
    ("turin-v5-routex/report.bin", "turin-vcek-only-virtee/vcek.der", [], JUNE_2026, NO, 1),
    ("milan-v2-virtee/report.bin", "milan-v2-trustee/vcek.der", [], JUNE_2026, NO, 1),
    ("milan-v3-routex/report.bin", "genoa-v3-msft/vcek.pem", [], JUNE_2026, NO, 1),
    # reports without a key in the INDEX ("parse only"): they can be read, and nothing vouches for them
    ("genoa-v2-parse-routex/report.bin", "genoa-v3-msft/vcek.pem", [], JUNE_2026, NO, 1),
    ("genoa-v3-pysnputils/report.bin", "genoa-v3-msft/vcek.pem", [], JUNE_2026, NO, 1),
    ("milan-v2-lit/report.bin", "milan-v2-virtee/vcek.der", [], JUNE_2026, NO, 1),
    ("milan-v5-pysnputils/report.bin", "milan-v3-routex/chain.pem", [], JUNE_2026, NO, 1),
]


@pytest.mark.parametrize(("report", "vek", "more", "at", "genuine", "code"), SNP)
def test_snp(vectors, capsys, report, vek, more, at, genuine, code):
    folder = vectors / "attestation" / "snp"
    got = run(capsys, "snp", "--report", folder / report, "--vek", folder / vek, "--at", at, *more)
    assert (got[1]["genuine"], got[0]) == (genuine, code), got


CHAINS = [
    ("genoa-v3-msft", "vcek.pem", "ask_ark_genoa.pem", YES),
    ("milan-v2-virtee", "vcek.der", "ask_ark_milan.pem", YES),
    ("turin-v5-routex", "chain.pem", "ask_ark_turin.pem", YES),
    ("milan-v3-routex", "chain.pem", "../milan-v3-routex/chain.pem", YES),
    ("milan-v2-virtee", "vcek.der", "ask_ark_genoa.pem", NO),
    ("milan-v2-virtee", "vcek.der", "asvk_ark_milan_vlek.pem", NO),
    ("genoa-v3-msft", "vcek.pem", "asvk_ark_genoa_vlek.pem", NO),
    ("turin-v5-routex", "chain.pem", "asvk_ark_turin_vlek.pem", NO),
]


@pytest.mark.parametrize(("folder", "vek", "chain", "genuine"), CHAINS)
def test_snp_with_a_chain_of_one_s_own(vectors, capsys, folder, vek, chain, genuine):
    snp = vectors / "attestation" / "snp"
    code, said = run(
        capsys,
        "snp",
        *("--report", snp / folder / "report.bin", "--vek", snp / folder / vek),
        *("--chain", snp / "roots" / chain, "--at", JUNE_2026),
    )
    assert (said["genuine"], code) == (genuine, 2 if genuine else 1), said


def test_snp_vlek_with_its_chain(vectors, capsys):
    snp = vectors / "attestation" / "snp"
    files = ("--report", snp / "milan-v3-vlek-trustee/report.bin", "--vek", snp / "milan-v3-vlek-trustee/vlek.der")
    for chain, genuine in (("asvk_ark_milan_vlek.pem", YES), ("ask_ark_milan.pem", NO)):
        _, said = run(capsys, "snp", *files, "--chain", snp / "roots" / chain, "--at", "2025-06-01T00:00:00Z")
        assert said["genuine"] is genuine


def test_snp_report_and_key_out_of_automata_s_output(vectors, tmp_path, capsys):
    """With the key beside it valid, with vcek.pem of the same folder the key of another chip."""
    folder = vectors / "attestation" / "snp" / "milan-v2-automata-azure"
    output = json.loads((folder / "output.json").read_text())["sev_snp"]
    report, vek = tmp_path / "report", tmp_path / "vek.der"
    report.write_bytes(base64.b64decode(output["attestation_report"]))
    vek.write_bytes(base64.b64decode(output["vek_cert"]))
    code, said = run(capsys, "snp", "--report", report, "--vek", vek, "--at", JUNE_2026)
    assert (said["genuine"], code) == (YES, 2)
    assert said["claims"]["report_data"].startswith("a84c0bb9")
    code, said = run(capsys, "snp", "--report", report, "--vek", folder / "vcek.pem", "--at", JUNE_2026)
    assert (said["genuine"], code) == (NO, 1)


REPORT_DATA = {
    "milan-v2-virtee": "d447b55d197491bf",
    "milan-v3-routex": "a7ca989b",
    "turin-v5-routex": "e0fd0bdb",
    "genoa-v5-routex": "bb851e20",
    "milan-v2-trustee": "ec6c52d7",
    "milan-v5-pysnputils": "886c6994",
    "milan-v2-debug-gosevguest": "0102030405000000",
    "genoa-v3-msft": "00" * 64,
    "genoa-v2-parse-routex": "00" * 64,
}


@pytest.mark.parametrize(("folder", "start"), REPORT_DATA.items())
def test_snp_claims_are_those_of_the_index(vectors, capsys, folder, start):
    snp = vectors / "attestation" / "snp"
    files = ("--report", snp / folder / "report.bin", "--vek", snp / "milan-v2-virtee" / "vcek.der")
    _, said = run(capsys, "snp", *files, "--at", JUNE_2026)
    assert said["claims"]["report_data"].startswith(start)
    assert bytes.fromhex(said["claims"]["measurement"]) == (snp / folder / "report.bin").read_bytes()[0x90:0xC0]


# -- Intel TDX and SGX ----------------------------------------------------------------------------------------------

QUOTES = [
    # command, quote, collateral, time, genuine, exit
    ("tdx", "dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2025-07-01T00:00:00Z", YES, 2),
    ("tdx", "dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2025-06-19T10:31:00Z", NO, 1),
    ("tdx", "dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2025-07-19T10:17:00Z", NO, 1),
    ("tdx", "dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2026-11-23T00:00:00Z", NO, 1),
    ("tdx", "dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_outdated_collateral.json", "2026-02-18T11:00:00Z", NO, 1),
    (
        *("tdx", "dcap-qvl/tdx_quote_outdated", "dcap-qvl/tdx_quote_outdated_collateral.json"),
        *("2026-02-18T11:00:00Z", NO, 1),
    ),
    ("tdx", "dcap-qvl/quote-from-tappd.hex", None, JUNE_2026, NO, 2),
    ("tdx", "dcap-qvl/tdx-quote.hex", None, JUNE_2026, NO, 2),
    (
        "tdx",
        "go-tdx-guest/tdx_prod_quote_SPR_E4.dat",
        None,
        "2023-07-01T00:00:00Z",
        NO,
        1,
    ),  # 39 unsigned bytes after it
    *(
        ("tdx", "go-tdx-guest/tdx_prod_quote_SPR_E4.dat", "derived/collateral_spr_e4.assembled.json", at, NO, 1)
        for at in ("2023-07-01T00:00:00Z", "2023-07-10T00:00:00Z", JUNE_2026)
    ),
    *(
        ("tdx", "go-tdx-guest/quote_v5_sample.dat", "derived/collateral_v5.assembled.json", at, NO, 1)
        for at in ("2023-07-01T00:00:00Z", "2026-02-15T00:00:00Z", JUNE_2026)
    ),
    ("tdx", "go-tdx-guest-ccel/cos-113-tdx-quote.dat", None, JUNE_2026, NO, 2),
    ("tdx", "trustee/tdx_quote_4.dat", None, JUNE_2026, NO, 1),  # DEBUG
    ("tdx", "trustee/tdx_quote_5.dat", None, JUNE_2026, NO, 2),
    ("tdx", "trustee/tdx_quote_6.dat", None, JUNE_2026, NO, 2),
    ("tdx", "azure-vtpm-trustee/td-quote.bin", None, JUNE_2026, NO, 2),
    ("sgx", "trustee/occlum_quote.dat", None, JUNE_2026, NO, 1),  # DEBUG
    ("sgx", "dcap-qvl/sgx_quote", None, JUNE_2026, NO, 2),
    ("sgx", "dcap-qvl/sgx_quote", "dcap-qvl/sgx_quote_collateral.json", "2025-07-01T00:00:00Z", YES, 2),
    ("sgx", "dcap-qvl/sgx_quote", "dcap-qvl/sgx_quote_collateral.json", "2025-09-01T00:00:00Z", NO, 1),
    # the other technology
    ("tdx", "dcap-qvl/sgx_quote", "dcap-qvl/sgx_quote_collateral.json", "2025-07-01T00:00:00Z", NO, 1),
    ("sgx", "dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_collateral.json", "2025-07-01T00:00:00Z", NO, 1),
]


@pytest.mark.parametrize(("kind", "quote", "collateral", "at", "genuine", "code"), QUOTES)
def test_quotes(vectors, capsys, kind, quote, collateral, at, genuine, code):
    folder = vectors / "attestation" / "tdx"
    more = ["--collateral", folder / collateral] if collateral else []
    got = run(capsys, kind, "--quote", folder / quote, *more, "--at", at)
    assert (got[1]["genuine"], got[0]) == (genuine, code), got


def test_what_intel_says_of_the_platforms(vectors, capsys):
    folder = vectors / "attestation" / "tdx" / "dcap-qvl"
    at = ("--at", "2025-07-01T00:00:00Z")
    for kind, status, advisories in (
        ("tdx", "UpToDate", []),
        ("sgx", "ConfigurationAndSWHardeningNeeded", ["INTEL-SA-00289", "INTEL-SA-00615"]),
    ):
        files = ("--quote", folder / f"{kind}_quote", "--collateral", folder / f"{kind}_quote_collateral.json")
        claims = run(capsys, kind, *files, *at)[1]["claims"]
        assert claims["tcb"]["status"] == status
        assert claims["tcb"]["advisory_ids"] == advisories


def test_tdx_event_log_replays_to_the_quote_it_came_with_and_to_no_other(vectors, capsys):
    folder = vectors / "attestation" / "tdx" / "go-tdx-guest-ccel"
    quote, log = folder / "cos-113-tdx-quote.dat", folder / "ccel_data.dat"
    code, said = run(capsys, "tdx", "--quote", quote, "--event-log", log, "--at", JUNE_2026)
    assert (results(said)["event_log"], code) == ("pass", 2)
    assert said["claims"]["report_data"] == (folder / "nonce.dat").read_bytes().hex() == "00" * 64
    other = vectors / "attestation" / "tdx" / "dcap-qvl" / "tdx_quote"
    code, said = run(capsys, "tdx", "--quote", other, "--event-log", log, "--at", JUNE_2026)
    assert (results(said)["event_log"], code) == ("fail", 1)


def test_a_ccel_table_is_no_event_log(vectors, capsys):
    folder = vectors / "attestation" / "tdx" / "go-tdx-guest-ccel"
    quote, table = folder / "cos-113-tdx-quote.dat", folder / "ccel_table.dat"
    assert run(capsys, "tdx", "--quote", quote, "--event-log", table, "--at", JUNE_2026)[0] == 3


# -- Azure ----------------------------------------------------------------------------------------------------------

AZURE = [
    # command, files, genuine, exit
    ("az-snp", {"report": "hcl-report.bin", "vek": "vcek.pem"}, YES, 2),
    ("az-snp", {"report": "hcl-report.bin", "vek": "vcek.pem", "tpm-quote": "quote.bin"}, YES, 2),
    ("az-snp", {"report": "hcl-report.bin", "vek": "vcek-genoa.pem"}, NO, 1),
    ("az-snp", {"report": "hcl-report.bin"}, NO, 2),
    ("az-snp", {"evidence": "evidence-v1.json"}, YES, 2),
    ("az-snp", {"evidence": "evidence-v2.json"}, YES, 2),
    ("az-snp", {"evidence": "evidence-genoa.json"}, YES, 2),
    ("az-tdx", {"report": "hcl-report.bin", "quote": "td-quote.bin"}, NO, 2),  # no collateral
    ("az-tdx", {"report": "hcl-report.bin", "quote": "td-quote.bin", "tpm-quote": "quote.bin"}, NO, 2),
    ("az-tdx", {"evidence": "evidence-v1.json"}, NO, 2),
    ("az-tdx", {"report": "../../snp/azure-vtpm-trustee/hcl-report.bin", "quote": "td-quote.bin"}, NO, 1),
    ("az-tdx", {"report": "hcl-report.bin", "quote": "../dcap-qvl/tdx_quote"}, NO, 1),
    ("az-snp", {"report": "../../tdx/azure-vtpm-trustee/hcl-report.bin", "vek": "vcek.pem"}, NO, 3),  # no SNP inside
]


@pytest.mark.parametrize(("kind", "files", "genuine", "code"), AZURE)
def test_azure(vectors, capsys, kind, files, genuine, code):
    folder = vectors / "attestation" / kind.removeprefix("az-") / "azure-vtpm-trustee"
    args = [each for name, path in files.items() for each in (f"--{name}", folder / path)]
    got = run(capsys, kind, *args, "--at", JUNE_2026)
    assert (got[1]["genuine"], got[0]) == (genuine, code), got
    if code == 2:
        assert results(got[1])["runtime_data"] == "pass"


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_azure_vtpm_quotes_are_signed_by_the_ak_of_their_report(vectors, tmp_path, capsys, tee):
    """quote.bin belongs to either report; a changed PCR value, nonce or signature fails by name."""
    folder = vectors / "attestation" / tee / "azure-vtpm-trustee"
    endorsement = ["--vek", folder / "vcek.pem"] if tee == "snp" else ["--quote", folder / "td-quote.bin"]
    args = [f"az-{tee}", "--report", folder / "hcl-report.bin", *endorsement, "--at", JUNE_2026]
    quote = tmp_path / "quote.json"
    known = json.loads((folder / "tpm-quote-v1.json").read_text())

    def asked(changed, nonce=b"challenge"):
        quote.write_text(json.dumps(known | changed))
        return results(run(capsys, *args, "--tpm-quote", quote, "--nonce", nonce.hex())[1])

    fine = asked({})
    assert (fine["tpm_signature"], fine["tpm_extra_data"], fine["pcr_digest"]) == ("pass", "pass", "pass")
    assert asked({}, nonce=b"another one")["tpm_extra_data"] == "fail"
    assert asked({"signature": "00" * 256})["tpm_signature"] == "fail"
    assert asked({"pcrs": known["pcrs"][::-1]})["pcr_digest"] == "fail"


def test_azure_quote_of_another_vtpm(vectors, tmp_path, capsys):
    """The AK of tpm-quote.msg and .sig is in none of the reports: good for nothing but this."""
    folder = vectors / "attestation" / "snp" / "azure-vtpm-trustee"
    parts = {"signature": (folder / "tpm-quote.sig").read_bytes(), "message": (folder / "tpm-quote.msg").read_bytes()}
    quote = tmp_path / "quote.json"
    quote.write_text(json.dumps({name: value.hex() for name, value in parts.items()} | {"pcrs": []}))
    args = ("--report", folder / "hcl-report.bin", "--vek", folder / "vcek.pem", "--tpm-quote", quote)
    code, said = run(capsys, "az-snp", *args, "--nonce", b"challenge".hex(), "--at", JUNE_2026)
    assert (said["genuine"], code) == (NO, 1)
    assert results(said)["tpm_signature"] == "fail"
    assert results(said)["tpm_extra_data"] == "pass"


# -- NVIDIA ---------------------------------------------------------------------------------------------------------

HOPPER_NONCE = "27a328247bf7935c993341cf587be6f05986ccce4fe7ba2c54100bd616a58f66"
NVTRUST_NONCE = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"
SAMPLES = "attestation-sdk-samples"
REPORTS = [
    # report, chain, genuine
    ("gpu_hopperAttestationReport.txt", "gpu_hopperCertChain.txt", YES),
    ("gpu_hopperAttestationReportExpired.txt", "gpu_hopperCertChainExpired.txt", YES),
    ("gpu_hopperAttestationReportInvalidSignature.txt", "gpu_hopperCertChain.txt", NO),
    ("gpu_blackwellAttestationReport.txt", "gpu_blackwellCertChain.txt", YES),
    ("hopperAttestationReport_spdm.txt", "hopperCertChain_spdm.txt", YES),
    ("switch_switchAttestationReport.txt", "switch_switchCertChain.txt", YES),
    ("switch_switchAttestationReportInvalidSignature.txt", "switch_switchCertChain.txt", NO),
    ("../nvtrust-hopper/hopperAttestationReport.txt", "../nvtrust-hopper/hopperCertChain.txt", YES),
    # another device's certificates
    ("gpu_hopperAttestationReport.txt", "../nvtrust-hopper/hopperCertChain.txt", NO),
    ("switch_switchAttestationReport.txt", "gpu_hopperCertChain.txt", NO),
]


@pytest.mark.parametrize(("report", "chain", "genuine"), REPORTS)
def test_gpu_reports(vectors, capsys, report, chain, genuine):
    folder = vectors / "attestation" / "nvgpu" / SAMPLES
    code, said = run(capsys, "gpu", "--report", folder / report, "--chain", folder / chain, "--at", JUNE_2026)
    assert (said["genuine"], code) == (genuine, 2 if genuine else 1), said


EVIDENCE = [
    # file, devices, genuine
    ("hopper_evidence.json", 1, YES),
    ("evidence_hopper_590_12.json", 1, YES),
    ("multi_gpu_hopper.json", 4, YES),
    ("hopper_evidence_cert_hold.json", 1, YES),  # on hold: only OCSP would tell, and that was not asked
    ("switch_evidence_ls10.json", 1, YES),
]


@pytest.mark.parametrize(("name", "devices", "genuine"), EVIDENCE)
def test_gpu_evidence(vectors, capsys, name, devices, genuine):
    path = vectors / "attestation" / "nvgpu" / "attestation-sdk-evidence" / name
    nonce = json.loads(path.read_text())[0]["nonce"]
    code, said = run(capsys, "gpu", "--evidence", path, "--nonce", nonce, "--at", JUNE_2026)
    assert (said["genuine"], code) == (genuine, 2), said
    assert {check["result"] for check in said["checks"] if "ocsp" in check["code"]} == {"not_checked"}
    assert {check["result"] for check in said["checks"] if check["code"] == "nonce"} == {"pass"}
    assert len(said["claims"]["devices"] if devices > 1 else [said["claims"]]) == devices
    code, said = run(capsys, "gpu", "--evidence", path, "--nonce", "00" * 32, "--at", JUNE_2026)
    assert code == 1
    assert {check["result"] for check in said["checks"] if check["code"] == "nonce"} == {"fail"}


JUNE_2024, JUNE_2025 = "2024-06-01T00:00:00Z", "2025-06-01T00:00:00Z"
NVTRUST, SDK = "rim-nvtrust", "rim-attestation-sdk"
RIMS = [
    # RIM, device, time, exit, what the RIM itself and what the measurements come to, words of the reason
    (f"{NVTRUST}/1010_0200_882_96005E0001_PROD.swidtag", "gpu_hopper", JUNE_2024, 2, "pass", "pass", ""),
    (f"{NVTRUST}/1010_0200_882_96005E0001_PROD.swidtag", "gpu_hopper", JUNE_2026, 1, "fail", "pass", "is valid"),
    (f"{NVTRUST}/1010_0200_882_96005E0001_test_no_gpu.swidtag", "gpu_hopper", JUNE_2024, 1, "pass", "fail", ""),
    (f"{NVTRUST}/1010_0210_886_9600740011_PROD.swidtag", "gpu_hopper", JUNE_2024, 1, "fail", None, "RIM is for vbios"),
    (f"{NVTRUST}/g520_0200_885_9600740001_PROD.swidtag", "gpu_hopper", JUNE_2024, 1, "fail", None, "RIM is for vbios"),
    (f"{NVTRUST}/Driver_RIM_test_no_gpu.swidtag", "gpu_hopper", JUNE_2024, 1, "fail", None, "RIM is for driver 545"),
    (f"{SDK}/NV_GPU_DRIVER_GH100_550.144.03.xml", "gpu_hopper", JUNE_2025, 1, "fail", None, "RIM is for driver 550"),
    (f"{SDK}/incorrect_signature_driver_rim.xml", "gpu_hopper", JUNE_2025, 1, "fail", None, "signature:"),
    (f"{SDK}/incorrect_cert_chain_driver_rim.xml", "gpu_hopper", JUNE_2025, 1, "fail", None, "is not issued by"),
    (
        f"{SDK}/NV_GPU_DRIVER_GH100_570.124.03_expired.xml",
        "gpu_hopper",
        JUNE_2025,
        1,
        "fail",
        None,
        "is valid 2025-01-01",
    ),
    (
        *(f"{SDK}/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml", "gpu_hopper", JUNE_2025),
        *(1, "fail", None, "Digest mismatch"),
    ),
    (
        *(f"{SDK}/NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml", "gpu_hopper", JUNE_2024),
        *(1, "pass", "fail", ""),
    ),
    (
        *(f"{SDK}/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml", "switch_switch", JUNE_2026),
        *(2, "pass", "pass", ""),
    ),
    (
        *(f"{SDK}/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml", "switch_switch", JUNE_2025),
        *(1, "fail", "pass", "is valid 2026-05-20"),
    ),
]


@pytest.mark.parametrize(("rim", "device", "at", "code", "itself", "measured", "why"), RIMS)
def test_gpu_rims(vectors, capsys, rim, device, at, code, itself, measured, why):
    folder = vectors / "attestation" / "nvgpu"
    report, chain = (folder / SAMPLES / f"{device}{part}.txt" for part in ("AttestationReport", "CertChain"))
    got, said = run(capsys, "gpu", "--report", report, "--chain", chain, "--rim", folder / rim, "--at", at)
    assert (said["genuine"], got) == (YES, code), said
    known = [each for each in said["checks"] if each["code"] in ("rim_driver", "rim_vbios")]
    asked = [each for each in known if each["result"] != "not_checked"]
    assert [each["result"] for each in asked] == [itself]
    assert why in asked[0]["detail"]
    assert results(said)["rim_measurements"] == (measured or "not_checked")


def test_nras_tokens(vectors, capsys):
    folder = vectors / "attestation" / "nvgpu"
    token, keys = folder / SAMPLES / "hopperClaimsv3_detached_eat.json", folder / "derived"
    args = (
        "nras",
        "--token",
        token,
        "--jwks",
        keys / "nras-prod-20250609.recovered_jwks.json",
        "--nonce",
        NVTRUST_NONCE,
    )
    code, said = run(capsys, *args, "--at", "2025-06-11T01:00:00Z")
    assert (said["genuine"], code) == (YES, 2), said
    code, said = run(capsys, *args, "--at", "2025-06-11T01:31:00Z")
    assert (said["genuine"], code) == (NO, 1), said
    code, said = run(capsys, *args[:-1], "00" * 32, "--at", "2025-06-11T01:00:00Z")
    assert code == 1
    other = keys / "nras-stg-20250627.recovered_jwks.json"
    code, said = run(capsys, "nras", "--token", token, "--jwks", other, "--at", "2025-06-11T01:00:00Z")
    assert (said["genuine"], code) == (NO, 1), said


def test_nras_token_of_the_staging_service(vectors, capsys):
    """Its signature holds with the key recovered from it; NVIDIA's production service did not issue it."""
    folder = vectors / "attestation" / "nvgpu"
    token, keys = folder / SAMPLES / "switch_detached_eat.json", folder / "derived"
    jwks = keys / "nras-stg-20250627.recovered_jwks.json"
    code, said = run(capsys, "nras", "--token", token, "--jwks", jwks, "--at", JUNE_2026)
    assert (said["genuine"], code) == (NO, 1), said


# -- with a policy ---------------------------------------------------------------------------------------------------


def policy_file(path, kind, schema, debug=False, **changes):
    """A policy that says any, but for debug and ``changes``."""
    section = open_policies.anything(schema) | changes
    (section["policy"] if kind == "snp" else section)["debug"] = debug
    path.write_text(open_policies.as_yaml(open_policies.policy(kind, **{kind: section})))
    return path


POLICIES = [
    # report, VEK, time, fields, exit, checks that fail
    ("milan-v3-routex", "chain.pem", JUNE_2026, {}, 0, []),
    ("genoa-v5-routex", "chain.pem", JUNE_2026, {"current_mit_vector": 0b1011}, 0, []),
    ("turin-v5-routex", "chain.pem", JUNE_2026, {"product": ["Turin"]}, 0, []),
    ("turin-v5-routex", "chain.pem", JUNE_2026, {"product": ["Milan", "Genoa"]}, 1, ["product"]),
    ("milan-v3-vlek-trustee", "vlek.der", "2025-06-01T00:00:00Z", {"vmpl": [1], "signer": ["vlek"]}, 0, []),
    ("milan-v3-vlek-trustee", "vlek.der", "2025-06-01T00:00:00Z", {"vmpl": [0]}, 1, ["vmpl"]),
    ("milan-v2-trustee", "vcek.der", JUNE_2026, {}, 0, []),
    ("milan-v2-trustee", "vcek.der", JUNE_2026, {"provisional_firmware": False}, 1, ["provisional_firmware"]),
    ("milan-v2-debug-gosevguest", "vcek.der", JUNE_2026, {}, 1, ["debug"]),
    ("milan-v2-debug-gosevguest", "vcek.der", JUNE_2026, {"debug": "any"}, 0, []),
    ("milan-v3-routex", "chain.pem", JUNE_2026, {"measurement": ["00" * 48]}, 1, ["measurement"]),
]


@pytest.mark.parametrize(("folder", "vek", "at", "fields", "code", "failed"), POLICIES)
def test_snp_with_a_policy(vectors, tmp_path, capsys, folder, vek, at, fields, code, failed):
    snp = vectors / "attestation" / "snp" / folder
    path = policy_file(tmp_path / "policy.yml", "snp", SnpPolicy, **fields)
    files = ("--report", snp / "report.bin", "--vek", snp / vek, "--policy", path)
    got, said = run(capsys, "snp", *files, "--at", at)
    assert (said["genuine"], got) == (YES, code), said
    assert [name for name, result in results(said).items() if result == "fail"] == failed


@pytest.mark.parametrize(
    ("kind", "schema", "status", "code"),
    [
        ("tdx", TdxPolicy, ["UpToDate"], 0),
        ("tdx", TdxPolicy, ["SWHardeningNeeded"], 1),
        ("sgx", SgxPolicy, ["UpToDate"], 1),
        ("sgx", SgxPolicy, ["UpToDate", "ConfigurationAndSWHardeningNeeded"], 0),
    ],
)
def test_quotes_with_a_policy(vectors, tmp_path, capsys, kind, schema, status, code):
    folder = vectors / "attestation" / "tdx" / "dcap-qvl"
    path = policy_file(tmp_path / "policy.yml", kind, schema, tcb_status=status)
    files = ("--quote", folder / f"{kind}_quote", "--collateral", folder / f"{kind}_quote_collateral.json")
    got, said = run(capsys, kind, *files, "--policy", path, "--at", "2025-07-01T00:00:00Z")
    assert (said["genuine"], got) == (YES, code), said
    assert (results(said)["tcb_status"] == "fail") == (code == 1)


def test_a_policy_derived_from_a_measurement_takes_that_image_and_no_other(vectors, tmp_path, capsys):
    snp = vectors / "attestation" / "snp"
    base, out = policy_file(tmp_path / "base.yml", "snp", SnpPolicy), tmp_path / "image.yml"
    measurement = (snp / "milan-v3-routex" / "report.bin").read_bytes()[0x90:0xC0].hex()
    assert main(["attest", "policy", "snp", "--base", str(base), "--measurement", measurement, "--out", str(out)]) == 0
    capsys.readouterr()
    for folder, vek, code in (("milan-v3-routex", "chain.pem", 0), ("milan-v2-virtee", "vcek.der", 1)):
        files = ("--report", snp / folder / "report.bin", "--vek", snp / folder / vek, "--policy", out)
        assert run(capsys, "snp", *files, "--at", JUNE_2026)[0] == code


# -- all of it was looked at ----------------------------------------------------------------------------------------


def test_every_evidence_file_of_the_index_is_in_a_table(vectors):
    """A file that is added to the vectors wants a row here."""
    root = vectors / "attestation"
    source = Path(__file__).read_text()
    parents = ("roots", "derived")
    left = [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.parent.name not in parents
        and not _spoken_for(path)
        and not (path.name in source and path.parent.name in source)
    ]
    assert left == []


ROOTS = {
    "nvidia_device_root": "nvgpu/roots/verifier_device_root.pem",
    "nvidia_rim_root": "nvgpu/roots/verifier_RIM_root.pem",
    "intel_sgx_root": "tdx/roots/intel_sgx_root_ca.pem",
    **{f"amd_{product}_ark": f"snp/roots/ask_ark_{product}.pem" for product in ("milan", "genoa", "turin")},
    **{f"amd_{product}_asvk": f"snp/roots/asvk_ark_{product}_vlek.pem" for product in ("milan", "genoa", "turin")},
}


@pytest.mark.parametrize(("name", "path"), ROOTS.items())
def test_the_embedded_roots_are_those_of_the_index(vectors, name, path):
    known = x509.load_pem_x509_certificates((vectors / "attestation" / path).read_bytes())
    assert roots.load(name) in known


def _spoken_for(path):
    """Files that are no evidence: collateral in pieces, expected parses, documents."""
    return path.name in {
        *("INDEX.md", "SOURCE-README.md", "report.dat", "nonce.dat"),
        *("pckCrlIssuerChain.pem", "pckcrl", "qeIdentityIssuerChain.pem", "rootcrl.der", "tcbInfoIssuerChain.pem"),
        *("sample_qeIdentity_response", "sample_tcbInfo_response", "sample_tcbinfo_response_v5"),
        *("enclaveIdentity.json", "tcbInfo.json", "parse_tdx_claims_expected.json"),
        *("hopperClaimsv3_decoded.json", "switch_decoded.json", "spdm_parsed_output.json"),
    }
