"""Masked mode against who runs the federation and against its hospitals: real sites; the wire is the attacker's."""

import msgspec
import numpy as np
import pytest

from cordon import messages, signing
from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.attest.keys import ProcessKeys
from cordon.errors import PolicyRefused, ProtocolAbort
from cordon.flare import executors, masked_site
from cordon.flare.model_chain import ModelChain
from cordon.secagg import groups as group_maps
from cordon.secagg import wire
from cordon.secagg.certificates import certify
from fakes.federation_kits import make_kits, mtls_key, stand
from fakes.fixtures import FIVE, NINE, TEN
from fakes.in_process import JOB_ID, Federation, _now, masked_files, message, open_message, over_the_wire, said
from fakes.masked_hand import MaskedHand

A, B, C, D, E = FIVE
FOUR = (A, B, C, D)
THREE_GROUPS = {
    "masked": {"groups": {"size": 3, "f": 1}},
    "buffer": 3,
    "rule": "median",
}


def _of(log, kind, site=None):
    return [event for event in log if event["kind"] == kind and site in (None, event.get("site"))]


@pytest.fixture
def play(masked_kits, clock, remembered):
    """Makes a coordinator by hand, whose sites are attested."""

    def make(hospitals=FOUR, kits=None, **changes):
        made = MaskedHand(kits or masked_kits, masked_files(**changes), hospitals)
        made.attest()
        return made

    return make


@pytest.fixture
def cohort(play):
    """(coordinator, a cohort of four that is about to get its roster)."""
    coordinator = play()
    for site in FOUR:
        coordinator.ready(site)
    return coordinator, coordinator.start(FOUR)


def _site(coordinator, name=A):
    return coordinator.hands[name].site.session


# -- a coordinator that asks twice ------------------------------------------------------------------------------------


def test_an_honest_cohort_opens_and_each_site_answers_each_stage_once(cohort, trained):
    coordinator, aggregation = cohort
    stages = [coordinator.stage(aggregation) for _ in range(4)]
    assert stages == ["masked", "confirm", "unmask", "opened"]
    deltas = [
        messages.unpack("delta", _site(coordinator, site).trained.plaintext, coordinator.first.layout.size)
        for site in FOUR
    ]
    assert np.abs(aggregation.result().mean - np.mean(deltas, axis=0)).max() < 1e-7
    for stage in ("shares", "masked", "confirm", "unmask"):
        assert said(coordinator.say(A, stage, None)) in ("cohort_aborted", "bad_message")
    assert _site(coordinator).masked.aborts == 0


def test_a_ticket_asked_again_before_masking_gets_fresh_keys_and_no_new_training(play, trained):
    coordinator = play()
    first = coordinator.ready(A, "one-and-the-same-ticket")
    again = coordinator.ready(A, "one-and-the-same-ticket")
    assert again.ticket == first.ticket
    assert {first.mask_key, first.encryption_key}.isdisjoint({again.mask_key, again.encryption_key})
    assert len(trained) == 1
    assert _site(coordinator).rounds_used == 1


def test_the_ticket_before_the_one_that_was_made_fresh_joins_no_cohort(cohort):
    coordinator, aggregation = cohort  # with A's first ticket
    coordinator.ready(A, aggregation.view.tickets[A].ticket)
    assert said(coordinator.say(A, "shares", aggregation.message(A))) == "cohort_aborted"


@pytest.mark.parametrize("upto", ["masked", "confirm", "unmask"])
def test_a_masked_update_is_never_masked_again(cohort, trained, upto):
    coordinator, aggregation = cohort
    while coordinator.stage(aggregation) != "opened" and aggregation.stage != upto:
        pass
    if upto == "masked":  # the site answers, the coordinator says it got nothing
        assert "masked" in open_message(coordinator.say(A, "masked", aggregation.message(A)))[0]
    ticket = aggregation.view.tickets[A].ticket
    for _ in range(2):
        assert said(coordinator.train(A, ticket)) == masked_site.SPENT
    other = coordinator.start(FOUR)  # with the same tickets, under another id
    assert said(coordinator.say(A, "shares", other.message(A))) == "cohort_aborted"
    assert said(coordinator.say(A, "masked", aggregation.message(B) if upto == "masked" else None)) != ""
    assert said(coordinator.train(A, ticket)) == masked_site.SPENT
    assert _site(coordinator).rounds_used == 1


def test_a_stage_asked_twice_ends_the_cohort_at_the_site(cohort):
    coordinator, aggregation = cohort
    coordinator.stage(aggregation)
    assert open_message(coordinator.say(A, "masked", aggregation.message(A)))[1]
    again = coordinator.say(A, "masked", aggregation.message(A))
    assert said(again) == "cohort_aborted"
    assert said(coordinator.say(A, "confirm", aggregation.message(A))) == "cohort_aborted"


@pytest.mark.parametrize("stage", ["masked", "confirm", "unmask"])
def test_a_stage_before_its_time_ends_the_cohort_at_the_site(cohort, stage):
    coordinator, aggregation = cohort
    assert said(coordinator.say(A, stage, aggregation.message(A))) == "cohort_aborted"
    assert said(coordinator.say(A, "shares", aggregation.message(A))) == "cohort_aborted"


def test_two_rosters_for_one_ticket_get_one_answer(play):
    """Sums over {A, B, C, D} and {A, B, C, E} would differ by two updates; over chosen sets, by one."""
    coordinator = play(FIVE)
    for site in FIVE:
        coordinator.ready(site)
    first, second = coordinator.start(FOUR), coordinator.start((A, B, C, E))
    assert "shares" in open_message(coordinator.say(A, "shares", first.message(A)))[0]
    assert said(coordinator.say(A, "shares", second.message(A))) == "cohort_aborted"
    assert said(coordinator.say(A, "masked", None)) == "cohort_aborted"


def test_two_survivor_sets_get_one_signature(cohort):
    coordinator, aggregation = cohort
    coordinator.stage(aggregation)
    coordinator.stage(aggregation)
    honest = signing.unverified_body(aggregation.message(A))
    other = wire.Survivors(v=1, ctx=honest["ctx"], r1=tuple(honest["r1"]), survivors=(A, B, C))
    assert "confirmation" in open_message(coordinator.say(A, "confirm", aggregation.message(A)))[0]
    assert said(coordinator.say(A, "confirm", coordinator.sign(other))) == "cohort_aborted"
    assert said(coordinator.say(A, "unmask", None)) == "cohort_aborted"


def test_after_too_many_ended_cohorts_a_site_trains_no_more(play, trained):
    coordinator = play(masked={"max_aborts": 3}, rounds_per_site=8)
    for number in range(4):  # the policy bears three
        for site in FOUR:
            coordinator.ready(site)
        aggregation = coordinator.start(FOUR)
        coordinator.stage(aggregation)
        assert "masked" in open_message(coordinator.say(A, "masked", aggregation.message(A)))[0]
        for site in (B, C, D):
            coordinator.say(site, "masked", aggregation.message(site))
        assert _site(coordinator).masked.aborts == number
    rounds = len(trained)
    assert said(coordinator.train(A)) == masked_site.TOO_MANY_ABORTS
    assert _site(coordinator).masked.aborts == 4
    assert len(trained) == rounds
    assert said(coordinator.train(A)) == masked_site.TOO_MANY_ABORTS


def test_a_cohort_that_ended_before_masking_is_not_counted(play):
    coordinator = play()
    for _ in range(5):
        for site in FOUR:
            coordinator.ready(site, f"the-only-ticket-of-{site}")
        coordinator.stage(coordinator.start(FOUR))
    assert _site(coordinator).masked.aborts == 0


# -- a coordinator that lies about who is there, or about the model ----------------------------------------------------


def test_a_hospital_that_the_study_does_not_know_is_in_no_cohort(cohort):
    """The operator mints a site: it has a key, and no mTLS key of the roster certified it."""
    coordinator, aggregation = cohort
    minted = ProcessKeys.generate()
    honest = aggregation.view.tickets[D]
    certificate = certify(mtls_key("server"), coordinator.kit.study.digest, JOB_ID, D, minted.signing_key.public_key())
    fake = wire.sign(minted.signing_key, msgspec.structs.replace(honest, certificate=certificate))
    body = signing.unverified_body(aggregation.message(A))
    tickets = tuple(each for each in body["tickets"] if signing.unverified_body(each)["site"] != D)
    roster = wire.Roster(v=1, job=JOB_ID, cohort="f" * 32, version=0, tickets=(*tickets, fake))
    assert said(coordinator.say(A, "shares", coordinator.sign(roster))) == "cohort_aborted"
    assert _site(coordinator).masked._member.view is None


def test_a_roster_below_the_site_s_floor_is_refused(cohort):
    coordinator, aggregation = cohort
    body = signing.unverified_body(aggregation.message(A))
    roster = wire.Roster(v=1, job=JOB_ID, cohort="f" * 32, version=0, tickets=tuple(body["tickets"][:2]))
    assert said(coordinator.say(A, "shares", coordinator.sign(roster))) == "cohort_aborted"


def test_a_roster_of_another_process_is_refused(cohort):
    coordinator, aggregation = cohort
    stranger = ProcessKeys.generate()
    body = wire.verify(aggregation.message(A), wire.Roster, coordinator.keys.signing_key.public_key(), _now())
    assert said(coordinator.say(A, "shares", wire.sign(stranger.signing_key, body))) == "cohort_aborted"


def test_sites_on_two_branches_of_the_model_are_in_no_cohort_together(play):
    """Each alone could have its update read out of its own next version."""
    coordinator = play()
    for site in FOUR:
        coordinator.ready(site)
        hand = coordinator.hands[site]
        hand.next_version(hand.w + np.float32(0.5 if site == B else 0.25))
        coordinator.ready(site)
    with pytest.raises(ProtocolAbort, match="two models of version 1"):
        coordinator.start(FOUR, version=1)  # an honest one would not even send it
    tickets = tuple(envelope for _, envelope, _ in coordinator.tickets.values())
    roster = coordinator.sign(wire.Roster(v=1, job=JOB_ID, cohort="f" * 32, version=1, tickets=tickets))
    for site in FOUR:
        assert said(coordinator.say(site, "shares", roster)) == "cohort_aborted"


def test_a_site_that_has_not_seen_the_others_model_pins_it_by_their_signature(play):
    """B holds version 1; A, still at 0, learns its head from the roster, and from then on takes no other version 1."""
    coordinator = play()
    for site in FOUR:
        hand = coordinator.hands[site]
        coordinator.ready(site)
        if site != A:
            hand.next_version()
            coordinator.ready(site)
    links = coordinator.hands[B].links
    aggregation = coordinator.start(FOUR, version=1)
    reply = coordinator.say(A, "shares", aggregation.message(A), links={"after": 0, "sha256": links[1:]})
    assert "shares" in open_message(reply)[0]
    assert _site(coordinator).chain.heads == _site(coordinator, B).chain.heads
    assert _site(coordinator).chain.version == 0
    hand = coordinator.hands[A]
    hand.next_version(hand.w + np.float32(3.0))
    assert said(coordinator.train(A)) == "bad_message"


@pytest.mark.parametrize(
    "links",
    [None, {"after": 0}, {"after": 0, "sha256": []}, {"after": 0, "sha256": [1]}, {"after": 5, "sha256": ["0" * 64]}],
)
def test_a_roster_without_links_that_lead_to_its_version_is_refused(play, links):
    coordinator = play()
    for site in FOUR:
        coordinator.ready(site)
    aggregation = coordinator.start(FOUR, version=1)
    before = _site(coordinator).chain
    assert said(coordinator.say(A, "shares", aggregation.message(A), links=links)) == "bad_message"
    assert _site(coordinator).chain == before


def test_links_to_another_chain_than_the_tickets_name_are_refused(play):
    coordinator = play()
    for site in FOUR:
        coordinator.ready(site)
        if site != A:
            coordinator.hands[site].next_version()
            coordinator.ready(site)
    aggregation = coordinator.start(FOUR, version=1)
    before = _site(coordinator).chain
    wrong = {"after": 0, "sha256": ["0" * 64]}
    assert said(coordinator.say(A, "shares", aggregation.message(A), links=wrong)) == "cohort_aborted"
    assert _site(coordinator).chain == before


def test_what_is_known_of_the_chain_keeps_an_older_ticket_good():
    first, second, third = "1" * 64, "2" * 64, "3" * 64
    chain = ModelChain().extend({"after": -1, "sha256": [first, second, third]}, 2, first)
    header = messages.ModelHeader(
        v=1,
        job="j",
        ticket="t",
        version=1,
        model_chain_head=chain.heads[1],
        layout_digest="0" * 64,
        payload_sha256="0" * 64,
    )
    seen = chain.follow(header, {"after": 1, "sha256": []}, second, first)
    assert (seen.version, seen.heads) == (1, chain.heads)
    with pytest.raises(messages.SignatureError, match="does not continue"):
        chain.follow(header, {"after": 1, "sha256": []}, third, first)
    assert chain.upto(0).heads == chain.heads[:1]
    assert [chain.head(number) for number in (-1, 0, 3)] == [None, chain.heads[0], None]


# -- leases and processes ----------------------------------------------------------------------------------------------


def test_no_stage_for_a_coordinator_whose_lease_is_over(cohort, clock):
    coordinator, aggregation = cohort
    coordinator.stage(aggregation)
    clock.now += _site(coordinator).kit.attest_policy.lease_s + 1
    assert said(coordinator.say(A, "masked", aggregation.message(A))) == "coordinator_not_attested"
    assert not _site(coordinator).masked.spent


def test_no_stage_for_a_coordinator_whose_parent_is_quarantined(cohort):
    coordinator, aggregation = cohort
    coordinator.stage(aggregation)
    stand(_site(coordinator).kit.root, "server", "quarantined", reasons=("measurement",))
    assert said(coordinator.say(A, "masked", aggregation.message(A))) == "coordinator_not_attested"


def test_a_lease_that_ends_while_the_update_is_masked_holds_it_back(cohort, monkeypatch):
    coordinator, aggregation = cohort
    coordinator.stage(aggregation)
    serve = masked_site.MaskedSite.serve

    def slow(self, parts, now):
        answer = serve(self, parts, now)
        stand(self._session.kit.root, "server", "unattested")
        return answer

    monkeypatch.setattr(masked_site.MaskedSite, "serve", slow)
    assert said(coordinator.say(A, "masked", aggregation.message(A))) == "coordinator_not_attested"
    assert _site(coordinator).masked.spent  # it was masked: the bytes are gone, and no others are made of it


def test_another_process_is_not_met_by_a_message_without_a_model(cohort):
    """What tells a new process from an older copy of the state is that its model continues the chain."""
    coordinator, aggregation = cohort
    hand = coordinator.hands[A]
    pinned = _site(coordinator).coordinator
    hand.attest()
    other = ProcessKeys.generate()
    reply = coordinator.say(A, "shares", aggregation.message(A), evidence=hand.evidence(keys=other))
    assert said(reply) == "bad_message"
    assert _site(coordinator).coordinator == pinned


def test_a_message_of_secure_aggregation_before_a_challenge_is_refused(masked_kits, clock, remembered):
    coordinator = MaskedHand(masked_kits, masked_files(), (A,))
    coordinator.met.add(A)
    assert said(coordinator.say(A, "commit", None)) == "bad_message"


def test_a_site_that_refused_the_job_takes_no_part_in_secure_aggregation(tmp_path, clock, remembered):
    kits = make_kits(tmp_path / "floors", FOUR, site={A: {"masked": {"u_min": 4}}})
    coordinator = MaskedHand(kits, masked_files(), (A,))
    assert "refusal" in coordinator.hands[A].attest()
    assert said(coordinator.say(A, "commit", None)) != ""


def test_a_second_challenge_does_not_get_past_a_refusal_of_shared_out_noise(
    masked_kits, clock, remembered, monkeypatch
):
    """A site that cannot account for the job's noise must not train only because it is asked again."""

    def refuse(kit, job, size):
        raise PolicyRefused([("noise_not_accountable", "the ring is too coarse")])

    monkeypatch.setattr(masked_site.plan, "judge_noise", refuse)  # all else about this job is allowed
    dp = {"noise_multiplier": 4.0, "sampling_rate": 0.5, "steps": 1, "clip_norm": 0.5, "expected_batch_size": 30.0}
    files = masked_files(masked={"distributed": True}, executor={"dp": {**dp, "delta": 1e-5, "unit": "patient"}})
    coordinator = MaskedHand(masked_kits, files, (A,))
    hand = coordinator.hands[A]
    for _ in range(2):
        assert "refusal" in hand.attest()
        assert _site(coordinator).patients is None
        assert "ready" not in open_message(hand.train(hand.model()))[0]


def test_a_sealed_job_has_no_secure_aggregation(hand):
    made = hand()
    made.attest()
    reply = made.site.execute(executors.SECAGG_TASK, message({"stage": "commit"}))
    assert reply.get_return_code() == executors.ReturnCode.TASK_UNKNOWN


@pytest.mark.parametrize("stage", [None, "", "mask", 7, ["masked"]])
def test_a_message_without_a_stage_is_refused(cohort, stage):
    coordinator, _ = cohort
    assert said(coordinator.say(A, stage, None)) == "bad_message"


@pytest.mark.parametrize("roster", [None, {}, "x", {"payload": "!", "payloadType": "", "signatures": []}, [1]])
def test_a_roster_that_is_no_message_is_refused(cohort, roster):
    coordinator, _ = cohort
    assert said(coordinator.say(A, "shares", roster)) in ("bad_message", "cohort_aborted")


# -- the group map ----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawing(play, made_nine_kits, tmp_path):
    """A coordinator of nine sites that have committed: (coordinator, commitments, Commits envelope)."""
    import shutil

    kits = shutil.copytree(made_nine_kits, tmp_path / "nine")
    coordinator = play(NINE, kits, **THREE_GROUPS)
    commits = {site: open_message(coordinator.say(site, "commit", None))[0]["commit"] for site in NINE}
    return coordinator, commits


def _commits(coordinator, commits):
    return coordinator.sign(wire.Commits(v=1, job=JOB_ID, commits=tuple(commits[site] for site in sorted(commits))))


def _reveals(coordinator, reveals):
    return coordinator.sign(wire.Reveals(v=1, job=JOB_ID, reveals=tuple(reveals[site] for site in sorted(reveals))))


def _revealed(coordinator, commits):
    message = _commits(coordinator, commits)
    return {site: open_message(coordinator.say(site, "reveal", message))[0]["reveal"] for site in NINE}


def test_every_site_computes_the_same_map_and_holds_to_it(drawing):
    coordinator, commits = drawing
    reveals = _revealed(coordinator, commits)
    maps = {site: open_message(coordinator.say(site, "map", _reveals(coordinator, reveals)))[0]["map"] for site in NINE}
    pinned = _site(coordinator).masked.groups
    assert set(maps.values()) == {group_maps.digest(pinned)}
    assert sorted(site for group in pinned for site in group) == sorted(NINE)
    assert [len(group) for group in pinned] == [3, 3, 3]
    # A second one, the very same or drawn anew, is refused.
    for _ in range(2):
        assert said(coordinator.say(A, "map", _reveals(coordinator, reveals))) == "cohort_aborted"
    assert said(coordinator.say(A, "commit", None)) == "cohort_aborted"
    assert said(coordinator.say(A, "reveal", _commits(coordinator, commits))) == "cohort_aborted"
    assert _site(coordinator).masked.groups == pinned
    # A cohort over two groups is none of its.
    for site in NINE:
        coordinator.ready(site, groups=pinned)
    own = next(group for group in pinned if A in group)
    other = next(group for group in pinned if A not in group)
    mixed = (A, *other[:2])
    tickets = tuple(coordinator.tickets[site][1] for site in mixed)
    roster = coordinator.sign(wire.Roster(v=1, job=JOB_ID, cohort="f" * 32, version=0, tickets=tickets))
    assert said(coordinator.say(A, "shares", roster)) == "cohort_aborted"
    aggregation = coordinator.start(own, groups=pinned)
    left = [site for site in own if site != A]
    assert "shares" in open_message(coordinator.say(left[0], "shares", aggregation.message(left[0])))[0]


def test_no_site_reveals_for_two_sets_of_commitments(drawing):
    coordinator, commits = drawing
    assert "reveal" in open_message(coordinator.say(A, "reveal", _commits(coordinator, commits)))[0]
    fewer = {site: commits[site] for site in NINE[:8]}
    assert said(coordinator.say(A, "reveal", _commits(coordinator, fewer))) == "cohort_aborted"
    assert _site(coordinator).masked.groups is None


def test_a_map_that_leaves_a_reveal_out_is_refused(drawing):
    """Whoever could leave one out after it saw all would choose between maps."""
    coordinator, commits = drawing
    reveals = _revealed(coordinator, commits)
    fewer = {site: reveals[site] for site in NINE[:8]}
    assert said(coordinator.say(A, "map", _reveals(coordinator, fewer))) == "cohort_aborted"
    assert said(coordinator.say(A, "map", _reveals(coordinator, reveals))) == "cohort_aborted"
    assert _site(coordinator).masked.groups is None


def test_no_ticket_before_the_map(drawing, trained):
    coordinator, _ = drawing
    assert said(coordinator.train(A)) == "bad_message"
    assert trained == []
    assert _site(coordinator).rounds_used == 0


def test_a_map_of_too_few_sites_is_refused(drawing):
    """Eight sites make two groups of three and more: fewer than 2f + 1."""
    coordinator, commits = drawing
    eight = {site: commits[site] for site in NINE[:8]}
    reveals = {
        site: open_message(coordinator.say(site, "reveal", _commits(coordinator, eight)))[0]["reveal"] for site in eight
    }
    assert said(coordinator.say(A, "map", _reveals(coordinator, reveals))) == "cohort_aborted"
    assert _site(coordinator).masked.groups is None


# -- a whole job in groups, and hospitals that lie ---------------------------------------------------------------------


@pytest.fixture
def nine(made_nine_kits, tmp_path, clock, remembered):
    """Makes a federation of nine hospitals in groups of three; ``lies``: hospital -> its ``unsafe_poc``."""
    import shutil

    def make(lies=None, **changes):
        folder = tmp_path / "nine"
        if lies:
            make_kits(folder, NINE, site={site: {"unsafe_poc": lie} for site, lie in lies.items()})
        else:
            shutil.copytree(made_nine_kits, folder)
        return Federation(folder, masked_files(**{**THREE_GROUPS, "versions": 2, **changes}), clock, NINE, at_once=9)

    return make


def test_a_job_in_groups_bears_a_lying_hospital(nine, monkeypatch):
    """It turns its update round and scales it up to the bound; its group's mean is one of three, and the median's."""
    means = []
    take = MaskedCoordinator.opened

    def look(self, cohort_id, survivors, mean, *, unspent=()):
        means.append((self._cohorts[cohort_id].cohort.group, tuple(survivors), np.array(mean)))
        take(self, cohort_id, survivors, mean, unspent=unspent)

    monkeypatch.setattr(MaskedCoordinator, "opened", look)
    federation = nine({A: {"scale_update": -100.0}})
    log = federation.run()
    assert log[-1]["reason"] == "all 2 versions made"
    (drawn,) = _of(log, "groups")
    assert sorted(site for group in drawn["groups"] for site in group) == sorted(NINE)
    pinned = {site.session.masked.groups for site in federation.sites.values()}
    assert len(pinned) == 1
    assert [list(group) for group in pinned.pop()] == drawn["groups"]
    assert log[0]["masked"] == {
        **{"cohort": 3, "threshold": 3, "u_min": 3, "c": 1, "ring_bits": 32, "distributed": False},
        **{"group_size": 3, "f": 1},
    }
    assert len(means) == 6
    liar = next(number for number, group in enumerate(drawn["groups"]) if A in group)
    norms = {group: float(np.linalg.norm(mean)) for group, _, mean in means[:3]}
    assert norms[liar] > 1.5 * max(norm for group, norm in norms.items() if group != liar)
    for group, survivors, _ in means:
        assert list(survivors) == drawn["groups"][group]
    versions = _of(log, "version")
    assert [sorted(each["sites"]) for each in versions] == [sorted(NINE)] * 2
    assert all(each["auc"] > 0.85 for each in versions)
    assert all(each["divergence"] is not None for each in versions)


def test_a_hospital_that_does_not_commit_is_not_in_the_map_and_out_of_the_job(tmp_path, clock, remembered):
    kits = make_kits(tmp_path / "ten", TEN)
    federation = Federation(kits, masked_files(**{**THREE_GROUPS, "versions": 2}), clock, TEN, at_once=10)
    federation.on_reply = lambda site, task, reply: (
        [] if (site, "commit") == federation.stages[-1] and site == A else [reply]
    )
    log = federation.run()
    assert [event["site"] for event in _of(log, "refused")] == [A]
    assert "no commitment to the group map in time" in _of(log, "lost", A)[0]["reason"]
    assert all(A not in group for group in _of(log, "groups")[0]["groups"])
    assert sorted(map(len, _of(log, "groups")[0]["groups"])) == [3, 3, 3]
    assert log[-1]["reason"] == "all 2 versions made"


def test_too_few_committed_hospitals_end_the_job_with_the_inequality_and_nobody_reveals(nine):
    federation = nine()
    federation.on_reply = lambda site, task, reply: [] if federation.stages[-1] == (A, "commit") else [reply]
    log = federation.run()
    assert "8 sites" in log[-1]["reason"]
    assert "floor(8/3) = 2 groups < 2f + 1 + may_stop = 3" in log[-1]["reason"]
    assert not [stage for _, stage in federation.stages if stage == "reveal"]
    assert not _of(log, "groups") + _of(log, "ticket")


def test_a_hospital_that_commits_and_does_not_reveal_ends_the_job_and_there_is_no_second_draw(nine):
    federation = nine()
    federation.on_reply = lambda site, task, reply: [] if federation.stages[-1] == (A, "reveal") else [reply]
    log = federation.run()
    assert log[-1]["reason"].startswith("no group map: bad_group_map: no reveal of hospital-a")
    assert log[-1]["versions"] == 0
    assert [stage for _, stage in federation.stages].count("commit") == 9
    assert not _of(log, "groups") + _of(log, "ticket")


def test_a_hospital_that_reveals_what_it_did_not_commit_to_is_blamed_and_ends_the_job(nine):
    federation = nine()

    def lie(site, task, reply):
        if federation.stages[-1] != (A, "reveal"):
            return [reply]
        session = federation.sites[A].session
        honest = open_message(reply)[0]["reveal"]
        body = wire.verify(honest, wire.Reveal, session.keys.signing_key.public_key(), _now())
        return [
            message(
                {"reveal": wire.sign(session.keys.signing_key, msgspec.structs.replace(body, contribution=b"x" * 32))}
            )
        ]

    federation.on_reply = lie
    log = federation.run()
    (rejected,) = _of(log, "rejected", A)
    assert (rejected["reason"], rejected["faults"]) == ("bad_secagg", 1)
    assert log[-1]["reason"].startswith("no group map")


# -- a hospital that lies in a cohort ----------------------------------------------------------------------------------


def _resigned(federation, site, reply, part, schema, **changes):
    """``reply`` with its message changed, and signed with the site's own attested key."""
    key = federation.sites[site].session.keys.signing_key
    parts, payload = open_message(reply)
    body = wire.verify(parts[part], schema, key.public_key(), _now())
    return message({part: wire.sign(key, msgspec.structs.replace(body, **changes))}, payload)


LIES = {
    "masked": ("masked", wire.Masked, lambda body: {"r1": body["r1"][:3]}),
    "confirm": ("confirmation", wire.Confirmation, lambda body: {"survivors": body["survivors"][:3]}),
    "unmask": (
        "unmask",
        wire.Unmask,
        lambda body: {
            "self_masks": dict(list(msgspec.convert(body["self_masks"], dict[str, wire.OpenedShare]).items())[1:])
        },
    ),
}


@pytest.mark.parametrize("stage", LIES)
def test_a_hospital_whose_signed_message_proves_it_wrong_is_blamed_and_the_others_open(aggregate, stage):
    part, schema, change = LIES[stage]
    federation = aggregate(versions=2, rounds_per_site=8)
    lies = []

    def lie(site, task, reply):
        if federation.stages[-1] != (B, stage):
            return [reply]
        lies.append(stage)
        body = signing.unverified_body(open_message(reply)[0][part])
        return [_resigned(federation, B, reply, part, schema, **change(body))]

    federation.on_reply = lie
    log = federation.run()
    rejected = _of(log, "rejected", B)
    assert [event["reason"] for event in rejected] == ["bad_secagg"] * len(lies)
    assert [event["faults"] for event in rejected] == list(range(1, len(lies) + 1))
    assert log[-1]["versions"] == 2
    assert bool(_of(log, "excluded", B)) == (len(lies) == 2)
    assert not _of(log, "aborted")


def test_a_vector_that_its_site_did_not_sign_is_nobody_s_fault_and_not_in_the_sum(aggregate):
    federation = aggregate(versions=1)

    def tamper(site, task, reply):
        if federation.stages[-1] != (B, "masked"):
            return [reply]
        parts, payload = open_message(reply)
        return [message(parts, bytes([payload[0] ^ 1]) + payload[1:])]

    federation.on_reply = tamper
    log = federation.run()
    (rejected,) = _of(log, "rejected", B)
    assert (rejected["reason"], rejected["faults"]) == ("bad_secagg", 0)
    assert B not in _of(log, "opened")[0]["survivors"]


def test_a_vector_longer_than_the_model_is_not_read(aggregate):
    federation = aggregate(versions=1)

    def inflate(site, task, reply):
        if federation.stages[-1] != (B, "masked"):
            return [reply]
        parts, payload = open_message(reply)
        return [message(parts, payload + bytes(4))]

    federation.on_reply = inflate
    log = federation.run()
    assert [event["reason"] for event in _of(log, "rejected", B)] == ["bad_signature"]
    assert log[-1]["versions"] == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"job": "another-job"}, "bad_header"),
        ({"ticket": "0" * 32}, "unknown_ticket"),
        ({"base_version": 7}, "wrong_base"),
        ({"model_chain_head": "0" * 64}, "wrong_base"),
        ({"layout_digest": "0" * 64}, "bad_secagg"),
        ({"mask_key": bytes(32)}, "bad_secagg"),
        ({"certificate": {}}, "bad_secagg"),
        ({"ledger": {"payload": ""}}, "bad_ledger"),
    ],
)
def test_a_ready_ticket_that_is_not_what_the_plan_says_is_a_fault(aggregate, changes, reason):
    federation = aggregate(versions=1)
    lies = []

    def lie(site, task, reply):
        if site != B or "ready" not in open_message(reply)[0] or lies:
            return [reply]
        lies.append(site)
        return [_resigned(federation, B, reply, "ready", wire.Ticket, **changes)]

    federation.on_reply = lie
    log = federation.run()
    assert [event["reason"] for event in _of(log, "rejected", B)][:1] == [reason]
    assert log[-1]["versions"] == 1


def test_a_ticket_signed_with_another_key_than_the_attested_one_does_not_count(aggregate):
    """The mTLS key, which FLARE's processes can read, certifies whatever it is told to."""
    federation = aggregate(versions=1)
    stolen = ProcessKeys.generate()

    def swap(site, task, reply):
        parts, _ = open_message(reply)
        if site != B or "ready" not in parts:
            return [reply]
        session = federation.sites[B].session
        body = wire.verify(parts["ready"], wire.Ticket, session.keys.signing_key.public_key(), _now())
        certificate = certify(
            session.kit.mtls_key, session.kit.study.digest, JOB_ID, B, stolen.signing_key.public_key()
        )
        return [
            message({"ready": wire.sign(stolen.signing_key, msgspec.structs.replace(body, certificate=certificate))})
        ]

    federation.on_reply = swap
    log = federation.run()
    assert {event["reason"] for event in _of(log, "rejected", B)} == {"bad_signature"}
    assert all(B not in event["sites"] for event in _of(log, "cohort"))


def test_an_answer_for_another_site_s_cohort_is_ignored(aggregate):
    federation = aggregate(versions=1)

    def cross(site, task, reply):
        if federation.stages[-1] == (B, "shares"):
            federation.inbox.put(("result", C, executors.FLModelUtils.from_shareable(over_the_wire(reply))))
        return [reply]

    federation.on_reply = cross
    log = federation.run()
    assert log[-1]["versions"] == 1
    assert not _of(log, "excluded")
