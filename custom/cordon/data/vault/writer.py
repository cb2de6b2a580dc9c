"""Writing a vault: sources of any size, read once, in memory of a few chunks; the file appears whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from cordon import new_file, stream
from cordon.data.vault.format import (
    DEFAULT_CHUNK,
    HEADER_BYTES,
    MAX_MEMBERS,
    MAX_SIZE,
    Header,
    Progress,
    check_key,
    check_name,
    encode_directory,
    encode_trailer,
)
from cordon.data.vault.reader import Vault
from cordon.errors import ConfigError, SourceError
from cordon.stream import TAG_BYTES
from cordon.vault_stamp import Stamp


def seal(
    members: Iterable[tuple[str, BinaryIO]],
    out: Path,
    key: bytes,
    *,
    vault: bytes | None = None,
    version: int = 1,
    chunk: int = DEFAULT_CHUNK,
    random: Callable[[int], bytes] = os.urandom,
    progress: Progress | None = None,
) -> Stamp:
    """Encrypt ``members`` to a new file ``out`` (mode 0600).

    Args:
        members: (name, file) pairs, taken one after the other; each file is read to its end and left open.
        key: 32 bytes.
        vault: 16 bytes that name the dataset over all its versions; None makes up a new one.
        version: 1 for a new dataset, one more than the last for one that is sealed again.
        chunk: plaintext bytes of a chunk, a power of two; what a random read costs at least.
        random: source of salt and id. The salt must never come twice under one key: all member keys follow from it.

    Raises:
        VaultError: ``key_length``.
        ConfigError: ``out`` exists or cannot be written, or a name, ``version`` or ``chunk`` is out of range.
        SourceError: a member cannot be read.
    """
    check_key(key)
    header = Header.make(key, random(16) if vault is None else vault, version, chunk, random(32))
    with new_file.create(out) as file:
        return _write(file, header, key, members, progress or (lambda count: None))


def rekey(
    old: Path,
    old_key: bytes,
    new: Path,
    new_key: bytes,
    *,
    expect: Stamp | None = None,
    random: Callable[[int], bytes] = os.urandom,
    progress: Progress | None = None,
) -> Stamp:
    """Seal the members of vault ``old`` under ``new_key`` to ``new``: same id and chunk size, the next version.

    Raises:
        VaultError: ``old`` does not open or was changed; then there is no ``new``.
        ConfigError: as ``seal``.
    """
    with Vault(old, old_key, expect) as vault:
        name, version = bytes.fromhex(vault.stamp.vault), vault.stamp.version + 1
        each = _opened(vault)
        return seal(
            each, new, new_key, vault=name, version=version, chunk=vault.chunk, random=random, progress=progress
        )


def _opened(vault: Vault) -> Iterator[tuple[str, BinaryIO]]:
    for name in vault.members():
        with vault.open(name) as file:
            yield name, file


def _write(
    out: BinaryIO, header: Header, key: bytes, members: Iterable[tuple[str, BinaryIO]], progress: Progress
) -> Stamp:
    out.write(header.data)
    sizes: dict[str, int] = {}
    for index, (name, source) in enumerate(members):
        check_name(name)
        if name in sizes:
            raise ConfigError(f"{name}: two members of one name")
        if index >= MAX_MEMBERS:
            raise ConfigError(f"more than {MAX_MEMBERS} members")
        sizes[name] = _write_body(out, _chunks(header.member_key(key, index), name, source, header.chunk), progress)
    plain = io.BytesIO(encode_directory(sizes))
    directory = b"".join(stream.encrypt(header.directory_key(key), plain, header.chunk))
    out.write(directory)
    out.write(encode_trailer(HEADER_BYTES + sum(map(header.body_bytes, sizes.values())), len(directory)))
    return header.stamp(directory)


def _chunks(key: bytes, name: str, source: BinaryIO, chunk: int) -> Iterator[bytes]:
    try:
        yield from stream.encrypt(key, source, chunk)
    except ConfigError as error:
        raise SourceError(f"{name}: {error}") from error


def _write_body(out: BinaryIO, chunks: Iterator[bytes], progress: Progress) -> int:
    """Bytes of plaintext written."""
    size = 0
    for sealed in chunks:
        out.write(sealed)
        size += len(sealed) - TAG_BYTES
        progress(len(sealed) - TAG_BYTES)
        if size > MAX_SIZE:
            raise ConfigError(f"larger than the {MAX_SIZE} bytes of a member")
    return size
