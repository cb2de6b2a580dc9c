"""The vault as its users meet it: files in, the same files out, one chunk of memory, and never half a vault."""

import io
import os
import stat
import subprocess
import sys
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.data import vault as vaults
from cordon.data.vault import Stamp, Vault, read_header, rekey, seal, stamp_of, verify
from cordon.errors import ConfigError, SourceError, VaultError

KEY, OTHER = b"k" * 32, b"o" * 32
CHUNK = 4096
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17)


def pattern(size, seed=1):
    return bytes((at * 7 + seed + at // 251) % 256 for at in range(size))


def make(path, members, key=KEY, **more):
    return seal([(name, io.BytesIO(data)) for name, data in members.items()], path, key, **{"chunk": CHUNK, **more})


@pytest.fixture
def members():
    return {f"m{size}": pattern(size, size) for size in SIZES}


@pytest.fixture
def sealed(tmp_path, members):
    make(tmp_path / "v", members)
    return tmp_path / "v"


def test_members_come_back(sealed, members):
    with Vault(sealed, KEY) as vault:
        assert vault.members() == tuple(members)
        assert {name: vault.size(name) for name in members} == {name: len(data) for name, data in members.items()}
        assert {name: vault.open(name).read() for name in members} == members
        verify(vault)


def test_the_file_shows_nothing_of_a_member(tmp_path):
    make(tmp_path / "v", {"patients-of-2024.csv": b"HA-00017,malignant\n" * 1000})
    data = (tmp_path / "v").read_bytes()
    assert b"HA-00017" not in data and b"patients" not in data
    assert stat.S_IMODE((tmp_path / "v").stat().st_mode) == 0o600


def test_two_sealings_of_one_dataset_share_no_ciphertext(tmp_path, members):
    first, second = make(tmp_path / "v", members), make(tmp_path / "w", members)
    assert first.vault != second.vault and first.root != second.root
    one, two = (tmp_path / "v").read_bytes(), (tmp_path / "w").read_bytes()
    blocks = [{data[at : at + 16] for at in range(104, len(data) - 24, 16)} for data in (one, two)]
    assert not blocks[0] & blocks[1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-20, 3 * CHUNK + 40), st.integers(-1, 2 * CHUNK + 9)), max_size=12),
    st.sampled_from(SIZES),
)
def test_a_member_is_read_as_a_file_in_memory_is(tmp_path_factory, steps, size):
    data, path = pattern(size), tmp_path_factory.mktemp("vault") / "v"
    make(path, {"m": data})
    with Vault(path, KEY) as vault:
        theirs, ours = io.BytesIO(data), vault.open("m")
        for where, count in steps:
            if where >= 0:
                assert ours.seek(where) == theirs.seek(where)
            else:
                assert ours.seek(0, os.SEEK_END) == theirs.seek(0, os.SEEK_END)
                back = max(0, size + where)
                assert ours.seek(back) == theirs.seek(back)
            assert ours.read(count) == theirs.read(count)
            assert ours.tell() == theirs.tell()
            assert ours.readline(50) == theirs.readline(50)


def test_open_members_do_not_share_a_position(sealed, members):
    with Vault(sealed, KEY) as vault:
        one, two, three = vault.open(f"m{3 * CHUNK}"), vault.open(f"m{3 * CHUNK}"), vault.open(f"m{CHUNK + 1}")
        assert one.read(5000) == members[f"m{3 * CHUNK}"][:5000]
        assert three.read(10) == members[f"m{CHUNK + 1}"][:10]
        assert two.read(10) == members[f"m{3 * CHUNK}"][:10]
        assert one.read(10) == members[f"m{3 * CHUNK}"][5000:5010]


def test_a_closed_vault_reads_no_more(sealed):
    with Vault(sealed, KEY) as vault:
        file = vault.open(f"m{3 * CHUNK}")
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_the_reader_stays_with_the_file_it_opened(sealed, tmp_path, members):
    with Vault(sealed, KEY) as vault:
        make(tmp_path / "w", {name: b"other" for name in members})
        os.replace(tmp_path / "w", sealed)
        assert {name: vault.open(name).read() for name in members} == members


def test_no_key_is_shown(sealed):
    with Vault(sealed, KEY) as vault:
        assert "kkkk" not in repr(vars(vault.open("m0").raw)) + repr(vault)


# -- what a vault is asked for ---------------------------------------------------------------------------------------


def reason(path, key=KEY, expect=None, read=None, limit=None):
    with pytest.raises(VaultError) as caught, Vault(path, key, expect) as vault:
        if limit is not None:
            vault.open(read, limit)
        else:
            vault.open(read).read()
    assert caught.value.reason in vaults.VAULT_REASONS
    assert caught.value.code == "data_vault"
    assert isinstance(caught.value, SourceError)
    return caught.value.reason


def test_wrong_keys_are_refused(sealed):
    assert reason(sealed, OTHER) == "wrong_key_or_header"
    assert reason(sealed, KEY[:16]) == "key_length"
    assert reason(sealed, b"") == "key_length"


def test_members_that_are_not_there_or_too_large(sealed):
    assert reason(sealed, read="m2") == "member_missing"
    assert reason(sealed, read="../v") == "member_missing"
    assert reason(sealed, read=f"m{CHUNK}", limit=CHUNK - 1) == "member_too_large"
    with Vault(sealed, KEY) as vault:
        assert len(vault.open(f"m{CHUNK}", CHUNK).read()) == CHUNK
        with pytest.raises(VaultError, match="not_single"):
            vault.single()


def test_what_is_no_vault(tmp_path):
    (tmp_path / "text").write_bytes(b"patient_id,mean_radius\n" * 20)
    (tmp_path / "none").write_bytes(b"")
    assert reason(tmp_path / "text") == "not_a_vault"
    assert reason(tmp_path / "none") == "not_a_vault"
    assert reason(tmp_path / "missing") == "unreadable"
    assert reason(tmp_path) == "unreadable"
    os.mkfifo(tmp_path / "pipe")
    assert reason(tmp_path / "pipe") == "unreadable"
    for look in (read_header, stamp_of):
        with pytest.raises(VaultError, match="not_a_vault"):
            look(tmp_path / "text")


def test_the_version_wanted_is_the_only_one_that_opens(tmp_path, members):
    first = make(tmp_path / "1", members)
    second = make(tmp_path / "2", members, vault=bytes.fromhex(first.vault), version=2)
    twin = make(tmp_path / "2b", members, vault=bytes.fromhex(first.vault), version=2)
    with Vault(tmp_path / "2", KEY, second) as vault:
        assert vault.stamp == second
    assert reason(tmp_path / "1", expect=second) == "rolled_back"
    assert reason(tmp_path / "1", OTHER, expect=second) == "rolled_back"  # said although the key is new as well
    assert reason(tmp_path / "2", expect=first) == "wrong_root"
    assert reason(tmp_path / "2b", expect=second) == "wrong_root"
    assert twin != second
    make(tmp_path / "x", members, version=2)
    assert reason(tmp_path / "x", expect=second) == "wrong_vault"


def test_stamp_and_header_need_no_key(sealed):
    with Vault(sealed, KEY) as vault:
        assert stamp_of(sealed) == vault.stamp
    header = read_header(sealed)
    assert (header.vault, header.version, header.chunk) == (vault.stamp.vault, 1, CHUNK)


# -- sealing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "a\nb", "\x85", "\x7f", "x" * 256, "é" * 128, "\ud800"])
def test_names_that_no_member_can_have(tmp_path, name):
    with pytest.raises(ConfigError):
        make(tmp_path / "v", {name: b""})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "...", "a b", "\\", '"', "C:\\x"])
def test_names_that_a_member_can_have(tmp_path, name):
    make(tmp_path / "v", {name: b"1"})
    with Vault(tmp_path / "v", KEY) as vault:
        assert vault.single() == name and vault.open(name).read() == b"1"


@pytest.mark.parametrize(
    "more",
    [{"chunk": 2048}, {"chunk": 5000}, {"chunk": 2**25}, {"version": 0}, {"version": 2**53}, {"vault": b"short"}],
    ids=str,
)
def test_parameters_out_of_range(tmp_path, more):
    with pytest.raises(ConfigError):
        make(tmp_path / "v", {"a": b""}, **more)
    assert os.listdir(tmp_path) == []


def test_a_vault_is_never_overwritten(sealed, members):
    before = sealed.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        make(sealed, members)
    assert sealed.read_bytes() == before

    def untouched():
        raise AssertionError("hours of sealing come after the refusal, not before")
        yield

    with pytest.raises(ConfigError, match="never overwritten"):
        seal(untouched(), sealed, KEY)
    (sealed.parent / "w.part").write_bytes(b"")
    with pytest.raises(ConfigError, match="at work"):
        make(sealed.parent / "w", members)
    assert not (sealed.parent / "w").exists() and (sealed.parent / "w.part").exists()


def test_a_name_taken_during_the_sealing_is_not_overwritten(tmp_path):
    class Racer(io.BytesIO):
        def read(self, size=-1):
            (tmp_path / "v").write_bytes(b"somebody else's")
            return super().read(size)

    with pytest.raises(ConfigError, match="never overwritten"):
        seal([("m", Racer(b"x"))], tmp_path / "v", KEY)
    assert (tmp_path / "v").read_bytes() == b"somebody else's" and os.listdir(tmp_path) == ["v"]


def test_a_source_that_fails_leaves_nothing(tmp_path):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(SourceError, match="Input/output"):
        seal([("a", io.BytesIO(b"x" * 100_000)), ("b", Broken())], tmp_path / "v", KEY, chunk=CHUNK)
    with pytest.raises(ConfigError, match="one name"):
        seal([("a", io.BytesIO(b"")), ("a", io.BytesIO(b""))], tmp_path / "v", KEY)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ConfigError, match="cannot be written"):
        make(tmp_path / "missing" / "v", {"a": b""})


def test_a_full_disk_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ConfigError, match="cannot be written"):
            make(tmp_path / "v", {"a": bytes(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_source_that_gives_little_at_a_time_fills_its_chunks(tmp_path):
    class Pipe(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 1000))

    data = pattern(2 * CHUNK)
    seal([("m", Pipe(data))], tmp_path / "v", KEY, chunk=CHUNK)
    assert (tmp_path / "v").stat().st_size - 104 - 24 - 2 * CHUNK - 2 * 16 < 100
    with Vault(tmp_path / "v", KEY) as vault:
        assert vault.open("m").read() == data


def test_progress_counts_plaintext(tmp_path, sealed, members):
    seen = []
    make(tmp_path / "w", members, progress=seen.append)
    assert sum(seen) == sum(SIZES)
    seen.clear()
    with Vault(sealed, KEY) as vault:
        verify(vault, seen.append)
    assert sum(seen) == sum(SIZES)


def test_rekey(sealed, tmp_path, members):
    old = stamp_of(sealed)
    new = rekey(sealed, KEY, tmp_path / "w", OTHER)
    assert (new.vault, new.version) == (old.vault, 2) and new.root != old.root
    assert reason(tmp_path / "w", KEY) == "wrong_key_or_header"
    with Vault(tmp_path / "w", OTHER, new) as vault:
        assert {name: vault.open(name).read() for name in vault.members()} == members
    with pytest.raises(VaultError, match="rolled_back"):
        rekey(sealed, KEY, tmp_path / "x", OTHER, expect=new)
    with pytest.raises(VaultError, match="key_length"):
        rekey(sealed, KEY, tmp_path / "x", b"short")


def test_rekey_of_a_changed_vault_leaves_nothing(sealed, tmp_path):
    data = bytearray(sealed.read_bytes())
    data[-200 - 24] ^= 1  # in the last body or the directory
    sealed.write_bytes(data)
    with pytest.raises(VaultError):
        rekey(sealed, KEY, tmp_path / "w", OTHER)
    assert os.listdir(tmp_path) == ["v"]


def test_the_last_version_has_no_next(tmp_path):
    make(tmp_path / "v", {"a": b""}, version=2**53 - 1)
    with pytest.raises(ConfigError):
        rekey(tmp_path / "v", KEY, tmp_path / "w", OTHER)


@pytest.mark.parametrize(
    "change", [{"vault": "0" * 31}, {"vault": "G" * 32}, {"version": 0}, {"version": 2**53}, {"root": ""}, {"more": 1}]
)
def test_a_stamp_is_read_strictly(change):
    good = {"vault": "0" * 32, "version": 1, "root": "0" * 64}
    assert msgspec.convert(good, Stamp) == Stamp(**good)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**good, **change}, Stamp)


# -- memory ----------------------------------------------------------------------------------------------------------

HIGH_WATER = """
import sys
from pathlib import Path
from cordon.data.vault import Vault, seal, rekey
def high_water():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
class Zeros:
    left = int(sys.argv[2])
    def read(self, size):
        size = min(size, self.left); self.left -= size
        return bytes(size)
open("/proc/self/clear_refs", "w").write("5")
idle, path = high_water(), Path(sys.argv[1])
seal([("m", Zeros())], path, bytes(32))
rekey(path, bytes(32), path.with_suffix(".new"), bytes(range(32)))
with Vault(path, bytes(32)) as vault, vault.open("m") as file:
    while file.read(100_000): pass
print(high_water() - idle)
"""


def test_memory_does_not_grow_with_the_member(tmp_path):
    """Of a whole process, hence also what libraries take: 4 MiB and 64 MiB need the same."""
    used = []
    for size in (4, 64):
        command = [sys.executable, "-c", HIGH_WATER, str(tmp_path / str(size)), str(size * 1024**2)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if "Permission" in done.stderr:
            pytest.skip("this system does not let a process reset its high-water mark")
        assert done.returncode == 0, done.stderr
        used.append(int(done.stdout))
    assert used[1] < used[0] + 1024, used  # KiB
    assert used[1] < 12 * 1024, used


def test_a_small_member_takes_no_large_buffer(tmp_path):
    make(tmp_path / "v", {str(at): b"x" * 100 for at in range(50)}, chunk=16 * 1024**2)
    tracemalloc.start()
    try:
        with Vault(tmp_path / "v", KEY) as vault:
            for name in vault.members():
                vault.open(name).read()
        assert tracemalloc.get_traced_memory()[1] < 1024**2
    finally:
        tracemalloc.stop()
