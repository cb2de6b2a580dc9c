"""A cohort of honest sites: the sum is exact for every allowed pattern of drop-outs, and ends with the reason else."""

import itertools
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon import signing
from cordon.errors import ProtocolAbort
from cordon.job import Staleness
from cordon.secagg import groups, masking
from fakes.secagg_cohort import NOW, STAGES, Cohort, names, terms_for

Leaving = tuple[str, str]
LEAVINGS: list[Leaving] = list(itertools.product(STAGES, ("down", "up")))


def outcome(cohort: Cohort, gone: dict[str, Leaving]) -> tuple[str, tuple[str, ...]]:
    """What README.md says must happen: "opened" or the stage it ends in, and the survivors."""
    view = cohort.server.view
    heard = {
        stage: [s for s in cohort.sites if s not in gone or STAGES.index(gone[s][0]) > STAGES.index(stage)]
        for stage in STAGES
    }
    for stage in STAGES:
        if len(heard[stage]) < (view.least if stage in ("shares", "masked") else view.threshold):
            return stage, ()
    return "opened", tuple(heard["masked"])


def check(cohort: Cohort, gone: dict[str, Leaving]) -> None:
    """Run ``cohort``; the outcome and every bit of the sum must be the expected ones."""
    end, survivors = outcome(cohort, gone)
    if end == "opened":
        opened = cohort.run()
        assert opened is not None and opened.survivors == survivors
        assert (cohort.total == cohort.expected(survivors)).all()
    else:
        with pytest.raises(ProtocolAbort, match=f"lost: stage {end}: "):
            cohort.run()
        assert cohort.server.stage == "aborted"
        with pytest.raises(ProtocolAbort, match="there is no sum"):
            cohort.server.result()
    assert not cohort.errors and not cohort.refused and not cohort.server.faults


def test_five_sites_open_the_exact_sum() -> None:
    cohort = Cohort(5)
    opened = cohort.run()
    assert opened is not None
    assert opened.survivors == cohort.sites
    assert (cohort.total == cohort.expected(cohort.sites)).all()
    np.testing.assert_allclose(opened.mean, np.mean(list(cohort.vectors.values()), axis=0), atol=1e-7)
    assert opened.mean.dtype == np.float32
    assert {member.state for member in cohort.members.values()} == {"unmasked"}


@pytest.mark.parametrize("leaving", LEAVINGS, ids="-".join)
def test_every_subset_of_four_sites_may_be_killed_at_every_point(leaving: Leaving) -> None:
    for count in range(5):
        for killed in itertools.combinations(names(4), count):
            check(Cohort(4, size=3, gone=dict.fromkeys(killed, leaving)), dict.fromkeys(killed, leaving))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_sites_killed_at_different_points_leave_an_exact_sum_or_the_reason(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 8))
    c = data.draw(st.integers(0, 2))
    u_min = data.draw(st.integers(3, count))
    if c > u_min - 2:
        c = u_min - 2
    point = st.one_of(st.none(), st.none(), st.sampled_from(LEAVINGS))
    gone = {site: at for site in names(count) if (at := data.draw(point)) is not None}
    size = data.draw(st.integers(1, 20))
    bits: Any = data.draw(st.sampled_from((32, 64)))
    if max((count + c) // 2 + 1, u_min) > count:
        with pytest.raises(ProtocolAbort, match="too_few"):
            Cohort(count, c=c, u_min=u_min)
        return
    check(Cohort(count, size=size, c=c, u_min=u_min, ring_bits=bits, gone=gone), gone)


def test_forty_sites_and_not_one_more() -> None:
    longest = [f"{'x' * 58}-{number:04}" for number in range(40)]  # 63 characters
    gone = {longest[7]: ("masked", "down")}
    cohort = Cohort(longest, size=3, gone=gone)
    check(cohort, gone)
    assert max(len(each.envelope["payload"]) for each in cohort.sent) < signing.MAX_ENVELOPE / 2
    with pytest.raises(ProtocolAbort, match="bad_roster: 41 sites in one cohort, at most 40"):
        Cohort(41)


def test_weights_and_staleness_scale_the_update_and_weights_alone_divide_the_sum() -> None:
    weights = {"site-01": 0.2, "site-02": 0.1, "site-03": 0.1}
    hinge = Staleness(function="hinge", a=1.0, b=0)
    cohort = Cohort(3, weights=weights, staleness=hinge, version=3, bases={"site-01": 3, "site-02": 2, "site-03": 0})
    cohort.vectors = {site: np.ones(8, np.float32) for site in cohort.sites}
    opened = cohort.run()
    assert opened is not None and opened.weight == 2.0
    np.testing.assert_allclose(opened.mean, (1 + 0.5 / 2 + 0.5 / 4) / 2.0, rtol=1e-7)


def test_identical_fresh_updates_of_ones_give_exactly_one() -> None:
    weights = {"site-01": 0.3, "site-02": 0.31, "site-03": 0.7}
    cohort = Cohort(3, weights=weights)
    cohort.vectors = {site: np.ones(8, np.float32) for site in cohort.sites}
    opened = cohort.run()
    assert opened is not None
    np.testing.assert_allclose(opened.mean, 1.0, atol=1e-7)


def test_shares_of_noise_are_in_the_sum_to_the_bit() -> None:
    cohort = Cohort(4, noise=0.01, gone={"site-02": ("masked", "up")})
    cohort.noises = {site: np.random.default_rng(n).integers(-(2**20), 2**20, 8) for n, site in enumerate(cohort.sites)}
    opened = cohort.run()
    assert opened is not None
    assert (cohort.total == cohort.expected(opened.survivors)).all()


def test_a_site_given_up_that_answers_in_time_is_in_and_one_that_answers_late_is_out() -> None:
    cohort = Cohort(5)
    answers = {site: cohort.call(site, "shares", cohort.server.message(site)) for site in cohort.sites}
    for site in cohort.sites[:3]:
        cohort.server.take(site, *answers[site], now=NOW)
    cohort.server.lost("site-04")
    cohort.server.lost("site-05")
    assert cohort.server.complete
    cohort.server.take("site-04", *answers["site-04"], now=NOW)  # the stage was still open
    cohort.server.advance(NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order: stage masked wants nothing") as caught:
        cohort.server.take("site-05", *answers["site-05"], now=NOW)
    assert caught.value.blame == ""
    assert cohort.server.waiting == cohort.sites[:4]
    with pytest.raises(ProtocolAbort, match="has nothing for site-05"):
        cohort.server.message("site-05")
    opened = cohort.run()
    assert opened is not None and opened.survivors == cohort.sites[:4]


def test_a_vector_that_comes_after_the_stage_closed_is_not_in_the_sum() -> None:
    cohort = Cohort(5)
    cohort.step()
    late = {}
    for site in cohort.sites:
        answer = cohort.call(site, "masked", cohort.server.message(site))
        if site == "site-05":
            late[site] = answer
            cohort.server.lost(site)
        else:
            cohort.server.take(site, *answer, now=NOW)
    assert cohort.server.masked_by == cohort.sites[:4]
    cohort.server.advance(NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        cohort.server.take("site-05", *late["site-05"], now=NOW)
    opened = cohort.run()
    assert opened is not None and opened.survivors == cohort.sites[:4]
    assert (cohort.total == cohort.expected(cohort.sites[:4])).all()
    assert cohort.members["site-05"].spent


def test_an_answer_is_taken_once() -> None:
    cohort = Cohort(3)
    answer = cohort.call("site-01", "shares", cohort.server.message("site-01"))
    cohort.server.take("site-01", *answer, now=NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        cohort.server.take("site-01", *answer, now=NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        cohort.server.take("stranger", *answer, now=NOW)
    with pytest.raises(ProtocolAbort, match="bad_message: stage shares takes no payload"):
        cohort.server.take("site-02", answer[0], b"x", now=NOW)


def test_no_mask_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key that members add: each pair's once by either side with opposite signs, each self mask's once, ever."""
    used: list[tuple[bytes, int]] = []
    add = masking.add_streams

    def record(acc: Any, masks: Any) -> None:
        used.extend(masks)
        add(acc, masks)

    monkeypatch.setattr(masking, "add_streams", record)
    seen: set[bytes] = set()
    for number in range(3):  # the same sites, vectors and base: only the cohort differs
        used.clear()
        cohort = Cohort(5, cohort_id=f"cohort-{number:016}")
        cohort.run(until="confirm")
        signs = {key: sorted(sign for found, sign in used if found == key) for key, _ in used}
        assert Counter(map(tuple, signs.values())) == {(1,): 5, (-1, 1): 10}
        assert not seen & set(signs)
        seen |= set(signs)


def test_the_server_keeps_two_vectors_at_most() -> None:
    size = 200_000
    cohort = Cohort(6, size=size, gone={"site-06": ("masked", "down")})
    cohort.step()
    answers = [(site, *cohort.call(site, "masked", cohort.server.message(site))) for site in cohort.sites[:5]]
    cohort.server.lost("site-06")
    tracemalloc.start()
    for site, envelope, payload in answers:
        assert len(payload) == 4 * size
        cohort.server.take(site, envelope, payload, now=NOW)
    cohort.server.advance(NOW)
    cohort.run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 4 * size + 1.6e6  # chunks of the cipher and of the decoder beside


def test_advance_after_the_end_is_refused() -> None:
    cohort = Cohort(3)
    cohort.run()
    with pytest.raises(ProtocolAbort, match="out_of_order: the cohort is opened"):
        cohort.server.advance(NOW)


# -- groups ----------------------------------------------------------------------------------------------------------


def drawn(sites: int, size: int) -> groups.GroupMap:
    return groups.draw({site: site.encode().ljust(32) for site in names(sites)}, size)


def test_sixteen_sites_in_groups_of_four_bear_one_attacker() -> None:
    """f = 1: the attacker's poison spoils its own group's mean, and a median over the four means does not move."""
    group_map, size, attacker = drawn(16, 4), 8, "site-05"
    means = []
    for number, group in enumerate(group_map):
        vectors = {site: np.full(size, 0.25, np.float32) for site in group}
        if attacker in group:
            vectors[attacker] = np.full(size, -1.0, np.float32)  # as far as the ring lets an honest machine go
        killed = {group[0]: ("masked", "up")} if attacker not in group and number % 2 else {}
        cohort = Cohort(
            group, size=size, study=names(16), vectors=vectors, groups=group_map, gone=killed,
            cohort_id=f"group-{number:016}",
        )  # fmt: skip
        opened = cohort.run()
        assert opened is not None and len(opened.survivors) == 4 - len(killed)
        means.append(opened.mean)
    assert min(float(mean.min()) for mean in means) < 0
    np.testing.assert_allclose(np.median(np.stack(means), axis=0), 0.25, atol=1e-6)
    assert not np.allclose(np.mean(np.stack(means), axis=0), 0.25, atol=0.05)  # a mean would have moved


def test_a_group_that_a_site_stops_stops_no_other() -> None:
    group_map = drawn(16, 4)
    outcomes = []
    for number, group in enumerate(group_map):
        gone = {group[0]: ("masked", "down"), group[1]: ("confirm", "up")} if number == 0 else {}
        cohort = Cohort(group, study=names(16), groups=group_map, c=1, gone=gone, cohort_id=f"group-{number:016}")
        outcomes.append(outcome(cohort, gone)[0])
        check(cohort, gone)
    assert outcomes == ["confirm", "opened", "opened", "opened"]  # 3 = 2f + 1 are left


def test_nine_sites_in_groups_of_three_bear_no_drop_out_and_say_so() -> None:
    group_map = drawn(9, 3)
    group = group_map[0]
    cohort = Cohort(group, study=names(9), groups=group_map, c=1, gone={group[1]: ("shares", "up")})
    with pytest.raises(ProtocolAbort, match=f"lost: stage shares: 2 sites answered, want 3; without {group[1]}"):
        cohort.run()
    with pytest.raises(ProtocolAbort, match="too_few: 2 sites in the roster, want 3"):
        Cohort(group[:2], study=names(9), groups=group_map, c=1)


def test_a_cohort_over_two_groups_is_none() -> None:
    group_map = drawn(9, 3)
    mixed = (*group_map[0][:2], *group_map[1][:2])
    with pytest.raises(ProtocolAbort, match="bad_roster: the roster is not within one group"):
        Cohort(mixed, study=names(9), groups=group_map)
    assert terms_for(names(9), groups=group_map).group_map_digest == groups.digest(group_map)
