"""NVIDIA's reference measurements: signed SWID tags (ISO 19770-2) of the TCG RIM information model, as XML.

A RIM for the driver and one for the VBIOS each list 64 measurements; the ``active`` ones have one or more golden
SHA-384 values. The signature is an enveloped XML signature over the whole document; its KeyInfo holds the chain.

XML is a hostile format, so: at most 1 MiB of UTF-8, no DTD, no entities, no processing instructions, nothing from the
network; exactly one signature, the root's last child, of exactly the one shape that NVIDIA uses; and the measurements
are read from what the signature was computed over, never from the document (signature wrapping).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from cordon.attest.nvgpu import chain
from cordon.attest.verdict import Check
from cordon.errors import ConfigError

if TYPE_CHECKING:
    from lxml.etree import _Element

MAX_RIM = 1024 * 1024  # bytes
MAX_RIMS = 32
SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
DS = "{http://www.w3.org/2000/09/xmldsig#}"
SHA384 = "{http://www.w3.org/2001/04/xmlenc#sha384}"
C14N_1_1 = "http://www.w3.org/2006/12/xml-c14n11"
# The one shape of a signature that is accepted: (path below ds:Signature, its Algorithm), in document order.
ALGORITHMS = [
    ("SignedInfo/CanonicalizationMethod", C14N_1_1),
    ("SignedInfo/SignatureMethod", "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"),
    ("SignedInfo/Reference/Transforms/Transform", "http://www.w3.org/2000/09/xmldsig#enveloped-signature"),
    ("SignedInfo/Reference/Transforms/Transform", C14N_1_1),
    ("SignedInfo/Reference/DigestMethod", "http://www.w3.org/2001/04/xmldsig-more#sha384"),
]
VBIOS = r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}"
DRIVER = r"[0-9]{1,5}(\.[0-9]{1,5}){1,3}"


@dataclass(frozen=True)
class Rim:
    """One RIM file, judged by itself.

    ``kind`` driver or vbios, ``product`` such as GH100 and ``version`` are what the file says, verified or not.
    ``faults``: why it is not NVIDIA's word; empty if it is. ``window``: whether it is at this time. ``golden``: index
    to the accepted digests, of a file without faults (expired or not), else None.
    """

    kind: str
    product: str
    version: str
    faults: tuple[str, ...]
    window: Check
    golden: Mapping[int, tuple[bytes, ...]] | None


def read(data: bytes, root: x509.Certificate, now: datetime) -> Rim:
    """The RIM in ``data``, its signature and chain checked up to ``root`` at ``now``.

    Raises:
        ConfigError: ``rim_format: ...``
    """
    # 1. Well-formed, of the expected outline.
    document = _parse(data)
    signature = _outline(document)
    kind, product, version = _about(document)

    # 2. The chain in KeyInfo leads to the pinned root, at this time.
    links = _chain(signature)
    chain_faults = [f"chain: {fault}" for fault in chain.problems(links, root)]
    window = chain.at("rim", f"{kind} RIM's chain", links, root, now)

    # 3. The leaf signed the document.
    signed, signature_fault = _signed(document, signature, links[0])

    # 4. Golden measurements: only out of what was signed, by a chain that holds.
    golden = _golden(signed) if signed is not None and not chain_faults else None
    return Rim(kind, product, version, (*signature_fault, *chain_faults), window, golden)


def named(data: bytes) -> tuple[str, str, str]:
    """(kind, product, version) that a RIM file says it is of. Nothing is verified.

    Raises:
        ConfigError: ``rim_format: ...``
    """
    document = _parse(data)
    _outline(document)
    return _about(document)


def _parse(data: bytes) -> _Element:
    from lxml import etree

    if len(data) > MAX_RIM:
        raise ConfigError(f"rim_format: RIM has {len(data)} bytes, at most {MAX_RIM} are read")
    if re.search(rb"<!(?!--)", data):
        raise ConfigError("rim_format: RIM with a document type or a CDATA section")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("rim_format: RIM is not UTF-8 text") from error
    # encoding overrides the document's own, which could spell "<!" otherwise (UTF-7, EBCDIC).
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,  # canonical XML drops them too, so the signature is not about them
        collect_ids=False,
        encoding="utf-8",
    )
    try:
        document = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise ConfigError(f"rim_format: RIM is not XML: {' '.join(str(error).split())[:160]}") from error
    if not all(isinstance(node.tag, str) for node in document.iter()) or document.getprevious() is not None:
        raise ConfigError("rim_format: RIM with a processing instruction or an entity")
    return document


def _outline(document: _Element) -> _Element:
    """The root's children are Entity, Meta, Payload and at the end the one signature, of the one accepted shape."""
    names = [child.tag for child in document]
    wanted = [f"{SWID}Entity", f"{SWID}Meta", f"{SWID}Payload", f"{DS}Signature"]
    if document.tag != f"{SWID}SoftwareIdentity" or names != wanted:
        raise ConfigError("rim_format: RIM is not a SWID tag of Entity, Meta, Payload and Signature")
    signature = document[-1]
    if sum(1 for _ in document.iter(f"{DS}Signature")) != 1 or any(True for _ in signature.iter(f"{DS}Object")):
        raise ConfigError("rim_format: RIM has more than its one signature")
    found = [(_below(node, signature), node.get("Algorithm")) for node in signature.iter() if node.get("Algorithm")]
    references = list(signature.iter(f"{DS}Reference"))
    if found != ALGORITHMS or [reference.get("URI") for reference in references] != [""]:
        raise ConfigError("rim_format: RIM's signature is not of the one shape accepted (README)")
    return signature


def _below(node: _Element, top: _Element) -> str:
    path = [str(node.tag)]
    for parent in node.iterancestors():
        if parent is top:
            break
        path.append(str(parent.tag))
    return "/".join(name.removeprefix(DS) for name in reversed(path))


def _about(document: _Element) -> tuple[str, str, str]:
    meta = document[1]
    product, version = meta.get("product", ""), meta.get("colloquialVersion", "").upper()
    if not re.fullmatch(r"[A-Z0-9_]{2,16}", product) or document.get("name") != product:
        raise ConfigError("rim_format: RIM does not name its product")
    if re.fullmatch(VBIOS, version):
        return "vbios", product, version
    if re.fullmatch(DRIVER, version):
        return "driver", product, version
    raise ConfigError("rim_format: RIM's version is neither a driver's nor a VBIOS's")


def _chain(signature: _Element) -> tuple[chain.Link, ...]:
    encoded = [node.text or "" for node in signature.findall(f"{DS}KeyInfo/{DS}X509Data/{DS}X509Certificate")]
    if not 1 <= len(encoded) <= chain.MAX_CERTIFICATES:
        raise ConfigError(f"rim_format: RIM has {len(encoded)} certificates, want 1 to {chain.MAX_CERTIFICATES}")
    try:
        raw = [base64.b64decode("".join(text.split()), validate=True) for text in encoded]
    except (binascii.Error, ValueError) as error:
        raise ConfigError("rim_format: RIM has a certificate that is not base64") from error
    return tuple(link for der in raw for link in chain.load(_der, der, "rim_format"))


def _der(data: bytes) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(data)]


def _signed(document: _Element, signature: _Element, leaf: chain.Link) -> tuple[_Element | None, list[str]]:
    """The element that the leaf's key signed, or None and why."""
    from lxml import etree
    from signxml.algorithms import DigestAlgorithm, SignatureMethod
    from signxml.exceptions import SignXMLException
    from signxml.verifier import SignatureConfiguration, XMLVerifier

    settings = SignatureConfiguration(
        location="./",
        expect_references=1,
        signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
        digest_algorithms=frozenset({DigestAlgorithm.SHA384}),
        verification_time=leaf.since,  # the library would take the clock's; time is a question of its own here
    )
    try:
        result: Any = XMLVerifier().verify(document, x509_cert=leaf.certificate, expect_config=settings)
    except (SignXMLException, etree.LxmlError, InvalidSignature, UnsupportedAlgorithm) as error:
        return None, [f"signature: {' '.join(str(error).split())[:120] or type(error).__name__}"]
    except (ValueError, TypeError, NotImplementedError) as error:
        return None, [f"signature: {type(error).__name__}"]
    element: _Element | None = result.signed_xml
    if element is None or [child.tag for child in element] != [child.tag for child in document[:-1]]:
        return None, ["signature: covers something else than the whole document"]
    return element, []


def _golden(signed: _Element) -> dict[int, tuple[bytes, ...]]:
    golden: dict[int, tuple[bytes, ...]] = {}
    seen: set[int] = set()
    for resource in signed[2]:
        index, alternatives = resource.get("index", ""), resource.get("alternatives", "")
        if resource.tag != f"{SWID}Resource" or resource.get("type") != "Measurement" or len(resource):
            raise ConfigError("rim_format: RIM's payload holds something else than measurements")
        if not re.fullmatch(r"[0-9]{1,3}", index) or not re.fullmatch(r"[1-9][0-9]?", alternatives):
            raise ConfigError("rim_format: RIM has a measurement without index or number of alternatives")
        if int(index) in seen:
            raise ConfigError(f"rim_format: RIM lists measurement {index} twice")
        seen.add(int(index))
        if resource.get("active") == "False":
            continue
        digests = [resource.get(f"{SHA384}Hash{position}", "") for position in range(int(alternatives))]
        whole = all(re.fullmatch("[0-9a-fA-F]{96}", digest) for digest in digests)
        if resource.get("active") != "True" or not whole:
            raise ConfigError(f"rim_format: RIM's measurement {index} has no SHA-384 digests, or no active flag")
        golden[int(index)] = tuple(bytes.fromhex(digest) for digest in digests)
    if not golden:
        raise ConfigError("rim_format: RIM has no active measurement")
    return golden
