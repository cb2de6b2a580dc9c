"""What a verifier wants of NVIDIA GPUs and NVSwitches (part of a policy file; each field has a value or is ``any``)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from cordon.documents import Document

Any_ = Literal["any"]
Required = Literal["required"]

Arch = Literal["hopper", "blackwell", "ls10"]
Mode = Literal["spt", "mpt", "ppcie"]
DriverVersion = Annotated[str, Meta(pattern=r"^[0-9]{1,5}(\.[0-9]{1,5}){1,3}$")]
VbiosVersion = Annotated[str, Meta(pattern=r"^[0-9A-F]{2}(\.[0-9A-F]{2}){4}$")]
DeviceId = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=1, le=64)]
Versions = tuple[DriverVersion, ...]


class GpuPolicy(Document, frozen=True, kw_only=True):
    """How a device's attestation report is judged. Lists are exact allow-sets.

    ``arch``: chip families. ``driver_version`` as "550.90.07" (a switch has none: it is not asked), ``vbios_version``
    as "96.00.9F.00.01". ``mode``: single GPU pass-through, multi GPU pass-through or protected PCIe.
    ``device_id``: SHA-256 (hex) of the DER of the device's identity certificate, the second of its chain, which stays
    when the firmware changes. ``fwid`` required: the report states its firmware's id and it is the certificate's (old
    drivers state none). ``rim`` required: signed reference measurements of driver and VBIOS are given and match.
    ``ocsp`` required: the chain's revocation is known (this version is never told, so: not checked). ``cc_mode``
    required: the evidence shows confidential computing on and developer tools off. No report says so (README), so
    ``any`` here is the admission that the measured guest image has to. ``count``, ``switches``: how many distinct GPUs
    and NVSwitches a machine shows at least (asked of all its evidence together, not of one report).
    """

    arch: Annotated[tuple[Arch, ...], Meta(min_length=1)] | Any_
    driver_version: Annotated[Versions, Meta(min_length=1)] | Any_
    vbios_version: Annotated[tuple[VbiosVersion, ...], Meta(min_length=1)] | Any_
    mode: Annotated[tuple[Mode, ...], Meta(min_length=1)] | Any_
    device_id: Annotated[tuple[DeviceId, ...], Meta(min_length=1)] | Any_
    fwid: Required | Any_
    rim: Required | Any_
    ocsp: Required | Any_
    cc_mode: Required | Any_
    count: Count | Any_
    switches: Count | Any_


class NrasPolicy(Document, frozen=True, kw_only=True):
    """How a token of NVIDIA's remote attestation service is judged: that service checked the device, and we check it.

    ``issuer`` is compared whole. ``max_age_s``: how old a token may be (its own ``exp`` counts as well). ``arch``,
    ``driver_version``, ``vbios_version`` as in GpuPolicy. ``ocsp`` required: every certificate chain's OCSP status is
    "good". ``ueid``: the device's attestation key certificates, as the service names them (decimal serial numbers).
    """

    issuer: Annotated[str, Meta(min_length=1, max_length=200)]
    max_age_s: Annotated[float, Meta(ge=1, le=86400)] | Any_
    arch: Annotated[tuple[Arch, ...], Meta(min_length=1)] | Any_
    driver_version: Annotated[Versions, Meta(min_length=1)] | Any_
    vbios_version: Annotated[tuple[VbiosVersion, ...], Meta(min_length=1)] | Any_
    ueid: Annotated[tuple[str, ...], Meta(min_length=1)] | Any_
    ocsp: Required | Any_
    count: Count | Any_
    switches: Count | Any_


def asked(policy: GpuPolicy | NrasPolicy | None, field: str) -> Any:
    """What a policy's field asks, ``any`` included; None without a policy."""
    return None if policy is None else getattr(policy, field)
