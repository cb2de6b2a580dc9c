"""All devices of one machine together, and the evidence files that they come in."""

import base64
import json

import msgspec
import pytest

from cordon.attest import nvgpu
from cordon.attest.nvgpu import GpuPolicy
from cordon.errors import ConfigError
from fakes.nvidia_pki import CHIPS, NONCE, NOW, NvidiaPki

ANY = GpuPolicy(**dict.fromkeys(GpuPolicy.__struct_fields__, "any"))


@pytest.fixture(scope="module")
def pki():
    return NvidiaPki()


@pytest.fixture(scope="module")
def machine(pki):
    """Two Hoppers and a switch."""
    return [pki.device("hopper", 1), pki.device("hopper", 2), pki.device("ls10", 3)]


@pytest.fixture
def judge(pki, machine):
    def call(evidence=None, policy=ANY, nonce=NONCE, rims=()):
        given = [each.evidence(f"GPU-{n}") for n, each in enumerate(machine)] if evidence is None else evidence
        return nvgpu.verify_devices(given, nonce, rims=rims, now=NOW, policy=policy, roots=pki.roots)

    return call


def failed(checks):
    return sorted({check.code for check in checks if check.result == "fail"})


def test_a_machine_passes(judge, pki):
    wanted = msgspec.structs.replace(ANY, count=2, switches=1, rim="required", arch=("hopper", "ls10"), fwid="required")
    rims = [pki.rim("driver"), pki.rim("vbios"), pki.rim("vbios", "ls10"), pki.rim("vbios", "blackwell")]
    checks = judge(policy=wanted, rims=rims)
    assert not failed(checks)
    assert not [check for check in checks if check.result == "not_checked" and not check.waived]
    assert all(check.code.startswith("gpu_") for check in checks)
    assert {check.detail.split(":")[0] for check in checks if check.code == "gpu_nonce"} == {"GPU-0", "GPU-1", "GPU-2"}


def test_rims_go_to_the_device_whose_versions_they_are(judge, pki):
    rims = [pki.rim("driver"), pki.rim("driver", version="1.2"), pki.rim("vbios"), pki.rim("vbios", "ls10")]
    assert not failed(judge(rims=rims))
    assert failed(judge(rims=[pki.rim("driver", version="1.2")])) == ["gpu_rim_driver"]  # none fits: said so


def test_one_device_shown_twice(judge, machine):
    twice = [machine[0].evidence("GPU-a"), machine[0].evidence("GPU-b")]
    checks = judge(twice, msgspec.structs.replace(ANY, count=2))
    assert failed(checks) == ["gpu_count", "gpu_duplicate"]
    assert next(check for check in checks if check.code == "gpu_count").detail == "1 genuine GPUs, want 2"


def test_one_name_for_two_devices(judge, machine):
    assert failed(judge([machine[0].evidence("GPU-a"), machine[1].evidence("GPU-a")])) == ["gpu_duplicate"]


def test_the_same_chip_with_another_firmware_is_the_same_device(judge, pki, machine):
    """A new attestation key after an update does not make a second GPU of one."""
    from fakes.nvidia_pki import Device, certify

    first = machine[0]
    leaf = certify("GH100 A01 GSP FMC LF", first.links[1], ca=False)
    again = Device("hopper", [leaf, *first.links[1:]], first.fwid, first.measurements, first.opaque | {20: None})
    assert first.links[1] is again.links[1]
    opaque = {20: None}
    assert failed(judge([first.evidence("GPU-a", opaque=opaque), again.evidence("GPU-b", opaque=opaque)])) == [
        "gpu_duplicate"
    ]


@pytest.mark.parametrize(("field", "most"), [("count", 2), ("switches", 1)])
def test_too_few(judge, field, most):
    assert not failed(judge(policy=msgspec.structs.replace(ANY, **{field: most})))
    assert failed(judge(policy=msgspec.structs.replace(ANY, **{field: most + 1}))) == [f"gpu_{field}"]


def test_no_device_at_all(judge):
    assert failed(judge([], msgspec.structs.replace(ANY, count=1))) == ["gpu_count"]


def test_devices_that_are_not_genuine_do_not_count(judge, machine, pki):
    forged = machine[1].evidence("GPU-b", key=machine[0].links[0].key)
    checks = judge([machine[0].evidence("GPU-a"), forged], msgspec.structs.replace(ANY, count=2))
    assert failed(checks) == ["gpu_count", "gpu_report_signature"]


def test_another_architecture_than_it_is_called(judge, machine):
    for name in ("BLACKWELL", "", "x" * 4096):
        assert failed(judge([machine[0].evidence("GPU-a") | {"arch": name}])) == ["gpu_arch_named"]


def test_one_challenge_for_all(judge, machine):
    mixed = [machine[0].evidence("GPU-a"), machine[1].evidence("GPU-b", nonce=bytes(32))]
    assert failed(judge(mixed)) == ["gpu_nonce"]
    assert failed(judge(nonce=bytes(32))) == ["gpu_nonce"]
    with pytest.raises(ConfigError, match=r"^nonce_format: "):
        judge(nonce=b"")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"report": "AAAA"}, "gpu_report_format"),
        ({"report": "EuAB/w=="}, "gpu_report_format"),
        ({"report": ""}, "gpu_report_format"),
        ({"report": "EhISEhIS" * 20}, "gpu_report_version"),
        ({"chain": "AAAA"}, "gpu_chain_format"),
        ({"chain": "\u2603"}, "gpu_chain_format"),
        ({"uuid": "GPU\n0"}, "gpu_evidence_format"),
        ({"uuid": "x" * 100}, "gpu_evidence_format"),
        ({"uuid": None}, "gpu_evidence_format"),
        ({"report": None}, "gpu_evidence_format"),
        ({"chain": 1}, "gpu_evidence_format"),
    ],
)
def test_what_cannot_be_parsed_is_a_failed_check(judge, machine, change, code):
    """A peer chooses these bytes: judging it must end in a verdict, and the other devices are judged."""
    checks = judge([machine[0].evidence("GPU-a") | change, machine[1].evidence("GPU-b")])
    assert failed(checks) == [code]
    assert any(check.code == "gpu_report_signature" and check.result == "pass" for check in checks)


@pytest.mark.parametrize("device", [None, 1, "x", [], {}])
def test_no_device(judge, device):
    assert failed(judge([device])) == ["gpu_evidence_format"]


def test_too_many_devices_are_not_looked_at(judge, machine):
    assert failed(judge([machine[0].evidence(f"GPU-{n}") for n in range(65)])) == ["gpu_evidence_format"]


def test_a_rim_that_cannot_be_read_is_the_verifiers_own(judge):
    with pytest.raises(ConfigError, match=r"^rim_format: "):
        judge(rims=[b"<a/>"])


# -- evidence files --------------------------------------------------------------------------------------------------


def written(device, nonce=NONCE):
    report, certificates = (base64.b64encode(x).decode() for x in (device.report(nonce), device.chain))
    return {"arch": "HOPPER", "evidence": report, "certificate": certificates, "nonce": nonce.hex()}


def test_evidence_files(pki, machine):
    one, two = written(machine[0]), written(machine[1])
    assert [each["nonce"] for each in nvgpu.read_evidence(json.dumps([one, two]).encode())] == [NONCE, NONCE]
    (read,) = nvgpu.read_evidence(json.dumps(one).encode())
    assert read["arch"] == "hopper"
    assert nvgpu.verify(read["report"], read["chain"], nonce=read["nonce"], now=NOW, roots=pki.roots).genuine
    del one["nonce"]
    assert nvgpu.read_evidence(json.dumps(one).encode())[0]["nonce"] is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"arch":"H","evidence":"!","certificate":"AAAA"}',
        b'{"arch":"H","evidence":"AAAA","certificate":"!"}',
        b'{"arch":"H","evidence":"AAAA","certificate":"AAAA","nonce":"zz"}',
        b'{"arch":"H","evidence":"AAAA","certificate":"AAAA","nonce":"00"}',
        b'{"arch":"H","evidence":"AAAA","certificate":"AAAA","nonce":1}',
        b'{"arch":"H","evidence":"AAAA","evidence":"AAAA","certificate":"AAAA"}',
        json.dumps([{}] * 65).encode(),
        b" " * (4 * 1024 * 1024 + 1),
    ],
)
def test_evidence_files_that_cannot_be_read(data):
    with pytest.raises(ConfigError, match=r"^evidence_format: "):
        nvgpu.read_evidence(data)


def test_every_architecture_is_called_as_its_certificate_says(judge, pki):
    for arch in CHIPS:
        assert not failed(judge([pki.device(arch).evidence("GPU-0")]))
