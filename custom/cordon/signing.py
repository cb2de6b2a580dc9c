"""The only signature format of Cordon: DSSE envelopes over RFC 8785 canonical JSON.

* ``lp(x)`` = 4-byte big-endian length || x, so that no two lists of fields hash alike.
* ``digest(label, *parts)`` = hex SHA-256( lp(label) || lp(part) ... ).
* ``sign(key, payload_type, body)`` -> DSSE v1 envelope (https://github.com/secure-systems-lab/dsse, protocol.md); the
  payload is the RFC 8785 form of ``body``, the signature covers ``PAE(type, payload)``.
* ``verify(envelope, payload_type, keys, now)`` -> body. Success returns, everything else raises SignatureError.

Keys are Ed25519 (policies, stewards, attested processes) or RSA >= 2048 with PSS/SHA-256 (FLARE's mTLS identities).
The algorithm follows from the trusted key, never from the message. A key is named by its *SPKI digest*: hex SHA-256 of
the DER SubjectPublicKeyInfo; the ``keyid`` in an envelope is that digest and only a hint which trusted key to try.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import rfc8785
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from cordon.errors import ConfigError, SignatureError

PublicKey = Ed25519PublicKey | RSAPublicKey
PrivateKey = Ed25519PrivateKey | RSAPrivateKey

MAX_ENVELOPE = 8 * 1024 * 1024  # bytes of payload accepted before parsing
MAX_SIGNATURES = 128
_NOT_A_KEY = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)  # all that cryptography says of it
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)


def lp(part: bytes) -> bytes:
    """``part`` behind its 4-byte big-endian length.

    >>> lp(b"ab").hex()
    '000000026162'
    """
    return len(part).to_bytes(4, "big") + part


def digest(label: str, *parts: bytes) -> str:
    """Hex SHA-256 over the length-prefixed label and parts."""
    return hashlib.sha256(lp(label.encode()) + b"".join(lp(part) for part in parts)).hexdigest()


def canonical(body: Any) -> bytes:
    """RFC 8785 canonical JSON of ``body`` (dicts, lists, strings, booleans, null, finite numbers)."""
    try:
        return rfc8785.dumps(body)
    except (rfc8785.CanonicalizationError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"not expressible as canonical JSON: {error}") from error


def spki_digest(key: PublicKey) -> str:
    """Hex SHA-256 of the DER SubjectPublicKeyInfo of ``key``."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def load_public_key(data: bytes) -> PublicKey:
    """A public key from PEM or DER: SubjectPublicKeyInfo or an X.509 certificate."""
    key: object
    pem = b"-----BEGIN" in data
    try:
        if pem and b"CERTIFICATE" in data:
            key = x509.load_pem_x509_certificate(data).public_key()
        elif pem:
            key = serialization.load_pem_public_key(data)
        else:
            try:
                key = serialization.load_der_public_key(data)
            except ValueError:
                key = x509.load_der_x509_certificate(data).public_key()
    except _NOT_A_KEY as error:
        raise ConfigError(f"not a public key or certificate in PEM or DER: {error}") from error
    return _accept_public(key)


def encode_spki(key: PublicKey) -> str:
    """``key`` as base64 DER SubjectPublicKeyInfo: the form in which a study contract names keys."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def decode_spki(text: str) -> PublicKey:
    """Inverse of ``encode_spki``."""
    try:
        return load_public_key(_unbase64(text, 4096))
    except SignatureError as error:
        raise ConfigError(f"not a base64 SubjectPublicKeyInfo: {error}") from error


def load_private_key(data: bytes) -> PrivateKey:
    """An unencrypted private key from PEM or DER."""
    load = serialization.load_pem_private_key if b"-----BEGIN" in data else serialization.load_der_private_key
    try:
        key = load(data, password=None)
    except _NOT_A_KEY as error:
        raise ConfigError("not an unencrypted private key in PEM or DER") from error
    if not isinstance(key, Ed25519PrivateKey | RSAPrivateKey):
        raise ConfigError(f"key type not accepted: want Ed25519 or RSA, got {type(key).__name__}")
    _accept_public(key.public_key())
    return key


def _accept_public(key: object) -> PublicKey:
    if isinstance(key, Ed25519PublicKey) or (isinstance(key, RSAPublicKey) and key.key_size >= 2048):
        return key
    raise ConfigError(f"key type not accepted: want Ed25519 or RSA of 2048 bits or more, got {type(key).__name__}")


@dataclass(frozen=True)
class TrustedKey:
    """A key that may sign, and when. A bound of None means unlimited on that side."""

    public_key: PublicKey
    not_before: datetime | None = None
    not_after: datetime | None = None


def sign(key: PrivateKey, payload_type: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A DSSE envelope over ``body``; JSON-ready."""
    payload = canonical(dict(body))
    message = _pae(payload_type, payload)
    signature = key.sign(message) if isinstance(key, Ed25519PrivateKey) else key.sign(message, _PSS, hashes.SHA256())
    return {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": spki_digest(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }


def add_signature(envelope: Mapping[str, Any], key: PrivateKey) -> dict[str, Any]:
    """``envelope`` with one more signature over the same payload (a document that several hospitals sign)."""
    signed = sign(key, envelope["payloadType"], unverified_body(envelope))
    if signed["payload"] != envelope["payload"]:
        raise SignatureError("payload is not canonical: refusing to add a signature to it")
    others = [entry for entry in envelope["signatures"] if entry["keyid"] != signed["signatures"][0]["keyid"]]
    return {**signed, "signatures": others + signed["signatures"]}


def verify(
    envelope: Any,
    payload_type: str,
    keys: Iterable[PublicKey | TrustedKey],
    now: datetime,
    threshold: int = 1,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body of ``envelope`` if at least ``threshold`` distinct ``keys`` signed it as ``payload_type``.

    Args:
        envelope: parsed JSON of a DSSE envelope, from anybody.
        payload_type: what the caller expects; a valid signature on another type is refused (type confusion).
        keys: the trusted keys; nothing in the envelope can widen them.
        now: timezone-aware instant at which ``TrustedKey`` bounds are judged.
        threshold: how many distinct trusted keys must have signed, 1 or more.

    Returns:
        (body, SPKI digests of the trusted signers).

    Raises:
        SignatureError: malformed, of another type, or signed by fewer than ``threshold`` of ``keys``.
    """
    # 1. Shape and size, before any decoding.
    if not isinstance(envelope, dict) or set(envelope) != {"payloadType", "payload", "signatures"}:
        raise SignatureError("not a DSSE envelope: want exactly payloadType, payload, signatures")
    if envelope["payloadType"] != payload_type:
        got = envelope["payloadType"]  # anybody's: a long or deep one is not repeated
        said = repr(got[:128]) if isinstance(got, str) else f"a {type(got).__name__}"
        raise SignatureError(f"payload type is {said}, want {payload_type!r}")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise SignatureError(f"want 1 to {MAX_SIGNATURES} signatures")
    payload = _unbase64(envelope["payload"], MAX_ENVELOPE)

    # 2. Signatures by trusted keys, each key counted once.
    trusted = {spki_digest(key.public_key): key for key in map(_as_trusted, keys)}
    message = _pae(payload_type, payload)
    signers: list[str] = []
    for entry in signatures:
        if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"}:
            raise SignatureError("a signature wants exactly keyid and sig")
        key = trusted.get(entry["keyid"]) if isinstance(entry["keyid"], str) else None
        if (
            key is None
            or entry["keyid"] in signers
            or not _signed(key.public_key, _unbase64(entry["sig"], 1024), message)
        ):
            continue
        _check_period(key, now)
        signers.append(entry["keyid"])
    if threshold < 1 or len(signers) < threshold:
        missing = ", ".join(key[:16] for key in sorted(set(trusted) - set(signers))) or "none"
        raise SignatureError(
            f"{payload_type}: signed by {len(signers)} trusted keys, want {threshold}; no valid signature of {missing}"
        )

    # 3. The payload must be the canonical form of what it says: one encoding per value.
    try:
        body = msgspec.json.decode(payload)
        if not isinstance(body, dict) or canonical(body) != payload:
            raise SignatureError("payload is not a canonical JSON object (RFC 8785)")
    except (msgspec.DecodeError, UnicodeDecodeError, ConfigError, RecursionError) as error:
        raise SignatureError(f"payload is not canonical JSON: {error}") from error
    return body, tuple(signers)


def unverified_body(envelope: Any) -> dict[str, Any]:
    """The body of an envelope without looking at its signature: only to choose which keys to verify it with."""
    try:
        body = msgspec.json.decode(_unbase64(envelope["payload"], MAX_ENVELOPE))
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError, RecursionError) as error:
        raise SignatureError(f"not a DSSE envelope: {error}") from error
    if not isinstance(body, dict):
        raise SignatureError("payload is not a JSON object")
    return body


def _as_trusted(key: PublicKey | TrustedKey) -> TrustedKey:
    return key if isinstance(key, TrustedKey) else TrustedKey(key)


def _check_period(key: TrustedKey, now: datetime) -> None:
    if key.not_before is not None and now < key.not_before:
        raise SignatureError(f"signing key is valid from {key.not_before.isoformat()}, now is {now.isoformat()}")
    if key.not_after is not None and now > key.not_after:
        raise SignatureError(f"signing key expired at {key.not_after.isoformat()}, now is {now.isoformat()}")


def _signed(key: PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, _PSS, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding, DSSE v1 protocol.md."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _unbase64(text: Any, limit: int) -> bytes:
    if not isinstance(text, str) or len(text) > limit * 4 // 3 + 4:
        raise SignatureError(f"want base64 text of at most {limit} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError("not base64") from error
    if base64.b64encode(data).decode() != text:  # stray bits in the last character: a second encoding of one value
        raise SignatureError("not canonical base64")
    return data
