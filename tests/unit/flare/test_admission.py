"""Leases inside a job: a site that loses its standing takes no part, comes back when it passes, and stops nobody."""

import json

import pytest

from cordon.errors import SignatureError
from cordon.flare import admission, codec
from cordon.flare.audit import AUDIT_FILE
from fakes.federation_kits import HOSPITALS, SERVER, stand
from fakes.in_process import JOB_ID, open_message, said


def _of(log, kind, site=None):
    return [event for event in log if event["kind"] == kind and site in (None, event.get("site"))]


@pytest.fixture
def federation(federate):
    return federate(versions=6, rounds_per_site=8, ticket_timeout_s=600.0)


def test_a_quarantined_site_gets_no_task_and_the_others_go_on(federation):
    def quarantine(site, task, reply):
        if (site, task) == ("hospital-b", "train"):
            stand(federation.kits / SERVER, site, "quarantined", reasons=("measurement",))
        return [reply]

    federation.on_reply = quarantine
    log = federation.run()
    assert [each["reason"] for each in _of(log, "lost", "hospital-b")] == [
        "not attested with the coordinator: quarantined: measurement"
    ]
    assert len(_of(log, "ticket", "hospital-b")) == 1
    assert len(_of(log, "version")) == 6
    assert all("hospital-b" not in each["sites"] for each in _of(log, "version")[1:])


def test_what_a_site_sends_after_it_lost_its_standing_does_not_count(federation):
    def late(site, task, reply):
        if (site, task) == ("hospital-b", "train"):
            stand(federation.kits / SERVER, site, "quarantined", reasons=("debug",))
            federation.inbox.federation.clock.sleep(2.0)
            held.append(reply)
            return []
        return [reply]

    held = []
    federation.on_reply = late
    log = federation.run()
    assert len(held) == 1
    assert not _of(log, "update", "hospital-b")
    assert len(_of(log, "version")) == 6


def test_it_comes_back_when_its_evidence_passes(federation):
    seen = []

    def come_and_go(site, task, reply):
        seen.append((site, task))
        if site == "hospital-b" and task == "train" and seen.count((site, task)) == 1:
            stand(federation.kits / SERVER, site, "unattested", reasons=("nonce_expired",))
        if site == "hospital-a" and seen.count(("hospital-a", "train")) == 3:
            stand(federation.kits / SERVER, "hospital-b")
        return [reply]

    federation.on_reply = come_and_go
    log = federation.run()
    assert len(_of(log, "lost", "hospital-b")) == 1
    assert len(_of(log, "ticket", "hospital-b")) > 1
    assert any("hospital-b" in each["sites"] for each in _of(log, "version")[2:])


def test_a_coordinator_that_lost_its_lease_at_the_sites_makes_them_stop(federation):
    """The sites release nothing more; the job ends when their tickets run out, and no site is blamed."""
    served = []

    def refused(site, task, reply):
        served.append((site, task, said(reply)))
        if len([each for each in served if each[1] == "train"]) == 4:
            for name in HOSPITALS:
                stand(federation.kits / name, SERVER, "quarantined", reasons=("measurement",))
        return [reply]

    federation.on_reply = refused
    log = federation.run()
    after = [code for _, task, code in served if task == "train"][4:]
    assert after
    assert set(after) == {"coordinator_not_attested"}
    assert {each["site"] for each in _of(log, "lost")} <= set(HOSPITALS)
    assert not _of(log, "rejected") + _of(log, "excluded") + _of(log, "refused")
    assert log[-1]["versions"] < 6


def test_sites_trust_the_coordinator_again_after_it_passes(federation, clock):
    served = []

    def stumble(site, task, reply):
        served.append((site, task, said(reply)))
        clock.sleep(2.0)
        trains = [each for each in served if each[1] == "train"]
        if len(trains) == 2:
            stand(federation.kits / "hospital-c", SERVER, "unattested")
        if said(reply) == "coordinator_not_attested":
            stand(federation.kits / "hospital-c", SERVER)
        return [reply]

    federation.on_reply = stumble
    log = federation.run()
    assert ("hospital-c", "train", "coordinator_not_attested") in served
    assert [site for site, task, _ in served if task == "attest"].count("hospital-c") == 2
    assert _of(log, "update", "hospital-c")
    assert len(_of(log, "version")) == 6


def test_both_sides_renew_their_evidence_within_the_lease(federation, clock):
    """A job longer than the lease: fresh challenges, fresh evidence, the same keys, and no update is lost."""
    nonces, with_evidence = [], []

    def look(site, task, shareable):
        parts, _ = open_message(shareable)
        if task == "attest":
            nonces.append(codec.nonce(parts))
        with_evidence.append((site, task, "evidence" in parts))
        return shareable

    def slow(site, task, reply):
        if task == "train":
            clock.sleep(8.0)
        return [reply]

    federation.on_task, federation.on_reply = look, slow
    log = federation.run()
    assert len(_of(log, "version")) == 6
    assert len(nonces) == len(set(nonces)) > len(HOSPITALS)
    assert not _of(log, "lost") + _of(log, "refused") + _of(log, "rejected")
    for site in {each["site"] for each in _of(log, "attested")}:
        fresh = [task for name, task, has in with_evidence if name == site and has]
        assert len(fresh) == len(_of(log, "attested", site))


def test_a_late_answer_to_a_ticket_is_not_taken_for_evidence(federation, clock):
    """While a renewal is on its way an old update may still arrive: it must not shut an honest site out."""
    held = []

    def hold(site, task, reply):
        if site == "hospital-d" and task == "train" and not held:
            held.append(reply)
            clock.sleep(100.0)  # the next thing that hospital-d hears is a renewal
            return []
        if site == "hospital-d" and task == "attest" and len(held) == 1:
            held.append(None)
            return [held[0], reply]
        return [reply]

    federation.on_reply = hold
    log = federation.run()
    assert not _of(log, "refused", "hospital-d")
    assert not _of(log, "excluded", "hospital-d")


@pytest.mark.parametrize("side", ["site", "coordinator"])
@pytest.mark.parametrize("when", ["first", "renewal"])
def test_a_device_that_is_busy_costs_nobody_the_job(federation, clock, monkeypatch, side, when):
    """Evidence that cannot be made now is made when it is asked for again; nobody is blamed."""
    from cordon.attest.software import SoftwareAttester
    from cordon.errors import ConfigError

    real, who, calls = SoftwareAttester.report, {"site": "hospital-a", "coordinator": SERVER}[side], []

    def report(self, report_data):
        name = self.tee.certificate.subject.rfc4514_string().removeprefix("CN=")
        if name == who:
            calls.append(name)
            if len(calls) == {"first": 1, "renewal": 5 if side == "coordinator" else 2}[when]:
                raise ConfigError("tsm_busy: another process holds the device")
        return real(self, report_data)

    monkeypatch.setattr(SoftwareAttester, "report", report)

    def slow(site, task, reply):
        clock.sleep(6.0)
        return [reply]

    federation.on_reply = slow
    log = federation.run()
    assert len(calls) > {"first": 1, "renewal": 2}[when]
    assert not _of(log, "refused") + _of(log, "excluded") + _of(log, "rejected")
    assert len(_of(log, "version")) == 6
    if side == "site":
        assert _of(log, "update", "hospital-a")


@pytest.mark.parametrize("lease", [None, True, "60", 1, 1e9, float("nan"), []])
def test_a_site_names_the_lease_that_it_gives(lease):
    with pytest.raises(SignatureError, match="no lease"):
        admission._lease_s({"lease_s": lease})


def test_a_renewal_by_another_process_is_refused(federation):
    from cordon.attest.keys import ProcessKeys

    attests = []

    def swap(site, task, shareable):
        if site == "hospital-a" and task == "attest":
            attests.append(site)
            if len(attests) == 2:
                federation.sites[site].session.keys = ProcessKeys.generate()
        return shareable

    def slow(site, task, reply):
        if task == "train":
            federation.clock.sleep(10.0)
        return [reply]

    federation.on_task, federation.on_reply = swap, slow
    log = federation.run()
    assert len(attests) >= 2
    assert [each["reason"] for each in _of(log, "refused", "hospital-a")] == ["attestation_failed"]


def test_an_update_that_took_longer_than_the_lease_counts_after_fresh_evidence(federation, clock):
    """Neither lost (its privacy is spent) nor taken without asking who sends it now."""
    order = []

    def slow(site, task, reply):
        order.append((site, task))
        if (site, task) == ("hospital-d", "train") and order.count(("hospital-d", "train")) == 1:
            clock.sleep(130.0)  # the lease is 120 s
        return [reply]

    federation.on_reply = slow
    log = federation.run()
    first = order.index(("hospital-d", "train"))
    assert ("hospital-d", "attest") in order[first:]
    attested = [each["t"] for each in _of(log, "attested", "hospital-d")]
    updated = [each["t"] for each in _of(log, "update", "hospital-d")]
    assert len(attested) >= 2
    assert min(updated) >= attested[1]
    assert not _of(log, "refused", "hospital-d")


def test_an_update_after_the_lease_without_fresh_evidence_does_not_count(federation, clock):
    trains = []

    def slow(site, task, reply):
        if site == "hospital-d" and task == "train":
            trains.append(site)
            if len(trains) == 1:
                clock.sleep(130.0)
        if site == "hospital-d" and task == "attest" and trains:
            return []  # it answers no more challenges
        return [reply]

    federation.on_reply = slow
    log = federation.run()
    assert trains
    assert not _of(log, "update", "hospital-d")
    assert len(_of(log, "version")) == 6


def test_a_round_longer_than_the_lease_is_delivered_once_with_fresh_evidence(federation, clock, monkeypatch):
    """The site releases nothing to a coordinator whose lease ended meanwhile, and trains nothing twice for it."""
    from cordon.flare import executors

    real, trained = executors.train_round, []

    def slow(*arguments, **options):
        trained.append(1)
        if len(trained) == 2:
            clock.sleep(130.0)
        return real(*arguments, **options)

    served = []

    def look(site, task, reply):
        served.append((site, task, said(reply)))
        return [reply]

    monkeypatch.setattr(executors, "train_round", slow)
    federation.on_reply = look
    log = federation.run()
    late = next(site for site, task, code in served if code == "coordinator_not_attested")
    asked = [code for site, task, code in served if (site, task) == (late, "train")]
    assert asked[:2] == ["coordinator_not_attested", ""]
    assert _of(log, "update", late)[0]["ticket"] == _of(log, "ticket", late)[0]["ticket"]
    assert federation.sites[late].session.rounds_used == len(_of(log, "ticket", late))
    assert sum(site.session.rounds_used for site in federation.sites.values()) == len(trained)
    assert len(_of(log, "version")) == 6
    assert not _of(log, "rejected") + _of(log, "refused")


def test_every_verdict_on_a_job_process_is_in_the_audit_file_of_who_gave_it(federation):
    log = federation.run()

    def lines(name):
        return [json.loads(line) for line in (federation.kits / name / AUDIT_FILE).read_text().splitlines()]

    told = [(line["peer"], line["verdict"], line["state"], line["job"]) for line in lines(SERVER)]
    assert told == [(each["site"], "pass", "attested", JOB_ID) for each in _of(log, "attested")]
    for site in HOSPITALS:
        (line,) = lines(site)
        assert (line["peer"], line["verdict"], line["job"]) == (SERVER, "pass", JOB_ID)
        assert len(line["evidence_sha256"]) == 64
