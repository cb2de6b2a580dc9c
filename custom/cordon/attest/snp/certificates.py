"""AMD's certificates: the key that signs reports (VEK), the one that signs VEKs (ASK or ASVK), and the root (ARK).

VEK stands for VCEK (one chip, one TCB version) or VLEK (one cloud provider, one TCB version). Formats: AMD 57230 r1.00,
"VCEK/VLEK certificate"; every certificate and CRL is signed with RSASSA-PSS, SHA-384, salt of 48 bytes.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from cordon.attest import roots
from cordon.errors import ConfigError

MAX_CERTIFICATES = 64 * 1024  # bytes of one argument; VEK, ASK and ARK as PEM are 6.5 kB

PRODUCTS = ("Milan", "Genoa", "Turin")
# productName of a certificate -> product line. A stepping may follow after a hyphen ("Milan-B0"); it is not compared:
# AMD's certificates name some wrongly (google/go-sev-guest, verify.go, validateExtensions), and newer ones name none.
LINE_OF = {"Milan": "Milan", "Genoa": "Genoa", "Bergamo": "Genoa", "Siena": "Genoa", "Turin": "Turin"}
KIND_OF = {"SEV-VCEK": "vcek", "SEV-VLEK": "vlek"}  # common name of the subject

_AMD = "1.3.6.1.4.1.3704.1."
STRUCT_VERSION, PRODUCT_NAME, HWID, CSP_ID = _AMD + "1", _AMD + "2", _AMD + "4", _AMD + "5"
SPL = {
    _AMD + "3.1": "boot_loader",
    _AMD + "3.2": "tee",
    _AMD + "3.3": "snp",
    _AMD + "3.8": "microcode",
    _AMD + "3.9": "fmc",
}
RESERVED_SPL = {_AMD + f"3.{number}" for number in (4, 5, 6, 7)}
HWID_SIZE = {"Milan": 64, "Genoa": 64, "Turin": 8}  # the rest of CHIP_ID is zero

_PSS = padding.PSS(padding.MGF1(SHA384()), salt_length=48)
# What cryptography raises for a certificate or CRL that cannot be decoded.
BAD = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_quiet = threading.Lock()


@dataclass(frozen=True)
class Anchor:
    """One product's certificates that are trusted without asking anybody."""

    ark: x509.Certificate
    ask: x509.Certificate
    asvk: x509.Certificate

    def intermediate(self, kind: str) -> x509.Certificate:
        """The certificate that signs VEKs of this kind."""
        return self.ask if kind == "vcek" else self.asvk


@dataclass(frozen=True)
class Vek:
    """A VEK's certificate and what AMD's extensions in it say.

    ``kind`` is None if the subject names neither. ``tcb`` holds the components that are there. ``wrong`` says what is
    not as AMD 57230 wants it.
    """

    certificate: x509.Certificate
    kind: str | None
    product_name: str
    tcb: Mapping[str, int]
    hwid: bytes | None
    csp_id: str | None
    key: ec.EllipticCurvePublicKey | None
    wrong: tuple[str, ...]


@functools.cache
def pinned() -> Mapping[str, Anchor]:
    """The embedded anchors of all products."""
    names = {product: f"amd_{product.lower()}" for product in PRODUCTS}
    return {
        product: Anchor(*(roots.load(f"{name}_{role}") for role in ("ark", "ask", "asvk")))
        for product, name in names.items()
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without cryptography's warnings: of the serial number zero, which all VEKs have, and of odd names."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def load(data: bytes, what: str) -> list[x509.Certificate]:
    """The certificates in ``data``, PEM (any number) or DER (one).

    Raises:
        ConfigError: ``{what}_format``: too large, or not such.
    """
    if not isinstance(data, bytes):
        raise ConfigError(f"{what}_format: {what} is {type(data).__name__}, want bytes")
    if len(data) > MAX_CERTIFICATES:
        raise ConfigError(f"{what}_format: {what} has {len(data)} bytes, more than the {MAX_CERTIFICATES} allowed")
    try:
        return list(_decoded(data))
    except BAD as error:
        raise ConfigError(f"{what}_format: {what} is no X.509 certificate in PEM or DER: {one_line(error)}") from error


@functools.lru_cache(maxsize=32)  # a chip's VEK and AMD's ASK and ARK come again with each report; at most 2 MiB
def _decoded(data: bytes) -> tuple[x509.Certificate, ...]:
    """Decoding alone, which does not change: whatever is asked of a certificate is asked anew each time."""
    with quiet():
        pem = b"-----BEGIN" in data
        found = x509.load_pem_x509_certificates(data) if pem else [x509.load_der_x509_certificate(data)]
        for each in found:  # decoded on demand only: now, so that nothing below can fail on it
            _ = each.subject, each.issuer, each.not_valid_before_utc, each.not_valid_after_utc, each.extensions
    return tuple(found)


def split_chain(certificates: list[x509.Certificate]) -> tuple[x509.Certificate, x509.Certificate]:
    """(ASK or ASVK, ARK) of a chain of two, in any order; the ARK is the one that names itself as its issuer.

    Raises:
        ConfigError: ``chain_format``: not two, or not one of each.
    """
    if len(certificates) != 2:
        raise ConfigError(f"chain_format: {len(certificates)} certificates above the VEK, want 2: ASK or ASVK, and ARK")
    own = [certificate.issuer == certificate.subject for certificate in certificates]
    if sum(own) != 1:
        raise ConfigError(f"chain_format: {sum(own)} of 2 certificates are their own issuer, want 1: the ARK")
    ark = own.index(True)
    return certificates[1 - ark], certificates[ark]


def read_vek(certificate: x509.Certificate) -> Vek:
    """What a VEK's certificate, as ``load`` gave it, says."""
    values: dict[str, bytes] = {}
    wrong = []
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.UnrecognizedExtension):
            values[extension.oid.dotted_string] = extension.value.value
        if extension.critical:
            wrong.append(f"critical extension {extension.oid.dotted_string}")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS:
        wrong.append("signature algorithm is not RSASSA-PSS")
    if certificate.version is not x509.Version.v3:
        wrong.append("X.509 version is not 3")
    try:
        key = certificate.public_key()
    except BAD:  # an unknown curve or algorithm: said below, like any other key that is not P-384
        key = None
    p384 = key if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1) else None
    if p384 is None:
        wrong.append("key is not ECDSA P-384")
    subject = common_name(certificate.subject)
    kind = KIND_OF.get(subject)
    if kind is None:
        wrong.append(f"subject is {subject!r}, want SEV-VCEK or SEV-VLEK")

    if _integer(values.get(STRUCT_VERSION)) is None:
        wrong.append(f"structVersion {_state(values.get(STRUCT_VERSION))}")
    product_name = _ia5(values.get(PRODUCT_NAME))
    if product_name is None:
        wrong.append(f"productName {_state(values.get(PRODUCT_NAME))}")
    tcb: dict[str, int] = {}
    for oid, name in SPL.items():
        number = _integer(values.get(oid))
        if number is not None:
            tcb[name] = number
        elif oid in values or name != "fmc":  # each is required: an absent one would match any report
            wrong.append(f"{name} {oid} {_state(values.get(oid))}")
    wrong += [f"reserved {oid} is not 0" for oid in RESERVED_SPL & values.keys() if _integer(values[oid]) != 0]
    hwid, csp_id = _octets(values.get(HWID)), _ia5(values.get(CSP_ID))
    if kind == "vcek" and (hwid is None or CSP_ID in values):
        wrong.append("a VCEK has a HWID of 64 or 8 bytes and no CSP_ID")
    if kind == "vlek" and (not csp_id or HWID in values):
        wrong.append("a VLEK has a CSP_ID and no HWID")
    return Vek(certificate, kind, product_name or "", tcb, hwid, csp_id, p384, tuple(wrong))


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer``'s key signed ``certificate`` as AMD signs, whatever the certificate says of its algorithm."""
    signed, whole = certificate.tbs_certificate_bytes, certificate.public_bytes(Encoding.DER)
    # The algorithm beside the signature must be the signed one (RFC 5280, 4.1.1.2). Nothing here reads it, yet a
    # certificate that somebody changed is not the one that AMD issued.
    outer = whole[_header(whole) + len(signed) :]
    serial = _header(signed) + 5  # after [0] version: 5 bytes in version 3
    inner = serial + 2 + signed[serial + 1]
    same = signed.startswith(outer[: 2 + outer[1]], inner)
    return same and signature_holds(issuer, certificate.signature, signed, whole)


def signature_holds(issuer: x509.Certificate, signature: bytes, signed: bytes, whole: bytes) -> bool:
    """Whether ``issuer``'s RSA key made ``signature`` over ``signed`` (RSASSA-PSS, SHA-384, salt of 48 bytes).

    ``whole`` is the DER of the certificate or CRL, which ends in the signature: a BIT STRING without unused bits.
    """
    try:
        key = issuer.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or whole[-len(signature) - 1] != 0:
            return False
        key.verify(signature, signed, _PSS, SHA384())
    except (InvalidSignature, *BAD):
        return False
    return True


def _header(der: bytes) -> int:
    """Size of tag and length in front of a DER value."""
    return 2 if der[1] < 0x80 else 2 + (der[1] & 0x7F)


@functools.lru_cache(maxsize=32)  # the few intermediates of AMD; a flood of made-up ones only pushes them out
def intermediate_faults(intermediate: x509.Certificate, ark: x509.Certificate, name: str) -> tuple[str, ...]:
    """What is wrong with an ASK or ASVK called ``name`` under the pinned ``ark``, and with that root itself."""
    faults = []
    try:
        if common_name(intermediate.subject) != name:
            faults.append(f"its subject is {common_name(intermediate.subject)!r}, want {name!r}")
        if intermediate.issuer != ark.subject:
            faults.append(f"its issuer is not {common_name(ark.subject)!r}")
        constraints = intermediate.extensions.get_extension_for_oid(ExtensionOID.BASIC_CONSTRAINTS).value
        usage = intermediate.extensions.get_extension_for_oid(ExtensionOID.KEY_USAGE).value
        if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
            faults.append("it is no certificate authority")
        if not isinstance(usage, x509.KeyUsage) or not usage.key_cert_sign:
            faults.append("its key may not sign certificates")
    except (x509.ExtensionNotFound, *BAD) as error:
        faults.append(one_line(error))
    if not signed_by(intermediate, ark):
        faults.append("the pinned ARK did not sign it")
    if not signed_by(ark, ark):
        faults.append("the pinned ARK did not sign itself")
    return tuple(faults)


def common_name(name: x509.Name) -> str:
    """The only common name in ``name``, or an empty string."""
    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if len(values) == 1 else ""


def one_line(error: Exception) -> str:
    """A third party's message, fit for ours."""
    return " ".join(str(error).split()) or type(error).__name__


def _state(value: bytes | None) -> str:
    return "is missing" if value is None else "is malformed"


def _integer(value: bytes | None) -> int | None:
    """A DER INTEGER from 0 to 255 in its only encoding."""
    if value is None or value[:1] != b"\x02":
        return None
    if len(value) == 3 and value[1] == 1 and value[2] < 0x80:
        return value[2]
    if len(value) == 4 and value[1:3] == b"\x02\x00" and value[3] >= 0x80:
        return value[3]
    return None


def _ia5(value: bytes | None) -> str | None:
    """A DER IA5String of fewer than 128 characters."""
    if value is None or len(value) < 2 or value[0] != 0x16 or value[1] != len(value) - 2 or not value.isascii():
        return None
    return value[2:].decode("ascii")


def _octets(value: bytes | None) -> bytes | None:
    """A HWID: KDS puts the bare bytes into the extension; a DER OCTET STRING around them is accepted."""
    if value is None:
        return None
    sizes = set(HWID_SIZE.values())
    if len(value) in sizes:
        return value
    if len(value) - 2 in sizes and value[0] == 0x04 and value[1] == len(value) - 2:
        return value[2:]
    return None
