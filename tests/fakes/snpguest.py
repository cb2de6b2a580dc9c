"""A stand-in for `snpguest` of virtee, which stock FLARE runs to verify SEV-SNP reports; a program when run as one.

It has the commands that SNPAuthorizer runs, and they check what snpguest's check (its src/verify.rs, read, not run).
``verify attestation`` without options: the report's signature by vcek.pem, and TCB and chip where the certificate has
these extensions. Chain (``verify certs``), policy, measurement and report_data are other commands or options, which
FLARE doesn't use.
"""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import NameOID

TCB_OIDS = {1: 0, 2: 1, 3: 6, 8: 7}  # 1.3.6.1.4.1.3704.1.3.N -> byte of REPORTED_TCB (before Turin)


def install(folder: Path, vcek: bytes) -> tuple[Path, Path]:
    """(program, its log of arguments): `snpguest` in ``folder``, with ``vcek`` (PEM) as what AMD's key server has."""
    program, log, kds = folder / "snpguest", folder / "snpguest.log", folder / "kds.pem"
    kds.write_bytes(vcek)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore "{__file__}" "{log}" "{kds}" "$@"\n')
    program.chmod(0o755)
    return program, log


def main(log: str, kds: str, *arguments: str) -> int:
    """Exit status of ``snpguest arguments``."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(arguments) + "\n")
    if arguments[:2] == ("fetch", "vcek"):
        Path(arguments[3], "vcek.pem").write_bytes(Path(kds).read_bytes())
        return 0
    report = Path(arguments[-1]).read_bytes()
    if arguments[:2] == ("display", "report"):
        if len(report) != 1184:
            return 1
        chip, data, tcb = report[0x1A0:0x1E0], report[0x50:0x90], report[0x180:0x188]
        print(
            f"Report Data:\n{_hex_lines(data)}\n\nReported TCB:\nTCB Version:\n  Microcode: {tcb[7]}\n  SNP: {tcb[6]}"
        )
        print(f"  TEE: {tcb[1]}\n  Boot Loader: {tcb[0]}\n  FMC: None\n\nChip ID:\n{_hex_lines(chip)}")
        return 0
    if arguments[:2] == ("verify", "attestation") and len(arguments) == 4:
        return 0 if _signed_by(report, Path(arguments[2], "vcek.pem").read_bytes()) else 1
    print(f"snpguest: {arguments} is not here", file=sys.stderr)
    return 2


def _hex_lines(data: bytes) -> str:
    return "\n".join(data[at : at + 16].hex(" ") for at in range(0, len(data), 16))


def _signed_by(report: bytes, vcek: bytes) -> bool:
    certificate = x509.load_pem_x509_certificate(vcek)
    said = {each.oid.dotted_string: each.value.public_bytes() for each in certificate.extensions}
    for number, at in TCB_OIDS.items():
        value = said.get(f"1.3.6.1.4.1.3704.1.3.{number}")
        if value is not None and value[-1] != report[0x180 + at]:
            return False
    chip = said.get("1.3.6.1.4.1.3704.1.4")
    if chip is not None and chip[-64:] != report[0x1A0:0x1E0]:
        return False
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    try:
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(utils.encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def forge_report(report_data: bytes = b"\x01" * 64) -> tuple[bytes, bytes]:
    """(SNP report of a Milan chip, VCEK as PEM) of anybody: all is as AMD does it, and AMD had no part in it."""
    from cordon.attest import roots  # AMD's names; not for the program

    key, authority = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
    chip, now = b"\xaa" * 64, datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SEV-VCEK")]))
        .issuer_name(roots.load("amd_milan_ask").subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
    said = {"1": _der(2, b"\1"), "2": _der(22, b"Milan-B0"), **{f"3.{each}": _der(2, b"\0") for each in range(1, 9)}}
    for number, value in {**said, "4": chip}.items():
        oid = x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{number}")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    vcek = builder.sign(authority, hashes.SHA384(), rsa_padding=pss)

    body = bytearray(0x2A0)
    body[0x00:0x04] = (2).to_bytes(4, "little")
    body[0x08:0x10] = (0x30000).to_bytes(8, "little")
    body[0x34:0x38] = (1).to_bytes(4, "little")
    body[0x50:0x90] = report_data
    body[0x1A0:0x1E0] = chip
    r, s = utils.decode_dss_signature(key.sign(bytes(body), ec.ECDSA(hashes.SHA384())))
    report = bytes(body) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)
    return report, vcek.public_bytes(serialization.Encoding.PEM)


def _der(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
