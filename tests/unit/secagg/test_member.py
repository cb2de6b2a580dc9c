"""One site in one cohort: its states, what it makes, and that it says nothing where anything differs."""

import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cordon.errors import ConfigError, CordonError, ProtocolAbort
from cordon.job import Staleness
from cordon.messages import sha256
from cordon.secagg import certificates, dealing, groups, roster, wire
from cordon.secagg.client import Member
from cordon.secagg.terms import Terms
from cordon.secagg.wire import ABORT_REASONS, Confirmation, Masked, Shares, Ticket, Unmask
from fakes.secagg_cohort import EVENT, JOB, LAYOUT, NOW, Cohort, certificate_of, head, key_of, mtls_keys, names

ONE, TWO, THREE, FOUR = names(4)


def said(cohort: Cohort, stage: str, schema: Any, site: str = ONE) -> Any:
    """What the member of ``site`` said in ``stage``."""
    (envelope,) = [
        each.envelope for each in cohort.sent if (each.stage, each.direction, each.site) == (stage, "up", site)
    ]
    return wire.verify(envelope, schema, key_of(site).public_key(), NOW)


def test_states_follow_the_stages_and_the_update_is_spent_once_it_was_masked() -> None:
    cohort = Cohort(3)
    member = cohort.members[ONE]
    seen = []
    for _ in range(4):
        seen.append((member.state, member.spent))
        cohort.step()
    assert seen == [("ready", False), ("shared", False), ("masked", True), ("confirmed", True)]
    assert (member.state, member.spent) == ("unmasked", True)


def test_a_ticket_says_what_the_plan_says_and_brings_fresh_keys() -> None:
    cohort = Cohort(3, version=2)
    tickets = [wire.verify(cohort.tickets[site], Ticket, key_of(site).public_key(), NOW) for site in cohort.sites]
    cohort.add(ONE, 2)
    tickets.append(wire.verify(cohort.tickets[ONE], Ticket, key_of(ONE).public_key(), NOW))
    for ticket in tickets:
        assert (ticket.job, ticket.base_version, ticket.model_chain_head) == (JOB, 2, head(2))
        assert (ticket.layout_digest, ticket.dp_event, ticket.privacy) == (LAYOUT, EVENT, "masked")
    made = [key for ticket in tickets for key in (ticket.mask_key, ticket.encryption_key)]
    assert len(set(made)) == 8


def test_randomness_is_the_argument_and_nothing_else() -> None:
    def run() -> list[Any]:
        counter = itertools.count()

        def random(size: int) -> bytes:
            return (sha256(str(next(counter)).encode()) * 2).encode()[:size]

        cohort = Cohort(3)
        for site in cohort.sites:
            cohort.members[site], cohort.tickets[site] = Member.ready(
                terms=cohort.terms,
                site=site,
                ticket="ticket-of-a-test",
                base_version=0,
                head=head(0) or "",
                ledger=None,
                signing_key=key_of(site),
                certificate=certificate_of(site),
                coordinator_key=key_of("coordinator").public_key(),
                random=random,
            )
        cohort.server = cohort.aggregation()
        cohort.run()
        return [(each.envelope, each.payload) for each in cohort.sent]

    assert run() == run()


def test_the_payload_is_as_many_words_as_the_model_and_looks_like_noise() -> None:
    for bits in (32, 64):
        cohort = Cohort(3, size=4096, ring_bits=bits)
        cohort.vectors = dict.fromkeys(cohort.sites, np.zeros(4096, np.float32))
        cohort.run()
        payload = next(each.payload for each in cohort.sent if each.payload)
        assert len(payload) == 4096 * bits // 8
        assert said(cohort, "masked", Masked).payload_sha256 == sha256(payload)
        words = np.frombuffer(payload, f"<u{bits // 8}").astype(np.float64) / 2.0**bits
        assert abs(words.mean() - 0.5) < 0.03  # 6 standard deviations
        assert len(set(payload)) == 256


def test_an_answer_opens_one_secret_of_each_site() -> None:
    cohort = Cohort(4, gone={FOUR: ("masked", "down")})
    cohort.run()
    answer = said(cohort, "unmask", Unmask)
    assert set(answer.self_masks) == {ONE, TWO, THREE} and set(answer.mask_keys) == {FOUR}
    assert said(cohort, "confirm", Confirmation).survivors == (ONE, TWO, THREE)
    assert said(cohort, "confirm", Confirmation).r1 == names(4)


def test_what_is_dealt_is_sealed_to_each_alone() -> None:
    cohort = Cohort(4)
    cohort.run()
    shares = {site: said(cohort, "shares", Shares, site) for site in cohort.sites}
    sealed = [each for message in shares.values() for each in message.sealed.values()]
    assert len(set(sealed)) == 12 and {len(each) for each in sealed} == {wire.SEALED_BYTES}
    hashes = [each for message in shares.values() for pair in message.hashes.values() for each in pair]
    assert len(set(hashes)) == 32
    # A third site, with its own encryption key, opens nothing that is for another.
    fresh = Cohort(4)
    message = fresh.server.message(ONE)
    dealt = wire.verify(fresh.call(ONE, "shares", message)[0], Shares, key_of(ONE).public_key(), NOW)
    fresh.call(THREE, "shares", message)
    third = fresh.members[THREE]
    stolen = msgspec.structs.replace(dealt, sealed={**dealt.sealed, THREE: dealt.sealed[TWO]})
    with pytest.raises(ProtocolAbort, match="bad_share: what site-01 dealt to site-03 does not open"):
        dealing.receive(fresh.server.view, stolen, THREE, third._secrets()[1])


@pytest.mark.parametrize(
    ("vector", "code"),
    [
        (np.full(8, np.nan, np.float32), "not_finite"),
        (np.full(8, np.inf, np.float32), "not_finite"),
        (np.full(8, 1.001, np.float32), "not_finite"),
        (np.full(7, 0.0, np.float32), None),
        (np.full(8, 0.0, np.float64), None),
        (np.full((8, 1), 0.0, np.float32), None),
    ],
)
def test_a_vector_that_cannot_be_added_is_not_masked(vector: Any, code: str | None) -> None:
    cohort = Cohort(3, vectors={ONE: vector, TWO: np.zeros(8, np.float32), THREE: np.zeros(8, np.float32)})
    cohort.step()
    with pytest.raises(ConfigError if code is None else ProtocolAbort) as caught:
        cohort.call(ONE, "masked", cohort.server.message(ONE))
    if isinstance(caught.value, ProtocolAbort):
        assert caught.value.code == code and caught.value.blame == ""
    assert cohort.members[ONE].state == "aborted" and not cohort.members[ONE].spent


@pytest.mark.parametrize(("noise", "share"), [(0.01, None), (0.0, np.zeros(8, np.int64))])
def test_noise_is_there_exactly_where_the_terms_say_so(noise: float, share: Any) -> None:
    cohort = Cohort(3, noise=noise, noises={} if share is None else {ONE: share})
    cohort.step()
    with pytest.raises(ConfigError, match="noise exactly where the terms say so"):
        cohort.call(ONE, "masked", cohort.server.message(ONE))
    assert cohort.members[ONE].state == "aborted" and not cohort.members[ONE].spent


def test_noise_of_another_kind_is_not_added() -> None:
    for share in (np.zeros(7, np.int64), np.zeros(8, np.int32)):
        cohort = Cohort(3, noise=0.01, noises={ONE: share})
        cohort.step()
        with pytest.raises(ConfigError, match="int64 noise"):
            cohort.call(ONE, "masked", cohort.server.message(ONE))


GROUPS = groups.draw({site: site.encode() for site in names(4)}, 4)
OTHER_TERMS: dict[str, Any] = {
    "study": "6" * 64,
    "job": "job-2",
    "mode": "groups",
    "u_min": 4,
    "c": 1,
    "ring_bits": 64,
    "clip": 2.0,
    "size": 9,
    "weights": {**dict.fromkeys(names(4), 0.25), ONE: 0.5},
    "staleness": Staleness(a=0.25),
    "layout_digest": "2" * 64,
    "dp_event": msgspec.structs.replace(EVENT, steps=6),
    "noise": 0.5,
    "group_map_digest": groups.digest(GROUPS),
    "groups": GROUPS,
    "max_staleness": 11,
    "members": 4,
}


@pytest.mark.parametrize("name", list(OTHER_TERMS))
def test_a_site_with_any_other_term_is_in_no_cohort_with_the_others(name: str) -> None:
    """It refuses the roster, or has another ctx: then no message of the others fits, and it masks nothing."""
    cohort = Cohort(4)
    changes = {name: OTHER_TERMS[name]}
    if name in ("mode", "groups", "group_map_digest"):
        changes = {key: OTHER_TERMS[key] for key in ("mode", "groups", "group_map_digest")}
    cohort.members[ONE]._terms = replace(cohort.terms, **changes)
    with pytest.raises(ProtocolAbort):
        cohort.call(ONE, "shares", cohort.server.message(ONE))
        assert cohort.members[ONE].view is not None
        assert cohort.members[ONE].view.ctx != cohort.server.view.ctx
        cohort.step()
        cohort.call(ONE, "masked", cohort.server.message(TWO))
    assert not cohort.members[ONE].spent
    assert set(OTHER_TERMS) == set(Terms.__dataclass_fields__)


def test_heads_may_be_a_mapping_or_a_function() -> None:
    cohort = Cohort(3, version=2, bases={ONE: 2, TWO: 1, THREE: 0})
    message = cohort.server.message(ONE)
    known = {version: head(version) or "" for version in range(3)}
    assert cohort.members[ONE].shares(message, mtls_keys=cohort.mtls, heads=known, now=NOW)
    assert cohort.members[THREE].shares(message, mtls_keys=cohort.mtls, heads={0: known[0]}, now=NOW)
    for lacking in ({1: known[1]}, {0: known[0]}, {}):
        again = Cohort(3, version=2, bases={ONE: 2, TWO: 1, THREE: 0})
        with pytest.raises(ProtocolAbort, match="off_chain"):
            again.members[TWO].shares(again.server.message(TWO), mtls_keys=again.mtls, heads=lacking, now=NOW)


def test_a_newer_head_that_the_site_happens_to_know_must_fit() -> None:
    cohort = Cohort(3, version=1, bases={ONE: 0, TWO: 1, THREE: 1})
    with pytest.raises(ProtocolAbort, match="off_chain: the base of site-02"):
        cohort.members[ONE].shares(
            cohort.server.message(ONE), mtls_keys=cohort.mtls, heads={0: head(0) or "", 1: "f" * 64}, now=NOW
        )


def test_tickets_outside_the_staleness_that_the_job_allows_are_refused() -> None:
    with pytest.raises(ProtocolAbort, match="off_chain: site-02 is 3 versions late, want 0 to 2"):
        Cohort(3, version=3, bases={ONE: 3, TWO: 0, THREE: 1}, max_staleness=2)


def test_no_secret_is_in_a_repr() -> None:
    cohort = Cohort(3)
    cohort.step()
    member = cohort.members[ONE]
    secret = member._secrets()[0].secret
    told = repr(member) + repr(member._pairs) + repr(member._held) + repr(member.view)
    for shown in (repr(secret), secret.hex(), repr(member._self_mask), repr(member._held[ONE].mask_key.share)):
        assert shown not in told


def test_whoever_certifies_says_for_which_key_site_job_and_study() -> None:
    made = certificates.certify(key_of(f"mtls {ONE}"), "5" * 64, JOB, ONE, key_of(ONE).public_key())
    body = wire.verify(made, wire.Certificate, key_of(f"mtls {ONE}").public_key(), NOW)
    assert (body.site, body.job, body.study) == (ONE, JOB, "5" * 64)
    envelope = Cohort(3).tickets[ONE]
    site, key = certificates.signer(envelope, "5" * 64, JOB, mtls_keys([ONE]), NOW, "bad_roster")
    assert site == ONE and key == key_of(ONE).public_key()
    with pytest.raises(ProtocolAbort, match="bad_roster: site 'site-01' is not in the study's roster"):
        certificates.signer(envelope, "5" * 64, JOB, mtls_keys([TWO]), NOW, "bad_roster")


def test_a_key_that_is_none_certifies_nobody() -> None:
    body = wire.Certificate(v=1, study="5" * 64, job=JOB, site=ONE, signing_key="A" * 60)
    made = wire.sign(key_of(f"mtls {ONE}"), body)
    cohort = Cohort(3)
    mine = wire.verify(cohort.tickets[ONE], Ticket, key_of(ONE).public_key(), NOW)
    envelope = wire.sign(key_of(ONE), msgspec.structs.replace(mine, certificate=made))
    with pytest.raises(ProtocolAbort, match="bad_roster: the certified key of site-01 is none"):
        roster.read_ticket(envelope, cohort.terms, cohort.mtls, NOW)


def test_time_is_an_argument() -> None:
    """No message has a time of its own; ``now`` reaches the signatures alone."""
    cohort = Cohort(3)
    later: datetime = NOW + timedelta(days=1000)
    assert cohort.members[ONE].shares(cohort.server.message(ONE), mtls_keys=cohort.mtls, heads=head, now=later)


def test_every_code_is_a_reason() -> None:
    """Codes in the sources are those of ``ABORT_REASONS``, and each of those is used."""
    folder = Path(wire.__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "wire.py")
    raised = {part.split('"', 1)[0] for part in source.split('ProtocolAbort("')[1:]}
    assert raised <= set(ABORT_REASONS)
    assert set(ABORT_REASONS) - raised <= {"bad_message"}
    assert issubclass(ProtocolAbort, CordonError)
