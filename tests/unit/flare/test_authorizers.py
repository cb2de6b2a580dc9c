"""Attesters over the fake devices: the whole path from the device's bytes to the verifier's verdict."""

import base64
import errno
import functools
import json
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cordon import documents
from cordon.attest import azure, nvgpu, sgx, snp, tdx
from cordon.attest.claims import Report
from cordon.attest.dcap import event_log
from cordon.errors import ConfigError
from cordon.flare import devices, nvml, sev_guest
from cordon.flare.authorizers import (
    AzureAttester,
    SgxAttester,
    SnpAttester,
    TdxAttester,
    TeeEnvironment,
    attester_for,
    with_gpus,
)
from fakes import amd_pki, tee_devices
from fakes.tee_devices import FakeNvmlLibrary, FakeSevGuest, FakeTpm, FakeTsm, Gpu, cert_table, hcl_report

DATA = bytes(range(64))


def recorded(report: bytes, data: bytes):
    """A TEE that has one report, over ``data``: a device layer that asked over anything else would get none."""

    def make(asked: bytes, privlevel: int) -> bytes:
        if asked != data:
            raise OSError(errno.EINVAL, "Invalid argument")
        return report

    return make


def snp_attester(device: str, report: bytes, table: bytes, folder: Path, vek: Path | None = None) -> SnpAttester:
    make = recorded(report, report[0x50:0x90])
    if device == "tsm":
        files = FakeTsm(lambda data, privlevel: (make(data, privlevel), table))
        return SnpAttester("tsm", vek, tsm=functools.partial(devices.tsm_report, files=files))
    (folder / "sev-guest").touch()
    ioctl = FakeSevGuest(make, table)
    ask = functools.partial(sev_guest.sev_guest_report, device=folder / "sev-guest", ioctl=ioctl)
    return SnpAttester("sev-guest", vek, sev_guest=ask)


def judge(made: Report, **more):
    return snp.verify(made.report, vek=made.endorsements["vek"], chain=made.endorsements.get("chain"), **more)


# --- SEV-SNP


@pytest.mark.parametrize("device", ["tsm", "sev-guest"])
@pytest.mark.parametrize("signer", ["vcek", "vlek"])
@pytest.mark.parametrize("product", amd_pki.PRODUCTS)
def test_a_report_reaches_the_verifier_with_the_certificates_of_the_host(tmp_path, device, signer, product):
    report = amd_pki.report(product, signer, 5)
    leaf = amd_pki.vek(product, signer).public_bytes(Encoding.DER)
    other = amd_pki.vek(product, "vlek" if signer == "vcek" else "vcek").public_bytes(Encoding.DER)
    guids = (tee_devices.VCEK, tee_devices.VLEK) if signer == "vcek" else (tee_devices.VLEK, tee_devices.VCEK)
    root = amd_pki.anchor(product)
    table = cert_table(
        [
            (guids[1], other),  # a host may give out both: the one that signed is taken
            (guids[0], leaf),
            (tee_devices.ASK, root.ask.public_bytes(Encoding.DER)),
            (tee_devices.ARK, root.ark.public_bytes(Encoding.PEM)),
        ]
    )
    made = snp_attester(device, report, table, tmp_path).report(report[0x50:0x90])
    assert made.endorsements["vek"] == leaf
    assert made.endorsements.get("chain") == (amd_pki.pem(root.ask, root.ark) if signer == "vcek" else None)
    verdict = judge(made, now=amd_pki.NOW, roots={product: root}, report_data=report[0x50:0x90])
    assert verdict.genuine, verdict.codes


def test_without_the_hosts_certificate_the_kits_file_is_taken(tmp_path):
    report = amd_pki.report("Milan", "vcek", 3)
    vek = tmp_path / "vek.der"
    with pytest.raises(ConfigError, match=rf"^vek_missing: .*kdsintf.*{report[0x1A0:0x1E0].hex()}"):
        snp_attester("tsm", report, b"", tmp_path).report(report[0x50:0x90])
    with pytest.raises(ConfigError, match=r"vek\.der: cannot be read"):
        snp_attester("tsm", report, b"", tmp_path, vek).report(report[0x50:0x90])
    vek.write_bytes(amd_pki.vek("Milan", "vcek").public_bytes(Encoding.DER))
    made = snp_attester("tsm", report, b"", tmp_path, vek).report(report[0x50:0x90])
    assert list(made.endorsements) == ["vek"]
    assert judge(made, now=amd_pki.NOW, roots=amd_pki.anchors()).genuine


def test_a_malformed_table_of_the_host_is_an_error_and_not_a_missing_certificate(tmp_path):
    report = amd_pki.report("Milan", "vcek", 3)
    vek = tmp_path / "vek.der"
    vek.write_bytes(amd_pki.vek("Milan", "vcek").public_bytes(Encoding.DER))
    with pytest.raises(ConfigError, match=r"^cert_table: "):
        snp_attester("tsm", report, b"\x01" * 30, tmp_path, vek).report(report[0x50:0x90])


def test_a_tdx_kernel_does_not_serve_an_snp_kit():
    files = FakeTsm(lambda data, _: (data, None), "tdx_guest")
    attester = SnpAttester(tsm=functools.partial(devices.tsm_report, files=files))
    with pytest.raises(ConfigError, match=r"^tsm_provider: .*tdx_guest, want sev_guest"):
        attester.report(DATA)


REAL_SNP = {  # folder -> (vek file, when its certificates are valid)
    "milan-v2-virtee": ("vcek.der", datetime(2026, 6, 1, tzinfo=UTC)),
    "milan-v3-routex": ("chain.pem", datetime(2026, 6, 1, tzinfo=UTC)),
    "genoa-v3-msft": ("vcek.pem", datetime(2026, 6, 1, tzinfo=UTC)),
    "genoa-v5-routex": ("chain.pem", datetime(2026, 6, 1, tzinfo=UTC)),
    "turin-v5-routex": ("chain.pem", datetime(2026, 6, 1, tzinfo=UTC)),
    "milan-v3-vlek-trustee": ("vlek.der", datetime(2025, 6, 1, tzinfo=UTC)),
}


def certificates(data: bytes) -> list[bytes]:
    """DER of each certificate in ``data``."""
    if not data.startswith(b"-----"):
        return [data]
    end = "-----END CERTIFICATE-----"
    return [ssl.PEM_cert_to_DER_cert(each.strip() + "\n" + end) for each in data.decode().split(end) if each.strip()]


@pytest.mark.parametrize("device", ["tsm", "sev-guest"])
@pytest.mark.parametrize("name", REAL_SNP)
def test_real_snp_reports_replayed_through_the_device_are_genuine(vectors, tmp_path, device, name):
    folder = vectors / "attestation" / "snp" / name
    file, now = REAL_SNP[name]
    report = (folder / "report.bin").read_bytes()
    leaf, *above = certificates((folder / file).read_bytes())
    guids = [tee_devices.VLEK if "vlek" in name else tee_devices.VCEK, tee_devices.ASK, tee_devices.ARK]
    table = cert_table(list(zip(guids, [leaf, *above], strict=False)))
    made = snp_attester(device, report, table, tmp_path).report(report[0x50:0x90])
    product = "Milan" if "v2" in name else None
    verdict = judge(made, now=now, product=product, report_data=report[0x50:0x90])
    assert made.report == report and ("chain" in made.endorsements) == bool(above)
    assert verdict.genuine, verdict.codes
    with pytest.raises(ConfigError, match=r"_failed: "):
        snp_attester(device, report, table, tmp_path).report(b"\x5a" * 64)


# --- TDX and SGX


def tdx_attester(quote: bytes, data: bytes, ccel: Path) -> TdxAttester:
    make = recorded(quote, data)
    files = FakeTsm(lambda asked, privlevel: (make(asked, privlevel), None), "tdx_guest")
    return TdxAttester(ccel, tsm=functools.partial(devices.tsm_report, files=files))


def test_a_td_without_an_event_log_sends_none(tmp_path):
    assert tdx_attester(b"quote", DATA, tmp_path / "CCEL").report(DATA) == Report(b"quote", {})


@pytest.mark.parametrize("fill", [b"\xff", b"\0"])
def test_an_event_log_is_sent_without_most_of_the_memory_after_it(tmp_path, fill):
    ccel = tmp_path / "CCEL"
    ccel.write_bytes(b"events" + fill * 200_000)
    sent = tdx_attester(b"quote", DATA, ccel).report(DATA).endorsements["event_log"]
    assert sent == b"events" + fill * 4096
    ccel.write_bytes(b"events that fill it")
    assert tdx_attester(b"quote", DATA, ccel).report(DATA).endorsements["event_log"] == b"events that fill it"


def test_a_real_tdx_quote_replayed_through_the_device_is_genuine(vectors, tmp_path):
    folder = vectors / "attestation" / "tdx" / "dcap-qvl"
    quote = (folder / "tdx_quote").read_bytes()
    data = quote[568:632]
    made = tdx_attester(quote, data, tmp_path / "CCEL").report(data)
    verdict = tdx.verify(
        made.report,
        collateral=(folder / "tdx_quote_collateral.json").read_bytes(),
        now=datetime(2025, 7, 1, tzinfo=UTC),
        report_data=data,
    )
    assert verdict.genuine, verdict.codes


def test_a_real_event_log_says_the_same_after_it_was_cut(vectors, tmp_path):
    folder = vectors / "attestation" / "tdx" / "go-tdx-guest-ccel"
    quote, log = (folder / "cos-113-tdx-quote.dat").read_bytes(), folder / "ccel_data.dat"
    sent = tdx_attester(quote, bytes(64), log).report(bytes(64)).endorsements["event_log"]
    assert len(sent) < 24_000 < log.stat().st_size
    assert event_log.parse(sent) == event_log.parse(log.read_bytes())


def test_a_real_sgx_quote_replayed_through_gramine(vectors):
    folder = vectors / "attestation" / "tdx" / "dcap-qvl"
    quote = (folder / "sgx_quote").read_bytes()

    class Gramine(devices.Files):
        def read(self, path, limit):
            return b"dcap" if path.name == "attestation_type" else quote

        def write(self, path, data):
            assert data == quote[368:432]

    attester = SgxAttester(quote=functools.partial(devices.gramine_quote, files=Gramine()))
    made = attester.report(quote[368:432])
    collateral = json.loads((folder / "sgx_quote_collateral.json").read_bytes())
    now = datetime.fromisoformat(json.loads(collateral["tcb_info"])["issueDate"])
    verdict = sgx.verify(made.report, collateral=json.dumps(collateral).encode(), now=now, report_data=quote[368:432])
    assert verdict.genuine, verdict.codes
    assert attester.gpu_evidence(bytes(32)) is None


# --- GPUs

NONCE = b"n" * 32


def test_gpu_evidence_is_sorted_base64_and_the_cpu_stays_what_it_was():
    asked = []

    def gpus(nonce):
        asked.append(nonce)
        return [nvml.GpuReport("GPU-b", "hopper", b"\xff\x00", b"PEM"), nvml.GpuReport("GPU-a", "hopper", b"r", b"c")]

    attester = with_gpus(SgxAttester(quote=lambda data: b"quote of " + data), gpus)
    assert attester.gpu_evidence(NONCE) == [
        {"uuid": "GPU-a", "arch": "hopper", "report": "cg==", "chain": "Yw=="},
        {"uuid": "GPU-b", "arch": "hopper", "report": "/wA=", "chain": "UEVN"},
    ]
    assert asked == [NONCE]
    assert attester.type == "sgx" and attester.report(DATA).report == b"quote of " + DATA


@pytest.mark.parametrize("cpu", [SnpAttester(), TdxAttester(), SgxAttester(), AzureAttester("az-snp")])
def test_a_cpu_alone_has_no_gpu_evidence(cpu):
    assert cpu.gpu_evidence(NONCE) is None


@pytest.fixture
def library(monkeypatch):
    pynvml = pytest.importorskip("pynvml")

    def load(*gpus, **settings) -> FakeNvmlLibrary:
        fake = FakeNvmlLibrary(list(gpus), **settings)
        monkeypatch.setattr(pynvml, "nvmlLib", fake)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return fake

    return load


@pytest.mark.parametrize("name", ["hopper_evidence", "multi_gpu_hopper", "evidence_hopper_590_12"])
def test_real_gpu_evidence_replayed_through_nvml_is_genuine(vectors, library, name):
    given = json.loads((vectors / "attestation/nvgpu/attestation-sdk-evidence" / f"{name}.json").read_text())
    reports = [base64.b64decode(each["evidence"]) for each in given]
    chains = [base64.b64decode(each["certificate"]) for each in given]
    nonce = bytes.fromhex(given[0]["nonce"])
    count = len(given)
    library(*(Gpu(f"GPU-{count - i}", 9, nonce, reports[i], chains[i]) for i in range(count)))
    evidence = with_gpus(SnpAttester()).gpu_evidence(nonce)
    assert [each["uuid"] for each in evidence] == [f"GPU-{i + 1}" for i in range(count)]
    assert [base64.b64decode(each["report"]) for each in evidence] == reports[::-1]
    checks = nvgpu.verify_devices(evidence, nonce, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert {check.result for check in checks if check.kind == "genuine"} == {"pass"}, checks
    assert not [check for check in checks if check.result == "fail"]


# --- Azure


@pytest.mark.parametrize("kind", ["az-snp", "az-tdx"])
def test_azure_evidence_has_what_its_verifier_asks_for(tmp_path, kind):
    tpm = FakeTpm(lambda data: hcl_report(b"hardware", data))

    def fetch(method, path, body):
        return b'{"vcekCert": "leaf", "certificateChain": "above", "quote": "cXVvdGU"}'

    made = AzureAttester(kind, run=tpm, fetch=fetch).report(DATA)
    assert made.report == hcl_report(b"hardware", DATA)
    endorsed = {"vek": b"leaf", "chain": b"above"} if kind == "az-snp" else {"quote": b"quote"}
    assert {name: value for name, value in made.endorsements.items() if name != "tpm_quote"} == endorsed
    assert azure.read_tpm_quote(made.endorsements["tpm_quote"]).message == b"message"
    (tmp_path / "vek.der").write_bytes(b"mine")
    if kind == "az-snp":
        assert AzureAttester(kind, tmp_path / "vek.der", tpm, fetch).report(DATA).endorsements["vek"] == b"mine"


@pytest.mark.parametrize("name", ["evidence-v1.json", "evidence-v2.json"])
def test_real_azure_evidence_replayed_through_the_vtpm_is_genuine(vectors, tmp_path, name):
    given = json.loads((vectors / "attestation/snp/azure-vtpm-trustee" / name).read_text())
    report, leaf = (base64.urlsafe_b64decode(given[part] + "==") for part in ("hcl_report", "vcek"))
    claims = json.loads(report[1236:].rstrip(b"\0"))
    data = bytes.fromhex(claims["user-data"])
    quote = given["tpm_quote"]
    recording = [bytes.fromhex(each) for each in (quote["message"], quote["signature"], "".join(quote["pcrs"]))]
    (tmp_path / "vek.der").write_bytes(leaf)
    tpm = FakeTpm(lambda asked: report if asked == data else hcl_report(b"", asked), tuple(recording))
    made = AzureAttester("az-snp", tmp_path / "vek.der", run=tpm).report(data)
    verdict = azure.verify(
        made.report,
        tee="snp",
        vek=made.endorsements["vek"],
        tpm_quote=azure.read_tpm_quote(made.endorsements["tpm_quote"]),
        now=datetime(2026, 6, 1, tzinfo=UTC),
        report_data=data,
    )
    assert verdict.genuine, verdict.codes
    assert ("user_data", "pass") in {code[:2] for code in verdict.codes}
    assert json.loads(made.endorsements["tpm_quote"]) == quote


# --- tee.yml and the factory


def environment(**changes) -> TeeEnvironment:
    fields = {"version": "cordon/tee/v1", "evidence": "snp", "gpu": "none", "device": "tsm", "vek": None}
    return documents.parse(json.dumps({**fields, **changes}).encode(), TeeEnvironment, "tee.yml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "vtpm"}, "evidence snp comes from device tsm or sev-guest"),
        ({"evidence": "tdx", "device": "sev-guest"}, "evidence tdx comes from device tsm"),
        ({"evidence": "sgx", "device": "gramine", "gpu": "nvidia"}, "cannot speak for a GPU"),
        ({"evidence": "tdx", "vek": "vek.der"}, "evidence tdx has no vek"),
        ({"evidence": "nitro"}, "Invalid enum value"),
        ({"version": "cordon/tee/v2"}, "Invalid enum value"),
        ({"gpu": None}, "Expected `str`"),
        ({"measurement": "x"}, "unknown field"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ConfigError, match=f"^tee.yml: .*{said}"):
        environment(**changes)


def test_every_field_of_the_environment_is_required():
    for name in msgspec.structs.asdict(environment()):
        fields = {key: value for key, value in msgspec.structs.asdict(environment()).items() if key != name}
        with pytest.raises(ConfigError, match=f"missing required field `{name}`"):
            documents.parse(json.dumps(fields).encode(), TeeEnvironment, "tee.yml")


@pytest.mark.parametrize(
    ("evidence", "device"),
    [("snp", "tsm"), ("snp", "sev-guest"), ("tdx", "tsm"), ("sgx", "gramine"), ("az-snp", "vtpm")],
)
def test_away_from_its_hardware_a_kit_says_what_it_looked_for_and_what_to_do(monkeypatch, tmp_path, evidence, device):
    require = devices.require
    monkeypatch.setattr(devices, "require", lambda wanted: require(wanted, tmp_path))
    with pytest.raises(ConfigError, match=r"^[a-z_]+_absent: looked for /.*: start this kit inside the confidential"):
        attester_for(environment(evidence=evidence, device=device), Path("local"))


def test_software_evidence_is_not_made_here():
    with pytest.raises(ConfigError, match=r"^tee: software"):
        attester_for(environment(evidence="software", device="software"), Path("local"))


@pytest.fixture
def on_hardware(monkeypatch):
    monkeypatch.setattr(devices, "require", lambda device: None)


@pytest.mark.parametrize(
    ("evidence", "device", "wanted"),
    [
        ("snp", "tsm", SnpAttester("tsm", Path("/kit/local/vek.der"))),
        ("snp", "sev-guest", SnpAttester("sev-guest", Path("/kit/local/vek.der"))),
        ("tdx", "tsm", TdxAttester()),
        ("sgx", "gramine", SgxAttester()),
        ("az-snp", "vtpm", AzureAttester("az-snp", Path("/kit/local/vek.der"))),
        ("az-tdx", "vtpm", AzureAttester("az-tdx")),
    ],
)
def test_the_environment_decides_the_attester(on_hardware, library, evidence, device, wanted):
    library(init=9)
    vek = "vek.der" if "snp" in evidence else None
    attester = attester_for(environment(evidence=evidence, device=device, vek=vek), Path("/kit/local"))
    assert attester == wanted and attester.type == evidence


def test_a_kit_with_gpus_does_not_start_outside_cc_mode(on_hardware, library):
    here = Gpu("GPU-1", 9, NONCE, b"report", b"chain")
    library(here, cc_feature=0)
    with pytest.raises(ConfigError, match=r"^gpu_cc_mode: "):
        attester_for(environment(gpu="nvidia"), Path("local"))
    library()
    with pytest.raises(ConfigError, match=r"^gpu_absent: "):
        attester_for(environment(gpu="nvidia"), Path("local"))
    library(here)
    attester = attester_for(environment(gpu="nvidia"), Path("local"))
    assert attester.type == "snp"
    assert [each["uuid"] for each in attester.gpu_evidence(NONCE)] == ["GPU-1"]


def test_a_kit_without_gpus_does_not_start_where_one_could_be_used(on_hardware, library):
    library(Gpu("GPU-1", 9, NONCE, b"report", b"chain"))
    with pytest.raises(ConfigError, match=r"^gpu_unexpected: "):
        attester_for(environment(), Path("local"))


def test_none_of_this_needs_nvflare_or_torch():
    wanted = "import cordon.flare.authorizers, sys; print(sorted({'nvflare', 'torch', 'pynvml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", wanted], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
