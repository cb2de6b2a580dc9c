"""Files that hold Azure evidence, as confidential-containers/trustee has them (deps/verifier az_*_vtpm/compat.rs).

* v1, v2: ``{version, tpm_quote: {signature, message, pcrs}, hcl_report, vcek | td_quote}``; the quote in hex, the rest
  base64url. In v2 the runtime claims' ``user-data`` holds the challenge too.
* before v1: no ``version``; byte strings as lists of numbers; for SNP ``{quote, report, vcek}``, the last in PEM.
* ``quote.bin``: a quote alone, little-endian u64 lengths: signature, message, number of PCRs, 32 bytes each.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from cordon.attest.azure import jose
from cordon.attest.azure.hcl import MAX_HCL, Tee
from cordon.attest.azure.tpm import MAX_MESSAGE, MAX_SIGNATURE, PCR_COUNT, PCR_SIZE, TpmQuote
from cordon.errors import ConfigError

MAX_EVIDENCE = 512 * 1024  # bytes of JSON
MAX_TD_QUOTE = 64 * 1024
MAX_VEK = 16 * 1024
CODE = "evidence_format"


@dataclass(frozen=True)
class Evidence:
    """What ``azure.verify`` takes: ``vek`` (DER or PEM) for SNP, a TD ``quote`` for TDX. ``version`` 0: before v1."""

    version: int
    tee: Tee
    hcl_report: bytes
    tpm_quote: TpmQuote
    vek: bytes | None = None
    quote: bytes | None = None


def read_evidence(data: bytes) -> Evidence:
    """Evidence from JSON; ConfigError ``evidence_format`` or ``tpm_quote_format`` if it is none."""
    body = jose.parse_object(data, CODE, MAX_EVIDENCE)
    version = body.get("version", 0)
    if type(version) is not int or version not in (0, 1, 2) or (version == 0 and "version" in body):
        raise ConfigError(f"{CODE}: version is {jose.said(body.get('version'))}, want 1, 2 or none")
    if version == 0 and "report" in body:
        _fields(body, {"quote", "report", "vcek"})
        report = _bytes(body["report"], CODE, MAX_HCL)
        return Evidence(0, "snp", report, _quote(body["quote"]), vek=_pem(body["vcek"]))
    hardware = "td_quote" if "td_quote" in body else "vcek"
    _fields(body, {"tpm_quote", "hcl_report", hardware} | ({"version"} if version else set()))
    read = _base64 if version else _bytes
    report = read(body["hcl_report"], CODE, MAX_HCL)
    quote = _quote(body["tpm_quote"])
    if hardware == "vcek":
        return Evidence(version, "snp", report, quote, vek=read(body["vcek"], CODE, MAX_VEK))
    return Evidence(version, "tdx", report, quote, quote=read(body["td_quote"], CODE, MAX_TD_QUOTE))


def read_tpm_quote(data: bytes) -> TpmQuote:
    """A TPM quote from JSON (hex or numbers) or ``quote.bin``; ConfigError ``tpm_quote_format`` if it is neither."""
    if data.lstrip()[:1] == b"{":
        return _quote(jose.parse_object(data, "tpm_quote_format", 64 * 1024))
    if len(data) > MAX_SIGNATURE + MAX_MESSAGE + PCR_COUNT * PCR_SIZE + 24:
        raise ConfigError(f"tpm_quote_format: {len(data)} bytes are no quote.bin")
    at = 0
    parts = []
    for limit, unit in ((MAX_SIGNATURE, 1), (MAX_MESSAGE, 1), (PCR_COUNT, PCR_SIZE)):
        if len(data) < at + 8:
            raise ConfigError(f"tpm_quote_format: ends at {len(data)} bytes, want a length at {at}")
        (count,) = struct.unpack_from("<Q", data, at)
        if count > limit or at + 8 + count * unit > len(data):
            raise ConfigError(f"tpm_quote_format: length {count} at {at} is too large")
        parts.append(data[at + 8 : at + 8 + count * unit])
        at += 8 + count * unit
    if at != len(data):
        raise ConfigError(f"tpm_quote_format: {len(data)} bytes, the quote ends at {at}")
    signature, message, pcrs = parts
    return TpmQuote(message, signature, tuple(pcrs[i : i + PCR_SIZE] for i in range(0, len(pcrs), PCR_SIZE)))


def _quote(body: Any) -> TpmQuote:
    code = "tpm_quote_format"
    if not isinstance(body, dict):
        raise ConfigError(f"{code}: want an object with message, signature, pcrs")
    _fields(body, {"message", "signature", "pcrs"}, code)
    pcrs = body["pcrs"]
    if not isinstance(pcrs, list) or len(pcrs) > PCR_COUNT:
        raise ConfigError(f"{code}: want a list of at most {PCR_COUNT} PCR values")
    values = tuple(_bytes(value, code, PCR_SIZE) for value in pcrs)
    if any(len(value) != PCR_SIZE for value in values):
        raise ConfigError(f"{code}: a PCR value has not {PCR_SIZE} bytes")
    return TpmQuote(_bytes(body["message"], code, MAX_MESSAGE), _bytes(body["signature"], code, MAX_SIGNATURE), values)


def _fields(body: dict[str, Any], wanted: set[str], code: str = CODE) -> None:
    if set(body) != wanted:
        raise ConfigError(f"{code}: fields are {jose.said(sorted(body))}, want {', '.join(sorted(wanted))}")


def _bytes(value: Any, code: str, limit: int) -> bytes:
    """Lower-case hex, or a list of numbers."""
    if isinstance(value, str) and len(value) <= 2 * limit:
        try:
            data = bytes.fromhex(value)
        except ValueError as error:
            raise ConfigError(f"{code}: not hex") from error
        if data.hex() == value:
            return data
    elif isinstance(value, list) and len(value) <= limit and all(type(n) is int and 0 <= n < 256 for n in value):
        return bytes(value)
    raise ConfigError(f"{code}: want at most {limit} bytes as lower-case hex or numbers")


def _base64(value: Any, code: str, limit: int) -> bytes:
    return jose.unbase64url(value, code, limit)


def _pem(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) > MAX_VEK or not value.isascii():
        raise ConfigError(f"{CODE}: vcek is not PEM text of at most {MAX_VEK} bytes")
    return value.encode("ascii")
