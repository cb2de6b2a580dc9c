"""``cordon vault``: files, output and exit codes; nothing is overwritten and nothing left out in silence."""

import json
import os
import sqlite3
import stat
from contextlib import closing

import pytest

from cordon.cli import main
from cordon.data.vault import Vault, stamp_of


def run(capsys, *words):
    """(exit code, stdout, stderr) of ``cordon vault ...``."""
    try:
        code = main(["vault", *map(str, words)])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def site(tmp_path, capsys):
    """A folder of two files and two keys."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "person.csv").write_bytes(b"person_id\n17\n")
    (tmp_path / "data" / "notes.txt").write_bytes(b"HA-00017 is ill\n" * 50_000)
    for name in ("key", "new-key"):
        assert run(capsys, "keygen", tmp_path / name)[0] == 0
    return tmp_path


@pytest.fixture
def sealed(site, capsys):
    code, *_ = run(capsys, "seal", site / "data", site / "v", "--key", site / "key", "--stamp-out", site / "stamp.json")
    assert code == 0
    return site / "v"


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_keygen_writes_32_bytes_for_the_owner_alone_and_never_again(site, capsys):
    key = site / "key"
    assert len(key.read_bytes()) == 32 and stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    assert before != (site / "new-key").read_bytes()
    code, out, err = run(capsys, "keygen", key)
    assert code == 3 and "never overwritten" in err
    assert key.read_bytes() == before and key.read_bytes().hex() not in out + err


def test_a_folder_is_sealed_and_read(site, sealed, capsys):
    with Vault(sealed, (site / "key").read_bytes()) as vault:
        assert vault.members() == ("notes.txt", "person.csv")
        assert vault.open("person.csv").read() == b"person_id\n17\n"
    stamp = json.loads((site / "stamp.json").read_text())
    assert stamp["root"] == stamp_of(sealed).root and stamp["version"] == 1
    assert b"HA-00017" not in sealed.read_bytes()


def test_info_without_a_key_verifies_nothing_and_says_so(sealed, capsys):
    code, out, _ = run(capsys, "info", sealed)
    assert code == 0 and "not verified" in out and "person.csv" not in out
    said = json.loads(run(capsys, "info", sealed, "--json")[1])
    assert said["verified"] == "nothing" and "members" not in said
    assert said["bytes"] == sealed.stat().st_size and said["stamp"]["root"] == stamp_of(sealed).root


def test_info_with_the_key_lists_the_members(site, sealed, capsys):
    code, out, _ = run(capsys, "info", sealed, "--key", site / "key")
    assert code == 0 and "13  person.csv" in out and "contents were not read" in out
    said = json.loads(run(capsys, "info", sealed, "--key", site / "key", "--json")[1])
    assert said["members"] == [{"name": "notes.txt", "size": 800_000}, {"name": "person.csv", "size": 13}]
    assert said["verified"] == "header_and_directory"
    code, _, err = run(capsys, "info", sealed, "--key", site / "new-key")
    assert code == 1 and "wrong_key_or_header" in err


def test_verify_reads_all_and_compares_with_a_stamp(site, sealed, capsys):
    key = ("--key", site / "key")
    code, out, _ = run(capsys, "verify", sealed, *key)
    assert code == 0 and "older version" in out
    code, out, _ = run(capsys, "verify", sealed, *key, "--stamp", site / "stamp.json")
    assert code == 0 and "version wanted" in out
    said = json.loads(run(capsys, "verify", sealed, *key, "--json")[1])
    assert said["ok"] and said["members"] == 2 and said["stamp_compared"] is False
    root = said["stamp"]["root"]
    assert run(capsys, "verify", sealed, *key, "--root", root, "--version", 1)[0] == 0
    assert run(capsys, "verify", sealed, *key, "--root", "0" * 64, "--version", 1)[0] == 1
    code, _, err = run(capsys, "verify", sealed, *key, "--root", root, "--version", 2)
    assert code == 1 and "rolled_back" in err
    for words in (
        ("--root", root),
        ("--version", 1),
        ("--root", "zz", "--version", 1),
        ("--root", root, "--version", 0),
    ):
        assert run(capsys, "verify", sealed, *key, *words)[0] == 3


@pytest.mark.parametrize("at", [20, 80, 1000, 400_000, -200, -10])
def test_a_tampered_vault_exits_1_without_a_word_of_it(site, sealed, capsys, at):
    flip(sealed, at)
    code, out, err = run(capsys, "verify", sealed, "--key", site / "key")
    assert code == 1 and out == "" and "ill" not in err
    assert run(capsys, "rekey", sealed, site / "w", "--key", site / "key", "--new-key", site / "new-key")[0] == 1
    assert not (site / "w").exists() and not (site / "w.part").exists()


def test_what_is_no_vault_exits_3(site, sealed, capsys):
    for path in (site / "data" / "notes.txt", site / "missing", site / "data"):
        assert run(capsys, "info", path)[0] == 3
        assert run(capsys, "verify", path, "--key", site / "key")[0] == 3
        assert run(capsys, "rekey", path, site / "w", "--key", site / "key", "--new-key", site / "new-key")[0] == 3
        assert run(capsys, "seal", site / "data", site / "w", "--key", site / "key", "--update-of", path)[0] == 3
    flip(sealed, 11)
    assert run(capsys, "verify", sealed, "--key", site / "key")[0] == 3
    for key in (site / "missing", site / "data" / "person.csv", site / "data" / "notes.txt"):
        assert run(capsys, "verify", sealed, "--key", key)[0] == 3
    assert run(capsys, "verify", sealed)[0] == 3


def test_rekey_gives_the_next_version_under_the_new_key_alone(site, sealed, capsys):
    keys = ("--key", site / "key", "--new-key", site / "new-key")
    code, out, _ = run(capsys, "rekey", sealed, site / "w", *keys, "--stamp-out", site / "stamp-2.json")
    assert code == 0 and "version: 2" in out
    assert stamp_of(site / "w").vault == stamp_of(sealed).vault
    assert run(capsys, "verify", site / "w", "--key", site / "new-key", "--stamp", site / "stamp-2.json")[0] == 0
    assert run(capsys, "verify", site / "w", "--key", site / "key")[0] == 1
    code, _, err = run(capsys, "verify", sealed, "--key", site / "key", "--stamp", site / "stamp-2.json")
    assert code == 1 and "rolled_back" in err
    same = ("--key", site / "key", "--new-key", site / "key")
    assert run(capsys, "rekey", sealed, site / "x", *same)[0] == 3
    assert run(capsys, "rekey", sealed, site / "w", *keys)[0] == 3


def test_a_dataset_sealed_again_is_the_next_version(site, sealed, capsys):
    key = ("--key", site / "key")
    code, out, _ = run(capsys, "seal", site / "data", site / "w", *key, "--update-of", sealed, "--json")
    said = json.loads(out)
    assert code == 0 and said["stamp"]["version"] == 2 and said["stamp"]["vault"] == stamp_of(sealed).vault
    wrong = ("--key", site / "new-key", "--update-of", sealed)
    assert run(capsys, "seal", site / "data", site / "x", *wrong)[0] == 1
    assert not (site / "x").exists()


def test_one_file_is_one_member(site, capsys):
    assert run(capsys, "seal", site / "data" / "person.csv", site / "w", "--key", site / "key")[0] == 0
    with Vault(site / "w", (site / "key").read_bytes()) as vault:
        assert vault.single() == "person.csv"


def test_seal_leaves_nothing_out_in_silence(site, capsys):
    key = ("--key", site / "key")
    (site / "data" / "deeper").mkdir()
    code, _, err = run(capsys, "seal", site / "data", site / "w", *key)
    assert code == 3 and "deeper" in err
    (site / "data" / "deeper").rmdir()
    (site / "data" / "link").symlink_to(site / "key")
    assert run(capsys, "seal", site / "data", site / "w", *key)[0] == 3
    (site / "none").mkdir()
    assert run(capsys, "seal", site / "none", site / "w", *key)[0] == 3
    assert run(capsys, "seal", site / "missing", site / "w", *key)[0] == 3
    assert not (site / "w").exists()


def test_seal_refuses_a_database_whose_journal_holds_rows(site, capsys):
    with closing(sqlite3.connect(site / "d.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (a)")
        database.commit()
        code, _, err = run(capsys, "seal", site / "d.db", site / "w", "--key", site / "key")
        assert code == 3 and "d.db-wal" in err
    assert run(capsys, "seal", site / "d.db", site / "w", "--key", site / "key")[0] == 0


def test_seal_overwrites_neither_vault_nor_stamp(site, sealed, capsys):
    before = sealed.read_bytes()
    assert run(capsys, "seal", site / "data", sealed, "--key", site / "key")[0] == 3
    more = ("--key", site / "key", "--stamp-out", site / "stamp.json")
    assert run(capsys, "seal", site / "data", site / "w", *more)[0] == 3
    assert sealed.read_bytes() == before and sorted(os.listdir(site)) == ["data", "key", "new-key", "stamp.json", "v"]


def test_names_that_a_terminal_would_obey_are_escaped(site, capsys):
    (site / "data" / "\u202egpj.exe").write_bytes(b"")
    assert run(capsys, "seal", site / "data", site / "w", "--key", site / "key")[0] == 0
    out = run(capsys, "info", site / "w", "--key", site / "key")[1]
    assert "\u202e" not in out and "gpj.exe" in out
    (site / "data" / "a\x1b[2J").write_bytes(b"")
    code, _, err = run(capsys, "seal", site / "data", site / "x", "--key", site / "key")
    assert code == 3 and "\x1b" not in err


def test_a_key_that_others_can_read_is_not_used(site, sealed, capsys):
    (site / "key").chmod(0o640)
    for words in (("verify", sealed), ("info", sealed), ("seal", site / "data", site / "w")):
        code, out, err = run(capsys, *words, "--key", site / "key")
        assert (code, out) == (3, "") and "chmod 600" in err
    assert not (site / "w").exists()


def test_verify_tells_a_machine_why_not(site, sealed, capsys):
    flip(sealed, 1000)
    code, out, err = run(capsys, "verify", sealed, "--key", site / "key", "--json")
    assert code == 1 and json.loads(out) == {"path": str(sealed), "ok": False, "reason": "chunk_changed"}
    assert "chunk_changed" in err


@pytest.mark.parametrize("at", [3, 20, 1000, -200, -10])
def test_every_message_names_the_vault(site, sealed, capsys, at):
    flip(sealed, at)
    assert str(sealed) in run(capsys, "verify", sealed, "--key", site / "key")[2]


def test_an_older_version_put_back_does_not_become_the_newest_by_rekeying(site, sealed, capsys):
    key = ("--key", site / "key")
    newest = ("--stamp-out", site / "stamp-2.json")
    assert run(capsys, "seal", site / "data", site / "w", *key, "--update-of", sealed, *newest)[0] == 0
    words = (*key, "--new-key", site / "new-key")
    code, out, err = run(capsys, "rekey", sealed, site / "x", *words, "--stamp", site / "stamp-2.json")
    assert (code, out) == (1, "") and "rolled_back" in err and not (site / "x").exists()
    code, out, _ = run(capsys, "rekey", site / "w", site / "x", *words, "--stamp", site / "stamp-2.json")
    assert code == 0 and "it was the version wanted" in out
    code, out, _ = run(capsys, "rekey", sealed, site / "y", *words, "--json")
    assert code == 0 and json.loads(out)["stamp_compared"] is False


def test_neither_key_nor_vault_is_sealed_with_the_data(site, sealed, capsys):
    (site / "data" / "key").write_bytes((site / "key").read_bytes())
    (site / "data" / "key").chmod(0o600)
    data, key = site / "data", ("--key", site / "key")
    for words in (
        (site / "w", "--key", data / "key"),
        (data / "w", *key),
        (data / ".." / "data" / "w", *key),
        (site / "w", *key, "--stamp-out", data / "s"),
    ):
        code, _, err = run(capsys, "seal", data, *words)
        assert code == 3 and "lies in the folder to seal" in err
    assert not (site / "w").exists() and not (data / "w").exists() and not (data / "s").exists()


def test_a_stamp_that_cannot_be_written_is_said_before_sealing(site, sealed, capsys):
    words = ("--key", site / "key", "--stamp-out", site / "no" / "stamp")
    code, _, err = run(capsys, "seal", site / "data", site / "w", *words)
    assert code == 3 and "cannot be written" in err and not (site / "w").exists()
    assert run(capsys, "rekey", sealed, site / "w", *words, "--new-key", site / "new-key")[0] == 3
    assert not (site / "w").exists()
