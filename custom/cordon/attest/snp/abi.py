"""The attestation report as the SEV firmware writes it (AMD 56860 r1.58, table "ATTESTATION_REPORT Structure").

All integers are little-endian. 1184 bytes: 0x000..0x29F are signed, 0x2A0..0x49F hold the signature.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cordon.errors import ConfigError

REPORT_SIZE = 0x4A0
SIGNED_SIZE = 0x2A0
VERSIONS = (2, 3, 5)
ECDSA_P384_SHA384 = 1  # SIGNATURE_ALGO
SIGNING_KEYS = {0: "vcek", 1: "vlek"}  # SIGNING_KEY; 7: not signed, 2..6 reserved
NO_MIGRATION_AGENT = b"\xff" * 32  # REPORT_ID_MA of a guest without one

# Bits of POLICY. Below them stand ABI_MINOR (7:0) and ABI_MAJOR (15:8); bit 17 must be one, 26 and above zero.
POLICY_BITS = {
    "smt": 16,
    "migrate_ma": 18,
    "debug": 19,
    "single_socket": 20,
    "cxl_allow": 21,
    "mem_aes_256_xts": 22,
    "rapl_dis": 23,
    "ciphertext_hiding_dram": 24,
    "page_swap_disable": 25,
}
POLICY_ONE = 1 << 17
POLICY_ZERO = ~((1 << 26) - 1)

PLATFORM_BITS = {
    "smt_en": 0,
    "tsme_en": 1,
    "ecc_en": 2,
    "rapl_dis": 3,
    "ciphertext_hiding_dram_en": 4,
    "alias_check_complete": 5,
    "tio_en": 7,
}
# The table says zero for the rest, yet firmware 1.55.61 (Turin) sets bit 6: no reason to call a report forged.
PLATFORM_UNDEFINED = ~0b1011_1111

# TCB_VERSION: component -> byte. The other bytes are reserved.
_ZEN3_ZEN4 = {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7}
TCB_LAYOUT = {
    "Milan": _ZEN3_ZEN4,
    "Genoa": _ZEN3_ZEN4,
    "Turin": {"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7},
}

# CPUID family, first and last model -> product line (Genoa's line includes Bergamo and Siena: the same ARK and ASK).
_MODELS = (
    (0x19, 0x00, 0x0F, "Milan"),
    (0x19, 0x10, 0x1F, "Genoa"),
    (0x19, 0xA0, 0xAF, "Genoa"),
    (0x1A, 0x00, 0x11, "Turin"),
)

_REPORT = struct.Struct(
    "<I I Q 16s 16s I I"  # 0x000 version, guest_svn, policy, family_id, image_id, vmpl, signature_algo
    "8s Q I 4s 64s 48s 32s"  # 0x038 current_tcb, platform_info, flags, 0, report_data, measurement, host_data
    "48s 48s 32s 32s"  # 0x0E0 id_key_digest, author_key_digest, report_id, report_id_ma
    "8s 3s 21s 64s"  # 0x180 reported_tcb, cpuid family/model/stepping (v3), 0, chip_id
    "8s 3s B 3s B"  # 0x1E0 committed_tcb, current build/minor/major, 0, committed build/minor/major, 0
    "8s Q Q 152s"  # 0x1F0 launch_tcb, launch_mit_vector (v5), current_mit_vector (v5), 0
    "72s 72s 368s"  # 0x2A0 r, s, 0
)


@dataclass(frozen=True, slots=True)
class Report:
    """A report's fields, named as in AMD's table; byte strings as they stand in it.

    ``cpuid`` is (family, model, stepping), from version 3 on; the mitigation vectors are there from version 5 on.
    ``current_version`` and ``committed_version`` are (major, minor, build); ``r`` and ``s`` make up the signature.
    ``nonzero`` names the reserved parts that are not as the table says, apart from those of the TCB versions.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algo: int
    current_tcb: bytes
    platform_info: int
    author_key_en: bool
    mask_chip_key: bool
    signing_key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_tcb: bytes
    launch_mit_vector: int | None
    current_mit_vector: int | None
    signed: bytes
    r: int
    s: int
    nonzero: tuple[str, ...]

    @staticmethod
    def parse(data: bytes) -> Report:
        """The report in ``data``.

        Raises:
            ConfigError: ``report_format``: not 1184 bytes, or a version whose layout is not known here.
        """
        if not isinstance(data, bytes):
            raise ConfigError(f"report_format: report is {type(data).__name__}, want bytes")
        if len(data) != REPORT_SIZE:
            raise ConfigError(f"report_format: report has {len(data)} bytes, want {REPORT_SIZE}")
        # fmt: off
        (version, guest_svn, policy, family_id, image_id, vmpl, signature_algo,
         current_tcb, platform_info, flags, zero_4c, report_data, measurement, host_data,
         id_key_digest, author_key_digest, report_id, report_id_ma,
         reported_tcb, cpuid, zero_18b, chip_id,
         committed_tcb, current, zero_1eb, committed, zero_1ef,
         launch_tcb, launch_mit, current_mit, zero_208,
         r, s, zero_330) = _REPORT.unpack(data)
        # fmt: on
        if version not in VERSIONS:
            raise ConfigError(f"report_format: report has version {version}, want one of 2, 3, 5")
        reserved = (
            ("policy bit 17 (must be one)", not policy & POLICY_ONE),
            ("policy bits 26 and above", policy & POLICY_ZERO),
            ("flags bits 5 and above", flags >> 5),
            ("0x04C..0x04F", any(zero_4c)),
            ("0x188..0x18A", version < 3 and any(cpuid)),
            ("0x18B..0x19F", any(zero_18b)),
            ("0x1EB", zero_1eb),
            ("0x1EF", zero_1ef),
            ("0x1F8..0x207", version < 5 and (launch_mit or current_mit)),
            ("0x208..0x29F", any(zero_208)),
            ("the upper 24 bytes of r", any(r[48:])),
            ("the upper 24 bytes of s", any(s[48:])),
            # Not signed: whoever passes the report on could write here, and make one report look like many.
            ("0x330..0x49F", any(zero_330)),
        )
        return Report(
            version=version,
            guest_svn=guest_svn,
            policy=policy,
            family_id=family_id,
            image_id=image_id,
            vmpl=vmpl,
            signature_algo=signature_algo,
            current_tcb=current_tcb,
            platform_info=platform_info,
            author_key_en=bool(flags & 1),
            mask_chip_key=bool(flags & 2),
            signing_key=flags >> 2 & 7,
            report_data=report_data,
            measurement=measurement,
            host_data=host_data,
            id_key_digest=id_key_digest,
            author_key_digest=author_key_digest,
            report_id=report_id,
            report_id_ma=report_id_ma,
            reported_tcb=reported_tcb,
            cpuid=(cpuid[0], cpuid[1], cpuid[2]) if version >= 3 else None,
            chip_id=chip_id,
            committed_tcb=committed_tcb,
            current_version=(current[2], current[1], current[0]),
            committed_version=(committed[2], committed[1], committed[0]),
            launch_tcb=launch_tcb,
            launch_mit_vector=launch_mit if version >= 5 else None,
            current_mit_vector=current_mit if version >= 5 else None,
            signed=data[:SIGNED_SIZE],
            r=int.from_bytes(r, "little"),
            s=int.from_bytes(s, "little"),
            nonzero=tuple(name for name, wrong in reserved if wrong),
        )

    @property
    def signer(self) -> str | None:
        """``vcek`` or ``vlek``; None if the report says that it is not signed, or has a reserved SIGNING_KEY."""
        return SIGNING_KEYS.get(self.signing_key)

    @property
    def product(self) -> str | None:
        """The product line of the CPU; None for a CPU that is not known here and for version 2, which does not say."""
        if self.cpuid is None:
            return None
        family, model, _ = self.cpuid
        return next(
            (line for wanted, first, last, line in _MODELS if family == wanted and first <= model <= last), None
        )

    @property
    def abi(self) -> tuple[int, int]:
        """(major, minor) of the oldest firmware ABI that the guest's owner allows."""
        return self.policy >> 8 & 0xFF, self.policy & 0xFF


def bits(value: int, names: dict[str, int]) -> dict[str, bool]:
    """The named bits of POLICY or PLATFORM_INFO."""
    return {name: bool(value >> bit & 1) for name, bit in names.items()}


def components(tcb: bytes, product: str) -> dict[str, int]:
    """The security version numbers in a TCB_VERSION of 8 bytes."""
    return {name: tcb[index] for name, index in TCB_LAYOUT[product].items()}


def reserved_tcb_bytes(tcb: bytes, product: str) -> list[int]:
    """Indices of the reserved bytes of a TCB_VERSION that are not zero."""
    used = TCB_LAYOUT[product].values()
    return [index for index, byte in enumerate(tcb) if byte and index not in used]
