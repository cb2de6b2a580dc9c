"""Somebody who must not have a hospital's data key asks its broker for it.

Each attack: nothing is released, the reason is the right one, and the receipt is there, with the digest of the evidence
and the checks. Each is made of a request that is released, and opens to the key, where it is left alone.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import msgspec
import pytest

from cordon import signing
from cordon.attest import software
from cordon.attest.appraise import EVIDENCE_TYPE, MAX_EVIDENCE, make_evidence
from cordon.attest.binding import bundle_digest
from cordon.attest.keys import ProcessKeys
from cordon.broker import release as release_module
from cordon.broker.config import Gate
from cordon.broker.decide import MAX_DETAIL, MAX_REQUEST
from cordon.broker.gate import REQUEST_TYPE
from cordon.broker.protocol import ChallengeRequest, LeaseQuery, ReleaseRequest
from cordon.broker.receipts import verify_receipts
from cordon.errors import ConfigError, Refused, SealError
from fakes.hardware_federation import MEASUREMENT, Machine, vendors
from fakes.key_broker import (
    JOB,
    OTHER,
    SITE,
    STAMP,
    VAULT_KEY,
    Hospitals,
    hospitals,
    mtls_key,
    sha256,
    software_root,
    software_tee,
)

__all__ = ["hospitals", "vendors"]

CHIP = f"chip of {SITE}"


@pytest.fixture
def amd(tmp_path, vendors):
    """Hospitals whose brokers want SEV-SNP, of the hospital's own processor."""
    made = Hospitals(tmp_path, "snp", {"snp": {"chip_id": [Machine(chip=CHIP).chip_id.hex()]}})
    yield made
    made.close()


def failed(receipt):
    return {code for code, result in receipt.codes if result == "fail"}


def is_refused(hospitals, broker, asked, reason, *codes, spki=None, now=None):
    """``asked`` is refused for ``reason``, by these checks, and nothing was charged or written but the receipt."""
    before, head = broker.spent(), broker.head()
    receipt = hospitals.refused(broker, asked, spki, now)
    assert receipt.decision == reason
    assert failed(receipt) == set(codes)
    assert receipt.evidence_sha256 == sha256(asked.evidence)
    assert (broker.spent(), broker.head()) == (before, head)
    verify_receipts(broker.receipts(), broker.signing_key.public_key(), hospitals.now)
    return receipt


def resigned(envelope, key, **changes):
    """Evidence with fields changed, signed anew by ``key``."""
    return signing.sign(key, EVIDENCE_TYPE, {**signing.unverified_body(envelope), **changes})


def b64(data):
    return msgspec.to_builtins(data)


# -- replay and relay ------------------------------------------------------------------------------------------------


def test_a_whole_release_replayed_gives_nothing(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    hospitals.opened(broker, process, asked)
    is_refused(hospitals, broker, asked, "nonce_unknown")
    hospitals.challenge(broker, process)
    is_refused(hospitals, broker, asked, "nonce_unknown")
    hospitals.opened(broker, process, process.asks(hospitals.challenge(broker, process)))


def test_a_replay_after_a_restart_gives_nothing(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    hospitals.opened(broker, process, asked)
    is_refused(hospitals, hospitals.restart(), asked, "nonce_unknown")


def test_old_evidence_under_a_fresh_request_is_refused(hospitals):
    """Whoever holds the attested signing key's process for a moment, but no TEE any more."""
    broker, process = hospitals.broker(), hospitals.process()
    old = process.evidence(hospitals.challenge(broker, process))
    fresh = hospitals.challenge(broker, process)
    is_refused(hospitals, broker, process.asks(fresh, old), "evidence_refused", "nonce")
    hospitals.released(broker, process)


def test_a_fresh_nonce_patched_into_old_evidence_breaks_the_report(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    old = process.evidence(hospitals.challenge(broker, process))
    fresh = hospitals.challenge(broker, process)
    patched = resigned(old, process.mtls, nonce=b64(fresh.nonce))
    is_refused(hospitals, broker, process.asks(fresh, patched), "evidence_refused", "report_data")


def test_an_answer_to_the_other_sites_nonce_is_unknown_here(hospitals):
    broker, others = hospitals.broker(), hospitals.broker(OTHER)
    process = hospitals.process()
    foreign = hospitals.challenge(others, hospitals.process(OTHER))
    is_refused(hospitals, broker, process.asks(foreign), "nonce_unknown")
    hospitals.released(broker, process)


def test_a_nonce_of_another_job_is_misused_and_spent(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    challenge = hospitals.challenge(broker, replace(process, job="another"))
    is_refused(hospitals, broker, process.asks(challenge), "nonce_misused")
    is_refused(hospitals, broker, process.asks(challenge), "nonce_unknown")
    hospitals.released(broker, process)


def test_a_request_relayed_over_tls_by_another_client_is_refused_and_leaves_the_challenge(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    relay = hospitals.process(OTHER)
    is_refused(hospitals, broker, asked, "not_a_member", spki=relay.spki)
    hospitals.opened(broker, process, asked)  # a stranger cannot spoil it


def test_the_other_hospital_cannot_pass_off_this_ones_evidence_at_its_own_broker(hospitals):
    """Relayed within the federation: its own TLS key, its own nonce, somebody else's statement."""
    broker, thief = hospitals.broker(OTHER), hospitals.process(OTHER)
    challenge = hospitals.challenge(broker, thief)
    victim = hospitals.process()
    is_refused(hospitals, broker, victim.asks(challenge), "evidence_refused", "mtls_signature")
    hospitals.released(broker, thief)


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_swapped_kem_key_is_no_way_to_the_vault_key(hospitals):
    """The host holds the site's mTLS key and so can sign evidence anew, with a key of its own to be sealed to."""
    broker, process = hospitals.broker(), hospitals.process()
    challenge = hospitals.challenge(broker, process)
    evidence = resigned(
        process.evidence(challenge), process.mtls, kem_public_key=b64(ProcessKeys.generate().kem_public_bytes)
    )
    is_refused(hospitals, broker, process.asks(challenge, evidence), "evidence_refused", "report_data")
    hospitals.released(broker, process)


def test_a_kem_key_to_which_nothing_can_be_sealed_is_refused_with_a_receipt(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    low_order = process.keys.kem_public_bytes[:-32] + bytes(32)
    object.__setattr__(process.keys, "kem_public_bytes", low_order)
    is_refused(
        hospitals, broker, process.asks(hospitals.challenge(broker, process)), "evidence_refused", "process_keys"
    )


def test_a_swapped_signing_key_is_no_way_either(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    thief = replace(process, keys=ProcessKeys.generate())
    challenge = hospitals.challenge(broker, process)
    evidence = resigned(
        process.evidence(challenge), process.mtls, signing_public_key=b64(thief.keys.signing_public_bytes)
    )
    is_refused(hospitals, broker, thief.asks(challenge, evidence), "evidence_refused", "report_data")
    hospitals.released(broker, process)


def test_a_request_signed_by_another_key_than_the_attested_one_is_refused(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    thief = replace(process, keys=ProcessKeys.generate())
    challenge = hospitals.challenge(broker, process)
    asked = thief.asks(challenge, process.evidence(challenge))
    receipt = is_refused(hospitals, broker, asked, "bad_request")
    assert receipt.verdict == "pass"
    hospitals.released(broker, process)


def test_only_the_process_that_asked_can_open_what_was_released(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    released = broker.release(asked, process.spki, hospitals.now)
    assert process.opens(asked, released) == VAULT_KEY
    assert VAULT_KEY not in released.wrapped
    with pytest.raises(SealError):
        replace(process, keys=ProcessKeys.generate()).opens(asked, released)
    other = process.asks(hospitals.challenge(broker, process))
    again = broker.release(other, process.spki, hospitals.now)
    with pytest.raises(SealError):  # bound to its own lease and nonce
        process.opens(asked, msgspec.structs.replace(released, wrapped=again.wrapped))


# -- leases and revocation -------------------------------------------------------------------------------------------


def test_another_process_cannot_renew_an_expired_lease_for_free(hospitals):
    broker = hospitals.broker(gate=Gate(max_releases=1, epsilon=1000.0, delta=1e-5))
    process = hospitals.process()
    lease = hospitals.released(broker, process)
    hospitals.sleep(hospitals.policy.lease_s + 1)
    other = hospitals.process()
    asked = other.asks(hospitals.challenge(broker, other), renews=lease.lease)
    is_refused(hospitals, broker, asked, "releases_exhausted")
    hospitals.released(broker, process, renews=lease.lease)


@pytest.mark.parametrize("measurement", [MEASUREMENT, bundle_digest()], ids=["image", "package"])
def test_a_revoked_measurement_gets_no_key_and_its_live_lease_is_revoked_at_once(amd, measurement):
    broker, process = amd.broker(), amd.process()
    lease = amd.released(broker, process)
    query = LeaseQuery(v=1, lease=lease.lease)
    assert broker.lease_state(query, process.spki, amd.now).state == "live"
    amd.open().revoke(amd.now, measurement=measurement)  # the command, in another process
    assert broker.lease_state(query, process.spki, amd.now).state == "revoked"
    for each in (process, amd.process()):
        asked = each.asks(amd.challenge(broker, each), renews=lease.lease)
        receipt = is_refused(amd, broker, asked, "measurement_revoked")
        assert (receipt.verdict, measurement in receipt.detail) == ("pass", True)


@pytest.mark.parametrize("what", ["lease", "job"])
def test_a_revoked_lease_or_job_is_not_renewed_whether_it_is_named_or_not(hospitals, what):
    broker, process = hospitals.broker(), hospitals.process()
    lease = hospitals.released(broker, process)
    broker.revoke(hospitals.now, **{what: {"lease": lease.lease, "job": JOB}[what]})
    for renews in (lease.lease, None):
        asked = process.asks(hospitals.challenge(broker, process), renews=renews)
        is_refused(hospitals, broker, asked, "lease_revoked")
    successor = hospitals.process()
    asked = successor.asks(hospitals.challenge(broker, successor), renews=lease.lease)
    is_refused(hospitals, broker, asked, "lease_revoked")
    hospitals.released(broker, hospitals.process(job="another"))


# -- another machine -------------------------------------------------------------------------------------------------


def test_a_vault_cloned_to_another_machine_stays_shut_without_the_mtls_key(amd):
    broker = amd.broker()
    thief = amd.process(machine=Machine(chip="stolen"), mtls=mtls_key("thief"))
    challenge = amd.challenge(broker, amd.process())
    is_refused(amd, broker, thief.asks(challenge), "not_a_member", spki=thief.spki)
    is_refused(amd, broker, thief.asks(challenge), "evidence_refused", "mtls_signature")  # as if TLS had been broken
    amd.released(broker, amd.process())


def test_a_vault_cloned_with_the_mtls_key_stays_shut_on_another_processor(amd):
    broker = amd.broker()
    thief = amd.process(machine=Machine(chip="stolen"))
    is_refused(amd, broker, thief.asks(amd.challenge(broker, thief)), "evidence_refused", "chip_id")
    amd.released(broker, amd.process(machine=Machine(chip=CHIP)))


def test_a_vault_cloned_with_the_mtls_key_stays_shut_for_another_software_tee(hospitals):
    broker = hospitals.broker()
    thief = hospitals.process(attester=software.SoftwareAttester(software_tee(OTHER)))
    is_refused(hospitals, broker, thief.asks(hospitals.challenge(broker, thief)), "evidence_refused", "tee_holder")
    hospitals.released(broker, hospitals.process())


def test_an_image_that_was_not_approved_gets_no_key(amd):
    broker = amd.broker()
    thief = amd.process(machine=Machine(chip=CHIP, report={"measurement": b"\x66" * 48}))
    is_refused(amd, broker, thief.asks(amd.challenge(broker, thief)), "evidence_refused", "measurement")
    amd.released(broker, amd.process())


def test_a_downgrade_to_software_evidence_is_refused_where_hardware_is_wanted(amd):
    broker = amd.broker()
    forged = amd.process(attester=software.SoftwareAttester(software.issue(software_root(), SITE, amd.now)))
    receipt = is_refused(amd, broker, forged.asks(amd.challenge(broker, forged)), "evidence_refused", "evidence_type")
    assert receipt.evidence_type == "software"
    honest = amd.process()
    relabelled = amd.challenge(broker, honest)
    evidence = resigned(forged.evidence(relabelled), forged.mtls, type="snp")  # a software report that says snp
    receipt = amd.refused(broker, forged.asks(relabelled, evidence))
    assert (receipt.decision, receipt.verdict) == ("evidence_refused", "fail")
    amd.released(broker, honest)


# -- vaults ----------------------------------------------------------------------------------------------------------


def test_a_vault_rolled_back_or_unknown_has_no_key(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.released(broker, process)
    newer = msgspec.structs.replace(STAMP, version=3, root="3c" * 32)
    broker.register(newer, bytes(32), hospitals.now)
    for stamp, reason in (
        (STAMP, "vault_rolled_back"),
        (msgspec.structs.replace(STAMP, version=4), "vault_unknown_version"),
        (msgspec.structs.replace(newer, root="4d" * 32), "vault_unknown_version"),
        (msgspec.structs.replace(newer, vault="0b" * 16), "unknown_vault"),
    ):
        asked = process.asks(hospitals.challenge(broker, process), stamp=stamp)
        is_refused(hospitals, broker, asked, reason)
    asked = process.asks(hospitals.challenge(broker, process), stamp=newer)
    hospitals.opened(broker, process, asked, key=bytes(32))


# -- the clock -------------------------------------------------------------------------------------------------------


def test_with_the_clock_moved_back_nothing_is_released_until_it_is_past(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.sleep(3600)
    lease = hospitals.released(broker, process)
    asked = process.asks(hospitals.challenge(broker, process))
    seen = hospitals.now
    hospitals.sleep(-3600)
    is_refused(hospitals, broker, asked, "clock_moved_back")
    with pytest.raises(Refused, match="clock_moved_back"):
        hospitals.challenge(broker, process)
    again = hospitals.restart()  # the broker remembers
    is_refused(hospitals, again, asked, "clock_moved_back")
    hospitals.now = seen
    assert hospitals.released(again, process).expires >= lease.expires


def test_a_release_itself_moves_the_clock_on(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    hospitals.sleep(30)
    hospitals.opened(broker, process, asked)
    hospitals.sleep(-30)
    is_refused(hospitals, broker, asked, "clock_moved_back")


# -- what the evidence is for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason", "code"),
    [
        ({"study": "5" * 64}, "wrong_study", "context_study"),
        ({"job": "another"}, "evidence_refused", "context_job"),
        ({"job_digest": "cd" * 32}, "evidence_refused", "context_job_digest"),
        ({"purpose": "job"}, "evidence_refused", "context_purpose"),
        ({"purpose": "parent"}, "evidence_refused", "context_purpose"),
        ({"site": OTHER}, "evidence_refused", "context_site"),
        ({"policy_digest": "5" * 64}, "evidence_refused", "context_policy_digest"),
    ],
    ids=lambda each: str(each),
)
def test_evidence_of_the_right_measurement_for_something_else_is_refused(amd, change, reason, code):
    broker, process = amd.broker(), amd.process()
    challenge = amd.challenge(broker, process)
    context = process.context(**{"policy_digest": challenge.policy_digest, **change})
    evidence = make_evidence(process.attester, context, challenge.nonce, process.keys, process.mtls)
    receipt = is_refused(amd, broker, process.asks(challenge, evidence), reason, code)
    assert ("measurement", "pass") in receipt.codes
    amd.released(broker, process)


@pytest.mark.parametrize(
    ("change", "reason"), [({"study": "5" * 64}, "wrong_study"), ({"site": OTHER}, "bad_request")], ids=str
)
def test_a_request_for_something_else_under_right_evidence_is_refused(hospitals, change, reason):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process), **change)
    assert is_refused(hospitals, broker, asked, reason).verdict == "pass"
    hospitals.released(broker, process)


# -- a broker that dies ----------------------------------------------------------------------------------------------


class Died(Exception):
    """In the place of a power cut."""


def test_a_broker_that_dies_after_the_charge_has_charged_and_gives_nothing_out_twice(hospitals, monkeypatch):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    transaction = broker._state.transaction

    def dying():
        class Dies:
            def __enter__(self):
                self.inner = transaction()
                return self.inner.__enter__()

            def __exit__(self, *error):
                self.inner.__exit__(*error)
                if broker._state._depth == 0:  # committed, not just joined
                    raise Died

        return Dies()

    monkeypatch.setattr(broker._decider._state, "transaction", dying)
    with pytest.raises(Died):
        broker.release(asked, process.spki, hospitals.now)
    broker = hospitals.restart()
    assert broker.spent()[0] == 1
    assert hospitals.receipt(broker, broker.receipts()[-1]).decision == "released"
    is_refused(hospitals, broker, asked, "nonce_unknown")
    hospitals.released(broker, process)  # the same process asks anew: charged once
    assert broker.spent()[0] == 1


@pytest.mark.parametrize("where", ["seal", "wrap_context"])
def test_a_broker_that_fails_before_the_commit_has_charged_nothing_and_given_nothing(hospitals, monkeypatch, where):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    before = broker.head()

    def dies(*arguments):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(release_module.sealing if where == "seal" else release_module, where, dies)
        with pytest.raises(Died):
            broker.release(asked, process.spki, hospitals.now)
    assert (broker.spent(), broker.receipts(), broker.head()) == ((0, 0.0), [], before)
    hospitals.opened(hospitals.restart(), process, asked)  # nothing was decided: the challenge is still open


@pytest.mark.parametrize(("when", "charged"), [("before", 0), ("after", 1)])
def test_a_broker_killed_around_its_commit_opens_cleanly_with_all_or_nothing(hospitals, when, charged):
    process = hospitals.process()
    asked = process.asks(hospitals.challenge(hospitals.broker(), process))
    tenant = msgspec.json.encode(hospitals.tenant())
    hospitals.close()
    (hospitals.folder / "asked.json").write_bytes(msgspec.json.encode(asked))
    (hospitals.folder / "tenant.json").write_bytes(tenant)
    code = f"""
        import os, signal
        from datetime import datetime
        from pathlib import Path
        import msgspec
        from cordon.broker.config import Tenant
        from cordon.broker.keys.encrypted_file import FileKek
        from cordon.broker.protocol import ReleaseRequest
        from cordon.broker.tenant import TenantBroker
        folder, now = Path({str(hospitals.folder)!r}), datetime.fromisoformat({hospitals.now.isoformat()!r})
        tenant = msgspec.json.decode((folder / "tenant.json").read_bytes(), type=Tenant)
        asked = msgspec.json.decode((folder / "asked.json").read_bytes(), type=ReleaseRequest)
        kek = FileKek(folder / "kek", b"correct horse battery staple")
        broker = TenantBroker.open(tenant, folder, folder / "state", kek, now)
        def killed(statement):
            if statement == "COMMIT" and {when!r} == "before":
                os.kill(os.getpid(), signal.SIGKILL)
        broker._state._db.set_trace_callback(killed)
        broker.release(asked, broker.site_spki, now)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, env={**os.environ}, check=False)
    assert ended.returncode == -signal.SIGKILL
    broker = hospitals.open()
    assert broker.spent()[0] == len(broker.receipts()) == charged
    broker.ledger_rows()
    if charged:
        is_refused(hospitals, broker, asked, "nonce_unknown")
    hospitals.released(broker, process)
    assert broker.spent()[0] == 1


def test_a_key_store_that_fails_releases_nothing_and_charges_nothing(hospitals, monkeypatch):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))

    def unreachable(wrapped, label):
        raise ConfigError("the key store cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(hospitals.kek, "unwrap", unreachable)
        with pytest.raises(ConfigError, match="cannot be reached"):
            broker.release(asked, process.spki, hospitals.now)
    assert (broker.spent(), broker.receipts()) == ((0, 0.0), [])
    hospitals.opened(broker, process, asked)


# -- bodies ----------------------------------------------------------------------------------------------------------


def test_oversized_and_malformed_bodies_are_refused_before_they_cost(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    good = process.asks(hospitals.challenge(broker, process))

    def changed(**changes):
        return ReleaseRequest(**{"v": 1, "evidence": good.evidence, "request": good.request, **changes})

    deep: object = []
    for _ in range(900):
        deep = [deep]
    requests = [
        {},
        {**good.request, "payload": "A" * (MAX_REQUEST + 1)},
        {**good.request, "payload": 7},
        {**good.request, "payload": "e30="},
        {**good.request, "signatures": good.request["signatures"] * 2},
        json.loads(json.dumps(good.evidence)),
    ]
    for request in requests:
        receipt = hospitals.refused(broker, changed(request=request))
        assert receipt.decision == "bad_request"
        assert receipt.evidence_sha256 == sha256(good.evidence)
    hospitals.opened(broker, process, good)  # none of them spoilt it
    fresh = process.asks(hospitals.challenge(broker, process))
    is_refused(
        hospitals,
        broker,
        msgspec.structs.replace(fresh, request={**fresh.request, "signatures": [deep]}),
        "bad_request",
    )

    for evidence in ({}, {"payload": "A" * (MAX_EVIDENCE + 1)}, {**good.evidence, "signatures": [deep]}):
        fresh = process.asks(hospitals.challenge(broker, process))
        receipt = hospitals.refused(broker, ReleaseRequest(v=1, evidence=evidence, request=fresh.request))
        assert receipt.decision == "evidence_refused"
        assert failed(receipt) <= {"evidence_format", "mtls_signature"}
    assert broker.spent()[0] == 1


def test_what_a_stranger_writes_is_neither_long_nor_obeyed_by_a_terminal_when_it_is_refused(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    body = {**signing.unverified_body(asked.request), "\x1b[2J\n" + "x" * 20_000: 1}
    named = signing.sign(process.keys.signing_key, REQUEST_TYPE, body)
    with pytest.raises(Refused) as refused:
        broker.release(msgspec.structs.replace(asked, request=named), process.spki, hospitals.now)
    assert refused.value.code == "bad_request"
    assert len(refused.value.detail) <= MAX_DETAIL
    assert refused.value.detail.isprintable()


@pytest.mark.parametrize("job", ["", "6f1a\u200b", "6f1\u0430", "6f1a\x00", "6f1a ", "\x1b[2J", "x" * 129])
def test_a_job_under_a_name_that_nobody_can_type_to_revoke_it_gets_no_key(hospitals, job):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"v": 1, "job": job}, ChallengeRequest)
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process), job=job)
    assert is_refused(hospitals, broker, asked, "bad_request").job == ""


def test_a_type_of_evidence_that_is_made_up_is_printable_in_the_receipt(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    challenge = hospitals.challenge(broker, process)
    body = {**signing.unverified_body(process.evidence(challenge)), "type": "\x1b[2J\n"}
    asked = process.asks(challenge, signing.sign(process.mtls, EVIDENCE_TYPE, body))
    assert hospitals.refused(broker, asked).evidence_type.isprintable()


def test_a_request_of_another_payload_type_is_refused_though_the_attested_key_signed_it(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    challenge = hospitals.challenge(broker, process)
    asked = process.asks(challenge)
    body = signing.unverified_body(asked.request)
    confused = signing.sign(process.keys.signing_key, "application/vnd.cordon.update.v1+json", body)
    is_refused(hospitals, broker, msgspec.structs.replace(asked, request=confused), "bad_request")
    assert asked.request["payloadType"] == REQUEST_TYPE
    hospitals.released(broker, process)


def test_a_challenge_request_by_a_stranger_gets_none(hospitals):
    broker = hospitals.broker()
    with pytest.raises(Refused, match="not_a_member"):
        broker.challenge(ChallengeRequest(v=1, job=JOB), hospitals.process(OTHER).spki, hospitals.now)
