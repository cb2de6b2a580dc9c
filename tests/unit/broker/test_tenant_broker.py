"""One tenant's broker: challenges, leases, revocation, clock, collateral. Attacks: adversarial/test_key_thief.py."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import rfc8785
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon import signing
from cordon.broker import challenges, decide, gate
from cordon.broker.gate import REQUEST_TYPE
from cordon.broker.protocol import ChallengeRequest, LeaseQuery, ReleaseRequest
from cordon.errors import ConfigError, Refused
from fakes.hardware_federation import amd_crl
from fakes.key_broker import JOB, NOW, OTHER, SITE, VAULT_KEY, Hospitals

README = Path(decide.__file__).parent / "README.md"


def state_of(broker, lease, now, spki=None):
    return broker.lease_state(LeaseQuery(v=1, lease=lease), broker.site_spki if spki is None else spki, now).state


# -- challenges ------------------------------------------------------------------------------------------------------


def test_a_challenge_names_policy_and_deadline_and_survives_a_restart(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    challenge = hospitals.challenge(broker, process)
    assert challenge.policy_digest == hospitals.policy.digest
    assert challenge.expires == hospitals.now + timedelta(seconds=hospitals.policy.max_age_s)
    hospitals.opened(hospitals.restart(), process, process.asks(challenge))


def test_a_later_challenge_for_the_same_job_voids_the_earlier(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    old, _ = hospitals.challenge(broker, process), hospitals.challenge(broker, process)
    assert hospitals.refused(broker, process.asks(old)).decision == "nonce_unknown"


def test_a_challenge_answered_too_late_is_expired_and_gone(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    hospitals.sleep(hospitals.policy.max_age_s + 0.001)
    assert hospitals.refused(broker, asked).decision == "nonce_expired"
    assert hospitals.refused(broker, asked).decision == "nonce_unknown"


def test_open_challenges_are_bounded(hospitals, monkeypatch):
    monkeypatch.setattr(challenges, "MAX_OPEN", 3)
    broker, process = hospitals.broker(), hospitals.process()
    for n in range(3):
        hospitals.challenge(broker, replace(process, job=f"job-{n}"))
    with pytest.raises(Refused, match="rate_limited"):
        hospitals.challenge(broker, process)
    hospitals.sleep(hospitals.policy.max_age_s + 1)
    hospitals.challenge(broker, process)


def test_a_challenge_is_for_the_site_only(hospitals):
    broker = hospitals.broker()
    with pytest.raises(Refused, match="not_a_member"):
        broker.challenge(ChallengeRequest(v=1, job=JOB), "0" * 64, NOW)


# -- leases and revocation -------------------------------------------------------------------------------------------


def test_a_lease_is_live_until_it_expires(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    lease = hospitals.released(broker, process)
    assert state_of(broker, lease.lease, lease.expires - timedelta(microseconds=1)) == "live"
    assert state_of(broker, lease.lease, lease.expires) == "expired"
    assert state_of(broker, "0" * 32, NOW) == "unknown"
    assert state_of(broker, lease.lease, NOW, spki="0" * 64) == "unknown"


@pytest.mark.parametrize("what", ["lease", "job", "measurement"])
def test_a_revocation_by_another_process_shows_in_the_next_answer(hospitals, what):
    server, process = hospitals.broker(), hospitals.process()
    lease = hospitals.released(server, process)
    value = {
        "lease": lease.lease,
        "job": process.job,
        "measurement": process.context("0" * 64).bundle_digest,
    }[what]
    command = hospitals.open()
    assert state_of(server, lease.lease, hospitals.now) == "live"
    assert command.revoke(hospitals.now, **{what: value})
    assert state_of(server, lease.lease, hospitals.now) == "revoked"
    assert not command.revoke(hospitals.now, **{what: value})  # it was before
    assert server.ledger_rows()[-1][1] | {"time": ""} == {"kind": "REVOKE", "what": what, "value": value, "time": ""}


def test_revoking_a_lease_ends_all_leases_of_the_process_that_holds_it_and_no_other(hospitals):
    broker, process, other = hospitals.broker(), hospitals.process(), hospitals.process()
    first, renewed, others = (hospitals.released(broker, each) for each in (process, process, other))
    broker.revoke(NOW, lease=first.lease)
    assert state_of(broker, renewed.lease, NOW) == "revoked"
    assert state_of(broker, others.lease, NOW) == "live"


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"job": "a", "lease": "b"},
        {"lease": "0" * 32},
        {"measurement": "AB" * 32},
        {"measurement": "ab"},
        {"job": ""},
    ],
    ids=str,
)
def test_a_revocation_of_what_cannot_be_is_an_error(hospitals, asked):
    broker = hospitals.broker()
    before = broker.head()
    with pytest.raises(ConfigError):
        broker.revoke(NOW, **asked)
    assert broker.head() == before


# -- clock -----------------------------------------------------------------------------------------------------------


def test_an_expired_lease_stays_expired_when_the_clock_goes_back(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    lease = hospitals.released(broker, process)
    hospitals.sleep(1000)
    hospitals.released(broker, hospitals.process())  # the broker has seen this time
    assert state_of(broker, lease.lease, lease.granted) == "expired"


def test_a_small_step_back_counts_as_the_latest_instant(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.released(broker, process)
    seen = hospitals.now
    hospitals.sleep(-4.0)
    lease = hospitals.released(broker, process)
    assert lease.granted == seen


def test_a_clock_that_was_wrongly_ahead_is_accepted_again_on_the_operators_word(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    kept = hospitals.released(broker, process)
    hospitals.sleep(86400 * 30)
    ahead = hospitals.released(broker, process)
    hospitals.sleep(-86400 * 30)
    with pytest.raises(Refused, match="clock_moved_back"):
        hospitals.challenge(broker, process)
    broker.accept_clock(hospitals.now)
    hospitals.released(broker, process)
    assert state_of(broker, ahead.lease, hospitals.now) == "expired"
    assert state_of(broker, kept.lease, hospitals.now) == "live"
    assert broker.ledger_rows()[-1][1]["kind"] == "CLOCK"


def test_an_instant_without_a_time_zone_is_an_error(hospitals):
    broker = hospitals.broker()
    with pytest.raises(ConfigError, match="time zone"):
        broker.challenge(ChallengeRequest(v=1, job=JOB), broker.site_spki, datetime(2026, 1, 1))


# -- judging ---------------------------------------------------------------------------------------------------------


def test_tenants_of_one_broker_do_not_share_keys_or_budget(hospitals):
    first, second = hospitals.broker(SITE), hospitals.broker(OTHER)
    hospitals.released(first, hospitals.process(SITE))
    hospitals.released(second, hospitals.process(OTHER))
    assert first.spent()[0] == second.spent()[0] == 1
    assert first.signing_key.public_key() != second.signing_key.public_key()


def test_a_missing_check_is_a_refusal(hospitals, monkeypatch):
    broker, process = hospitals.broker(), hospitals.process()
    verifier = broker._decider._verifier
    rootless = replace(verifier.trust(), software_root=None)
    monkeypatch.setattr(broker._decider, "_verifier", replace(verifier, trust=lambda: rootless))
    receipt = hospitals.refused(broker, process.asks(hospitals.challenge(broker, process)))
    assert (receipt.decision, receipt.verdict) == ("evidence_refused", "not_checked")
    assert "report_chain" in receipt.not_checked


def test_two_requests_with_one_challenge_at_once_release_once(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    outcomes = []

    def ask():
        try:
            broker.release(asked, process.spki, hospitals.now)
            outcomes.append("released")
        except Refused as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert sorted(outcomes) == ["nonce_unknown"] * 5 + ["released"]
    assert len(broker.receipts()) == 6
    assert broker.spent()[0] == 1


def test_of_processes_that_race_for_the_last_release_one_gets_it_whatever_broker_they_ask(hospitals):
    hospitals.gate = msgspec.structs.replace(hospitals.gate, max_releases=1)
    brokers = [hospitals.broker(), hospitals.open(), hospitals.open()]
    jobs = [hospitals.process(job=f"job-{number}") for number in range(6)]
    asked = [process.asks(hospitals.challenge(brokers[0], process)) for process in jobs]
    outcomes = []

    def ask(number):
        try:
            brokers[number % 3].release(asked[number], jobs[number].spki, hospitals.now)
            outcomes.append("released")
        except Refused as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert sorted(outcomes) == ["released"] + ["releases_exhausted"] * 5
    assert brokers[0].spent()[0] == 1


def test_a_request_that_could_not_be_read_leaves_a_receipt_too(hospitals):
    broker = hospitals.broker()
    refused = broker.refuse("bad_request", "not JSON\x1b[2J", "0" * 64, NOW)
    receipt = hospitals.receipt(broker, refused.receipt)
    assert (receipt.decision, receipt.verdict, receipt.evidence_sha256) == ("bad_request", "not_checked", "")
    assert "\x1b" not in receipt.detail


def test_a_fresh_crl_counts_without_a_restart(tmp_path, vendors):
    hospitals = Hospitals(tmp_path, "snp")
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.released(broker, process)
    (tmp_path / "collateral" / "amd-genoa.crl").write_bytes(amd_crl("Genoa", 0x10001))
    receipt = hospitals.refused(broker, process.asks(hospitals.challenge(broker, process)))
    assert receipt.decision == "evidence_refused"
    (tmp_path / "collateral" / "amd-genoa.crl").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"amd-genoa\.crl"):
        broker.release(process.asks(hospitals.challenge(broker, process)), process.spki, NOW)
    hospitals.close()


def test_the_wrapped_key_is_as_the_specification_says(hospitals):
    """README.md, "Protocol", byte by byte and without the package's own function."""
    broker, process = hospitals.broker(), hospitals.process()
    challenge = hospitals.challenge(broker, process)
    asked = process.asks(challenge)
    released = broker.release(asked, process.spki, hospitals.now)
    context = json.loads(base64.b64decode(asked.evidence["payload"]))["context"]
    parts = (
        b"cordon/release/v1",
        rfc8785.dumps(context),
        challenge.nonce,
        hashlib.sha256(asked.evidence["payload"].encode()).digest(),
        base64.b64decode(released.lease["payload"]),
    )
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    assert suite.decrypt(released.wrapped, process.keys.kem_key, info=info) == VAULT_KEY


def test_no_secret_is_in_what_people_read(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.released(broker, process)
    said = "".join(map(repr, (broker, process, broker._decider, broker.receipts(), broker.ledger_rows())))
    for secret in (VAULT_KEY, broker.signing_key.private_bytes_raw()):
        assert secret.hex() not in said
        assert repr(secret)[2:-1] not in said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=10), each, max_size=3),
    max_leaves=8,
)
ENVELOPE = st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures", "x"]), JSON, max_size=4)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(evidence=ENVELOPE, request=ENVELOPE)
def test_garbage_is_refused_and_nothing_else_happens(hospitals, evidence, request):
    broker = next(iter(hospitals.brokers.values()), None) or hospitals.broker()
    assert hospitals.refused(broker, ReleaseRequest(v=1, evidence=evidence, request=request)).decision == "bad_request"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(gate.KeyRequest.__struct_fields__), value=JSON)
def test_a_signed_request_with_a_field_of_another_kind_is_refused(hospitals, field, value):
    broker = next(iter(hospitals.brokers.values()), None) or hospitals.broker()
    process = hospitals.process()
    challenge = hospitals.challenge(broker, process)
    body = {**msgspec.to_builtins(process.request(challenge)), field: value}
    try:
        envelope = signing.sign(process.keys.signing_key, REQUEST_TYPE, body)
    except ConfigError:  # not expressible as canonical JSON: it cannot be sent
        return
    asked = ReleaseRequest(v=1, evidence=process.evidence(challenge), request=envelope)
    if (field, value) in (("renews", None), ("v", 1)) or (field == "renews" and isinstance(value, str)):
        return
    codes = {"bad_request", "nonce_misused", "evidence_refused", "wrong_study", "unknown_vault"}
    assert hospitals.refused(broker, asked).decision in codes


# -- specification ---------------------------------------------------------------------------------------------------


def test_the_readme_names_every_reason_and_no_other():
    text = README.read_text()
    table = text[text.index("## Reason codes") : text.index("## Leases")]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.M)
    assert {code.strip("`") for row in rows for code in row.split(", ")} == set(gate.REASONS)


def test_every_reason_that_the_code_gives_is_listed():
    source = "".join(path.read_text() for path in README.parent.glob("*.py"))
    given = set(re.findall(r'Refused\(\s*"([a-z_]+)"', source)) | set(decide.REASON_OF.values())
    assert given <= set(gate.REASONS)
    assert len(given) > 8
