"""The database: durable, private, one at a time, and never a second one by accident."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap

import msgspec
import pytest

from cordon.broker import identity, state, vaults
from cordon.broker.keys.encrypted_file import FileKek, create_file_kek
from cordon.broker.protocol import LeaseQuery
from cordon.broker.restore import restore
from cordon.errors import ConfigError, CordonError, SealError, SignatureError
from fakes.key_broker import NOW, OTHER, SITE, STAMP, VAULT_KEY


@pytest.fixture
def path(tmp_path):
    made = state.create(tmp_path / "private" / "x.sqlite")
    made.close()
    return made.path


def test_file_and_folder_are_the_owners_alone(path):
    for each in (path, path.parent, path.with_name("x.sqlite.lock")):
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0
    opened = state.State(path)
    with opened.transaction() as db:
        state.put_meta(db, "a", 1)
        for each in path.parent.iterdir():  # the write-ahead log too
            assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0
    opened.close()


@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_state_that_others_can_read_is_not_opened(path, which):
    (path if which == "file" else path.parent).chmod(0o750)
    with pytest.raises(ConfigError, match="open to others"):
        state.State(path)


def test_durability_is_switched_on(path):
    opened = state.State(path)
    with opened.reading() as db:
        values = {
            name: db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
        }
    opened.close()
    assert values == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}


def test_an_existing_state_is_never_made_anew(path):
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        state.create(path)
    assert path.read_bytes() == before


def test_garbage_other_databases_and_other_versions_are_refused(tmp_path, path):
    other = path.with_name("other.sqlite")
    for content, message in ((b"garbage" * 1000, "not a database"), (b"", "not the state of a key broker")):
        other.write_bytes(content)
        other.chmod(0o600)
        with pytest.raises(ConfigError, match=message):
            state.State(other)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ConfigError, match="schema version 99"):
        state.State(path)
    with pytest.raises(ConfigError, match="no state here"):
        state.State(path.with_name("absent.sqlite"))


def test_an_exception_undoes_the_whole_transaction_even_from_within_a_joined_one(path):
    opened = state.State(path)
    with pytest.raises(ZeroDivisionError), opened.transaction() as outer:
        state.put_meta(outer, "a", 1)
        with opened.transaction() as inner:
            state.put_meta(inner, "b", 2)
        raise ZeroDivisionError
    with opened.reading() as db:
        assert db.execute("SELECT count(*) FROM meta").fetchone() == (0,)
    opened.close()


def test_two_processes_take_turns_and_one_that_waits_too_long_says_so(path, monkeypatch):
    monkeypatch.setattr(state, "BUSY_S", 0.05)
    one, two = state.State(path), state.State(path)
    with one.transaction() as db:
        state.put_meta(db, "a", 1)
        with pytest.raises(ConfigError, match="locked"), two.transaction():
            pass
    with two.transaction() as db:
        assert state.get_meta(db, "a") == 1
    one.close()
    two.close()


def test_what_was_committed_survives_a_kill_and_what_was_not_is_undone(path):
    code = f"""
        import os, signal
        from pathlib import Path
        from cordon.broker import state
        opened = state.State(Path({str(path)!r}))
        with opened.transaction() as db:
            state.put_meta(db, "committed", 1)
        with opened.transaction() as db:
            state.put_meta(db, "open", 1)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=30)
    assert ended.returncode == -signal.SIGKILL
    opened = state.State(path)
    with opened.reading() as db:
        assert db.execute("SELECT name FROM meta").fetchall() == [("committed",)]
    opened.close()


@pytest.mark.parametrize("table", ["ledger", "receipts"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET head = ''"])
def test_ledger_and_receipts_can_only_grow(hospitals, table, statement):
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.released(broker, process)
    with pytest.raises(ConfigError, match="append-only"), broker._state.transaction() as db:
        db.execute(statement.format(table))


# -- keys ------------------------------------------------------------------------------------------------------------


def test_no_key_lies_in_the_state_in_the_clear(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    hospitals.released(broker, process)
    secrets = (VAULT_KEY, broker.signing_key.private_bytes_raw(), process.keys.signing_key.private_bytes_raw())
    hospitals.close()
    stored = b"".join(each.read_bytes() for each in hospitals.state.iterdir())
    assert STAMP.vault.encode() in stored
    for secret in secrets:
        assert secret not in stored
        assert secret.hex().encode() not in stored


def test_the_key_of_a_replaced_version_is_gone_from_every_file(hospitals):
    broker = hospitals.broker()
    with broker._state.reading() as db:
        wrapped = db.execute("SELECT wrapped FROM vaults").fetchone()[0]
    assert any(wrapped in each.read_bytes() for each in hospitals.state.iterdir())
    newer = msgspec.structs.replace(STAMP, version=3)
    assert broker.register(newer, bytes(32), hospitals.now)
    assert not any(wrapped in each.read_bytes() for each in hospitals.state.iterdir())


def test_registering_goes_forward_only_unless_asked_for(hospitals):
    broker = hospitals.broker()
    older, newer = (msgspec.structs.replace(STAMP, version=version) for version in (1, 3))
    with pytest.raises(ConfigError, match="version 2 is registered, which is newer than 1"):
        broker.register(older, VAULT_KEY, NOW)
    with pytest.raises(ConfigError, match="another root"):
        broker.register(msgspec.structs.replace(STAMP, root="3c" * 32), VAULT_KEY, NOW)
    with pytest.raises(ConfigError, match="another key"):
        broker.register(STAMP, bytes(32), NOW)
    with pytest.raises(ConfigError, match="32 bytes"):
        broker.register(newer, bytes(16), NOW)
    assert broker.register(STAMP, VAULT_KEY, NOW) is False  # the same again
    assert broker.register(newer, VAULT_KEY, NOW)
    assert broker.register(older, VAULT_KEY, NOW, allow_older=True)
    rows = [(row["version"], row["replaced"]) for _, row, _ in broker.ledger_rows() if row["kind"] == "REGISTER"]
    assert rows == [(2, None), (3, 2), (1, 3)]


def test_a_wrapped_key_moved_to_another_vaults_row_does_not_open(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    broker.register(msgspec.structs.replace(STAMP, vault="0b" * 16), bytes(32), NOW)
    with broker._state.transaction() as db:
        db.execute("UPDATE vaults SET wrapped = (SELECT wrapped FROM vaults WHERE vault = ?)", ("0b" * 16,))
    asked = process.asks(hospitals.challenge(broker, process))
    with pytest.raises(SealError):
        broker.release(asked, process.spki, hospitals.now)
    assert broker.receipts() == []
    assert broker.spent() == (0, 0.0)


def test_what_one_process_registers_the_server_gives_out_next_and_the_old_key_is_gone(hospitals):
    server, process = hospitals.broker(), hospitals.process()
    hospitals.released(server, process)
    with server._state.reading() as db:
        wrapped = db.execute("SELECT wrapped FROM vaults").fetchone()[0]
    newer = msgspec.structs.replace(STAMP, version=3)
    hospitals.open().register(newer, bytes(32), hospitals.now)  # the command, while the server has the database open
    assert not any(wrapped in each.read_bytes() for each in hospitals.state.iterdir())
    asked = process.asks(hospitals.challenge(server, process), stamp=newer)
    hospitals.opened(server, process, asked, key=bytes(32))


@pytest.mark.parametrize("name", ["../x", "", "a/b", "x" * 64, "a\0b"])
def test_a_name_that_leads_elsewhere_is_no_tenants(hospitals, name):
    with pytest.raises(ConfigError, match="not a tenant's name"):
        identity.create(name, hospitals.state, hospitals.kek, NOW)


# -- init and open ---------------------------------------------------------------------------------------------------


def test_init_refuses_where_the_contract_names_a_broker_already(hospitals, tmp_path):
    with pytest.raises(ConfigError, match="names a broker_spki for hospital-a already"):
        identity.init(hospitals.tenant(), hospitals.folder, tmp_path / "elsewhere", hospitals.kek, NOW)
    assert not (tmp_path / "elsewhere").exists()


def test_init_before_there_is_a_contract_gives_the_key_that_goes_into_it(hospitals, tmp_path):
    tenant = hospitals.tenant(study="later.yml")
    spki = identity.init(tenant, hospitals.folder, tmp_path / "elsewhere", hospitals.kek, NOW)
    assert len(spki) >= 40
    with pytest.raises(ConfigError, match="never overwritten"):
        identity.init(tenant, hospitals.folder, tmp_path / "elsewhere", hospitals.kek, NOW)


def test_a_broker_whose_key_the_contract_does_not_name_does_not_start(hospitals):
    path = state.database(hospitals.state, SITE)
    path.unlink()
    identity.create(SITE, hospitals.state, hospitals.kek, NOW)
    with pytest.raises(ConfigError, match="names another broker_spki"):
        hospitals.open()


def test_a_broker_with_another_tenants_state_does_not_start(hospitals):
    os.replace(state.database(hospitals.state, OTHER), state.database(hospitals.state, SITE))
    with pytest.raises(ConfigError, match="state of tenant hospital-b, want hospital-a"):
        hospitals.open()


def test_a_broker_with_another_kek_does_not_start(hospitals, tmp_path):
    create_file_kek(tmp_path / "kek2", b"correct horse battery staple", log2_n=14)
    hospitals.kek = FileKek(tmp_path / "kek2", b"correct horse battery staple")
    with pytest.raises(ConfigError, match="do not open with this key encryption key"):
        hospitals.open()


def test_a_broker_whose_tenant_pins_another_contract_does_not_start(hospitals):
    with pytest.raises(ConfigError, match="tenant pins"):
        hospitals.open(study_digest="0" * 64)


def test_a_restart_forgets_neither_key_nor_vault(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    key = broker.signing_key.public_key()
    broker = hospitals.restart()
    assert broker.signing_key.public_key() == key
    hospitals.released(broker, process)
    kinds = [row["kind"] for _, row, _ in broker.ledger_rows()]
    assert kinds == ["OPEN", "TERMS", "REGISTER", "ADMIT"]  # one row of terms: they are the same


# -- other hands, and a full disk --------------------------------------------------------------------------------------


def edit(hospitals, statement):
    """By other hands, while no broker runs."""
    hospitals.close()
    db = sqlite3.connect(state.database(hospitals.state, SITE))
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    assert db.execute(statement).rowcount
    for _, sql in triggers:
        db.execute(sql)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE charges SET epsilon = 0", "charges"),
        ("UPDATE charges SET releases = 0", "charges"),
        ("DELETE FROM charges", "charges"),
        ("DELETE FROM revocations", "revocations"),
        ("UPDATE vaults SET root = replace(root, '2b', '3c')", "vaults"),
        ("DELETE FROM ledger WHERE seq = 2", "ledger row"),
        ("UPDATE ledger SET body = 'x' WHERE seq = 1", "ledger row"),
        ("DELETE FROM ledger", "ledger"),
    ],
)
def test_a_broker_does_not_start_on_a_state_that_says_something_else_than_its_ledger(hospitals, statement, named):
    broker = hospitals.broker()
    hospitals.released(broker, hospitals.process())
    broker.revoke(hospitals.now, job="withdrawn")
    edit(hospitals, statement)
    with pytest.raises(CordonError, match=named):
        hospitals.open()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER free BEFORE INSERT ON charges BEGIN SELECT RAISE(IGNORE); END",
        "DROP TRIGGER ledger_is_kept",
        "DROP INDEX leases_by_key",
    ],
)
def test_a_trigger_put_in_or_taken_out_is_found_in_a_state_and_in_a_backup(hospitals, tmp_path, statement):
    broker = hospitals.broker()
    broker.backup(tmp_path / "backup")
    hospitals.close()
    path = state.database(hospitals.state, SITE)
    for each in (path, tmp_path / "backup"):
        db = sqlite3.connect(each)
        db.execute(statement)
        db.close()
    with pytest.raises(ConfigError, match="other hands"):
        hospitals.open()
    path.unlink()
    with pytest.raises(ConfigError, match="other hands"):
        restore(tmp_path / "backup", SITE, hospitals.state, hospitals.kek, NOW, lost_epsilon=0.0)


def test_a_backup_with_a_charge_less_is_not_restored(hospitals, tmp_path):
    broker = hospitals.broker()
    hospitals.released(broker, hospitals.process())
    broker.backup(tmp_path / "backup")
    path = state.database(hospitals.state, SITE)
    hospitals.close()
    path.unlink()
    db = sqlite3.connect(tmp_path / "backup")
    db.execute("DELETE FROM charges")
    db.commit()
    db.close()
    with pytest.raises(SignatureError, match="charges"):
        restore(tmp_path / "backup", SITE, hospitals.state, hospitals.kek, NOW, lost_epsilon=0.0)
    assert not path.exists()


def test_a_damaged_receipt_is_said_to_be_one(hospitals):
    broker = hospitals.broker()
    hospitals.released(broker, hospitals.process())
    edit(hospitals, "UPDATE receipts SET envelope = '{'")
    with pytest.raises(SignatureError, match="damaged"):
        hospitals.open().receipts()


def test_a_full_disk_releases_nothing_and_charges_nothing(hospitals):
    broker = hospitals.broker()
    processes = [hospitals.process(job=f"job-{number}") for number in range(20)]
    asked = [process.asks(hospitals.challenge(broker, process)) for process in processes]
    db, released = broker._state._db, 0
    db.execute(f"PRAGMA max_page_count={db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(ConfigError, match="full"):
        for process, each in zip(processes, asked, strict=True):
            hospitals.opened(broker, process, each)
            released += 1
    assert released < 20
    assert broker.spent()[0] == len(broker.receipts()) == len(broker.live_leases(hospitals.now)) == released
    db.execute("PRAGMA max_page_count=1000000")
    hospitals.opened(broker, processes[released], asked[released])  # nothing was decided: the challenge is still open
    assert broker.spent()[0] == released + 1


def test_a_forgotten_key_is_gone_from_the_disk_and_the_ledger_says_so(hospitals):
    broker, process = hospitals.broker(), hospitals.process()
    lease, other = hospitals.released(broker, process), hospitals.broker(OTHER)
    kept = hospitals.released(other, hospitals.process(OTHER))
    with broker._state.reading() as db:
        wrapped = vaults.find(db, STAMP.vault).wrapped
    assert broker.forget(STAMP.vault, hospitals.now) == (True, [lease.lease])
    for path in hospitals.state.glob(f"{SITE}.sqlite*"):
        assert wrapped not in path.read_bytes()
    assert [row["kind"] for _, row, _ in broker.ledger_rows()][-2:] == ["FORGET", "REVOKE"]
    assert broker.lease_state(LeaseQuery(v=1, lease=lease.lease), process.spki, hospitals.now).state == "revoked"
    asked = LeaseQuery(v=1, lease=kept.lease)
    assert other.lease_state(asked, other.site_spki, hospitals.now).state == "live", "another tenant's"
    broker = hospitals.restart()  # tables and ledger agree
    assert broker.vaults() == []
    older = msgspec.structs.replace(STAMP, version=1)
    with pytest.raises(ConfigError, match="version 2 was forgotten, which is newer than 1"):
        broker.register(older, VAULT_KEY, hospitals.now)
    assert broker.register(older, VAULT_KEY, hospitals.now, allow_older=True)


def test_only_processes_of_the_forgotten_vault_lose_their_leases(hospitals):
    broker = hospitals.broker()
    second = msgspec.structs.replace(STAMP, vault="0b" * 16)
    broker.register(second, VAULT_KEY, hospitals.now)
    first, process = hospitals.process(), hospitals.process(stamp=second)
    ended = [hospitals.released(broker, first) for _ in range(2)]
    stands = hospitals.released(broker, process)
    assert len(broker.forget(STAMP.vault, hospitals.now)[1]) == 1, "one row ends both leases of the process"
    states = [
        broker.lease_state(LeaseQuery(v=1, lease=each.lease), broker.site_spki, hospitals.now).state
        for each in (*ended, stands)
    ]
    assert states == ["revoked", "revoked", "live"]


def test_a_vault_row_put_back_after_a_forget_is_found(hospitals):
    broker = hospitals.broker()
    with broker._state.reading() as db:
        row = db.execute("SELECT * FROM vaults").fetchone()
    broker.forget(STAMP.vault, hospitals.now)
    with broker._state.transaction() as db:
        db.execute("INSERT INTO vaults VALUES (?, ?, ?, ?)", row)
    hospitals.close()
    with pytest.raises(SignatureError, match="vaults say something else than the ledger"):
        hospitals.open()
