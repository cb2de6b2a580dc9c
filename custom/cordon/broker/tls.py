"""TLS 1.3 between a site's job process and its hospital's broker: contexts, pins, the broker's own certificate.

Either side knows the other by its key. The broker's certificate is self-signed and pinned by the site policy; the
client's is FLARE's, and the study contract pins its key.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cordon import documents
from cordon.errors import ConfigError

_NOT_ONE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


def server_context(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """For the broker: a client must have a certificate of ``client_ca``; which of them counts is decided by its key.

    Raises:
        ConfigError: a file cannot be read, is of another kind, or the key is not that of the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0  # every connection shows the client's certificate anew
    context.set_alpn_protocols(["http/1.1"])
    _load_key_pair(context, certificate, key)
    try:
        context.load_verify_locations(cadata=documents.read_bytes(client_ca).decode("ascii"))
    except (ssl.SSLError, UnicodeError, ValueError) as error:
        raise ConfigError(f"tls.client_ca: {client_ca}: want a CA certificate in PEM") from error
    return context


def client_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a site: shows ``certificate``. The server's is *not* verified here: the caller compares its key with the pin.

    No CA and no host name: the CA at hand is the coordinator's, which could then pose as any hospital's broker.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    _load_key_pair(context, certificate, key)
    return context


def _load_key_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        documents.read_bytes(path)  # a clear word on a file that is missing or far too large
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # an encrypted key must not prompt
    except ssl.SSLError as error:
        why = (
            "the key is not that of the certificate"
            if error.reason == "KEY_VALUES_MISMATCH"
            else "not PEM, or encrypted"
        )
        raise ConfigError(f"{certificate}, {key}: cannot be used as a TLS certificate with its key: {why}") from error
    except OSError as error:
        raise ConfigError(f"{certificate}, {key}: {error.strerror}") from error


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate in the PEM file ``path``."""
    try:
        return x509.load_pem_x509_certificate(documents.read_bytes(path))
    except _NOT_ONE as error:
        raise ConfigError(f"{path}: not a certificate in PEM") from error


def decode_certificate(der: bytes) -> x509.Certificate:
    """A certificate from DER; ConfigError if it is none."""
    try:
        return x509.load_der_x509_certificate(der)
    except _NOT_ONE as error:
        raise ConfigError("not a certificate in DER") from error


def spki_of(certificate: x509.Certificate) -> bytes:
    """DER SubjectPublicKeyInfo, whatever the key's type."""
    try:
        return certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except _NOT_ONE as error:
        raise ConfigError("a certificate with a key of an unknown type") from error


def pin_of(certificate: x509.Certificate) -> str:
    """As a site policy names it (``broker.spki``): base64."""
    return base64.b64encode(spki_of(certificate)).decode()


def check_period(certificate: x509.Certificate, now: datetime, what: str) -> None:
    """ConfigError if ``certificate`` is not valid at ``now``."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise ConfigError(f"{what} is valid from {begin.isoformat()} to {end.isoformat()}, now is {now.isoformat()}")


def make_certificate(names: Sequence[str], now: datetime, days: int) -> tuple[bytes, bytes]:
    """(certificate, private key) in PEM: a new P-256 key and a self-signed certificate for it.

    P-256 and not Ed25519, for clients whose OpenSSL runs in FIPS mode. The names are for people: the key is pinned.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{', '.join(names)!r} cannot be the name in a certificate") from error
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of two hosts differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(alternative, critical=False)
        .add_extension(usage, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private
