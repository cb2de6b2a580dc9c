"""A stand-in for Azure: paravisor (HCL reports), vTPM (quotes by its AK) and Microsoft Azure Attestation (tokens).

Everything is built from the published layouts and not with the code under test. Keys are made once per test run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cordon.attest.azure import TpmQuote

VM_ID = "26F8BC30-774E-4290-8E7A-535F3B672AEE"
ISSUER = "https://sharedneu.neu.attest.azure.net"
POLICY_HASH = "wm9mHlvTU82e8UqoOy1Yj1FBRSNkfe99-69IYDq9eWs"
FIRMWARE_VERSION = 0x2020031200120003
PCRS = tuple(hashlib.sha256(b"pcr %d" % index).digest() for index in range(24))


@functools.cache
def key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The RSA key called ``name``: the same one throughout a test run."""
    return rsa.generate_private_key(65537, bits)


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def jwk(private: rsa.RSAPrivateKey, kid: str, **more: Any) -> dict[str, Any]:
    numbers = private.public_key().public_numbers()
    modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
    return {"kid": kid, "kty": "RSA", "e": b64url(numbers.e.to_bytes(3, "big")), "n": b64url(modulus), **more}


# Paravisor


def runtime_claims(user_data: bytes = bytes(64), **changes: Any) -> dict[str, Any]:
    """The runtime claims of OpenHCL; ``changes`` replace members, None removes one."""
    claims = {
        "keys": [
            jwk(key("ak"), "HCLAkPub", key_ops=["sign"]),
            jwk(key("ek"), "HCLEkPub", key_ops=["encrypt"]),
        ],
        "vm-configuration": configuration(),
        "user-data": user_data.hex(),
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


def configuration(**changes: Any) -> dict[str, Any]:
    found = {
        "root-cert-thumbprint": "6nZZnYaJc4KqUZ_yvA-mucFdYNouvlPnITnNMXsHl-0",
        "console-enabled": False,
        "interactive-console-enabled": False,
        "secure-boot": True,
        "tpm-enabled": True,
        "tpm-persisted": True,
        "filtered-vpci-devices-allowed": False,
        "vmUniqueId": VM_ID,
    }
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


def encode(claims: Mapping[str, Any]) -> bytes:
    return json.dumps(claims, separators=(",", ":")).encode()


def report_data(claims_json: bytes) -> bytes:
    """What the paravisor puts into the hardware's report."""
    return hashlib.sha256(claims_json).digest() + bytes(32)


def hcl_report(hardware: bytes, claims_json: bytes, tee: str = "snp", size: int = 2600, **changes: Any) -> bytes:
    """An HCL report around ``hardware``, zero-padded to ``size``; ``changes`` replace header fields by name."""
    length = len(claims_json)
    fields = {
        "signature": b"HCLA",
        "version": 2,
        "report_size": 32 + 1184 + 20 + length,
        "request_type": 2,
        "status": 0,
        "reserved": bytes(12),
        "data_size": 20 + length,
        "data_version": 1,
        "report_type": {"snp": 2, "tdx": 4}[tee],
        "hash_type": 1,
        "variable_data_size": length,
        **changes,
    }
    values = list(fields.values())
    head = struct.pack("<4sIIII12s", *values[:6])
    body = head + hardware.ljust(1184, b"\0") + struct.pack("<5I", *values[6:]) + claims_json
    return body.ljust(size, b"\0")


# vTPM


def attest(extra_data: bytes, pcrs: tuple[bytes, ...] = PCRS, **changes: Any) -> bytes:
    """TPMS_ATTEST of a quote over all PCRs of the SHA-256 bank; ``changes`` replace fields by name."""
    fields = {
        "magic": 0xFF544347,
        "type": 0x8018,
        "signer": b"\x00\x0b" + hashlib.sha256(b"name of the AK").digest(),
        "safe": 1,
        "firmware": FIRMWARE_VERSION,
        "banks": ((0x000B, b"\xff\xff\xff"),),
        "digest": hashlib.sha256(b"".join(pcrs)).digest(),
        **changes,
    }
    out = struct.pack(">IH", fields["magic"], fields["type"])
    out += struct.pack(">H", len(fields["signer"])) + fields["signer"]
    out += struct.pack(">H", len(extra_data)) + extra_data
    out += struct.pack(">QIIBQ", 123456, 3, 0, fields["safe"], fields["firmware"])
    out += struct.pack(">I", len(fields["banks"]))
    for algorithm, bitmap in fields["banks"]:
        out += struct.pack(">HB", algorithm, len(bitmap)) + bitmap
    return out + struct.pack(">H", len(fields["digest"])) + fields["digest"]


def tpm_quote(extra_data: bytes, pcrs: tuple[bytes, ...] = PCRS, signer: str = "ak", **changes: Any) -> TpmQuote:
    message = attest(extra_data, pcrs, **changes)
    return TpmQuote(message, rs256(key(signer), message), pcrs)


def rs256(private: rsa.RSAPrivateKey, message: bytes) -> bytes:
    return private.sign(message, padding.PKCS1v15(), hashes.SHA256())


# Microsoft Azure Attestation


def token_claims(now: datetime, challenge: bytes, tee: str = "sevsnpvm", **changes: Any) -> dict[str, Any]:
    """The body of a guest attestation token; ``changes`` replace members, None removes one."""
    at = int(now.timestamp())
    body = {
        "iss": ISSUER,
        "iat": at - 60,
        "nbf": at - 60,
        "exp": at + 3600,
        "jti": "5d3c",
        "secureboot": True,
        "x-ms-attestation-type": "azurevm",
        "x-ms-azurevm-debuggersdisabled": True,
        "x-ms-azurevm-vmid": VM_ID,
        "x-ms-isolation-tee": {"sevsnpvm": snp_tee, "tdxvm": tdx_tee}[tee](),
        "x-ms-policy-hash": POLICY_HASH,
        "x-ms-runtime": {"client-payload": {"nonce": base64.b64encode(challenge).decode()}, "keys": []},
        "x-ms-ver": "1.0",
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


def snp_tee(**changes: Any) -> dict[str, Any]:
    found = {
        "x-ms-attestation-type": "sevsnpvm",
        "x-ms-compliance-status": "azure-compliant-cvm",
        "x-ms-runtime": {"keys": [], "vm-configuration": configuration(), "user-data": "AB" * 64},
        "x-ms-sevsnpvm-bootloader-svn": 4,
        "x-ms-sevsnpvm-guestsvn": 12,
        "x-ms-sevsnpvm-hostdata": "00" * 32,
        "x-ms-sevsnpvm-idkeydigest": "94" * 48,
        "x-ms-sevsnpvm-is-debuggable": False,
        "x-ms-sevsnpvm-launchmeasurement": "6a" * 48,
        "x-ms-sevsnpvm-microcode-svn": 219,
        "x-ms-sevsnpvm-migration-allowed": False,
        "x-ms-sevsnpvm-reportdata": "cd" * 32 + "00" * 32,
        "x-ms-sevsnpvm-snpfw-svn": 24,
        "x-ms-sevsnpvm-tee-svn": 0,
        "x-ms-sevsnpvm-vmpl": 0,
        **changes,
    }
    return {name: value for name, value in found.items() if value is not None}


def tdx_tee(**changes: Any) -> dict[str, Any]:
    found = {
        "x-ms-attestation-type": "tdxvm",
        "x-ms-compliance-status": "azure-compliant-cvm",
        "x-ms-runtime": {"keys": [], "vm-configuration": configuration(), "user-data": "ab" * 64},
        "attester_tcb_status": "UpToDate",
        "dbgstat": "disabled",
        "tdx_mrtd": "02" * 48,
        "tdx_mrconfigid": "00" * 48,
        "tdx_report_data": "cd" * 32 + "00" * 32,
        "tdx_td_attributes": "0000001000000000",
        "tdx_td_attributes_debug": False,
        **changes,
    }
    return {name: value for name, value in found.items() if value is not None}


def token(body: Mapping[str, Any] | bytes, signer: str = "maa", **header: Any) -> bytes:
    """A compact JWS; ``header`` adds to or replaces alg, kid and typ. ``body`` as bytes goes in as it is."""
    head = {"alg": "RS256", "kid": signer, "typ": "JWT", "jku": f"{ISSUER}/certs", **header}
    payload = body if isinstance(body, bytes) else encode(body)
    signed = f"{b64url(encode(head))}.{b64url(payload)}".encode()
    return signed + b"." + b64url(rs256(key(signer), signed)).encode()


def jwks(*signers: str) -> bytes:
    """The key set of an MAA instance; each key is called like its signer."""
    return encode({"keys": [jwk(key(each), each) for each in signers or ("maa",)]})
