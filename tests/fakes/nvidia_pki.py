"""A made-up NVIDIA: device and RIM roots, Hopper, Blackwell and LS10 devices, their reports, RIM files, NRAS tokens.

Written from the formats' descriptions and not with the verifier's code, so that the two check one another.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from lxml import etree

from cordon.attest.nvgpu import Roots

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SINCE, UNTIL = datetime(2024, 1, 1, tzinfo=UTC), datetime(2034, 1, 1, tzinfo=UTC)
NONCE = hashlib.sha256(b"challenge").digest()
CHIPS = {"hopper": "GH100", "blackwell": "GB100", "ls10": "LS_10"}
SHA384_OID = "06096086480165030402020430"
ISSUER = "https://nras.test"
KID = "test-kid"


def digest(text: str) -> bytes:
    return hashlib.sha384(text.encode()).digest()


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    return bytes([tag]) + (bytes([size]) if size < 128 else b"\x81" + bytes([size])) + body


@dataclass
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def certify(
    cn: str,
    issuer: Authority | None,
    *,
    ca: bool = True,
    since: datetime = SINCE,
    until: datetime = UNTIL,
    path_length: int | None = None,
    curve: ec.EllipticCurve | None = None,
    algorithm: hashes.HashAlgorithm | None = None,
    usage: bool = True,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    constraints: bool | None = None,
    issuer_name: str | None = None,
) -> Authority:
    """A certificate for ``cn``, self-signed without an issuer. ``usage`` False: the wrong key usage."""
    key = ec.generate_private_key(curve or ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "T")])
    by = issuer.certificate.subject if issuer else name
    if issuer_name:
        by = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() | 1 << 158)  # 20 bytes, so that a test can find it
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca if usage else ca,
                key_cert_sign=ca if usage else not ca,
                crl_sign=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if ca if constraints is None else constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    signer = issuer.key if issuer else key
    return Authority(builder.sign(signer, algorithm or hashes.SHA384()), key)


@dataclass
class Device:
    """One chip: its chain (leaf first) and the key of its leaf. ``extra`` are overrides of ``certify`` for the leaf."""

    arch: str
    links: list[Authority]
    fwid: bytes
    measurements: dict[int, bytes]
    opaque: dict[int, bytes]

    @property
    def chain(self) -> bytes:
        return b"".join(link.certificate.public_bytes(Encoding.PEM) for link in self.links)

    def report(self, nonce: bytes = NONCE, **changes) -> bytes:
        """The signed report. Changes: request (4 bytes), slot, head (4 bytes of the response), own_nonce, blocks,
        measurements, opaque (overrides; None drops), record, tlv, key."""
        values = changes.get("measurements", self.measurements)
        blocks = b"".join(struct.pack("<BBHBH", i, 1, 51, 1, 48) + v for i, v in values.items())
        blocks = changes.get("record", blocks)
        fields = {k: v for k, v in (self.opaque | changes.get("opaque", {})).items() if v is not None}
        tlv = changes.get("tlv", b"".join(struct.pack("<HH", k, len(v)) + v for k, v in fields.items()))
        request = changes.get("request", b"\x11\xe0\x01\xff") + nonce + bytes([changes.get("slot", 0)])
        head = changes.get("head", b"\x11\x60\x00\x00")
        response = head + bytes([changes.get("blocks", len(values))]) + len(blocks).to_bytes(3, "little") + blocks
        response += changes.get("own_nonce", digest("own nonce")[:32]) + struct.pack("<H", len(tlv)) + tlv
        signed = request + response
        key = changes.get("key", self.links[0].key)
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
        return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")

    def evidence(self, uuid: str, nonce: bytes = NONCE, **changes) -> dict[str, str]:
        report = base64.b64encode(self.report(nonce, **changes)).decode()
        arch = {"ls10": "LS10"}.get(self.arch, self.arch.upper())
        return {"uuid": uuid, "arch": arch, "report": report, "chain": base64.b64encode(self.chain).decode()}


@dataclass
class NvidiaPki:
    """All authorities of one made-up vendor."""

    root: Authority = field(default_factory=lambda: certify("Test Device Identity CA", None))
    rim_root: Authority = field(default_factory=lambda: certify("Test RIM Root", None))
    nras: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))

    def __post_init__(self) -> None:
        self.identity = certify("Test Identity", self.root)
        self.ica = certify("Test Provisioner ICA", self.identity)
        self.rim_ca = certify("Test Reference Value CA", self.rim_root)
        self.rim_signer = certify("Test RIM Signer", self.rim_ca, ca=False)

    @property
    def roots(self) -> Roots:
        return Roots(self.root.certificate, self.rim_root.certificate)

    def device(self, arch: str = "hopper", number: int = 1, **leaf) -> Device:
        """A new chip of ``arch``; ``leaf``: overrides of ``certify`` for its attestation certificate."""
        chip = CHIPS[arch]
        brom = certify(f"{chip} A01 GSP BROM", self.ica)
        fwid = digest(f"{arch} firmware")
        one = der(0x30, bytes.fromhex(SHA384_OID), fwid)
        if arch == "blackwell":
            none = der(0x30, bytes.fromhex(SHA384_OID), bytes(48))
            info = der(0x30, der(0x80, b"NVIDIA"), der(0xA6, one, none), der(0x87, b"\x00\x80\x00\x00\x01"))
            dice = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), info)
        else:
            spki = brom.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            info = der(0x30, der(0x02, b"\x01"), spki, one)
            dice = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), info)
        serial = der(0x0C, f"NVIDIA:{chip}:{number:016X}".encode())
        san = x509.SubjectAlternativeName([x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1"), serial)])
        settings = {"ca": False, "extensions": ((san, False), (dice, False))} | leaf
        lf = certify(f"{chip} A01 GSP FMC LF", brom, **settings)
        opaque = {
            6: bytes.fromhex("009f009601000000"),
            15: b"882\0\0\0\0\0\0",
            17: b"1010\0",
            18: b"0200\0",
            3: b"550.90.07\0",
            11: b"\x55",
            20: fwid,
            21: b"\x55",
            34: b"\x01\x00",
            36: b"\x00\x00",
        }
        if arch == "ls10":
            opaque = {6: b"96.10.55.00.01", 22: bytes(8), 23: b"\xec\x00", 24: b"\x02\x00", 25: b"\x01\x00"}
        count = 31 if arch == "ls10" else 64
        measured = {index: digest(f"{arch} {index}") for index in range(1, count + 1)}
        links = [lf, brom, self.ica, self.identity, self.root]
        return Device(arch, links, fwid, measured, opaque)

    def rim(self, kind: str = "driver", arch: str = "hopper", **changes) -> bytes:
        """A signed RIM that fits ``device(arch)``: the driver's has RIM indexes 0 to 9, the VBIOS's 10 to 19.

        Changes: version, product, golden {index: [bytes]}, inactive, signer, links, edit (text -> text, before
        signing), mend (bytes -> bytes, after it).
        """
        product = changes.get("product", CHIPS[arch].replace("_", ""))
        own = {"driver": "550.90.07", "vbios": "96.10.55.00.01" if arch == "ls10" else "96.00.9F.00.01"}[kind]
        first = 0 if kind == "driver" else 10
        fits = {index: [digest("another"), digest(f"{arch} {index + 1}")] for index in range(first, first + 10)}
        golden = changes.get("golden", fits)
        rows = [(i, "True", v) for i, v in golden.items()] + [
            (i, "False", [bytes(48)]) for i in changes.get("inactive", [60, 61])
        ]
        resources = "".join(
            f'<ns0:Resource type="Measurement" index="{i}" active="{on}" alternatives="{len(v)}" '
            + " ".join(f'ns2:Hash{n}="{d.hex()}"' for n, d in enumerate(v))
            + f' name="Measurement_{i}" size="48"/>'
            for i, on, v in rows
        )
        swid = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
        text = (
            f'<SoftwareIdentity xmlns="{swid}" xmlns:ns0="{swid}" xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384" '
            f'name="{product}" tagId="1" version="1.0" tagVersion="0">\n'
            '<ns0:Entity name="Test" role="softwareCreator tagCreator"/>\n'
            f'<ns0:Meta colloquialVersion="{changes.get("version", own)}" edition="GPU" product="{product}"/>\n'
            f"<ns0:Payload>{resources}</ns0:Payload>\n</SoftwareIdentity>"
        )
        text = changes.get("edit", str)(text)
        signer = changes.get("signer", self.rim_signer)
        links = changes.get("links", [signer, self.rim_ca, self.rim_root])
        signed = sign_xml(text.encode(), signer.key, [link.certificate for link in links], **changes.get("xml", {}))
        return changes.get("mend", bytes)(signed)

    @property
    def jwks(self) -> bytes:
        numbers = self.nras.public_key().public_numbers()
        x, y = (base64.urlsafe_b64encode(n.to_bytes(48, "big")).decode().rstrip("=") for n in (numbers.x, numbers.y))
        return json.dumps(
            {"keys": [{"kty": "EC", "crv": "P-384", "alg": "ES384", "kid": KID, "x": x, "y": y}]}
        ).encode()

    def jwt(self, claims: dict, **changes) -> str:
        key, algorithm = changes.get("key", self.nras), changes.get("algorithm", "ES384")
        payload = json.dumps(claims).encode()  # by the layer below: jwt.encode would refuse claims of odd types
        return jwt.PyJWS().encode(payload, key, algorithm=algorithm, headers={"kid": changes.get("kid", KID)})

    def token(self, devices: dict[str, dict] | None = None, overall: dict | None = None, **changes) -> bytes:
        """A token; ``devices``, ``overall``: changes of the claims (None drops one). Changes: texts (name -> JWT, put
        in after the digests were taken)."""
        devices = {"GPU-0": {}} if devices is None else devices
        parts = {name: self.jwt(_merged(_device_claims(name), claims)) for name, claims in devices.items()}
        submods = {n: ["DIGEST", ["SHA-256", hashlib.sha256(t.encode()).hexdigest()]] for n, t in parts.items()}
        head = _times() | {
            "x-nvidia-overall-att-result": True,
            "submods": submods,
            "sub": "NVIDIA-PLATFORM-ATTESTATION",
        }
        whole = self.jwt(_merged(head, overall or {}), **changes.get("sign", {}))
        return json.dumps([["JWT", whole], parts | changes.get("texts", {})]).encode()


def sign_xml(text: bytes, key, certificates: list[x509.Certificate], **changes) -> bytes:
    """``text`` with an enveloped signature as its last child (W3C xmldsig-core1, section 8.1), as NVIDIA's."""
    ds, more = "http://www.w3.org/2000/09/xmldsig#", "http://www.w3.org/2001/04/xmldsig-more#"
    c14n = "http://www.w3.org/2006/12/xml-c14n11"
    reference = hashlib.sha384(etree.tostring(etree.fromstring(text), method="c14n")).digest()
    certs = "".join(
        f"<ds:X509Certificate>{base64.b64encode(c.public_bytes(Encoding.DER)).decode()}</ds:X509Certificate>"
        for c in certificates
    )
    signature = (
        f'<ds:Signature xmlns:ds="{ds}"><ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{c14n}"/>'
        f'<ds:SignatureMethod Algorithm="{changes.get("method", more + "ecdsa-sha384")}"/>'
        f'<ds:Reference URI="{changes.get("uri", "")}"><ds:Transforms>'
        f'<ds:Transform Algorithm="{ds}enveloped-signature"/>'
        f'<ds:Transform Algorithm="{c14n}"/></ds:Transforms><ds:DigestMethod Algorithm="{more}sha384"/><ds:DigestValue>'
        f"{base64.b64encode(reference).decode()}</ds:DigestValue></ds:Reference></ds:SignedInfo><ds:SignatureValue>"
        f"</ds:SignatureValue><ds:KeyInfo><ds:X509Data>{certs}</ds:X509Data></ds:KeyInfo></ds:Signature>"
    )
    document = etree.fromstring(text.replace(b"</SoftwareIdentity>", signature.encode() + b"</SoftwareIdentity>"))
    info, value = document[-1][0], document[-1][1]
    r, s = decode_dss_signature(key.sign(etree.tostring(info, method="c14n"), ec.ECDSA(hashes.SHA384())))
    size = (key.key_size + 7) // 8
    value.text = base64.b64encode(r.to_bytes(size, "big") + s.to_bytes(size, "big")).decode()
    return etree.tostring(document)


def _merged(claims: dict, changes: dict) -> dict:
    return {name: value for name, value in (claims | changes).items() if value is not None}


def _times() -> dict:
    at = int(NOW.timestamp())
    return {"iss": ISSUER, "iat": at - 60, "nbf": at - 60, "exp": at + 3600, "eat_nonce": NONCE.hex()}


def _device_claims(name: str) -> dict:
    kind = "gpu" if name.startswith("GPU") else "switch"
    chain = {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"}
    claims = _times() | {
        "measres": "success",
        "secboot": True,
        "dbgstat": "disabled",
        "ueid": str(int.from_bytes(name.encode(), "big")),
        "hwmodel": "GH100 A01 GSP BROM" if kind == "gpu" else "LS_10 A01 FSP BROM",
        f"x-nvidia-{kind}-arch-check": True,
        f"x-nvidia-{kind}-attestation-report-parsed": True,
        f"x-nvidia-{kind}-attestation-report-nonce-match": True,
        f"x-nvidia-{kind}-attestation-report-signature-verified": True,
        f"x-nvidia-{kind}-attestation-report-cert-chain-fwid-match": True,
        f"x-nvidia-{kind}-attestation-report-cert-chain": chain,
    }
    if kind == "gpu":
        return claims | {"x-nvidia-gpu-driver-version": "550.90.07", "x-nvidia-gpu-vbios-version": "96.00.9F.00.01"}
    return claims | {"x-nvidia-switch-bios-version": "96.10.55.00.01"}
