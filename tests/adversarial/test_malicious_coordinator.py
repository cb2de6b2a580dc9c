"""A malicious coordinator, holding its own genuine kit, says what it likes to an honest hospital.

Whatever it says: the site answers with a signed refusal and its reason code, has trained nothing and released nothing.
"""

import base64

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from safetensors.numpy import save as save_safetensors

from cordon import job as jobs
from cordon import messages, signing
from cordon.attest.keys import ProcessKeys
from cordon.flare import executors
from cordon.flare.kit import STANDING_FILE
from fakes.federation_kits import SERVER, stand
from fakes.in_process import job_files, message, open_message, said


@pytest.fixture
def coordinator(hand):
    """After an honest challenge: the site waits for its first model."""
    made = hand()
    made.attest()
    return made


@pytest.fixture
def admitted(coordinator, trained):
    """After one honest round: the coordinator's key is pinned, the site has seen version 0."""
    assert said(coordinator.train(coordinator.model(evidence=coordinator.evidence()))) == ""
    return coordinator


def _refused(coordinator, shareable, code, trained, rounds):
    """``shareable`` is refused for ``code``; the site has begun ``rounds`` rounds in its life and no other."""
    reply = coordinator.train(shareable)
    assert said(reply) == code
    parts, payload = open_message(reply)
    assert set(parts) == {"refusal"}
    assert payload == b""
    assert len(trained) == rounds
    assert coordinator.site.session.rounds_used == rounds


# -- who it is ------------------------------------------------------------------------------------------------------


def test_no_evidence(coordinator, trained):
    _refused(coordinator, coordinator.model(), "attestation_failed", trained, 0)


@pytest.mark.parametrize(
    "evidence",
    [None, 0, "evidence", [], {}, {"payload": "AAAA"}, {"payload": 3, "payloadType": "x", "signatures": []}],
)
def test_malformed_evidence(coordinator, trained, evidence):
    parts, payload = open_message(coordinator.model())
    _refused(coordinator, message({**parts, "evidence": evidence}, payload), "attestation_failed", trained, 0)


@pytest.mark.parametrize(
    "lie",
    [
        {"nonce": b"o" * 32},
        {"context": {"purpose": "parent"}},
        {"context": {"site": "hospital-a"}},
        {"context": {"job": "another-job"}},
        {"context": {"job_digest": "0" * 64}},
        {"context": {"study": "0" * 64}},
        {"context": {"policy_digest": "0" * 64}},
    ],
)
def test_evidence_about_something_else(coordinator, trained, lie):
    _refused(coordinator, coordinator.model(evidence=coordinator.evidence(**lie)), "attestation_failed", trained, 0)


def test_evidence_under_another_mtls_key(coordinator, trained):
    stolen = coordinator.evidence(mtls_key=coordinator.site.session.kit.mtls_key)
    _refused(coordinator, coordinator.model(evidence=stolen), "attestation_failed", trained, 0)


def test_evidence_by_the_tee_of_somebody_else(coordinator, trained):
    stolen = coordinator.evidence(attester=coordinator.site.session.kit.attester)
    _refused(coordinator, coordinator.model(evidence=stolen), "attestation_failed", trained, 0)


def test_the_site_s_own_evidence_sent_back(hand, trained):
    coordinator = hand()
    mirrored = coordinator.attest()["evidence"]
    _refused(coordinator, coordinator.model(evidence=mirrored), "attestation_failed", trained, 0)


def test_a_challenge_is_answered_once(coordinator, trained):
    """After a wrong answer the right one is too late: it needs a new challenge."""
    wrong, right = coordinator.evidence(nonce=b"o" * 32), coordinator.evidence()
    _refused(coordinator, coordinator.model(evidence=wrong), "attestation_failed", trained, 0)
    _refused(coordinator, coordinator.model(evidence=right), "attestation_failed", trained, 0)
    coordinator.attest()
    _refused(coordinator, coordinator.model(evidence=right), "attestation_failed", trained, 0)


def test_an_old_answer_is_none(coordinator, clock, trained):
    right = coordinator.evidence()
    clock.now += coordinator.site.session.kit.attest_policy.max_age_s + 1
    _refused(coordinator, coordinator.model(evidence=right), "coordinator_not_attested", trained, 0)


def test_train_before_attest(hand, trained):
    coordinator = hand()
    _refused(coordinator, coordinator.model(), "bad_message", trained, 0)
    invented = coordinator.evidence(nonce=b"n" * 32)
    _refused(coordinator, coordinator.model(evidence=invented), "bad_message", trained, 0)


def test_a_second_process_without_evidence_for_the_site_s_own_challenge_cannot_take_over(admitted, trained):
    """With genuine evidence, but for an older challenge, or without any. (test_sealed_updates: with fresh evidence.)"""
    other = ProcessKeys.generate()
    _refused(admitted, admitted.model(key=other.signing_key), "bad_message", trained, 1)
    admitted.attest()
    old = admitted.evidence(keys=other)
    admitted.attest()
    _refused(admitted, admitted.model(key=other.signing_key, evidence=old), "attestation_failed", trained, 1)


def test_a_coordinator_whose_parent_lost_its_lease_gets_no_training(admitted, trained):
    stand(admitted.site.root, SERVER, "quarantined", reasons=("measurement",))
    _refused(admitted, admitted.model(), "coordinator_not_attested", trained, 1)
    stand(admitted.site.root, SERVER, lease_s=-1.0)  # nobody renewed it
    _refused(admitted, admitted.model(), "coordinator_not_attested", trained, 1)
    (admitted.site.root / STANDING_FILE).unlink()  # the parent process is gone or never was
    _refused(admitted, admitted.model(), "coordinator_not_attested", trained, 1)
    stand(admitted.site.root, SERVER)
    assert said(admitted.train(admitted.model())) == ""


def test_a_lease_that_ends_while_the_site_trains_releases_nothing(admitted, monkeypatch):
    real = executors.train_round

    def slow(*arguments, **options):
        delta = real(*arguments, **options)
        stand(admitted.site.root, SERVER, "quarantined", reasons=("debug",))
        return delta

    monkeypatch.setattr(executors, "train_round", slow)
    reply = admitted.train(admitted.model())
    assert said(reply) == "coordinator_not_attested"  # a refusal and nothing else: no update is in it


def test_a_job_process_that_does_not_renew_its_evidence(admitted, clock, trained):
    clock.now += admitted.site.session.kit.attest_policy.lease_s + 1
    _refused(admitted, admitted.model(), "coordinator_not_attested", trained, 1)
    admitted.attest()
    assert said(admitted.train(admitted.model(evidence=admitted.evidence()))) == ""


# -- what it signs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["stranger", "mtls", "site"])
def test_a_model_signed_by_another_key(admitted, trained, whose):
    keys = {
        "stranger": ProcessKeys.generate().signing_key,
        "mtls": admitted.kit.mtls_key,
        "site": admitted.site.session.keys.signing_key,
    }
    _refused(admitted, admitted.model(key=keys[whose]), "bad_message", trained, 1)


def test_a_first_model_signed_by_another_key(coordinator, trained):
    model = coordinator.model(key=ProcessKeys.generate().signing_key, evidence=coordinator.evidence())
    _refused(coordinator, model, "bad_message", trained, 0)


@pytest.mark.parametrize("changes", [{"job": "another-job"}, {"layout_digest": "0" * 64}])
def test_a_model_of_another_job_or_layout(admitted, trained, changes):
    _refused(admitted, admitted.model(**changes), "bad_message", trained, 1)


def test_a_payload_that_was_not_signed(admitted, trained):
    parts, payload = open_message(admitted.model())
    tampered = bytearray(payload)
    tampered[-1] ^= 1
    for other in (bytes(tampered), payload + b"\0", payload[:-1], b""):
        _refused(admitted, message(parts, other), "bad_message", trained, 1)


@pytest.mark.parametrize("kind", ["update", "refusal"])
def test_another_kind_of_message_under_the_coordinator_s_own_key(admitted, trained, kind):
    """Type confusion: the signature is good, what it is about is not."""
    headers = {
        "refusal": messages.Refusal(v=1, job="j", ticket="t", code="site_error"),
        "update": messages.UpdateHeader(
            v=1,
            job="j",
            ticket="t",
            base_version=0,
            model_chain_head="0" * 64,
            layout_digest="0" * 64,
            privacy="sealed",
            dp_event=executors.plan.round_event(admitted.job),
            sealed_to="0" * 64,
            payload_sha256="0" * 64,
        ),
    }
    envelope = messages.sign(admitted.keys.signing_key, headers[kind])
    _refused(admitted, message({"model": envelope}, b""), "bad_message", trained, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"version": -1},
        {"version": "0"},
        {"version": 0.5},
        {"v": 2},
        {"model_chain_head": "head"},
        {"learning_rate": 100.0},
        {"ticket": 7},
        {"job": None},
    ],
)
def test_a_signed_header_that_does_not_fit_its_schema(admitted, trained, change):
    header, payload = messages.seal(admitted.header(), messages.pack("w", admitted.w), admitted.sealed_for)
    body = {**messages.body_of(header), **change}
    envelope = signing.sign(admitted.keys.signing_key, "application/vnd.cordon.model.v1+json", body)
    _refused(admitted, message({"model": envelope}, payload), "bad_message", trained, 1)


# -- forks of the model chain ---------------------------------------------------------------------------------------


def test_the_same_version_with_another_head(admitted, trained):
    _refused(admitted, admitted.model(model_chain_head="1" * 64), "bad_message", trained, 1)


def test_the_same_version_and_head_with_another_model(admitted, trained):
    crafted = messages.pack("w", admitted.w + np.float32(1))
    _refused(admitted, admitted.model(payload=crafted), "bad_message", trained, 1)


def test_a_first_version_whose_head_is_of_another_model(coordinator, trained):
    crafted = messages.pack("w", coordinator.w + np.float32(1))
    _refused(
        coordinator, coordinator.model(payload=crafted, evidence=coordinator.evidence()), "bad_message", trained, 0
    )


def test_a_first_model_that_is_not_the_public_one(coordinator, trained):
    """Its own chain, consistent in itself: but the first model follows from the job's public seed."""
    w = coordinator.w + np.float32(1)
    coordinator.w, coordinator.links = w, []
    coordinator.head = ""
    coordinator.next_version(w)
    model = coordinator.model(evidence=coordinator.evidence())
    _refused(coordinator, model, "bad_message", trained, 0)


def test_a_version_that_goes_back(admitted, trained):
    old = list(admitted.links), admitted.head, admitted.w
    admitted.next_version()
    assert said(admitted.train(admitted.model())) == ""
    admitted.links, admitted.head, admitted.w = old
    _refused(admitted, admitted.model(), "bad_message", trained, 2)


def test_a_version_that_goes_back_under_the_newest_head(admitted, trained):
    """The site would count its version down and could be led over the same number twice."""
    admitted.next_version()
    assert said(admitted.train(admitted.model())) == ""
    links = {"after": -1, "sha256": admitted.links[:1]}
    _refused(admitted, admitted.model(version=0, links=links), "bad_message", trained, 2)


def test_a_next_version_that_does_not_continue(admitted, trained):
    admitted.next_version()
    _refused(admitted, admitted.model(model_chain_head="2" * 64), "bad_message", trained, 1)
    fork = messages.pack("w", admitted.w + np.float32(1))
    _refused(admitted, admitted.model(payload=fork), "bad_message", trained, 1)
    assert said(admitted.train(admitted.model())) == ""  # a refused fork does not move what the site has seen


def test_a_version_that_jumps_needs_every_link(admitted, trained):
    admitted.next_version()
    admitted.next_version()
    honest = admitted.links
    for links in (
        {"after": 1, "sha256": honest[2:]},
        {"after": 0, "sha256": ["0" * 64, honest[2]]},
        {"after": 0, "sha256": [*honest[1:], "0" * 64]},
        {"after": 0, "sha256": [honest[2]]},
    ):
        _refused(admitted, admitted.model(links=links), "bad_message", trained, 1)
    assert said(admitted.train(admitted.model(links={"after": 0, "sha256": honest[1:]}))) == ""


@pytest.mark.parametrize(
    "links",
    [
        *(7, "x", [], {}, {"after": -1}, {"after": "0", "sha256": []}, {"after": 0, "sha256": [7]}),
        *({"after": -5, "sha256": ["0" * 64] * 6}, {"after": 0, "sha256": "0" * 64}, {"after": 0, "sha256": [[]]}),
        {"after": -1, "sha256": ["0" * 64] * 200_000},
    ],
)
def test_malformed_links(admitted, trained, links):
    admitted.next_version()
    _refused(admitted, admitted.model(links=links), "bad_message", trained, 1)


# -- how much -------------------------------------------------------------------------------------------------------


def test_more_rounds_than_planned(admitted, trained):
    for _ in range(3):
        admitted.next_version()
        assert said(admitted.train(admitted.model())) == ""
    for _ in range(3):
        admitted.next_version()
        _refused(admitted, admitted.model(), "plan_exhausted", trained, 4)


def test_the_same_ticket_for_another_model_gets_the_old_update(admitted, trained):
    """One ticket, one release: asking again under it cannot buy a second one."""
    model = admitted.model(ticket="again")
    first = admitted.opened(admitted.train(model))[1]
    admitted.next_version()
    assert admitted.opened(admitted.train(admitted.model(ticket="again")))[1] == first
    assert len(trained) == 2


def test_a_ticket_used_before_the_last_one_is_not_trained_twice(admitted, trained):
    first, second = admitted.model(ticket="one"), admitted.model(ticket="two")
    assert said(admitted.train(first)) == said(admitted.train(second)) == ""
    _refused(admitted, first, "bad_message", trained, 3)


def test_the_same_job_started_again_gets_no_second_plan(admitted, hand, trained):
    """Abort, start anew: a fresh process knows nothing of the rounds that the first one spent."""
    again = hand()
    parts = again.attest()
    assert signing.unverified_body(parts["refusal"])["code"] == "plan_exhausted"
    assert said(again.train(again.model(evidence=again.evidence()))) != ""
    assert trained == [1]


def test_config_changed_between_deploy_and_run(hand, trained):
    """The gate at deploy saw another plan; the job process judges what it runs."""
    coordinator = hand(rounds_per_site=900)
    refusal = coordinator.attest()["refusal"]
    assert signing.unverified_body(refusal)["code"] == "policy_refused"
    assert said(coordinator.train(coordinator.model(evidence=coordinator.evidence()))) != ""
    assert trained == []


def test_config_that_does_not_fit_at_all_opens_no_session(hand, trained):
    coordinator = hand()
    config = coordinator.site.engine.workspace.get_app_config_dir(coordinator.site.engine.new_context().get_job_id())
    files = job_files()
    server = files["config_fed_server.json"].replace(b'"sealed"', b'"unsafe_none"')
    assert b"unsafe_none" in server
    with open(f"{config}/config_fed_server.json", "wb") as file:
        file.write(server)
    reply = coordinator.site.execute(executors.ATTEST_TASK, coordinator.challenge())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert trained == []


def test_another_job_config_at_the_coordinator_shows_in_its_evidence(hand, kits, trained):
    """Coordinator and sites must run one config: the digest of the job is in both evidences."""
    coordinator = hand()
    coordinator.attest()
    coordinator.job = jobs.from_files("oncology", job_files({"max_faults": 1000}))
    _refused(coordinator, coordinator.model(evidence=coordinator.evidence()), "attestation_failed", trained, 0)


# -- what it sends --------------------------------------------------------------------------------------------------


def _payloads(size):
    w = np.zeros(size, np.float32)
    return {
        "huge": save_safetensors({"w": np.zeros(size + 100_000, np.float32)}),
        "short": messages.pack("w", w[:-1]),
        "other name": messages.pack("delta", w),
        "extra tensor": save_safetensors({"w": w, "x": w[:1]}),
        "float64": save_safetensors({"w": w.astype(np.float64)}),
        "float16": save_safetensors({"w": w.astype(np.float16)}),
        "matrix": save_safetensors({"w": w.reshape(1, -1)}),
        "garbage": b"\xff" * 100,
        "empty": b"",
        "header says more": (10**12).to_bytes(8, "little") + b"{}",
    }


def _crafted(admitted, payload):
    """``payload`` as version 1 of a chain that is consistent in itself."""
    admitted.links.append(messages.sha256(payload))
    admitted.head = messages.chain_head(admitted.head, admitted.version, admitted.links[-1])
    return admitted.model(payload=payload)


@pytest.mark.parametrize("what", sorted(_payloads(31)))
def test_a_signed_payload_that_is_no_model(admitted, trained, what):
    model = _crafted(admitted, _payloads(admitted.layout.size)[what])
    _refused(admitted, model, "bad_message", trained, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite(admitted, trained, value):
    """The site would answer with NaN and be thrown out for a fault that is not its own."""
    w = admitted.w.copy()
    w[3] = value
    admitted.next_version(w)
    _refused(admitted, admitted.model(), "bad_message", trained, 1)


@pytest.mark.parametrize("scale", [1e6, 1e20, 1e37])
def test_a_crafted_model_gets_no_more_than_a_clipped_update(admitted, scale):
    admitted.next_version(admitted.w * np.float32(scale))
    _, delta = admitted.verified_update(admitted.train(admitted.model()))
    assert np.isfinite(delta).all()
    assert np.linalg.norm(delta) <= admitted.job.controller.norm_bound * (1 + 1e-6)


def _flmodel(params, meta):
    return DXO(DataKind.WEIGHTS, data=params, meta=meta).to_shareable()


@pytest.mark.parametrize(
    "shareable",
    [
        _flmodel({"payload": np.zeros(4, np.uint8)}, {}),
        _flmodel({"payload": np.zeros(4, np.uint8)}, {"cordon": None}),
        _flmodel({"payload": np.zeros(4, np.uint8)}, {"cordon": [1, 2]}),
        _flmodel({"payload": np.zeros(4, np.uint8)}, {"cordon": "model"}),
        _flmodel({"payload": np.zeros((2, 2), np.uint8)}, {"cordon": {}}),
        _flmodel({"payload": np.zeros(4, np.float32)}, {"cordon": {}}),
        _flmodel({"payload": "text"}, {"cordon": {}}),
        _flmodel({"w": np.zeros(4, np.uint8)}, {"cordon": {}}),
        _flmodel({}, {"cordon": {}}),
        _flmodel({"payload": np.zeros(4, np.uint8), "w": np.zeros(4, np.float32)}, {"cordon": {}}),
        DXO(DataKind.METRICS, data={"auc": 1.0}).to_shareable(),
    ],
)
@pytest.mark.parametrize("task", ["attest", "train"])
def test_an_flmodel_that_is_no_message(admitted, trained, shareable, task):
    assert said(admitted.site.execute(task, shareable)) == "bad_message"
    assert len(trained) == 1


@pytest.mark.parametrize("model", [None, 0, 1.5, "x", [], [[]], {}, {"payload": None}, {"payload": "!"}, b"x"])
def test_malformed_envelopes(admitted, trained, model):
    _refused(admitted, message({"model": model}, b""), "bad_message", trained, 1)


def test_a_deeply_nested_envelope(admitted, trained):
    nested = base64.b64encode(b"[" * 100_000).decode()
    signatures = [{"keyid": signing.spki_digest(admitted.keys.signing_key.public_key()), "sig": "AAAA"}]
    envelope = {"payloadType": "application/vnd.cordon.model.v1+json", "payload": nested, "signatures": signatures}
    _refused(admitted, message({"model": envelope}, b""), "bad_message", trained, 1)


def test_a_signed_deeply_nested_body(admitted, trained):
    from cordon.signing import _pae

    kind, payload = "application/vnd.cordon.model.v1+json", b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    signature = admitted.keys.signing_key.sign(_pae(kind, payload))
    keyid = signing.spki_digest(admitted.keys.signing_key.public_key())
    envelope = {
        "payloadType": kind,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
    }
    _refused(admitted, message({"model": envelope}, b""), "bad_message", trained, 1)


@pytest.mark.parametrize("shareable", [Shareable(), Shareable({"DXO": 7}), Shareable({"DXO": {"kind": "WEIGHTS"}})])
def test_something_that_is_no_flmodel_at_all(admitted, trained, shareable):
    """FLARE's own reader raises; FLARE answers for the site with an error code and nothing else."""
    try:
        reply = admitted.site.execute("train", shareable)
    except Exception as error:
        assert isinstance(error, ValueError | TypeError | KeyError), error
    else:
        assert said(reply) == "bad_message"
    assert len(trained) == 1
    assert admitted.site.session.rounds_used == 1


@pytest.mark.parametrize(
    "change", [{"nonce": 1}, {"nonce": "x"}, {"nonce": ""}, {"nonce": base64.b64encode(b"n" * 31).decode()}]
)
def test_a_malformed_challenge_gets_no_evidence(hand, change):
    coordinator = hand()
    assert said(coordinator.site.execute(executors.ATTEST_TASK, coordinator.challenge(**change))) == "bad_message"


@pytest.mark.parametrize("value", [7, None, ["x"], {"purpose": "parent"}, "p" * 10_000])
def test_a_challenge_cannot_choose_what_else_the_site_s_mtls_key_signs(hand, value):
    coordinator = hand()
    reply = coordinator.site.execute(executors.ATTEST_TASK, coordinator.challenge(policy_digest=value))
    assert said(reply) == "bad_message"
