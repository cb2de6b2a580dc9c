"""Masked mode in one process: real coordinator, real sites, real secure aggregation; only the wire is the test's."""

import numpy as np
import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey

from cordon import messages
from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.errors import BrokerUnavailable, ConfigError, Refused
from cordon.flare import executors, plan
from cordon.flare.deployer import ConfigurationOnly, check
from cordon.flare.kit import load_kit
from cordon.job import FILES, Staleness, from_files
from cordon.staleness import weight
from fakes.federation_kits import SERVER, make_kits
from fakes.fixtures import FIVE
from fakes.in_process import JOB_ID, masked_files, open_message, over_the_wire, said

A, B, C, D, E = FIVE
STAGES = ("shares", "masked", "confirm", "unmask")


def _of(log, kind, site=None):
    return [event for event in log if event["kind"] == kind and site in (None, event.get("site"))]


def _delta(federation, site):
    session = federation.sites[site].session
    return messages.unpack("delta", session.trained.plaintext, session.layout.size).astype(np.float64)


@pytest.fixture
def opened(monkeypatch):
    """(survivors, mean) of every sum that the coordinator counted."""
    seen = []
    take = MaskedCoordinator.opened

    def look(self, cohort_id, survivors, mean, *, unspent=()):
        seen.append((tuple(survivors), np.array(mean), self._cohorts[cohort_id].cohort))
        take(self, cohort_id, survivors, mean, unspent=unspent)

    monkeypatch.setattr(MaskedCoordinator, "opened", look)
    return seen


@pytest.fixture
def masked(aggregate):
    """A federation that notes each delta as its site masks it: (federation, [(site, delta)])."""

    def make(**arguments):
        federation, deltas = aggregate(**arguments), []
        federation.on_reply = lambda site, task, reply: (note(site, reply), [reply])[1]

        def note(site, reply):
            if "masked" in open_message(reply)[0]:
                deltas.append((site, _delta(federation, site)))

        return federation, deltas

    return make


def _expected(deltas, weights, cohort, survivors, staleness=None):
    """Mean over ``survivors`` of what they masked last, from the sessions: each by p s(tau), over the sum of p."""
    taus = dict(zip(cohort.sites, cohort.taus, strict=True))
    staleness = Staleness() if staleness is None else staleness
    total = sum(weights[site] * weight(taus[site], staleness) * deltas[site] for site in survivors)
    return total / sum(weights[site] for site in survivors)


def test_a_masked_job_from_challenge_to_model(masked, opened):
    federation, _ = masked(versions=3)
    log = federation.run()
    assert log[-1] == {**log[-1], "kind": "done", "versions": 3, "reason": "all 3 versions made"}
    assert {site for site, stage in federation.stages if stage == "unmask"} == set(FIVE)
    assert not _of(log, "rejected") + _of(log, "lost") + _of(log, "refused") + _of(log, "aborted")
    job = log[0]
    assert job["privacy"] == "masked"
    assert job["masked"] == {
        **{"cohort": 4, "threshold": 3, "u_min": 3, "c": 1, "ring_bits": 32, "distributed": False},
        **{"group_size": None, "f": None},
    }
    assert "no protection against a lying site" in job["trust"]
    assert len(_of(log, "cohort")) == len(_of(log, "opened")) == len(opened) == 3
    for made, sum_of in zip(_of(log, "version"), _of(log, "opened"), strict=True):
        assert made["sites"] == sum_of["survivors"]
        assert len(made["sites"]) == 4
        assert 0.5 < made["auc"] <= 1


@pytest.mark.parametrize("bits", [32, 64])
def test_an_opened_mean_is_the_plain_weighted_mean_up_to_quantisation(tmp_path, masked, opened, bits):
    weights = dict(zip(FIVE, (0.4, 0.1, 0.25, 0.05, 0.2), strict=True))
    kits = make_kits(tmp_path / "weighted", FIVE, study={"weights": weights})
    federation, masks = masked(folder=kits, versions=2, masked={"ring_bits": bits})
    federation.run()
    terms = plan.terms(
        load_kit(kits / SERVER, executors.datetime.now(executors.UTC)).study,
        federation.sites[A].session.job,
        JOB_ID,
        federation.sites[A].session.layout,
        None,
    )
    assert len(opened) == 2
    for number, (survivors, mean, cohort) in enumerate(opened):
        deltas = dict(masks[4 * number : 4 * number + 4])
        assert set(deltas) == set(survivors)
        expected = _expected(deltas, weights, cohort, survivors)
        step = 1 / terms.ring(4).scale / sum(terms.weight(site, cohort.sites) for site in survivors)
        assert np.abs(mean - expected).max() <= 4 * step + 1e-7 * np.abs(expected).max()
        assert step < 1e-7
        assert np.abs(expected).max() > 1e-3


def test_a_late_site_counts_less_and_the_sum_is_not_divided_by_staleness(masked, opened):
    federation, masks = masked(versions=3, staleness={"function": "polynomial", "a": 1.0})
    federation.run()
    stale = [(number, each) for number, each in enumerate(opened) if max(each[2].taus) > 0]
    assert stale  # five sites, cohorts of four: somebody always waits for the next one
    for number, (survivors, mean, cohort) in stale:
        deltas = dict(masks[4 * number : 4 * number + 4])
        expected = _expected(deltas, dict.fromkeys(FIVE, 0.2), cohort, survivors, Staleness(a=1.0))
        assert np.abs(mean - expected).max() < 1e-6


def test_no_message_of_a_masked_job_holds_an_update(masked):
    federation, masks = masked(versions=1)
    federation.run()
    kinds = {frozenset(open_message(reply)[0]) for _, task, reply in federation.seen if task != "attest"}
    assert kinds == {frozenset({part}) for part in ("ready", "shares", "masked", "confirmation", "unmask")}
    for _site, _task, reply in federation.seen:
        parts, payload = open_message(reply)
        assert bool(payload) == ("masked" in parts)
    packed = [delta.astype(np.float32).tobytes() for _, delta in masks]
    sent = b"".join(open_message(reply)[1] for _, _, reply in federation.seen)
    assert not any(each[:16] in sent for each in packed)


# -- lost sites ------------------------------------------------------------------------------------------------------


def _kill(federation, victims):
    """``victims``: site -> stage whose task reaches it as the last, unanswered, in the first cohort that it is in."""

    def on_reply(site, task, reply):
        if federation.stages[-1] in victims.items():
            federation.dead.add(site)
        return [] if site in federation.dead else [reply]

    federation.on_reply = on_reply


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_that_is_killed_in_any_stage_costs_the_others_nothing(aggregate, opened, stage):
    federation = aggregate(versions=2, rounds_per_site=4)
    _kill(federation, {B: stage})
    log = federation.run()
    assert federation.dead == {B}
    assert len(_of(log, "version")) == 2
    assert not _of(log, "aborted")
    (first, second) = _of(log, "opened")
    # Whose masked vector came is in the sum: it needs nobody's help any more to be opened.
    assert (B in first["survivors"]) == (stage in ("confirm", "unmask"))
    assert B not in second["survivors"]
    assert len(second["survivors"]) == 4


@pytest.mark.parametrize("stage", STAGES)
def test_two_killed_sites_of_a_cohort_of_four_open_nothing_and_the_job_ends_saying_so(aggregate, opened, stage):
    federation = aggregate(versions=2)
    _kill(federation, {B: stage, C: stage})
    log = federation.run()
    assert opened == []
    assert not _of(log, "version")
    (aborted,) = _of(log, "aborted")
    assert aborted["stage"] == stage
    assert aborted["reason"].startswith(f"lost: stage {stage}: 2 sites answered, want 3")
    assert set(aborted["spent"]) == {"shares": set(), "masked": {A, D}}.get(stage, {A, B, C, D})
    assert "sites can still contribute, a cohort wants 4" in log[-1]["reason"]


def test_who_masked_nothing_is_asked_again_and_trains_nothing_anew(aggregate, trained):
    federation = aggregate(versions=1)
    swallowed = []

    def on_reply(site, task, reply):
        if federation.stages[-1][1] == "shares" and site in (B, C) and len(swallowed) < 2:
            swallowed.append(site)
            return []
        return [reply]

    federation.on_reply = on_reply
    log = federation.run()
    assert len(_of(log, "aborted")) == 1
    assert log[-1]["versions"] == 1
    tickets = [event["ticket"] for event in _of(log, "ticket", A)]
    assert len(tickets) == 2
    assert len(set(tickets)) == 1
    assert len(trained) == 5
    keys = [
        open_message(reply)[0]["ready"]["payload"]
        for site, task, reply in federation.seen
        if site == A and task == "train"
    ]
    assert len(set(keys)) == 2  # the same ticket, with other mask keys
    assert federation.sites[A].session.masked.aborts == 0


def test_a_site_that_comes_back_late_is_heard_again_and_its_spent_update_is_not(aggregate, trained):
    federation = aggregate(versions=3, rounds_per_site=6)
    late = []

    def on_reply(site, task, reply):
        if federation.stages[-1] == (B, "masked") and not late:
            late.append(reply)
            return []
        return [reply]

    federation.on_reply = on_reply
    log = federation.run()
    first = _of(log, "opened")[0]
    assert B not in first["survivors"]
    assert any(B in event["survivors"] for event in _of(log, "opened")[1:])
    assert federation.sites[B].session.masked.aborts == 1
    refusals = [said(reply) for site, task, reply in federation.seen if site == B]
    assert "update_spent" in refusals
    assert log[-1]["versions"] == 3
    assert not _of(log, "refused")


def test_a_late_answer_to_a_stage_that_is_over_changes_nothing(aggregate, opened):
    federation = aggregate(versions=3, rounds_per_site=6)
    held, tasks, crossed = [], [], []

    def on_reply(site, task, reply):
        if federation.stages[-1] == (B, "masked") and not held:
            held.append(reply)
            return []
        if federation.stages[-1][1] in ("confirm", "unmask") and held:
            return [reply, reply]  # and everything twice
        if federation.stages[-1] == (B, "masked"):  # in a later cohort: what it sent to the first one comes before
            crossed.append(site)
            return [held[0], reply]
        return [reply]

    federation.on_reply = on_reply
    serve = federation.serve

    def serve_and_replay():
        serve()
        if held and len(tasks) < 3 and federation.stages[-1][1] in ("confirm", "unmask"):
            tasks.append(1)
            federation.inbox.put(("result", B, executors.FLModelUtils.from_shareable(over_the_wire(held[0]))))

    federation.serve = serve_and_replay
    log = federation.run()
    assert len(tasks) == 3
    assert crossed
    assert B not in _of(log, "opened")[0]["survivors"]
    assert B in _of(log, "opened")[-1]["survivors"]
    assert not _of(log, "rejected")
    assert log[-1]["versions"] == 3


def test_a_site_that_flare_deems_disconnected_is_waited_for_no_longer(aggregate):
    federation = aggregate(versions=1)

    def vanish(site, task, reply):
        if federation.stages[-1] != (B, "masked"):
            return [reply]
        context = federation.engine.new_context()
        context.set_prop(FLContextKey.DISCONNECTED_CLIENT_NAME, site, private=True, sticky=False)
        federation.controller.handle_event(EventType.CLIENT_DISCONNECTED, context)
        return []

    federation.on_reply = vanish
    log = federation.run()
    assert [event["reason"] for event in _of(log, "lost")] == ["disconnected"]
    (opened,) = _of(log, "opened")
    assert B not in opened["survivors"]
    assert opened["seconds"] < 20.0  # not the whole time that the stage may take


# -- who may run it --------------------------------------------------------------------------------------------------


def _submitted(kits, files):
    app = kits / SERVER / JOB_ID / "app_server"
    (app / "config").mkdir(parents=True)
    for name in FILES:
        (app / "config" / name).write_bytes(files[name])
    return str(app)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"buffer": 6}, "buffer = 6 > N = 5 sites"),
        ({"masked": {"c": 2}}, "c = 2 > u_min - 2 = 1"),
        ({"rule": "median"}, "rule = median: one sum gives a weighted_mean"),
        (
            {"buffer": 3, "rule": "median", "masked": {"groups": {"size": 3, "f": 1}}},
            "= 1 groups < 2f + 1 + may_stop = 3",
        ),
    ],
)
def test_an_infeasible_job_is_refused_at_submit_with_the_inequality(masked_kits, changes, why):
    files = masked_files(**changes)
    told, _ = ConfigurationOnly().validate(_submitted(masked_kits, files))
    assert told.startswith("the coordinator refuses the job: this masked job cannot run with 5 sites")
    assert why in told
    kit = load_kit(masked_kits / A, executors.datetime.now(executors.UTC))
    with pytest.raises(ConfigError, match="cannot run with 5 sites") as caught:
        check(kit, from_files("oncology", files))
    assert why in str(caught.value)


def test_a_feasible_job_is_taken_at_submit(masked_kits):
    assert ConfigurationOnly().validate(_submitted(masked_kits, masked_files())) == ("", {})


def test_a_job_whose_sites_are_not_there_fails_with_the_inequality(aggregate):
    federation = aggregate(hospitals=(A, B, C))
    with pytest.raises(ConfigError, match="buffer = 4 > N = 3 sites"):
        federation.run()


@pytest.mark.parametrize(
    ("floors", "code"),
    [
        ({"u_min": 4}, "u_min_under_policy"),
        ({"u_min": 5, "c": 3}, "collusion_under_policy"),
        ({"max_aborts": 0}, "aborts_over_policy"),
    ],
)
def test_a_site_whose_floors_are_higher_does_not_train(tmp_path, aggregate, trained, floors, code):
    kits = make_kits(tmp_path / "floors", FIVE, site={E: {"masked": floors}})
    kit = load_kit(kits / E, executors.datetime.now(executors.UTC))
    with pytest.raises(executors.PolicyRefused, match=code):
        check(kit, from_files("oncology", masked_files()))
    log = aggregate(folder=kits, versions=1).run()
    assert [event["reason"] for event in _of(log, "refused", E)] == ["policy_refused"]
    assert log[-1]["versions"] == 1
    assert all(E not in event["sites"] for event in _of(log, "cohort"))


def test_a_site_without_floors_takes_no_masked_job(tmp_path):
    kits = make_kits(tmp_path / "none", FIVE, site={E: {"masked": None}})
    with pytest.raises(executors.PolicyRefused, match="masked_without_floors"):
        check(load_kit(kits / E, executors.datetime.now(executors.UTC)), from_files("oncology", masked_files()))


# -- leases ----------------------------------------------------------------------------------------------------------


class Key:
    """A data key that is taken back, or whose broker falls silent, once the site is asked for ``stage``."""

    ledger = None

    def __init__(self, error):
        self.error, self.over = error, False

    def require(self):
        if self.over:
            raise self.error

    def close(self):
        pass


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("error", "code"),
    [(Refused("lease_revoked", "x"), "key_refused"), (BrokerUnavailable("x"), "key_unavailable")],
)
def test_nothing_leaves_a_site_in_any_stage_once_its_data_key_is_gone(aggregate, stage, error, code):
    federation = aggregate(versions=1)
    key = Key(error)

    def on_task(site, task, shareable):
        if site == B and task == "secagg":
            session = federation.sites[B].session
            session.data_key = key
            key.over |= open_message(shareable)[0]["stage"] == stage
        return shareable

    federation.on_task = on_task
    log = federation.run()
    answers = [
        said(reply)
        for (site, at), (_, _, reply) in zip(federation.stages, federation.seen, strict=True)
        if (site, at) == (B, stage)
    ]
    assert answers[:1] == [code]
    assert log[-1]["versions"] == 1
    assert (B in _of(log, "opened")[0]["survivors"]) == (stage in ("confirm", "unmask"))
    # A broker that is silent may answer the next time: the site keeps its update and its place in the job.
    assert ([event["reason"] for event in _of(log, "refused", B)] == [code]) == (code == "key_refused")
    assert not _of(log, "lost", B)


def test_leases_are_renewed_while_a_site_waits_for_its_cohort(aggregate, clock, masked_kits):
    """The slow ones make the others wait for longer than both leases last, and for longer after the last challenge than
    an answer to it may take: a site must have got that answer before."""
    federation = aggregate(versions=1, ticket_timeout_s=1e6, at_once=1)
    policy = load_kit(masked_kits / A, executors.datetime.now(executors.UTC)).attest_policy
    held, asked, start = {}, [], clock.now

    def on_task(site, task, shareable):
        if (site, task) == (A, "attest"):
            asked.append(clock.now)
        return shareable

    federation.on_task = on_task

    def on_reply(site, task, reply):
        if task == "train" and site in (D, E) and site not in held:
            held[site] = (task, reply)
            return []
        return [reply]

    federation.on_reply = on_reply
    serve, waits = federation.serve, []

    def slow():
        serve()
        if not federation.pending and len(held) == 2:
            if clock.now - start < 2 * policy.lease_s or clock.now - asked[-1] <= policy.max_age_s:
                clock.sleep(5.0)
            elif not waits:
                waits.append(1)
                for site, (_, reply) in held.items():
                    federation.inbox.put(("result", site, executors.FLModelUtils.from_shareable(over_the_wire(reply))))

    federation.serve = slow
    log = federation.run()
    assert log[-1]["versions"] == 1
    assert len(asked) > 1
    assert not _of(log, "refused") + _of(log, "aborted")


# -- what stays at a site --------------------------------------------------------------------------------------------


def test_local_parameters_stay_at_the_site_from_round_to_round(aggregate, opened):
    federation = aggregate(
        versions=2,
        executor={"model_args": {"hidden_channels": [4]}, "local_parameters": ["output.weight", "output.bias"]},
    )
    seen = []

    def on_reply(site, task, reply):
        if federation.stages[-1] == (A, "masked"):
            seen.append(federation.sites[A].session.local.copy())
        return [reply]

    federation.on_reply = on_reply
    log = federation.run()
    assert log[-1]["versions"] == 2
    session = federation.sites[A].session
    assert session.layout.size == 4 * 30 + 4 + 1
    assert opened[0][1].shape == (session.layout.size,)
    assert len(seen) == 2
    assert seen[0].shape == (5,)
    assert np.abs(seen[1] - seen[0]).max() > 0
    others = federation.sites[B].session.local
    assert np.abs(others - session.local).max() > 0


# -- noise that is shared out ------------------------------------------------------------------------------------------


def test_shared_out_noise_is_in_the_sum_and_no_update_leaves_without_it(masked, opened):
    dp = {"noise_multiplier": 4.0, "sampling_rate": 0.5, "steps": 1, "clip_norm": 0.5, "expected_batch_size": 30.0}
    federation, masks = masked(
        versions=3, masked={"distributed": True}, executor={"dp": {**dp, "delta": 1e-5, "unit": "patient"}}
    )
    log = federation.run()
    assert log[-1]["versions"] == 3
    assert log[0]["masked"]["distributed"] is True
    errors = []
    for number, (survivors, mean, cohort) in enumerate(opened):
        deltas = dict(masks[4 * number : 4 * number + 4])
        errors.append(mean - _expected(deltas, dict.fromkeys(FIVE, 0.2), cohort, survivors))
        plain = np.linalg.norm(list(deltas.values()), axis=1)
        assert plain.max() <= 0.5 * 1.3  # a step of lr 1 over a batch of 30: small, and without noise
    share = 4.0 * 1.0 * 0.5 / 30.0
    spread = np.concatenate(errors).std()
    assert 0.8 * share / 2 < spread < 1.2 * share / 2  # four shares, divided by four
    tickets = [open_message(reply)[0]["ready"] for _, _, reply in federation.seen if "ready" in open_message(reply)[0]]
    event = executors.signing.unverified_body(tickets[0])["dp_event"]
    assert event["mechanism"] == "distributed_discrete_gaussian"
    assert event["noise_multiplier"] == pytest.approx(4.0 * np.sqrt(3 - 1))


def test_a_cohort_that_hides_less_than_was_accounted_gets_no_share_of_noise(masked, monkeypatch):
    dp = {"noise_multiplier": 4.0, "sampling_rate": 0.5, "steps": 1, "clip_norm": 0.5, "expected_batch_size": 30.0}
    federation, masks = masked(
        versions=1, masked={"distributed": True}, executor={"dp": {**dp, "delta": 1e-5, "unit": "patient"}}
    )
    monkeypatch.setattr(plan, "least", lambda job: 4)  # the sites accounted four shares; three may open
    log = federation.run()
    assert masks == []
    assert {
        said(reply)
        for (_, stage), (*_, reply) in zip(federation.stages, federation.seen, strict=True)
        if stage == "masked"
    } == {"cohort_aborted"}
    assert not _of(log, "version")
    assert log[-1]["reason"] == "3 cohorts one after another opened nothing"
