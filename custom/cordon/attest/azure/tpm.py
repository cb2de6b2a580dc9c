"""TPM 2.0 quotes (TPM 2.0 Library Part 2, section 10.12: TPMS_ATTEST), big-endian.

The AK of Azure's vTPM is a restricted RSA signing key with scheme RSASSA/SHA-256 (microsoft/openvmm, vm/devices/tpm):
restricted means that the TPM signs nothing with it that starts with TPM_GENERATED but was not made by the TPM itself.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from cordon.attest.azure import jose
from cordon.attest.azure.policy import AzurePolicy
from cordon.attest.verdict import ABSENT, Check, against, check, listed
from cordon.errors import ConfigError

TPM_GENERATED = 0xFF544347
ATTEST_QUOTE = 0x8018
ALG_SHA256 = 0x000B
PCR_COUNT = 24
PCR_SIZE = 32
MAX_MESSAGE = 2048
MAX_SIGNATURE = 2048


@dataclass(frozen=True)
class TpmQuote:
    """A quote as it travels: TPMS_ATTEST, its RSA signature, and the PCR values that were quoted, in ascending order.

    Without ``pcrs`` (empty) only the digest of the PCRs is known.
    """

    message: bytes
    signature: bytes
    pcrs: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Attest:
    """TPMS_ATTEST. ``selection``: (hash algorithm, PCR indices) per bank; as ``pcr_digest`` None in no quote."""

    magic: int
    type: int
    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: int
    firmware_version: int
    selection: tuple[tuple[int, tuple[int, ...]], ...] | None
    pcr_digest: bytes | None


class _Reader:
    """Takes a TPM structure apart; a ConfigError ``tpm_quote_format`` where bytes are missing."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ConfigError(f"tpm_quote_format: ends at {len(self.data)} bytes, want {self.at + size}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))


def parse_attest(message: bytes) -> Attest:
    """TPMS_ATTEST from its bytes; ConfigError ``tpm_quote_format`` if it cannot be read or is not used up."""
    if len(message) > MAX_MESSAGE:
        raise ConfigError(f"tpm_quote_format: {len(message)} bytes, at most {MAX_MESSAGE}")
    reader = _Reader(message)
    magic, kind = reader.number(4), reader.number(2)
    signer, extra = reader.sized(), reader.sized()
    clock, resets, restarts, safe = struct.unpack(">QIIB", reader.take(17))
    firmware = reader.number(8)
    selection: tuple[tuple[int, tuple[int, ...]], ...] | None = None
    digest: bytes | None = None
    if kind == ATTEST_QUOTE:
        banks = []
        for _ in range(min(reader.number(4), MAX_MESSAGE)):
            algorithm = reader.number(2)
            bitmap = int.from_bytes(reader.take(reader.number(1)), "little")
            banks.append((algorithm, tuple(index for index in range(bitmap.bit_length()) if bitmap >> index & 1)))
        selection, digest = tuple(banks), reader.sized()
        if reader.at != len(message):
            raise ConfigError(f"tpm_quote_format: {len(message)} bytes, the quote ends at {reader.at}")
    return Attest(magic, kind, signer, extra, clock, resets, restarts, safe, firmware, selection, digest)


def pcr_values(attest: Attest, quote: TpmQuote) -> dict[int, bytes] | None:
    """Index -> value, if exactly the SHA-256 bank was quoted and one value came for each index; else None."""
    if attest.selection is None or len(attest.selection) != 1:
        return None
    algorithm, indices = attest.selection[0]
    if algorithm != ALG_SHA256 or len(indices) != len(quote.pcrs) or any(index >= PCR_COUNT for index in indices):
        return None
    return dict(zip(indices, quote.pcrs, strict=True))


def checks(
    quote: TpmQuote, attest: Attest, ak: RSAPublicKey | None, nonce: bytes | None, statement: bytes | None
) -> list[Check]:
    """Whether the AK's TPM made this quote, for ``nonce`` (else for ``statement``), over these PCR values."""
    return [
        check(
            "tpm_magic",
            attest.magic == TPM_GENERATED,
            f"magic is {attest.magic:08x}, want {TPM_GENERATED:08x}",
            "genuine",
        ),
        check(
            "tpm_type", attest.type == ATTEST_QUOTE, f"type is {attest.type:04x}, want {ATTEST_QUOTE:04x}", "genuine"
        ),
        check("tpm_safe", attest.safe in (0, 1), f"safe is {attest.safe}, want 0 or 1", "genuine"),
        _signature(quote, ak),
        _extra_data(attest, nonce, statement),
        *_pcr_digest(attest, quote),
    ]


def _signature(quote: TpmQuote, ak: RSAPublicKey | None) -> Check:
    if ak is None:
        return Check("tpm_signature", "not_checked", "there is no usable AK", "genuine")
    holds = jose.rs256_holds(ak, quote.signature, quote.message)
    said = f"RSASSA/SHA-256 of the AK in the runtime claims {'holds' if holds else 'does not hold'}"
    return check("tpm_signature", holds, said, "genuine")


def _extra_data(attest: Attest, nonce: bytes | None, statement: bytes | None) -> Check:
    """An old quote would show how the VM once booted."""
    found = f"extraData is {attest.extra_data.hex() or 'empty'}"
    if nonce is not None:
        return check("tpm_extra_data", attest.extra_data == nonce, f"{found}, want the nonce {nonce.hex()}")
    if statement is not None and attest.extra_data == statement:
        return check("tpm_extra_data", True, f"{found}, SHA-256(user-data)")
    return Check("tpm_extra_data", "not_checked", f"{found}, not SHA-256(user-data), and no nonce was given")


def _pcr_digest(attest: Attest, quote: TpmQuote) -> list[Check]:
    if attest.selection is None or attest.pcr_digest is None:
        return [
            Check(code, "not_checked", "this is no quote of PCRs", "genuine")
            for code in ("pcr_selection", "pcr_digest")
        ]
    banks = "; ".join(f"{algorithm:04x}: {shown(indices)}" for algorithm, indices in attest.selection) or "none"
    one = len(attest.selection) == 1 and attest.selection[0][0] == ALG_SHA256
    small = one and all(index < PCR_COUNT for index in attest.selection[0][1]) and bool(attest.selection[0][1])
    selection = check("pcr_selection", small, f"quoted {banks}; want PCRs of the SHA-256 bank (000b) alone", "genuine")
    if not quote.pcrs:
        return [selection, Check("pcr_digest", "not_checked", "no PCR values came with the quote", "policy")]
    digest = hashlib.sha256(b"".join(quote.pcrs)).digest()
    matches = digest == attest.pcr_digest and pcr_values(attest, quote) is not None
    detail = f"{len(quote.pcrs)} values hash to {digest.hex()}, quoted is {attest.pcr_digest.hex()} of {banks}"
    return [selection, check("pcr_digest", matches, detail, "genuine")]


def policy_checks(attest: Attest, quote: TpmQuote, policy: AzurePolicy | None) -> list[Check]:
    """``tpm_firmware``, and ``pcr_<index>`` for every index that the policy names."""
    found = [listed("tpm_firmware", f"{attest.firmware_version:016x}", None if policy is None else policy.tpm_firmware)]
    if policy is None:
        return [*found, Check("pcrs", "not_checked", ABSENT)]
    if policy.pcrs == "any":
        return [*found, Check("pcrs", "not_checked", "the policy says any", waived=True)]
    values = pcr_values(attest, quote) or {}
    return found + [_pcr(int(index), values.get(int(index)), wanted) for index, wanted in policy.pcrs.items()]


def _pcr(index: int, value: bytes | None, wanted: tuple[str, ...] | Literal["any"]) -> Check:
    said = f"PCR {index}: {'no value was quoted' if value is None else value.hex()}"
    return against(f"pcr_{index}", said, wanted, lambda allowed: value is not None and value.hex() in allowed)


def shown(indices: tuple[int, ...]) -> str:
    """PCR indices in a message: runs as a-b."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs) or "none"
