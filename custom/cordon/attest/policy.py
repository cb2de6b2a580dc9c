"""The attestation policy (schema ``cordon/attestation/v2``): what evidence a verifier accepts.

Every field is present, with a value or the word ``any``. An absent field is an error: silence must not mean consent.
Each technology's fields are in the module that judges them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from cordon import documents
from cordon.attest.azure.policy import AzurePolicy
from cordon.attest.dcap.policy import SgxPolicy, TdxPolicy
from cordon.attest.nvgpu.policy import GpuPolicy
from cordon.attest.snp.policy import SnpPolicy
from cordon.documents import Document
from cordon.study import Name, Sha256

SCHEMA = "cordon/attestation/v2"

EvidenceType = Literal["software", "snp", "tdx", "sgx", "az-snp", "az-tdx"]
Any_ = Literal["any"]
None_ = Literal["none"]

SECTIONS: dict[str, tuple[str, ...]] = {
    "software": ("software",),
    "snp": ("snp",),
    "tdx": ("tdx",),
    "sgx": ("sgx",),
    "az-snp": ("snp", "azure"),
    "az-tdx": ("tdx", "azure"),
}
"""Evidence type -> the sections of a policy that judge it."""


class SoftwarePolicy(Document, frozen=True, kw_only=True):
    """Accepts the software TEE, by name. ``root`` is its root certificate, a path beside the policy."""

    root: str
    measurement: tuple[Sha256, ...] | Any_


class AttestationPolicy(Document, frozen=True, kw_only=True):
    """How evidence is judged. Which types count is said here and never by the evidence.

    ``evidence`` lists the accepted types; the sections that judge them are there, and no other. ``bundle_digest`` is an
    allow-set of package digests. ``gpu``: none = no GPU evidence may come, any = not looked at, else GPU evidence must
    come and pass. ``max_age_s`` is how long a challenge may stay unanswered, ``lease_s`` how long a verdict holds.
    """

    version: Literal["cordon/attestation/v2"]
    name: Name
    profile: Literal["poc", "production"]
    evidence: Annotated[tuple[EvidenceType, ...], Meta(min_length=1)]
    bundle_digest: tuple[Sha256, ...] | Any_
    max_age_s: Annotated[float, Meta(ge=1, le=3600)]
    lease_s: Annotated[float, Meta(ge=5, le=86400)]
    software: SoftwarePolicy | None_
    snp: SnpPolicy | None_
    tdx: TdxPolicy | None_
    sgx: SgxPolicy | None_
    azure: AzurePolicy | None_
    gpu: GpuPolicy | None_ | Any_

    def __post_init__(self) -> None:
        wanted = {section for kind in self.evidence for section in SECTIONS[kind]}
        for section in ("software", "snp", "tdx", "sgx", "azure"):
            if (section in wanted) != (getattr(self, section) != "none"):
                verb = "wants a section" if section in wanted else "has no use for the section"
                raise ValueError(f"evidence {list(self.evidence)} {verb} {section!r}")
        if self.profile != "poc":
            if self.software != "none":
                raise ValueError("software evidence proves nothing about hardware: refused outside profile poc")
            debug = {
                "snp.policy": "none" if self.snp == "none" else self.snp.policy.debug,
                "tdx": "none" if self.tdx == "none" else self.tdx.debug,
                "sgx": "none" if self.sgx == "none" else self.sgx.debug,
            }
            for section, value in debug.items():
                if value == "any":
                    raise ValueError(f"{section}.debug: any is refused outside profile poc: a host reads debug guests")

    @property
    def digest(self) -> str:
        """Digest of the policy's meaning; evidence names it, so that it cannot be shown to another policy."""
        return documents.content_digest(self)
