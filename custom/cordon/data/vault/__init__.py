"""The data vault: a hospital's dataset at rest, encrypted in one file. README.md is the format's specification."""

from cordon.data.vault.format import DEFAULT_CHUNK, KEY_BYTES, VAULT_REASONS, Header
from cordon.data.vault.reader import Vault, read_header, stamp_of, verify
from cordon.data.vault.writer import rekey, seal
from cordon.vault_stamp import Stamp

__all__ = [
    "DEFAULT_CHUNK",
    "KEY_BYTES",
    "VAULT_REASONS",
    "Header",
    "Stamp",
    "Vault",
    "read_header",
    "rekey",
    "seal",
    "stamp_of",
    "verify",
]
