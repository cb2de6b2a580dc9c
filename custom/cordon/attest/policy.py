"""The attestation policy (schema ``cordon/attestation/v1``): what evidence a verifier accepts.

Every field is present, with a value or the word ``any``. An absent field is an error: silence must not mean consent.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from cordon import documents
from cordon.documents import Document
from cordon.study import Name, Sha256

SCHEMA = "cordon/attestation/v1"

EvidenceType = Literal["software", "snp", "tdx", "sgx"]
Measurement = Annotated[str, Meta(pattern=r"^([0-9a-f]{64}|[0-9a-f]{96})$")]
Any_ = Literal["any"]


class AttestationPolicy(Document, frozen=True, kw_only=True):
    """How evidence is judged. Which types count is said here and never by the evidence.

    ``measurement`` and ``bundle_digest`` are allow-sets of lower-case hex digests. ``gpu`` required/none: evidence of
    GPUs must come / must not come. ``root`` is the software TEE's root certificate (a path, resolved against the folder
    of the policy) or ``any`` where no software evidence is accepted: hardware roots are pinned in the package.
    ``max_age_s`` is how long a challenge may stay unanswered, ``lease_s`` how long a verdict holds.
    """

    version: Literal["cordon/attestation/v1"]
    name: Name
    profile: Literal["poc", "production"]
    evidence: Annotated[tuple[EvidenceType, ...], Meta(min_length=1)]
    allow_software: bool
    measurement: tuple[Measurement, ...] | Any_
    bundle_digest: tuple[Sha256, ...] | Any_
    gpu: Literal["required", "none", "any"]
    root: str
    max_age_s: Annotated[float, Meta(ge=1, le=3600)]
    lease_s: Annotated[float, Meta(ge=5, le=86400)]

    def __post_init__(self) -> None:
        software = "software" in self.evidence
        if software != self.allow_software:
            raise ValueError("software evidence wants both: 'software' in evidence and allow_software: true")
        if software and self.profile != "poc":
            raise ValueError("software evidence proves nothing about hardware: refused outside profile poc")
        if software and self.root == "any":
            raise ValueError("software evidence wants the root certificate of this workspace in root")

    @property
    def digest(self) -> str:
        """Digest of the policy's meaning; evidence names it, so that it cannot be shown to another policy."""
        return documents.content_digest(self)
