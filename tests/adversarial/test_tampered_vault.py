"""Somebody with write access to a hospital's encrypted vault, and other vaults of the same key, but not the key.

Every class of byte of the file is changed, cut, moved and swapped. The reader either raises VaultError with the right
reason, or (never) returns a byte that was not sealed at that place.
"""

import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.data.vault import VAULT_REASONS, Vault, seal, stamp_of, verify
from cordon.errors import VaultError

KEY, CHUNK, TAG, HEADER, TRAILER = b"k" * 32, 4096, 16, 104, 24
STEP = CHUNK + TAG


def pattern(size, seed):
    return bytes((at * 13 + seed + at // 256) % 256 for at in range(size))


MEMBERS = {
    "long": pattern(3 * CHUNK + 100, 1),
    "twin": pattern(3 * CHUNK + 100, 2),
    "empty": b"",
    "full": pattern(2 * CHUNK, 3),
    "short": pattern(50, 4),
}
BODY = {}
_at = HEADER
for _name, _data in MEMBERS.items():
    BODY[_name] = _at
    _at += len(_data) + TAG * max(1, -(-len(_data) // CHUNK))
DIRECTORY = _at


def make(path, members=MEMBERS, **more):
    return seal([(name, io.BytesIO(data)) for name, data in members.items()], path, KEY, chunk=CHUNK, **more)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Version 1, version 2 of the same members, and another vault of the same members and key."""
    folder = tmp_path_factory.mktemp("vaults")
    first = make(folder / "1")
    make(folder / "2", vault=bytes.fromhex(first.vault), version=2)
    make(folder / "other")
    return {name: (folder / name).read_bytes() for name in ("1", "2", "other")}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "v"


def opened(path, data, expect=None):
    """Reason why the vault does not open; None if it does."""
    path.write_bytes(data)
    try:
        Vault(path, KEY, expect).close()
    except VaultError as error:
        assert error.reason in VAULT_REASONS
        return error.reason
    return None


def spoiled(path, data):
    """The chunks (member, number) that do not open; all others must hold what was sealed, however they are read."""
    path.write_bytes(data)
    bad = []
    with Vault(path, KEY) as vault:
        assert vault.members() == tuple(MEMBERS)
        for name, content in MEMBERS.items():
            for number in range(max(1, -(-len(content) // CHUNK))):
                wanted = content[number * CHUNK : (number + 1) * CHUNK]
                buffer = bytearray(b"\xaa" * CHUNK)
                if _read(vault, name, number, buffer) is None:
                    bad.append((name, number))
                    leaked = bytes(buffer)  # what the library decrypted before it knew must not stay in reach
                    assert not any(leaked[at : at + 16] in content for at in range(0, CHUNK, 16) if any(leaked[at:]))
                    for count in (1, 16, CHUNK, -1):
                        with pytest.raises(VaultError, match="chunk_changed"):
                            _at_chunk(vault, name, number).read(count)
                    if content:
                        file = _at_chunk(vault, name, number)
                        for _ in range(3):  # a caller that goes on after the error gets nothing either
                            with pytest.raises(VaultError, match="chunk_changed"):
                                file.readline()
                else:
                    assert bytes(buffer[: len(wanted)]) == wanted
                    assert not wanted or _at_chunk(vault, name, number).read(len(wanted)) == wanted
        if bad:
            with pytest.raises(VaultError, match="chunk_changed"):
                verify(vault)
    return bad


def _at_chunk(vault, name, number):
    file = vault.open(name)
    file.seek(number * CHUNK)
    return file


def _read(vault, name, number, buffer):
    try:
        return _at_chunk(vault, name, number).readinto(memoryview(buffer))
    except VaultError as error:
        assert error.reason == "chunk_changed"
        return None


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


def put(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def chunk(data, name, number):
    start = BODY[name] + number * STEP
    return data[start : start + min(STEP, len(MEMBERS[name]) + TAG * (-(-len(MEMBERS[name]) // CHUNK)) - number * STEP)]


def test_the_untouched_vault_is_read(path, files):
    """The measure of all below: nothing is raised where nothing was changed."""
    assert len(files["1"]) > DIRECTORY + TRAILER and files["1"][-8:] == b"Vnodroc\x8f"
    assert int.from_bytes(files["1"][-24:-16], "big") == DIRECTORY
    assert opened(path, files["1"], None) is None
    assert spoiled(path, files["1"]) == []


FIELDS = {
    "magic": (0, 8, {"not_a_vault"}),
    "format": (8, 12, {"unknown_format"}),
    "chunk": (12, 16, {"unknown_format"}),
    "id": (16, 32, {"wrong_key_or_header"}),
    "version": (32, 40, {"wrong_key_or_header", "unknown_format"}),
    "salt": (40, 72, {"wrong_key_or_header"}),
    "tag": (72, 104, {"wrong_key_or_header"}),
}


@pytest.mark.parametrize("field", FIELDS)
def test_each_byte_of_the_header_is_held_by_its_tag(path, files, field):
    start, end, reasons = FIELDS[field]
    for at in range(start, end):
        assert opened(path, flip(files["1"], at)) in reasons, at


def test_a_larger_chunk_size_or_version_in_the_header_is_refused(path, files):
    for size in (8192, 16 * 1024**2):
        assert opened(path, put(files["1"], 12, size.to_bytes(4, "big"))) == "wrong_key_or_header"
    for size in (0, 1, 2048, 4097, 2**31, 2**32 - 1):
        assert opened(path, put(files["1"], 12, size.to_bytes(4, "big"))) == "unknown_format"
    assert opened(path, put(files["1"], 32, (2).to_bytes(8, "big"))) == "wrong_key_or_header"
    assert opened(path, put(files["1"], 32, (0).to_bytes(8, "big"))) == "unknown_format"


def test_the_version_of_an_old_vault_raised_in_its_header_does_not_pass_for_the_new_one(path, files, tmp_path):
    (tmp_path / "new").write_bytes(files["2"])
    new = stamp_of(tmp_path / "new")
    assert opened(path, files["1"], new) == "rolled_back"
    assert opened(path, put(files["1"], 32, (2).to_bytes(8, "big")), new) == "wrong_key_or_header"
    assert opened(path, files["2"], new) is None


def test_the_header_of_another_vault_or_version_is_refused(path, files):
    for other in ("2", "other"):
        assert opened(path, put(files["1"], 0, files[other][:HEADER])) == "directory_changed"
        assert opened(path, put(files["1"], 40, files[other][40:72])) == "wrong_key_or_header"


def _points(name):
    """Offsets in the first, middle and last chunk of ``name``: first, middle and last byte, and of the tag."""
    count = -(-len(MEMBERS[name]) // CHUNK)
    for number in sorted({0, count // 2, count - 1} if count else {0}):
        start = BODY[name] + number * STEP
        length = min(CHUNK, len(MEMBERS[name]) - number * CHUNK)
        text = {start, start + length // 2, start + length - 1} if length else set()
        for at in sorted(text | {start + length, start + length + 8, start + length + TAG - 1}):
            yield number, at


@pytest.mark.parametrize("name", MEMBERS)
def test_a_changed_byte_spoils_its_chunk_and_no_other(path, files, name):
    for number, at in _points(name):
        assert spoiled(path, flip(files["1"], at)) == [(name, number)]


@pytest.mark.parametrize("place", ["first", "middle", "last", "tag-first", "tag-last"])
def test_a_changed_directory_is_refused(path, files, place):
    end = len(files["1"]) - TRAILER
    at = {
        "first": DIRECTORY,
        "middle": (DIRECTORY + end) // 2,
        "last": end - TAG - 1,
        "tag-first": end - TAG,
        "tag-last": end - 1,
    }[place]
    assert opened(path, flip(files["1"], at)) == "directory_changed"
    path.write_bytes(files["1"])
    assert opened(path, flip(files["1"], at), stamp_of(path)) == "wrong_root"


def test_each_byte_of_the_trailer_is_checked(path, files):
    size = len(files["1"])
    for at in range(size - TRAILER, size):
        assert opened(path, flip(files["1"], at)) == "wrong_end", at


def test_a_trailer_that_points_elsewhere_is_refused(path, files):
    data = files["1"]
    end = len(data) - TRAILER

    def pointing(offset, length):
        return data[:end] + offset.to_bytes(8, "big") + length.to_bytes(8, "big") + data[-8:]

    for offset in (HEADER, BODY["twin"], BODY["short"], DIRECTORY - 16, DIRECTORY + 1, end - 16):
        assert opened(path, pointing(offset, end - offset)) == "directory_changed"
    for offset, length in ((0, end), (HEADER - 1, end - HEADER + 1), (end - 15, 15), (end, 0), (2**64 - 1, 2**64 - 1)):
        assert opened(path, pointing(offset, length)) == "wrong_end"
    assert opened(path, pointing(DIRECTORY, 2**63)) == "wrong_end"


def test_a_sparse_file_that_claims_a_huge_directory_is_refused_unread(path, files):
    size = 2**40
    with open(path, "wb") as file:
        file.write(files["1"][:HEADER])
        file.seek(size - TRAILER)
        file.write(HEADER.to_bytes(8, "big") + (size - TRAILER - HEADER).to_bytes(8, "big") + files["1"][-8:])
    with pytest.raises(VaultError, match=r"wrong_end.*directory of"):
        Vault(path, KEY)
    with pytest.raises(VaultError, match="wrong_end"):
        stamp_of(path)


def test_a_file_that_was_cut_short_is_refused_wherever_the_cut_is(path, files):
    data = files["1"]
    boundaries = {HEADER, DIRECTORY, len(data) - TRAILER, len(data) - 1, len(data) - 8, 8, 12, 72, HEADER - 1}
    for name, content in MEMBERS.items():
        for number in range(max(1, -(-len(content) // CHUNK))):
            boundaries |= {BODY[name] + number * STEP + inside for inside in (0, 1, TAG, CHUNK // 2)}
    for cut in sorted(each for each in boundaries if each < len(data)):
        assert opened(path, data[:cut]) == "wrong_end", cut
    for cut in (0, 1, 7):
        assert opened(path, data[:cut]) == "not_a_vault"


def test_a_vault_shortened_and_given_a_fitting_trailer_is_refused(path, files):
    """Chunks, or whole members, taken out; the trailer is nobody's secret and is made to fit."""
    data = files["1"]
    directory = data[DIRECTORY:-TRAILER]
    cuts = [(BODY["long"], BODY["twin"]), (BODY["empty"], BODY["full"]), (BODY["full"] + STEP, BODY["short"])]
    cuts += [(BODY["long"] + at * STEP, BODY["long"] + (at + 1) * STEP) for at in range(3)] + [
        (DIRECTORY - 1, DIRECTORY)
    ]
    for start, end in cuts:
        body = data[:start] + data[end:DIRECTORY]
        trailer = len(body).to_bytes(8, "big") + len(directory).to_bytes(8, "big") + data[-8:]
        assert opened(path, body + directory + trailer) == "wrong_end"


def test_appended_and_inserted_bytes_are_refused(path, files):
    data = files["1"]
    for extra in (b"\0", b"x" * 16, data[-TRAILER:], data[HEADER : HEADER + STEP], data):
        assert opened(path, data + extra) == "wrong_end"
    directory = data[DIRECTORY:-TRAILER]
    for at in (HEADER, BODY["twin"], DIRECTORY):
        body = data[:at] + data[BODY["full"] : BODY["full"] + STEP] + data[at:DIRECTORY]
        trailer = len(body).to_bytes(8, "big") + len(directory).to_bytes(8, "big") + data[-8:]
        assert opened(path, body + directory + trailer) == "wrong_end"


def test_chunks_swapped_within_a_member_are_refused(path, files):
    data = files["1"]
    for one, two in ((0, 1), (1, 2), (0, 2)):
        swapped = put(data, BODY["long"] + one * STEP, chunk(data, "long", two))
        swapped = put(swapped, BODY["long"] + two * STEP, chunk(data, "long", one))
        assert spoiled(path, swapped) == [("long", one), ("long", two)]
    doubled = put(data, BODY["full"] + STEP, chunk(data, "full", 0))  # the last chunk replaced by an inner one
    assert spoiled(path, doubled) == [("full", 1)]


def test_chunks_swapped_between_members_are_refused(path, files):
    data = files["1"]
    for number in (0, 1, 2, 3):  # the same number of two members of one length, then the last
        swapped = put(data, BODY["long"] + number * STEP, chunk(data, "twin", number))
        swapped = put(swapped, BODY["twin"] + number * STEP, chunk(data, "long", number))
        assert spoiled(path, swapped) == [("long", number), ("twin", number)]


@pytest.mark.parametrize("other", ["2", "other"])
def test_a_chunk_of_another_version_or_vault_of_the_same_key_is_refused(path, files, other):
    """Even though it holds the very bytes that belong there."""
    for name in ("long", "full", "short"):
        assert spoiled(path, put(files["1"], BODY[name], chunk(files[other], name, 0))) == [(name, 0)]
    assert spoiled(path, put(files["1"], BODY["empty"], files[other][BODY["empty"] :][:TAG])) == [("empty", 0)]


def test_swapped_members_are_refused(path, files):
    data = files["1"]
    size = BODY["twin"] - BODY["long"]
    long, twin = data[BODY["long"] :][:size], data[BODY["twin"] :][:size]
    swapped = data[: BODY["long"]] + twin + long + data[BODY["empty"] :]
    assert spoiled(path, swapped) == [(name, number) for name in ("long", "twin") for number in range(4)]


@pytest.mark.parametrize("other", ["2", "other"])
def test_the_directory_of_another_version_or_vault_is_refused(path, files, other):
    data, theirs = files["1"], files[other]
    assert len(data) == len(theirs)
    assert opened(path, data[:DIRECTORY] + theirs[DIRECTORY:]) == "directory_changed"
    assert opened(path, theirs[:DIRECTORY] + data[DIRECTORY:]) == "directory_changed"


def test_the_frame_of_the_new_version_around_old_bodies_gives_no_old_byte(path, files, tmp_path):
    """Header and directory of version 2, hence its stamp, around the bodies of version 1: no chunk opens."""
    (tmp_path / "new").write_bytes(files["2"])
    mixed = files["2"][:HEADER] + files["1"][HEADER:DIRECTORY] + files["2"][DIRECTORY:]
    assert opened(path, mixed, stamp_of(tmp_path / "new")) is None
    assert len(spoiled(path, mixed)) == sum(max(1, -(-len(data) // CHUNK)) for data in MEMBERS.values())


def test_an_old_version_put_back_is_refused(path, files, tmp_path):
    (tmp_path / "new").write_bytes(files["2"])
    new = stamp_of(tmp_path / "new")
    assert opened(path, files["2"], new) is None
    assert opened(path, files["1"], new) == "rolled_back"
    assert opened(path, files["other"], new) == "wrong_vault"


def test_a_file_changed_in_place_while_it_is_read_is_noticed(path, files):
    path.write_bytes(files["1"])
    with Vault(path, KEY) as vault:
        file = vault.open("long")
        assert file.read(100) == MEMBERS["long"][:100]
        with open(path, "r+b") as raw:
            raw.seek(BODY["long"] + STEP)
            raw.write(files["2"][BODY["long"] + STEP : BODY["long"] + 2 * STEP])
        with pytest.raises(VaultError, match="chunk_changed"):
            file.read()
        os.truncate(path, BODY["full"])
        with pytest.raises(VaultError, match="wrong_end"):
            vault.open("short").read()


def test_plaintext_of_a_spoiled_chunk_does_not_stay_in_the_callers_buffer(path, files):
    """AES-GCM in counter mode decrypts before it can know the tag: a flipped bit would leave 4095 good bytes."""
    path.write_bytes(flip(files["1"], BODY["long"] + CHUNK - 1))
    with Vault(path, KEY) as vault:
        buffer = bytearray(b"\xaa" * CHUNK)
        with pytest.raises(VaultError, match="chunk_changed"):
            vault.open("long").raw.readinto(memoryview(buffer))
        assert buffer == bytes(CHUNK)


def test_small_reads_around_a_spoiled_chunk_stay_right(path, files):
    """The chunk that small reads are served from must not be taken for the good one that lay in its buffer before."""
    path.write_bytes(flip(files["1"], BODY["long"] + STEP))
    with Vault(path, KEY) as vault:
        raw = vault.open("long").raw
        for _ in range(2):
            for number in (0, 1, 2):
                raw.seek(number * CHUNK + 10)
                buffer = bytearray(20)
                if number == 1:
                    with pytest.raises(VaultError, match="chunk_changed"):
                        raw.readinto(memoryview(buffer))
                    assert buffer == bytes(20)
                    raw.seek(10)
                    assert raw.readinto(memoryview(buffer)) == 20 and buffer == MEMBERS["long"][10:30]
                else:
                    assert raw.readinto(memoryview(buffer)) == 20
                    assert buffer == MEMBERS["long"][number * CHUNK + 10 :][:20]


SMALL = {"a": pattern(CHUNK + 20, 9), "b": b"", "c": pattern(33, 5)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "v"
    make(path, SMALL)
    return path, path.read_bytes()


def _harmless(path):
    """Read all there is, as far as it goes: what comes is what was sealed."""
    with Vault(path, KEY) as vault:
        for name in vault.members():
            with vault.open(name) as file:
                at = 0
                while part := file.read(1000):
                    assert part == SMALL[name][at : at + len(part)]
                    at += len(part)
                assert at == len(SMALL[name])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_random_change_gives_another_plaintext(small, data):
    path, good = small
    made = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(("flip", "cut", "insert", "move", "number")))
        at = data.draw(st.integers(0, max(0, len(made) - 1)))
        if kind == "flip" and made:
            made[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del made[at : at + data.draw(st.integers(1, 5000))]
        elif kind == "insert":
            made[at:at] = data.draw(st.binary(min_size=1, max_size=40))
        elif kind == "move":
            length = data.draw(st.integers(1, 300))
            made[at : at + length], made[:length] = made[:length], made[at : at + length]
        else:  # a number in header or trailer
            place = data.draw(st.sampled_from((8, 12, 32, -24, -16)))
            if len(made) > HEADER:
                new = data.draw(st.integers(0, 2**32 - 1)).to_bytes(4, "big")
                start = place % len(made)
                made[start : start + 4] = new
    path.write_bytes(made)
    for read in (_harmless, stamp_of):
        try:
            read(path)
        except VaultError as error:
            assert error.reason in VAULT_REASONS
        else:
            assert read is stamp_of or bytes(made) == good


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_are_no_vault(tmp_path_factory, data, with_magic):
    path = tmp_path_factory.getbasetemp() / "random.vault"
    path.write_bytes(b"\x8fcordonV\0\0\0\x01\0\0\x10\0" + data if with_magic else data)
    for read in (lambda: Vault(path, KEY), lambda: stamp_of(path)):
        with pytest.raises(VaultError):
            read()
