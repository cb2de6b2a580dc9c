"""The KEK in a PKCS#11 token (an HSM): an AES-256 key made there that nothing takes out again.

Wrapping is CKM_AES_GCM inside the token (PKCS#11 2.40 Current Mechanisms, "Additional AES Mechanisms").
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.exceptions import (
    MultipleTokensReturned,
    NoSuchToken,
    PinExpired,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    UserAlreadyLoggedIn,
)

from cordon.broker.keys import wrapped as blob
from cordon.errors import ConfigError

if TYPE_CHECKING:
    from cordon.broker.keys.backend import Pkcs11Keys

T = TypeVar("T")


class AesKey(Protocol):
    """What is used of a key object."""

    def encrypt(self, data: bytes, *, mechanism: Mechanism, mechanism_param: GCMParams) -> bytes: ...
    def decrypt(self, data: bytes, *, mechanism: Mechanism, mechanism_param: GCMParams) -> bytes: ...


_PIN_ERRORS = (PinIncorrect, PinInvalid, PinLenRange, PinExpired, PinLocked)

# What the KEK must say of itself. ALWAYS_ and NEVER_: also not before, when someone could have copied it out.
_WANTED = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
    Attribute.VALUE_LEN: 32,
    Attribute.ENCRYPT: True,
    Attribute.DECRYPT: True,
}
_TEMPLATE = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.MODIFIABLE: False,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
    Attribute.DERIVE: False,
}


class Pkcs11Kek:
    """KeyEncryption by the AES key ``key_label`` of the token ``token_label``.

    One session, one operation at a time. A session that was lost (HSM unplugged, restarted, failed over) is opened anew
    once per call. After a PIN was refused none is sent again: the third wrong one locks most tokens.
    """

    name = "pkcs11"

    def __init__(
        self,
        module: Path,
        token_label: str,
        key_label: str,
        read_pin: Callable[[], bytes],
        random: blob.Random = os.urandom,
    ) -> None:
        """Raises ConfigError: no module, token or key of that name, PIN refused, or a key that could be copied out."""
        self._module = module
        self._token_label = token_label
        self._key_label = key_label
        self._read_pin = read_pin
        self._random = random
        self._lock = threading.Lock()
        self._session: pkcs11.Session | None = None
        self._key: AesKey | None = None
        self._over = ""  # why nothing is tried any more
        with self._lock:
            self._connected()

    def __repr__(self) -> str:
        return f"Pkcs11Kek(token_label={self._token_label!r}, key_label={self._key_label!r})"

    def wrap(self, key: bytes, label: str) -> bytes:
        blob.check_key(key)
        aad = blob.associated_data(blob.PKCS11, label)
        nonce = self._random(blob.NONCE_BYTES)
        ciphertext = self._run(lambda kek: _encrypt(kek, nonce, key, aad))
        if len(ciphertext) != len(key) + blob.TAG_BYTES:
            raise ConfigError(f"{self._where()}: CKM_AES_GCM gave {len(ciphertext)} bytes for {len(key)}")
        return blob.Wrapped(blob.PKCS11, 0, nonce, ciphertext).encode()

    def unwrap(self, wrapped: bytes, label: str) -> bytes:
        parts = blob.Wrapped.decode(wrapped, blob.PKCS11)
        aad = blob.associated_data(blob.PKCS11, label)
        return self._run(lambda kek: self._decrypt(kek, parts, aad))

    def close(self) -> None:
        with self._lock:
            self._over = self._over or "was closed"
            self._disconnect()

    def _decrypt(self, kek: AesKey, parts: blob.Wrapped, aad: bytes) -> bytes:
        try:
            return _decrypt(kek, parts.nonce, parts.ciphertext, aad)
        except PKCS11Error as error:
            # Tokens don't agree on what they answer to a wrong tag (SoftHSM: CKR_GENERAL_ERROR, also said of any other
            # failure). So ask whether the token still works: raises if it does not.
            nonce = self._random(blob.NONCE_BYTES)
            _decrypt(kek, nonce, _encrypt(kek, nonce, bytes(16), b"alive"), b"alive")
            raise blob.does_not_open(self.name) from error

    def _run(self, operation: Callable[[AesKey], T]) -> T:
        with self._lock:
            try:
                return operation(self._connected())
            except PKCS11Error:
                self._disconnect()
            try:
                return operation(self._connected())
            except PKCS11Error as error:
                self._disconnect()
                raise ConfigError(
                    f"{self._where()}: lost ({_reason(error)}); is the token plugged in, and its service running?"
                ) from error

    def _connected(self) -> AesKey:
        if self._over:
            raise ConfigError(f"{self._where()}: {self._over}")
        if self._key is None:
            try:
                self._session = _log_in(self._module, self._token_label, self._read_pin, rw=False)
                self._key = _find_key(self._session, self._key_label, self._where())
            except ConfigError as error:
                if isinstance(error.__cause__, _PIN_ERRORS):
                    self._over = "its PIN was refused, and none is sent again before a restart (tokens lock themselves)"
                self._disconnect()
                raise
            except PKCS11Error as error:
                self._disconnect()
                raise ConfigError(f"{self._where()}: cannot be used ({_reason(error)})") from error
        return self._key

    def _disconnect(self) -> None:
        session, self._session, self._key = self._session, None, None
        if session is not None:
            with contextlib.suppress(PKCS11Error):  # it may be gone already
                session.close()

    def _where(self) -> str:
        return f"pkcs11: key {self._key_label!r} of token {self._token_label!r}"


def create_pkcs11_kek(config: Pkcs11Keys, folder: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Make the KEK inside the token: AES-256, sensitive, not extractable, not modifiable, for AES-GCM alone.

    Raises:
        ConfigError: no such module or token, PIN refused, or the token has a key of that label (it may be what opens a
            broker's state).
    """
    where = f"pkcs11: key {config.key_label!r} of token {config.token_label!r}"
    module = folder / config.module
    session = _log_in(module, config.token_label, lambda: config.pin.read("PIN", folder, environ), rw=True)
    try:
        present = session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: config.key_label})
        if list(present):
            raise ConfigError(f"{where}: exists, and a key is never overwritten")
        session.generate_key(
            KeyType.AES,
            256,
            label=config.key_label,
            store=True,
            capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
            template=_TEMPLATE,
        )
        _find_key(session, config.key_label, where)
    except PKCS11Error as error:
        raise ConfigError(f"{where}: cannot be made ({_reason(error)})") from error
    finally:
        with contextlib.suppress(PKCS11Error):
            session.close()


def _log_in(module: Path, token_label: str, read_pin: Callable[[], bytes], *, rw: bool) -> pkcs11.Session:
    if not module.is_file():
        raise ConfigError(f"pkcs11: module {module} is not there; name the vendor's PKCS#11 library")
    where = f"pkcs11: token {token_label!r}"
    try:
        pin = read_pin().decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: the PIN is not UTF-8 text") from None  # the error holds it
    try:
        token = pkcs11.lib(str(module)).get_token(token_label=token_label)
        try:
            return token.open(rw=rw, user_pin=pin)
        except UserAlreadyLoggedIn:  # a log-in counts for the whole process
            return token.open(rw=rw)
    except NoSuchToken as error:
        raise ConfigError(f"{where}: not found by {module}; is it plugged in and initialised?") from error
    except MultipleTokensReturned as error:
        raise ConfigError(f"{where}: {module} has several of that label") from error
    except _PIN_ERRORS as error:
        raise ConfigError(f"{where}: PIN refused ({_reason(error)}); nothing is tried again") from error
    except PKCS11Error as error:
        raise ConfigError(f"{where}: {module} cannot be used ({_reason(error)})") from error


def _find_key(session: pkcs11.Session, label: str, where: str) -> AesKey:
    wanted = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES, Attribute.LABEL: label}
    keys = list(session.get_objects(wanted))
    if len(keys) != 1:
        text = "several keys have that label" if keys else "no such AES key; create_pkcs11_kek makes it"
        raise ConfigError(f"{where}: {text}")
    (key,) = keys
    found = {attribute: key[attribute] for attribute in _WANTED}
    wrong = [f"{each.name} is {found[each]}, want {want}" for each, want in _WANTED.items() if found[each] != want]
    if wrong:
        raise ConfigError(f"{where}: could be copied out, or is no AES-256 key made there: {', '.join(wrong)}")
    return cast(AesKey, key)


def _encrypt(kek: AesKey, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    parameters = GCMParams(nonce, aad, blob.TAG_BYTES * 8)
    return bytes(kek.encrypt(data, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))


def _decrypt(kek: AesKey, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    parameters = GCMParams(nonce, aad, blob.TAG_BYTES * 8)
    return bytes(kek.decrypt(data, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))


def _reason(error: PKCS11Error) -> str:
    """The name of the return value (CKR_PIN_INCORRECT is PinIncorrect); the library's own text names files alone."""
    return type(error).__name__ if type(error) is not PKCS11Error else " ".join(str(error).split()) or "PKCS11Error"
