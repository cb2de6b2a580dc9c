"""A site lies in a cohort: it is blamed by what it signed, no other ever is, and the sum is exact or none."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from cordon import signing
from cordon.errors import ProtocolAbort
from cordon.messages import sha256
from cordon.secagg import dealing, keys, roster, shamir, wire
from cordon.secagg.client import Member
from cordon.secagg.dealing import Held
from cordon.secagg.wire import Confirmation, Masked, OpenedShare, Shares, Ticket, Unmask
from fakes.secagg_cohort import NOW, Cohort, key_of, names
from fakes.secagg_spy import altered

ONE, TWO, THREE, FOUR, FIVE = names(5)
STAGES = ("shares", "masked", "confirm", "unmask")


def ends_well(cohort: Cohort) -> ProtocolAbort | None:
    """Run ``cohort``, in which site-01 lies: an exact sum or an end that blames nobody else. What ended it, if any."""
    try:
        cohort.run()
        error = None
    except ProtocolAbort as caught:
        error = caught
    if error is None:
        survivors = cohort.server.result().survivors
        assert (cohort.total == cohort.expected(survivors)).all()
    else:
        assert error.code in ("lost", "bad_reconstruction") and error.blame in ("", ONE)
        assert cohort.server.stage == "aborted"
    assert {fault.site for fault in cohort.server.faults} <= {ONE}
    for site, each in cohort.errors.items():
        assert isinstance(each, ProtocolAbort) and each.blame in ("", ONE), (site, each)
    return error


def resign(change: Callable[[Any], Any], schema: Any) -> Callable[[str, Any], Any]:
    """A hook: what site-01 says is changed and signed again."""

    def hook(site: str, envelope: Any) -> Any:
        if site != ONE:
            return envelope
        return wire.sign(key_of(ONE), change(wire.verify(envelope, schema, key_of(ONE).public_key(), NOW)))

    return hook


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_a_site_signs_instead_nobody_else_is_blamed_and_no_sum_is_wrong(stage: str) -> None:
    base = Cohort(4, size=2, gone={FOUR: ("masked", "down")} if stage == "unmask" else {})
    base.run(until=stage)
    body = signing.unverified_body(base.call(ONE, stage, base.server.message(ONE))[0])
    wheres = [where for where, _ in altered(body)]
    assert len(wheres) > 8
    blamed = 0
    for number, where in enumerate(wheres):
        if where.startswith("/mask_keys") and where.endswith("own_salt removed"):  # null, or nothing: the same
            continue
        if where == f"/hashes/{ONE}/1":  # of the share of its own mask key that it keeps: nobody ever opens that one
            continue

        def lie(site: str, envelope: Any, number: int = number) -> Any:
            if site != ONE:
                return envelope
            found = list(altered(signing.unverified_body(envelope)))
            return signing.sign(key_of(ONE), envelope["payloadType"], found[number][1])

        gone = {FOUR: ("masked", "down")} if stage == "unmask" else {}
        cohort = Cohort(4, size=2, hooks={(stage, "up"): lie}, gone=gone, member={ONE: Careless})
        error = ends_well(cohort)
        noticed = [each for site, each in cohort.refused if site == ONE] or error or cohort.errors
        assert noticed, f"{where} was changed and nobody noticed"
        blamed += len(cohort.server.faults)
    assert blamed > len(wheres) / 3


# -- shares ----------------------------------------------------------------------------------------------------------


class BadDealer(Member):
    """Deals what ``spoil(view, of_self, of_key)`` makes of honest shares (holder -> share), sealed and signed so."""

    spoil: Callable[..., None]
    other_own = False

    def shares(self, roster_envelope: Any, **kwargs: Any) -> dict[str, Any]:
        super().shares(roster_envelope, **kwargs)
        assert self.view is not None
        view, (mask, encryption) = self.view, self._secrets()
        points = {view.coordinate(site): site for site in view.sites}
        of_self, of_key = (
            {points[x]: share for x, share in shamir.split(secret, list(points), view.threshold, self._random).items()}
            for secret in (self._self_mask, mask.secret)
        )
        type(self).spoil(view, of_self, of_key)
        own_salt = self._random(16)
        held = {
            site: Held(
                OpenedShare(share=of_self[site], salt=self._random(16), own_salt=own_salt),
                OpenedShare(share=of_key[site], salt=self._random(16)),
            )
            for site in view.sites
        }
        message = Shares(
            v=1,
            ctx=view.ctx,
            site=self._site,
            sealed={
                site: dealing.AESGCM(
                    dealing._key(encryption, view.tickets[site].encryption_key, view.ctx, self._site, site)
                ).encrypt(bytes(12), dealing._packed(each), dealing._aad(view.ctx, self._site, site))
                for site, each in held.items()
                if site != self._site
            },
            hashes={site: dealing.hashes(view.ctx, self._site, site, each) for site, each in held.items()},
            own=dealing.own_hash(
                view.ctx, self._site, self._random(32) if self.other_own else self._self_mask, own_salt
            ),
        )
        self._held = {self._site: held[self._site]}
        self._shares = wire.sign(self._signing_key, message)
        return self._shares


def dealer(spoil: Callable[..., None], other_own: bool = False) -> type[Member]:
    return type("Spoiled", (BadDealer,), {"spoil": staticmethod(spoil), "other_own": other_own})


def nothing(view: Any, of_self: Any, of_key: Any) -> None:
    """Honest: shows that this dealer is not caught for its being one."""


def one_off(view: Any, of_self: Any, of_key: Any) -> None:
    of_self[THREE], of_key[THREE] = bytes(33), bytes(33)


def another_secret(view: Any, of_self: Any, of_key: Any) -> None:
    for shares in (of_self, of_key):
        fresh = shamir.split(b"\x55" * 32, range(1, len(view.sites) + 1), view.threshold, np.random.bytes)
        shares.update({site: fresh[view.coordinate(site)] for site in view.sites})


def too_high_a_degree(view: Any, of_self: Any, of_key: Any) -> None:
    for shares in (of_self, of_key):
        fresh = shamir.split(b"\x55" * 32, range(1, len(view.sites) + 1), view.threshold + 1, np.random.bytes)
        shares.update({site: fresh[view.coordinate(site)] for site in view.sites})


def no_field_element(view: Any, of_self: Any, of_key: Any) -> None:
    of_self[TWO], of_key[TWO] = b"\xff" * 33, b"\xff" * 33


def test_the_dealer_of_these_tests_is_not_caught_while_it_deals_well() -> None:
    assert ends_well(Cohort(5, member={ONE: dealer(nothing)})) is None


@pytest.mark.parametrize("spoil", [one_off, another_secret, too_high_a_degree, no_field_element])
@pytest.mark.parametrize("leaves", [False, True], ids=["self mask", "mask key"])
def test_shares_that_give_no_or_another_secret_are_the_dealers_fault(spoil: Callable[..., None], leaves: bool) -> None:
    gone = {ONE: ("masked", "up")} if leaves else {}
    cohort = Cohort(5, member={ONE: dealer(spoil)}, gone=gone)
    error = ends_well(cohort)
    assert error is not None and error.code == "bad_reconstruction" and error.blame == ONE
    (fault,) = cohort.server.faults
    assert fault.site == ONE and len(fault.evidence) == 1 + len(cohort.server.view.sites) - leaves
    # The evidence convinces whoever has the roster: each opened share is the one that the dealer signed.
    signed = wire.verify(fault.evidence[0], Shares, cohort.server.view.keys[ONE], NOW)
    for envelope in fault.evidence[1:]:
        holder = wire.named_site(envelope)
        answer = wire.verify(envelope, Unmask, cohort.server.view.keys[holder], NOW)
        kind, place, said = ("mask-key", 1, answer.mask_keys) if leaves else ("self-mask", 0, answer.self_masks)
        assert dealing.share_hash(kind, signed.ctx, ONE, holder, said[ONE]) == signed.hashes[holder][place]


def test_a_commitment_to_another_self_mask_is_the_dealers_fault() -> None:
    error = ends_well(Cohort(5, member={ONE: dealer(nothing, other_own=True)}))
    assert error is not None and (error.code, error.blame) == ("bad_reconstruction", ONE)


def test_shares_that_do_not_open_or_are_not_the_signed_ones_cost_their_receiver_alone() -> None:
    def garbage(shares: Shares) -> Shares:
        return msgspec.structs.replace(shares, sealed={**shares.sealed, THREE: bytes(len(shares.sealed[THREE]))})

    def other_hash(shares: Shares) -> Shares:
        return msgspec.structs.replace(shares, hashes={**shares.hashes, THREE: ("0" * 64, shares.hashes[THREE][1])})

    for change in (garbage, other_hash):
        cohort = Cohort(5, hooks={("shares", "up"): resign(change, Shares)}, member={ONE: Careless})
        assert ends_well(cohort) is None
        error = cohort.errors[THREE]
        assert isinstance(error, ProtocolAbort) and (error.code, error.blame) == ("bad_share", ONE)
        assert cohort.server.result().survivors == (ONE, TWO, FOUR, FIVE)
        assert not cohort.members[THREE].spent and not cohort.server.faults


class Careless(Member):
    """Goes on after what it said was changed on its way to the others."""

    def _deliver(self, view: Any, delivery: Any, now: Any) -> tuple[str, ...]:
        (self._shares,) = (each for each in delivery.shares if wire.named_site(each) == self._site)
        return super()._deliver(view, delivery, now)


def test_shares_for_others_than_the_cohort_are_refused_at_once() -> None:
    def fewer(shares: Shares) -> Shares:
        return msgspec.structs.replace(shares, sealed={site: v for site, v in shares.sealed.items() if site != TWO})

    def more(shares: Shares) -> Shares:
        return msgspec.structs.replace(shares, hashes={**shares.hashes, "site-99": ("0" * 64, "0" * 64)})

    def to_itself(shares: Shares) -> Shares:
        return msgspec.structs.replace(shares, sealed={**shares.sealed, ONE: bytes(130)})

    for change in (fewer, more, to_itself):
        cohort = Cohort(5, hooks={("shares", "up"): resign(change, Shares)})
        assert ends_well(cohort) is None
        (fault,) = cohort.server.faults
        assert (fault.site, fault.code) == (ONE, "bad_message")
        assert cohort.server.result().survivors == names(5)[1:]


# -- masked vectors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 9, 8 * 1000])
def test_a_signed_vector_of_the_wrong_size_is_blamed_and_left_out(size: int) -> None:
    def wrong(site: str, envelope: Any) -> Any:
        if site != ONE:
            return envelope
        payload = bytes(4 * size)
        header = wire.verify(envelope, Masked, key_of(ONE).public_key(), NOW)
        return wire.sign(key_of(ONE), msgspec.structs.replace(header, payload_sha256=sha256(payload))), payload

    cohort = Cohort(5, hooks={("masked", "up"): wrong})
    assert ends_well(cohort) is None
    assert cohort.server.result().survivors == names(5)[1:]
    (fault,) = cohort.server.faults
    assert fault.site == ONE and f"{4 * size} bytes, want 32" in fault.detail


def test_a_vector_beside_a_header_of_another_is_left_out_and_nobody_is_blamed() -> None:
    cohort = Cohort(5, hooks={("masked", "up"): lambda site, it: (it, bytes(32)) if site == ONE else it})
    assert ends_well(cohort) is None
    assert not cohort.server.faults and cohort.server.result().survivors == names(5)[1:]


def test_poison_of_any_size_moves_the_sum_and_breaks_nothing() -> None:
    """What README.md says under Limitations: masked, nobody sees what a site adds."""
    words = np.full(8, 2**31 - 1, "<u4")

    def poison(site: str, envelope: Any) -> Any:
        if site != ONE:
            return envelope
        header = wire.verify(envelope, Masked, key_of(ONE).public_key(), NOW)
        replaced = msgspec.structs.replace(header, payload_sha256=sha256(words.tobytes()))
        return wire.sign(key_of(ONE), replaced), words.tobytes()

    cohort = Cohort(5, hooks={("masked", "up"): poison})
    cohort.run()
    assert np.isfinite(cohort.server.result().mean).all()
    assert (cohort.total != cohort.expected(names(5))).any()
    assert not cohort.server.faults


# -- confirming and unmasking ----------------------------------------------------------------------------------------


def test_a_site_that_confirms_another_set_is_blamed_and_not_waited_for() -> None:
    def other(message: Confirmation) -> Confirmation:
        return msgspec.structs.replace(message, survivors=message.survivors[:4])

    cohort = Cohort(5, hooks={("confirm", "up"): resign(other, Confirmation)})
    assert ends_well(cohort) is None
    (fault,) = cohort.server.faults
    assert (fault.site, fault.code) == (ONE, "two_views")
    assert cohort.server.result().survivors == names(5)  # its vector was in the sum by then


def wrong_share(answer: Unmask) -> Unmask:
    said = msgspec.structs.replace(answer.self_masks[TWO], share=b"\x01" * 33)
    return msgspec.structs.replace(answer, self_masks={**answer.self_masks, TWO: said})


def wrong_own_salt(answer: Unmask) -> Unmask:
    said = msgspec.structs.replace(answer.self_masks[TWO], own_salt=b"\x01" * 16)
    return msgspec.structs.replace(answer, self_masks={**answer.self_masks, TWO: said})


def wrong_key_share(answer: Unmask) -> Unmask:
    said = msgspec.structs.replace(answer.mask_keys[FIVE], salt=b"\x01" * 16)
    return msgspec.structs.replace(answer, mask_keys={**answer.mask_keys, FIVE: said})


def withheld(answer: Unmask) -> Unmask:
    return msgspec.structs.replace(answer, mask_keys={})


def both_of_one(answer: Unmask) -> Unmask:
    """More than was asked for: a share of the mask key of a survivor."""
    return msgspec.structs.replace(answer, mask_keys={**answer.mask_keys, TWO: answer.mask_keys[FIVE]})


def swapped(answer: Unmask) -> Unmask:
    said = {**answer.self_masks, TWO: answer.self_masks[THREE], THREE: answer.self_masks[TWO]}
    return msgspec.structs.replace(answer, self_masks=said)


@pytest.mark.parametrize("lie", [wrong_share, wrong_own_salt, wrong_key_share, withheld, both_of_one, swapped])
def test_a_site_that_opens_what_it_was_not_dealt_is_blamed_and_the_others_open_the_sum(lie: Any) -> None:
    cohort = Cohort(5, hooks={("unmask", "up"): resign(lie, Unmask)}, gone={FIVE: ("masked", "down")})
    assert ends_well(cohort) is None
    (fault,) = cohort.server.faults
    assert (fault.site, fault.code) == (ONE, "bad_share")
    assert cohort.server.result().survivors == names(4)


def test_one_honest_answer_fewer_than_t_opens_nothing() -> None:
    cohort = Cohort(
        5,
        hooks={("unmask", "up"): resign(wrong_share, Unmask)},
        gone={FIVE: ("unmask", "up"), FOUR: ("unmask", "up")},
    )
    error = ends_well(cohort)
    assert (
        error is not None
        and error.code == "lost"
        and "2 sites answered, want 3; without site-01, site-04, site-05" in error.detail
    )


# -- tickets ---------------------------------------------------------------------------------------------------------


def test_a_ticket_with_anothers_key_or_a_bad_one_makes_no_cohort() -> None:
    cohort = Cohort(5)
    mine = wire.verify(cohort.tickets[ONE], Ticket, key_of(ONE).public_key(), NOW)
    other = wire.verify(cohort.tickets[TWO], Ticket, key_of(TWO).public_key(), NOW)
    cohort.tickets[ONE] = wire.sign(key_of(ONE), msgspec.structs.replace(mine, mask_key=other.mask_key))
    with pytest.raises(ProtocolAbort, match="bad_roster: two sites share a key"):
        cohort.aggregation()
    for change, code in (
        ({"mask_key": bytes(32)}, "bad_roster"),
        ({"layout_digest": "3" * 64}, "wrong_terms"),
        ({"dp_event": msgspec.structs.replace(mine.dp_event, steps=1)}, "wrong_terms"),
    ):
        envelope = wire.sign(key_of(ONE), msgspec.structs.replace(mine, **change))
        with pytest.raises(ProtocolAbort) as caught:
            roster.read_ticket(envelope, cohort.terms, cohort.mtls, NOW)
        assert (caught.value.code, caught.value.blame) == (code, ONE)


def test_a_site_cannot_speak_for_another() -> None:
    cohort = Cohort(5)
    for stage in STAGES:
        message = cohort.server.message(TWO)
        answer, payload = cohort.call(TWO, stage, message)
        with pytest.raises(ProtocolAbort) as caught:
            cohort.server.take(ONE, answer, payload, now=NOW)
        assert caught.value.blame == ""
        cohort.server.take(TWO, answer, payload, now=NOW)
        for site in cohort.server.waiting:
            cohort.server.take(site, *cohort.call(site, stage, message), now=NOW)
        cohort.server.advance(NOW)
    assert cohort.server.stage == "opened"


def test_messages_have_bounded_sizes() -> None:
    cohort = Cohort(5)
    envelope, _ = cohort.call(ONE, "shares", cohort.server.message(ONE))
    body = signing.unverified_body(envelope)
    for change in (
        {"sealed": {**body["sealed"], TWO: "A" * 10_000}},
        {"hashes": {f"site-{number}": ["0" * 64] * 2 for number in range(41)}},
        {"site": "x" * 64},
        {"own": "0" * 65},
    ):
        signed = signing.sign(key_of(ONE), envelope["payloadType"], {**body, **change})
        with pytest.raises(ProtocolAbort, match="bad_message"):
            cohort.aggregation().take(ONE, signed, now=NOW)
    (signature,) = envelope["signatures"]
    for huge in (
        {**envelope, "payload": "A" * (12 * 1024 * 1024)},
        {**envelope, "payload": "A" * 40_000},
        {**envelope, "signatures": [signature, {"keyid": "x" * 10_000_000, "sig": ""}]},
        {**envelope, "signatures": [signature] * 100},
    ):
        with pytest.raises(ProtocolAbort, match=r"bad_message: .*(longer than|want one signature)"):
            cohort.server.take(ONE, huge, now=NOW)
    assert not cohort.server.faults
    cohort.server.take(ONE, envelope, now=NOW)


def test_a_long_ticket_cannot_make_the_roster_too_long_for_the_others() -> None:
    cohort = Cohort(5)
    mine = wire.verify(cohort.tickets[ONE], Ticket, key_of(ONE).public_key(), NOW)
    envelope = wire.sign(key_of(ONE), msgspec.structs.replace(mine, ledger={"payload": "x" * 1_000_000}))
    with pytest.raises(ProtocolAbort, match="bad_roster: the ticket of site-01: Ticket: longer than"):
        roster.read_ticket(envelope, cohort.terms, cohort.mtls, NOW)


def test_a_dropped_site_is_not_heard_again() -> None:
    cohort = Cohort(5)
    envelope, _ = cohort.call(ONE, "shares", cohort.server.message(ONE))
    shares = wire.verify(envelope, Shares, key_of(ONE).public_key(), NOW)
    bad = wire.sign(key_of(ONE), msgspec.structs.replace(shares, sealed={}))
    with pytest.raises(ProtocolAbort) as caught:
        cohort.server.take(ONE, bad, now=NOW)
    assert caught.value.blame == ONE and ONE not in cohort.server.waiting
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        cohort.server.take(ONE, envelope, now=NOW)
    with pytest.raises(ProtocolAbort, match="out_of_order"):
        cohort.server.message(ONE)


def test_a_mask_key_that_two_encodings_name_is_one_key() -> None:
    """X25519 clamps: a dealer may share either form, the public key that comes of it is the same."""
    secret = bytes([0xFF]) * 32
    assert keys.pair_of(secret).public == keys.pair_of(bytes([0xF8]) + secret[1:31] + bytes([0x7F])).public
