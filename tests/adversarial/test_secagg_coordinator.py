"""The coordinator lies: about R1, about U, about the roster, about anything it hands on. It opens one sum or nothing.

What it could compute is computed (``fakes.secagg_spy``), from all that it saw and all that its colluders hold.
"""

import copy
import json
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon import signing
from cordon.errors import CordonError, ProtocolAbort
from cordon.secagg import certificates, keys, roster, wire
from cordon.secagg.client import Member
from cordon.secagg.dealing import Held
from cordon.secagg.wire import Confirmation, Confirmations, Delivery, OpenedShare, Roster, Survivors, Ticket
from fakes.secagg_cohort import JOB, NOW, STUDY, Cohort, Sent, certificate_of, head, key_of, mtls_keys, names
from fakes.secagg_spy import Colluder, Spy, altered

ONE, TWO, THREE, FOUR, FIVE = names(5)


class Liar:
    """A coordinator that says what it wants to whom it wants, with real members, and writes down what it learns.

    All members have shared (each on the same roster) when it begins.
    """

    def __init__(self, cohort: Cohort, colluders: Iterable[str] = ()) -> None:
        self.cohort = cohort
        message = cohort.server.message(cohort.sites[0])
        self.shares = {site: cohort.call(site, "shares", message)[0] for site in cohort.sites}
        self.view = cohort.server.view
        known = {site: cohort.members[site] for site in colluders}
        self.colluders: dict[str, Colluder] = {site: each for site, each in known.items() if isinstance(each, Colluder)}
        self.spy = Spy(self.view, self.colluders)
        for site, envelope in self.shares.items():
            self.spy.saw_shares(site, envelope)

    def mask(self, site: str, r1: Iterable[str]) -> None:
        """Show ``site`` this R1."""
        shares = tuple(self.shares[each] for each in sorted(r1))
        envelope, payload = self.cohort.call(site, "masked", self.cohort.sign(self._v1(Delivery, shares=shares)))
        self.spy.saw_masked(site, envelope, payload)

    def confirm(self, site: str, r1: Iterable[str], survivors: Iterable[str]) -> dict[str, Any]:
        """Have ``site`` sign this view; a colluder signs anything."""
        view = {"r1": tuple(sorted(r1)), "survivors": tuple(sorted(survivors))}
        if site in self.colluders:
            return self.cohort.sign_as(site, self._v1(Confirmation, site=site, **view))
        return self.cohort.call(site, "confirm", self.cohort.sign(self._v1(Survivors, **view)))[0]

    def unmask(self, site: str, confirmations: Iterable[dict[str, Any]]) -> None:
        """Ask ``site`` to open."""
        message = self.cohort.sign(self._v1(Confirmations, confirmations=tuple(confirmations)))
        self.spy.saw_unmask(site, self.cohort.call(site, "unmask", message)[0])

    def _v1(self, schema: Any, **fields: Any) -> Any:
        return schema(v=1, ctx=self.view.ctx, **fields)


def refused(code: str, function: Any, *args: Any) -> ProtocolAbort:
    with pytest.raises(ProtocolAbort) as caught:
        function(*args)
    assert caught.value.code == code, caught.value
    return caught.value


# -- R1 --------------------------------------------------------------------------------------------------------------


class BelievesR1(Member):
    """Not as the protocol says: it takes the coordinator's word that R1 was another one (check 3.1 left out)."""

    def confirm(self, survivors_envelope: Any, now: Any) -> dict[str, Any]:
        said = wire.verify(survivors_envelope, Survivors, self._coordinator_key, now)
        self._r1 = said.r1
        nothing = OpenedShare(share=bytes(33), salt=bytes(16))
        for site in said.r1:  # it was shown no share of some of them
            self._held.setdefault(site, Held(nothing, nothing))
        return super().confirm(survivors_envelope, now)


def equivocate_about_r1(liar: Liar) -> None:
    """K = 5, c = 0, t = 3: the victim masks over {1, 4, 5}, the others over all; U = {1, 2, 3} opens sk of 4 and 5."""
    liar.mask(ONE, (ONE, FOUR, FIVE))
    for site in (TWO, THREE, FOUR, FIVE):
        liar.mask(site, names(5))
    confirmations = []
    for site in (TWO, THREE, ONE):
        confirmations.append(liar.confirm(site, names(5), (ONE, TWO, THREE)))
    for site in (TWO, THREE, ONE):
        liar.unmask(site, confirmations)


def test_without_the_r1_rule_one_equivocation_opens_a_single_update() -> None:
    """The attack works on a site that lacks the rule: so the tests below could fail."""
    cohort = Cohort(5, member={ONE: BelievesR1})
    liar = Liar(cohort)
    equivocate_about_r1(liar)
    assert (ONE,) in liar.spy.exposed()
    assert (liar.spy.plain_sum((ONE,)) == cohort.expected((ONE,))).all()


def test_a_coordinator_that_equivocates_about_r1_opens_nothing() -> None:
    cohort = Cohort(5)
    liar = Liar(cohort)
    refused("two_views", equivocate_about_r1, liar)
    assert cohort.members[ONE].state == "aborted"
    confirmations = [  # of the two that did sign: one too few
        cohort.sign_as(site, liar._v1(Confirmation, site=site, r1=names(5), survivors=(ONE, TWO, THREE)))
        for site in (TWO, THREE)
    ]
    for site in (TWO, THREE):
        refused("bad_confirmations", liar.unmask, site, confirmations)
    assert liar.spy.exposed() == []


@pytest.mark.parametrize(
    ("r1", "code"),
    [
        ((ONE, TWO), "too_few"),
        ((TWO, THREE, FOUR), "bad_survivors"),
        ((ONE, TWO, TWO, THREE), "bad_survivors"),
        ((), "too_few"),
    ],
)
def test_a_site_masks_over_no_r1_that_is_small_or_without_it(r1: tuple[str, ...], code: str) -> None:
    liar = Liar(Cohort(5))
    refused(code, liar.mask, ONE, r1)
    assert not liar.cohort.members[ONE].spent
    assert liar.cohort.members[ONE].state == "aborted"


def test_a_site_whose_key_dealt_twice_goes_on_with_neither_deal() -> None:
    """A second process with the site's key, say: its self mask would be opened from the shares of another."""
    liar = Liar(Cohort(5))
    honest = wire.verify(liar.shares[ONE], wire.Shares, key_of(ONE).public_key(), NOW)
    liar.shares[ONE] = liar.cohort.sign_as(ONE, msgspec.structs.replace(honest, own="0" * 64))
    refused("two_views", liar.mask, ONE, names(5))
    assert not liar.cohort.members[ONE].spent


# -- U ---------------------------------------------------------------------------------------------------------------


def equivocate_about_u(liar: Liar) -> None:
    """Show U = {1, 2, 3} to 1 and 2, U = {3, 4, 5} to 4 and 5; site 3 colludes and signs both."""
    sites = liar.cohort.sites
    for site in sites:
        if site not in liar.colluders:
            liar.mask(site, sites)
    for survivors in ((ONE, TWO, THREE), (THREE, FOUR, FIVE)):
        confirmations = [liar.confirm(site, sites, survivors) for site in survivors]
        for site in survivors:
            if site not in liar.colluders:
                liar.unmask(site, confirmations)


def test_beyond_c_colluders_two_survivor_sets_open_single_updates() -> None:
    """c = 0 is what the job asked for, and there is one: the guarantee is not more than it says."""
    cohort = Cohort(5, member={THREE: Colluder})
    liar = Liar(cohort, [THREE])
    equivocate_about_u(liar)
    assert (ONE,) in liar.spy.exposed()
    assert (liar.spy.plain_sum((ONE,)) == cohort.expected((ONE,))).all()


def test_a_coordinator_with_its_colluder_that_equivocates_about_u_opens_nothing() -> None:
    liar = Liar(Cohort(5, c=1, member={THREE: Colluder}), [THREE])
    refused("too_few", equivocate_about_u, liar)  # t = 4 of 5: no two such sets
    assert liar.spy.exposed() == []


def test_without_a_colluder_no_site_confirms_twice() -> None:
    liar = Liar(Cohort(5))
    refused("out_of_order", equivocate_about_u, liar)  # site 3 signs no second set
    assert liar.spy.exposed() == [(ONE, TWO, THREE)]


def test_a_site_that_sees_another_view_signed_stops() -> None:
    cohort = Cohort(5, member={FIVE: Colluder})
    liar = Liar(cohort, [FIVE])
    for site in names(4):
        liar.mask(site, names(5))
    confirmations = [liar.confirm(site, names(5), names(5)) for site in names(4)]
    other = liar.confirm(FIVE, names(5), names(4) if FIVE in liar.colluders else names(5))
    refused("two_views", liar.unmask, ONE, [*confirmations, other])
    assert cohort.members[ONE].state == "aborted"


@pytest.mark.parametrize(
    ("survivors", "code"),
    [
        ((ONE, TWO), "too_few"),
        ((TWO, THREE, FOUR, FIVE), "bad_survivors"),
        ((ONE, TWO, THREE, "site-06"), "bad_survivors"),
        ((), "too_few"),
    ],
)
def test_a_site_confirms_no_u_that_is_small_or_without_it_or_beyond_r1(survivors: tuple[str, ...], code: str) -> None:
    liar = Liar(Cohort(6))
    liar.mask(ONE, names(5))
    refused(code, liar.confirm, ONE, names(5), survivors)
    assert liar.cohort.members[ONE].spent and liar.cohort.members[ONE].state == "aborted"


def test_survivors_in_another_order_or_twice_are_no_second_name_of_one_set() -> None:
    for survivors in ((TWO, ONE, THREE), (ONE, TWO, THREE, THREE)):
        liar = Liar(Cohort(5))
        liar.mask(ONE, names(5))
        message = liar.cohort.sign(liar._v1(Survivors, r1=names(5), survivors=survivors))
        refused("bad_survivors", liar.cohort.call, ONE, "confirm", message)


def test_fewer_confirmations_than_t_or_of_others_than_survivors_open_nothing() -> None:
    def prepared() -> tuple[Liar, list[dict[str, Any]]]:
        liar = Liar(Cohort(5, u_min=4))
        for site in names(5):
            liar.mask(site, names(5))
        return liar, [liar.confirm(site, names(5), names(4)) for site in names(4)]

    liar, signed = prepared()
    refused("bad_confirmations", liar.unmask, ONE, signed[:2])
    refused("bad_confirmations", liar.unmask, TWO, [signed[0], signed[0], signed[0]])
    outsider = liar.cohort.sign_as(FIVE, liar._v1(Confirmation, site=FIVE, r1=names(5), survivors=names(4)))
    refused("bad_confirmations", liar.unmask, THREE, [*signed[:2], outsider])
    minted = wire.sign(key_of("coordinator"), liar._v1(Confirmation, site=ONE, r1=names(5), survivors=names(4)))
    refused("bad_confirmations", liar.unmask, FOUR, [*signed[1:], minted])
    assert liar.spy.exposed() == []
    liar, signed = prepared()
    for site in names(4):
        liar.unmask(site, signed[:3])  # t = 3 are enough
    assert liar.spy.exposed() == [names(4)]


def test_no_site_answers_twice_so_nobody_gives_both_shares_of_one_site() -> None:
    liar = Liar(Cohort(5))
    for site in names(5):
        liar.mask(site, names(5))
    signed = [liar.confirm(site, names(5), names(4)) for site in names(4)]
    liar.unmask(ONE, signed)
    refused("out_of_order", liar.unmask, ONE, signed)
    refused("out_of_order", liar.confirm, ONE, names(5), names(5))
    sent = wire.verify(
        liar.cohort.call(TWO, "unmask", liar.cohort.sign(liar._v1(Confirmations, confirmations=tuple(signed))))[0],
        wire.Unmask,
        key_of(TWO).public_key(),
        NOW,
    )
    assert set(sent.self_masks) == set(names(4)) and set(sent.mask_keys) == {FIVE}


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_whatever_views_a_coordinator_shows_to_whom_it_opens_no_small_sum(data: st.DataObject) -> None:
    """Each site gets an R1 and a U out of a few, colluders sign all of them, shares of every view are collected."""
    count, c = data.draw(st.sampled_from([(3, 0), (4, 0), (5, 0), (4, 1), (5, 1), (6, 1), (6, 2)]))
    sites = names(count)
    cohort = Cohort(sites, size=1, c=c, u_min=max(3, c + 2), member=dict.fromkeys(sites[:c], Colluder))
    liar = Liar(cohort, sites[:c])
    least = liar.view.least
    some = st.sets(st.sampled_from(sites), min_size=least).map(sorted)
    shown = data.draw(st.lists(some, min_size=1, max_size=2))  # R1s
    honest = sites[c:]
    for site in honest:
        _try(liar.mask, site, data.draw(st.sampled_from(shown)))
    views = [(r1, data.draw(some)) for r1 in shown for _ in range(2)]
    signed: dict[int, list[dict[str, Any]]] = {number: [] for number in range(len(views))}
    asked: dict[int, list[str]] = {number: [] for number in range(len(views))}
    for site in honest:
        number = data.draw(st.integers(0, len(views) - 1))
        envelope = _try(liar.confirm, site, *views[number])
        if envelope is not None:
            signed[number].append(envelope)
            asked[number].append(site)
    for number, (r1, survivors) in enumerate(views):
        extra = [liar.confirm(site, r1, survivors) for site in sites[:c] if site in survivors]
        for site in asked[number]:
            _try(liar.unmask, site, [*signed[number], *extra])
    for chosen in liar.spy.exposed():
        assert len(chosen) >= liar.view.terms.u_min - c, (shown, views)
        assert len(chosen) + c >= least


def _try(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except ProtocolAbort:
        return None


# -- roster, keys, versions ------------------------------------------------------------------------------------------


def roster_of(cohort: Cohort, tickets: Iterable[Any], **changes: Any) -> dict[str, Any]:
    fields = {"v": 1, "job": JOB, "cohort": cohort.cohort_id, "version": cohort.version, **changes}
    return cohort.sign(Roster(**fields, tickets=tuple(tickets)))


def ticket_by(site: str, signer: Any, certificate: dict[str, Any], cohort: Cohort, **changes: Any) -> dict[str, Any]:
    """A ticket of ``site`` with fresh keys, or with some fields changed."""
    mine = wire.verify(cohort.tickets[cohort.sites[1]], Ticket, key_of(cohort.sites[1]).public_key(), NOW)
    fields = {
        "site": site,
        "mask_key": keys.pair(np.random.bytes).public,
        "encryption_key": keys.pair(np.random.bytes).public,
        "certificate": certificate,
        **changes,
    }
    return wire.sign(signer, msgspec.structs.replace(mine, **fields))


LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (325606250916557431795983626356110631294008115727848805560023387167927233504).to_bytes(32, "little"),
    (39382357235489614581723060781553021112529911719440698176882885853963445705823).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    (2**255 - 19 + 9).to_bytes(32, "little"),  # the base point in its second encoding
    (2**255 + 9).to_bytes(32, "little"),  # and with the bit that is ignored
]


def minted(cohort: Cohort) -> dict[str, Any]:
    """A site that only the coordinator knows."""
    certificate = certificates.certify(key_of("coordinator"), STUDY, JOB, "site-99", key_of("coordinator").public_key())
    return ticket_by("site-99", key_of("coordinator"), certificate, cohort)


def substituted(cohort: Cohort) -> dict[str, Any]:
    """The coordinator's key in the name of site-03."""
    key = key_of("a key of the coordinator's")
    certificate = certificates.certify(key_of("coordinator"), STUDY, JOB, THREE, key.public_key())
    return ticket_by(THREE, key, certificate, cohort)


def other_certificate(cohort: Cohort, study: str = STUDY, job: str = JOB, site: str = THREE) -> dict[str, Any]:
    made = certificates.certify(key_of(f"mtls {THREE}"), study, job, site, key_of(THREE).public_key())
    return ticket_by(THREE, key_of(THREE), made, cohort)


def colluding(cohort: Cohort, **changes: Any) -> dict[str, Any]:
    """A ticket that site-03 signed itself, as it should not be."""
    return ticket_by(THREE, key_of(THREE), certificate_of(THREE), cohort, **changes)


def same_key_as(site: str, cohort: Cohort) -> bytes:
    return wire.verify(cohort.tickets[site], Ticket, key_of(site).public_key(), NOW).mask_key


ROSTERS = {
    "mints a site": ("bad_roster", lambda it: [*it.tickets.values(), minted(it)]),
    "substitutes a site's key": ("bad_roster", lambda it: [*_without(it, THREE), substituted(it)]),
    "certificate of another study": ("bad_roster", lambda it: [*_without(it, THREE), other_certificate(it, "6" * 64)]),
    "certificate of another job": ("bad_roster", lambda it: [*_without(it, THREE), other_certificate(it, job="job-0")]),
    "certificate of another site": ("bad_roster", lambda it: [*_without(it, THREE), other_certificate(it, site=TWO)]),
    "ticket of another job": ("bad_roster", lambda it: [*_without(it, THREE), colluding(it, job="job-0")]),
    "a site twice": ("bad_roster", lambda it: [*it.tickets.values(), colluding(it)]),
    "this site left out": ("bad_roster", lambda it: _without(it, ONE)),
    "this site's older ticket": ("bad_roster", lambda it: [*_without(it, ONE), _older(it)]),
    "two sites share a key": (
        "bad_roster",
        lambda it: [*_without(it, THREE), colluding(it, mask_key=same_key_as(ONE, it))],
    ),
    "one key for both uses": (
        "bad_roster",
        lambda it: [*_without(it, THREE), colluding(it, mask_key=b"\x09" * 32, encryption_key=b"\x09" * 32)],
    ),
    "another DP event": (
        "wrong_terms",
        lambda it: [
            *_without(it, THREE),
            colluding(it, dp_event=msgspec.structs.replace(it.terms.dp_event, noise_multiplier=0.1)),
        ],
    ),
    "another layout": ("wrong_terms", lambda it: [*_without(it, THREE), colluding(it, layout_digest="2" * 64)]),
    "another model of that version": (
        "off_chain",
        lambda it: [*_without(it, THREE), colluding(it, model_chain_head="e" * 64)],
    ),
    "a base from the future": ("off_chain", lambda it: [*_without(it, THREE), colluding(it, base_version=1)]),
    "too few": ("too_few", lambda it: list(it.tickets.values())[:2]),
    "nobody": ("too_few", lambda it: []),
    **{
        f"key of low order or twice encoded {number}": (
            "bad_roster",
            lambda it, key=key: [*_without(it, THREE), colluding(it, encryption_key=key)],
        )
        for number, key in enumerate(LOW_ORDER)
    },
}


def _without(cohort: Cohort, site: str) -> list[dict[str, Any]]:
    return [envelope for name, envelope in cohort.tickets.items() if name != site]


def _older(cohort: Cohort) -> dict[str, Any]:
    envelope = cohort.tickets[ONE]
    cohort.members[ONE], _ = _ready(cohort, ONE)
    return envelope


def _ready(cohort: Cohort, site: str) -> tuple[Member, dict[str, Any]]:
    return Member.ready(
        terms=cohort.terms,
        site=site,
        ticket="another-ticket-id",
        base_version=0,
        head=head(0) or "",
        ledger=None,
        signing_key=key_of(site),
        certificate=certificate_of(site),
        coordinator_key=key_of("coordinator").public_key(),
    )


@pytest.mark.parametrize("what", list(ROSTERS))
def test_a_roster_that_is_not_what_it_should_be_gets_no_share(what: str) -> None:
    code, make = ROSTERS[what]
    cohort = Cohort(5)
    refused(code, cohort.call, ONE, "shares", roster_of(cohort, make(cohort)))
    assert cohort.members[ONE].state == "aborted" and not cohort.members[ONE].spent


def test_a_roster_that_another_signed_or_of_another_job_gets_no_share() -> None:
    cohort = Cohort(5)
    message = wire.verify(cohort.server.message(ONE), Roster, key_of("coordinator").public_key(), NOW)
    refused("bad_message", cohort.call, ONE, "shares", cohort.sign_as(TWO, message))
    refused("bad_message", cohort.call, TWO, "shares", roster_of(cohort, message.tickets, job="job-2"))
    unsigned = [*message.tickets[:4], {**message.tickets[4], "signatures": []}]
    refused("bad_roster", cohort.call, THREE, "shares", roster_of(cohort, unsigned))


def test_a_base_that_is_not_on_the_chain_of_the_newer_site_stops_that_site() -> None:
    """Two models at once (Pasquini et al. 2021): whoever has the newer base knows every older head."""
    cohort = Cohort(5, version=3, bases={ONE: 3, TWO: 2, THREE: 3, FOUR: 2, FIVE: 3})
    lie = [
        *_without(cohort, TWO),
        ticket_by(TWO, key_of(TWO), certificate_of(TWO), cohort, base_version=1, model_chain_head="e" * 64),
    ]
    refused("off_chain", cohort.call, ONE, "shares", roster_of(cohort, lie))
    # A site that cannot know a newer head leaves it to those that do, and one that knows less than it should stops.
    assert cohort.call(FOUR, "shares", roster_of(cohort, cohort.tickets.values()))
    with pytest.raises(ProtocolAbort, match="off_chain"):
        cohort.members[THREE].shares(
            roster_of(cohort, cohort.tickets.values()), mtls_keys=cohort.mtls, heads={3: head(3) or ""}, now=NOW
        )


def test_a_coordinator_that_claims_two_versions_splits_the_cohort_in_two_that_cannot_open() -> None:
    cohort = Cohort(5)
    one = cohort.server.message(ONE)
    two = roster_of(cohort, cohort.tickets.values(), version=1)
    shares = {site: cohort.call(site, "shares", one if site < THREE else two)[0] for site in names(5)}
    ctx = {site: wire.verify(shares[site], wire.Shares, key_of(site).public_key(), NOW).ctx for site in names(5)}
    assert len({*ctx.values()}) == 2
    for site in names(5):
        message = cohort.sign(Delivery(v=1, ctx=ctx[site], shares=tuple(shares.values())))
        refused("bad_message", cohort.call, site, "masked", message)
        assert not cohort.members[site].spent


def test_versions_further_than_the_job_allows_are_not_believed() -> None:
    cohort = Cohort(5)
    refused("off_chain", cohort.call, ONE, "shares", roster_of(cohort, cohort.tickets.values(), version=11))


def test_a_job_whose_floors_cannot_hold_is_refused_by_each_site() -> None:
    cohort = Cohort(5)
    for site, (changes, code) in zip(
        names(3),
        (({"c": 2}, "collusion_bound"), ({"u_min": 6}, "too_few"), ({"c": 4, "u_min": 6}, "too_few")),
        strict=True,
    ):
        cohort.members[site]._terms = roster.Terms(**{**vars(cohort.terms), **changes})
        refused(code, cohort.call, site, "shares", cohort.server.message(site))


def test_a_cohort_smaller_than_the_plan_counts_on_is_refused_though_its_threshold_holds() -> None:
    """Noise that is shared out was priced for K sites; fewer would leave less of it in the sum."""
    cohort = Cohort(5, members=5)
    few = roster_of(cohort, [cohort.tickets[site] for site in names(4)])
    refused("bad_roster", cohort.call, ONE, "shares", few)
    assert len(Cohort(5, members=5).run().survivors) == 5


# -- any message, altered --------------------------------------------------------------------------------------------


def by_coordinator(envelope: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    return signing.sign(key_of("coordinator"), envelope["payloadType"], body)


# Altered, and still a message that a coordinator may choose to send, with what becomes of the site. The order of
# tickets says nothing (ctx sorts them), t confirmations are enough; what else is chosen is in ctx, in R1 or in U: the
# site's answer then fits no other's.
CHOICES = {
    "shares": {
        "/tickets reversed": "unmasked",
        "/cohort": "shared",
        "/version": "shared",
        "/tickets/3 dropped": "shared",
    },
    "masked": {"/shares/3 dropped": "masked"},
    "confirm": {"/survivors/3 dropped": "confirmed"},
    "unmask": {
        "/confirmations reversed": "unmasked",
        "/confirmations/0 dropped": "unmasked",
        "/confirmations/3 dropped": "unmasked",
    },
}


@pytest.mark.parametrize("stage", list(CHOICES))
def test_a_message_altered_anywhere_and_signed_by_the_coordinator_ends_its_receiver(stage: str) -> None:
    cohort = Cohort(4, size=2)
    cohort.run(until=stage)
    envelope = cohort.server.message(ONE)
    found = list(altered(signing.unverified_body(envelope)))
    assert len(found) > 10
    went_on = set()
    for where, body in found:
        member = copy.copy(cohort.members[ONE])
        member._held = dict(member._held)
        try:
            _call(cohort, member, stage, by_coordinator(envelope, body))
        except ProtocolAbort as error:
            assert error.code != "out_of_order", where
            assert member.state == "aborted" and member._held == {}, where
            assert member.spent == (stage in ("confirm", "unmask")), where
        else:
            went_on.add(where)
    assert went_on == set(CHOICES[stage])


@pytest.mark.parametrize(
    ("stage", "where", "state"), [(stage, where, end) for stage, ends in CHOICES.items() for where, end in ends.items()]
)
def test_what_a_coordinator_may_choose_to_say_to_one_site_opens_nothing_of_it(
    stage: str, where: str, state: str
) -> None:
    def lie(site: str, envelope: Any) -> Any:
        return (
            by_coordinator(envelope, dict(altered(signing.unverified_body(envelope)))[where])
            if site == ONE
            else envelope
        )

    cohort = Cohort(4, size=2, hooks={(stage, "down"): lie})
    cohort.run()
    survivors = cohort.server.result().survivors
    assert cohort.members[ONE].state == state
    assert (cohort.total == cohort.expected(survivors)).all()
    if state != "unmasked":
        assert [site for site, _ in cohort.refused] == [ONE]
    assert (ONE in survivors) == (state in ("confirmed", "unmasked"))
    spy = Spy(cohort.server.view)
    for each in cohort.sent:
        _saw(spy, each)
    assert spy.exposed() == [survivors]


def _saw(spy: Spy, each: Sent) -> None:
    if each.direction == "up" and each.stage == "masked":
        spy.saw_masked(each.site, each.envelope, each.payload)
    elif each.direction == "up" and each.stage == "unmask":
        spy.saw_unmask(each.site, each.envelope)


@pytest.mark.parametrize("stage", ["shares", "masked", "confirm", "unmask"])
def test_an_answer_altered_on_its_way_is_refused_and_blames_nobody(stage: str) -> None:
    cohort = Cohort(4, size=2)
    cohort.run(until=stage)
    answer, payload = cohort.call(ONE, stage, cohort.server.message(ONE))
    for where, other in altered(answer):
        with pytest.raises(ProtocolAbort) as caught:
            cohort.server.take(ONE, other, payload, now=NOW)
        assert caught.value.blame == "", where
    if payload:
        for other in (payload[:-1], payload + b"\0", bytes([payload[0] ^ 1]) + payload[1:], b""):
            with pytest.raises(ProtocolAbort, match="not the one that it signed") as caught:
                cohort.server.take(ONE, answer, other, now=NOW)
            assert caught.value.blame == ""
    assert cohort.server.waiting[0] == ONE and not cohort.server.faults
    cohort.server.take(ONE, answer, payload, now=NOW)
    cohort.run() if stage == "unmask" else None


# -- replays and order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replayed", ["shares", "masked", "confirm", "unmask"])
@pytest.mark.parametrize("at", ["shares", "masked", "confirm", "unmask"])
def test_a_message_of_an_older_cohort_or_of_another_stage_ends_the_site(replayed: str, at: str) -> None:
    older = Cohort(4, cohort_id="cohort-000000000")
    older.run()
    message = next(
        each.envelope for each in older.sent if (each.stage, each.direction, each.site) == (replayed, "down", ONE)
    )
    cohort = Cohort(4)
    cohort.run(until=at)
    error = refused("bad_roster" if replayed == at == "shares" else "bad_message", cohort.call, ONE, at, message)
    assert error.blame == ""
    assert cohort.members[ONE].state == "aborted"


@pytest.mark.parametrize("stage", ["shares", "masked", "confirm", "unmask"])
def test_an_answer_of_an_older_cohort_is_not_taken(stage: str) -> None:
    older = Cohort(4, cohort_id="cohort-000000000")
    older.run()
    old = next(each for each in older.sent if (each.stage, each.direction, each.site) == (stage, "up", ONE))
    cohort = Cohort(4)
    cohort.run(until=stage)
    with pytest.raises(ProtocolAbort, match="of another cohort") as caught:
        cohort.server.take(ONE, old.envelope, old.payload, now=NOW)
    assert caught.value.blame == ""


def test_every_call_out_of_order_ends_the_member() -> None:
    order = ["shares", "masked", "confirm", "unmask"]
    for done in range(4):
        for wrong in order:
            if wrong == order[done]:
                continue
            cohort = Cohort(3)
            cohort.run(until=order[done])
            refused("out_of_order", cohort.call, ONE, wrong, cohort.server.message(ONE))
            assert cohort.members[ONE].state == "aborted"
            refused("out_of_order", cohort.call, ONE, order[done], cohort.server.message(ONE))  # and stays so


def test_a_dead_or_finished_member_holds_no_secret() -> None:
    cohort = Cohort(3)
    cohort.run()
    dead = Cohort(3)
    dead.step()
    refused("out_of_order", dead.call, ONE, "unmask", {})
    for member in (cohort.members[ONE], dead.members[ONE]):
        assert member._pairs is None and member._self_mask == b"" and member._held == {}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["shares", "masked", "confirm", "unmask"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["payloadType", "payload", "signatures", "site"]) | st.text(), inner, max_size=4
            )
        ),
        max_leaves=8,
    ),
)
def test_garbage_from_anybody_is_a_protocol_abort_and_nothing_else(stage: str, garbage: Any) -> None:
    cohort = _PREPARED[stage]
    member = copy.copy(cohort.members[ONE])
    with pytest.raises(ProtocolAbort):
        _call(cohort, member, stage, garbage)
    with pytest.raises(ProtocolAbort):
        cohort.server.take(ONE, garbage, b"", now=NOW)
    try:
        body = json.loads(json.dumps(garbage))
    except TypeError:
        return
    if isinstance(body, dict):
        for signer in ("coordinator", ONE):
            kind = cohort.server.message(ONE)["payloadType"]
            try:
                envelope = signing.sign(key_of(signer), kind, body)
            except CordonError:
                continue
            with pytest.raises(ProtocolAbort):
                _call(cohort, copy.copy(cohort.members[ONE]), stage, envelope)


def _call(cohort: Cohort, member: Member, stage: str, message: Any) -> None:
    if stage == "shares":
        member.shares(message, mtls_keys=mtls_keys(cohort.sites), heads=head, now=NOW)
    elif stage == "masked":
        member.masked(message, cohort.vectors[ONE], None, NOW)
    else:
        getattr(member, stage)(message, NOW)


def _prepared(stage: str) -> Cohort:
    cohort = Cohort(3)
    cohort.run(until=stage)
    return cohort


_PREPARED = {stage: _prepared(stage) for stage in ("shares", "masked", "confirm", "unmask")}
