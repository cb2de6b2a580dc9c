"""A job's process gets its hospital's data key, holds it under a lease, and has none afterwards."""

import dataclasses
import gc
import hashlib
import json
import resource
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import messages, signing
from cordon.broker.config import Gate
from cordon.broker.gate import Receipt
from cordon.broker.receipts import verify_receipts
from cordon.cli import main
from cordon.errors import AttestError, BrokerUnavailable, ConfigError, Refused, VaultError
from cordon.flare import data_key, key_records, key_request, poc_broker
from cordon.flare.executors import refusal_code
from cordon.flare.kit import load_kit
from cordon.flare.session import MENDABLE
from cordon.messages import LedgerHead
from fakes.federation_kits import make_kits
from fakes.lease_holder import CHECK_S, MARGIN_S, Network, holding, raises_within, until


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaults")
    return make_kits(folder, ("hospital-a", "hospital-b", "hospital-c"), vaults=("hospital-a", "hospital-b"))


@pytest.fixture
def vaults(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "kits"))


@pytest.fixture
def holder(vaults):
    with holding(vaults) as each:
        yield each


def lasts(key):
    return (key.lease.expires - key.lease.granted).total_seconds()


def test_a_process_reads_its_vault_under_a_lease(holder):
    with holder.acquire() as key:
        with key.source() as source:
            assert source.members() == ("patients.csv",)
            with source.open("patients.csv") as file:
                assert file.readline().startswith(b"patient")
        key.require()
        lease = key.lease
        assert (lease.site, lease.job, lease.study) == ("hospital-a", holder.job_id, holder.kit.study.digest)
        assert lease.signing_key == signing.spki_digest(holder.keys.signing_key.public_key())
        broker_key = holder.kit.study.hospital("hospital-a").broker_key
        assert messages.verify(key.ledger, LedgerHead, broker_key, datetime.now(UTC)) == lease.ledger


def test_a_process_reads_its_vault_through_the_real_client_and_server(holder, vaults):
    with (
        Network(holder.wire.broker, vaults / poc_broker.FOLDER) as network,
        holder.acquire(connect=network.client, clock=data_key.boot_time) as key,
    ):
        with key.source() as source:
            assert source.single() == "patients.csv"
        until(CHECK_S + MARGIN_S, lambda: key._failure is None)
        holder.wire.broker.revoke(datetime.now(UTC), job=holder.job_id)
        error = raises_within(CHECK_S + MARGIN_S, key.require)
        assert isinstance(error, Refused)
        assert error.code == "lease_revoked"


def test_the_kit_alone_says_where_the_broker_is(holder, vaults):
    client = key_request.connect(holder.kit)
    assert client.url == holder.kit.policy.broker.url
    with pytest.raises(BrokerUnavailable):  # nobody listens there
        client.challenge(holder.job_id)


def test_a_site_without_a_vault_has_no_key_to_ask_for(vaults):
    with holding(vaults) as holder:
        holder.kit = load_kit(vaults / "hospital-c", datetime.now(UTC))
        with pytest.raises(ConfigError, match="names no vault"):
            holder.acquire()
        with pytest.raises(ConfigError, match="names no broker"):
            key_request.connect(holder.kit)


class Busy:
    """A TEE whose device makes no report now."""

    type = "software"

    def gpu_evidence(self, nonce):
        return None

    def report(self, report_data):
        raise ConfigError("/dev/sev-guest: busy")


def test_a_device_that_is_busy_is_no_error_of_the_site_for_good(holder):
    """The code is the one on which the coordinator asks again (``session.MENDABLE``)."""
    fine = holder.kit
    holder.kit = dataclasses.replace(fine, attester=Busy())
    with pytest.raises(AttestError, match="busy") as caught:
        holder.acquire()
    assert refusal_code(caught.value) == "evidence_unavailable" in MENDABLE
    assert "release" not in holder.wire.asked
    holder.kit = fine
    with holder.acquire() as key:
        key.require()


def test_a_missing_vault_asks_nobody(holder):
    (holder.kit.root / "data" / "patients.vault").unlink()
    with pytest.raises(VaultError, match="unreadable"):
        holder.acquire()
    assert holder.wire.asked == []


def test_a_vault_changed_after_the_lease_does_not_open(holder):
    with holder.acquire() as key:
        path = holder.kit.root / "data" / "patients.vault"
        data = bytearray(path.read_bytes())
        data[-60] ^= 1  # in the directory
        path.write_bytes(data)
        with pytest.raises(VaultError), key.source():
            pytest.fail("opened")


def test_a_refusal_is_raised_and_written_down_with_its_receipt(vaults):
    with holding(vaults, gate=Gate(max_releases=0, epsilon=40.0, delta=1e-5)) as holder:
        with pytest.raises(Refused) as caught:
            holder.acquire()
        assert caught.value.code == "releases_exhausted"
        assert holder.told() == [("refused", "releases_exhausted")]
        assert holder.wire.closed
        receipts, _ = verify_receipts(
            [line["receipt"] for line in holder.lines], holder.wire.broker.signing_key.public_key(), datetime.now(UTC)
        )
        assert [each.decision for each in receipts] == ["releases_exhausted"]


def test_a_silent_broker_is_said_to_be_silent(holder):
    holder.wire.silent = True
    with pytest.raises(BrokerUnavailable, match="no answer"):
        holder.acquire()
    assert holder.told() == [("unavailable", "broker_unavailable")]


def test_a_lease_is_renewed_in_its_last_third_and_costs_nothing(holder):
    with holder.acquire() as key:
        first = key.lease
        holder.clock.value += lasts(key) * 0.6
        time.sleep(2.2 * CHECK_S)
        assert key.lease == first
        holder.clock.value += lasts(key) * 0.1
        until(CHECK_S + MARGIN_S, lambda: key.lease.lease != first.lease)
        key.require()
        holder.clock.value += lasts(key) * 0.65  # past the end of the first
        key.require()
        assert holder.wire.broker.spent()[0] == 1
        asked, _ = holder.wire.released[1]
        assert signing.unverified_body(asked.request)["renews"] == first.lease
        assert signing.unverified_body(asked.evidence)["context"]["purpose"] == "release"
    assert [decision for decision, _ in holder.told()] == ["released", "renewed", "ended"]


def test_every_line_holds_a_receipt_that_the_hospital_can_check(holder):
    with holder.acquire() as key:
        first = key.lease.lease
        holder.clock.value += lasts(key) * 0.7
        until(CHECK_S + MARGIN_S, lambda: key.lease.lease != first)
    lines = holder.lines
    envelopes = [line["receipt"] for line in lines if line["receipt"]]
    assert envelopes == holder.wire.broker.receipts()
    receipts, _ = verify_receipts(envelopes, holder.wire.broker.signing_key.public_key(), datetime.now(UTC))
    assert all(isinstance(each, Receipt) for each in receipts)
    assert [each.lease for each in receipts] == [line["lease"] for line in lines[:2]]
    for line in lines[:2]:
        assert line["receipt_sha256"] == hashlib.sha256(line["receipt"]["payload"].encode()).hexdigest()
        assert datetime.fromisoformat(line["expires"]) > datetime.fromisoformat(line["time"])
    assert (holder.kit.root / key_records.LEASES_FILE).stat().st_mode & 0o077 == 0


def test_a_broker_that_comes_back_in_time_costs_nothing(holder):
    with holder.acquire() as key:
        first = key.lease.lease
        holder.wire.silent = True
        holder.clock.value += lasts(key) * 0.7
        until(CHECK_S + MARGIN_S, lambda: isinstance(key._failure, BrokerUnavailable))
        key.require()
        holder.wire.silent = False
        holder.clock.value += lasts(key) * 0.1
        until(CHECK_S + MARGIN_S, lambda: key.lease.lease != first)
        key.require()


def test_a_refused_renewal_ends_the_lease_at_once(holder):
    with holder.acquire() as key:
        holder.wire.broker.revoke(datetime.now(UTC), measurement=key_request.bundle_digest())
        error = raises_within(CHECK_S + MARGIN_S, key.require)
        assert error.code in ("measurement_revoked", "lease_revoked")


def test_what_says_nothing_about_the_holder_does_not_end_its_lease(holder):
    with holder.acquire() as key:
        holder.wire.ahead = -timedelta(days=1)  # the broker refuses: clock_moved_back
        holder.clock.value += lasts(key) * 0.7
        until(CHECK_S + MARGIN_S, lambda: ("refused", "clock_moved_back") in holder.told())
        key.require()
        holder.clock.value += lasts(key) * 0.31
        with pytest.raises(Refused) as caught:
            key.require()
        assert caught.value.code == "lease_expired"


def test_the_key_is_zeroed_and_the_thread_gone_after_close(holder):
    key = holder.acquire()
    kept = key._key
    assert any(kept)
    key.close()
    assert kept == bytearray(32)
    assert not key._thread.is_alive()
    assert holder.wire.closed
    with pytest.raises(Refused), key.source():
        pytest.fail("opened")
    key.close()  # twice is once
    assert holder.told() == [("released", ""), ("ended", "closed")]


def test_a_closed_lease_holds_the_key_nowhere(holder):
    key = holder.acquire()
    secret = bytes(key._key)
    with key.source() as source:
        vault = source.vault
    key.close()
    reachable, left = {}, [key, vault]
    while left:
        each = left.pop()
        if id(each) in reachable or isinstance(each, ModuleType | FunctionType | type):
            continue
        reachable[id(each)] = each
        left += gc.get_referents(each)
    assert id(key._granted) in reachable
    assert secret not in [each for each in reachable.values() if type(each) in (bytes, bytearray)]


def test_data_that_were_read_while_the_lease_ended_do_not_count(holder):
    with holder.acquire() as key, pytest.raises(Refused), key.source() as source:
        source.members()
        holder.clock.value += lasts(key) + 1


def test_a_lease_that_nobody_watches_is_none(holder, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    with holder.acquire() as key:
        monkeypatch.setattr(holder.wire, "lease_state", lambda lease: 1 / 0)
        error = raises_within(CHECK_S + MARGIN_S, key.require)
        assert "nobody watches" in str(error)


def test_evidence_is_made_by_one_thread_at_a_time(holder, monkeypatch):
    busy = []
    real = key_request.make_evidence

    def watched(*arguments):
        busy.append(key_request.EVIDENCE_LOCK.locked())
        return real(*arguments)

    monkeypatch.setattr(key_request, "make_evidence", watched)
    holder.acquire().close()
    assert busy == [True]


def test_the_clock_of_a_lease_counts_sleep_and_only_goes_forward():
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= data_key.boot_time() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_repr_shows_no_key(holder):
    with holder.acquire() as key:
        secret = bytes(key._key)
        for each in (key, key._asking, key._granted):
            assert secret.hex() not in repr(each)
            assert repr(secret) not in repr(each)


def test_two_jobs_of_one_site_may_see_the_ledger_in_any_order(tmp_path):
    key = Ed25519PrivateKey.generate()
    heads = [LedgerHead(v=1, ledger="l", seq=seq, head=f"{seq:064x}") for seq in (3, 5, 4)]
    for head in heads:  # all asked before anything had been seen
        key_records.remember_head(tmp_path, head, messages.sign(key, head), None)
    assert key_records.seen_head(tmp_path) == heads[1]
    kept = json.loads((tmp_path / key_records.HEAD_FILE).read_text())  # for cordon broker restore --last-seen
    assert messages.verify(kept, LedgerHead, key.public_key(), datetime.now(UTC)) == heads[1]
    with pytest.raises(Refused, match="ledger_rolled_back"):
        key_records.remember_head(tmp_path, heads[2], messages.sign(key, heads[2]), heads[1])


def test_a_broker_that_is_restored_goes_on_after_what_the_kit_has_seen(vaults, tmp_path):
    """The commands of provisioning/README.md, after a lost disk."""
    folder = vaults / poc_broker.FOLDER
    config, lost = ["--config", str(folder / poc_broker.CONFIG)], vaults / "lost"
    assert main(["broker", "backup", *config, "--out", str(tmp_path / "backup")]) == 0
    with holding(vaults) as holder:
        holder.acquire().close()
    lost.mkdir()
    for each in (folder / poc_broker.STATE).glob("hospital-a.sqlite*"):
        each.rename(lost / each.name)
    seen = str(vaults / "hospital-a" / key_records.HEAD_FILE)
    tenant = ["--tenant", "hospital-a", "--from", str(tmp_path / "backup"), "--lost-epsilon", "4"]
    assert main(["broker", "restore", *config, *tenant, "--last-seen", seen]) == 0
    with holding(vaults) as holder, holder.acquire() as key, key.source() as source:
        assert source.members()


@pytest.mark.parametrize("text", ["", "{}", "[]", "\xff", '{"v":1,"ledger":"l","seq":-1,"head":"00"}', "[" * 4000])
def test_a_head_file_that_does_not_say_is_not_taken_for_none(tmp_path, text):
    path = tmp_path / key_records.HEAD_FILE
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"ledger_head\.json"):
        key_records.seen_head(tmp_path)


def test_nobody_gets_a_key_whose_release_cannot_be_written_down(holder):
    (holder.kit.root / key_records.LEASES_FILE).mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        holder.acquire()
    assert holder.wire.closed


def test_a_line_that_a_full_disk_cut_short_spoils_no_later_one(holder):
    path = holder.kit.root / key_records.LEASES_FILE
    path.write_text('{"time": "2026-01')
    holder.acquire().close()
    cut, *lines = path.read_text().splitlines()
    assert cut == '{"time": "2026-01'
    assert [json.loads(line)["decision"] for line in lines] == ["released", "ended"]


def test_a_lease_that_ends_just_as_its_key_is_copied_is_said_to_have_ended(holder):
    with holder.acquire() as key:
        why = Refused("lease_revoked", "at this moment")

        class EndsFirst:
            def __enter__(self):
                if key._over is None:
                    key._over = why
                    key._wipe()

            def __exit__(self, *exception):
                pass

        key._lock = EndsFirst()
        with pytest.raises(Refused, match="at this moment"), key.source():
            pytest.fail("opened")


def test_a_process_with_a_data_key_leaves_no_core_file(holder):
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == 0:
        pytest.skip("this machine allows no core file to anybody")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        holder.acquire().close()
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 1  # neither a file nor a pipe
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
