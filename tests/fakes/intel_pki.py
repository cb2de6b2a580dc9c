"""A whole Intel of our own: root, PCK CAs, PCK, QE, TCB info, QE identity, CRLs, and quotes of every version.

Keys are derived from numbers and signatures are deterministic, so every run makes the same bytes. Layouts are written
out here anew from the specifications, not taken from the verifier, so that a wrong offset there shows.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)

FMSPC = "00906ed50000"
PPID = "ab" * 16
INSTANCE = "cd" * 16
CPU_SVN = bytes([5, 5, 2, 2, 3, 1, 0, 5]) + bytes(8)
PCE_SVN = 13
QE_ISV_SVN = 6
QE_SIGNER = hashlib.sha256(b"quoting enclave's signer").digest()
QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
QE_AUTH = bytes(range(32))


def key(number: int) -> ec.EllipticCurvePrivateKey:
    """P-256 key ``number``."""
    return ec.derive_private_key(0x1000 + number, ec.SECP256R1())


def point(of: ec.EllipticCurvePrivateKey) -> bytes:
    """Public key as x || y."""
    return of.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def sign(by: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """r || s, 64 bytes."""
    r, s = decode_dss_signature(by.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def name(common_name: str) -> x509.Name:
    """A name as Intel writes them."""
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Intel Corporation"),
            x509.NameAttribute(x509.NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(x509.NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "US"),
        ]
    )


def certify(
    subject: str,
    subject_key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    serial: int,
    ca: bool,
    since: datetime = START,
    until: datetime = END,
    sgx: bytes | None = None,
    curve_key: Any = None,
) -> x509.Certificate:
    """A certificate with the extensions that Intel's have."""
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)
    public = curve_key or subject_key.public_key()
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(authority, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage),
            critical=True,
        )
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    point_at = x509.DistributionPoint([x509.UniformResourceIdentifier("https://pki.invalid/crl")], None, None, None)
    builder = builder.add_extension(x509.CRLDistributionPoints([point_at]), critical=False)
    if sgx is not None:
        oid = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, sgx), critical=False)
    return builder.sign(issuer_key, SHA256(), ecdsa_deterministic=True)


def revocations(
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    serials: tuple[int, ...] = (),
    since: datetime = NOW - 5 * DAY,
    until: datetime = NOW + 25 * DAY,
) -> bytes:
    """A CRL in DER."""
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name(issuer))
        .last_update(since)
        .next_update(until)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(authority, critical=False)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer_key, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def der(tag: int, content: bytes) -> bytes:
    """One DER item."""
    size = len(content)
    length = (
        bytes([size]) if size < 0x80 else bytes([0x81, size]) if size < 0x100 else b"\x82" + struct.pack(">H", size)
    )
    return bytes([tag]) + length + content


ARC = bytes.fromhex("2a864886f84d010d01")


def pair(arcs: bytes, tag: int, value: bytes) -> bytes:
    """SEQUENCE of OID 1.2.840.113741.1.13.1.<arcs> and a value."""
    return der(0x30, der(0x06, ARC + arcs) + der(tag, value))


def sgx_extension(
    *,
    ppid: str = PPID,
    fmspc: str = FMSPC,
    cpu_svn: bytes = CPU_SVN,
    pce_svn: int = PCE_SVN,
    configuration: tuple[bool, bool, bool] | None = (True, True, True),
    without: bytes | None = None,
) -> bytes:
    """SGX extension of a PCK certificate; ``configuration``: dynamic platform, cached keys, SMT."""
    parts = [pair(bytes([2, n + 1]), 0x02, bytes([svn])) for n, svn in enumerate(cpu_svn)]
    parts += [pair(bytes([2, 17]), 0x02, bytes([pce_svn])), pair(bytes([2, 18]), 0x04, cpu_svn)]
    entries = {
        1: pair(b"\x01", 0x04, bytes.fromhex(ppid)),
        2: pair(b"\x02", 0x30, b"".join(parts)),
        3: pair(b"\x03", 0x04, bytes(2)),
        4: pair(b"\x04", 0x04, bytes.fromhex(fmspc)),
        5: pair(b"\x05", 0x0A, b"\x01"),
    }
    if configuration is not None:
        flags = [pair(bytes([7, n + 1]), 0x01, b"\xff" if flag else b"\0") for n, flag in enumerate(configuration)]
        entries[6] = pair(b"\x06", 0x04, bytes.fromhex(INSTANCE))
        entries[7] = pair(b"\x07", 0x30, b"".join(flags))
    return der(0x30, b"".join(entry for number, entry in entries.items() if without != bytes([number])))


def sgx_report(**change: Any) -> bytes:
    """Enclave report, 384 bytes."""
    value: dict[str, Any] = {
        "cpu_svn": CPU_SVN,
        "misc_select": bytes(4),
        "reserved1": bytes(12),
        "isv_ext_prod_id": bytes(16),
        "attributes": bytes.fromhex("0500000000000000e700000000000000"),  # INIT, MODE64
        "mr_enclave": hashlib.sha256(b"enclave").digest(),
        "reserved2": bytes(32),
        "mr_signer": hashlib.sha256(b"signer").digest(),
        "reserved3": bytes(32),
        "config_id": bytes(64),
        "isv_prod_id": struct.pack("<H", 7),
        "isv_svn": struct.pack("<H", 3),
        "config_svn": bytes(2),
        "reserved4": bytes(42),
        "isv_family_id": bytes(16),
        "report_data": bytes(range(64)),
    }
    assert not change.keys() - value.keys()
    raw = b"".join((value | change).values())
    assert len(raw) == 384
    return raw


def td_report(version: str = "1.0", **change: bytes) -> bytes:
    """TD report, 584 bytes (1.0) or 648 (1.5)."""
    value = {
        "tee_tcb_svn": bytes([6, 1, 3]) + bytes(13),
        "mr_seam": hashlib.sha384(b"module").digest(),
        "mr_signer_seam": bytes(48),
        "seam_attributes": bytes(8),
        "td_attributes": (1 << 28).to_bytes(8, "little"),
        "xfam": (0x602E7).to_bytes(8, "little"),
        "mr_td": hashlib.sha384(b"td").digest(),
        "mr_config_id": hashlib.sha384(b"config").digest(),
        "mr_owner": bytes(48),
        "mr_owner_config": bytes(48),
        **{f"rtmr{n}": hashlib.sha384(bytes([n])).digest() for n in range(4)},
        "report_data": bytes(range(64)),
    }
    if version == "1.5":
        value |= {"tee_tcb_svn2": bytes([6, 1, 3]) + bytes(13), "mr_service_td": bytes(48)}
    assert not change.keys() - value.keys()
    raw = b"".join((value | change).values())
    assert len(raw) == (584 if version == "1.0" else 648)
    return raw


def components(svns: bytes) -> list[dict[str, int]]:
    """SVNs as TCB info has them."""
    return [{"svn": svn} for svn in svns]


def moment(at: datetime) -> str:
    """Intel's way of writing times."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


class IntelPki:
    """One fake Intel. ``quote`` and ``collateral`` make what a test asks for; the rest are its parts."""

    def __init__(self, seed: int = 0, **extension: Any) -> None:
        self.root_key, self.ca_key, self.pck_key, self.tcb_key, self.qe_key = (key(seed + n) for n in range(5))
        root, ca = "Intel SGX Root CA", "Intel SGX PCK Platform CA"
        self.root = certify(root, self.root_key, root, self.root_key, serial=1, ca=True)
        self.ca = certify(ca, self.ca_key, root, self.root_key, serial=2, ca=True)
        self.tcb_signer = certify("Intel SGX TCB Signing", self.tcb_key, root, self.root_key, serial=3, ca=False)
        self.pck = self.certify_pck(**extension)

    def certify_pck(self, **extension: Any) -> x509.Certificate:
        """A PCK certificate whose SGX extension is changed."""
        ca = "Intel SGX PCK Platform CA"
        sgx = sgx_extension(**extension)
        return certify("Intel SGX PCK Certificate", self.pck_key, ca, self.ca_key, serial=4, ca=False, sgx=sgx)

    def chain(self) -> bytes:
        """The PCK chain as a QE writes it."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in (self.pck, self.ca, self.root)) + b"\0"

    def qe_report(self, tdx: bool, **change: Any) -> bytes:
        """The QE's report over its attestation key."""
        bound = hashlib.sha256(point(self.qe_key) + QE_AUTH).digest() + bytes(32)
        usual = {
            "mr_signer": QE_SIGNER,
            "isv_prod_id": struct.pack("<H", 2 if tdx else 1),
            "isv_svn": struct.pack("<H", QE_ISV_SVN),
            "attributes": bytes.fromhex("1500000000000000e700000000000000"),
            "report_data": bound,
        }
        return sgx_report(**usual | change)

    def quote(
        self,
        body: bytes | None = None,
        *,
        version: int = 4,
        tee_type: int | None = None,
        key_type: int = 2,
        vendor: bytes = QE_VENDOR,
        qe: dict[str, Any] | None = None,
        certification: bytes | None = None,
        certification_type: int = 5,
        tail: bytes = b"",
        attestation_key: bytes | None = None,
        qe_signature: bytes | None = None,
    ) -> bytes:
        """A quote; ``body`` decides between SGX (384 bytes) and TDX."""
        tdx = version != 3
        body = body if body is not None else td_report() if tdx else sgx_report()
        tee = tee_type if tee_type is not None else 0x81 if tdx else 0
        header = struct.pack("<HHI", version, key_type, tee) + bytes(4) + vendor + bytes(range(20))
        if version == 5:
            header += struct.pack("<HI", {384: 1, 584: 2, 648: 3}[len(body)], len(body))
        report = self.qe_report(tdx, **(qe or {}))
        chain = self.chain() if certification is None else certification
        proof = report + (qe_signature or sign(self.pck_key, report)) + struct.pack("<H", len(QE_AUTH)) + QE_AUTH
        proof += struct.pack("<HI", certification_type, len(chain)) + chain
        if tdx:
            proof = struct.pack("<HI", 6, len(proof)) + proof
        signed = header + body
        signatures = sign(self.qe_key, signed) + (attestation_key or point(self.qe_key)) + proof
        return signed + struct.pack("<I", len(signatures)) + signatures + tail

    def tcb_info(self, tdx: bool = True, status: str = "UpToDate", advisories: tuple[str, ...] = ()) -> dict[str, Any]:
        """TCB info V3 whose only level this platform reaches."""
        level = {
            "tcb": {"sgxtcbcomponents": components(CPU_SVN), "pcesvn": PCE_SVN},
            "tcbDate": moment(NOW - 100 * DAY),
            "tcbStatus": status,
            "advisoryIDs": list(advisories),
        }
        info: dict[str, Any] = {
            "id": "TDX" if tdx else "SGX",
            "version": 3,
            "issueDate": moment(NOW - 3 * DAY),
            "nextUpdate": moment(NOW + 27 * DAY),
            "fmspc": FMSPC.upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 17,
            "tcbLevels": [level],
        }
        if tdx:
            level["tcb"]["tdxtcbcomponents"] = components(bytes([5, 0, 2]) + bytes(13))
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
            identity = {"tcb": {"isvsvn": 4}, "tcbDate": moment(NOW - 90 * DAY), "tcbStatus": "UpToDate"}
            info["tdxModule"] = module
            info["tdxModuleIdentities"] = [{"id": "TDX_01", **module, "tcbLevels": [identity]}]
        return info

    def qe_identity(self, tdx: bool = True, status: str = "UpToDate") -> dict[str, Any]:
        """Enclave identity V2 of this QE."""
        return {
            "id": "TD_QE" if tdx else "QE",
            "version": 2,
            "issueDate": moment(NOW - 2 * DAY),
            "nextUpdate": moment(NOW + 28 * DAY),
            "tcbEvaluationDataNumber": 17,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_SIGNER.hex().upper(),
            "isvprodid": 2 if tdx else 1,
            "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": moment(NOW - 80 * DAY), "tcbStatus": status}],
        }

    def collateral(
        self,
        tdx: bool = True,
        *,
        tcb_info: dict[str, Any] | None = None,
        qe_identity: dict[str, Any] | None = None,
        signer: x509.Certificate | None = None,
        **change: Any,
    ) -> bytes:
        """The JSON of dcap-qvl; ``change`` replaces its fields after everything is signed."""
        info = json.dumps(tcb_info or self.tcb_info(tdx), separators=(",", ":"))
        identity = json.dumps(qe_identity or self.qe_identity(tdx), separators=(",", ":"))
        root = self.root.public_bytes(Encoding.PEM).decode()
        issuers = (signer or self.tcb_signer).public_bytes(Encoding.PEM).decode() + root
        file = {
            "pck_crl_issuer_chain": self.ca.public_bytes(Encoding.PEM).decode() + root,
            "root_ca_crl": self.root_crl().hex(),
            "pck_crl": self.pck_crl().hex(),
            "tcb_info_issuer_chain": issuers,
            "tcb_info": info,
            "tcb_info_signature": sign(self.tcb_key, info.encode()).hex(),
            "qe_identity_issuer_chain": issuers,
            "qe_identity": identity,
            "qe_identity_signature": sign(self.tcb_key, identity.encode()).hex(),
        }
        return json.dumps(file | change).encode()

    def root_crl(self, *serials: int, **period: datetime) -> bytes:
        """The root's CRL: 2 is the PCK CA, 3 the TCB signer."""
        return revocations("Intel SGX Root CA", self.root_key, serials, **period)

    def pck_crl(self, *serials: int, **period: datetime) -> bytes:
        """The PCK CA's CRL: 4 is the PCK certificate."""
        return revocations("Intel SGX PCK Platform CA", self.ca_key, serials, **period)


def changed(document: dict[str, Any], **change: Any) -> dict[str, Any]:
    """A copy of a document with other values at its top."""
    return copy.deepcopy(document) | change


def ccel(
    *events: tuple[int, int, bytes], algorithms: tuple[tuple[int, int], ...] = ((0x0C, 48),), end: bytes = b""
) -> bytes:
    """A CCEL log: header, then (register, type, digest) with one SHA-384 digest each."""
    head = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(algorithms))
    head += b"".join(struct.pack("<HH", *each) for each in algorithms) + b"\0"
    log = struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(head)) + head
    for register, kind, digest in events:
        log += struct.pack("<IIIH", register, kind, 1, 0x0C) + digest + struct.pack("<I", 5) + b"event"
    return log + end
