"""What a verifier wants of Azure confidential VMs: of their vTPM-wrapped evidence, and of MAA tokens about them.

Every field is present, with a value or ``any``. A bool means "must have this value"; a list is an exact allow-set; what
the evidence does not state is in no set. Byte strings are lower-case hex. The hardware inside (SNP report, TD quote)
has its own policy. Fields are explained in README.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from cordon.documents import Document

Any_ = Literal["any"]
Some = Meta(min_length=1)  # an empty set would accept nothing, an empty map ask nothing: surely not what was meant
Hex8 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex48 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{96}\Z")]
HostData = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64}|[0-9a-f]{96})\Z")]
Text = Annotated[str, Meta(min_length=1, max_length=512)]
Uuid = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
PcrIndex = Annotated[str, Meta(pattern=r"\A([0-9]|1[0-9]|2[0-3])\Z")]
Svn = Annotated[int, Meta(ge=0, le=255)]
SvnName = Literal["bootloader", "tee", "snpfw", "microcode", "guest"]


class AzurePolicy(Document, frozen=True, kw_only=True):
    """How the Azure layers over the hardware report are judged: paravisor, runtime claims, AK, TPM quote.

    ``paravisor`` pinned: the hardware policy must name, and the hardware show, the measurement of the firmware (or, for
    SNP, its ID key); otherwise the runtime claims are the word of whoever wrote that. ``tpm_quote`` required: one by
    the AK for this challenge must come; ``any``: it may be absent (one that comes is verified all the same).
    ``ak_min_bits`` is never less than 2048. ``tpm_firmware``: firmwareVersion of TPMS_ATTEST. ``pcrs``: index ->
    allow-set of SHA-256 values; an index named here must be among those quoted. The rest is ``vm-configuration``.
    """

    paravisor: Literal["pinned", "any"]
    tpm_quote: Literal["required", "any"]
    ak_min_bits: Annotated[int, Meta(ge=2048, le=16384)] | Any_
    tpm_firmware: Annotated[tuple[Hex8, ...], Some] | Any_
    pcrs: Annotated[dict[PcrIndex, Annotated[tuple[Hex32, ...], Some] | Any_], Some] | Any_
    secure_boot: bool | Any_
    tpm_enabled: bool | Any_
    tpm_persisted: bool | Any_
    console_enabled: bool | Any_
    interactive_console_enabled: bool | Any_
    filtered_vpci_devices_allowed: bool | Any_
    root_cert_thumbprint: Annotated[tuple[Text, ...], Some] | Any_
    vm_unique_id: Annotated[tuple[Uuid, ...], Some] | Any_


class MaaPolicy(Document, frozen=True, kw_only=True):
    """How a token of Microsoft Azure Attestation is judged.

    ``max_age_s``: ``iat`` may be this far back. ``nonce`` required: the token must carry this verifier's nonce (one
    without can be replayed). ``policy_hash``: the MAA instance's own policy, which decides what its claims mean.
    ``host_data``: HOST_DATA (SNP, 32 bytes) or MRCONFIGID (TDX, 48). ``min_svn``: SNP only; ``tcb_status``: TDX only.
    ``debug``: ``false``, or ``any`` (POC only): whoever runs the host reads a debug guest's memory.
    """

    issuer: Annotated[tuple[Text, ...], Some] | Any_
    max_age_s: Annotated[int, Meta(ge=1, le=86400)] | Any_
    nonce: Literal["required", "any"]
    policy_hash: Annotated[tuple[Text, ...], Some] | Any_
    isolation_tee: Annotated[tuple[Literal["sevsnpvm", "tdxvm"], ...], Some] | Any_
    compliance_status: Annotated[tuple[Text, ...], Some] | Any_
    debug: bool | Any_
    migration: bool | Any_
    vmpl: Annotated[int, Meta(ge=0, le=3)] | Any_
    measurement: Annotated[tuple[Hex48, ...], Some] | Any_
    host_data: Annotated[tuple[HostData, ...], Some] | Any_
    id_key_digest: Annotated[tuple[Hex48, ...], Some] | Any_
    min_svn: Annotated[dict[SvnName, Svn], Some] | Any_
    tcb_status: Annotated[tuple[Text, ...], Some] | Any_
    vm_unique_id: Annotated[tuple[Uuid, ...], Some] | Any_
    secure_boot: bool | Any_
    debuggers_disabled: bool | Any_

    def __post_init__(self) -> None:
        if self.debug is True:
            raise ValueError("debug: true would want a guest that its host can read; say false, or any")
