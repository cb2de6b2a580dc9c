"""A new file appears whole or not at all, is its owner's alone, and takes nobody's place."""

import os

import pytest

from cordon import new_file
from cordon.errors import ConfigError


def test_it_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "key"
    with new_file.create(path) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half" and path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), new_file.create(tmp_path / "key") as file:
        file.write(b"half")
        raise RuntimeError("mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["file", "folder", "link"])
def test_a_name_that_is_taken_stays_whose_it_is(tmp_path, taken):
    path = tmp_path / "key"
    if taken == "file":
        path.write_bytes(b"mine")
    elif taken == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="never overwritten"):
        new_file.write(path, b"other")
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    assert taken != "file" or path.read_bytes() == b"mine"


def test_a_name_taken_meanwhile_too(tmp_path):
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match="never overwritten"), new_file.create(path) as file:
        file.write(b"other")
        path.write_bytes(b"mine")
    assert path.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("link", [False, True])
def test_a_part_of_somebody_else_is_neither_written_nor_removed(tmp_path, link):
    part = tmp_path / "key.part"
    part.symlink_to(tmp_path / "elsewhere") if link else part.write_bytes(b"theirs")
    with pytest.raises(ConfigError, match=r"key\.part: exists: another command is at work"):
        new_file.write(tmp_path / "key", b"other")
    assert os.path.lexists(part) and not (tmp_path / "elsewhere").exists() and not (tmp_path / "key").exists()


def test_a_full_or_missing_place_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        new_file.write(tmp_path / "no" / "key", b"x")
    with pytest.raises(ConfigError, match="cannot be written: No space"), new_file.create(tmp_path / "key"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
