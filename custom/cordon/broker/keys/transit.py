"""The KEK in the transit engine of HashiCorp Vault (1.13 or newer) or OpenBao.

``POST /v1/{mount}/encrypt|decrypt/{key}`` with ``associated_data`` (Vault API documentation, "Transit secrets engine").
"""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hvac.exceptions
import requests
import urllib3.exceptions
from hvac.adapters import JSONAdapter
from hvac.api.secrets_engines.transit import Transit

from cordon.broker.keys import wrapped as blob
from cordon.errors import ConfigError, SealError

MAX_RESPONSE = 64 * 1024  # bytes

# What the key must say of itself. An exportable one, or one with a plain backup, can be copied out.
_WANTED = {
    "type": "aes256-gcm96",
    "derived": False,
    "exportable": False,
    "allow_plaintext_backup": False,
    "supports_encryption": True,
    "supports_decryption": True,
}
_CIPHERTEXT = re.compile(r"vault:v([1-9][0-9]{0,9}):([A-Za-z0-9+/]+={0,2})", re.ASCII)
_TOKEN = re.compile(rb"[\x21-\x7e]+")


class TransitKek:
    """KeyEncryption by a transit key; one request at a time.

    TLS is verified against ``ca`` alone. Proxies, ``.netrc`` and the ``VAULT_*`` variables of the environment are not
    looked at, redirects not followed (they would carry the token along), answers cut at ``MAX_RESPONSE``.
    """

    name = "hashicorp-vault"

    def __init__(
        self, url: str, mount: str, key_name: str, read_token: Callable[[], bytes], ca: Path, timeout_s: float
    ) -> None:
        """Raises ConfigError: not reachable, token refused, no such key, or a key that could be copied out."""
        if not ca.is_file():
            raise ConfigError(f"hashicorp-vault: CA certificate {ca} is not there")
        self._what = f"hashicorp-vault: key {key_name!r} of {url}/v1/{mount}"
        self._place = {"name": key_name, "mount_point": mount}
        self._read_token = read_token
        self._lock = threading.Lock()
        self._closed = False
        session = requests.Session()
        session.trust_env = False
        session.verify = str(ca)
        session.hooks["response"].append(_bounded)
        self._adapter = JSONAdapter(base_uri=url, session=session, timeout=timeout_s, allow_redirects=False)
        self._transit = Transit(self._adapter)
        try:
            self._check_key()
        except ConfigError:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<TransitKek {self._what}>"

    def wrap(self, key: bytes, label: str) -> bytes:
        blob.check_key(key)
        aad = _base64(blob.associated_data(blob.TRANSIT, label))
        data = self._ask(self._transit.encrypt_data, plaintext=_base64(key), associated_data=aad)
        match = _CIPHERTEXT.fullmatch(_text(data, "ciphertext"))
        sealed = None if match is None else _decoded(match[2])
        wanted = blob.NONCE_BYTES + len(key) + blob.TAG_BYTES
        if match is None or sealed is None or len(sealed) != wanted or int(match[1]) >= 1 << 32:
            raise ConfigError(f"{self._what}: answered to encrypt with something else than vault:v<n>:<{wanted} bytes>")
        nonce, ciphertext = sealed[: blob.NONCE_BYTES], sealed[blob.NONCE_BYTES :]
        return blob.Wrapped(blob.TRANSIT, int(match[1]), nonce, ciphertext).encode()

    def unwrap(self, wrapped: bytes, label: str) -> bytes:
        parts = blob.Wrapped.decode(wrapped, blob.TRANSIT)
        aad = _base64(blob.associated_data(blob.TRANSIT, label))
        ciphertext = f"vault:v{parts.kek_version}:{_base64(parts.nonce + parts.ciphertext)}"
        data = self._ask(self._transit.decrypt_data, ciphertext=ciphertext, associated_data=aad)
        key = _decoded(_text(data, "plaintext"))
        if key is None or len(key) != len(parts.ciphertext) - blob.TAG_BYTES:
            raise ConfigError(f"{self._what}: answered to decrypt with something else than the key")
        return key

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._adapter.token = None
            self._adapter.close()

    def _check_key(self) -> None:
        found = self._ask(self._transit.read_key)
        wrong = [
            f"{name} is {found.get(name)!r:.40}, want {want!r}"
            for name, want in _WANTED.items()
            if found.get(name) != want
        ]
        if wrong:
            raise ConfigError(f"{self._what}: could be copied out, or is no AES-256-GCM key: {', '.join(wrong)}")

    def _ask(self, operation: Callable[..., Any], **arguments: str) -> dict[str, Any]:
        """The ``data`` of the answer. What the server says of an error is not passed on: it may repeat the request."""
        with self._lock:
            if self._closed:
                raise ConfigError(f"{self._what}: was closed")
            token = self._read_token()
            if not _TOKEN.fullmatch(token):
                raise ConfigError(f"{self._what}: the token holds more than printable ASCII characters")
            self._adapter.token = token.decode("ascii")
            try:
                answer = operation(**self._place, **arguments)
            except hvac.exceptions.InvalidRequest as error:
                raise self._judged(error, "ciphertext" in arguments) from None
            except (hvac.exceptions.Forbidden, hvac.exceptions.Unauthorized):
                wanted = "a token that is valid and may read, encrypt and decrypt with the key"
                raise ConfigError(f"{self._what}: token refused; want {wanted}") from None
            except hvac.exceptions.InvalidPath:
                raise ConfigError(
                    f"{self._what}: no such key or engine; `vault write -f <mount>/keys/<key>` makes it"
                ) from None
            except hvac.exceptions.VaultError as error:
                reason = f"{type(error).__name__}; is it unsealed?"
                raise ConfigError(f"{self._what}: the server cannot answer ({reason})") from None
            except _TooLarge:
                raise ConfigError(f"{self._what}: answered with over {MAX_RESPONSE} bytes") from None
            except (OSError, urllib3.exceptions.HTTPError) as error:  # requests' exceptions are OSErrors
                raise ConfigError(f"{self._what}: not reachable ({type(error).__name__})") from None
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
                raise ConfigError(f"{self._what}: answered with something else than Vault's JSON") from None
            finally:
                self._adapter.token = None
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), dict):
            raise ConfigError(f"{self._what}: answered with something else than Vault's JSON")
        data: dict[str, Any] = answer["data"]
        return data

    def _judged(self, error: hvac.exceptions.InvalidRequest, decrypting: bool) -> ConfigError | SealError:
        """What status 400 means: to a decrypt that the bytes don't open, unless the key itself is gone."""
        said = str(error.errors)
        if decrypting and "key not found" not in said:
            if "disallowed by policy" in said:
                return SealError(f"{self.name}: wrapped under a version of the key that min_decryption_version forbids")
            return blob.does_not_open(self.name)
        return ConfigError(f"{self._what}: request refused (status 400); does the key exist, is it for encryption?")


class _TooLarge(Exception):
    """An answer over ``MAX_RESPONSE``."""


def _bounded(response: requests.Response, *_: Any, **__: Any) -> None:
    """Read the body here, up to the bound (requests would read all of it)."""
    body = response.raw.read(MAX_RESPONSE + 1, decode_content=True)
    if len(body) > MAX_RESPONSE:
        response.raw.close()
        raise _TooLarge
    response.raw = io.BytesIO(body)


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    return value if isinstance(value, str) else ""


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(text: str) -> bytes | None:
    """The bytes of ``text``; None unless it is their one canonical base64."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if _base64(data) == text else None
