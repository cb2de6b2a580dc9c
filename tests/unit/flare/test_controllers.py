"""The coordinator's job process: real controller, real executors, one thread; the wire between them is the test's."""

import base64
import queue
from datetime import UTC, datetime

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.shareable import make_reply
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from cordon import messages, signing
from cordon.errors import ConfigError
from cordon.flare import codec, executors
from cordon.flare.kit import load_kit
from cordon.flare.persistor import MODEL_FILE
from cordon.flare.run import Run
from fakes.federation_kits import HOSPITALS, make_kits
from fakes.in_process import message, open_message


def _of(log, kind, site=None):
    return [event for event in log if event["kind"] == kind and site in (None, event.get("site"))]


def _reasons(log, kind, site):
    return [event["reason"] for event in _of(log, kind, site)]


def test_a_job_from_challenge_to_model(federate):
    federation = federate()
    log = federation.run()
    assert log[0]["kind"] == "job"
    assert log[0]["sites"] == list(HOSPITALS)
    assert log[0]["evaluation"]["rows"] > 100
    assert [(each["site"], each["verdict"], each["type"]) for each in _of(log, "attested")] == [
        (site, "pass", "software") for site in HOSPITALS
    ]
    assert [each["version"] for each in _of(log, "version")] == [1, 2, 3]
    for made in _of(log, "version"):
        assert len(set(made["sites"])) == 3
        assert 0.5 < made["auc"] <= 1
    assert log[-1] == {"t": log[-1]["t"], "kind": "done", "versions": 3, "reason": "all 3 versions made"}
    assert not _of(log, "rejected") + _of(log, "lost") + _of(log, "refused")
    assert (federation.run_dir / MODEL_FILE).stat().st_size > 31 * 4  # what is in it: test_model_at_rest


def test_nobody_waits_for_the_slowest(federate):
    """A site that has not answered yet holds back nobody; its update counts, discounted, when it comes."""
    federation = federate()
    held = []

    def slow(site, task, reply):
        if site == "hospital-d" and task == "train" and not held:
            held.append(reply)
            return []
        return [reply]

    federation.on_reply = slow
    log = federation.run()
    versions = _of(log, "version")
    assert len(versions) == 3
    assert versions[0]["sites"] == ["hospital-a", "hospital-b", "hospital-c"]


@pytest.mark.parametrize("at_once", [2, 3, 4])
def test_updates_of_several_sites_in_one_tick(federate, at_once):
    """The public time grid makes sites send at the same instant: that is the normal case, not a rare one."""
    log = federate(at_once=at_once).run()
    assert len(_of(log, "version")) == 3
    assert not _of(log, "rejected")


def test_a_site_gets_only_signed_messages(federate):
    federation = federate()
    sent = []

    def look(site, task, shareable):
        sent.append((site, task, *open_message(shareable)))
        return shareable

    federation.on_task = look
    federation.run()
    with_evidence = {site: 0 for site in HOSPITALS}
    for site, task, parts, payload in sent:
        if task == "attest":
            assert set(parts) == {"nonce", "policy_digest"}
            assert len(base64.b64decode(parts["nonce"])) == 32
            assert payload == b""
            continue
        with_evidence[site] += "evidence" in parts
        assert set(parts) - {"evidence"} == {"model", "links"}
        header = signing.unverified_body(parts["model"])
        assert header["payload_sha256"] == messages.sha256(payload)
    assert set(with_evidence.values()) == {1}  # once, until the site has used it
    nonces = [parts["nonce"] for _, task, parts, _ in sent if task == "attest"]
    assert len(set(nonces)) == len(HOSPITALS)
    tickets = [signing.unverified_body(parts["model"])["ticket"] for _, task, parts, _ in sent if task == "train"]
    assert len(set(tickets)) == len(tickets)
    assert all(len(ticket) == 32 for ticket in tickets)


@pytest.mark.parametrize("stage", ["attest", "train"])
def test_an_error_inside_a_site_is_recorded_and_the_others_go_on(federate, stage):
    federation = federate()

    def broken(site, task, reply):
        failed = site == "hospital-b" and task == stage
        return [make_reply(ReturnCode.EXECUTION_EXCEPTION)] if failed else [reply]

    federation.on_reply = broken
    log = federation.run()
    (reason,) = _reasons(log, "lost", "hospital-b")
    assert ReturnCode.EXECUTION_EXCEPTION in reason
    assert len(_of(log, "version")) == 3
    assert all("hospital-b" not in version["sites"] for version in _of(log, "version"))


@pytest.mark.parametrize("stage", ["attest", "train"])
def test_a_site_that_flare_deems_disconnected_is_lost_and_the_others_go_on(federate, stage):
    federation = federate(versions=4)

    def vanish(site, task, reply):
        if site != "hospital-c" or task != stage:
            return [reply]
        context = federation.engine.new_context()
        context.set_prop(FLContextKey.DISCONNECTED_CLIENT_NAME, site, private=True, sticky=False)
        federation.controller.handle_event(EventType.CLIENT_DISCONNECTED, context)
        return []

    federation.on_reply = vanish
    log = federation.run()
    assert "disconnected" in _reasons(log, "lost", "hospital-c")[0]
    assert len(_of(log, "version")) == 4
    assert all("hospital-c" not in version["sites"] for version in _of(log, "version"))


def test_a_site_that_comes_back_gets_another_ticket(federate):
    federation = federate(versions=4)
    gone = []

    def context(key):
        made = federation.engine.new_context()
        made.set_prop(key, "hospital-c", private=True, sticky=False)
        return made

    def blink(site, task, reply):
        if (site, task) == ("hospital-c", "train") and not gone:
            gone.append("gone")
            lost = context(FLContextKey.DISCONNECTED_CLIENT_NAME)
            federation.controller.handle_event(EventType.CLIENT_DISCONNECTED, lost)
            return []
        if task == "train" and gone == ["gone"]:
            gone.append("back")
            back = context(FLContextKey.RECONNECTED_CLIENT_NAME)
            federation.controller.handle_event(EventType.CLIENT_RECONNECTED, back)
        return [reply]

    federation.on_reply = blink
    log = federation.run()
    assert _reasons(log, "lost", "hospital-c") == ["disconnected"]
    assert _of(log[[event["kind"] for event in log].index("lost") :], "ticket", "hospital-c")
    assert _of(log, "update", "hospital-c")


def test_evidence_that_comes_too_late_is_not_looked_at_but_asked_for_again(federate, clock):
    federation = federate(versions=4, ticket_timeout_s=3600.0)
    asked, late, trained = [], [], []
    broadcast = federation.controller.broadcast

    def remember(task, fl_ctx, targets, **kwargs):
        asked.extend(task for target in targets if (target, task.name) == ("hospital-d", "attest"))
        broadcast(task, fl_ctx, targets, **kwargs)

    def slow(site, task, reply):
        if (site, task) == ("hospital-d", "attest") and not late:
            late.append(reply)
            return []
        trained.extend([site] * (task == "train"))
        if len(trained) == 3 and len(asked) == 1:
            clock.now += 61
            federation.arrive("hospital-d", asked[0], late[0])
        return [reply]

    federation.controller.broadcast, federation.on_reply = remember, slow
    log = federation.run()
    assert federation.served.count(("hospital-d", "attest")) == 2
    (verdict,) = _of(log, "attested", "hospital-d")
    assert verdict["verdict"] == "pass"
    assert _of(log, "ticket", "hospital-d")


def test_nobody_waits_for_a_site_that_does_not_attest(federate, clock):
    federation = federate(versions=4)
    federation.on_reply = lambda site, task, reply: [] if (site, task) == ("hospital-d", "attest") else [reply]
    log = federation.run()
    assert len(_of(log, "version")) == 4
    assert not _of(log, "ticket", "hospital-d")


@pytest.mark.parametrize("how", ["reconnects", "shows evidence too late"])
def test_a_site_without_evidence_keeps_no_job_alive(federate, clock, how):
    """Two sites are left to train, a version wants three. One without evidence is heard of: it counts for none."""
    federation = federate(versions=10, rounds_per_site=10, ticket_timeout_s=3600.0)
    began, answered, asked = clock.now, [], []
    wait, broadcast = federation.inbox.get, federation.controller.broadcast

    def tell(event, key, site):
        context = federation.engine.new_context()
        context.set_prop(key, site, private=True, sticky=False)
        federation.controller.handle_event(event, context)

    def bounded(*args, **kwargs):
        if clock.now > began + 500:
            federation.controller.abort_signal.trigger(True)  # it waits for ever
        lost = clock.now > began + 70 and _of(federation.events(), "lost", "hospital-c")
        if (lost or (how != "reconnects" and clock.now > began + 70)) and not answered:
            answered.append("once")
            if how == "reconnects":
                tell(EventType.CLIENT_RECONNECTED, FLContextKey.RECONNECTED_CLIENT_NAME, "hospital-c")
                tell(EventType.CLIENT_DISCONNECTED, FLContextKey.DISCONNECTED_CLIENT_NAME, "hospital-d")
            else:
                federation.arrive("hospital-c", asked[0], kept[0])
        return wait(*args, **kwargs)

    def remember(task, fl_ctx, targets, **kwargs):
        asked.extend(task for target in targets if (target, task.name) == ("hospital-c", "attest"))
        broadcast(task, fl_ctx, targets, **kwargs)

    kept = []

    silent = {"hospital-c"} if how == "reconnects" else {"hospital-c", "hospital-d"}

    def some_train(site, task, reply):
        if task == "attest" and site in silent:
            kept.extend([reply] * (site == "hospital-c"))
            return []
        clock.now += 75 * (task == "train" and site == "hospital-b" and not answered)
        return [reply]

    federation.inbox.get, federation.controller.broadcast, federation.on_reply = bounded, remember, some_train
    log = federation.run()
    assert "2 sites can still contribute" in log[-1]["reason"]
    assert not _of(log, "ticket", "hospital-c")


def test_no_more_versions_than_planned_while_a_site_is_silent(federate, clock):
    federation = federate()  # 3 versions, 4 rounds a site
    federation.on_reply = lambda site, task, reply: [] if (site, task) == ("hospital-d", "attest") else [reply]
    assert len(_of(federation.run(), "version")) == 3


def test_no_site_answers(federate, clock):
    federation = federate()
    federation.on_reply = lambda site, task, reply: []
    log = federation.run()
    assert {event["site"] for event in _of(log, "lost")} == set(HOSPITALS)
    assert all("no evidence within 60 s" in event["reason"] for event in _of(log, "lost"))
    assert log[-1]["kind"] == "done"
    assert "0 sites can still contribute" in log[-1]["reason"]
    assert 60 <= log[-1]["t"] < 65


def test_a_late_answer_of_a_lost_site_counts_for_nothing_and_brings_it_back(federate, clock):
    """hospital-a's first update comes after its ticket was given up; the site is slow, not at fault."""
    federation = federate(ticket_timeout_s=20.0)
    asked, late = [], []
    broadcast = federation.controller.broadcast

    def remember(task, fl_ctx, targets, **kwargs):
        asked.extend(task for target in targets if (target, task.name) == ("hospital-a", "train"))
        broadcast(task, fl_ctx, targets, **kwargs)

    def slow(site, task, reply):
        if task != "train":
            return [reply]
        if site == "hospital-a" and not late:
            late.append(reply)
            return []
        clock.now += 8
        if clock.now > began + 30 and len(late) == 1:
            late.append(clock.now)
            federation.arrive("hospital-a", asked[0], late[0])
        return [reply]

    federation.controller.broadcast, federation.on_reply, began = remember, slow, clock.now
    log = federation.run()
    assert _reasons(log, "lost", "hospital-a") == ["no answer within 20 s"]
    (refused,) = _of(log, "rejected")
    assert (refused["site"], refused["reason"], refused["faults"]) == ("hospital-a", "unknown_ticket", 0)
    assert "no fault" in refused["detail"]
    after = log[log.index(refused) :]
    assert _of(after, "ticket", "hospital-a"), "a slow site that lives gets another ticket"
    assert not _of(log, "excluded")
    assert len(_of(log, "version")) == 3


def test_a_site_that_refuses_is_out_with_its_own_reason(kits, federate):
    (kits / "hospital-b" / "data" / "patients.csv").unlink()
    log = federate().run()
    assert _reasons(log, "refused", "hospital-b") == ["data_source"]
    assert not _of(log, "ticket", "hospital-b")
    assert len(_of(log, "version")) == 3


def test_a_refusal_in_the_middle(federate):
    federation = federate()
    session = {}

    def refuse(site, task, reply):
        if site != "hospital-b" or task != "train" or session.setdefault("rounds", 0):
            return [reply]
        session["rounds"] = 1
        refusal = executors._refuse(federation.sites[site].session, "plan_exhausted", {})
        return [FLModelUtils.to_shareable(refusal)]

    federation.on_reply = refuse
    log = federation.run()
    assert _reasons(log, "refused", "hospital-b") == ["plan_exhausted"]
    assert len(_of(log, "ticket", "hospital-b")) == 1
    assert len(_of(log, "version")) == 3


def test_the_job_ends_when_too_few_can_contribute(federate):
    federation = federate(rounds_per_site=2, versions=50)
    log = federation.run()
    assert log[-1]["versions"] == 2  # four sites, two rounds each, three a version
    assert "a version wants 3" in log[-1]["reason"]


def test_an_aborted_job_says_so(federate):
    federation = federate()

    def abort(site, task, shareable):
        if task == "train":
            federation.controller.abort_signal.trigger(True)
        return shareable

    federation.on_task = abort
    assert federation.run()[-1]["reason"] == "aborted"


def test_whoever_is_no_site_of_the_job_is_ignored(federate):
    federation = federate()
    update = codec.to_model({"update": {}})
    for each in (("result", "hospital-z", update), ("error", "", "x"), ("disconnected", "y", None)):
        federation.inbox.put(each)
    log = federation.run()
    assert {event.get("site") for event in log} <= {*HOSPITALS, None}
    assert len(_of(log, "version")) == 3


def test_evidence_of_another_site_admits_nobody(federate):
    federation = federate()
    stolen = {}

    def relay(site, task, reply):
        if task == "attest":
            stolen[site] = reply
            if site == "hospital-b":
                return [stolen["hospital-a"]]
        return [reply]

    federation.on_reply = relay
    log = federation.run()
    (verdict,) = _of(log, "attested", "hospital-b")
    assert verdict["verdict"] == "fail"
    assert verdict["codes"][0][:2] == ["mtls_signature", "fail"]
    assert _reasons(log, "refused", "hospital-b") == ["attestation_failed"]
    assert not _of(log, "ticket", "hospital-b")
    assert len(_of(log, "version")) == 3


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"evidence": None},
        {"evidence": "x" * 100},
        {"evidence": {"payload": 1}},
        {"evidence": {"payload": "AAAA", "payloadType": "x", "signatures": []}},
    ],
)
def test_garbage_for_evidence(federate, parts):
    federation = federate()
    federation.on_reply = lambda site, task, reply: (
        [message(parts)] if (site, task) == ("hospital-a", "attest") else [reply]
    )
    log = federation.run()
    assert _of(log, "attested", "hospital-a")[0]["verdict"] != "pass"
    assert _reasons(log, "refused", "hospital-a") == ["attestation_failed"]
    assert len(_of(log, "version")) == 3


@pytest.mark.parametrize("change", [{"nonce": "AAAA"}, {"nonce": 7}, {"policy_digest": 7}, {"policy_digest": "p" * 9}])
def test_a_good_evidence_with_a_broken_challenge(federate, change):
    federation = federate()

    def spoil(site, task, reply):
        if (site, task) != ("hospital-a", "attest"):
            return [reply]
        parts, payload = open_message(reply)
        return [message({**parts, **change}, payload)]

    federation.on_reply = spoil
    log = federation.run()
    assert _reasons(log, "refused", "hospital-a") == ["attestation_failed"]
    assert len(_of(log, "version")) == 3


def test_another_evaluation_set_than_the_agreed_one_is_refused(tmp_path, federate):
    agreed = {"evaluation": {"kind": "public", "name": "reference", "sha256": "0" * 64}}
    federation = federate(folder=make_kits(tmp_path / "own", study=agreed))
    with pytest.raises(ConfigError, match="not the evaluation set 'reference' that the study contract names"):
        federation.run()
    assert federation.served == []


def test_the_agreed_evaluation_set_is_used(tmp_path, federate):
    first = make_kits(tmp_path / "first")
    sha256 = messages.sha256((first / "server" / "data" / "reference.csv").read_bytes())
    agreed = {"evaluation": {"kind": "public", "name": "reference", "sha256": sha256}}
    log = federate(folder=make_kits(tmp_path / "own", study=agreed)).run()
    assert all(version["auc"] is not None for version in _of(log, "version"))


def test_an_evaluation_set_that_is_not_there(kits, federate):
    (kits / "server" / "data" / "reference.csv").unlink()
    with pytest.raises(Exception, match=r"reference\.csv"):
        federate().run()


def test_without_an_evaluation_set_there_is_no_metric(tmp_path, federate):
    own = make_kits(
        tmp_path / "own",
        study={"evaluation": {"kind": "none", "name": ""}},
        coordinator={"evaluation": {"source": None}},
    )
    log = federate(folder=own).run()
    assert log[0]["evaluation"] == {"kind": "none", "name": "", "rows": 0}
    assert [(made["auc"], made["accuracy"]) for made in _of(log, "version")] == [(None, None)] * 3


def test_a_study_with_a_set_and_a_coordinator_without(tmp_path, federate):
    own = make_kits(tmp_path / "own", coordinator={"evaluation": {"source": None}})
    with pytest.raises(ConfigError, match="names no source"):
        federate(folder=own).run()


def test_too_few_sites_connected(federate):
    federation = federate()
    federation.engine.clients = federation.engine.clients[:2]
    with pytest.raises(ConfigError, match="buffer of 3"):
        federation.run()


def test_sites_beyond_the_roster_are_not_in_the_job(federate):
    federation = federate()
    federation.engine.clients.append(type(federation.engine.clients[0])("hospital-x", "token"))
    assert "hospital-x" not in federation.run()[0]["sites"]


def test_a_hospital_s_kit_leads_no_job(kits, federate):
    federation = federate()
    kit = load_kit(kits / "hospital-a", datetime.now(UTC))
    with pytest.raises(ConfigError, match="not a coordinator's kit"):
        Run(federation.controller, queue.Queue(), kit, None, "job", federation.run_dir)


def test_an_answer_that_is_no_message_at_all_costs_its_ticket(federate, clock):
    """FLARE drops a reply that it cannot read before the controller sees it: the site is lost when its ticket ends."""
    federation = federate(ticket_timeout_s=20.0)
    federation.on_reply = lambda site, task, reply: (
        [make_reply(ReturnCode.OK)] if (site, task) == ("hospital-a", "train") else [reply]
    )
    log = federation.run()
    assert all("hospital-a" not in version["sites"] for version in _of(log, "version"))
    assert len(_of(log, "version")) == 3
