"""Somebody without the right confidential VM wants to be admitted to a production study. Each attempt fails by name.

The whole path is the product's (``fakes.hardware_federation``): FLARE's events, CC manager, challenge, attester, device
layer, verifiers with pinned roots, the shipped production policies. The attacker holds a kit with its mTLS key and has
any genuine processor that money can rent. It loses its own place and nobody else's.
"""

import hashlib
import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nvflare.apis.event_type import EventType

from cordon import signing
from cordon.attest import software
from cordon.attest.appraise import appraise, make_evidence, parent_context
from cordon.attest.claims import Report
from cordon.attest.collateral import Collateral
from cordon.attest.keys import ProcessKeys
from cordon.attest.vendor import Trust
from cordon.errors import ConfigError, SignatureError
from cordon.flare import authorizers
from cordon.flare.cc_manager import EXIT_BAD_KIT, CordonCCManager
from cordon.flare.kit import load_kit
from fakes import amd_pki, azure_pki, intel_pki, tee_devices
from fakes.federation_kits import SERVER, mtls_key
from fakes.hardware_federation import (
    DAY,
    HONEST,
    HOSPITALS,
    INTEL,
    NOW,
    ROGUE,
    THIRD,
    Machine,
    PlainMachine,
    amd_crl,
    answer,
    b64,
    der,
    forging,
    gpu_machines,
    intel_collateral,
    of_hospitals,
    resigned,
    shipped,
    shut_out,
)
from fakes.intel_pki import IntelPki
from fakes.stock_flare import Parent
from fakes.tee_devices import cert_table


def test_control_all_are_admitted_and_admit_the_coordinator(hardware):
    federation = hardware()
    assert federation.admitted() == list(HOSPITALS)
    assert {federation.lines(name)[-1]["type"] for name in HOSPITALS} == {"snp", "tdx"}
    for name in HOSPITALS:
        federation.parents[name].manager.require_coordinator()
        assert federation.lines(SERVER, verifier=name)[-1]["verdict"] == "pass"


# -- a genuine processor, another guest ------------------------------------------------------------------------------

GUESTS = {
    "that anybody rented": ({"measurement": b"\x66" * 48}, "measurement"),
    "whose host may debug it": ({"policy": 1 << 17 | 1 << 19}, "debug"),
    "that asked at VMPL1": ({"vmpl": 1}, "vmpl"),
    "that may migrate": ({"policy": 1 << 17 | 1 << 18}, "policy_migrate_ma"),
    "with a migration agent": ({"report_id_ma": b"\x18" * 32}, "migration_agent"),
    "that lets CXL devices in": ({"policy": 1 << 17 | 1 << 21}, "policy_cxl_allow"),
    "with aliased memory": ({"platform_info": 0b100}, "platform_info_alias_check_complete"),
    "whose host can go back to old firmware": ({"committed": bytes([39, 55, 1])}, "provisional_firmware"),
}


@pytest.mark.parametrize(("fields", "code"), GUESTS.values(), ids=GUESTS)
def test_genuine_snp_guest_is_not_the_measured_one(hardware, fields, code):
    federation = hardware()
    federation.machines[ROGUE].report = fields
    shut_out(federation, ROGUE, {code})


DOMAINS = {
    "that anybody rented": ({"mr_td": b"\x66" * 48}, "mr_td"),
    "with another kernel": ({"rtmr1": b"\x66" * 48}, "rtmr1"),
    "with another command line": ({"rtmr2": b"\x66" * 48}, "rtmr2"),
    "whose host may debug it": ({"td_attributes": (1 << 28 | 1).to_bytes(8, "little")}, "debug"),
    "that may migrate": ({"td_attributes": (1 << 28 | 1 << 29).to_bytes(8, "little")}, "migratable"),
    "whose pages may be taken away": ({"td_attributes": bytes(8)}, "sept_ve_disable"),
    "that is profiled": ({"td_attributes": (1 << 28 | 1 << 4).to_bytes(8, "little")}, "profiling"),
    "with a service TD": ({"mr_service_td": b"\x66" * 48}, "mr_service_td"),
}


@pytest.mark.parametrize(("fields", "code"), DOMAINS.values(), ids=DOMAINS)
def test_genuine_trust_domain_is_not_the_measured_one(hardware, fields, code):
    federation = hardware()
    federation.machines[THIRD].report = fields
    shut_out(federation, THIRD, {code})


def test_guest_at_an_old_tcb_under_the_key_for_it(hardware):
    """The host runs firmware with a known hole; AMD's key service gives out the VCEK of that version as well."""
    wanted = {"boot_loader": 4, "tee": 0, "snp": 24, "microcode": 200}
    federation = hardware(snp={"reported_tcb": {"milan": "any", "genoa": wanted, "turin": "any"}})
    assert federation.admitted() == list(HOSPITALS)
    old = amd_pki.tcb("Genoa", snp=20)
    rogue = federation.machines[ROGUE]
    rogue.report = dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), old)
    rogue.vek = {"extensions": {"4": rogue.chip_id, "3.3": amd_pki.integer(20)}}
    federation.boot([SERVER])
    shut_out(federation, ROGUE, {"reported_tcb"})


# -- evidence that is another's, or old ------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [ROGUE, THIRD])
@pytest.mark.parametrize("restart", [False, True])
def test_old_answer_is_replayed_also_after_the_verifier_restarts(hardware, site, restart):
    federation, kept = hardware(), []

    def replay(_, honest):
        kept.append(honest)
        return kept[0]

    federation.wire.tampered[site] = replay
    assert federation.admitted() == list(HOSPITALS)
    if restart:
        federation.boot([SERVER])
    else:
        federation.clock.sleep(700.0)  # in the last third of the lease
    shut_out(federation, site, {"nonce"}, proven=set())  # that it was asked for another nonce is the verifier's word

    def fresh_nonce(_, honest):
        body = signing.unverified_body(honest.payload["evidence"])
        return answer(resigned(kept[0].payload["evidence"], site, nonce=body["nonce"]))

    federation.wire.tampered[site] = fresh_nonce
    shut_out(federation, site, {"report_data"})


@pytest.mark.parametrize("other", [HONEST, THIRD])
def test_site_relays_the_evidence_of_another(hardware, other):
    """As it is; with its own signature; and the other's report under its own statement."""
    federation = hardware()

    def of_other(request):
        return federation.wire.ask(other, "cordon_attest", "challenge", request).payload["evidence"]

    federation.wire.tampered[ROGUE] = lambda request, _: answer(of_other(request))
    shut_out(federation, ROGUE, {"mtls_signature"}, proven=set())
    federation.wire.tampered[ROGUE] = lambda request, _: answer(resigned(of_other(request), ROGUE))
    shut_out(federation, ROGUE, {"context_site", "report_data"}, proven=set())

    def report_only(request, honest):
        body = signing.unverified_body(of_other(request))
        taken = {name: body[name] for name in ("type", "report", "endorsements")}
        return answer(resigned(honest.payload["evidence"], ROGUE, **taken))

    federation.wire.tampered[ROGUE] = report_only
    shut_out(federation, ROGUE, {"report_data"})


def _statement(federation, request, attester, *, mtls=None, keys=None, **context):
    """What ``ROGUE`` answers with a program of its own."""
    study = federation.parents[SERVER].manager._ready()[0].study.digest
    made = parent_context(ROGUE, study, request.payload["policy_digest"])
    changed = type(made)(**{**{name: getattr(made, name) for name in made.__struct_fields__}, **context})
    key = mtls or mtls_key(ROGUE)
    return make_evidence(attester, changed, request.payload["nonce"], keys or ProcessKeys.generate(), key)


def _attester(federation, name=ROGUE):
    return federation.parents[name].manager._ready()[0].attester


def test_wrong_tls_key(hardware):
    """Signed by a key that is not in the study contract; then the right key over a report that names the wrong one."""
    federation, stranger = hardware(), generate_private_key(65537, 2048)
    federation.wire.tampered[ROGUE] = lambda request, _: answer(
        _statement(federation, request, _attester(federation), mtls=stranger)
    )
    shut_out(federation, ROGUE, {"mtls_signature"}, proven=set())
    federation.wire.tampered[ROGUE] = lambda request, _: answer(
        resigned(_statement(federation, request, _attester(federation), mtls=stranger), ROGUE)
    )
    shut_out(federation, ROGUE, {"report_data"})


def test_host_swaps_the_keys_for_its_own(hardware):
    federation, own = hardware(), ProcessKeys.generate()
    keys = {"kem_public_key": b64(own.kem_public_bytes), "signing_public_key": b64(own.signing_public_bytes)}
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: keys)
    shut_out(federation, ROGUE, {"report_data"})


CONTEXTS = {
    "another study's policy": ({"policy_digest": "7" * 64}, {"context_policy_digest"}),
    "another study": ({"study": "6" * 64}, {"context_study"}),
    "a job process": (
        {"purpose": "job", "job": "0b5c", "job_digest": "1" * 64},
        {"context_purpose", "context_job", "context_job_digest"},
    ),
}


@pytest.mark.parametrize(("context", "codes"), CONTEXTS.values(), ids=CONTEXTS)
def test_evidence_was_made_for_something_else(hardware, context, codes):
    """Genuine, of the measured VM, and not about this. Relabelled, it is no longer what the report covers."""
    federation = hardware()

    def made(request):
        return _statement(federation, request, _attester(federation), **context)

    federation.wire.tampered[ROGUE] = lambda request, _: answer(made(request))
    shut_out(federation, ROGUE, codes, proven=set())
    federation.wire.tampered[ROGUE] = lambda request, honest: answer(
        resigned(made(request), ROGUE, context=signing.unverified_body(honest.payload["evidence"])["context"])
    )
    shut_out(federation, ROGUE, {"report_data"})


# -- a kit without its machine ---------------------------------------------------------------------------------------


def test_cloned_kit_does_not_start_outside_the_vm(hardware, parents):
    federation = hardware()
    federation.machines[ROGUE] = plain = PlainMachine()
    with federation.inside(ROGUE):
        with pytest.raises(ConfigError, match=r"^tsm_absent: "):
            load_kit(federation.kits / ROGUE, NOW)
        clone = Parent(federation.wire, ROGUE, federation.kits / ROGUE, CordonCCManager(), {})
        clone.fire(EventType.SYSTEM_BOOTSTRAP)
    assert parents == [EXIT_BAD_KIT]
    with pytest.raises(ConfigError, match=r"^tsm_absent: "):
        plain.tsm_report(bytes(64))


def test_cloned_kit_starts_on_no_machine_without_the_pin(hardware):
    federation = hardware()
    with federation.inside(ROGUE), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORDON_PIN", str(federation.kits / "pins" / f"{HONEST}.yml"))
        with pytest.raises(SignatureError, match=f"is for {HONEST}"):
            load_kit(federation.kits / ROGUE, NOW)
        patch.setenv("CORDON_PIN", str(federation.kits / "pins" / "none.yml"))
        with pytest.raises(ConfigError, match="no such file"):
            load_kit(federation.kits / ROGUE, NOW)


def test_kit_is_edited_to_make_software_evidence(hardware):
    """``tee.yml`` is in the hands of who holds the kit, and opens nothing: the kit does not even start."""
    federation = hardware()
    path = federation.kits / ROGUE / "local" / "tee.yml"
    text = "version: cordon/tee/v1\nevidence: software\ngpu: none\ndevice: software\nvek: null\n"
    for edit in (lambda: path.write_text(text), path.unlink):
        edit()
        with federation.inside(ROGUE), pytest.raises(ConfigError, match=r"^tee: |tee\.yml: missing"):
            load_kit(federation.kits / ROGUE, NOW)


class _Without:
    """A program on a plain machine that answers with what it has."""

    def __init__(self, kind, make, endorsements=None):
        self.type, self.make, self.endorsements = kind, make, endorsements or {}

    def report(self, report_data):
        return Report(self.make(report_data), self.endorsements)

    def gpu_evidence(self, nonce):
        return None


@pytest.mark.parametrize("own_root", [True, False])
def test_cloned_kit_shows_software_evidence(hardware, own_root):
    """A downgrade: what is accepted is said by the policy, and no production policy can say software."""
    federation = hardware()
    root = software.make_root("workspace", NOW)
    tee = software.SoftwareAttester(software.issue(root, ROGUE, NOW))
    if own_root:
        federation.wire.tampered[ROGUE] = lambda request, _: answer(_statement(federation, request, tee))
        shut_out(federation, ROGUE, {"evidence_type"})
        assert "report_data" in federation.codes(ROGUE, result="not_checked")
    labelled = _Without("snp", lambda data: tee.report(data).report)
    federation.wire.tampered[ROGUE] = lambda request, _: answer(_statement(federation, request, labelled))
    shut_out(federation, ROGUE, {"endorsements"})
    labelled.endorsements = {"vek": federation.machines[ROGUE].vek_der}
    shut_out(federation, ROGUE, {"report_format"})


# -- labels ----------------------------------------------------------------------------------------------------------


def test_t1_garbage_that_calls_itself_a_tdx_quote(hardware):
    """Stock FLARE asks a program and takes everything but "Error:" for a yes (test_stock_authorizers.py)."""
    federation = hardware()
    for garbage in (b"garbage", b"", bytes(5000), b"\xff" * 16384):
        federation.wire.tampered[THIRD] = forging(THIRD, lambda _, garbage=garbage: {"report": b64(garbage)})
        federation.clock.sleep(31.0)
        assert federation.admitted() == [HONEST, ROGUE]
        assert federation.codes(THIRD) <= {"quote_format", "quote_version"} != set()


@pytest.mark.parametrize("kind", ["sgx", "az-snp", "az-tdx", "software", "SNP", "mock", ""])
def test_report_under_a_label_that_the_policy_does_not_accept(hardware, kind):
    federation = hardware()
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: {"type": kind})
    shut_out(federation, ROGUE, {"evidence_type"})


def test_report_under_the_label_of_another_vendor(hardware):
    federation = hardware()
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: {"type": "tdx"})
    shut_out(federation, ROGUE, {"quote_version"})
    federation.boot([SERVER])
    del federation.wire.tampered[ROGUE]
    federation.wire.tampered[THIRD] = forging(THIRD, lambda _: {"type": "snp"})
    shut_out(federation, THIRD, {"endorsements"})
    vek = {"type": "snp", "endorsements": {"vek": b64(federation.machines[ROGUE].vek_der)}}
    federation.wire.tampered[THIRD] = forging(THIRD, lambda _: vek)
    shut_out(federation, THIRD, {"report_format"})


def test_azure_evidence_under_the_label_snp(hardware):
    """An Azure VM's hardware report is genuine, but its REPORT_DATA is the paravisor's: whole, and taken out of it."""
    federation = hardware()
    claims = azure_pki.encode(azure_pki.runtime_claims(user_data=bytes(64)))
    inner = federation.machines[ROGUE].snp_report(azure_pki.report_data(claims))
    whole = azure_pki.hcl_report(inner, claims)
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: {"report": b64(whole)})
    shut_out(federation, ROGUE, {"report_format"})
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: {"report": b64(inner)})
    shut_out(federation, ROGUE, {"report_data"})


def test_oversized_evidence_is_not_looked_at(hardware):
    federation = hardware()
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: {"report": b64(bytes(1024 * 1024))})
    shut_out(federation, ROGUE, {"evidence_format"}, proven=set())
    assert federation.lines(ROGUE)[-1]["evidence_sha256"] is None
    many = {"endorsements": {f"e{n}": "" for n in range(9)}}
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: many)
    shut_out(federation, ROGUE, {"evidence_format"}, proven=set())
    big = {"endorsements": {"vek": b64(bytes(65 * 1024))}}
    federation.wire.tampered[ROGUE] = forging(ROGUE, lambda _: big)
    shut_out(federation, ROGUE, {"vek_format"})


# -- certificates ----------------------------------------------------------------------------------------------------


def test_report_with_the_vcek_of_another_chip(hardware):
    federation = hardware()
    federation.machines[ROGUE].host = federation.machines[HONEST].certificates()
    shut_out(federation, ROGUE, {"hwid", "report_signature"})


def test_key_of_one_chip_speaks_for_another(hardware):
    """Somebody got the key out of one chip, and names the chip of an honest site in its reports."""
    federation = hardware()
    federation.machines[ROGUE].report = {"chip_id": federation.machines[HONEST].chip_id}
    shut_out(federation, ROGUE, {"hwid"})


@pytest.mark.parametrize("with_chain", [True, False])
def test_self_made_amd(hardware, with_chain):
    """ARK, ASK and VCEK that look like AMD's in every field, made by the attacker: only the keys are not AMD's."""
    federation = hardware()
    rogue, own = federation.machines[ROGUE], "made/ark"
    ark = amd_pki.authority("Genoa", "ark", key=own, issuer_key=own)
    ask = amd_pki.authority("Genoa", "ask", key="made/ask", issuer_key=own)
    rogue.vek = {"issuer_key": amd_pki.rsa_key("made/ask")}
    entries = [(tee_devices.VCEK, rogue.vek_der)]
    if with_chain:
        entries += [(tee_devices.ASK, der(ask)), (tee_devices.ARK, der(ark))]
    rogue.host = cert_table(entries)
    shut_out(federation, ROGUE, {"chain_root", "chain_intermediate"} if with_chain else {"vek_signature"})
    if with_chain:  # the pinned ARK above the attacker's ASK
        entries[2] = (tee_devices.ARK, der(amd_pki.anchor("Genoa").ark))
        rogue.host = cert_table(entries)
        shut_out(federation, ROGUE, {"chain_intermediate"})


def test_self_made_intel(hardware):
    federation, made = hardware(), IntelPki(seed=100)

    def forge(body):
        data = intel_pki.td_report("1.5", report_data=_bound(body))
        return {"report": b64(made.quote(data, version=5))}

    def _bound(body):
        honest = signing.base64.b64decode(body["report"])
        return honest[54 + 520 : 54 + 584]  # header, body type and size; REPORTDATA ends TD report 1.0

    federation.wire.tampered[THIRD] = forging(THIRD, forge)
    federation.clock.sleep(31.0)
    assert federation.admitted() == [HONEST, ROGUE]
    assert {"pck_root", "pck_chain"} <= federation.codes(THIRD)
    assert "report_data" not in federation.codes(THIRD)
    assert {"pck_root", "pck_chain"} <= federation.faults(THIRD)


@pytest.mark.parametrize("maker", [IntelPki(seed=100), INTEL], ids=["self-made", "Intel's own"])
def test_collateral_that_came_along_is_not_looked_at(hardware, maker):
    """Whoever chooses among all that Intel signed takes the day on which its platform was not revoked yet."""
    federation = hardware()
    sent = {"endorsements": {"collateral": b64(maker.collateral())}}
    federation.wire.tampered[THIRD] = forging(THIRD, lambda _: sent)
    (federation.kits / SERVER / "local" / "collateral" / f"intel-{intel_pki.FMSPC}.json").unlink()
    assert federation.admitted() == [HONEST, ROGUE]
    assert federation.lines(THIRD)[-1]["verdict"] == "not_checked"
    assert federation.codes(THIRD) == set()
    assert "tcb_level" in federation.codes(THIRD, result="not_checked")


@pytest.mark.parametrize("where", [0x330, 0x49F])
def test_bytes_behind_the_signature(hardware, where):
    """Nothing signs them: whoever carries a report could otherwise make many out of one."""
    federation = hardware()
    federation.machines[ROGUE].bytes_ = {"unsigned": {where: b"\x01"}}
    shut_out(federation, ROGUE, {"reserved_zero"})


def test_bytes_behind_the_quote(hardware):
    federation = hardware()
    tail = b"\0" * 100 + b"\x01"
    federation.wire.tampered[THIRD] = forging(
        THIRD, lambda body: {"report": b64(signing.base64.b64decode(body["report"]) + tail)}
    )
    shut_out(federation, THIRD, {"quote_tail"})


def test_report_with_one_bit_changed(hardware):
    federation = hardware()
    for site, at in ((ROGUE, 0x90), (ROGUE, 0x2A0), (THIRD, 200), (THIRD, 700)):

        def flip(body, at=at):
            report = bytearray(signing.base64.b64decode(body["report"]))
            report[at] ^= 1
            return {"report": b64(bytes(report))}

        federation.boot([SERVER])
        federation.wire.tampered = {site: forging(site, flip)}
        federation.clock.sleep(31.0)
        assert federation.admitted() == [name for name in HOSPITALS if name != site]
        assert {"report_signature", "quote_signature"} & federation.codes(site)


def test_expired_vcek(hardware):
    """By the clock alone, so it is no fault that could be shown to others: the site is out until it has a new one."""
    federation = hardware()
    federation.machines[ROGUE].vek = {"until": NOW - DAY}
    shut_out(federation, ROGUE, {"vek_validity"}, proven=set())
    federation.machines[ROGUE].vek = {}
    assert federation.again() == list(HOSPITALS)


def test_vlek_where_the_policy_wants_one_chips_key(hardware):
    federation = hardware()
    federation.machines[ROGUE] = Machine(signer="vlek", product="Milan")
    federation.boot([ROGUE])
    federation.wire.connected = list(HOSPITALS)
    shut_out(federation, ROGUE, {"signer"})


def test_expired_vlek(hardware):
    federation = hardware(snp={"signer": ["vcek", "vlek"]})
    federation.machines[ROGUE] = Machine(signer="vlek", product="Milan")
    federation.boot([ROGUE])
    federation.wire.connected = list(HOSPITALS)
    assert federation.admitted() == list(HOSPITALS)
    federation.machines[ROGUE].vek = {"until": NOW - DAY}
    federation.boot([SERVER])
    shut_out(federation, ROGUE, {"vek_validity"}, proven=set())


def test_fault_record_names_what_the_site_signed(hardware):
    """What others are shown is the site's own statement, whole: its digest is the audit line's."""
    federation = hardware()
    federation.machines[ROGUE].report = {"measurement": b"\x66" * 48}
    shut_out(federation, ROGUE, {"measurement"})
    (path,) = (federation.kits / SERVER / "quarantine").iterdir()
    said = signing.unverified_body(json.loads(path.read_text()))
    digest = hashlib.sha256(said["evidence"]["payload"].encode()).hexdigest()
    assert digest == federation.lines(ROGUE)[-1]["evidence_sha256"]
    assert os.stat(path.parent).st_mode & 0o077 == 0


# -- evidence that is meant to break the judge -----------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SPLICE = st.tuples(st.integers(0, 8000), st.binary(max_size=40), st.integers(0, 40))


@pytest.fixture(scope="module")
def honest():
    """(what the coordinator judges by, evidence of an SNP and of a TDX hospital with two GPUs each)."""
    wanted = of_hospitals(gpu={**shipped("snp-h100", "gpu"), "count": 2, "rim": "any"})
    held = Collateral(crls={"genoa": amd_crl()}, dcap={intel_pki.FMSPC: intel_collateral()})
    nonce, keys, made = b"n" * 32, ProcessKeys.generate(), {}
    for name, machine in gpu_machines().items():
        if name in (ROGUE, THIRD):
            kind = authorizers.SnpAttester if machine.evidence == "snp" else authorizers.TdxAttester
            attester = authorizers.with_gpus(kind(tsm=machine.tsm_report), machine.gpu_reports)
            context = parent_context(name, "5" * 64, wanted.digest)
            made[name] = (context, make_evidence(attester, context, nonce, keys, mtls_key(name)))
    return Trust(wanted, held), nonce, made


def _judged(honest, name, **changes):
    trust, nonce, made = honest
    context, envelope = made[name]
    key = mtls_key(name).public_key()
    evidence = resigned(envelope, name, **changes)
    return appraise(evidence, nonce=nonce, context=context, mtls_key=key, trust=trust, now=NOW)


def _spliced(text, splice):
    at, put, drop = splice
    data = signing.base64.b64decode(text)
    at %= len(data)
    return data[:at] + put + data[at + drop :]


SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(name=st.sampled_from([ROGUE, THIRD]), splice=SPLICE)
def test_spliced_report_is_judged_and_never_passes(vendors, honest, name, splice):
    body = signing.unverified_body(honest[2][name][1])
    report = _spliced(body["report"], splice)
    verdict = _judged(honest, name, report=b64(report)).verdict
    assert verdict == ("pass" if report == signing.base64.b64decode(body["report"]) else "fail")


@SETTINGS
@given(splice=SPLICE, part=st.sampled_from(["vek", "chain"]))
def test_spliced_endorsement_is_judged(vendors, honest, splice, part):
    given_ = signing.unverified_body(honest[2][ROGUE][1])["endorsements"]
    changed = {**given_, part: b64(_spliced(given_[part], splice))}
    appraisal = _judged(honest, ROGUE, endorsements=changed)
    if part == "vek":
        assert appraisal.verdict == ("pass" if changed == given_ else "fail")
    elif appraisal.verdict != "fail":  # other PEM text around the same certificates: then nothing else is said either
        assert appraisal.claims == _judged(honest, ROGUE).claims


@SETTINGS
@given(name=st.sampled_from([ROGUE, THIRD]), splice=SPLICE, part=st.sampled_from(["report", "chain"]))
def test_spliced_gpu_evidence_is_judged_and_never_passes(vendors, honest, name, splice, part):
    first, second = signing.unverified_body(honest[2][name][1])["gpu_evidence"]
    changed = {**first, part: b64(_spliced(first[part], splice))}
    verdict = _judged(honest, name, gpu_evidence=[changed, second]).verdict
    assert verdict == ("pass" if changed == first else "fail")


@SETTINGS
@given(
    name=st.sampled_from([ROGUE, THIRD]),
    field=st.sampled_from(["type", "report", "endorsements", "gpu_evidence", "kem_public_key", "signing_public_key"]),
    value=JSON | st.binary(max_size=80).map(b64),
)
def test_anything_in_any_field_is_judged_and_never_passes(vendors, honest, name, field, value):
    assert _judged(honest, name, **{field: value}).verdict in ("fail", "not_checked") or (
        name == THIRD and field == "endorsements"  # a TD needs none
    )
