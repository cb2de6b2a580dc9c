"""Real reports, signed by AMD's hardware: the verdicts that the vectors' index states."""

import base64
import json
import random
import warnings
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cordon.attest import snp
from cordon.attest.snp import Report, certificates
from cordon.errors import ConfigError
from fakes.open_policies import anything

HCL_HEADER = 32  # Azure: a header of 32 bytes, then the report
NOW = datetime(2026, 3, 1, tzinfo=UTC)
VLEK_NOW = datetime(2025, 6, 1, tzinfo=UTC)

# folder -> (report, VEK, instant, product, signer, version, start of report_data)
GENUINE = {
    "milan-v2-virtee": ("report.bin", "vcek.der", NOW, "Milan", "vcek", 2, "d447b55d197491bf"),
    "milan-v2-trustee": ("report.bin", "vcek.der", NOW, "Milan", "vcek", 2, "ec6c52d7"),
    "milan-v2-debug-gosevguest": ("report.bin", "vcek.der", NOW, "Milan", "vcek", 2, "0102030405000000"),
    "milan-v3-routex": ("report.bin", "chain.pem", NOW, "Milan", "vcek", 3, "a7ca989b"),
    "milan-v3-vlek-trustee": ("report.bin", "vlek.der", VLEK_NOW, "Milan", "vlek", 3, ""),
    "genoa-v3-msft": ("report.bin", "vcek.pem", NOW, "Genoa", "vcek", 3, "0000000000000000"),
    "genoa-v5-routex": ("report.bin", "chain.pem", NOW, "Genoa", "vcek", 5, "bb851e20"),
    "turin-v5-routex": ("report.bin", "chain.pem", NOW, "Turin", "vcek", 5, "e0fd0bdb"),
}
ELSEWHERE = ("milan-v2-automata-azure", "azure-hcl", "azure-v1", "azure-v2", "azure-genoa")
VALIDITY = {  # first and last day of the VEK
    "milan-v2-virtee": ("2023-04-03", "2030-04-03"),
    "milan-v2-trustee": ("2023-01-24", "2030-01-24"),
    "milan-v2-debug-gosevguest": ("2022-09-24", "2029-09-24"),
    "milan-v3-routex": ("2025-01-15", "2032-01-15"),
    "milan-v3-vlek-trustee": ("2024-12-10", "2025-12-10"),
    "genoa-v3-msft": ("2026-02-05", "2033-02-05"),
    "genoa-v5-routex": ("2025-11-11", "2032-11-11"),
    "turin-v5-routex": ("2025-07-17", "2032-07-17"),
}
PARSE_ONLY = {
    "genoa-v2-parse-routex": (2, None),
    "genoa-v3-pysnputils": (3, "Genoa"),
    "milan-v2-lit": (2, None),
    "milan-v5-pysnputils": (5, "Milan"),
}
PROVISIONAL = {"milan-v2-trustee", "milan-v3-vlek-trustee", "azure-hcl"}


@pytest.fixture(scope="module")
def folder(vectors):
    return vectors / "attestation" / "snp"


def unpadded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def hcl(data):
    return data[HCL_HEADER : HCL_HEADER + 0x4A0]


def evidence(folder, name):
    """(report, VEK) of a folder, or of one of Azure's files."""
    azure = folder / "azure-vtpm-trustee"
    if name in GENUINE:
        report, vek, *_ = GENUINE[name]
        return (folder / name / report).read_bytes(), (folder / name / vek).read_bytes()
    if name == "milan-v2-automata-azure":
        found = json.loads((folder / name / "output.json").read_text())["sev_snp"]
        return base64.b64decode(found["attestation_report"]), base64.b64decode(found["vek_cert"])
    if name == "azure-hcl":
        return hcl((azure / "hcl-report.bin").read_bytes()), (azure / "vcek.pem").read_bytes()
    if name == "azure-genoa":
        found = json.loads((azure / "evidence-genoa.json").read_text())
        return hcl(bytes(found["report"])), found["vcek"].encode()
    found = json.loads((azure / f"evidence-{name.removeprefix('azure-')}.json").read_text())
    return hcl(unpadded(found["hcl_report"])), unpadded(found["vcek"])


def instant(name):
    return GENUINE[name][2] if name in GENUINE else NOW


def judge(folder, name, **changes):
    report, vek = evidence(folder, name)
    return snp.verify(report, **{"vek": vek, "now": instant(name), **changes})


def failed(appraisal):
    return {check.code for check in appraisal.checks if check.result == "fail"}


@pytest.mark.parametrize("name", [*GENUINE, *ELSEWHERE])
def test_genuine_reports(folder, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # cryptography warns of AMD's serial number 0
        appraisal = judge(folder, name)
    assert appraisal.genuine, failed(appraisal)
    assert failed(appraisal) == ({"debug"} if "debug" in name else set())
    assert appraisal.claims["policy"]["debug"] == ("debug" in name)
    if name in GENUINE:
        *_, product, signer, version, report_data = GENUINE[name]
        claims = appraisal.claims
        assert (claims["product"], claims["signer"], claims["report_version"]) == (product, signer, version)
        assert claims["report_data"].startswith(report_data)


def policy(**changes):
    return msgspec.convert({**anything(snp.SnpPolicy), **changes}, snp.SnpPolicy)


@pytest.mark.parametrize("name", [*GENUINE, *ELSEWHERE])
def test_policies(folder, name):
    assert judge(folder, name, policy=policy()).verdict == "pass"
    committed = judge(folder, name, policy=policy(provisional_firmware=False))
    assert failed(committed) == ({"provisional_firmware"} if name in PROVISIONAL else set())
    closed = {**policy_bits("any"), "debug": False}
    assert failed(judge(folder, name, policy=policy(policy=closed))) == ({"debug"} if "debug" in name else set())


def policy_bits(value):
    return dict.fromkeys(anything(snp.SnpPolicy)["policy"], value)


@pytest.mark.parametrize("name", GENUINE)
def test_validity_of_the_vek(folder, name):
    first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in VALIDITY[name])
    for now in (first, last + timedelta(days=1)):
        assert {"vek_validity"} <= failed(judge(folder, name, now=now)) <= {"vek_validity", "debug"}
    for now in (first + timedelta(days=1), last):
        assert judge(folder, name, now=now).genuine


def test_vmpl_1_is_refused_by_a_policy_for_vmpl_0(folder):
    assert failed(judge(folder, "milan-v3-vlek-trustee", policy=policy(vmpl=[0]))) == {"vmpl"}
    assert judge(folder, "milan-v2-virtee", policy=policy(vmpl=[0])).verdict == "pass"


def test_facts_of_the_index(folder):
    claims = judge(folder, "turin-v5-routex").claims
    assert claims["reported_tcb"] == {"fmc": 0, "boot_loader": 1, "tee": 0, "snp": 2, "microcode": 71}
    assert (claims["current_firmware"], claims["cpuid"]) == ([1, 55, 61], [0x1A, 0x02, 0x01])
    claims = judge(folder, "genoa-v5-routex").claims
    assert (claims["launch_mit_vector"], claims["current_mit_vector"]) == (0x0B, 0x0B)
    claims = judge(folder, "milan-v3-vlek-trustee").claims
    assert claims["csp_id"] == "CN=cc-us-east-2.amazonaws.com"
    assert (claims["vmpl"], claims["chip_id"]) == (1, "00" * 64)
    claims = judge(folder, "genoa-v3-msft").claims
    assert claims["host_data"].startswith("4f4448c6")
    assert int(claims["id_key_digest"], 16)


@pytest.mark.parametrize("name", PARSE_ONLY)
def test_reports_without_a_vek_are_read(folder, name):
    report = Report.parse((folder / name / "report.bin").read_bytes())
    assert (report.version, report.product) == PARSE_ONLY[name]
    assert report.nonzero == ()


@pytest.mark.parametrize(("name", "size"), [("report-bad-sig.bin", 1185), ("report-corrupt.bin", 793)])
def test_reports_of_a_wrong_length(folder, name, size):
    with pytest.raises(ConfigError, match=f"^report_format: report has {size} bytes, want 1184$"):
        Report.parse((folder / "milan-v2-lit" / name).read_bytes())


@pytest.mark.parametrize("name", ["vcek-invalid-legacy.der", "vcek-invalid-new.der"])
def test_veks_that_amd_did_not_sign(folder, name):
    vek = (folder / "milan-v2-trustee" / name).read_bytes()
    assert "vek_signature" in failed(judge(folder, "milan-v2-trustee", vek=vek))


def test_vek_of_another_chip(folder):
    vek = (folder / "milan-v2-automata-azure" / "vcek.pem").read_bytes()
    assert {"hwid", "report_signature"} <= failed(judge(folder, "milan-v2-automata-azure", vek=vek))
    genoa = (folder / "azure-vtpm-trustee" / "vcek-genoa.pem").read_bytes()
    assert {"hwid", "report_signature"} <= failed(judge(folder, "azure-hcl", vek=genoa))


def test_no_vek_fits_another_report(folder):
    names = [*GENUINE, *ELSEWHERE]
    found = {name: evidence(folder, name) for name in names}
    for one in names:
        for other in names:
            if found[one][0][0x1A0:0x1E0] == found[other][0][0x1A0:0x1E0]:
                continue  # the same chip
            appraisal = snp.verify(found[one][0], vek=found[other][1], now=instant(other))
            assert "report_signature" in failed(appraisal)
            assert not appraisal.genuine


def test_chains_as_amd_publishes_them(folder):
    def published(name):
        return (folder / "roots" / name).read_bytes()

    assert judge(folder, "milan-v2-virtee", chain=published("ask_ark_milan.pem")).genuine
    assert judge(folder, "milan-v3-vlek-trustee", chain=published("asvk_ark_milan_vlek.pem")).genuine
    assert judge(folder, "turin-v5-routex", chain=published("ask_ark_turin.pem")).genuine
    wrong = judge(folder, "milan-v2-virtee", chain=published("asvk_ark_milan_vlek.pem"))
    assert failed(wrong) == {"chain_intermediate", "vek_signature"}
    wrong = judge(folder, "milan-v2-virtee", chain=published("ask_ark_genoa.pem"))
    assert failed(wrong) == {"chain_root", "chain_intermediate", "vek_signature"}


def test_embedded_certificates_are_the_published_ones(folder):
    for product, anchor in certificates.pinned().items():
        for role, file in (("ask", "ask_ark_{}.pem"), ("asvk", "asvk_ark_{}_vlek.pem")):
            data = (folder / "roots" / file.format(product.lower())).read_bytes()
            intermediate, ark = certificates.split_chain(certificates.load(data, "chain"))
            assert (intermediate, ark) == (getattr(anchor, role), anchor.ark)


def test_a_turin_vek_alone(folder):
    (leaf,) = certificates.load((folder / "turin-vcek-only-virtee" / "vcek.der").read_bytes(), "vek")
    vek = certificates.read_vek(leaf)
    assert (vek.kind, vek.wrong, vek.hwid.hex()) == ("vcek", (), "1e550a8ee5cf9f4d")
    assert vek.tcb == {"fmc": 0, "boot_loader": 0, "tee": 0, "snp": 0, "microcode": 9}
    assert certificates.signed_by(leaf, certificates.pinned()["Turin"].ask)
    assert not certificates.signed_by(leaf, certificates.pinned()["Genoa"].ask)


@pytest.mark.parametrize("name", GENUINE)
def test_every_single_byte_change_of_a_report_is_rejected(folder, name):
    report, vek = evidence(folder, name)
    chance = random.Random(name)
    for index in range(len(report)):
        changed = bytearray(report)
        changed[index] ^= chance.randrange(1, 256)
        try:
            appraisal = snp.verify(bytes(changed), vek=vek, now=instant(name))
        except ConfigError:
            assert index < 4, "only the version makes a report unreadable"
            continue
        assert not appraisal.genuine, f"byte {index:#x}"


@pytest.mark.parametrize("name", ["milan-v2-virtee", "milan-v3-vlek-trustee"])
def test_every_single_byte_change_of_a_vek_is_rejected(folder, name):
    report, vek = evidence(folder, name)
    chance = random.Random(name)
    for index in range(len(vek)):
        changed = bytearray(vek)
        changed[index] ^= chance.randrange(1, 256)
        try:
            appraisal = snp.verify(report, vek=bytes(changed), now=instant(name))
        except ConfigError:
            continue
        assert not appraisal.genuine, f"byte {index:#x}"


def test_every_single_byte_change_of_an_ask_or_ark_is_rejected(folder):
    report, vek = evidence(folder, "milan-v2-virtee")
    chain = x509.load_pem_x509_certificates((folder / "roots" / "ask_ark_milan.pem").read_bytes())
    chance = random.Random(1)
    for which in range(2):
        ders = [each.public_bytes(Encoding.DER) for each in chain]
        for index in range(0, len(ders[which]), 3):
            changed = bytearray(ders[which])
            changed[index] ^= chance.randrange(1, 256)
            both = [bytes(changed), ders[1]] if which == 0 else [ders[0], bytes(changed)]
            try:
                appraisal = snp.verify(report, vek=vek, chain=b"".join(map(armoured, both)), now=NOW)
            except ConfigError:
                continue
            assert not appraisal.genuine, f"certificate {which}, byte {index:#x}"


def armoured(der):
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
