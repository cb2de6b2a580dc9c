"""A hospital's job process, asked by a coordinator that is played by hand."""

from datetime import UTC, datetime

import numpy as np
import pytest
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey

from cordon import messages, signing
from cordon.attest.appraise import appraise
from cordon.errors import (
    AttestError,
    BrokerUnavailable,
    ConfigError,
    CordonError,
    DataError,
    MappingError,
    PolicyRefused,
    PrivacyError,
    Refused,
    RowsRejected,
    SealError,
    SignatureError,
    SourceError,
    UpdateRejected,
    VaultError,
)
from cordon.flare import executors, plan, session
from cordon.sealing import OVERHEAD, kem_digest
from fakes.federation_kits import make_kits
from fakes.in_process import JOB_ID, message, open_message, said


def _attested(hand, **changes):
    """(coordinator after its challenge, its first model)."""
    coordinator = hand(**changes)
    assert "refusal" not in coordinator.attest()
    return coordinator, coordinator.model(evidence=coordinator.evidence())


def test_a_round_gives_a_signed_clipped_update_of_the_plan(hand, trained):
    coordinator, model = _attested(hand)
    header, delta = coordinator.verified_update(coordinator.train(model))
    assert header.job == JOB_ID
    assert (header.base_version, header.model_chain_head) == (0, coordinator.head)
    assert header.layout_digest == coordinator.layout.digest
    assert header.privacy == "sealed"
    assert header.sealed_to == kem_digest(coordinator.keys.kem_public_bytes)
    assert header.ledger is None
    assert header.dp_event == plan.round_event(coordinator.job)
    assert 0 < np.linalg.norm(delta) <= coordinator.job.controller.norm_bound * (1 + 1e-6)
    assert trained == [1]


def test_nothing_but_the_signed_message_leaves_the_site(hand):
    """No metric, no count, no number of steps: neither in FLARE's containers nor in ours."""
    coordinator, model = _attested(hand)
    site = coordinator.site
    reply = site.executor.execute(executors.TRAIN_TASK, model, site.engine.new_context(), site.abort)
    assert set(reply) == {"DXO", ReservedHeaderKey.HEADERS}
    assert reply[ReservedHeaderKey.HEADERS] == {ReservedHeaderKey.CONTENT_TYPE: "DXO", "start_round": 0}  # constants
    dxo = from_shareable(reply)
    assert set(dxo.meta) == {"cordon"}
    assert set(dxo.data) == {"payload"}
    assert set(dxo.meta["cordon"]) == {"update"}
    body = signing.unverified_body(dxo.meta["cordon"]["update"])
    assert set(body) == {
        *("v", "job", "ticket", "base_version", "model_chain_head", "layout_digest"),
        *("privacy", "dp_event", "sealed_to", "payload_sha256", "ledger"),
    }
    assert body["dp_event"] == {
        "mechanism": "poisson_subsampled_gaussian",
        **{name: getattr(coordinator.job.executor.dp, name) for name in ("noise_multiplier", "sampling_rate", "steps")},
        **{name: getattr(coordinator.job.executor.dp, name) for name in ("clip_norm", "unit")},
    }
    sealed = dxo.data["payload"].tobytes()
    trained = site.session.trained
    assert trained.plaintext == messages.pack(
        "delta", messages.unpack("delta", trained.plaintext, coordinator.layout.size)
    )
    assert len(sealed) == len(trained.plaintext) + OVERHEAD
    assert not any(trained.plaintext[at : at + 8] in sealed for at in range(len(trained.plaintext) - 8))


def test_attest_says_no_more_than_evidence_and_challenge(hand):
    parts = hand().attest()
    assert set(parts) == {"evidence", "nonce", "policy_digest", "lease_s"}


def test_the_same_ticket_again_gets_the_same_update_under_a_new_seal_and_costs_nothing(hand, trained):
    coordinator, model = _attested(hand)
    first, again = coordinator.train(model), coordinator.train(model)
    assert coordinator.opened(first)[1] == coordinator.opened(again)[1]
    assert open_message(first)[1] != open_message(again)[1]
    assert trained == [1]
    assert coordinator.site.session.rounds_used == 1


def test_two_rounds_from_one_model_differ(hand):
    """The noise is the operating system's, not the ticket's."""
    coordinator, model = _attested(hand)
    _, first = coordinator.verified_update(coordinator.train(model))
    _, second = coordinator.verified_update(coordinator.train(coordinator.model()))
    assert not np.array_equal(first, second)


def test_rounds_per_site_hold_at_the_site_whatever_is_asked(hand, trained):
    coordinator, model = _attested(hand, rounds_per_site=2)
    assert said(coordinator.train(model)) == ""
    coordinator.next_version()
    assert said(coordinator.train(coordinator.model())) == ""
    for _ in range(3):
        coordinator.next_version()
        assert said(coordinator.train(coordinator.model())) == "plan_exhausted"
    coordinator.attest()  # a second challenge opens no second plan
    assert said(coordinator.train(coordinator.model(evidence=coordinator.evidence()))) == "plan_exhausted"
    assert trained == [1, 2]


def test_a_round_that_fails_counts(hand, monkeypatch):
    coordinator, model = _attested(hand, rounds_per_site=1)

    def broken(*args, **kwargs):
        raise CordonError("after the second noisy step")

    monkeypatch.setattr(executors, "train_round", broken)
    assert said(coordinator.train(model)) == "site_error"
    monkeypatch.undo()
    assert said(coordinator.train(coordinator.model())) == "plan_exhausted"


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.999])
def test_an_update_is_sent_at_a_tick_of_the_public_grid(hand, clock, monkeypatch, seconds):
    coordinator, model = _attested(hand)
    clock.now, began = 1000.2, 1000.2
    train = executors.train_round

    def slow(*args, **kwargs):
        clock.now += seconds
        return train(*args, **kwargs)

    monkeypatch.setattr(executors, "train_round", slow)
    coordinator.train(model)
    assert clock.now == pytest.approx(np.ceil(began + seconds), abs=1e-6)


def test_evidence_and_refusals_leave_at_a_tick_too(hand, clock):
    """How long a site took to load its data tells how many there are."""
    coordinator = hand()
    clock.now = 1000.2
    coordinator.attest()
    assert clock.now == pytest.approx(1001.0, abs=1e-6)
    clock.now = 1002.2
    assert said(coordinator.train(coordinator.model())) == "attestation_failed"
    assert clock.now == pytest.approx(1003.0, abs=1e-6)


def test_the_grid_is_the_study_contract_s(tmp_path, hand, clock):
    coordinator, model = _attested(hand, folder=make_kits(tmp_path / "own", study={"time_grid_s": 7.0}))
    clock.now = 701.0
    coordinator.train(model)
    assert clock.now == pytest.approx(707.0, abs=1e-6)


def test_a_slow_site_of_the_poc_still_sends_at_a_tick(tmp_path, hand, clock):
    slow = {"hospital-a": {"unsafe_poc": {"extra_delay_s": 4.0}}}
    coordinator, model = _attested(hand, folder=make_kits(tmp_path / "own", site=slow))
    clock.now = 1000.2
    coordinator.train(model)
    assert clock.now == pytest.approx(1005.0, abs=1e-6)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceError("x"), "data_source"),
        (MappingError("x"), "data_mapping"),
        (RowsRejected("x"), "data_rows_rejected"),
        (DataError("x", "data_not_finite"), "data_not_finite"),
        (DataError("x", "patient 17 of Dr. X"), "data_error"),  # no free text as a code
        (DataError("x"), "data_error"),
        (PolicyRefused([("c", "d")]), "policy_refused"),
        (AttestError([("c", "d")]), "attestation_failed"),
        (SignatureError("x"), "bad_message"),
        (PrivacyError("x"), "plan_exhausted"),
        (VaultError("truncated", "x"), "data_vault"),
        (Refused("lease_revoked", "x"), "key_refused"),
        (Refused("patient 17 of Dr. X", "x"), "key_refused"),
        (Refused("rate_limited", "x"), "key_unavailable"),  # says nothing about who asks
        (BrokerUnavailable("x"), "key_unavailable"),
        (SealError("x"), "key_refused"),
        (UpdateRejected("bad_seal", "x"), "bad_message"),
        (ConfigError("x"), "site_error"),
        (CordonError("x"), "site_error"),
    ],
)
def test_every_kind_of_error_has_its_code(error, code):
    assert executors.refusal_code(error) == code
    assert code in messages.REFUSAL_REASONS


def _no_data(kits):
    (kits / "hospital-a" / "data" / "patients.csv").unlink()


def _nan_in_data(kits):
    path = kits / "hospital-a" / "data" / "patients.csv"
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    lines[1] = ",".join([cells[0], "nan", *cells[2:]])
    path.write_text("\n".join(lines) + "\n")


def _implausible_data(kits):
    path = kits / "hospital-a" / "data" / "patients.csv"
    head, *rows = path.read_text().splitlines()
    rows = [",".join([row.split(",")[0], "9e9", *row.split(",")[2:]]) for row in rows]
    path.write_text("\n".join([head, *rows]) + "\n")


def _no_mapping(kits):
    next((kits / "hospital-a" / "local" / "mappings").glob("*.yml")).unlink()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_no_data, "data_source"),
        (_nan_in_data, "data_not_finite"),
        (_implausible_data, "data_rows_rejected"),
        (_no_mapping, "data_mapping"),
    ],
)
def test_a_site_without_usable_data_says_so_once_and_trains_nothing(kits, hand, trained, spoil, code):
    spoil(kits)
    coordinator = hand()
    parts = coordinator.attest()
    assert set(parts) == {"evidence", "nonce", "policy_digest", "lease_s", "refusal"}
    key = coordinator.site.session.keys.signing_key.public_key()
    refusal = messages.verify(parts["refusal"], messages.Refusal, key, datetime.now(UTC))
    assert (refusal.job, refusal.ticket, refusal.code) == (JOB_ID, "", code)
    assert said(coordinator.train(coordinator.model(evidence=coordinator.evidence()))).startswith("data_")
    assert trained == []


def test_a_refusal_names_its_ticket_and_nothing_more(hand):
    coordinator, model = _attested(hand)
    coordinator.train(model)
    parts, payload = open_message(coordinator.train(coordinator.model(job="another", ticket="t" * 500)))
    assert payload == b""
    assert set(parts) == {"refusal"}
    body = signing.unverified_body(parts["refusal"])
    assert body == {"v": 1, "job": JOB_ID, "ticket": "t" * 64, "code": "bad_message"}


def test_a_job_over_the_site_s_policy_is_refused_in_the_job_process_too(hand, trained):
    cheap = {"dp": {**_plan(), "noise_multiplier": 0.6}}
    coordinator = hand(executor=cheap)
    parts = coordinator.attest()
    assert signing.unverified_body(parts["refusal"])["code"] == "policy_refused"
    assert trained == []


def _plan():
    return {
        "noise_multiplier": 6.0,
        "sampling_rate": 0.5,
        "steps": 5,
        "clip_norm": 0.5,
        "expected_batch_size": 30.0,
        "delta": 1e-05,
        "unit": "patient",
    }


def test_the_evidence_is_about_this_job_process(hand):
    coordinator = hand()
    evidence = coordinator.attest()["evidence"]
    kit = coordinator.kit
    context = session.job_context(kit, coordinator.job, JOB_ID, "hospital-a", kit.attest_policy_digest)

    def judge(**changes):
        asked = {"nonce": b"c" * 32, "context": context, **changes}
        mtls = kit.study.hospital("hospital-a").mtls_key
        now = datetime.now(UTC)
        return appraise(evidence, mtls_key=mtls, trust=kit.trust, now=now, **asked)

    passed = judge()
    assert passed.verdict == "pass"
    assert signing.spki_digest(passed.signing_key) == signing.spki_digest(
        coordinator.site.session.keys.signing_key.public_key()
    )
    other_job = session.job_context(kit, coordinator.job, "another-job", "hospital-a", kit.attest_policy_digest)
    assert judge(context=other_job).verdict == "fail"
    assert judge(nonce=b"d" * 32).verdict == "fail"


def test_abort_before_and_during_a_round(hand, trained):
    coordinator, model = _attested(hand)
    coordinator.site.abort.trigger(True)
    reply = coordinator.train(model)
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED
    assert "DXO" not in reply
    assert coordinator.site.session.rounds_used == 1  # it may have been spent


def test_abort_while_waiting_for_the_tick_releases_nothing_off_the_grid(hand, clock, monkeypatch):
    """Who can abort jobs could otherwise learn when a site had finished, which tells its size."""
    coordinator, model = _attested(hand)
    clock.now += 0.3  # between two ticks
    monkeypatch.setattr(clock, "sleep", lambda seconds: coordinator.site.abort.trigger(True))
    assert coordinator.train(model).get_return_code() == ReturnCode.TASK_ABORTED


def test_an_unknown_task(hand):
    coordinator = hand()
    coordinator.attest()
    reply = coordinator.site.execute("validate", message({"nonce": "x"}))
    assert reply.get_return_code() == ReturnCode.TASK_UNKNOWN


def test_a_process_with_a_bad_kit_says_nothing_but_that_it_failed(kits, hand):
    policy = kits / "hospital-a" / "local" / "cordon.yml"
    policy.write_text(policy.read_text() + "# a change\n")
    coordinator = hand()
    reply = coordinator.site.execute(executors.ATTEST_TASK, coordinator.challenge())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "DXO" not in reply


def test_the_coordinator_s_kit_trains_nothing(kits, hand):
    coordinator = hand()
    coordinator.site.engine.workspace.root_dir = str(kits / "server")
    coordinator.site.executor._session = session.Session(
        kit=coordinator.kit, job=coordinator.job, job_id=JOB_ID, keys=coordinator.keys
    )
    parts, _ = open_message(coordinator.site.execute(executors.ATTEST_TASK, coordinator.challenge()))
    assert signing.unverified_body(parts["refusal"])["code"] == "site_error"
