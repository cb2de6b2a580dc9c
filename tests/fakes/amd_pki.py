"""A made-up AMD: roots, VEKs, reports and CRLs of every product, kind of key and report version.

The shape is AMD's (56860 r1.58, 57230 r1.00), and so are the names: only the key tells a made-up certificate from a
real one. RSA keys have 2048 bits, AMD's have 4096: making those takes seconds each. Keys are made once per process.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cordon.attest.snp.certificates import Anchor

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PRODUCTS = ("Milan", "Genoa", "Turin")
SIGNERS = ("vcek", "vlek")
VERSIONS = (2, 3, 5)
CPUID = {"Milan": (0x19, 0x01, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 0x02, 1)}
REPORT_DATA = bytes(range(64))
CHIP = {"Milan": bytes(range(1, 65)), "Genoa": bytes(range(65, 129)), "Turin": bytes(range(1, 9)).ljust(64, b"\0")}
CSP = "CN=cc-eu.example.com"
OID = "1.3.6.1.4.1.3704.1."
# component -> (byte of TCB_VERSION, OID, security version number)
ZEN3 = {"boot_loader": (0, "3.1", 4), "tee": (1, "3.2", 1), "snp": (6, "3.3", 24), "microcode": (7, "3.8", 219)}
ZEN5 = {
    "fmc": (0, "3.9", 2),
    "boot_loader": (1, "3.1", 3),
    "tee": (2, "3.2", 1),
    "snp": (3, "3.3", 4),
    "microcode": (7, "3.8", 71),
}
FIELDS = {  # name -> (offset, size) of what a test may set
    "version": (0x00, 4), "guest_svn": (0x04, 4), "policy": (0x08, 8), "family_id": (0x10, 16), "image_id": (0x20, 16),
    "vmpl": (0x30, 4), "signature_algo": (0x34, 4), "current_tcb": (0x38, 8), "platform_info": (0x40, 8),
    "flags": (0x48, 4), "report_data": (0x50, 64), "measurement": (0x90, 48), "host_data": (0xC0, 32),
    "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48), "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32), "reported_tcb": (0x180, 8), "cpuid": (0x188, 3), "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "current": (0x1E8, 3), "committed": (0x1EC, 3), "launch_tcb": (0x1F0, 8), "launch_mit_vector": (0x1F8, 8),
    "current_mit_vector": (0x200, 8),
}  # fmt: skip


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """The RSA key called ``name``."""
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def chip_key(name: str) -> ec.EllipticCurvePrivateKey:
    """The P-384 key called ``name``."""
    return ec.generate_private_key(ec.SECP384R1())


def amd_name(common_name: str) -> x509.Name:
    parts = (
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
        (NameOID.COUNTRY_NAME, "US"),
        (NameOID.LOCALITY_NAME, "Santa Clara"),
        (NameOID.STATE_OR_PROVINCE_NAME, "CA"),
        (NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
        (NameOID.COMMON_NAME, common_name),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def sign(builder: Any, key: Any, salt: int = 48, pss: bool = True, digest: Any = None) -> Any:
    """A certificate or CRL as AMD signs them, or nearly."""
    digest = digest or SHA384()
    scheme = padding.PSS(padding.MGF1(digest), salt) if pss else padding.PKCS1v15()
    return builder.sign(key, digest, rsa_padding=scheme)


def builder(
    subject: str, issuer: str, key: Any, serial: int, since: datetime, until: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        amd_name(issuer), amd_name(subject), key.public_key(), serial, since, until, []
    )  # fmt: skip


def authority(
    product: str,
    role: str,
    *,
    ca: bool = True,
    cert_sign: bool = True,
    issuer_key: str | None = None,
    subject: str | None = None,
    issuer: str | None = None,
    key: str | None = None,
    since: datetime = NOW - timedelta(days=1000),
    until: datetime = NOW + timedelta(days=7000),
) -> x509.Certificate:
    """An ARK, ASK or ASVK; the keywords make a bad one."""
    names = {"ark": f"ARK-{product}", "ask": f"SEV-{product}", "asvk": f"SEV-VLEK-{product}"}
    own = rsa_key(key or f"{product}/{role}")
    serial = {"ark": 0x10000, "ask": 0x10001, "asvk": 0x10101}[role]
    usage = x509.KeyUsage(False, False, False, False, False, cert_sign, role == "ark", False, False)
    made = builder(subject or names[role], issuer or names["ark"], own, serial, since, until)
    made = made.add_extension(x509.BasicConstraints(ca, None), True).add_extension(usage, True)
    return sign(made, rsa_key(issuer_key or f"{product}/ark"))


@functools.cache
def anchor(product: str) -> Anchor:
    return Anchor(authority(product, "ark"), authority(product, "ask"), authority(product, "asvk"))


def anchors() -> Mapping[str, Anchor]:
    """What ``roots`` of ``snp.verify`` takes."""
    return {product: anchor(product) for product in PRODUCTS}


def layout(product: str) -> dict[str, tuple[int, str, int]]:
    return ZEN5 if product == "Turin" else ZEN3


def tcb(product: str, **numbers: int) -> bytes:
    """A TCB_VERSION, with other numbers for some components."""
    made = bytearray(8)
    for name, (index, _, number) in layout(product).items():
        made[index] = numbers.get(name, number)
    return bytes(made)


def integer(number: int) -> bytes:
    return b"\x02\x02\x00" + bytes([number]) if number >= 0x80 else b"\x02\x01" + bytes([number])


def ia5(text: str) -> bytes:
    return bytes([0x16, len(text)]) + text.encode("ascii")


def vek_extensions(product: str, signer: str) -> dict[str, bytes]:
    """AMD's extensions: OID after 1.3.6.1.4.1.3704.1. -> value."""
    name = f"{product}-B0" if (product, signer) == ("Milan", "vcek") else product
    made = {"1": integer(int(product == "Turin")), "2": ia5(name)}
    made |= {oid: integer(number) for _, oid, number in layout(product).values()}
    made |= {f"3.{number}": integer(0) for number in ((5, 6, 7) if product == "Turin" else (4, 5, 6, 7))}
    if signer == "vlek":
        return {**made, "5": ia5(CSP)}
    return {**made, "4": CHIP[product][: 8 if product == "Turin" else 64]}


def vek(
    product: str,
    signer: str,
    *,
    extensions: Mapping[str, bytes | None] | None = None,
    key: Any = None,
    subject: str | None = None,
    issuer: str | None = None,
    issuer_key: Any = None,
    since: datetime = NOW - timedelta(days=100),
    until: datetime = NOW + timedelta(days=265),
    critical: bool = False,
    **signing: Any,
) -> x509.Certificate:
    """A VCEK or VLEK; the keywords make a bad one (an extension that is None is left out).

    Its serial number is 1: the builder refuses AMD's 0.
    """
    intermediate = "ask" if signer == "vcek" else "asvk"
    subject = subject or ("SEV-VCEK" if signer == "vcek" else "SEV-VLEK")
    issuer = issuer or (f"SEV-{product}" if signer == "vcek" else f"SEV-VLEK-{product}")
    made = builder(subject, issuer, key or chip_key(f"{product}/{signer}"), 1, since, until)
    for oid, value in {**vek_extensions(product, signer), **(extensions or {})}.items():
        if value is not None:
            made = made.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(OID + oid), value), critical)
    return sign(made, issuer_key or rsa_key(f"{product}/{intermediate}"), **signing)


def report(
    product: str,
    signer: str,
    version: int,
    *,
    key: Any = None,
    signed: Mapping[int, bytes] | None = None,
    unsigned: Mapping[int, bytes] | None = None,
    **fields: Any,
) -> bytes:
    """A report; ``fields`` set parts by name, ``signed`` by offset before and ``unsigned`` after it is signed."""
    level = tcb(product)
    values: dict[str, Any] = {
        "version": version, "guest_svn": 3, "policy": 1 << 17 | 1 << 20, "family_id": b"\x11" * 16,
        "image_id": b"\x12" * 16, "vmpl": 0, "signature_algo": 1, "platform_info": 0b10_0100,
        "flags": 4 if signer == "vlek" else 0, "report_data": REPORT_DATA, "measurement": b"\x13" * 48,
        "host_data": b"\x14" * 32, "id_key_digest": b"\x15" * 48, "author_key_digest": b"\x16" * 48,
        "report_id": b"\x17" * 32, "report_id_ma": b"\xff" * 32, "current": bytes([40, 55, 1]),
        "committed": bytes([40, 55, 1]), "chip_id": CHIP[product] if signer == "vcek" else bytes(64),
        **dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), level),
    }  # fmt: skip
    if version >= 3:
        values["cpuid"] = bytes(CPUID[product])
    if version >= 5:
        values |= {"launch_mit_vector": 0b1011, "current_mit_vector": 0b1111}
    body = bytearray(0x4A0)
    for name, value in {**values, **fields}.items():
        offset, size = FIELDS[name]
        body[offset : offset + size] = value.to_bytes(size, "little") if isinstance(value, int) else value
    _patch(body, signed)
    made = (key or chip_key(f"{product}/{signer}")).sign(bytes(body[:0x2A0]), ec.ECDSA(SHA384()))
    for offset, number in zip((0x2A0, 0x2E8), decode_dss_signature(made), strict=True):
        body[offset : offset + 72] = number.to_bytes(72, "little")
    _patch(body, unsigned)
    return bytes(body)


def _patch(body: bytearray, changes: Mapping[int, bytes] | None) -> None:
    for offset, value in (changes or {}).items():
        body[offset : offset + len(value)] = value


def crl(
    product: str,
    revoked: tuple[int, ...] = (),
    *,
    key: str | None = None,
    issuer: str | None = None,
    since: datetime = NOW - timedelta(days=3),
    until: datetime = NOW + timedelta(days=360),
    extension: x509.ExtensionType | None = None,
) -> bytes:
    """AMD's list of revoked certificates (DER); the keywords make a bad one."""
    made = x509.CertificateRevocationListBuilder().issuer_name(amd_name(issuer or f"ARK-{product}"))
    made = made.last_update(since).next_update(until).add_extension(x509.CRLNumber(1), False)
    if extension is not None:
        made = made.add_extension(extension, True)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
        made = made.add_revoked_certificate(entry.build())
    return sign(made, rsa_key(key or f"{product}/ark")).public_bytes(Encoding.DER)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


@dataclass(frozen=True)
class Evidence:
    """What ``snp.verify`` takes: ``snp.verify(evidence.report, **evidence.rest)``."""

    report: bytes
    rest: dict[str, Any] = field(default_factory=dict)


def evidence(
    product: str = "Milan",
    signer: str = "vcek",
    version: int = 5,
    *,
    vek_with: Mapping[str, Any] | None = None,
    report_with: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Evidence:
    """Genuine evidence of the made-up AMD, with a CRL; ``vek_with``, ``report_with`` and ``rest`` change it."""
    certificate = vek(product, signer, **(vek_with or {}))
    given = {"vek": certificate.public_bytes(Encoding.DER), "crl": crl(product), "now": NOW, "roots": anchors()}
    return Evidence(report(product, signer, version, **(report_with or {})), {**given, **rest})
