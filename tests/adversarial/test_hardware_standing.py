"""How long a production verdict holds, and what ends it: leases, revocation, stale collateral, a failing coordinator.

And the job processes: evidence of their own, for purpose and job, on the same hardware.
"""

import json

import pytest

from cordon import job as jobs
from cordon import signing
from cordon.attest import fault, roots, standing
from cordon.attest.appraise import make_evidence, parent_context
from cordon.attest.collateral import Collateral
from cordon.attest.keys import ProcessKeys
from cordon.attest.vendor import Trust
from cordon.errors import AttestError
from cordon.flare import cc_manager
from cordon.flare.admission import Admission, Peer
from cordon.flare.kit import STANDING_FILE
from cordon.flare.run import ATTEST_TASK
from cordon.flare.session import Session
from fakes import amd_pki, intel_pki
from fakes.federation_kits import ROOT, SERVER, mtls_key
from fakes.hardware_federation import (
    DAY,
    HONEST,
    HOSPITALS,
    INTEL,
    NOW,
    ROGUE,
    THIRD,
    amd_crl,
    forging,
    intel_collateral,
    of_hospitals,
    shut_out,
)
from fakes.in_process import JOB_ID, Site, job_files, message, open_message

LEASE_S = 900.0


def _attested(federation, *names):
    return [name for name in names or HOSPITALS if federation.parents[SERVER].manager.attested(name)]


# -- leases ----------------------------------------------------------------------------------------------------------


def test_lease_ends_by_itself_when_a_site_falls_silent(hardware):
    federation = hardware()
    assert federation.admitted() == list(HOSPITALS)
    federation.wire.connected.remove(ROGUE)
    federation.clock.sleep(LEASE_S - 1)
    assert _attested(federation) == list(HOSPITALS)
    federation.clock.sleep(2)
    assert _attested(federation) == []
    assert federation.admitted(*HOSPITALS) == [HONEST, THIRD]
    assert federation.lines(ROGUE)[-1]["codes"] == [["lease_ended", "not_checked", "the lease was not renewed"]]


def test_lease_is_renewed_in_its_last_third_with_fresh_evidence(hardware):
    federation = hardware()
    federation.admitted()
    federation.clock.sleep(LEASE_S / 2)
    federation.admitted()
    assert len(federation.lines(THIRD)) == 1
    federation.clock.sleep(LEASE_S / 4)
    federation.admitted()
    first, second = federation.lines(THIRD)
    assert first["lease_until"] < second["lease_until"]
    assert first["evidence_sha256"] != second["evidence_sha256"]


def test_guest_that_is_replaced_loses_its_lease_when_it_is_asked_again(hardware):
    federation = hardware()
    assert federation.admitted() == list(HOSPITALS)
    federation.machines[ROGUE].report = {"measurement": b"\x66" * 48}
    federation.clock.sleep(LEASE_S * 2 / 3)
    shut_out(federation, ROGUE, {"measurement"})


def test_quarantined_site_comes_back_after_passing_and_is_recorded_once_per_fault(hardware):
    federation = hardware()
    rogue = federation.machines[ROGUE]
    rogue.report = {"measurement": b"\x66" * 48}
    shut_out(federation, ROGUE, {"measurement"})
    shut_out(federation, ROGUE, {"measurement"})
    assert len(list((federation.kits / SERVER / "quarantine").iterdir())) == 1
    rogue.report = {"vmpl": 1}
    shut_out(federation, ROGUE, {"vmpl"})
    assert len(list((federation.kits / SERVER / "quarantine").iterdir())) == 2
    rogue.report = {}
    assert federation.again() == list(HOSPITALS)
    last = federation.lines(ROGUE)[-1]
    assert (last["verdict"], last["state"]) == ("pass", "attested")
    assert standing.read(federation.kits / SERVER / STANDING_FILE)[ROGUE].live(federation.clock.now)


def test_site_that_fails_in_ever_new_ways_does_not_fill_the_disk(hardware, monkeypatch):
    """Evidence may have a megabyte, and a record holds it whole. The first ones say enough."""
    monkeypatch.setattr(cc_manager, "MAX_ASKS", 100)  # the rounds of twenty minutes in a second
    federation = hardware()
    folder = federation.kits / SERVER / "quarantine"
    bulk = signing.base64.b64encode(bytes(500_000)).decode()
    for round_ in range(40):
        codes = {"vmpl": 1} if round_ % 2 else {"measurement": b"\x66" * 48}
        federation.machines[ROGUE].report = codes
        federation.wire.tampered = {} if round_ else {ROGUE: forging(ROGUE, lambda _: {"report": bulk})}
        shut_out(federation, ROGUE, set(codes) if round_ else {"report_format"}, None if round_ < 32 else {"vmpl"})
    assert len(list(folder.iterdir())) == 32


def test_answer_after_the_deadline_gives_no_lease(hardware):
    federation = hardware()

    def late(_, honest):
        federation.clock.sleep(121.0)
        return honest

    federation.wire.tampered[THIRD] = late  # asked last: its wait is not the others'
    assert federation.admitted()[-1:] != [THIRD]
    assert federation.codes(THIRD) == {"nonce_expired"}
    assert federation.faults(THIRD) == set()


# -- collateral ------------------------------------------------------------------------------------------------------


def _collateral(federation, name=SERVER):
    return federation.kits / name / "local" / "collateral"


def test_revocation_by_amd_counts_at_the_next_round_without_a_restart(hardware):
    """The ASK is revoked: all sites on Genoa lose their places, the one on TDX keeps its own."""
    federation = hardware()
    assert federation.admitted() == list(HOSPITALS)
    path = _collateral(federation) / "amd-genoa.crl"
    path.write_bytes(amd_crl("Genoa", 0x10001))
    federation.clock.sleep(LEASE_S * 2 / 3)
    assert federation.admitted() == [THIRD]
    for site in (HONEST, ROGUE):
        assert federation.codes(site) == {"revoked"}
        assert federation.lines(site)[-1]["state"] == "unattested"
    path.write_bytes(amd_crl("Genoa"))
    assert federation.again() == list(HOSPITALS)


def test_revocation_by_intel_counts_at_the_next_round_without_a_restart(hardware):
    federation = hardware()
    assert federation.admitted() == list(HOSPITALS)
    pck = {"pck_crl": INTEL.pck_crl(4).hex()}
    (_collateral(federation) / f"intel-{intel_pki.FMSPC}.json").write_bytes(intel_collateral(**pck))
    federation.clock.sleep(LEASE_S * 2 / 3)
    assert federation.admitted() == [HONEST, ROGUE]
    assert federation.codes(THIRD) == {"crl", "quote_verification"}


@pytest.mark.parametrize(("status", "codes"), [("OutOfDate", {"tcb_status", "out_of_date_grace_s"})])
def test_platform_that_intel_calls_out_of_date(hardware, status, codes):
    federation = hardware()
    path = _collateral(federation) / f"intel-{intel_pki.FMSPC}.json"
    path.write_bytes(intel_collateral(status))
    shut_out(federation, THIRD, codes, proven=set())  # by what Intel says today


def test_missing_list_of_revoked_certificates_is_no_pass(hardware):
    federation = hardware()
    path = _collateral(federation) / "amd-genoa.crl"
    path.unlink()
    assert federation.admitted() == [THIRD]
    for site in (HONEST, ROGUE):
        line = federation.lines(site)[-1]
        assert (line["verdict"], line["state"], line["lease_until"]) == ("not_checked", "unattested", None)
        assert {"crl", "revoked"} <= federation.codes(site, result="not_checked")
        assert federation.codes(site) == set()
        assert federation.faults(site) == set()
    path.write_bytes(amd_crl())
    assert federation.again() == list(HOSPITALS)


def test_missing_collateral_of_intel_is_no_pass(hardware):
    federation = hardware()
    (_collateral(federation) / f"intel-{intel_pki.FMSPC}.json").unlink()
    assert federation.admitted() == [HONEST, ROGUE]
    assert federation.lines(THIRD)[-1]["verdict"] == "not_checked"
    assert "tcb_level" in federation.codes(THIRD, result="not_checked")


STALE = {
    "AMD's list expired": ("amd-genoa.crl", lambda: amd_crl(until=NOW - DAY), [THIRD]),
    "AMD's list is of another root": ("amd-genoa.crl", lambda: amd_crl("Milan"), [THIRD]),
    "Intel's expired": (
        f"intel-{intel_pki.FMSPC}.json",
        lambda: INTEL.collateral(
            tcb_info=intel_pki.changed(INTEL.tcb_info(), nextUpdate=intel_pki.moment(NOW - DAY)),
        ),
        [HONEST, ROGUE],
    ),
}


@pytest.mark.parametrize(("name", "data", "admitted"), STALE.values(), ids=STALE)
def test_verifiers_own_stale_collateral_blames_no_site(hardware, name, data, admitted):
    federation = hardware()
    path = _collateral(federation) / name
    good = path.read_bytes()
    path.write_bytes(data())
    assert federation.admitted() == admitted
    for site in set(HOSPITALS) - set(admitted):
        assert federation.lines(site)[-1]["state"] == "unattested"
        assert federation.faults(site) == set()
    path.write_bytes(good)
    assert federation.again() == list(HOSPITALS)


@pytest.mark.parametrize("name", ["notes.txt", "amd-genoa.crl", f"intel-{intel_pki.FMSPC}.json", "driver.xml"])
def test_collateral_that_cannot_be_read_changes_nothing(hardware, name):
    """What was read before stays in force, so a half-copied file shuts nobody out."""
    federation = hardware()
    (_collateral(federation) / name).write_bytes(b"junk")
    assert federation.admitted() == list(HOSPITALS)


def test_old_answer_shown_after_a_revocation_frames_nobody(hardware):
    """A record's time is the verifier's word: evidence of before is judged by what vendors say today."""
    federation = hardware()
    asked = []
    federation.wire.tampered[ROGUE] = lambda _, honest: asked.append(honest) or honest
    assert federation.admitted() == list(HOSPITALS)
    kit = federation.kit(SERVER)
    later = NOW + DAY
    body = {
        "v": 1,
        "verifier": SERVER,
        "peer": ROGUE,
        "study": kit.study.digest,
        "policy_digest": kit.attest_policy_digest,
        "time": later.isoformat(),
        "evidence": asked[0].payload["evidence"],
        "failures": [["revoked", "serial numbers"]],
    }
    record = signing.sign(mtls_key(SERVER), fault.FAULT_TYPE, body)
    revoked = {"genoa": amd_crl("Genoa", 0x10001)}
    with pytest.raises(AttestError, match="fault_unproven"):
        fault.verify(
            record,
            verifier_key=mtls_key(SERVER).public_key(),
            peer=ROGUE,
            peer_key=mtls_key(ROGUE).public_key(),
            study=kit.study.digest,
            trust=Trust(kit.attest_policy, Collateral(crls=revoked)),
            now=later,
        )


# -- the coordinator -------------------------------------------------------------------------------------------------

COORDINATORS = {
    "another image": (lambda machine: machine.report.update(measurement=b"\x66" * 48), {"measurement"}),
    "a debug guest": (lambda machine: machine.report.update(policy=1 << 17 | 1 << 19), {"debug"}),
    "no GPU": (lambda machine: machine.gpus.clear(), {"gpu"}),
    "another chip's key": (
        lambda machine: machine.vek.update(key=amd_pki.chip_key("x")),
        {"report_signature"},
    ),
}


@pytest.mark.parametrize(("change", "codes"), COORDINATORS.values(), ids=COORDINATORS)
def test_failing_coordinator_makes_every_site_stop(hardware, change, codes):
    """Each hospital judges it by its own policy; its parent refuses jobs and its job processes stop."""
    federation = hardware()
    for name in HOSPITALS:
        federation.parents[name].manager.require_coordinator()
        _session(federation, name).kit.standing(SERVER)
    change(federation.machines[SERVER])
    federation.clock.sleep(LEASE_S + 1)
    for name in HOSPITALS:
        with pytest.raises(AttestError, match="coordinator_not_attested"):
            federation.parents[name].manager.require_coordinator()
        assert federation.codes(SERVER, verifier=name) == codes
        assert federation.faults(SERVER, verifier=name) == codes
        said = federation.kit(name).standing(SERVER)
        assert (said.state, set(said.reasons)) == ("quarantined", codes)
        session = _session(federation, name)
        with pytest.raises(AttestError, match="coordinator_not_attested"):
            session.require_coordinator()


def test_hospital_goes_by_its_own_collateral(hardware):
    """One hospital's list says that the coordinator's ASK is revoked: that hospital stops, the others go on."""
    federation = hardware()
    (_collateral(federation, HONEST) / "amd-genoa.crl").write_bytes(amd_crl("Genoa", 0x10001))
    with pytest.raises(AttestError, match="coordinator_not_attested"):
        federation.parents[HONEST].manager.require_coordinator()
    for name in (ROGUE, THIRD):
        federation.parents[name].manager.require_coordinator()
    assert federation.admitted() == list(HOSPITALS)


# -- job processes ---------------------------------------------------------------------------------------------------


def _job():
    return jobs.from_folder("oncology", ROOT / "jobs" / "oncology" / "app" / "config")


def _session(federation, name):
    return Session(kit=federation.kit(name), job=_job(), job_id=JOB_ID, keys=ProcessKeys.generate())


@pytest.fixture
def site(hardware, clock):
    """(federation, coordinator's admission of a job, asks the job process of a hospital)."""
    federation = hardware()
    keys = ProcessKeys.generate()
    files = job_files()
    processes = {}

    def ask(name, parts):
        with federation.inside(name):
            processes.setdefault(name, Site(federation.kits, name, files))
            reply, _ = open_message(processes[name].execute(ATTEST_TASK, message(parts)))
        return reply, processes[name].session

    first = Site(federation.kits, HONEST, files)
    job = jobs.from_folder("oncology", first.root / JOB_ID / "app_hospital-a" / "config")
    return federation, Admission(federation.kit(SERVER), job, JOB_ID, keys), ask


@pytest.mark.parametrize("name", HOSPITALS)
def test_job_process_is_admitted_by_its_own_evidence_and_admits_the_coordinators(site, name):
    """The executor's real answer, judged by the coordinator's real admission, and the other way round."""
    federation, admission, ask = site
    federation.admitted()
    federation.parents[name].manager.require_coordinator()
    peer = Peer(name)
    reply, session = ask(name, admission.challenge(peer))
    appraisal = admission.judge(peer, reply)
    assert appraisal.verdict == "pass", appraisal.open
    assert appraisal.type == ("tdx" if name == THIRD else "snp")
    admission.admit(peer, appraisal, reply)
    assert peer.keys.signing_key == signing.load_public_key(session.keys.signing_public_bytes)
    keys = session.appraise_coordinator(peer.evidence)
    session.pin(keys)
    assert session.require_coordinator() == keys


@pytest.mark.parametrize("name", [ROGUE, THIRD])
def test_parent_evidence_does_not_serve_for_a_job(site, name):
    """Whoever holds the parent's evidence, or its machine for a moment, has no job process: purpose and job differ."""
    federation, admission, ask = site
    peer = Peer(name)
    parts = admission.challenge(peer)
    nonce = signing.base64.b64decode(parts["nonce"])
    reply, _ = ask(name, parts)
    kit = federation.parents[name].manager._ready()[0]
    context = parent_context(name, kit.study.digest, parts["policy_digest"])
    parents = make_evidence(kit.attester, context, nonce, ProcessKeys.generate(), kit.mtls_key)
    appraisal = admission.judge(peer, {**reply, "evidence": parents})
    assert {each.code for each in appraisal.open} == {"context_purpose", "context_job", "context_job_digest"}
    with pytest.raises(AttestError):
        admission.admit(peer, appraisal, reply)


def test_job_evidence_of_another_guest_is_refused(site):
    federation, admission, ask = site
    federation.machines[ROGUE].report = {"measurement": b"\x66" * 48}
    peer = Peer(ROGUE)
    reply, _ = ask(ROGUE, admission.challenge(peer))
    appraisal = admission.judge(peer, reply)
    assert {each.code for each in appraisal.open} == {"measurement"}
    with pytest.raises(AttestError, match="measurement"):
        admission.admit(peer, appraisal, reply)


def test_job_process_refuses_a_coordinator_on_other_hardware(site):
    federation, admission, ask = site
    peer = Peer(HONEST)
    reply, session = ask(HONEST, admission.challenge(peer))
    federation.machines[SERVER].report = {"measurement": b"\x66" * 48}
    admission.admit(peer, admission.judge(peer, reply), reply)
    with pytest.raises(AttestError, match="measurement"):
        session.appraise_coordinator(peer.evidence)


def test_audit_lines_are_whole(hardware):
    federation = hardware()
    federation.admitted()
    for line in (federation.kits / SERVER / "attestation.jsonl").read_text().splitlines():
        said = json.loads(line)
        assert said["policy_digest"] == of_hospitals().digest
        assert len(said["evidence_sha256"]) == 64
        assert said["lease_until"] > said["time"]


def test_without_the_fixture_the_vendors_own_roots_are_pinned():
    """``roots.load`` is the one place where the made-up vendors come in."""
    assert roots.load("amd_genoa_ark") != amd_pki.anchor("Genoa").ark
    assert roots.load("intel_sgx_root") != INTEL.root
