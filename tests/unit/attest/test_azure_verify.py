"""Azure evidence as a whole: made-up AMD and Azure for every reason to refuse, recorded evidence for real formats."""

import hashlib
import random
import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from cordon.attest import azure
from cordon.attest.azure.policy import AzurePolicy
from cordon.attest.dcap.policy import TdxPolicy
from cordon.attest.snp import SnpPolicy
from cordon.errors import AttestError, ConfigError
from fakes import amd_pki, azure_pki
from fakes.open_policies import anything

NOW = amd_pki.NOW
NONCE = b"n" * 32
STATEMENT = bytes(range(64))
MEASUREMENT = b"\x13" * 48


def hardware_policy(**changes):
    return msgspec.convert({**anything(SnpPolicy), "measurement": [MEASUREMENT.hex()], **changes}, SnpPolicy)


def azure_policy(**changes):
    wanted = {
        "paravisor": "pinned",
        "tpm_quote": "required",
        "ak_min_bits": 2048,
        "tpm_firmware": [f"{azure_pki.FIRMWARE_VERSION:016x}"],
        "pcrs": {"4": [azure_pki.PCRS[4].hex()], "7": [azure_pki.PCRS[7].hex()], "11": "any"},
        "secure_boot": True,
        "tpm_enabled": True,
        "tpm_persisted": True,
        "console_enabled": False,
        "interactive_console_enabled": False,
        "filtered_vpci_devices_allowed": False,
        "root_cert_thumbprint": ["6nZZnYaJc4KqUZ_yvA-mucFdYNouvlPnITnNMXsHl-0"],
        "vm_unique_id": [azure_pki.VM_ID.lower()],
        **changes,
    }
    return msgspec.convert(wanted, AzurePolicy)


def evidence(claims=None, hardware=None, hcl=None, **given):
    """The arguments of ``azure.verify``; a genuine VM but for the changes."""
    claims_json = azure_pki.encode(azure_pki.runtime_claims(STATEMENT) if claims is None else claims)
    fields = {"report_data": azure_pki.report_data(claims_json), **(hardware or {})}
    inner = amd_pki.evidence("Milan", "vcek", 3, report_with=fields)
    return {
        "hcl_report": azure_pki.hcl_report(inner.report, claims_json, **(hcl or {})),
        "tee": "snp",
        "tpm_quote": azure_pki.tpm_quote(NONCE),
        "nonce": NONCE,
        "hardware_policy": hardware_policy(),
        "policy": azure_policy(),
        "report_data": STATEMENT,
        **inner.rest,
        **given,
    }


def judge(**changes):
    return azure.verify(**evidence(**changes))


def failed(appraisal):
    return {each.code for each in appraisal.checks if each.result == "fail"}


def unmade(appraisal):
    return {each.code for each in appraisal.checks if each.result == "not_checked" and not each.waived}


def rejected(**given):
    """Whether it is no evidence at all, or evidence of something that no vendor signed."""
    try:
        return not azure.verify(**given).genuine
    except ConfigError as error:
        assert re.match(r"^[a-z_0-9]+: ", str(error)), error
        return True


def test_a_genuine_vm_passes():
    appraisal = judge()
    appraisal.require()
    assert (appraisal.type, appraisal.genuine, appraisal.verdict) == ("az-snp", True, "pass")
    assert appraisal.claims["report_data"] == STATEMENT.hex()
    assert appraisal.claims["measurement"] == MEASUREMENT.hex()
    assert appraisal.claims["hardware_report_data"].endswith("00" * 32)
    assert appraisal.claims["tpm"]["pcrs"]["7"] == azure_pki.PCRS[7].hex()
    assert msgspec.json.encode(appraisal.to_json())


def test_every_check_of_the_hardware_is_in_the_verdict():
    codes = [each.code for each in judge().checks]
    assert {"report_signature", "tcb_binding", "measurement", "debug"} <= set(codes)
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"secure-boot": False}, "secure_boot"),
        ({"secure-boot": None}, "secure_boot"),
        ({"secure-boot": 1}, "secure_boot"),
        ({"secure-boot": "true"}, "secure_boot"),
        ({"tpm-enabled": False}, "tpm_enabled"),
        ({"tpm-persisted": False}, "tpm_persisted"),
        ({"console-enabled": True}, "console_enabled"),
        ({"interactive-console-enabled": True}, "interactive_console_enabled"),
        ({"filtered-vpci-devices-allowed": True}, "filtered_vpci_devices_allowed"),
        ({"root-cert-thumbprint": "other"}, "root_cert_thumbprint"),
        ({"vmUniqueId": "7DF7B373-B947-4AAA-96E5-C358F2A03D20"}, "vm_unique_id"),
        ({"vmUniqueId": None}, "vm_unique_id"),
    ],
)
def test_a_configuration_that_is_not_wanted_fails_by_name(change, code):
    configuration = azure_pki.configuration(**change)
    claims = azure_pki.runtime_claims(STATEMENT, **{"vm-configuration": configuration})
    appraisal = judge(claims=claims)
    assert appraisal.genuine and failed(appraisal) == {code}


def two_aks():
    ak = azure_pki.jwk(azure_pki.key("ak"), "HCLAkPub")
    return [azure_pki.jwk(azure_pki.key("attacker"), "HCLAkPub"), ak]


@pytest.mark.parametrize(
    "keys",
    [
        lambda: None,
        lambda: [],
        lambda: "HCLAkPub",
        lambda: [azure_pki.jwk(azure_pki.key("ek"), "HCLEkPub")],
        two_aks,
        lambda: [azure_pki.jwk(azure_pki.key("small", 1024), "HCLAkPub")],
        lambda: [{**azure_pki.jwk(azure_pki.key("ak"), "HCLAkPub"), "e": "Aw"}],
        lambda: [{**azure_pki.jwk(azure_pki.key("ak"), "HCLAkPub"), "kty": "EC"}],
        lambda: [{**azure_pki.jwk(azure_pki.key("ak"), "HCLAkPub"), "n": "AQAB"}],
        lambda: [{**azure_pki.jwk(azure_pki.key("ak"), "HCLAkPub"), "n": "****"}],
    ],
)
def test_there_is_one_usable_ak(keys):
    appraisal = judge(claims=azure_pki.runtime_claims(STATEMENT, keys=keys()))
    assert not appraisal.genuine and "ak_key" in failed(appraisal)
    assert {"tpm_signature", "ak_bits"} & unmade(appraisal)


def test_an_ak_smaller_than_the_policy_wants_fails():
    appraisal = judge(policy=azure_policy(ak_min_bits=3072))
    assert appraisal.genuine and failed(appraisal) == {"ak_bits"}


@pytest.mark.parametrize(
    ("quote", "code", "genuine"),
    [
        (lambda: azure_pki.tpm_quote(b"old" * 8), "tpm_extra_data", True),
        (lambda: azure_pki.tpm_quote(b""), "tpm_extra_data", True),
        (lambda: azure_pki.tpm_quote(NONCE, signer="attacker"), "tpm_signature", False),
        (lambda: azure_pki.tpm_quote(NONCE, signer="ek"), "tpm_signature", False),
        (lambda: azure_pki.tpm_quote(NONCE, magic=0xFF544348), "tpm_magic", False),
        (lambda: azure_pki.tpm_quote(NONCE, safe=2), "tpm_safe", False),
        (lambda: azure_pki.tpm_quote(NONCE, firmware=1), "tpm_firmware", True),
        (lambda: azure_pki.tpm_quote(NONCE, digest=bytes(32)), "pcr_digest", False),
        (lambda: azure_pki.tpm_quote(NONCE, banks=((0x0004, b"\xff\xff\xff"),)), "pcr_selection", False),
        (lambda: azure_pki.tpm_quote(NONCE, banks=((0x000B, b"\0\0\0"),)), "pcr_selection", False),
        (lambda: azure_pki.tpm_quote(NONCE, banks=((0x000B, b"\xff\xff\xff\1"),)), "pcr_selection", False),
        (
            lambda: azure_pki.tpm_quote(NONCE, banks=((0x000B, b"\xff\xff\xff"), (0x0004, b"\1"))),
            "pcr_selection",
            False,
        ),
        (lambda: azure_pki.tpm_quote(NONCE, pcrs=azure_pki.PCRS[:23]), "pcr_digest", False),
        (lambda: azure_pki.tpm_quote(NONCE, pcrs=(bytes(32), *azure_pki.PCRS[1:])), None, True),
        (lambda: azure_pki.tpm_quote(NONCE, pcrs=(*azure_pki.PCRS[:7], bytes(32), *azure_pki.PCRS[8:])), "pcr_7", True),
    ],
)
def test_each_fault_of_the_quote_has_its_code(quote, code, genuine):
    appraisal = judge(tpm_quote=quote())
    assert appraisal.genuine is genuine
    assert code in failed(appraisal) if code else not failed(appraisal)


def test_an_attestation_of_another_kind_is_no_quote():
    """The AK also signs, for whoever asks, that a key was made in the TPM (ATTEST_CREATION), with any extraData."""
    appraisal = judge(tpm_quote=azure_pki.tpm_quote(NONCE, type=0x801A))
    assert failed(appraisal) == {"tpm_type", "pcr_4", "pcr_7"} and not appraisal.genuine
    assert {"pcr_selection", "pcr_digest"} <= unmade(appraisal)


def test_a_pcr_that_was_not_quoted_fails_where_a_value_is_wanted():
    """Leaving a PCR out of the selection must not pass for any value of it."""
    pcrs = azure_pki.PCRS[:7]
    appraisal = judge(tpm_quote=azure_pki.tpm_quote(NONCE, pcrs=pcrs, banks=((0x000B, b"\x7f\0\0"),)))
    assert appraisal.genuine and failed(appraisal) == {"pcr_7"}


def test_pcr_values_that_do_not_come_are_not_checked():
    quote = azure_pki.tpm_quote(NONCE)
    appraisal = judge(tpm_quote=azure.TpmQuote(quote.message, quote.signature))
    assert "pcr_digest" in unmade(appraisal) and failed(appraisal) == {"pcr_4", "pcr_7"}


def test_swapped_pcr_values_fail():
    quote = azure_pki.tpm_quote(NONCE)
    pcrs = (quote.pcrs[1], quote.pcrs[0], *quote.pcrs[2:])
    assert failed(judge(tpm_quote=azure.TpmQuote(quote.message, quote.signature, pcrs))) == {"pcr_digest"}


def test_without_a_quote_the_verdict_depends_on_the_policy():
    appraisal = judge(tpm_quote=None)
    assert appraisal.verdict == "not_checked" and appraisal.genuine
    assert unmade(appraisal) == {"tpm_quote", "pcrs"}
    assert judge(tpm_quote=None, policy=azure_policy(tpm_quote="any", pcrs="any")).verdict == "pass"


def test_without_a_nonce_the_quote_must_cover_the_statement():
    fresh = azure_pki.tpm_quote(hashlib.sha256(STATEMENT).digest())
    assert judge(tpm_quote=fresh, nonce=None).verdict == "pass"
    stale = judge(nonce=None)
    assert stale.verdict == "not_checked" and unmade(stale) == {"tpm_extra_data"}


def test_the_statement_is_compared_or_left_to_the_caller():
    assert failed(judge(report_data=b"\1" * 64)) == {"user_data"}
    assert judge(report_data=None).verdict == "pass"
    without = judge(claims=azure_pki.runtime_claims(**{"user-data": None}), report_data=None)
    assert failed(without) == {"user_data"} and without.claims["report_data"] == ""


def test_a_report_asked_for_by_the_guest_proves_no_runtime_claims():
    """Root in the guest (VMPL 1 to 3) has the hardware sign the hash of claims with an AK of its own."""
    appraisal = judge(hardware={"vmpl": 2})
    assert failed(appraisal) == {"hcl_vmpl"} and not appraisal.genuine


def test_somebody_elses_firmware_is_no_paravisor():
    """A tenant's own VM, on the same silicon, puts any claims into its report."""
    other = judge(hardware={"measurement": b"\x66" * 48})
    assert failed(other) == {"measurement", "paravisor"}
    open_ = judge(hardware={"measurement": b"\x66" * 48}, hardware_policy=hardware_policy(measurement="any"))
    assert failed(open_) == {"paravisor"}


def test_the_id_key_pins_the_firmware_too():
    policy = hardware_policy(measurement="any", id_key_digest=["15" * 48])
    assert judge(hardware_policy=policy).verdict == "pass"
    assert (
        judge(hardware_policy=hardware_policy(measurement="any"), policy=azure_policy(paravisor="any")).verdict
        == "pass"
    )


def test_without_policies_nothing_passes_but_what_is_asked_is_asked():
    appraisal = judge(hardware_policy=None, policy=None)
    assert appraisal.genuine and appraisal.verdict == "not_checked" and not failed(appraisal)
    assert {"paravisor", "pcrs", "secure_boot", "measurement"} <= unmade(appraisal)
    assert judge(hardware_policy=None).verdict == judge(policy=None).verdict == "not_checked"
    assert "paravisor" in unmade(judge(hardware_policy=None))
    with pytest.raises(AttestError, match="no policy was given"):
        appraisal.require()


def test_a_debug_guest_fails_without_any_policy():
    appraisal = judge(hardware={"policy": 0x20000 | 1 << 20 | 1 << 19}, hardware_policy=None, policy=None)
    assert failed(appraisal) == {"debug"} and appraisal.verdict == "fail"


def test_another_chips_report_and_an_expired_vek_fail():
    other = amd_pki.vek("Genoa", "vcek").public_bytes(amd_pki.Encoding.DER)
    assert not judge(vek=other).genuine
    late = judge(now=NOW + timedelta(days=4000))
    assert not late.genuine and "vek_validity" in failed(late)


def test_hardware_that_was_not_given_is_not_genuine():
    appraisal = judge(vek=None)
    assert not appraisal.genuine and "hardware" in unmade(appraisal)
    tdx = azure.verify(**(evidence() | {"tee": "tdx", "vek": None, "hardware_policy": None}))
    assert not tdx.genuine and {"hardware", "td_report"} <= unmade(tdx) and "hcl_report_type" in failed(tdx)


def test_a_policy_for_other_hardware_is_an_error():
    tdx = TdxPolicy(**anything(TdxPolicy))
    with pytest.raises(ConfigError, match=r"^policy: "):
        judge(hardware_policy=tdx)
    with pytest.raises(ConfigError, match=r"^policy: "):
        judge(tee="tdx", quote=b"")
    with pytest.raises(ConfigError, match=r"^tee: "):
        judge(tee="sgx")


def test_every_single_byte_change_is_rejected():
    """Over the whole HCL report and the whole TPM quote."""
    given = evidence()
    rng = random.Random(1)
    whole = given["hcl_report"]
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= rng.choice([1, 0x80, 0xFF, 0x20])  # 0x20 changes the case of a letter
        assert rejected(**{**given, "hcl_report": bytes(changed)}), at
    quote = given["tpm_quote"]
    for name in ("message", "signature"):
        whole = getattr(quote, name)
        for at in range(len(whole)):
            changed = bytearray(whole)
            changed[at] ^= rng.randrange(1, 256)
            spoiled = azure.TpmQuote(
                **{"message": quote.message, "signature": quote.signature, "pcrs": quote.pcrs, name: bytes(changed)}
            )
            assert rejected(**{**given, "tpm_quote": spoiled}), (name, at)


def test_the_version_is_the_one_unmeasured_choice():
    given = evidence(hcl={"version": 1})
    assert azure.verify(**given).verdict == "pass" and azure.verify(**given).claims["hcl_version"] == 1


def test_fields_of_the_policy_are_all_required():
    whole = msgspec.to_builtins(azure_policy())
    for field in whole:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({name: value for name, value in whole.items() if name != field}, AzurePolicy)
    for bad in (
        {"pcrs": {}},
        {"pcrs": {"24": "any"}},
        {"pcrs": {"07": "any"}},
        {"pcrs": {"7": []}},
        {"ak_min_bits": 1024},
    ):
        with pytest.raises(msgspec.ValidationError):
            azure_policy(**bad)


# Recorded evidence

WHEN = datetime(2026, 6, 1, tzinfo=UTC)


def recorded(vectors, tee, name):
    found = azure.read_evidence((vectors / "attestation" / tee / "azure-vtpm-trustee" / name).read_bytes())
    return {
        "hcl_report": found.hcl_report,
        "tee": found.tee,
        "vek": found.vek,
        "quote": found.quote,
        "tpm_quote": found.tpm_quote,
        "now": WHEN,
    }


@pytest.mark.parametrize("name", ["evidence-v1.json", "evidence-v2.json", "evidence-genoa.json"])
def test_recorded_snp_evidence_is_genuine(vectors, name):
    given = recorded(vectors, "snp", name)
    appraisal = azure.verify(**given)
    assert appraisal.genuine and not failed(appraisal)
    extra = bytes.fromhex(appraisal.claims["tpm"]["extra_data"])
    assert not failed(azure.verify(**given, nonce=extra))
    assert failed(azure.verify(**given, nonce=b"x" + extra)) == {"tpm_extra_data"}


def test_recorded_evidence_passes_a_policy_made_from_it(vectors):
    given = recorded(vectors, "snp", "evidence-v2.json")
    claims = azure.verify(**given).claims
    policy = azure_policy(
        pcrs={index: [value] for index, value in claims["tpm"]["pcrs"].items()},
        console_enabled=True,  # on in all recorded evidence
        tpm_persisted="any",
        interactive_console_enabled="any",
        filtered_vpci_devices_allowed="any",
        root_cert_thumbprint="any",
        vm_unique_id=["7df7b373-b947-4aaa-96e5-c358f2a03d20"],
    )
    statement = bytes.fromhex(claims["report_data"])
    given |= {"nonce": statement[:48], "report_data": statement, "policy": policy}
    hardware = hardware_policy(measurement=[claims["measurement"]])
    assert azure.verify(**given, hardware_policy=hardware).verdict == "pass"
    assert failed(azure.verify(**given, hardware_policy=hardware_policy())) == {"measurement", "paravisor"}


def test_recorded_report_with_its_own_and_another_chips_vek(vectors):
    folder = vectors / "attestation/snp/azure-vtpm-trustee"
    report, quote = (folder / "hcl-report.bin").read_bytes(), azure.read_tpm_quote((folder / "quote.bin").read_bytes())
    rest = {"tee": "snp", "tpm_quote": quote, "now": WHEN, "nonce": b"challenge"}
    assert azure.verify(report, vek=(folder / "vcek.pem").read_bytes(), **rest).genuine
    other = azure.verify(report, vek=(folder / "vcek-genoa.pem").read_bytes(), **rest)
    assert not other.genuine and "report_signature" in failed(other)


def test_recorded_quote_of_another_vm(vectors):
    """tpm-quote.msg and .sig are whole, and by the AK of another VM."""
    folder = vectors / "attestation/snp/azure-vtpm-trustee"
    quote = azure.TpmQuote((folder / "tpm-quote.msg").read_bytes(), (folder / "tpm-quote.sig").read_bytes())
    report, vek = (folder / "hcl-report.bin").read_bytes(), (folder / "vcek.pem").read_bytes()
    appraisal = azure.verify(report, tee="snp", vek=vek, tpm_quote=quote, now=WHEN, nonce=b"challenge")
    assert failed(appraisal) == {"tpm_signature"}


def test_recorded_evidence_of_two_vms_does_not_mix(vectors):
    one, two = (recorded(vectors, "snp", f"evidence-{name}.json") for name in ("v1", "v2"))
    assert failed(azure.verify(**{**one, "tpm_quote": two["tpm_quote"]})) == {"tpm_signature"}
    spliced = one["hcl_report"][:1216] + two["hcl_report"][1216:]  # hardware report of one, claims of the other
    assert "runtime_data" in failed(azure.verify(**{**one, "hcl_report": spliced}))


def test_every_single_byte_change_of_recorded_snp_evidence_is_rejected(vectors):
    given = recorded(vectors, "snp", "evidence-genoa.json")
    whole = given["hcl_report"]
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 0x55
        assert rejected(**{**given, "hcl_report": bytes(changed)}), at


def test_every_single_byte_change_of_a_recorded_tdreport_is_noticed(vectors):
    """But for CPUSVN and MAC, which only the CPU that made them can check; nothing is read from them."""
    given = recorded(vectors, "tdx", "evidence-v1.json")
    assert not failed(azure.verify(**given))
    blind = {*range(32 + 16, 32 + 32), *range(32 + 224, 32 + 256)}
    whole = given["hcl_report"]
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 0x55
        try:
            noticed = bool(failed(azure.verify(**{**given, "hcl_report": bytes(changed)})))
        except ConfigError:
            noticed = True
        assert noticed is (at not in blind), at


def test_recorded_td_quote(vectors):
    given = recorded(vectors, "tdx", "evidence-v1.json")
    appraisal = azure.verify(**given, nonce=b"challenge")
    results = {each.code: each.result for each in appraisal.checks}
    assert appraisal.type == "az-tdx" and not failed(appraisal)
    assert {results[code] for code in ("td_report", "quote_signature", "runtime_data", "tpm_signature")} == {"pass"}
    assert not appraisal.genuine  # without Intel's collateral
    assert appraisal.claims["measurement"] == appraisal.claims["mr_td"]


def test_a_td_quote_of_another_td_does_not_fit(vectors):
    given = recorded(vectors, "tdx", "evidence-v1.json")
    other = (vectors / "attestation/tdx/dcap-qvl/tdx_quote").read_bytes()
    codes = failed(azure.verify(**{**given, "quote": other}))
    assert {"td_report", "report_data"} <= codes
