"""Challenges count once, in time, for their purpose, also across restarts."""

import stat
from datetime import timedelta

import pytest

from cordon.attest import nonce as module
from cordon.attest.nonce import Nonces
from cordon.errors import AttestError, ConfigError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nonces.json"


def _code(nonces, *args):
    with pytest.raises(AttestError) as caught:
        nonces.take(*args)
    return caught.value.failures[0][0]


def test_a_challenge_counts_once(path, world):
    nonces = Nonces(path)
    nonce = nonces.issue("hospital-a", "parent", "", world.now, 30)
    assert len(nonce) == 32
    nonces.take(nonce, "hospital-a", "parent", "", world.now)
    assert _code(nonces, nonce, "hospital-a", "parent", "", world.now) == "nonce_unknown"


def test_a_used_challenge_stays_used_after_a_restart(path, world):
    nonces = Nonces(path)
    used = nonces.issue("hospital-a", "parent", "", world.now, 30)
    open_ = nonces.issue("hospital-b", "parent", "", world.now, 30)
    nonces.take(used, "hospital-a", "parent", "", world.now)
    again = Nonces(path)
    assert _code(again, used, "hospital-a", "parent", "", world.now) == "nonce_unknown"
    again.take(open_, "hospital-b", "parent", "", world.now)


def test_a_new_challenge_voids_the_one_before_to_the_same_site_for_the_same_thing(path, world):
    """A silent peer is asked for ever: its challenges must not use up everybody's."""
    nonces = Nonces(path)
    first = nonces.issue("hospital-a", "parent", "", world.now, 30)
    job = nonces.issue("hospital-a", "job", "j1", world.now, 30)
    second = nonces.issue("hospital-a", "parent", "", world.now, 30)
    assert _code(nonces, first, "hospital-a", "parent", "", world.now) == "nonce_unknown"
    nonces.take(second, "hospital-a", "parent", "", world.now)
    nonces.take(job, "hospital-a", "job", "j1", world.now)


def test_a_challenge_has_a_deadline_and_is_spent_by_missing_it(path, world):
    nonces = Nonces(path)
    nonce = nonces.issue("hospital-a", "parent", "", world.now, 30)
    late = world.now + timedelta(seconds=31)
    assert _code(nonces, nonce, "hospital-a", "parent", "", late) == "nonce_expired"
    assert _code(nonces, nonce, "hospital-a", "parent", "", world.now) == "nonce_unknown"


@pytest.mark.parametrize(
    "used_for", [("hospital-b", "parent", ""), ("hospital-a", "job", ""), ("hospital-a", "parent", "j")]
)
def test_a_challenge_is_for_one_site_purpose_and_job(path, world, used_for):
    nonces = Nonces(path)
    nonce = nonces.issue("hospital-a", "parent", "", world.now, 30)
    assert _code(nonces, nonce, *used_for, world.now) == "nonce_misused"
    assert _code(nonces, nonce, "hospital-a", "parent", "", world.now) == "nonce_unknown"


def test_the_file_is_private_and_holds_no_nonce(path, world):
    nonce = Nonces(path).issue("hospital-a", "parent", "", world.now, 30)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert nonce.hex() not in path.read_text()


def test_open_challenges_are_bounded_and_expired_ones_forgotten(path, world, monkeypatch):
    monkeypatch.setattr(module, "MAX_OUTSTANDING", 3)
    nonces = Nonces(path)
    for name in ("hospital-a", "hospital-b", "hospital-c"):
        nonces.issue(name, "parent", "", world.now, 30)
    with pytest.raises(AttestError, match="challenge_limit"):
        nonces.issue("hospital-d", "parent", "", world.now, 30)
    nonces.issue("hospital-d", "parent", "", world.now + timedelta(seconds=31), 30)


def test_a_damaged_file_is_not_ignored(path):
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"nonces\.json"):
        Nonces(path)
