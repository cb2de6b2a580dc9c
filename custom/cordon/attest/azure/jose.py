"""JSON, base64url, RSA keys and signed tokens (RFC 8259, 4648, 7517, 7515) that come with evidence.

Two readers that disagree about one text are an attack: duplicate keys, NaN, lone surrogates and stray bits in base64
are refused. Every error is a ConfigError whose text starts with the ``code`` given.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers

from cordon.errors import ConfigError

MAX_RSA = 2048  # bytes of modulus: 16384 bits
MAX_KEYS = 64
EXPONENT = 65537


def parse_object(data: bytes, code: str, limit: int) -> dict[str, Any]:
    """``data`` (UTF-8 JSON, at most ``limit`` bytes) as an object."""
    if len(data) > limit:
        raise ConfigError(f"{code}: {len(data)} bytes, at most {limit}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates could not be shown or hashed
    except UnicodeDecodeError as error:
        raise ConfigError(f"{code}: not UTF-8") from error
    except RecursionError as error:
        raise ConfigError(f"{code}: nested too deep") from error
    except ValueError as error:
        raise ConfigError(f"{code}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{code}: a JSON {type(value).__name__}, want an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = {key for key, _ in pairs}
    if len(keys) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def unbase64url(text: Any, code: str, limit: int) -> bytes:
    """``text`` (RFC 4648 section 5, with or without padding, no stray bits) as at most ``limit`` bytes."""
    if not isinstance(text, str) or len(text) > limit * 4 // 3 + 4:
        raise ConfigError(f"{code}: want base64url text of at most {limit} bytes")
    bare = text.rstrip("=")
    try:
        data = base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"{code}: not base64url") from error
    whole = base64.urlsafe_b64encode(data).decode()
    if text not in (whole, whole.rstrip("=")):
        raise ConfigError(f"{code}: not canonical base64url")
    return data


def rsa_key(jwk: dict[str, Any], code: str) -> RSAPublicKey:
    """The RSA public key of a JWK (RFC 7518 section 6.3.1); its exponent must be 65537."""
    if jwk.get("kty") != "RSA":
        raise ConfigError(f"{code}: kty is {said(jwk.get('kty'))}, want RSA")
    modulus = int.from_bytes(unbase64url(jwk.get("n"), code, MAX_RSA), "big")
    exponent = int.from_bytes(unbase64url(jwk.get("e"), code, 8), "big")
    if exponent != EXPONENT:
        raise ConfigError(f"{code}: exponent is {exponent}, want {EXPONENT}")
    try:
        return RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{code}: not an RSA public key: {error}") from error


def read_jwks(data: bytes, code: str, limit: int) -> list[tuple[str, RSAPublicKey]]:
    """(kid, key) of every RSA key of a JSON Web Key Set; keys of other kinds are left out.

    A key is ``n`` and ``e``, or the first certificate of ``x5c``; with both, they must be the same.
    """
    found = parse_object(data, code, limit).get("keys")
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_KEYS:
        raise ConfigError(f"{code}: want 1 to {MAX_KEYS} keys")
    keys = []
    for jwk in found:
        if not isinstance(jwk, dict) or not isinstance(jwk.get("kid"), str):
            raise ConfigError(f"{code}: a key is no object with a kid")
        if jwk.get("kty") == "RSA":
            keys.append((jwk["kid"], _jwks_key(jwk, code)))
    return keys


def _jwks_key(jwk: dict[str, Any], code: str) -> RSAPublicKey:
    plain = rsa_key(jwk, code) if "n" in jwk else None
    chain = jwk.get("x5c")
    if chain is None and plain is not None:
        return plain
    if not isinstance(chain, list) or not chain or not isinstance(chain[0], str):
        raise ConfigError(f"{code}: a key has neither n and e nor x5c")
    try:
        certified = x509.load_der_x509_certificate(base64.b64decode(chain[0], validate=True)).public_key()
    except (binascii.Error, ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ConfigError(f"{code}: x5c is no certificate: {error}") from error
    if not isinstance(certified, RSAPublicKey):
        raise ConfigError(f"{code}: x5c certifies a key that is not RSA")
    if plain is not None and plain.public_numbers() != certified.public_numbers():
        raise ConfigError(f"{code}: n, e and x5c are different keys")
    return certified


@dataclass(frozen=True)
class Jws:
    """A compact JWS taken apart: nothing of it is verified."""

    header: dict[str, Any]
    body: dict[str, Any]
    signature: bytes
    signed: bytes


def parse_jws(token: bytes, code: str, limit: int) -> Jws:
    """A compact JWS (RFC 7515 section 7.1) whose payload is a JSON object, at most ``limit`` bytes."""
    if len(token) > limit:
        raise ConfigError(f"{code}: {len(token)} bytes, at most {limit}")
    try:
        pieces = token.strip().decode("ascii").split(".")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{code}: not ASCII") from error
    if len(pieces) != 3 or "=" in "".join(pieces):
        raise ConfigError(f"{code}: {len(pieces)} parts, want 3 of base64url without padding")
    header, body, signature = (unbase64url(piece, code, limit) for piece in pieces)
    signed = ".".join(pieces[:2]).encode()
    return Jws(parse_object(header, code, limit), parse_object(body, code, limit), signature, signed)


def rs256_holds(key: RSAPublicKey, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` is RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 8.2) by ``key`` over ``message``."""
    try:
        key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def said(value: Any) -> str:
    """A value out of the evidence in a message: bounded, one line, whatever it holds."""
    return "absent" if value is None else ascii(value)[:160]


def text(value: Any) -> str:
    """A string claim as it is, to be looked up in an allow-set; anything else as ``said``, which is in none.

    >>> text("abc"), text(["abc"])
    ('abc', "(['abc'])")
    """
    return value if isinstance(value, str) and value.isascii() and 0 < len(value) <= 512 else f"({said(value)})"
