"""The default: the KEK in a file, encrypted under a passphrase (README.md, "KEK file").

scrypt (RFC 7914) turns the passphrase into an AES-256 key, which encrypts the KEK by AES-256-GCM.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cordon import new_file
from cordon.broker.keys import wrapped as blob
from cordon.broker.keys.secret import read_private
from cordon.errors import ConfigError

MAGIC = b"CORDKEK1"
SALT_BYTES = 16
KEK_BYTES = 32
HEADER_BYTES = len(MAGIC) + 4 + SALT_BYTES
FILE_BYTES = HEADER_BYTES + blob.NONCE_BYTES + KEK_BYTES + blob.TAG_BYTES
MIN_PASSPHRASE_BYTES = 16

# scrypt needs 128 * n * r bytes: 128 MiB by default. A file that asks for more than 256 MiB or p > 4 wants to stop the
# broker.
LOG2_N = 17
LOG2_N_BOUNDS = (14, 18)
R = 8
MAX_P = 4


class FileKek:
    """KeyEncryption with the KEK of the file at ``path`` in this process's memory."""

    name = "file"

    def __init__(self, path: Path, passphrase: bytes, random: blob.Random = os.urandom) -> None:
        """Raises ConfigError: no such file, open to others, no KEK file, or another passphrase."""
        self._path = path
        self._random = random
        self._cipher: AESGCM | None = AESGCM(
            _open(read_private(path, "key encryption key", FILE_BYTES), path, passphrase)
        )

    def __repr__(self) -> str:
        return f"FileKek({str(self._path)!r})"

    def wrap(self, key: bytes, label: str) -> bytes:
        blob.check_key(key)
        aad = blob.associated_data(blob.FILE, label)
        nonce = self._random(blob.NONCE_BYTES)
        return blob.Wrapped(blob.FILE, 0, nonce, self._opened().encrypt(nonce, key, aad)).encode()

    def unwrap(self, wrapped: bytes, label: str) -> bytes:
        parts = blob.Wrapped.decode(wrapped, blob.FILE)
        aad = blob.associated_data(blob.FILE, label)
        try:
            return self._opened().decrypt(parts.nonce, parts.ciphertext, aad)
        except InvalidTag as error:
            raise blob.does_not_open(self.name) from error

    def close(self) -> None:
        self._cipher = None

    def _opened(self) -> AESGCM:
        cipher = self._cipher
        if cipher is None:
            raise ConfigError(f"{self.name}: key encryption key {self._path} was closed")
        return cipher


def create_file_kek(path: Path, passphrase: bytes, *, log2_n: int = LOG2_N, random: blob.Random = os.urandom) -> None:
    """A new random KEK in a new file of mode 0600, on the disk when this returns.

    Raises:
        ConfigError: the file exists (it may be what opens a broker's state), cannot be written, or a weak passphrase.
    """
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise ConfigError(
            f"passphrase of {path}: {len(passphrase)} bytes, want {MIN_PASSPHRASE_BYTES} or more"
            " (`openssl rand -base64 32` makes one)"
        )
    if not LOG2_N_BOUNDS[0] <= log2_n <= LOG2_N_BOUNDS[1]:
        raise ConfigError(f"scrypt log2(n) is {log2_n}, want {LOG2_N_BOUNDS[0]} to {LOG2_N_BOUNDS[1]}")
    header = MAGIC + bytes([log2_n, R, 1, 0]) + random(SALT_BYTES)
    nonce = random(blob.NONCE_BYTES)
    new_file.write(path, header + nonce + _cipher(header, passphrase).encrypt(nonce, random(KEK_BYTES), header))


def _open(data: bytes, path: Path, passphrase: bytes) -> bytes:
    """The KEK in ``data``; its parameters are bounded before anything is computed by them."""
    if len(data) != FILE_BYTES or not data.startswith(MAGIC):
        raise ConfigError(
            f"{path}: no key encryption key file (want {FILE_BYTES} bytes that begin with {MAGIC.decode()})"
        )
    log2_n, r, p, zero = data[len(MAGIC) : len(MAGIC) + 4]
    if not LOG2_N_BOUNDS[0] <= log2_n <= LOG2_N_BOUNDS[1] or r != R or not 1 <= p <= MAX_P or zero:
        raise ConfigError(f"{path}: scrypt parameters out of bounds: log2(n) {log2_n}, r {r}, p {p}, reserved {zero}")
    header, rest = data[:HEADER_BYTES], data[HEADER_BYTES:]
    try:
        return _cipher(header, passphrase).decrypt(rest[: blob.NONCE_BYTES], rest[blob.NONCE_BYTES :], header)
    except InvalidTag as error:
        raise ConfigError(f"{path}: does not open: another passphrase, or the file was changed") from error


def _cipher(header: bytes, passphrase: bytes) -> AESGCM:
    log2_n, r, p, _ = header[len(MAGIC) : len(MAGIC) + 4]
    salt = header[len(MAGIC) + 4 :]
    try:
        return AESGCM(Scrypt(salt=salt, length=32, n=1 << log2_n, r=r, p=p).derive(passphrase))
    except MemoryError as error:
        raise ConfigError(f"scrypt needs {(128 * r << log2_n) >> 20} MiB of memory, which there is not") from error
