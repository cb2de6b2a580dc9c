"""Certificate chains up to a pinned NVIDIA root: a device's own, and the one inside a RIM file.

RFC 5280 section 6.1 without names, policies and revocation: order, signatures, CA flags, path length, key usage and
critical extensions. Every key is ECDSA P-384 and every signature ECDSA with SHA-384, as in all of NVIDIA's chains.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from cordon.attest.verdict import Check, check, valid_at
from cordon.errors import ConfigError

MAX_CHAIN = 64 * 1024  # bytes of PEM
MAX_CERTIFICATES = 8
PEM = rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]*-----END CERTIFICATE-----"
UNDERSTOOD = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}  # may be critical
BROKEN = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

E = TypeVar("E", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Link:
    """One certificate, read in full: reading it later can no longer fail."""

    certificate: x509.Certificate
    name: str
    common_name: str
    key: ec.EllipticCurvePublicKey | None  # None: not P-384
    since: datetime
    until: datetime
    ca: bool
    path_length: int | None
    usage: x509.KeyUsage | None
    strange: tuple[str, ...]  # critical extensions that nobody here understands
    extensions: x509.Extensions

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the DER."""
        return hashlib.sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()


def decode(data: bytes | str) -> tuple[Link, ...]:
    """The certificates of ``data`` (PEM, or base64 of PEM), leaf first.

    Raises:
        ConfigError: ``chain_format: ...``
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if len(raw) > 2 * MAX_CHAIN:
        raise ConfigError(f"chain_format: chain has {len(raw)} bytes, at most {2 * MAX_CHAIN} are read")
    if b"-----BEGIN" not in raw:
        try:
            raw = base64.b64decode(b"".join(raw.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError("chain_format: chain is neither PEM nor base64 of PEM") from error
    if len(raw) > MAX_CHAIN:
        raise ConfigError(f"chain_format: chain has {len(raw)} bytes, at most {MAX_CHAIN} are read")
    if re.sub(PEM, b"", raw).strip():  # the library would pass over what it does not know, such as a damaged header
        raise ConfigError("chain_format: chain holds something else than PEM certificates")
    if not 1 <= raw.count(b"-----BEGIN") <= MAX_CERTIFICATES:
        raise ConfigError(f"chain_format: chain has no certificate, or more than {MAX_CERTIFICATES}")
    return load(x509.load_pem_x509_certificates, raw, "chain_format")


def load(parser: Callable[[bytes], Sequence[x509.Certificate]], data: bytes, code: str) -> tuple[Link, ...]:
    """The certificates that ``parser`` finds in ``data``; ConfigError ``<code>: ...`` if one cannot be read.

    The one place where certificates of devices and RIM files are parsed: the library warns of odd ones (serial number
    zero), which are refused here instead.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tuple(read(each, code) for each in parser(data))
    except BROKEN as error:
        raise ConfigError(f"{code}: a certificate cannot be read: {_words(error)}") from error


def read(certificate: x509.Certificate, code: str) -> Link:
    """``certificate`` taken apart. Raises what ``load`` translates."""
    if certificate.serial_number <= 0:
        raise ConfigError(f"{code}: a certificate has no positive serial number (RFC 5280 section 4.1.2.2)")
    key = certificate.public_key()
    extensions = certificate.extensions
    constraints = _extension(extensions, x509.BasicConstraints)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Link(
        certificate=certificate,
        name=certificate.subject.rfc4514_string(),
        common_name=str(names[0].value)[:64] if len(names) == 1 else "",
        key=key if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1) else None,
        since=certificate.not_valid_before_utc,
        until=certificate.not_valid_after_utc,
        ca=constraints is not None and constraints.ca,
        path_length=None if constraints is None else constraints.path_length,
        usage=_extension(extensions, x509.KeyUsage),
        strange=tuple(e.oid.dotted_string for e in extensions if e.critical and e.oid not in UNDERSTOOD),
        extensions=extensions,
    )


def problems(links: Sequence[Link], root: x509.Certificate) -> list[str]:
    """Why ``links`` (leaf first, root last or left out) do not lead to ``root``; empty if they do.

    The root's own bytes in the evidence count for nothing: what is last must be issued by the pinned key.
    """
    path = list(links[:-1] if links[-1].certificate == root else links)
    if not path:
        return ["holds nothing but the root"]
    found = []
    for position, link in enumerate(path):
        last = position + 1 == len(path)
        issuer = root if last else path[position + 1].certificate
        try:
            link.certificate.verify_directly_issued_by(issuer)
        except (*BROKEN, InvalidSignature):
            by = "the pinned root" if last else repr(path[position + 1].common_name)
            found.append(f"{link.common_name!r} is not issued by {by}")
        if link.certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384 or link.key is None:
            found.append(f"{link.common_name!r} is not ECDSA P-384 with SHA-384")
        if link.strange:
            found.append(f"{link.common_name!r} has critical extensions {', '.join(link.strange)}")
        if position == 0:
            if link.ca or link.usage is None or not link.usage.digital_signature:
                found.append(f"{link.common_name!r} may not sign reports (CA, or key usage without digitalSignature)")
        elif not link.ca or link.usage is None or not link.usage.key_cert_sign:
            found.append(f"{link.common_name!r} may not issue certificates")
        elif link.path_length is not None and link.path_length < position - 1:
            found.append(f"{link.common_name!r} may have {link.path_length} CAs below it and has {position - 1}")
    return found


def at(code: str, what: str, links: Sequence[Link], root: x509.Certificate, now: datetime) -> Check:
    """Whether every certificate is valid at ``now``: the common window of all of them, the root included."""
    since = max(root.not_valid_before_utc, *(link.since for link in links))
    until = min(root.not_valid_after_utc, *(link.until for link in links))
    if since > until:
        return check(code, False, f"{what}: no time at which all certificates are valid", "genuine")
    return valid_at(code, what, since, until, now)


def _extension(extensions: x509.Extensions, kind: type[E]) -> E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
