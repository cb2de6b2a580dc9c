"""Reading the YAML and JSON documents that configure hospitals, coordinator and jobs: bounded, typed, strict, signed.

A document is a file that a person writes and may comment. Its signature is *detached*: ``<file>.sig`` is a DSSE
envelope whose body names the schema and the SHA-256 of the file's bytes; what was verified is what is parsed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from cordon import signing
from cordon.errors import ConfigError, SignatureError

MAX_DOCUMENT = 1024 * 1024  # bytes
SIGNATURE_TYPE = "application/vnd.cordon.document.v1+json"

T = TypeVar("T")


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all schemas: immutable, unknown keys are errors. (msgspec wants ``kw_only`` on each class.)"""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (no expansion bombs) and without duplicate keys (two readers, two meanings)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(map(str, keys))):
            raise yaml.YAMLError(f"duplicate key at line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def read_bytes(path: Path, limit: int = MAX_DOCUMENT) -> bytes:
    """The bytes of ``path``, at most ``limit``; ConfigError names the file and the reason."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would block or never end
            raise ConfigError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigError(f"{path}: larger than the {limit} bytes allowed")
    return data


def parse(data: bytes, schema: type[T], name: str) -> T:
    """``data`` (YAML, hence also JSON) as ``schema``; ``name`` is what error messages call it.

    Raises:
        ConfigError: not UTF-8, not YAML, wrong version, unknown or missing key, wrong type or range.
    """
    if len(data) > MAX_DOCUMENT:
        raise ConfigError(f"{name}: larger than the {MAX_DOCUMENT} bytes allowed")
    try:
        tree = yaml.load(data.decode("utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader subclass
        return msgspec.convert(tree, schema, strict=True)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # Unhashable keys, and what PyYAML's constructors let through: `!!timestamp x`, `!!bool x`, 5000 digits.
        raise ConfigError(f"{name}: a value that does not fit its YAML type: {error}") from error


def load(path: Path, schema: type[T]) -> T:
    """The document at ``path``."""
    return parse(read_bytes(path), schema, str(path))


def body_of(document: Any) -> dict[str, Any]:
    """A document as plain JSON values, for hashing and signing."""
    body: dict[str, Any] = msgspec.to_builtins(document)
    return body


def content_digest(document: Any) -> str:
    """Hex SHA-256 of a document's meaning: its canonical JSON, so comments and layout don't count."""
    return signing.digest("cordon/document/v1", signing.canonical(body_of(document)))


def sign_file(path: Path, schema_name: str, key: signing.PrivateKey) -> Path:
    """Sign ``path`` as a ``schema_name`` document; adds to the signatures already there if the file is the same."""
    data = read_bytes(path)
    body = {"document": schema_name, "sha256": hashlib.sha256(data).hexdigest()}
    target = signature_path(path)
    envelope = signing.sign(key, SIGNATURE_TYPE, body)
    if target.exists():
        try:
            present = msgspec.json.decode(read_bytes(target))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise SignatureError(f"{target}: not JSON; remove it to sign anew: {error}") from error
        if signing.unverified_body(present) == body:
            envelope = signing.add_signature(present, key)
    target.write_text(json.dumps(envelope, indent=1) + "\n")
    return target


def signature_path(path: Path) -> Path:
    """Where the detached signature of ``path`` lies."""
    return path.with_name(path.name + ".sig")


def load_signed(
    path: Path,
    schema: type[T],
    schema_name: str,
    keys: Iterable[signing.PublicKey | signing.TrustedKey],
    now: datetime,
    threshold: int = 1,
) -> T:
    """The document at ``path``, if ``threshold`` of ``keys`` signed exactly these bytes as ``schema_name``."""
    data = read_bytes(path)
    check_signature(path, data, schema_name, keys, now, threshold)
    return parse(data, schema, str(path))


def check_signature(
    path: Path,
    data: bytes,
    schema_name: str,
    keys: Iterable[signing.PublicKey | signing.TrustedKey],
    now: datetime,
    threshold: int = 1,
) -> None:
    """Raise SignatureError unless ``<path>.sig`` holds ``threshold`` valid signatures over ``data``."""
    signature = signature_path(path)
    if not signature.exists():
        raise SignatureError(f"{path}: not signed: {signature.name} is missing (sign it with `cordon sign`)")
    try:
        envelope = msgspec.json.decode(read_bytes(signature))
        body, _ = signing.verify(envelope, SIGNATURE_TYPE, keys, now, threshold)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(f"{signature}: not JSON: {error}") from error
    except SignatureError as error:
        raise SignatureError(f"{signature}: {error}") from error
    if body != {"document": schema_name, "sha256": hashlib.sha256(data).hexdigest()}:
        raise SignatureError(f"{path}: changed after it was signed, or signed as another kind than {schema_name}")
