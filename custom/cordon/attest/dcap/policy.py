"""What a verifier of TDX quotes and one of SGX quotes may be asked to want.

Every field is present, with a value or the word ``any``. Lists are allow-sets of whole values in lower-case hex; a
``bool`` is the value that must be found; ``min_`` fields are lower bounds. Offsets and sources: README.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from cordon.documents import Document

Any_ = Literal["any"]
TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]
Advisory = Annotated[str, Meta(pattern=r"\AINTEL-SA-[0-9]{5}\Z")]
Hex4 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8}\Z")]
Hex6 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{12}\Z")]
Hex8 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Hex16 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex48 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{96}\Z")]
Hex64 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]
SvnBytes = Annotated[str, Meta(pattern=r"\A([0-9a-f]{32}|any)\Z")]  # one type: msgspec mixes up two kinds of str
Svn = Annotated[int, Meta(ge=0, le=0xFFFF)]
Count = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]


class PlatformPolicy(Document, frozen=True, kw_only=True):
    """The platform under either kind of quote: its TCB, its keys, and how fresh Intel's word on them must be.

    ``tcb_status``: worst of platform, TDX module and QE. ``Revoked`` cannot be accepted. ``advisory_ids``: the Intel
    advisories that may be open. ``out_of_date_grace_s``: for how long after the date of its TCB level an OutOfDate
    platform or QE is put up with (where ``tcb_status`` accepts OutOfDate at all). ``smt``, ``dynamic_platform``,
    ``cached_keys``: the configuration in the PCK certificate; one without it has neither value. ``fmspc``, ``ppid``,
    ``platform_instance_id``: which machines. ``min_qe_svn``: ISVSVN of the quoting enclave's report; ``min_pce_svn``:
    PCESVN of the PCK certificate. ``collateral_max_age_s``: age of TCB info, QE identity and PCK CRL.
    ``debug``: ``false``, or ``any`` (POC only): whoever runs the host reads a debug guest's memory.
    """

    tcb_status: Annotated[tuple[TcbStatus, ...], Meta(min_length=1)] | Any_
    advisory_ids: tuple[Advisory, ...] | Any_
    out_of_date_grace_s: Count | Any_
    min_tcb_evaluation_number: Count | Any_
    smt: bool | Any_
    dynamic_platform: bool | Any_
    cached_keys: bool | Any_
    fmspc: tuple[Hex6, ...] | Any_
    ppid: tuple[Hex16, ...] | Any_
    platform_instance_id: tuple[Hex16, ...] | Any_
    min_qe_svn: Svn | Any_
    min_pce_svn: Svn | Any_
    collateral_max_age_s: Count | Any_
    debug: bool | Any_

    def __post_init__(self) -> None:
        if self.debug is True:
            raise ValueError("debug: true would want a guest that its host can read; say false, or any")


class TdxPolicy(PlatformPolicy, frozen=True, kw_only=True):
    """What a trust domain must be.

    ``min_tee_tcb_svn``, ``min_tee_tcb_svn2``: 16 bytes, compared byte by byte. ``profiling``: any of HGS_PLUS_PROF,
    PERF_PROF, PMT_PROF. ``mr_service_td`` none: the quote names no service TD. ``event_log`` required: a CCEL log must
    come, and replay to RTMR0-3.
    """

    sept_ve_disable: bool | Any_
    migratable: bool | Any_
    pks: bool | Any_
    kl: bool | Any_
    lass: bool | Any_
    perfmon: bool | Any_
    profiling: bool | Any_
    xfam: tuple[Hex8, ...] | Any_
    min_tee_tcb_svn: SvnBytes
    min_tee_tcb_svn2: SvnBytes
    mr_seam: tuple[Hex48, ...] | Any_
    mr_td: tuple[Hex48, ...] | Any_
    rtmr0: tuple[Hex48, ...] | Any_
    rtmr1: tuple[Hex48, ...] | Any_
    rtmr2: tuple[Hex48, ...] | Any_
    rtmr3: tuple[Hex48, ...] | Any_
    mr_config_id: tuple[Hex48, ...] | Any_
    mr_owner: tuple[Hex48, ...] | Any_
    mr_owner_config: tuple[Hex48, ...] | Any_
    mr_service_td: tuple[Hex48, ...] | Literal["none", "any"]
    event_log: Literal["required", "any"]


class SgxPolicy(PlatformPolicy, frozen=True, kw_only=True):
    """What an enclave must be.

    ``attributes``: the 8 bytes of flags, ``xfrm``: the 8 bytes after them, as they lie in the report (little-endian).
    ``key_separation``: the KSS flag, without which ``config_id``, ``config_svn``, ``isv_ext_prod_id`` and
    ``isv_family_id`` are zero.
    """

    mr_enclave: tuple[Hex32, ...] | Any_
    mr_signer: tuple[Hex32, ...] | Any_
    isv_prod_id: tuple[Svn, ...] | Any_
    min_isv_svn: Svn | Any_
    misc_select: tuple[Hex4, ...] | Any_
    attributes: tuple[Hex8, ...] | Any_
    xfrm: tuple[Hex8, ...] | Any_
    mode64: bool | Any_
    provision_key: bool | Any_
    einittoken_key: bool | Any_
    key_separation: bool | Any_
    isv_ext_prod_id: tuple[Hex16, ...] | Any_
    isv_family_id: tuple[Hex16, ...] | Any_
    config_id: tuple[Hex64, ...] | Any_
    min_config_svn: Svn | Any_
