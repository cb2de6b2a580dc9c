"""Who stands between a hospital's job process and its broker, or holds the process's machine, gets nothing by it.

The process must believe no answer but its own broker's to its own question, use no key after the lease ended, and leave
no key on the disk.
"""

import base64
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import signing
from cordon.attest.keys import ProcessKeys
from cordon.broker.client import BrokerClient
from cordon.broker.gate import LEASE_TYPE
from cordon.errors import BrokerUnavailable, Refused, SealError, VaultError
from cordon.flare import key_records, poc_broker
from cordon.messages import LedgerHead
from fakes.federation_kits import make_kits
from fakes.lease_holder import CHECK_S, MARGIN_S, Network, forge, holding, opened, raises_within, until

UNAVAILABLE = [("unavailable", "broker_unavailable")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leases")
    return make_kits(folder, ("hospital-a", "hospital-b", "hospital-c"), vaults=("hospital-a", "hospital-b"))


@pytest.fixture
def vaults(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "kits"))


@pytest.fixture
def holder(vaults):
    with holding(vaults) as each:
        yield each


@pytest.fixture
def right(holder):
    """The key of the hospital's own broker."""
    return holder.wire.broker.signing_key


def lasts(key):
    return (key.lease.expires - key.lease.granted).total_seconds()


# -- answers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["site", "study", "job", "job_digest", "stamp", "signing_key"])
def test_a_lease_for_something_else_by_the_right_broker_is_refused(holder, right, field):
    def change(asked, release):
        lease = signing.unverified_body(release.lease)
        asked_for = lease[field]
        other = {**asked_for, "version": 7} if field == "stamp" else asked_for[:-1] + "10"[asked_for[-1] == "1"]
        return forge(asked, release, right, **{field: other})

    holder.wire.change = change
    with pytest.raises(BrokerUnavailable, match=f"for another {field} than"):
        holder.acquire()
    assert holder.told() == UNAVAILABLE


def test_the_forged_answers_of_these_tests_would_pass_if_they_said_what_was_asked(holder, right):
    holder.wire.change = lambda asked, release: forge(asked, release, right)
    holder.acquire().close()


def test_a_lease_by_another_hospitals_broker_is_refused(holder, vaults):
    with opened(vaults / poc_broker.FOLDER, "hospital-b") as other:
        holder.wire.change = lambda asked, release: forge(asked, release, other.signing_key)
        with pytest.raises(BrokerUnavailable, match="lease does not verify"):
            holder.acquire()


@pytest.mark.parametrize("part", ["lease", "ledger", "receipt"])
def test_an_answer_with_one_part_by_another_broker_is_refused(holder, part):
    def change(asked, release):
        forged = forge(asked, release, Ed25519PrivateKey.generate())
        return msgspec.structs.replace(release, **{part: getattr(forged, part)})

    holder.wire.change = change
    with pytest.raises(BrokerUnavailable, match="broker_spki"):
        holder.acquire()


def test_a_receipt_signed_as_a_lease_is_no_lease(holder, right):
    def change(asked, release):
        return msgspec.structs.replace(release, lease=signing.sign(right, LEASE_TYPE, {"v": 1}))

    holder.wire.change = change
    with pytest.raises(BrokerUnavailable, match="lease does not verify"):
        holder.acquire()


@pytest.mark.parametrize("said", [{"decision": "evidence_refused"}, {"job": "another"}, {"evidence_sha256": "00" * 32}])
def test_a_receipt_about_another_decision_is_refused(holder, right, said):
    holder.wire.change = lambda asked, release: forge(asked, release, right, receipt=said)
    with pytest.raises(BrokerUnavailable, match="receipt is about another decision"):
        holder.acquire()


def test_a_head_that_is_not_the_leases_is_refused(holder, right):
    head = LedgerHead(v=1, ledger="other", seq=9, head="ab" * 32)

    def change(asked, release):
        return msgspec.structs.replace(release, ledger=forge(asked, release, right, ledger=head).ledger)

    holder.wire.change = change
    with pytest.raises(BrokerUnavailable, match="another than the one in its lease"):
        holder.acquire()


@pytest.mark.parametrize(
    "times",
    [
        {"granted": "2026-01-01T00:00:00Z", "expires": "2026-01-01T00:00:00Z"},
        {"granted": "2026-01-01T00:00:00Z", "expires": "2025-12-31T00:00:00Z"},
        {"granted": "2026-01-01T00:00:00Z", "expires": "2027-01-01T00:00:00Z"},
        {"granted": "2026-01-01T00:00:00", "expires": "2026-01-01T01:00:00Z"},
    ],
)
def test_a_lease_without_a_sensible_length_is_refused(holder, right, times):
    holder.wire.change = lambda asked, release: forge(asked, release, right, **times)
    with pytest.raises(BrokerUnavailable, match=r"its lease (lasts|has times)"):
        holder.acquire()


def test_a_server_with_another_tls_key_than_the_policy_pins_gets_no_evidence(holder, vaults):
    with Network(holder.wire.broker, vaults / poc_broker.FOLDER) as network:
        pin = signing.encode_spki(Ed25519PrivateKey.generate().public_key())

        def connect(kit):
            startup = kit.root / "startup"
            url = f"https://127.0.0.1:{network.port}"
            return BrokerClient(url, pin, startup / "client.crt", startup / "client.key", timeout_s=2.0)

        with pytest.raises(BrokerUnavailable, match="another key than"):
            holder.acquire(connect=connect)
    assert holder.wire.broker.receipts() == []


# -- keys that are not ours ------------------------------------------------------------------------------------------


def test_the_wrapped_key_of_another_process_does_not_open(holder):
    first = holder.keys
    holder.acquire().close()
    holder.keys = ProcessKeys.generate()
    theirs = holder.wire.released[0][1].wrapped
    assert first is not holder.keys
    holder.wire.change = lambda asked, release: msgspec.structs.replace(release, wrapped=theirs)
    with pytest.raises(SealError):
        holder.acquire()
    assert holder.told()[-1] == ("unavailable", "not_opened")


def test_the_wrapped_key_of_an_earlier_lease_of_the_same_process_does_not_open(holder):
    holder.acquire().close()
    before = holder.wire.released[0][1].wrapped
    holder.wire.change = lambda asked, release: msgspec.structs.replace(release, wrapped=before)
    with pytest.raises(SealError):
        holder.acquire()


def test_a_whole_earlier_answer_replayed_is_refused(holder):
    holder.acquire().close()
    before = holder.wire.released[0][1]
    holder.wire.change = lambda asked, release: before
    with pytest.raises(BrokerUnavailable, match="receipt is about another decision"):
        holder.acquire()


def test_a_wrong_key_from_the_right_broker_opens_no_vault(holder, right):
    holder.wire.change = lambda asked, release: forge(asked, release, right, vault_key=bytes(range(32)))
    with holder.acquire() as key, pytest.raises(VaultError) as caught, key.source():
        pytest.fail("opened")
    assert caught.value.reason == "wrong_key_or_header"


def put_in_place(vaults):
    file = Path("data") / "patients.vault"
    shutil.copyfile(vaults / "hospital-b" / file, vaults / "hospital-a" / file)


def test_another_vault_put_in_place_after_the_lease_is_not_read(holder, vaults):
    with holder.acquire() as key:
        put_in_place(vaults)
        with pytest.raises(VaultError) as caught, key.source():
            pytest.fail("opened")
        assert caught.value.reason == "wrong_vault"


def test_a_clone_of_another_hospitals_vault_gets_no_key_here(holder, vaults):
    put_in_place(vaults)
    with pytest.raises(Refused) as caught:
        holder.acquire()
    assert caught.value.code == "unknown_vault"
    assert holder.lines[0]["receipt"] is not None


# -- renewals --------------------------------------------------------------------------------------------------------


def test_a_forged_renewal_neither_lengthens_nor_ends_the_lease(holder):
    with holder.acquire() as key:
        first = key.lease
        holder.wire.change = lambda asked, release: forge(asked, release, Ed25519PrivateKey.generate())
        holder.clock.value += lasts(key) * 0.7
        until(CHECK_S + MARGIN_S, lambda: UNAVAILABLE[0] in holder.told())
        key.require()
        assert key.lease == first
        holder.clock.value += lasts(key) * 0.31
        with pytest.raises(BrokerUnavailable, match="ran out"):
            key.require()


@pytest.mark.parametrize("what", ["an older lease", "another key"])
def test_a_renewal_with_an_older_lease_or_another_key_is_none(holder, right, what):
    with holder.acquire() as key:
        first, secret = key.lease, bytes(key._key)
        changes = {"vault_key": bytes(32)}
        if what == "an older lease":
            changes = {"vault_key": secret, "granted": first.granted - timedelta(seconds=1)}
        holder.wire.change = lambda asked, release: forge(asked, release, right, **changes)
        holder.clock.value += lasts(key) * 0.7
        until(CHECK_S + MARGIN_S, lambda: UNAVAILABLE[0] in holder.told())
        assert what in str(key._failure)
        assert key.lease == first


# -- ledgers ---------------------------------------------------------------------------------------------------------


def test_a_broker_set_back_to_an_old_copy_of_its_state_is_noticed(vaults, tmp_path):
    with holding(vaults) as holder:
        holder.wire.broker.backup(tmp_path / "old.sqlite")
        holder.acquire().close()
    state = vaults / poc_broker.FOLDER / "state" / "hospital-a.sqlite"
    for each in state.parent.glob("hospital-a.sqlite*"):
        if not each.name.endswith(".lock"):
            each.unlink()
    shutil.copyfile(tmp_path / "old.sqlite", state)
    state.chmod(0o600)
    with holding(vaults) as holder:  # another job would now cost nothing
        with pytest.raises(Refused) as caught:
            holder.acquire()
        assert caught.value.code == "ledger_rolled_back"
        assert holder.told()[-1] == ("refused", "ledger_rolled_back")


@pytest.mark.parametrize("kind", ["older", "other at the same place", "another ledger"])
def test_a_ledger_rolled_back_between_two_leases_ends_the_first(holder, right, kind):
    with holder.acquire() as key:
        head = key.lease.ledger
        shown = {
            "older": msgspec.structs.replace(head, seq=head.seq - 1, head="00" * 32),
            "other at the same place": msgspec.structs.replace(head, head="00" * 32),
            "another ledger": msgspec.structs.replace(head, ledger="fresh", seq=head.seq + 1),
        }[kind]
        secret = bytes(key._key)
        holder.wire.change = lambda asked, release: forge(asked, release, right, vault_key=secret, ledger=shown)
        holder.clock.value += lasts(key) * 0.7
        error = raises_within(CHECK_S + MARGIN_S, key.require)
        assert isinstance(error, Refused)
        assert error.code == "ledger_rolled_back"
        assert key_records.seen_head(holder.kit.root) == head


# -- the end of a lease ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lease", "job"])
def test_a_revoked_process_is_stopped_while_it_trains(holder, kind):
    with holder.acquire() as key:
        kept = key._key
        value = {"lease": key.lease.lease, "job": holder.job_id}[kind]
        holder.wire.broker.revoke(datetime.now(UTC), **{kind: value})
        error = raises_within(CHECK_S + MARGIN_S, key.require)
        assert isinstance(error, Refused)
        assert error.code == "lease_revoked"
        assert kept == bytearray(32)
        with pytest.raises(Refused), key.source():
            pytest.fail("opened")
    assert holder.told() == [("released", ""), ("ended", "lease_revoked")]
    with pytest.raises(Refused) as caught:  # and gets no other
        holder.acquire()
    assert caught.value.code == "lease_revoked"


def test_a_lease_that_the_broker_does_not_know_is_none(holder, monkeypatch):
    with holder.acquire() as key:
        real = holder.wire.broker.lease_state
        monkeypatch.setattr(holder.wire.broker, "lease_state", lambda asked, spki, now: real(asked, "11", now))
        error = raises_within(CHECK_S + MARGIN_S, key.require)
        assert error.code == "lease_revoked"


def test_a_dead_broker_ends_the_lease_when_it_runs_out_and_not_before(holder):
    with holder.acquire() as key:
        kept = key._key
        holder.wire.silent = True
        holder.clock.value += lasts(key) - 1
        until(CHECK_S + MARGIN_S, lambda: key._failure is not None)
        key.require()
        with key.source() as source:
            assert source.members()
        holder.clock.value += 1
        with pytest.raises(BrokerUnavailable, match="ran out"):
            key.require()
        assert kept == bytearray(32)
    assert holder.told()[-1] == ("ended", "broker_unavailable")


def test_the_key_is_gone_after_the_end_even_if_nobody_asks(holder):
    with holder.acquire() as key:
        holder.wire.silent = True
        holder.clock.value += lasts(key) + 1
        until(CHECK_S + MARGIN_S, lambda: not any(key._key))


@pytest.mark.parametrize("days", [-3650, -1, 1, 3650])
def test_a_host_that_sets_its_time_of_day_changes_no_lease(holder, days):
    with holder.acquire() as key:
        holder.wire.silent = True
        holder.ahead = timedelta(days=days)
        holder.clock.value += lasts(key) - 1
        key.require()
        holder.clock.value += 1
        with pytest.raises((Refused, BrokerUnavailable)):
            key.require()


@pytest.mark.parametrize("days", [-3650, 3650])
def test_a_host_with_another_time_of_day_than_its_broker_gets_the_same_lease(holder, days):
    holder.ahead = timedelta(days=days)
    with holder.acquire() as key:
        key.require()
        holder.wire.silent = True
        holder.clock.value += lasts(key)
        with pytest.raises((Refused, BrokerUnavailable)):
            key.require()


def test_a_lease_is_counted_from_before_the_question(holder, monkeypatch):
    release = holder.wire.release

    def slow(evidence, request):  # whoever holds the answer back makes no lease longer
        holder.clock.value += 100
        return release(evidence, request)

    monkeypatch.setattr(holder.wire, "release", slow)
    with holder.acquire() as key:
        assert key._granted.until == pytest.approx(holder.clock.value - 100 + lasts(key))


def test_a_host_whose_clock_stands_still_is_told_by_the_broker(holder):
    with holder.acquire() as key:
        holder.wire.ahead = timedelta(seconds=lasts(key) + 1)  # time went on elsewhere
        error = raises_within(CHECK_S + MARGIN_S, key.require)
        assert error.code == "lease_expired"


# -- what stays behind -----------------------------------------------------------------------------------------------


def test_no_file_of_kit_or_broker_holds_the_key(holder, vaults):
    with holder.acquire() as key:
        secret = bytes(key._key)
        first = key.lease.lease
        with key.source() as source, source.open(source.single()) as file:
            file.read()
        holder.clock.value += lasts(key) * 0.7
        until(CHECK_S + MARGIN_S, lambda: key.lease.lease != first)
        holder.wire.broker.revoke(datetime.now(UTC), job=holder.job_id)
        raises_within(CHECK_S + MARGIN_S, key.require)
    forms = {"raw": secret, "hex": secret.hex().encode(), "HEX": secret.hex().upper().encode()}
    for shift in range(3):  # inside of longer base64, it begins at one of three places
        whole = base64.b64encode(bytes(shift) + secret)
        forms[f"base64 {shift}"] = whole[4 * (shift > 0) : -4]
        forms[f"base64url {shift}"] = base64.urlsafe_b64encode(bytes(shift) + secret)[4 * (shift > 0) : -4]
    files = [path for path in vaults.rglob("*") if path.is_file()]
    assert {key_records.LEASES_FILE, "ledger_head.json", "hospital-a.sqlite"} <= {path.name for path in files}
    found = [(path, form) for path in files for form, value in forms.items() if value in path.read_bytes()]
    assert found == []
    assert len(holder.lines) == 3
