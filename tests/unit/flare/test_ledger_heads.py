"""What a coordinator remembers of the hospitals' ledgers."""

import json
from datetime import UTC, datetime

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import messages, signing
from cordon.errors import ConfigError, UpdateRejected
from cordon.flare.ledger_heads import HEADS_FILE, LedgerHeads
from cordon.messages import LedgerHead
from cordon.study import Hospital

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BROKER, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
SPKI = signing.encode_spki(BROKER.public_key())
HOSPITAL = Hospital(name="a", mtls_spki=SPKI, policy_spki=SPKI, steward_spki=SPKI, broker_spki=SPKI)


def head(seq, value="1", ledger="ledger", key=BROKER):
    return messages.sign(key, LedgerHead(v=1, ledger=ledger, seq=seq, head=value * 64))


def check(heads, envelope, hospital=HOSPITAL):
    heads.check(hospital, envelope, NOW)


def refused(heads, envelope, match, hospital=HOSPITAL):
    with pytest.raises(UpdateRejected, match=match) as caught:
        check(heads, envelope, hospital)
    assert caught.value.code == "bad_ledger"


def test_heads_go_forward_or_stay(tmp_path):
    heads = LedgerHeads(tmp_path)
    for seq, value in ((3, "a"), (3, "a"), (4, "b"), (9, "c")):
        check(heads, head(seq, value))
    refused(heads, head(8), "rolled back")
    refused(heads, head(9, "d"), "forked")
    refused(heads, head(10, ledger="new"), "ledger 'new'")
    check(heads, head(9, "c"))


def test_the_next_job_remembers(tmp_path):
    check(LedgerHeads(tmp_path), head(9, "c"))
    heads = LedgerHeads(tmp_path)
    refused(heads, head(8), "rolled back")
    refused(heads, head(9, "d"), "forked")
    refused(heads, head(10, ledger="new"), "ledger 'new'")
    check(heads, head(9, "c"))
    check(heads, head(10, "d"))
    kept = json.loads((tmp_path / HEADS_FILE).read_text())
    assert [each["seq"] for each in kept["heads"].values()] == [10]


def test_two_jobs_at_the_same_time_may_see_heads_in_another_order(tmp_path):
    """A lease of the one was granted before a lease of the other, and its update comes after: nobody's fault."""
    one, two = LedgerHeads(tmp_path), LedgerHeads(tmp_path)
    check(two, head(6, "b"))
    check(one, head(5, "a"))
    refused(two, head(5, "a"), "rolled back")
    check(one, head(6, "b"))
    refused(one, head(6, "c"), "forked")
    refused(LedgerHeads(tmp_path), head(5, "a"), "rolled back")


def test_a_fork_that_another_job_saw_is_noticed(tmp_path):
    one, two = LedgerHeads(tmp_path), LedgerHeads(tmp_path)
    check(two, head(6, "b"))
    refused(one, head(6, "c"), "forked")
    refused(one, head(7, ledger="new"), "ledger 'new'")


@pytest.mark.parametrize(
    "envelope",
    [None, {}, [], 7, "x", {"payload": "AAAA", "payloadType": "x", "signatures": []}, head(1, key=OTHER)],
)
def test_what_is_no_head_of_this_broker(tmp_path, envelope):
    refused(LedgerHeads(tmp_path), envelope, "no ledger head by the site's broker")
    assert not (tmp_path / HEADS_FILE).exists()


def test_another_kind_of_document_by_the_broker_is_no_head(tmp_path):
    body = {"v": 1, "ledger": "ledger", "seq": 5, "head": "1" * 64}
    refused(LedgerHeads(tmp_path), signing.sign(BROKER, "application/vnd.cordon.lease.v1+json", body), "no ledger head")


def test_a_site_without_a_broker_sends_none(tmp_path):
    without = msgspec.structs.replace(HOSPITAL, broker_spki=None)
    heads = LedgerHeads(tmp_path)
    check(heads, None, without)
    refused(heads, head(1), "names no broker", without)


def test_hospitals_that_share_a_broker_are_kept_apart(tmp_path):
    heads = LedgerHeads(tmp_path)
    check(heads, head(9, ledger="of a"))
    check(heads, head(2, ledger="of b"), msgspec.structs.replace(HOSPITAL, name="b"))
    refused(heads, head(8, ledger="of a"), "rolled back")


def test_a_broker_with_a_new_key_begins_anew(tmp_path):
    """It is in a study contract that all hospitals signed."""
    check(LedgerHeads(tmp_path), head(9))
    new = msgspec.structs.replace(HOSPITAL, broker_spki=signing.encode_spki(OTHER.public_key()))
    check(LedgerHeads(tmp_path), head(0, ledger="new", key=OTHER), new)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[" * 5000, b"\xff", b'{"version":"cordon/ledger-heads/v1","heads":{"a":1}}', b"x" * 2**21],
    ids=["empty", "nothing", "nested", "no text", "no head", "huge"],
)
def test_a_file_that_does_not_say_what_was_seen_stops_the_job(tmp_path, content):
    (tmp_path / HEADS_FILE).parent.mkdir()
    (tmp_path / HEADS_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match="ledger_heads"):
        LedgerHeads(tmp_path)


def test_a_disk_that_takes_nothing_lets_nothing_count(tmp_path):
    heads = LedgerHeads(tmp_path)
    (tmp_path / HEADS_FILE.parent).write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="cannot be kept"):
        check(heads, head(1))
