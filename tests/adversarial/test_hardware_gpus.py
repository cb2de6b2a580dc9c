"""A hospital shows other GPUs than those in its confidential VM, or none. The CPU's report covers what is shown.

Every hospital has two Hopper GPUs and the coordinator wants to see both. (Stock FLARE: G0 to G3 in
test_stock_gpu_authorizer.py, A2 in test_stock_cc_manager.py.)
"""

import pytest

from cordon import signing
from cordon.attest import standing
from cordon.attest.binding import gpu_nonce
from cordon.flare.kit import STANDING_FILE
from cordon.flare.nvml import GpuReport
from fakes.federation_kits import SERVER
from fakes.hardware_federation import (
    DAY,
    HONEST,
    HOSPITALS,
    NOW,
    ROGUE,
    THIRD,
    answer,
    forging,
    gpu,
    nvidia,
    resigned,
    shut_out,
    write_collateral,
)
from fakes.nvidia_pki import NvidiaPki

RENTED = 99  # serial number of a chip that is in nobody's machine


@pytest.fixture
def federation(hardware):
    return hardware("gpu")


def test_control_all_are_admitted(federation):
    assert federation.admitted() == list(HOSPITALS)
    said = {code for code, result, _ in federation.lines(ROGUE)[-1]["codes"] if result == "pass"}
    assert {"gpu_report_chain", "gpu_rim_measurements", "gpu_count", "report_data"} <= said


def test_no_gpu_although_required(federation):
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: {"gpu_evidence": None})
    shut_out(federation, ROGUE, {"gpu", "report_data"})
    federation.machines[ROGUE].gpus = []  # the VM itself says so: its report covers the empty list
    del federation.wire.tampered[ROGUE]
    shut_out(federation, ROGUE, {"gpu"})


def test_one_of_two_gpus_is_left_out(federation):
    """On the wire, so the CPU's report is about both; and by the VM, which has one outside confidential mode."""
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda body: {"gpu_evidence": body["gpu_evidence"][:1]})
    shut_out(federation, ROGUE, {"gpu_count", "report_data"})
    federation.machines[ROGUE].gpus.pop()
    del federation.wire.tampered[ROGUE]
    shut_out(federation, ROGUE, {"gpu_count"})


@pytest.mark.parametrize("renamed", [True, False])
def test_one_gpu_is_shown_twice(federation, renamed):
    """Under two names; the driver's names stand in no certificate."""
    if renamed:
        federation.machines[ROGUE].gpus = [gpu(20), gpu(20)]
        shut_out(federation, ROGUE, {"gpu_duplicate", "gpu_count"})
    else:
        federation.wire.tampered[ROGUE] = forging(ROGUE, lambda body: {"gpu_evidence": body["gpu_evidence"][:1] * 2})
        shut_out(federation, ROGUE, {"gpu_duplicate", "gpu_count", "report_data"})


@pytest.mark.parametrize("site", [ROGUE, THIRD])
def test_gpus_of_another_machine(federation, site):
    """Relayed from an honest site that was just asked itself: they answered its challenge, bound to its key."""
    other = {}

    def overhear(request, honest):
        other.update(signing.unverified_body(honest.payload["evidence"]))
        return honest

    federation.wire.tampered[HONEST] = overhear
    federation.wire.tampered[site] = forging(site, lambda _: {"gpu_evidence": other["gpu_evidence"]})
    shut_out(federation, site, {"gpu_nonce", "report_data"})
    # the attacker's CPU vouches for them as well: it runs something else than the measured image, or a bug in it
    federation.machines[site].gpu_reports = None
    attester = federation.parents[site].manager._ready()[0].attester
    object.__setattr__(attester, "gpus", lambda _: _recorded(other["gpu_evidence"]))
    del federation.wire.tampered[site]
    shut_out(federation, site, {"gpu_nonce"})


def _recorded(devices):
    decode = signing.base64.b64decode
    return [GpuReport(each["uuid"], each["arch"], decode(each["report"]), decode(each["chain"])) for each in devices]


def test_rented_gpus_are_spliced_in(federation):
    """Fresh evidence of genuine GPUs elsewhere, for the right nonce: only the CPU's report tells them apart."""

    def splice(_request, honest):
        body = signing.unverified_body(honest.payload["evidence"])
        decode = signing.base64.b64decode
        nonce = gpu_nonce(decode(body["nonce"]), decode(body["kem_public_key"]))
        rented = [gpu(RENTED + n).evidence(f"GPU-{n}", nonce) for n in range(2)]
        return answer(resigned(honest.payload["evidence"], ROGUE, gpu_evidence=rented))

    federation.wire.tampered[ROGUE] = splice
    shut_out(federation, ROGUE, {"report_data"})


def test_gpu_evidence_is_replayed(federation):
    kept = []

    def replay(_request, honest):
        body = signing.unverified_body(honest.payload["evidence"])
        kept.append(body["gpu_evidence"])
        return answer(resigned(honest.payload["evidence"], ROGUE, gpu_evidence=kept[0]))

    federation.wire.tampered[ROGUE] = replay
    assert federation.admitted() == list(HOSPITALS)
    federation.boot([SERVER])
    shut_out(federation, ROGUE, {"gpu_nonce", "report_data"})


def test_self_made_gpu(federation):
    """Certificates that look like NVIDIA's under a root of the attacker's own."""
    made = NvidiaPki()
    federation.machines[ROGUE].gpus = [made.device(number=1), made.device(number=2)]
    shut_out(federation, ROGUE, {"gpu_report_chain", "gpu_count"})


class _Other:
    """A chip whose reports differ from the released firmware's."""

    def __init__(self, device, **changes):
        self.device, self.changes, self.arch, self.chain = device, changes, device.arch, device.chain

    def report(self, nonce):
        return self.device.report(nonce, **self.changes)


def test_gpu_with_other_firmware(federation):
    """Genuine hardware, other measurements than NVIDIA signed for this driver."""
    one, two = gpu(20), gpu(21)
    measured = {**two.measurements, 3: b"\x66" * 48}
    federation.machines[ROGUE].gpus = [one, _Other(two, measurements=measured)]
    shut_out(federation, ROGUE, {"gpu_rim_measurements"})


def test_gpu_whose_report_another_chip_signed(federation):
    one, two = gpu(20), gpu(21)
    federation.machines[ROGUE].gpus = [one, _Other(two, key=one.links[0].key)]
    shut_out(federation, ROGUE, {"gpu_report_signature", "gpu_count"})


def test_gpu_whose_certificate_expired(federation):
    """By the clock alone: the site is out, and nobody is blamed."""
    federation.machines[ROGUE].gpus = [gpu(20), nvidia().device(number=6, until=NOW - DAY)]
    shut_out(federation, ROGUE, {"gpu_report_time", "gpu_count"}, proven=set())


def test_gpu_of_another_family(federation):
    federation.machines[ROGUE].gpus = [gpu(20), nvidia().device("blackwell", number=5)]
    federation.clock.sleep(31.0)
    assert federation.admitted() == [HONEST, THIRD]
    assert "gpu_arch" in federation.codes(ROGUE)
    assert "gpu_arch" in federation.faults(ROGUE)


def test_more_devices_than_are_looked_at(federation):
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda body: {"gpu_evidence": body["gpu_evidence"] * 100})
    shut_out(federation, ROGUE, {"evidence_format"}, proven=set())


def test_junk_for_gpus(federation):
    for junk in ([{}, {}], [{"uuid": "GPU-0", "arch": "hopper", "report": "", "chain": ""}] * 2, [{"uuid": 1}]):
        federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _, junk=junk: {"gpu_evidence": junk})
        federation.clock.sleep(31.0)
        assert federation.admitted() == [HONEST, THIRD]
        assert any(code.startswith("gpu_") for code in federation.codes(ROGUE))


# -- what the verifier itself lacks is no fault of a site ------------------------------------------------------------


@pytest.mark.parametrize("what", ["none", "of another driver"])
def test_without_good_reference_measurements_nobody_passes_and_nobody_is_blamed(federation, what):
    folder = federation.kits / SERVER / "local" / "collateral"
    path = folder / "driver.xml"
    if what == "none":
        path.unlink()
    else:
        path.write_bytes(nvidia().rim("driver", version="551.00.01"))
    assert federation.admitted() == []
    for site in HOSPITALS:
        assert federation.lines(site)[-1]["state"] == "unattested"
        assert federation.faults(site) == set()
    write_collateral(folder)
    assert federation.again() == list(HOSPITALS)
    standings = standing.read(federation.kits / SERVER / STANDING_FILE)
    assert {standings[name].state for name in HOSPITALS} == {"attested"}
