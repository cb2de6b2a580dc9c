"""What a SEV-SNP report must say to be wanted: every field with a value or ``any``.

Names are those of the attestation report (AMD 56860 r1.58, table "ATTESTATION_REPORT"), lower case. A bool is the value
that must be there, a number a minimum, a list the exact and whole set of accepted values. REPORT_DATA is not here: it
is different in every report, and the caller compares it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from cordon.documents import Document

Any_ = Literal["any"]
Product = Literal["Milan", "Genoa", "Turin"]
Signer = Literal["vcek", "vlek"]

Hex16 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Hex48 = Annotated[str, Meta(pattern=r"^[0-9a-f]{96}\Z")]
Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Bits = Annotated[int, Meta(ge=0, lt=1 << 62)]
Seconds = Annotated[int, Meta(gt=0)]
Vmpl = Annotated[int, Meta(ge=0, le=3)]
Some = Meta(min_length=1)  # an empty set would accept nothing: surely not what was meant
CspId = Annotated[str, Meta(min_length=1, max_length=256)]


class Tcb(Document, frozen=True, kw_only=True):
    """Security version numbers of Milan and Genoa (TCB_VERSION), each a minimum."""

    boot_loader: U8
    tee: U8
    snp: U8
    microcode: U8


class TcbTurin(Document, frozen=True, kw_only=True):
    """Security version numbers of Turin (TCB_VERSION), each a minimum."""

    fmc: U8
    boot_loader: U8
    tee: U8
    snp: U8
    microcode: U8


class Minima(Document, frozen=True, kw_only=True):
    """A TCB version's minimum for each product: their numbers cannot be compared with each other."""

    milan: Tcb | Any_
    genoa: Tcb | Any_
    turin: TcbTurin | Any_


class Firmware(Document, frozen=True, kw_only=True):
    """Minimum version of the SEV firmware; major counts before minor, minor before build."""

    major: U8
    minor: U8
    build: U8


class Abi(Document, frozen=True, kw_only=True):
    """Minimum of the minimum that the guest's owner asked the firmware's ABI for; major counts before minor."""

    major: U8
    minor: U8


class GuestPolicyBits(Document, frozen=True, kw_only=True):
    """POLICY of the guest (table "Guest Policy"): what its owner allows the host to do.

    ``debug`` is false or ``any``: the host reads a debug guest's memory.
    """

    abi: Abi | Any_
    smt: bool | Any_
    migrate_ma: bool | Any_
    debug: bool | Any_
    single_socket: bool | Any_
    cxl_allow: bool | Any_
    mem_aes_256_xts: bool | Any_
    rapl_dis: bool | Any_
    ciphertext_hiding_dram: bool | Any_
    page_swap_disable: bool | Any_

    def __post_init__(self) -> None:
        if self.debug is True:
            raise ValueError("policy.debug: a policy cannot want a guest that the host can read: want false or any")


class PlatformBits(Document, frozen=True, kw_only=True):
    """PLATFORM_INFO: how the host is set up.

    ``undefined``: whether bits are set that r1.58 does not define; Turin's firmware sets one.
    """

    smt_en: bool | Any_
    tsme_en: bool | Any_
    ecc_en: bool | Any_
    rapl_dis: bool | Any_
    ciphertext_hiding_dram_en: bool | Any_
    alias_check_complete: bool | Any_
    tio_en: bool | Any_
    undefined: bool | Any_


class SnpPolicy(Document, frozen=True, kw_only=True):
    """What is wanted of a SEV-SNP report, its signer and its platform.

    ``provisional_firmware`` false: firmware that is not committed yet, so that the host can still go back from, is
    refused. ``migration_agent`` false: no migration agent is bound to the guest (REPORT_ID_MA is all ones). ``crl``
    required: a verdict without AMD's list of revoked certificates, or with one issued more than ``crl_max_age_s`` ago,
    is no pass. ``chip_id`` and ``csp_id`` name machines and, under a VLEK, the cloud; what the evidence does not state
    is in no set.
    """

    product: Annotated[tuple[Product, ...], Some] | Any_
    signer: Annotated[tuple[Signer, ...], Some] | Any_
    report_version: Annotated[tuple[Literal[2, 3, 5], ...], Some] | Any_
    measurement: Annotated[tuple[Hex48, ...], Some] | Any_
    host_data: Annotated[tuple[Hex32, ...], Some] | Any_
    family_id: Annotated[tuple[Hex16, ...], Some] | Any_
    image_id: Annotated[tuple[Hex16, ...], Some] | Any_
    id_key_digest: Annotated[tuple[Hex48, ...], Some] | Any_
    author_key_digest: Annotated[tuple[Hex48, ...], Some] | Any_
    guest_svn: U32 | Any_
    vmpl: Annotated[tuple[Vmpl, ...], Some] | Any_
    policy: GuestPolicyBits
    platform_info: PlatformBits
    migration_agent: bool | Any_
    chip_id: Annotated[tuple[Hex64, ...], Some] | Any_
    csp_id: Annotated[tuple[CspId, ...], Some] | Any_
    provisional_firmware: bool | Any_
    current_tcb: Minima
    reported_tcb: Minima
    committed_tcb: Minima
    launch_tcb: Minima
    current_firmware: Firmware | Any_
    committed_firmware: Firmware | Any_
    launch_mit_vector: Bits | Any_
    current_mit_vector: Bits | Any_
    crl: Literal["required", "any"]
    crl_max_age_s: Seconds | Any_
