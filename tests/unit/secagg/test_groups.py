"""The group map: one honest contribution makes it random, and who leaves out or equivocates is noticed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.errors import ConfigError, ProtocolAbort
from cordon.secagg import certificates, groups, wire
from cordon.secagg.groups import CoordinatorDraw, SiteDraw
from cordon.secagg.wire import Commit, Commits, Reveal, Reveals
from fakes.secagg_cohort import JOB, NOW, STUDY, certificate_of, key_of, mtls_keys, names

SITES = names(7)


def site_draw(site: str, contribution: bytes | None = None, **changes: Any) -> SiteDraw:
    plan: dict[str, Any] = {
        "study": STUDY,
        "job": JOB,
        "site": site,
        "size": 3,
        "signing_key": key_of(site),
        "certificate": certificate_of(site),
        "coordinator_key": key_of("coordinator").public_key(),
        "mtls_keys": mtls_keys(SITES),
        "random": lambda size: contribution or site.encode().ljust(size),
    }
    return SiteDraw(**{**plan, **changes})


def coordinator(sites: tuple[str, ...] = SITES) -> CoordinatorDraw:
    return CoordinatorDraw(
        study=STUDY, job=JOB, sites=sites, size=3, signing_key=key_of("coordinator"), mtls_keys=mtls_keys(SITES)
    )


def committed(sites: tuple[str, ...] = SITES) -> tuple[CoordinatorDraw, dict[str, SiteDraw], dict[str, Any]]:
    server, draws = coordinator(), {site: site_draw(site) for site in sites}
    for site, each in draws.items():
        server.take(site, each.commit(), NOW)
    return server, draws, server.commits(NOW)


def by_coordinator(message: Any) -> dict[str, Any]:
    return wire.sign(key_of("coordinator"), message)


def test_all_sites_and_the_coordinator_compute_one_map() -> None:
    server, draws, commits = committed()
    for site, each in draws.items():
        server.take(site, each.reveal(commits, NOW), NOW)
    assert server.waiting == ()
    reveals = server.reveals()
    maps = {each.groups(reveals, NOW) for each in draws.values()}
    assert maps == {server.groups}
    (drawn,) = maps
    assert sorted(site for group in drawn for site in group) == list(SITES)
    assert server.stage == "drawn" and {each.state for each in draws.values()} == {"drawn"}


@given(st.integers(3, 60), st.integers(3, 10), st.binary(min_size=32, max_size=32))
def test_a_map_puts_each_site_in_one_group_of_at_least_the_size(sites: int, size: int, salt: bytes) -> None:
    reveals = {site: salt + site.encode() for site in names(sites)}
    if sites < size:
        with pytest.raises(ConfigError, match="do not make one group"):
            groups.draw(reveals, size)
        return
    drawn = groups.draw(reveals, size)
    assert len(drawn) == sites // size
    assert sorted(site for group in drawn for site in group) == sorted(reveals)
    sizes = [len(group) for group in drawn]
    assert min(sizes) >= size and max(sizes) - min(sizes) <= 1
    assert all(list(group) == sorted(group) for group in drawn)
    assert drawn == groups.draw(dict(reversed(reveals.items())), size)


def test_each_single_contribution_moves_the_whole_map() -> None:
    """Where site-01 lands is uniform over maps that differ in one contribution alone: nobody else chose it."""
    fixed = {site: site.encode() * 4 for site in names(12)}
    mates: dict[str, int] = dict.fromkeys(names(12)[1:], 0)
    for number in range(600):
        drawn = groups.draw({**fixed, "site-12": number.to_bytes(32, "big")}, 3)
        (own,) = [group for group in drawn if "site-01" in group]
        for mate in own:
            if mate != "site-01":
                mates[mate] += 1
    assert all(70 < count < 150 for count in mates.values()), mates  # 600 x 2/11 = 109, sd about 9.4


def test_a_commitment_cannot_be_copied_by_another_site_or_job() -> None:
    value = bytes(32)
    assert len({groups.commitment(value, site, job) for site in SITES for job in ("a", "b")}) == 14


def test_a_coordinator_that_shows_two_sets_of_commitments_gets_no_map() -> None:
    _, draws, commits = committed()
    shown = wire.verify(commits, Commits, key_of("coordinator").public_key(), NOW)
    other = by_coordinator(Commits(v=1, job=JOB, commits=shown.commits[:5]))
    reveals = [draws[site].reveal(commits if site > "site-03" else other, NOW) for site in SITES[:5]]
    for site in SITES[:5]:
        with pytest.raises(ProtocolAbort, match=r"bad_group_map: .* revealed for another set of commitments"):
            draws[site].groups(by_coordinator(Reveals(v=1, job=JOB, reveals=tuple(reveals))), NOW)
        assert draws[site].state == "aborted"


def test_a_coordinator_that_drops_a_revealer_after_it_saw_the_others_gets_no_map() -> None:
    server, draws, commits = committed()
    reveals = {site: each.reveal(commits, NOW) for site, each in draws.items()}
    some = by_coordinator(Reveals(v=1, job=JOB, reveals=tuple(reveals[site] for site in SITES if site != "site-04")))
    for each in draws.values():
        with pytest.raises(ProtocolAbort, match="bad_group_map: no reveal of site-04, who committed"):
            each.groups(some, NOW)
    for site, reveal in reveals.items():
        if site != "site-04":
            server.take(site, reveal, NOW)
    with pytest.raises(ProtocolAbort, match="no reveal of site-04"):
        server.reveals()
    assert server.stage == "aborted"


def test_a_site_reveals_once_and_for_one_set() -> None:
    _, draws, commits = committed()
    draws["site-01"].reveal(commits, NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        draws["site-01"].reveal(commits, NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):  # and then never again
        draws["site-01"].groups(commits, NOW)


@pytest.mark.parametrize("how", ["left out", "changed", "other job", "stranger", "twice", "minted", "not signed"])
def test_a_set_of_commitments_that_is_not_the_sites_own_gets_no_reveal(how: str) -> None:
    _, draws, commits = committed()
    shown = list(wire.verify(commits, Commits, key_of("coordinator").public_key(), NOW).commits)
    job = JOB
    if how == "left out":
        del shown[0]
    elif how == "changed":  # the same site, committed to something else
        shown[0] = site_draw("site-01", b"x" * 32).commit()
    elif how == "other job":
        job = "job-2"
    elif how == "stranger":
        shown.append(site_draw("site-99").commit())
    elif how == "twice":
        shown.append(site_draw("site-02", b"x" * 32).commit())
    elif how == "minted":  # the coordinator certifies a key of its own for site-02
        key = key_of("a key that the coordinator holds")
        certificate = certificates.certify(key_of("coordinator"), STUDY, JOB, "site-02", key.public_key())
        shown[1] = site_draw("site-02", signing_key=key, certificate=certificate).commit()
    envelope = by_coordinator(Commits(v=1, job=job, commits=tuple(shown)))
    if how == "not signed":
        envelope = wire.sign(key_of("site-02"), Commits(v=1, job=job, commits=tuple(shown)))
    with pytest.raises(ProtocolAbort, match="bad_message" if how == "not signed" else "bad_group_map"):
        draws["site-01"].reveal(envelope, NOW)
    assert draws["site-01"].state == "aborted"


def test_a_site_that_reveals_something_else_is_blamed() -> None:
    server, draws, commits = committed()
    signed = draws["site-02"].reveal(commits, NOW)
    body = wire.verify(signed, Reveal, key_of("site-02").public_key(), NOW)
    lie = wire.sign(
        key_of("site-02"), Reveal(v=1, job=JOB, site="site-02", commits=body.commits, contribution=b"y" * 32)
    )
    with pytest.raises(ProtocolAbort, match="bad_group_map: site-02 reveals what it did not commit to") as caught:
        server.take("site-02", lie, NOW)
    assert caught.value.blame == "site-02"
    for site, each in draws.items():
        if site != "site-02":
            server.take(site, each.reveal(commits, NOW), NOW)
    assert server.waiting == ("site-02",)
    others = tuple(server._taken.values())
    with pytest.raises(ProtocolAbort, match="reveals what it did not commit to"):
        draws["site-03"].groups(by_coordinator(Reveals(v=1, job=JOB, reveals=(lie, *others))), NOW)


def test_nobody_answers_for_another_or_twice() -> None:
    server = coordinator()
    draws = {site: site_draw(site) for site in SITES}
    commits = {site: each.commit() for site, each in draws.items()}
    with pytest.raises(ProtocolAbort, match="site-01 sent a commitment of another site"):
        server.take("site-01", commits["site-02"], NOW)
    server.take("site-01", commits["site-01"], NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        server.take("site-01", commits["site-01"], NOW)
    for site in SITES[1:]:
        server.take(site, commits[site], NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        server.reveals()
    shown = server.commits(NOW)
    with pytest.raises(ProtocolAbort, match="site-01 sent the reveal of another site"):
        server.take("site-01", draws["site-02"].reveal(shown, NOW), NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        server.commits(NOW)


def test_who_does_not_commit_takes_no_part() -> None:
    server, draws, commits = committed(SITES[:6])
    for site, each in draws.items():
        server.take(site, each.reveal(commits, NOW), NOW)
    server.reveals()
    assert server.groups is not None
    assert sorted(site for group in server.groups for site in group) == list(SITES[:6])


ENVELOPE_KEYS = st.sampled_from(["payloadType", "payload", "signatures", "sig", "keyid"]) | st.text(max_size=3)
LEAVES = st.none() | st.integers() | st.text(max_size=8) | st.binary(max_size=8)


@settings(max_examples=40, deadline=None)
@given(st.recursive(LEAVES, lambda inner: st.dictionaries(ENVELOPE_KEYS, inner, max_size=3), max_leaves=6))
def test_garbage_is_a_protocol_abort_and_nothing_else(garbage: Any) -> None:
    server = coordinator()
    with pytest.raises(ProtocolAbort):
        server.take("site-01", garbage, NOW)
    each = site_draw("site-01")
    own = each.commit()
    with pytest.raises(ProtocolAbort):
        each.reveal(garbage, NOW)
    assert wire.verify(own, Commit, key_of("site-01").public_key(), NOW).site == "site-01"
