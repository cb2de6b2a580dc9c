"""Reading a vault: its members as seekable files, decrypted chunk by chunk into memory and nowhere else.

``Vault`` holds one descriptor from the first byte to the last: a file that is put in its place meanwhile isn't
followed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cordon import stream
from cordon.data.vault.file import named, open_file, read, read_into
from cordon.data.vault.format import (
    HEADER_BYTES,
    LEAST_BYTES,
    MAX_SIZE,
    TRAILER_BYTES,
    Header,
    Progress,
    check_key,
    decode_directory,
    decode_trailer,
)
from cordon.errors import SealError, VaultError
from cordon.stream import TAG_BYTES, nonce
from cordon.vault_stamp import Stamp

_BUFFER = 64 * 1024  # bytes of decrypted data that a member keeps at hand for small reads, beside its chunk


def read_header(path: Path) -> Header:
    """The header of the vault at ``path``, unauthenticated: whose key to ask for. VaultError if it is no vault."""
    with open_file(path) as file, named(path):
        return Header.parse(read(file, 0, HEADER_BYTES))


def stamp_of(path: Path) -> Stamp:
    """The stamp of the vault at ``path``, without a key: what its root says was not verified, only computed."""
    with open_file(path) as file, named(path):
        return Header.parse(read(file, 0, HEADER_BYTES)).stamp(_directory(file))


def verify(vault: Vault, progress: Progress | None = None) -> None:
    """Read every chunk of every member; VaultError at the first that is not what was sealed."""
    scratch = bytearray(vault.chunk)
    for name in vault.members():
        with vault.open(name) as file:
            while count := file.readinto(scratch):
                if progress is not None:
                    progress(count)


class Vault:
    """An open vault; a context manager.

    >>> with Vault(path, key, expect=stamp) as vault, vault.open("patients.csv") as file:  # doctest: +SKIP
    ...     first_line = file.readline()

    Args:
        path: the file.
        key: 32 bytes.
        expect: the version wanted. Without it an older version of the same vault is as good as the newest.

    Raises:
        VaultError: with a reason of ``VAULT_REASONS``; header, tag, end, directory and ``expect`` are checked here, a
            chunk when it is read.
    """

    stamp: Stamp
    chunk: int

    def __init__(self, path: Path, key: bytes, expect: Stamp | None = None) -> None:
        check_key(key)
        self.path = path
        self._key = key
        self._file = open_file(path)
        try:
            with named(path):
                self._members = self._check(expect)
        except BaseException:
            self._file.close()
            raise

    def _check(self, expect: Stamp | None) -> dict[str, tuple[int, int, int]]:
        """name -> (index, offset of its body, size)."""
        # 1. What was put here instead? The header's own words are enough to refuse it.
        header = Header.parse(read(self._file, 0, HEADER_BYTES))
        if expect is not None and header.vault != expect.vault:
            raise VaultError("wrong_vault", f"vault {header.vault}, want {expect.vault}")
        if expect is not None and header.version < expect.version:
            raise VaultError("rolled_back", f"version {header.version}, want {expect.version}")
        # 2. The header is the key holder's; from here on its numbers count.
        header.check(self._key)
        # 3. The file ends where its trailer says; header and directory are those wanted.
        directory = _directory(self._file)
        self._header, self.stamp, self.chunk = header, header.stamp(directory), header.chunk
        if expect is not None and self.stamp != expect:
            raise VaultError(
                "wrong_root",
                f"version {header.version} with root {self.stamp.root[:16]}, "
                f"want version {expect.version} with root {expect.root[:16]}",
            )
        # 4. The directory is the key holder's, and the bodies fill the file up to it exactly.
        members: dict[str, tuple[int, int, int]] = {}
        offset = HEADER_BYTES
        for index, (name, size) in enumerate(decode_directory(self._decrypt_directory(directory)).items()):
            members[name] = (index, offset, size)
            offset += header.body_bytes(size)
        if offset + len(directory) + TRAILER_BYTES != os.fstat(self._file.fileno()).st_size:
            raise VaultError("wrong_end", "the members do not fill the file up to the directory")
        return members

    def _decrypt_directory(self, sealed: bytes) -> bytes:
        key = self._header.directory_key(self._key)
        try:
            return b"".join(stream.decrypt(key, io.BytesIO(sealed), self.chunk))
        except SealError as error:
            raise VaultError("directory_changed", f"the directory: {error}") from error

    def members(self) -> tuple[str, ...]:
        """Names of all members, in the order in which they were sealed."""
        return tuple(self._members)

    def size(self, name: str) -> int:
        """Plaintext bytes of member ``name``."""
        return self._find(name)[2]

    def single(self) -> str:
        """The name of the only member of a vault that must hold one."""
        if len(self._members) != 1:
            raise VaultError("not_single", f"{self.path}: want one member, got {len(self._members)}")
        return next(iter(self._members))

    def open(self, name: str, limit: int = MAX_SIZE) -> io.BufferedReader:
        """Member ``name`` for reading: seekable and buffered; good until the vault is closed.

        Raises:
            VaultError: no such member, or it is larger than ``limit`` bytes. Reading raises it with ``chunk_changed``.
        """
        index, offset, size = self._find(name)
        if size > limit:
            raise VaultError("member_too_large", f"{self.path}: {name}: {size} bytes, at most {limit} are accepted")
        cipher = AESGCM(self._header.member_key(self._key, index))
        return io.BufferedReader(_Member(self._file, f"{self.path}: {name}", cipher, offset, size, self.chunk), _BUFFER)

    def _find(self, name: str) -> tuple[int, int, int]:
        if name not in self._members:
            raise VaultError("member_missing", f"{self.path}: no member {name!r:.300}")
        return self._members[name]

    def close(self) -> None:
        """Close the file; members that are still open can read no more."""
        self._file.close()
        self._key = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Member(io.RawIOBase):
    """One member: decrypts whole chunks, straight into the caller's buffer where that is large enough."""

    def __init__(self, file: io.FileIO, name: str, cipher: AESGCM, offset: int, size: int, chunk: int) -> None:
        super().__init__()
        self._file, self._name, self._cipher = file, name, cipher
        self._offset, self._size, self._chunk = offset, size, chunk
        self._last = max(0, -(-size // chunk) - 1)  # number of the last chunk
        self._position = 0
        self._sealed = memoryview(bytearray(min(size, chunk) + TAG_BYTES))
        self._kept: memoryview | None = None  # the one chunk that small reads are served from
        self._kept_number = -1
        if size == 0:  # else nothing would ever authenticate its one empty chunk
            self._decrypt(0, memoryview(bytearray()))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek by {offset} (whence {whence})")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not len(view):
            return 0
        number, skip = divmod(self._position, self._chunk)
        length = self._length(number)
        if skip == 0 and len(view) >= length and number != self._kept_number:
            self._decrypt(number, view[:length])
            count = length
        else:
            kept = self._keep(number)
            count = min(length - skip, len(view))
            view[:count] = kept[skip : skip + count]
        self._position += count
        return count

    def readall(self) -> bytes:
        parts = []
        while self._position < self._size:
            number = self._position // self._chunk
            part = bytearray(self._length(number) - self._position % self._chunk)
            self.readinto(memoryview(part))
            parts.append(part)
        return b"".join(parts)

    def _length(self, number: int) -> int:
        return self._chunk if number < self._last else self._size - self._last * self._chunk

    def _keep(self, number: int) -> memoryview:
        if self._kept is None:
            self._kept = memoryview(bytearray(min(self._size, self._chunk)))
        if number != self._kept_number:
            self._kept_number = -1
            self._decrypt(number, self._kept[: self._length(number)])
            self._kept_number = number
        return self._kept

    def _decrypt(self, number: int, into: memoryview) -> None:
        sealed = self._sealed[: len(into) + TAG_BYTES]
        try:
            read_into(self._file, self._offset + number * (self._chunk + TAG_BYTES), sealed)
            self._cipher.decrypt_into(nonce(number, number == self._last), sealed, None, into)
        except InvalidTag as error:
            into[:] = bytes(len(into))  # the library has written there before it knew
            raise VaultError("chunk_changed", f"{self._name}: chunk {number} of {self._last + 1}") from error
        except VaultError as error:
            raise VaultError(error.reason, f"{self._name}: {error.detail}") from error


def _directory(file: io.FileIO) -> bytes:
    """The ciphertext of the directory, where the file's end fits its trailer."""
    size = os.fstat(file.fileno()).st_size
    if size < LEAST_BYTES:
        raise VaultError("wrong_end", f"{size} bytes, a vault has {LEAST_BYTES} or more")
    offset, length = decode_trailer(read(file, size - TRAILER_BYTES, TRAILER_BYTES), size)
    return read(file, offset, length)
