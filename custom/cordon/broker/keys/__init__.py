"""Where the key encryption key (KEK) lives that wraps every key of a broker. Specification: README.md."""

from cordon.broker.keys.backend import (
    FileKeys,
    KeyBackend,
    Pkcs11Keys,
    VaultTransit,
    open_backend,
)
from cordon.broker.keys.encrypted_file import create_file_kek
from cordon.broker.keys.secret import Secret
from cordon.broker.keys.wrapped import KeyEncryption, rewrap

__all__ = [
    "FileKeys",
    "KeyBackend",
    "KeyEncryption",
    "Pkcs11Keys",
    "Secret",
    "VaultTransit",
    "create_file_kek",
    "open_backend",
    "rewrap",
]
