"""Layout, keys and chunks of a vault, format 1; the README is the specification, names and offsets are its own."""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta

from cordon import signing
from cordon.documents import Document
from cordon.errors import ConfigError, VaultError
from cordon.signing import lp
from cordon.stream import TAG_BYTES
from cordon.vault_stamp import MAX_VERSION, Stamp

MAGIC = b"\x8fcordonV"
END_MAGIC = b"Vnodroc\x8f"
FORMAT = 1
KEY_BYTES = 32
MIN_CHUNK, MAX_CHUNK, DEFAULT_CHUNK = 4 * 1024, 16 * 1024**2, 256 * 1024
MAX_MEMBERS = 1_000_000
MAX_NAME = 255  # bytes of UTF-8
MAX_DIRECTORY = 128 * 1024**2  # bytes of its ciphertext
MAX_SIZE = 2**53 - 1  # bytes of one member

_HEADER = struct.Struct(">8sII16sQ32s")  # magic, format, chunk, vault id, version, salt
_TRAILER = struct.Struct(">QQ8s")  # directory offset, directory length, end magic
HEADER_BYTES = _HEADER.size + 32  # and the header tag
TRAILER_BYTES = _TRAILER.size
LEAST_BYTES = HEADER_BYTES + TAG_BYTES + TRAILER_BYTES

_DOMAIN = lp(b"cordon/vault/v1")

VAULT_REASONS = {
    "key_length": "the vault key has another length than 32 bytes",
    "unreadable": "the operating system does not let the file be read, or it is no regular file",
    "not_a_vault": "the file does not begin as a vault",
    "unknown_format": "the header names a format, chunk size or version that format 1 does not have",
    "wrong_end": "the file's length does not fit its trailer and directory: cut short, or bytes added",
    "wrong_key_or_header": "the header's tag does not verify: another key, or the header was changed",
    "directory_changed": "the directory does not decrypt, or does not describe this file",
    "chunk_changed": "a chunk does not decrypt: changed, moved, or of another member, version or vault",
    "rolled_back": "the version is older than the one wanted",
    "wrong_vault": "the vault id is another than the one wanted",
    "wrong_root": "header or directory are others than those wanted",
    "member_missing": "there is no member of that name",
    "member_too_large": "the member is larger than the reader accepts",
    "not_single": "one member is wanted, and the vault has none or several",
}
"""What ``VaultError.reason`` may be; stable."""


@dataclass(frozen=True)
class Header:
    """The fixed part before the bodies. ``data`` is all of its bytes, tag included; trust nothing before ``check``."""

    chunk: int
    vault: str
    version: int
    salt: bytes
    data: bytes

    @classmethod
    def make(cls, key: bytes, vault: bytes, version: int, chunk: int, salt: bytes) -> Header:
        """A header with its tag; ConfigError if a field is out of range."""
        if len(vault) != 16 or len(salt) != 32 or not 1 <= version <= MAX_VERSION or not _is_chunk(chunk):
            raise ConfigError(
                f"a vault wants an id of 16 bytes, a version in 1..{MAX_VERSION} and a chunk size that is a power "
                f"of two in {MIN_CHUNK}..{MAX_CHUNK}; got {len(vault)} bytes, version {version}, chunk size {chunk}"
            )
        bare = _HEADER.pack(MAGIC, FORMAT, chunk, vault, version, salt)
        return cls(chunk, vault.hex(), version, salt, bare + _tag(key, salt, bare))

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """The header that a file begins with, unauthenticated; ``data`` may be shorter."""
        if data[: len(MAGIC)] != MAGIC:
            raise VaultError("not_a_vault", "does not begin with the magic of a vault")
        if len(data) < HEADER_BYTES:
            raise VaultError("wrong_end", f"{len(data)} bytes, a header alone has {HEADER_BYTES}")
        _, number, chunk, vault, version, salt = _HEADER.unpack_from(data)
        if number != FORMAT:
            raise VaultError("unknown_format", f"format {number}, this version of cordon reads format {FORMAT}")
        if not _is_chunk(chunk) or not 1 <= version <= MAX_VERSION:
            raise VaultError("unknown_format", f"chunk size {chunk} or version {version} is out of range")
        return cls(chunk, vault.hex(), version, salt, data[:HEADER_BYTES])

    def check(self, key: bytes) -> None:
        """Raise VaultError unless ``key`` made this header."""
        if not hmac.compare_digest(_tag(key, self.salt, self.bare), self.data[_HEADER.size :]):
            raise VaultError("wrong_key_or_header", "the header's tag does not verify under this key")

    @property
    def bare(self) -> bytes:
        """The bytes that the tag covers."""
        return self.data[: _HEADER.size]

    def body_bytes(self, size: int) -> int:
        """Ciphertext bytes of ``size`` plaintext bytes: one tag a chunk, and at least one chunk."""
        return size + TAG_BYTES * max(1, -(-size // self.chunk))

    def member_key(self, key: bytes, index: int) -> bytes:
        """The key of the member at ``index``, from 0 in the order of the bodies."""
        return _derive(key, self.salt, lp(b"member") + lp(index.to_bytes(8, "big")) + lp(self.bare))

    def directory_key(self, key: bytes) -> bytes:
        """The key of the directory."""
        return _derive(key, self.salt, lp(b"directory") + lp(self.bare))

    def stamp(self, directory: bytes) -> Stamp:
        """The stamp of the version whose directory ciphertext is ``directory``."""
        root = signing.digest("cordon/vault-root/v1", self.data, directory)
        return Stamp(vault=self.vault, version=self.version, root=root)


def check_key(key: bytes) -> None:
    """Raise VaultError unless ``key`` has the length of a vault key."""
    if len(key) != KEY_BYTES:
        raise VaultError("key_length", f"the vault key has {len(key)} bytes, want {KEY_BYTES}")


def check_name(name: str) -> None:
    """Raise ConfigError unless ``name`` can be a member's."""
    try:
        fits = 1 <= len(name.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        fits = False
    control = any(ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 for each in name)
    if not fits or control or "/" in name or name in (".", ".."):
        raise ConfigError(
            f"{name!r:.300}: not a member's name: want 1 to {MAX_NAME} bytes of UTF-8, no '/', no control characters"
        )


class _Entry(Document, frozen=True, kw_only=True):
    name: str
    size: Annotated[int, Meta(ge=0, le=MAX_SIZE)]


class _Directory(Document, frozen=True, kw_only=True):
    v: Literal[1]
    members: Annotated[tuple[_Entry, ...], Meta(max_length=MAX_MEMBERS)]


def encode_directory(members: dict[str, int]) -> bytes:
    """Canonical JSON of name -> size, in the order of the bodies; ConfigError if there are too many."""
    data = signing.canonical({"v": 1, "members": [{"name": name, "size": size} for name, size in members.items()]})
    if len(members) > MAX_MEMBERS or len(data) > MAX_DIRECTORY // 2:
        raise ConfigError(f"{len(members)} members; a directory holds {MAX_MEMBERS} in {MAX_DIRECTORY // 2} bytes")
    return data


def decode_directory(data: bytes) -> dict[str, int]:
    """Inverse of ``encode_directory``; the bytes are authentic, yet held to the format."""
    try:
        entries = msgspec.json.decode(data, type=_Directory).members
        for entry in entries:
            check_name(entry.name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ConfigError) as error:
        raise VaultError("directory_changed", "not a directory of format 1") from error
    members = {entry.name: entry.size for entry in entries}
    if len(members) != len(entries):
        raise VaultError("directory_changed", "a member's name twice")
    return members


def encode_trailer(offset: int, length: int) -> bytes:
    """The last ``TRAILER_BYTES`` bytes: where the directory's ciphertext lies."""
    return _TRAILER.pack(offset, length, END_MAGIC)


def decode_trailer(data: bytes, size: int) -> tuple[int, int]:
    """(offset, length) of the directory in a file of ``size`` bytes, which must be what lies before the trailer."""
    if len(data) != TRAILER_BYTES:
        raise VaultError("wrong_end", "no trailer: the file was cut short")
    offset, length, magic = _TRAILER.unpack(data)
    if magic != END_MAGIC or offset < HEADER_BYTES or offset + length + TRAILER_BYTES != size:
        raise VaultError("wrong_end", f"no trailer that fits its {size} bytes: cut short, appended to, or changed")
    if not TAG_BYTES <= length <= MAX_DIRECTORY:
        raise VaultError("wrong_end", f"a directory of {length} bytes, want {TAG_BYTES}..{MAX_DIRECTORY}")
    return offset, length


def _is_chunk(size: int) -> bool:
    return MIN_CHUNK <= size <= MAX_CHUNK and size & (size - 1) == 0


def _tag(key: bytes, salt: bytes, bare: bytes) -> bytes:
    return hmac.digest(_derive(key, salt, lp(b"header")), bare, "sha256")


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, _DOMAIN + info).derive(key)


Progress = Callable[[int], None]
"""Called with the number of plaintext bytes that each step added."""
