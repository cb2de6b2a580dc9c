"""Is the TDREPORT inside the HCL report the one that the TD quote was made from?

TDREPORT_STRUCT (Intel TDX Module ABI; 1024 bytes) is authenticated by a MAC that only the same CPU can check, so the
quote counts, and the TDREPORT must say the same. Offsets: REPORTMACSTRUCT 0 (type 0, reserved 4, CPUSVN 16,
TEE_TCB_INFO_HASH 32, TEE_INFO_HASH 80, REPORTDATA 128, reserved 192, MAC 224), TEE_TCB_INFO 256 (239 bytes), reserved
495, TDINFO 512 (512 bytes). Nobody but that CPU can check CPUSVN and MAC; nothing is read from them.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields

from cordon.attest.dcap import quote as dcap_quote
from cordon.attest.dcap import reports
from cordon.attest.verdict import Check, check


def compare(report: bytes, quote: bytes) -> Check:
    """``td_report``: the TDREPORT (1024 bytes) agrees with itself and with the body of ``quote``.

    Raises:
        ConfigError: the quote cannot be parsed.
    """
    wrong = []
    if report[0] != 0x81 or report[1] or report[2] > 1 or report[3]:
        wrong.append(f"type is {report[:4].hex()}, want 81, 00, version 00 or 01, 00")
    if any(report[4:16]) or any(report[192:224]) or any(report[495:512]):
        wrong.append("reserved bytes are not zero")
    if hashlib.sha384(report[256:495]).digest() != report[32:80]:
        wrong.append("TEE_TCB_INFO_HASH does not match TEE_TCB_INFO")
    if hashlib.sha384(report[512:1024]).digest() != report[80:128]:
        wrong.append("TEE_INFO_HASH does not match TDINFO")
    parsed = dcap_quote.parse(quote)
    if parsed.body_kind == "sgx":
        wrong.append("the quote is an SGX enclave's")
    else:
        said, quoted = reports.td_report(_body(report, parsed.body_kind)), reports.td_report(parsed.body)
        differ = [each.name for each in fields(said) if getattr(said, each.name) != getattr(quoted, each.name)]
        if differ:
            wrong.append(f"differs from the quote in {', '.join(differ)}")
    return check("td_report", not wrong, "; ".join(wrong) or "TDREPORT and TD quote say the same", "genuine")


def _body(report: bytes, kind: dcap_quote.Body) -> bytes:
    """The quote's body: TEE_TCB_INFO from TEE_TCB_SVN on, TDINFO up to RTMR3, REPORTDATA, and what 1.5 adds."""
    body = report[264:384] + report[512:912] + report[128:192]
    return body + report[384:400] + report[912:960] if kind == "tdx_1.5" else body
