"""The bodies of quotes: TD report 1.0 and 1.5, and the SGX enclave report (also that of the quoting enclave).

Sources: Intel TDX DCAP Quoting Library API, A.3.2 (TD report); Intel SDM volume 3D, chapter 38 (REPORT, ATTRIBUTES);
Intel TDX Module ABI, TD_PARAMS (ATTRIBUTES, XFAM), and Linux ``arch/x86/coco/tdx/debug.c`` for the names of bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields, replace

# Bits that have a name here are judged by the policy, or (icssd, tpa) take nothing from the TD's security. Any other
# bit means that the TD has a property which nobody here has read about.
TD_ATTRIBUTES = {
    0: "debug",
    4: "hgs_plus_prof",
    5: "perf_prof",
    6: "pmt_prof",
    16: "icssd",
    27: "lass",
    28: "sept_ve_disable",
    29: "migratable",
    30: "pks",
    31: "kl",
    62: "tpa",
    63: "perfmon",
}
PROFILING = ("hgs_plus_prof", "perf_prof", "pmt_prof")
# XSAVE components that a TD may have: x87, SSE, AVX, AVX-512, PT, PKRU, CET, UINTR, LBR, AMX, APX.
XFAM_KNOWN = 0x0EDBE7
XFAM_ALWAYS = 0x3  # x87 and SSE

SGX_FLAGS = {
    0: "init",
    1: "debug",
    2: "mode64",
    4: "provision_key",
    5: "einittoken_key",
    6: "cet",
    7: "key_separation",
    10: "aex_notify",
}


@dataclass(frozen=True)
class TdReport:
    """TD report 1.0; the last two fields are there in 1.5 only. The order is that of the bytes."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None

    @property
    def flags(self) -> dict[str, bool]:
        """TD attributes by name."""
        return _named(self.td_attributes, TD_ATTRIBUTES)

    @property
    def unknown_flags(self) -> int:
        """TD attribute bits without a name here."""
        return _unnamed(self.td_attributes, TD_ATTRIBUTES)


@dataclass(frozen=True)
class SgxReport:
    """Enclave report. ``reserved`` are the bytes that must be zero, in their order."""

    cpu_svn: bytes
    misc_select: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes
    reserved: bytes

    @property
    def flags(self) -> dict[str, bool]:
        """Enclave attributes by name."""
        return _named(self.attributes[:8], SGX_FLAGS)

    @property
    def unknown_flags(self) -> int:
        """Attribute bits without a name here."""
        return _unnamed(self.attributes[:8], SGX_FLAGS)


TD_LAYOUT = struct.Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
SGX_LAYOUT = struct.Struct("<16s4s12s16s16s32s32s32s32s64sHHH42s16s64s")


def td_report(body: bytes) -> TdReport:
    """``body``: 584 bytes (1.0) or 648 (1.5)."""
    base, more = TdReport(*TD_LAYOUT.unpack_from(body)), body[TD_LAYOUT.size :]
    return replace(base, tee_tcb_svn2=more[:16], mr_service_td=more[16:]) if more else base


def sgx_report(body: bytes) -> SgxReport:
    """``body``: 384 bytes."""
    values = SGX_LAYOUT.unpack(body)
    gaps = (2, 6, 8, 13)
    kept = [value for place, value in enumerate(values) if place not in gaps]
    return SgxReport(*[*kept, b"".join(values[place] for place in gaps)])


def claims(report: TdReport | SgxReport) -> dict[str, object]:
    """Every field of a report, JSON-ready, and its attribute bits by name."""
    found: dict[str, object] = {}
    for each in fields(report):
        value = getattr(report, each.name)
        if each.name != "reserved":
            found[each.name] = value.hex() if isinstance(value, bytes) else value
    return found | {"flags": [name for name, is_set in report.flags.items() if is_set]}


def _named(raw: bytes, names: dict[int, str]) -> dict[str, bool]:
    value = int.from_bytes(raw, "little")
    return {name: bool(value >> bit & 1) for bit, name in names.items()}


def _unnamed(raw: bytes, names: dict[int, str]) -> int:
    return int.from_bytes(raw, "little") & ~sum(1 << bit for bit in names)
