"""Receipts and ledger: what an auditor verifies, and what cannot be taken out, put in or moved."""

import json

import pytest

from cordon import messages, signing
from cordon.broker import ledger
from cordon.broker.gate import RECEIPT_TYPE
from cordon.broker.receipts import verify_receipts
from cordon.errors import SignatureError
from cordon.messages import LedgerHead
from fakes.key_broker import NOW, OTHER, sha256


@pytest.fixture
def audited(hospitals):
    """A broker that released, refused, and released again; its receipts."""
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.released(broker, process)
    hospitals.refused(broker, process.asks(hospitals.challenge(broker, process), study="0" * 64))
    hospitals.released(broker, process)
    return broker, json.loads(json.dumps(broker.receipts()))


def test_the_whole_chain_verifies_with_the_public_key_alone(audited):
    broker, envelopes = audited
    found, (seq, head) = verify_receipts(envelopes, broker.signing_key.public_key(), NOW)
    assert [each.decision for each in found] == ["released", "wrong_study", "released"]
    assert [each.seq for each in found] == [1, 2, 3]
    assert (seq, len(head)) == (3, 64)
    rest, end = verify_receipts(envelopes[1:], broker.signing_key.public_key(), NOW, start=(1, found[1].previous))
    assert (rest, end) == (found[1:], (seq, head))


@pytest.mark.parametrize(
    "edit",
    [
        lambda each: each[1:],
        lambda each: [each[0], each[2]],
        lambda each: [each[1], each[0], each[2]],
        lambda each: [each[0], each[0], *each[1:]],
        lambda each: [*each, each[0]],
        lambda each: [{**each[0], "payload": each[1]["payload"]}, *each[1:]],
        lambda each: [each[0], None, each[2]],
    ],
    ids=["first gone", "gap", "swapped", "doubled", "replayed", "another's payload", "garbage"],
)
def test_a_gap_an_edit_or_another_order_is_found(audited, edit):
    broker, envelopes = audited
    with pytest.raises(SignatureError):
        verify_receipts(edit(envelopes), broker.signing_key.public_key(), NOW)


def test_a_receipt_by_another_broker_or_of_another_shape_is_refused(audited, hospitals):
    broker, envelopes = audited
    with pytest.raises(SignatureError):
        verify_receipts(envelopes, hospitals.open(OTHER).signing_key.public_key(), NOW)
    body = {**signing.unverified_body(envelopes[0]), "note": "x"}
    forged = signing.sign(broker.signing_key, RECEIPT_TYPE, body)
    with pytest.raises(SignatureError, match="schema"):
        verify_receipts([forged], broker.signing_key.public_key(), NOW)


def test_a_rewritten_decision_breaks_the_chain_even_with_the_brokers_key(audited):
    broker, envelopes = audited
    body = {**signing.unverified_body(envelopes[1]), "decision": "released"}
    envelopes[1] = signing.sign(broker.signing_key, RECEIPT_TYPE, body)
    with pytest.raises(SignatureError, match="receipt 3 does not follow receipt 2"):
        verify_receipts(envelopes, broker.signing_key.public_key(), NOW)


def test_a_cut_off_end_shows_against_what_a_site_holds(audited):
    broker, envelopes = audited
    key = broker.signing_key.public_key()
    _, whole = verify_receipts(envelopes, key, NOW)
    _, cut = verify_receipts(envelopes[:-1], key, NOW)
    assert cut != whole


def test_an_admission_names_the_receipts_before_it(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.refused(broker, process.asks(hospitals.challenge(broker, process), study="0" * 64))
    hospitals.released(broker, process)
    _, point = verify_receipts(broker.receipts()[:1], broker.signing_key.public_key(), NOW)
    assert broker.ledger_rows()[-1][1]["receipts"] == list(point)


def test_a_receipt_lists_every_check_and_what_was_waived(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    asked = process.asks(hospitals.challenge(broker, process))
    release = broker.release(asked, process.spki, hospitals.now)
    receipt = hospitals.receipt(broker, release.receipt)
    codes = dict(receipt.codes)
    assert {"mtls_signature", "context_purpose", "context_study", "nonce", "report_data", "tee_holder"} <= set(codes)
    assert receipt.not_checked == ("measurement", "bundle_digest")  # the POC policy says any
    assert receipt.policy_digest == hospitals.policy.digest
    assert receipt.request_sha256 == sha256(asked.request)
    assert (receipt.evidence_type, receipt.job, receipt.time) == ("software", process.job, hospitals.now)


def test_the_ledger_is_a_chain_and_its_head_is_signed(audited, hospitals):
    broker, _ = audited
    rows = broker.ledger_rows()
    previous = ""
    for seq, row, head in rows:
        previous = ledger.chain(previous, seq, signing.canonical(row))
        assert head == previous
    signed = messages.verify(broker.head(), LedgerHead, broker.signing_key.public_key(), NOW)
    assert (signed.seq, signed.head) == (rows[-1][0], rows[-1][2])
    assert signed.ledger == rows[0][1]["ledger"]


@pytest.mark.parametrize(
    "edit", ["UPDATE ledger SET body = replace(body, '2b2b', '3c3c')", "DELETE FROM ledger WHERE seq = 2"]
)
def test_an_edit_of_the_ledgers_table_is_found(audited, edit):
    broker, _ = audited
    with broker._state.transaction() as db:
        for trigger in ("ledger_is_final", "ledger_is_kept"):
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute(edit)
    with pytest.raises(SignatureError, match="ledger row"):
        broker.ledger_rows()


def test_receipts_come_in_pages(audited):
    broker, envelopes = audited
    assert broker.receipts(1) == envelopes[1:]
    assert broker.receipts(0, limit=2) == envelopes[:2]
    assert broker.receipts(3) == []
