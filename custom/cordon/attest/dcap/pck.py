"""The PCK certificate of a platform and its chain, as they lie in a quote.

Source: Intel SGX PCK Certificate and CRL Profile Specification, sections 1.2 and 1.3.5 (SGX extensions).
"""

from __future__ import annotations

import functools
import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

# What `cryptography` raises for certificates and keys that were not made by Intel.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.ExtensionNotFound,
)

SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
BEGIN, END = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"
_ARC = bytes.fromhex("2a864886f84d010d01")  # 1.2.840.113741.1.13.1
PPID, TCB, PCE_ID, FMSPC, SGX_TYPE, PLATFORM_INSTANCE_ID, CONFIGURATION = (bytes([n]) for n in range(1, 8))
PCE_SVN, CPU_SVN = bytes([2, 17]), bytes([2, 18])
DYNAMIC_PLATFORM, CACHED_KEYS, SMT_ENABLED = bytes([7, 1]), bytes([7, 2]), bytes([7, 3])
LENGTHS = {PPID: 16, PCE_ID: 2, FMSPC: 6, CPU_SVN: 16}
NESTED = (TCB, CONFIGURATION)


class Chain(NamedTuple):
    """The three certificates in a quote; ``root_der`` is the last as it came."""

    pck: x509.Certificate
    ca: x509.Certificate
    root: x509.Certificate
    root_der: bytes


@dataclass(frozen=True)
class Platform:
    """The SGX extension of a PCK certificate. The last four are absent from certificates of the Processor CA."""

    ppid: str
    cpu_svn: str
    pce_svn: int
    pce_id: str
    fmspc: str
    sgx_type: int
    platform_instance_id: str | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None


@functools.lru_cache(maxsize=64)  # one chain per platform, and every lease asks; at most 1 MiB
def read_chain(data: bytes) -> Chain:
    """PCK certificate, PCK CA and root from a quote's certification data (type 5).

    Nobody signed the PEM text, only what it encodes. So that no byte of a quote can be changed unseen, the text must be
    the one that these certificates encode to, with one NUL byte at its end or none (Intel's QE writes one).

    Raises:
        ValueError: not three certificates in just that form.
    """
    blocks = data.removesuffix(b"\0").split(END)
    if len(blocks) != 4 or blocks[3]:
        raise ValueError(f"{len(blocks) - 1} certificates, want 3 (PCK, its CA, the root), and nothing after them")
    certificates, ders = [], []
    for block in blocks[:3]:
        der = b64decode(block.removeprefix(BEGIN))
        if pem(der) != block + END:
            raise ValueError("the PEM text is not what its certificates encode to")
        certificate = load(der)
        if der[-len(certificate.signature) - 1]:  # the library takes it, and nothing covers them
            raise ValueError("a certificate's signature has unused bits")
        certificates.append(certificate)
        ders.append(der)
    return Chain(certificates[0], certificates[1], certificates[2], ders[2])


def load(der: bytes) -> x509.Certificate:
    """A certificate.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with _quiet():
            certificate = x509.load_der_x509_certificate(der)
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc  # the year 0 is found only here
            return certificate
    except UNREADABLE as error:
        raise ValueError(f"not a certificate: {error}") from error


def first_der(text: str) -> bytes:
    """What the first certificate in PEM text encodes; empty if there is none. Not parsed."""
    body = text.partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END CERTIFICATE-----")[0]
    try:
        return b64decode(body)
    except ValueError:
        return b""


def pem(der: bytes) -> bytes:
    """The PEM text of a certificate, with lines of 64 characters (RFC 7468)."""
    text = b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return BEGIN + b"".join(line + b"\n" for line in lines) + END


def serial(certificate: x509.Certificate) -> int:
    """Serial number."""
    with _quiet():
        return certificate.serial_number


def name(certificate: x509.Certificate) -> str:
    """Subject, for messages."""
    try:
        return certificate.subject.rfc4514_string()
    except UNREADABLE:  # read only when asked, like the extensions
        return "a certificate without a readable name"


@functools.lru_cache(maxsize=64)  # one certificate per platform, and every lease asks
def read_platform(certificate: x509.Certificate) -> Platform:
    """What Intel certified about the platform.

    Raises:
        ValueError: no SGX extension, a value that is missing, double, or of the wrong length.
    """
    try:
        with _quiet():
            raw = certificate.extensions.get_extension_for_oid(SGX_EXTENSION).value.public_bytes()
    except UNREADABLE as error:
        raise ValueError(f"no SGX extension: {error}") from error
    values = dict[bytes, bytes]()
    for arcs, value in _pairs(_only_sequence(raw)):
        if arcs in values or len(value) != LENGTHS.get(arcs, len(value)):
            raise ValueError(f"SGX extension {_dotted(arcs)} is double or has {len(value)} bytes")
        values[arcs] = value
    missing = [arcs for arcs in (*LENGTHS, PCE_SVN, SGX_TYPE) if arcs not in values]
    if missing:
        raise ValueError(f"SGX extension lacks {', '.join(map(_dotted, missing))}")
    instance = values.get(PLATFORM_INSTANCE_ID)
    return Platform(
        ppid=values[PPID].hex(),
        cpu_svn=values[CPU_SVN].hex(),
        pce_svn=int.from_bytes(values[PCE_SVN], "big"),
        pce_id=values[PCE_ID].hex(),
        fmspc=values[FMSPC].hex(),
        sgx_type=int.from_bytes(values[SGX_TYPE], "big"),
        platform_instance_id=None if instance is None else instance.hex(),
        dynamic_platform=_boolean(values.get(DYNAMIC_PLATFORM)),
        cached_keys=_boolean(values.get(CACHED_KEYS)),
        smt=_boolean(values.get(SMT_ENABLED)),
    )


def chain_faults(chain: Sequence[x509.Certificate]) -> list[str]:
    """Why ``chain`` does not lead from its first certificate, a leaf, to its last; empty if it does."""
    faults = []
    for child, parent in pairwise(chain):
        is_ca = child is not chain[0]
        try:
            with _quiet():
                child.verify_directly_issued_by(parent)
                basic = child.extensions.get_extension_for_class(x509.BasicConstraints).value
                usage = child.extensions.get_extension_for_class(x509.KeyUsage).value
        except InvalidSignature:
            faults.append(f"{name(child)} is not signed by {name(parent)}")
            continue
        except UNREADABLE as error:
            faults.append(f"{name(child)} was not issued by {name(parent)}: {error}")
            continue
        # A PCK certificate must not be able to certify another.
        if basic.ca is not is_ca or usage.key_cert_sign is not is_ca or (not is_ca and not usage.digital_signature):
            faults.append(f"{name(child)} is {'no CA' if is_ca else 'a CA, want a leaf'}")
    return faults


def signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` (r || s, 64 bytes, big-endian) over ``data`` is by ``key`` with ECDSA and SHA-256."""
    if len(signature) != 64:
        return False
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(der, data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def p256_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key of a certificate.

    Raises:
        ValueError: not a key on P-256.
    """
    try:
        key = certificate.public_key()
    except UNREADABLE as error:
        raise ValueError(f"unreadable key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("its key is not on P-256")
    return key


@contextmanager
def _quiet() -> Iterator[None]:
    """The library prints a warning about a serial number that is not positive, and no user can do a thing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _dotted(arcs: bytes) -> str:
    return ".".join(map(str, arcs))


def _boolean(value: bytes | None) -> bool | None:
    return None if value is None else value == b"\xff"


def _only_sequence(raw: bytes) -> bytes:
    items = _items(raw)
    if len(items) != 1 or items[0][0] != 0x30:
        raise ValueError("SGX extension is not one SEQUENCE")
    return items[0][1]


def _pairs(sequence: bytes, nested: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """(last arcs of the OID, value) of each entry, and of the entries inside TCB and configuration."""
    for tag, entry in _items(sequence):
        parts = _items(entry)
        if tag != 0x30 or len(parts) != 2 or parts[0][0] != 0x06 or not parts[0][1].startswith(_ARC):
            raise ValueError("SGX extension has an entry that is not (OID, value)")
        arcs, (kind, value) = parts[0][1][len(_ARC) :], parts[1]
        if arcs in NESTED and kind == 0x30 and not nested:
            yield from _pairs(value, nested=True)
        else:
            yield arcs, value


def _items(data: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of the DER items in ``data``; lengths of at most two bytes are enough for this extension."""
    items = []
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < 2:
            raise ValueError("SGX extension is cut off")
        tag, size, start = data[offset], data[offset + 1], offset + 2
        if size >= 0x80:
            width = size - 0x80
            if width not in (1, 2):
                raise ValueError("SGX extension has a length that is not DER")
            size, start = int.from_bytes(data[start : start + width], "big"), start + width
        if start + size > end:
            raise ValueError("SGX extension is cut off")
        items.append((tag, data[start : start + size]))
        offset = start + size
    return items
