"""What a device's certificates say of it: chip, serial number, and the firmware that holds the attestation key.

Chip and serial stand in the subject alternative name of the leaf (DMTF DSP0274, OID 1.3.6.1.4.1.412.274.1:
``NVIDIA:GH100:48B02D92494BADF4``). The firmware id is that of TCG DICE Attestation Architecture 1.1, section 6.1.1:
OID 2.23.133.5.4.1 holds a CompositeDeviceID (Hopper, NVSwitch) and 2.23.133.5.4.1.1 a DiceTcbInfo (Blackwell); in both
FWID ::= SEQUENCE {hash algorithm, digest}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cryptography import x509

from cordon.attest.nvgpu.chain import Link
from cordon.errors import ConfigError

COMPOSITE_DEVICE_ID = x509.ObjectIdentifier("2.23.133.5.4.1")
TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1.1")
DMTF_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")
SHA384 = bytes.fromhex("0609608648016503040202")  # DER of 2.16.840.1.101.3.4.2.2

SEQUENCE, FWIDS, OCTET_STRING, UTF8_STRING = 0x30, 0xA6, 0x04, 0x0C
FAMILY = (("hopper", r"GH1[0-9A-F]{2}"), ("blackwell", r"GB[0-9A-F]{3}"), ("ls10", r"LS_?10"))


def chip(leaf: Link) -> str:
    """The first word of the leaf's common name, such as GH100 (of ``GH100 A01 GSP FMC LF``), or ``unknown``.

    Whoever makes up a certificate chooses its name: anything but a short plain word is not repeated.
    """
    word = leaf.common_name.partition(" ")[0]
    return word if re.fullmatch(r"[A-Z0-9_]{2,16}", word) else "unknown"


def arch(leaf: Link) -> str:
    """hopper, blackwell or ls10; the chip's own name for any other."""
    return family(chip(leaf))


def family(name: str) -> str:
    """The chip family of a chip's name."""
    return next((each for each, pattern in FAMILY if re.fullmatch(pattern, name)), name[:32])


def serial(leaf: Link) -> str | None:
    """The chip's serial number, 16 hex digits; None if the leaf does not name one for the same chip."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    values = [other.value for other in names if isinstance(other, x509.OtherName) and other.type_id == DMTF_NAME]
    if len(values) != 1 or values[0][:1] != bytes([UTF8_STRING]):
        return None
    match = re.fullmatch(r"NVIDIA:([A-Z0-9_]+):([0-9A-F]{16})", values[0][2:].decode("ascii", "replace"))
    return match[2] if match and match[1] == chip(leaf) else None


def fwids(leaf: Link) -> tuple[bytes, ...]:
    """The SHA-384 firmware ids that the certificate was issued to; an all-zero one stands for none.

    Raises:
        ConfigError: ``chain_format: ...``
    """
    found: list[bytes] = []
    for extension in leaf.extensions:
        known = extension.oid in (COMPOSITE_DEVICE_ID, TCB_INFO)
        if not known or not isinstance(extension.value, x509.UnrecognizedExtension):
            continue
        outer = list(_items(extension.value.value))
        if len(outer) != 1 or outer[0][0] != SEQUENCE:
            raise ConfigError("chain_format: the certificate's firmware id extension is not one SEQUENCE")
        fields = list(_items(outer[0][1]))
        ids = [field for tag, value in fields if tag == FWIDS for field in _items(value)]
        candidates = ids if extension.oid == TCB_INFO else fields[-1:]
        for tag, value in candidates:
            head, digest = value[: len(SHA384)], value[len(SHA384) :]
            if tag != SEQUENCE or head != SHA384 or digest[:2] != bytes([OCTET_STRING, 48]) or len(digest) != 50:
                raise ConfigError("chain_format: the certificate's firmware id is not a SHA-384 digest")
            found.append(digest[2:])
    return tuple(each for each in found if any(each))


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of consecutive DER values with one-byte tags; lengths up to 65535."""
    at = 0
    while at < len(data):
        head = data[at : at + 2]
        if len(head) < 2:
            raise ConfigError("chain_format: a firmware id extension ends within a DER header")
        size, start = head[1], at + 2
        if size & 0x80:
            octets = size & 0x7F
            if octets not in (1, 2):
                raise ConfigError("chain_format: a firmware id extension has a DER length that is not read")
            size, start = int.from_bytes(data[start : start + octets], "big"), start + octets
        if start + size > len(data):
            raise ConfigError("chain_format: a firmware id extension has a DER value that reaches past the end")
        yield head[0], data[start : start + size]
        at = start + size
