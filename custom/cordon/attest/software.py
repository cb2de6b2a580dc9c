"""Software TEE: the same statement as a hardware TEE makes, signed by a key file. Proves nothing about hardware.

For POC and tests. A root is made per POC workspace (nothing secret is in the package); each participant gets one TEE
key with a certificate whose CN is the participant. A report is canonical JSON {certificate, envelope}: the PEM
certificate, and a DSSE envelope by the TEE key over {v, report_data, measurement}.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID
from msgspec import Meta

from cordon import signing
from cordon.attest.binding import bundle_digest
from cordon.attest.claims import Report
from cordon.attest.verdict import Any_, Appraisal, check, listed
from cordon.documents import Document
from cordon.errors import AttestError, ConfigError, SignatureError

TYPE: Literal["software"] = "software"
REPORT_TYPE = "application/vnd.cordon.software-report.v1+json"
MAX_REPORT = 16 * 1024


class _Report(Document, frozen=True, kw_only=True):
    v: Literal[1]
    report_data: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}$")]
    measurement: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Issued:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def make_root(workspace: str, now: datetime, days: int = 360, key: Ed25519PrivateKey | None = None) -> Issued:
    """A self-signed root for one POC workspace, of ``key`` or of a fresh one."""
    key = key or Ed25519PrivateKey.generate()
    name = _name(f"Cordon software TEE root of {workspace}"[:64])
    return Issued(_certificate(name, key.public_key(), name, key, now, days, is_ca=True), key)


def issue(root: Issued, participant: str, now: datetime, days: int = 360) -> Issued:
    """A TEE key for ``participant``, certified by ``root``."""
    key = Ed25519PrivateKey.generate()
    certificate = _certificate(
        _name(participant), key.public_key(), root.certificate.subject, root.key, now, days, is_ca=False
    )
    return Issued(certificate, key)


@dataclass(frozen=True)
class SoftwareAttester:
    """Makes reports with a participant's TEE key; the measurement is the digest of the running package."""

    tee: Issued
    type: Literal["software"] = TYPE

    def report(self, report_data: bytes) -> Report:
        """A report over the 64 bytes of ``binding.report_data``."""
        body = {"v": 1, "report_data": report_data.hex(), "measurement": bundle_digest()}
        envelope = signing.sign(self.tee.key, REPORT_TYPE, body)
        return Report(signing.canonical({"certificate": self.tee.certificate_pem.decode(), "envelope": envelope}))

    def gpu_evidence(self, nonce: bytes) -> None:
        """None: a software TEE has no GPU to speak for."""


def load_attester(certificate: bytes, key: bytes) -> SoftwareAttester:
    """An attester from its PEM files."""
    private = signing.load_private_key(key)
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError("the software TEE's key is not Ed25519")
    return SoftwareAttester(Issued(load_certificate(certificate), private))


def load_certificate(data: bytes) -> x509.Certificate:
    """An X.509 certificate from PEM."""
    try:
        return x509.load_pem_x509_certificate(data)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ConfigError("not a certificate in PEM") from error


def verify(
    report: bytes,
    root: x509.Certificate,
    now: datetime,
    measurement: tuple[str, ...] | Any_ | None = None,
    report_data: bytes | None = None,
) -> Appraisal:
    """The verdict on a report that is genuine as far as software can be.

    Args:
        measurement: the policy's allow-set, ``any``, or None without a policy.
        report_data: the 64 bytes that the report must be over; None leaves that to the caller.

    Raises:
        AttestError: ``report_format``, ``report_chain``, ``report_time`` or ``report_signature``.
    """
    if len(report) > MAX_REPORT:
        raise AttestError([("report_format", f"report has {len(report)} bytes, at most {MAX_REPORT}")])
    try:
        tree: Any = msgspec.json.decode(report)
        certificate = load_certificate(tree["certificate"].encode())
        envelope = tree["envelope"]
    except (
        msgspec.DecodeError,
        UnicodeError,
        RecursionError,
        TypeError,
        KeyError,
        AttributeError,
        ConfigError,
    ) as error:
        raise AttestError([("report_format", "not a software report: want certificate and envelope")]) from error
    try:
        certificate.verify_directly_issued_by(root)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        key = certificate.public_key()
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise AttestError([("report_chain", "the TEE key is not certified by this workspace's root")]) from error
    if constraints.ca or not isinstance(key, Ed25519PublicKey):
        raise AttestError([("report_chain", "the certificate is not one for a TEE key")])
    for each in (root, certificate):
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            raise AttestError([("report_time", f"a certificate of the software TEE is not valid at {now.isoformat()}")])
    try:
        body, _ = signing.verify(envelope, REPORT_TYPE, [key], now)
        said = msgspec.convert(body, _Report, strict=True)
    except (SignatureError, msgspec.ValidationError) as error:
        raise AttestError([("report_signature", f"not signed by the TEE key: {error}")]) from error
    claims = {
        "report_data": said.report_data,
        "measurement": said.measurement,
        "holder": str(names[0].value) if len(names) == 1 else "",
    }
    stated = "signed by a key of this software TEE; proves nothing about hardware"
    covers = hmac.compare_digest((report_data or b"").hex(), said.report_data)
    checks = [
        check("report_signature", True, stated, "genuine"),
        listed("measurement", said.measurement, measurement),
    ]
    if report_data is not None:
        checks.append(check("report_data", covers, f"report_data {said.report_data}"))
    return Appraisal(TYPE, tuple(checks), claims, judged=measurement is not None)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    subject: x509.Name,
    key: Ed25519PublicKey,
    issuer: x509.Name,
    issuer_key: Ed25519PrivateKey,
    now: datetime,
    days: int,
    is_ca: bool,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of two hosts differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
    )
    return builder.sign(issuer_key, None)
