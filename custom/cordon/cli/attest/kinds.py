"""Which kind of evidence a file holds, told from its first bytes; nothing here judges it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import msgspec

from cordon.cli.attest.input import binary
from cordon.errors import ConfigError

SNP_SIZE = 1184
SPDM_REQUEST = b"\x11\xe0"  # SPDM 1.1 GET_MEASUREMENTS
TEE_TDX = 0x81
EVIDENCE_TYPE = re.compile(r"application/vnd\.cordon\.evidence\.v\d+\+json")
JWT = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")

KNOWN = (
    "an SEV-SNP report, a TDX or SGX quote, a GPU report or evidence file, an Azure HCL report or evidence file, an "
    "NRAS or MAA token, Cordon's evidence"
)


def recognise(data: bytes) -> tuple[str, bytes, Any]:
    """(kind, bytes, parsed JSON or None) of a file; hex text becomes the bytes it stands for.

    Kinds: snp, tdx, sgx, gpu-report, gpu-evidence, hcl, azure-evidence, nras, maa, cordon.

    Raises:
        ConfigError: ``evidence_unknown``: none of these; says what it is instead, where that can be told.
    """
    data = binary(data)
    kind = _binary_kind(data)
    if kind is not None:
        return kind, data, None
    text = data.strip()
    if JWT.fullmatch(text):
        return _token_kind(text), text, None
    if text[:1] in (b"{", b"["):
        tree = _json(text)
        return _json_kind(tree), data, tree
    raise ConfigError(f"evidence_unknown: {_instead(text)}; want {KNOWN}")


def _binary_kind(data: bytes) -> str | None:
    if data.startswith(b"HCLA"):
        return "hcl"
    if data.startswith(SPDM_REQUEST):
        return "gpu-report"
    if len(data) == SNP_SIZE and 1 <= int.from_bytes(data[:4], "little") <= 16:
        return "snp"
    version, key_type = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    if len(data) > 48 and 3 <= version <= 5 and key_type in (2, 3):
        return "tdx" if int.from_bytes(data[4:8], "little") == TEE_TDX and version > 3 else "sgx"
    return None


def _json(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"evidence_unknown: begins like JSON and is none: {error}") from error


def _json_kind(tree: Any) -> str:
    if isinstance(tree, dict):
        if EVIDENCE_TYPE.fullmatch(str(tree.get("payloadType"))):
            return "cordon"
        if "hcl_report" in tree or {"report", "quote", "vcek"} <= set(tree):
            return "azure-evidence"
        if {"evidence", "certificate"} <= set(tree):
            return "gpu-evidence"
    if isinstance(tree, list) and tree:
        if all(isinstance(each, dict) and {"evidence", "certificate"} <= set(each) for each in tree):
            return "gpu-evidence"
        if isinstance(tree[0], list) and tree[0][:1] == ["JWT"]:
            return "nras"
    raise ConfigError(f"evidence_unknown: {_json_instead(tree)}; want {KNOWN}")


def _token_kind(text: bytes) -> str:
    """MAA's tokens name their issuer; NRAS answers with a list, of which each part alone says nothing of the others."""
    issuer = str(claims_of(text).get("iss"))
    if "attest.azure" in issuer:
        return "maa"
    if "nvidia" in issuer:
        raise ConfigError("evidence_unknown: one part of an NRAS token; want the service's whole answer (a JSON list)")
    raise ConfigError(f"evidence_unknown: a JWT of {issuer[:80]!r}; want {KNOWN}")


def claims_of(token: bytes) -> dict[str, Any]:
    """The claims of a compact JWT; nobody has looked at its signature."""
    if not JWT.fullmatch(token):
        raise ConfigError("token_format: not a compact JWT: three parts in base64url")
    body = token.split(b".")[1]
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"token_format: claims are not JSON in base64url: {error}") from error
    if not isinstance(claims, dict):
        raise ConfigError("token_format: claims are no JSON object")
    return claims


def _instead(text: bytes) -> str:
    if text.startswith(b"-----BEGIN"):
        return "a certificate or key in PEM: it endorses evidence (--vek, --chain) and is none"
    if text.startswith(b"<"):
        return "an XML file, such as a RIM: reference values (--rim), no evidence"
    if text.startswith(b"\x30\x82"):
        return "a certificate or revocation list in DER: it endorses evidence (--vek, --crl) and is none"
    if text.startswith((b"version:", b"#")):
        return "a policy or another YAML file: it judges evidence (--policy) and is none"
    return f"{len(text)} bytes of an unknown kind"


def _json_instead(tree: Any) -> str:
    if isinstance(tree, dict):
        if "tcb_info" in tree:
            return "Intel's collateral: it endorses a quote (--collateral) and is no evidence"
        if "keys" in tree:
            return "a key set: it endorses tokens (--jwks) and is no evidence"
    return "JSON of an unknown kind"
