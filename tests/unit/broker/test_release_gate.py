"""The budget: what is charged, once or again, and what is refused with which figures."""

from dataclasses import replace

import msgspec
import pytest

from cordon import documents
from cordon.attest.keys import ProcessKeys
from cordon.broker.config import Gate
from cordon.broker.gate import REASONS, Plan
from cordon.dp import accounting
from cordon.errors import ConfigError, Refused
from fakes.key_broker import EVENT, PLAN, STAMP

PRICE = accounting.epsilon([(EVENT, PLAN.rounds)], 1e-5, accountant="rdp")


def test_a_release_is_charged_with_the_rdp_epsilon_of_its_plan(hospitals):
    broker = hospitals.broker()
    lease = hospitals.released(broker, hospitals.process())
    assert broker.spent() == (1, pytest.approx(PRICE))
    seq, row, head = broker.ledger_rows()[-1]
    assert (row["kind"], row["lease"], row["epsilon"]) == ("ADMIT", lease.lease, pytest.approx(PRICE))
    assert row["gate"] == msgspec.to_builtins(hospitals.gate)  # by which ceiling, whatever TERMS others wrote meanwhile
    assert (lease.ledger.seq, lease.ledger.head) == (seq, head)


def test_the_same_process_is_charged_once_whether_it_renews_or_lost_the_answer(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    first = hospitals.released(broker, process)
    again = hospitals.released(broker, process)
    hospitals.sleep(60)
    renewed = hospitals.released(broker, process, renews=first.lease)
    hospitals.sleep(10_000)  # long expired
    late = hospitals.released(broker, process, renews=renewed.lease)
    assert broker.spent()[0] == 1
    assert len({each.lease for each in (first, again, renewed, late)}) == 4
    assert {each.ledger for each in (again, renewed, late)} == {first.ledger}
    assert "nothing charged" in hospitals.receipt(broker, broker.receipts()[-1]).detail


@pytest.mark.parametrize(
    "changed",
    [
        lambda process: replace(process, keys=ProcessKeys.generate()),
        lambda process: replace(process, job="another"),
        lambda process: replace(process, job_digest="cd" * 32),
        lambda process: replace(process, plan=Plan(dp_event=EVENT, rounds=13)),
    ],
    ids=["process", "job", "job folder", "plan"],
)
def test_another_one_is_charged_again_even_if_it_names_the_first_ones_lease(hospitals, changed):
    broker, process = hospitals.broker(), hospitals.process()
    lease = hospitals.released(broker, process)
    hospitals.released(broker, changed(process), renews=lease.lease)
    assert broker.spent()[0] == 2


def test_another_vault_is_charged_again(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.released(broker, process)
    other = msgspec.structs.replace(STAMP, vault="0b" * 16)
    broker.register(other, bytes(32), hospitals.now)
    elsewhere = replace(process, stamp=other)
    asked = elsewhere.asks(hospitals.challenge(broker, elsewhere))
    hospitals.opened(broker, elsewhere, asked, key=bytes(32))
    assert broker.spent()[0] == 2


def test_the_count_of_releases_ends_and_says_its_figures(hospitals):
    broker = hospitals.broker(gate=Gate(max_releases=2, epsilon=1000.0, delta=1e-5))
    old = hospitals.process()
    hospitals.released(broker, old)
    hospitals.released(broker, hospitals.process())
    third = hospitals.process()
    receipt = hospitals.refused(broker, third.asks(hospitals.challenge(broker, third)))
    assert (receipt.decision, receipt.detail) == ("releases_exhausted", "2 of 2 releases are used")
    hospitals.released(broker, old)  # a renewal is none
    assert broker.spent()[0] == 2


def test_epsilons_add_up_to_the_ceiling_and_no_further(hospitals):
    broker = hospitals.broker(gate=Gate(max_releases=10, epsilon=2 * PRICE, delta=1e-5))
    hospitals.released(broker, hospitals.process())
    hospitals.released(broker, hospitals.process())  # exactly the ceiling
    third = hospitals.process(plan=Plan(dp_event=EVENT, rounds=1))
    receipt = hospitals.refused(broker, third.asks(hospitals.challenge(broker, third)))
    assert receipt.decision == "epsilon_over_ceiling"
    assert f"{2 * PRICE:.4g} of {2 * PRICE:.4g}" in receipt.detail
    assert broker.spent() == (2, pytest.approx(2 * PRICE))


def test_a_refusal_charges_nothing_and_writes_no_ledger_row(hospitals):
    broker = hospitals.broker(gate=Gate(max_releases=0, epsilon=1.0, delta=1e-5))
    before, process = broker.head(), hospitals.process()
    hospitals.refused(broker, process.asks(hospitals.challenge(broker, process)))
    assert broker.head() == before
    assert broker.spent() == (0, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 1e-300},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": 1e300},
        {"sampling_rate": 1.5},
        {"sampling_rate": 0.0},
        {"steps": 10**15},
        {"steps": 0},
        {"clip_norm": 0.0},
    ],
    ids=str,
)
def test_a_plan_that_no_accountant_takes_is_refused(hospitals, change):
    broker = hospitals.broker()
    plan = Plan(dp_event=msgspec.structs.replace(EVENT, **change), rounds=1)
    process = hospitals.process(plan=plan)
    receipt = hospitals.refused(broker, process.asks(hospitals.challenge(broker, process)))
    assert receipt.decision == "bad_request"
    assert f"plan: {next(iter(change))}" in receipt.detail
    assert broker.spent() == (0, 0.0)


def test_what_a_gate_wrote_before_it_refused_is_undone(hospitals, monkeypatch):
    broker, process = hospitals.broker(), hospitals.process()
    gate, before = broker._decider._gate, broker.head()
    admit = gate.admit

    def charges_and_refuses(*arguments):
        admit(*arguments)
        raise Refused("releases_exhausted", "after all")

    monkeypatch.setattr(gate, "admit", charges_and_refuses)
    receipt = hospitals.refused(broker, process.asks(hospitals.challenge(broker, process)))
    assert receipt.detail == "after all"
    assert (broker.spent(), broker.head()) == ((0, 0.0), before)


def test_what_was_charged_stays_after_a_restart_and_under_other_limits(hospitals):
    process = hospitals.process()
    hospitals.released(hospitals.broker(), process)
    lower = Gate(max_releases=1, epsilon=PRICE, delta=1e-5)
    broker = hospitals.restart(gate=lower)
    hospitals.released(broker, process)
    other = hospitals.process()
    assert hospitals.refused(broker, other.asks(hospitals.challenge(broker, other))).decision == "releases_exhausted"
    terms = [row for _, row, _ in broker.ledger_rows() if row["kind"] == "TERMS"]
    assert [each["gate"]["max_releases"] for each in terms] == [100, 1]


def test_a_lease_says_what_was_asked_and_until_when(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    lease = hospitals.released(broker, process)
    request = process.request(hospitals.challenge(broker, process))
    assert (lease.site, lease.study, lease.job, lease.job_digest) == tuple(
        getattr(request, name) for name in ("site", "study", "job", "job_digest")
    )
    assert (lease.stamp, lease.check_s, lease.tenant) == (STAMP, 2.0, "hospital-a")
    assert (lease.expires - lease.granted).total_seconds() == hospitals.policy.lease_s
    assert lease.granted == hospitals.now


def test_limits_that_cannot_be_are_refused_by_the_schema():
    for change in ({"delta": 0.0}, {"delta": 1.0}, {"epsilon": -1.0}, {"max_releases": -1}):
        body = {"max_releases": 1, "epsilon": 1.0, "delta": 1e-5, **change}
        with pytest.raises(ConfigError, match=next(iter(change))):
            documents.parse(repr(body).replace("'", '"').encode(), Gate, "gate")


def test_every_reason_is_a_word_with_an_explanation():
    assert all(code.replace("_", "").isalpha() and text for code, text in REASONS.items())
