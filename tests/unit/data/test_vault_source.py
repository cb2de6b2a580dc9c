"""The five hospital forms read from a vault: the same patients and the same balance as from a folder, and no file."""

import io
import os
import resource
import sqlite3
import sys
from contextlib import closing, contextmanager

import msgspec
import numpy as np
import pytest

from cordon.data.load import load_patients
from cordon.data.source import MAX_LINE, FolderSource, VaultSource
from cordon.data.sql import SqlOptions, _engine, scan
from cordon.data.vault import Vault, seal
from cordon.errors import MappingError, SourceError, VaultError

KEY = b"k" * 32
FORMS = ("fhir", "sql", "pdf", "omop", "csv")
_seen: list[tuple] = []
_on = False


def _hook(event, args):
    if _on and event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _seen.append(args)
    if _on and event.startswith(("tempfile.", "os.mkdir", "os.rename", "os.link", "os.symlink", "subprocess.")):
        _seen.append((event, args))


@contextmanager
def nothing_written():
    """Python's own opens are watched; what a C library writes (SQLite's temporary files) fails by the size limit."""
    global _on
    if not getattr(sys, "_cordon_write_watch", False):
        sys.addaudithook(_hook)
        sys._cordon_write_watch = True
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    _seen.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    _on = True
    try:
        yield
    finally:
        _on = False
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not _seen


def sealed(path, source, chunk=4096):
    """``source`` as a vault of small chunks, so that every reader crosses many of their borders."""
    folder = FolderSource(source)
    seal([(name, io.BytesIO(folder.open(name).read())) for name in folder.members()], path, KEY, chunk=chunk)
    return path


def test_the_watch_sees_a_written_file(tmp_path):
    with pytest.raises(AssertionError), nothing_written(), open(tmp_path / "x", "w"):
        pass
    with nothing_written(), closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"ATTACH '{tmp_path / 'y'}' AS y")
        with pytest.raises(sqlite3.OperationalError):
            database.execute("CREATE TABLE y.t AS SELECT 1")


@pytest.mark.parametrize("form", FORMS)
def test_a_vault_gives_the_patients_that_the_folder_gives(contract, mappings, hospital, tmp_path, form):
    plain = hospital(form, rows=60)
    load_patients(contract, mappings[form], form, FolderSource(plain))  # imports what is imported lazily
    path = sealed(tmp_path / "v", plain)
    folder = load_patients(contract, mappings[form], form, FolderSource(plain))
    with nothing_written(), Vault(path, KEY) as vault:
        loaded = load_patients(contract, mappings[form], form, VaultSource(vault))
    assert loaded.patients.ids == folder.patients.ids and len(loaded.patients.ids) == 60
    np.testing.assert_array_equal(loaded.patients.x, folder.patients.x)
    np.testing.assert_array_equal(loaded.patients.y, folder.patients.y)
    assert loaded.conservation.to_dict() == folder.conservation.to_dict()
    assert loaded.conservation.examples == folder.conservation.examples


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_vault_gives_no_patient(contract, mappings, hospital, tmp_path, form):
    path = sealed(tmp_path / "v", hospital(form))
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with Vault(path, KEY) as vault, pytest.raises(VaultError, match="chunk_changed"):
        load_patients(contract, mappings[form], form, VaultSource(vault))


@pytest.mark.parametrize("form", FORMS)
def test_a_vault_of_another_form_is_a_source_error(contract, mappings, tmp_path, form):
    (tmp_path / "notes.txt").write_text("not,what\nis wanted\n")
    (tmp_path / "more.txt").write_text("")
    for name, source in (("one", tmp_path / "notes.txt"), ("two", tmp_path)):
        path = sealed(tmp_path.parent / f"{name}-{form}.vault", source)
        with Vault(path, KEY) as vault, pytest.raises((SourceError, MappingError)):
            load_patients(contract, mappings[form], form, VaultSource(vault))


def test_folder_and_vault_agree_on_members_lines_and_bounds(tmp_path):
    (tmp_path / "in").mkdir()
    for name, data in {"b": b"1\n\n 2\n", "a": b"", "c": b" " * (MAX_LINE + 2)}.items():
        (tmp_path / "in" / name).write_bytes(data)
    folder = FolderSource(tmp_path / "in")
    seal([(name, folder.open(name)) for name in ("c", "b", "a")], tmp_path / "v", KEY)
    with Vault(tmp_path / "v", KEY) as vault:
        source = VaultSource(vault)
        assert source.members() == folder.members() == ("a", "b", "c")
        assert vault.members() == ("c", "b", "a")
        for each in (folder, source):
            assert list(each.lines("b")) == [(1, b"1\n"), (3, b" 2\n")]
            assert list(each.lines("a")) == []
            for wrong in (
                lambda each=each: list(each.lines("c")),
                lambda each=each: each.open("b", limit=5),
                lambda each=each: each.open("missing"),
                lambda each=each: each.open("../in/b"),
                each.single,
            ):
                with pytest.raises(SourceError):
                    wrong()


def test_a_single_file_keeps_its_name(tmp_path, hospital):
    plain = hospital("csv")
    with Vault(sealed(tmp_path / "v", plain), KEY) as vault:
        assert VaultSource(vault).single() == plain.name == FolderSource(plain).single()


# -- SQLite ----------------------------------------------------------------------------------------------------------


def test_a_database_with_a_write_ahead_log_reads_from_a_vault(contract, mappings, hospital, tmp_path):
    """Its header says that a log goes with it, which a database in memory cannot have."""
    plain = hospital("sql")
    with closing(sqlite3.connect(plain)) as database:
        assert database.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
        database.execute("UPDATE patienten SET geburtsjahr = 1950")
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert plain.read_bytes()[18:20] == b"\x02\x02"
    path = sealed(tmp_path / "v", plain)
    with nothing_written(), Vault(path, KEY) as vault:
        loaded = load_patients(contract, mappings["sql"], "sql", VaultSource(vault))
    assert len(loaded.patients.ids) == 30


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 4096, b"\x02" * 100])
def test_a_member_that_is_no_database_is_a_source_error(contract, mappings, tmp_path, data):
    seal([("d.db", io.BytesIO(data))], tmp_path / "v", KEY)
    with Vault(tmp_path / "v", KEY) as vault, pytest.raises((SourceError, MappingError)):
        load_patients(contract, mappings["sql"], "sql", VaultSource(vault))


def test_a_database_too_large_for_memory_is_refused_unread(mappings, hospital, tmp_path, monkeypatch):
    monkeypatch.setattr("cordon.data.sql.MAX_IN_MEMORY", 10_000)
    path = sealed(tmp_path / "v", hospital("sql"))
    options = msgspec.convert(mappings["sql"].options, SqlOptions, strict=False)
    with Vault(path, KEY) as vault, pytest.raises(VaultError, match="member_too_large"):
        list(scan(VaultSource(vault), mappings["sql"], options))


@pytest.mark.parametrize("kind", ["folder", "vault"])
def test_the_database_is_read_only_and_sorts_in_memory(hospital, tmp_path, kind):
    plain = hospital("sql")
    with Vault(sealed(tmp_path / "v", plain), KEY) as vault:
        source = FolderSource(plain) if kind == "folder" else VaultSource(vault)
        engine = _engine(source)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 1
            assert connection.exec_driver_sql("PRAGMA temp_store").scalar() == 2
        engine.dispose()


def test_a_large_sort_leaves_no_temporary_file(tmp_path):
    """SQLite's sorter spills to a file once it is over the page cache, also for a database in memory."""
    with closing(sqlite3.connect(tmp_path / "d.db")) as database, database:
        database.execute("CREATE TABLE t (k TEXT, v TEXT)")
        database.executemany(
            "INSERT INTO t VALUES (?, ?)", ((f"{at * 7919 % 30000:06d}", "x" * 400) for at in range(30000))
        )
    with Vault(sealed(tmp_path / "v", tmp_path / "d.db", chunk=256 * 1024), KEY) as vault, nothing_written():
        engine = _engine(VaultSource(vault))
        with engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT k, v FROM t ORDER BY k").fetchall()
        engine.dispose()
    assert len(rows) == 30000 and rows[1][0] == "000001"
