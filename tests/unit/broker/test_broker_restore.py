"""Backup and restore: what is lost is said, charged, and visible to whoever saw the later head."""

import os
import stat

import pytest

from cordon import messages
from cordon.broker import state
from cordon.broker.config import Gate
from cordon.broker.protocol import LeaseQuery
from cordon.broker.restore import restore
from cordon.errors import ConfigError
from cordon.messages import LedgerHead
from fakes.key_broker import NOW, OTHER, SITE


@pytest.fixture
def lost(hospitals, tmp_path):
    """A backup after one release; then another release, a challenge, a revocation; then the state is lost."""
    broker, process = hospitals.broker(), hospitals.process()
    early = hospitals.released(broker, process)
    open_before = hospitals.challenge(broker, process)
    broker.backup(tmp_path / "backup")
    hospitals.released(broker, hospitals.process())
    broker.revoke(NOW, job="bad")
    later = messages.verify(broker.head(), LedgerHead, broker.signing_key.public_key(), NOW)
    hospitals.close()
    path = state.database(hospitals.state, SITE)
    os.replace(path, path.with_suffix(".lost"))
    return tmp_path / "backup", process, early, open_before, later


def bring_back(hospitals, backup, **arguments):
    return restore(backup, SITE, hospitals.state, hospitals.kek, NOW, **{"lost_epsilon": 0.0, **arguments})


def test_a_backup_is_one_private_file_and_never_overwrites(hospitals, tmp_path):
    broker = hospitals.broker()
    broker.backup(tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600
    assert not [each for each in tmp_path.iterdir() if each.name.startswith("backup") and each.name != "backup"]
    with pytest.raises(ConfigError, match="never overwritten"):
        broker.backup(tmp_path / "backup")


def test_without_a_later_head_the_sequence_goes_back_and_shows_it(hospitals, lost):
    backup, process, early, _, later = lost
    head = bring_back(hospitals, backup)
    assert head.seq < later.seq  # whoever holds `later` refuses this
    broker = hospitals.open()
    row = broker.ledger_rows()[-1][1]
    assert row["kind"] == "RESTORED"
    assert row["backup"] == {"seq": early.ledger.seq, "head": early.ledger.head}
    assert (row["seen"], row["lost"]) == (None, {"rows": 0, "epsilon": 0.0})
    hospitals.released(broker, process)
    assert broker.spent()[0] == 1


def test_with_a_later_head_the_ledger_goes_on_after_it_and_what_is_lost_is_charged(hospitals, lost):
    backup, process, early, _, later = lost
    head = bring_back(hospitals, backup, last_seen=later, lost_epsilon=4.1)
    assert head.seq == later.seq + 1
    broker = hospitals.open(gate=Gate(max_releases=4, epsilon=1000.0, delta=1e-5))
    gap = later.seq - early.ledger.seq
    assert broker.spent() == (1 + gap, pytest.approx(4.0788 + 4.1, abs=1e-3))
    hospitals.released(broker, process)  # charged before the backup
    for wanted in [None] * (3 - gap) + ["releases_exhausted"]:
        other = hospitals.process()
        if wanted is None:
            hospitals.released(broker, other)
        else:
            receipt = hospitals.refused(broker, other.asks(hospitals.challenge(broker, other)))
            assert receipt.decision == wanted
    broker.ledger_rows()  # the chain holds over the gap


def test_open_challenges_and_leases_of_the_backup_end(hospitals, lost):
    backup, process, early, challenge, _ = lost
    bring_back(hospitals, backup)
    broker = hospitals.open()
    assert hospitals.refused(broker, process.asks(challenge)).decision == "nonce_unknown"
    query = LeaseQuery(v=1, lease=early.lease)
    assert broker.lease_state(query, broker.site_spki, early.granted).state == "expired"


def test_a_live_or_newer_state_is_never_overwritten(hospitals, tmp_path):
    broker = hospitals.broker()
    broker.backup(tmp_path / "backup")
    hospitals.released(broker, hospitals.process())
    with pytest.raises(ConfigError, match="in use"):
        bring_back(hospitals, tmp_path / "backup")
    hospitals.close()
    path = state.database(hospitals.state, SITE)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="state at ledger row 3; a restore overwrites none"):
        bring_back(hospitals, tmp_path / "backup")
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_log_left_over_from_the_lost_state_is_not_replayed_into_the_restored_one(hospitals, lost, suffix):
    left = hospitals.state / f"{SITE}.sqlite{suffix}"
    left.write_bytes(b"x")
    with pytest.raises(ConfigError, match="move it away"):
        bring_back(hospitals, lost[0])
    left.unlink()
    bring_back(hospitals, lost[0])


def test_a_backup_that_is_damaged_or_anothers_is_refused_and_nothing_is_left_behind(hospitals, lost):
    backup, _, early, _, later = lost
    files = sorted(each.name for each in hospitals.state.iterdir())
    with pytest.raises(ConfigError, match="of tenant hospital-a"):
        restore(backup, "hospital-c", hospitals.state, hospitals.kek, NOW, lost_epsilon=0.0)
    neighbour = hospitals.open(OTHER)
    other = messages.verify(neighbour.head(), LedgerHead, neighbour.signing_key.public_key(), NOW)
    with pytest.raises(ConfigError, match="seen is of ledger"):
        other = messages.verify(
            hospitals.open(OTHER).head(), LedgerHead, hospitals.open(OTHER).signing_key.public_key(), NOW
        )
        bring_back(hospitals, backup, last_seen=other)
    hospitals.close()
    with pytest.raises(ConfigError, match="the backup has row"):
        bring_back(hospitals, backup, last_seen=LedgerHead(v=1, ledger=later.ledger, seq=0, head=later.head))
    with pytest.raises(ConfigError, match="another head"):
        fork = LedgerHead(v=1, ledger=later.ledger, seq=early.ledger.seq, head=later.head)
        bring_back(hospitals, backup, last_seen=fork)
    with pytest.raises(ConfigError, match="lost_epsilon"):
        bring_back(hospitals, backup, lost_epsilon=float("nan"))
    data = bytearray(backup.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    backup.write_bytes(data)
    with pytest.raises(ConfigError):
        bring_back(hospitals, backup)
    left = {each.name for each in hospitals.state.iterdir()} - set(files)
    assert {each for each in left if not each.endswith(".lock")} == set()
