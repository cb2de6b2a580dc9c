"""Hospitals on Azure, where the hardware's report is the paravisor's and the image is measured by a virtual TPM.

What a VM says passes through two more hands, and each can be played: the runtime claims, and the TPM's quote.
"""

import base64

import pytest

from cordon import signing
from fakes import azure_pki
from fakes.federation_kits import SERVER
from fakes.hardware_federation import HONEST, HOSPITALS, ROGUE, THIRD, b64, forging, shut_out


@pytest.fixture
def federation(hardware):
    return hardware("azure")


def test_control_all_are_admitted(federation):
    assert federation.admitted() == list(HOSPITALS)
    assert [federation.lines(name)[-1]["type"] for name in HOSPITALS] == ["snp", "az-snp", "az-tdx"]


OTHER = tuple(b"\x66" * 32 for _ in range(24))
INSECURE = azure_pki.configuration(**{"secure-boot": False})
VMS = {
    "with another image": ("pcrs", (*azure_pki.PCRS[:11], *OTHER[11:]), {"pcr_11"}),
    "whose quotes another TPM makes": ("signer_of_quotes", "other", {"tpm_signature"}),
    "without secure boot": (
        "claims",
        {"vm-configuration": azure_pki.configuration(**{"secure-boot": False})},
        {"secure_boot"},
    ),
}


@pytest.mark.parametrize("site", [ROGUE, THIRD])
@pytest.mark.parametrize(("what", "value", "codes"), VMS.values(), ids=VMS)
def test_azure_vm_is_not_the_measured_one(federation, site, what, value, codes):
    setattr(federation.machines[site], what, value)
    shut_out(federation, site, codes)


def test_azure_vm_with_other_firmware(federation):
    """Somebody's own paravisor could write any claims: then it is not Microsoft's that is measured."""
    federation.machines[ROGUE].report = {"measurement": b"\x66" * 48}
    shut_out(federation, ROGUE, {"measurement", "paravisor"})
    federation.boot([SERVER])
    federation.machines[ROGUE].report = {}
    federation.machines[THIRD].report = {"mr_td": b"\x66" * 48}
    shut_out(federation, THIRD, {"mr_td", "paravisor"})


def test_guest_asks_the_hardware_itself(federation):
    """At VMPL 2 a guest gets reports over claims of its own making."""
    federation.machines[ROGUE].report = {"vmpl": 2}
    shut_out(federation, ROGUE, {"vmpl", "hcl_vmpl"})


@pytest.mark.parametrize("site", [ROGUE, THIRD])
def test_claims_are_rewritten_behind_the_report(federation, site):
    """The host puts its own user data into the claims: they are no longer those that the hardware hashed."""

    def rewrite(body):
        report = bytearray(base64.b64decode(body["report"]))
        at = report.index(b'"user-data":"') + 13
        report[at : at + 128] = b"66" * 64
        return {"report": b64(bytes(report))}

    federation.wire.tampered[site] = forging(site, rewrite)
    federation.clock.sleep(31.0)
    assert federation.admitted() == [name for name in HOSPITALS if name != site]
    assert {"report_data", "user_data"} <= federation.codes(site)


@pytest.mark.parametrize("site", [ROGUE, THIRD])
def test_old_claims_with_a_fresh_tpm_quote_and_the_other_way_round(federation, site):
    kept = []

    def keep(_, honest):
        kept.append(signing.unverified_body(honest.payload["evidence"]))
        return honest

    federation.wire.tampered[site] = keep
    assert federation.admitted() == list(HOSPITALS)
    old = kept[0]
    del federation.wire.tampered[site]
    federation.boot([SERVER])
    federation.wire.tampered[site] = forging(
        site, lambda body: {"endorsements": {**body["endorsements"], "tpm_quote": old["endorsements"]["tpm_quote"]}}
    )
    shut_out(federation, site, {"tpm_extra_data"})
    federation.wire.tampered[site] = forging(
        site,
        lambda body: {
            "report": old["report"],
            "endorsements": {**old["endorsements"], "tpm_quote": body["endorsements"]["tpm_quote"]},
        },
    )
    shut_out(federation, site, {"user_data"})


def test_azure_evidence_under_another_label(federation):
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: {"type": "snp"})
    shut_out(federation, ROGUE, {"report_format"})
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: {"type": "az-tdx"})
    shut_out(federation, ROGUE, {"endorsements"})
    federation.boot([SERVER])
    federation.wire.tampered = {HONEST: forging(HONEST, lambda _: {"type": "az-snp"})}
    shut_out(federation, HONEST, {"hcl_format"})
