"""Real evidence that NVIDIA's hardware and services signed, against the verdicts that its index states."""

import base64
from datetime import UTC, datetime

import msgspec
import pytest

from cordon.attest import nvgpu, roots
from cordon.attest.nvgpu import GpuPolicy, NrasPolicy, chain, device, nras, rim, spdm
from cordon.errors import ConfigError

ANY = GpuPolicy(**dict.fromkeys(GpuPolicy.__struct_fields__, "any"))
NOW = datetime(2026, 6, 1, tzinfo=UTC)
RIM_TIME = datetime(2024, 6, 1, tzinfo=UTC)  # when the 2023 RIM files were valid
NONCE = bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")
SDK = "attestation-sdk-samples/"
HOPPER_535 = (SDK + "gpu_hopperAttestationReport.txt", SDK + "gpu_hopperCertChain.txt")
SWITCH = (SDK + "switch_switchAttestationReport.txt", SDK + "switch_switchCertChain.txt")
NVTRUST = ("nvtrust-hopper/hopperAttestationReport.txt", "nvtrust-hopper/hopperCertChain.txt")
BLACKWELL = (SDK + "gpu_blackwellAttestationReport.txt", SDK + "gpu_blackwellCertChain.txt")
SPDM = (SDK + "hopperAttestationReport_spdm.txt", SDK + "hopperCertChain_spdm.txt")
EXPIRED = (SDK + "gpu_hopperAttestationReportExpired.txt", SDK + "gpu_hopperCertChainExpired.txt")
REPORTS = [
    (HOPPER_535, "hopper", "535.86.09", "96.00.5E.00.01", None),
    (EXPIRED, "hopper", "570.124.03", "96.00.5E.00.04", None),
    (SPDM, "hopper", "580.159.03", "96.00.74.00.20", "spt"),
    (NVTRUST, "hopper", "550.90.07", "96.00.9F.00.01", None),
    (BLACKWELL, "blackwell", "575.32", "97.00.88.00.0F", None),
    (SWITCH, "ls10", None, "96.10.55.00.01", None),
]
EVIDENCE = {
    "evidence_hopper_590_12.json": 1,
    "hopper_evidence.json": 1,
    "hopper_evidence_cert_hold.json": 1,
    "multi_gpu_hopper.json": 4,
    "switch_evidence_ls10.json": 1,
}
MISMATCH = "rim-attestation-sdk/NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml"
VBIOS = "rim-nvtrust/1010_0200_882_96005E0001_PROD.swidtag"
SWITCH_RIM = "rim-attestation-sdk/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml"
DRIVER_RIM = "rim-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml"


@pytest.fixture(scope="module")
def folder(vectors):
    return vectors / "attestation" / "nvgpu"


@pytest.fixture
def judge(folder):
    def call(files, now=NOW, rims=(), policy=ANY, nonce=None):
        report, certificates = (folder.joinpath(name).read_bytes() for name in files)
        nonce = nvgpu.decode_report(report)[4:36] if nonce is None else nonce
        given = [folder.joinpath(name).read_bytes() for name in rims]
        return nvgpu.verify(report, certificates, nonce=nonce, rims=given, now=now, policy=policy)

    return call


def failed(appraisal):
    return {check.code for check in appraisal.checks if check.result == "fail"}


def result(appraisal, code):
    return next(check for check in appraisal.checks if check.code == code)


@pytest.mark.parametrize(("files", "arch", "driver", "vbios", "mode"), REPORTS, ids=lambda value: str(value)[:40])
def test_genuine_reports(judge, files, arch, driver, vbios, mode):
    appraisal = judge(files)
    assert appraisal.genuine
    assert appraisal.verdict == "pass"
    claims = appraisal.claims
    assert [claims[name] for name in ("arch", "driver_version", "vbios_version", "mode")] == [arch, driver, vbios, mode]
    assert len(claims["serial"]) == 16


@pytest.mark.parametrize(
    ("files", "fails"),
    [
        ((SDK + "gpu_hopperAttestationReportInvalidSignature.txt", HOPPER_535[1]), {"report_signature", "fwid"}),
        ((SDK + "switch_switchAttestationReportInvalidSignature.txt", SWITCH[1]), {"report_signature"}),
        ((NVTRUST[0], SPDM[1]), {"report_signature", "fwid"}),  # another GPU's chain
        ((SWITCH[0], NVTRUST[1]), {"report_signature"}),
    ],
)
def test_reports_that_are_not_genuine(judge, files, fails):
    appraisal = judge(files)
    assert failed(appraisal) == fails
    assert not appraisal.genuine


@pytest.mark.parametrize("name", EVIDENCE)
def test_evidence_files(folder, name):
    devices = nvgpu.read_evidence(folder.joinpath("attestation-sdk-evidence", name).read_bytes())
    assert len(devices) == EVIDENCE[name]
    for each in devices:
        appraisal = nvgpu.verify(each["report"], each["chain"], nonce=each["nonce"], now=NOW, policy=ANY)
        assert appraisal.verdict == "pass"
        assert appraisal.claims["arch"] == each["arch"]
        # The certificate of hopper_evidence_cert_hold is on hold: only OCSP could tell, and that is said.
        assert result(appraisal, "ocsp").result == "not_checked"


def test_four_gpus_of_one_machine(folder):
    devices = nvgpu.read_evidence(folder.joinpath("attestation-sdk-evidence/multi_gpu_hopper.json").read_bytes())
    evidence = [
        {
            "uuid": f"GPU-{position}",
            "arch": "HOPPER",
            "report": base64.b64encode(each["report"]).decode(),
            "chain": base64.b64encode(each["chain"]).decode(),
        }
        for position, each in enumerate(devices)
    ]
    nonce = devices[0]["nonce"]
    wanted = msgspec.structs.replace(ANY, count=4, mode=("ppcie",), fwid="required")
    assert not [c for c in nvgpu.verify_devices(evidence, nonce, now=NOW, policy=wanted) if c.result == "fail"]
    shown = [*evidence[:3], evidence[0] | {"uuid": "GPU-3"}]
    codes = {c.code for c in nvgpu.verify_devices(shown, nonce, now=NOW, policy=wanted) if c.result == "fail"}
    assert codes == {"gpu_duplicate", "gpu_count"}


def test_parse_agrees_with_nvidias(folder):
    expected = msgspec.json.decode(folder.joinpath(SDK, "spdm_parsed_output.json").read_bytes())
    report = spdm.parse(nvgpu.decode_report(folder.joinpath(SPDM[0]).read_bytes()))
    blocks = expected["MeasurementRecord"]["MeasurementBlocks"]
    assert {int(i): b["DMTFSpecMeasurementValue"][2:] for i, b in blocks.items()} == {
        index: value.hex() for index, value in report.measurements.items()
    }
    assert expected["Nonce"] == "0x" + report.response_nonce.hex()
    assert expected["Signature"] == "0x" + report.signature.hex()


@pytest.mark.parametrize(
    ("now", "fails"), [(datetime(2020, 1, 1, tzinfo=UTC), {"report_time"}), (datetime(9990, 1, 1, tzinfo=UTC), set())]
)
def test_time(judge, now, fails):
    assert failed(judge(NVTRUST, now=now)) == fails


def test_nonce(judge):
    assert failed(judge(NVTRUST, nonce=NONCE)) == set()
    assert failed(judge(NVTRUST, nonce=bytes(32))) == {"nonce"}


# -- reference measurements ------------------------------------------------------------------------------------------


def test_vbios_measurements_match(judge):
    appraisal = judge(HOPPER_535, now=RIM_TIME, rims=[VBIOS])
    assert appraisal.verdict == "pass"
    assert result(appraisal, "rim_measurements").detail == "12 of 64 measurements have a reference (vbios)"


def test_switch_measurements_match(judge):
    appraisal = judge(SWITCH, rims=[SWITCH_RIM], policy=msgspec.structs.replace(ANY, rim="required"))
    assert appraisal.verdict == "pass"
    assert result(appraisal, "rim_measurements").detail == "31 of 31 measurements have a reference (vbios)"


def test_a_vbios_measurement_differs(judge):
    appraisal = judge(HOPPER_535, now=RIM_TIME, rims=[MISMATCH])
    assert failed(appraisal) == {"rim_measurements"}
    assert "vbios 9" in result(appraisal, "rim_measurements").detail
    assert appraisal.genuine
    assert appraisal.verdict == "fail"


def test_an_expired_rim(judge):
    appraisal = judge(HOPPER_535, rims=[VBIOS])
    assert failed(appraisal) == {"rim_vbios"}
    assert result(appraisal, "rim_measurements").result == "pass"


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("rim-attestation-sdk/incorrect_signature_driver_rim.xml", "rim_driver", "signature: "),
        ("rim-attestation-sdk/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml", "rim_driver", "signature: "),
        ("rim-attestation-sdk/NV_GPU_DRIVER_GH100_570.124.03_expired.xml", "rim_driver", "2025-01-02"),
        ("rim-attestation-sdk/incorrect_cert_chain_driver_rim.xml", "rim_vbios", "chain: "),  # a GB100 VBIOS's
        (DRIVER_RIM, "rim_driver", "RIM is for driver 550.144.03, the report states 535.86.09"),
        ("rim-nvtrust/Driver_RIM_test_no_gpu.swidtag", "rim_driver", "RIM is for driver 545.00"),
        ("rim-nvtrust/1010_0210_886_9600740011_PROD.swidtag", "rim_vbios", "RIM is for vbios 96.00.74.00.11"),
        (SWITCH_RIM, "rim_vbios", "RIM is for LS10, the device is a GH100"),
    ],
)
def test_rims_that_do_not_count(judge, name, code, why):
    appraisal = judge(HOPPER_535, rims=[name])
    assert failed(appraisal) == {code}
    assert why in result(appraisal, code).detail
    assert result(appraisal, "rim_measurements").result == "not_checked"
    assert appraisal.verdict == "fail"


@pytest.mark.parametrize(
    ("name", "kind", "version", "now", "good"),
    [
        (DRIVER_RIM, "driver", "550.144.03", NOW, True),
        (DRIVER_RIM, "driver", "550.144.03", datetime(2027, 1, 1, tzinfo=UTC), False),
        (SWITCH_RIM, "vbios", "96.10.55.00.01", NOW, True),
        (SWITCH_RIM, "vbios", "96.10.55.00.01", RIM_TIME, False),
        (VBIOS, "vbios", "96.00.5E.00.01", RIM_TIME, True),
        ("rim-nvtrust/1010_0210_886_9600740011_PROD.swidtag", "vbios", "96.00.74.00.11", RIM_TIME, True),
        ("rim-nvtrust/1010_0200_882_96005E0001_test_no_gpu.swidtag", "vbios", "96.00.5E.00.01", RIM_TIME, True),
        ("rim-nvtrust/g520_0200_885_9600740001_PROD.swidtag", "vbios", "96.00.74.00.01", RIM_TIME, True),
        ("rim-nvtrust/Driver_RIM_test_no_gpu.swidtag", "driver", "545.00", RIM_TIME, True),
    ],
)
def test_rims_by_themselves(folder, name, kind, version, now, good):
    read = rim.read(folder.joinpath(name).read_bytes(), roots.load("nvidia_rim_root"), now)
    assert (read.kind, read.version) == (kind, version)
    assert not read.faults
    assert (read.window.result == "pass") is good


# -- tokens of the attestation service -------------------------------------------------------------------------------

PRODUCTION = NrasPolicy(
    **(dict.fromkeys(NrasPolicy.__struct_fields__, "any") | {"issuer": "https://nras.attestation.nvidia.com"})
)


def token(folder, name="hopperClaimsv3", keys="nras-prod-20250609", at=1749601858, policy=PRODUCTION, nonce=NONCE):
    return nras.verify(
        folder.joinpath(SDK, f"{name}_detached_eat.json").read_bytes(),
        jwks=folder.joinpath("derived", f"{keys}.recovered_jwks.json").read_bytes(),
        nonce=nonce,
        now=datetime.fromtimestamp(at, UTC),
        policy=policy,
    )


def test_nras_tokens(folder):
    assert token(folder).verdict == "pass"
    assert failed(token(folder, at=1749605459)) == {"token_time"}
    assert failed(token(folder, nonce=bytes(32))) == {"nonce"}
    assert failed(token(folder, keys="nras-stg-20250627")) == {"token_signature"}
    staging = {"name": "switch", "keys": "nras-stg-20250627", "at": 1751155060}
    assert failed(token(folder, **staging)) == {"token_issuer"}
    allowed = msgspec.structs.replace(PRODUCTION, issuer="https://nras.attestation-stg.nvidia.com", switches=1)
    assert token(folder, policy=allowed, **staging).verdict == "pass"


# -- tampering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "step"),
    [(NVTRUST, 1), (SWITCH, 1), (BLACKWELL, 3), (HOPPER_535, 7), (SPDM, 11), (EXPIRED, 13)],
    ids=lambda value: str(value)[:40],
)
def test_no_byte_of_a_report_can_be_changed(folder, files, step):
    """Request and response; the long reports are sampled across their whole length."""
    report = nvgpu.decode_report(folder.joinpath(files[0]).read_bytes())
    leaf = chain.decode(folder.joinpath(files[1]).read_bytes())[0]
    for position in [*range(37), *range(37, len(report), step), *range(len(report) - 96, len(report))]:
        changed = bytearray(report)
        changed[position] ^= 1 << position % 8
        try:
            parsed = spdm.parse(bytes(changed))
        except ConfigError:
            continue
        assert device._signature(parsed, leaf).result == "fail", position


def test_no_byte_of_a_chain_can_be_changed(folder):
    report, pem = (folder.joinpath(name).read_bytes() for name in NVTRUST)
    for position in range(0, len(pem), 29):
        changed = pem[:position] + bytes([pem[position] ^ 0x01]) + pem[position + 1 :]
        try:
            appraisal = nvgpu.verify(report, changed, nonce=None, now=NOW)
        except ConfigError:
            continue
        certificates = [link.certificate for link in chain.decode(pem)]
        same = [link.certificate for link in chain.decode(changed)] == certificates  # white space, or text outside
        assert appraisal.genuine is same, position
