"""Feature contract and mapping: what a job may see, and where a hospital has it.

The *contract* (``contract.yml``, schema ``cordon/contract/v1``) is shared by all sites of a study. The *mapping*
(``local/mappings/<contract id>.yml``, schema ``cordon/mapping/v1``) is one hospital's and confirmed (signed) by its
data steward. Scaling constants are public: a site's own mean or range would be data.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from cordon.documents import Document

MAPPING_SCHEMA = "cordon/mapping/v1"

FeatureId = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class Concept(Document, frozen=True, kw_only=True):
    """A code in a code system (URI)."""

    system: str
    code: str


class Feature(Document, frozen=True, kw_only=True):
    """One number per patient. Network input = (value in ``unit`` - center) / scale."""

    id: FeatureId
    concept: Concept
    unit: str  # UCUM
    type: Literal["numeric"]
    range: Annotated[tuple[float, float], Meta(description="hard plausible range in unit; outside = row rejected")]
    center: float
    scale: Annotated[float, Meta(gt=0)]
    missing: Literal["reject"] = "reject"


class Label(Document, frozen=True, kw_only=True):
    """What is predicted: 1 where the patient has the ``positive`` concept, 0 where the ``negative`` one."""

    id: FeatureId
    positive: Concept
    negative: Concept


class FeatureContract(Document, frozen=True, kw_only=True):
    """All that a job sees of a patient, and how it is scaled."""

    version: Literal["cordon/contract/v1"]
    contract: Annotated[str, Meta(pattern=r"^[a-z0-9-]+/[0-9]+\.[0-9]+\.[0-9]+$")]
    privacy_unit: Literal["patient"]
    features: Annotated[tuple[Feature, ...], Meta(min_length=1, max_length=10_000)]
    label: Label
    max_rejected: Annotated[float, Meta(ge=0, lt=1)] = 0.05

    def __post_init__(self) -> None:
        ids = [feature.id for feature in self.features] + [self.label.id]
        if len(ids) != len(set(ids)):
            raise ValueError("feature ids are not unique")
        if any(not feature.range[0] < feature.range[1] for feature in self.features):
            raise ValueError("a feature's range must go from low to high")


class Field(Document, frozen=True, kw_only=True):
    """Where one feature comes from: ``source`` is a column, code or report line, ``unit`` its UCUM unit there."""

    source: str
    unit: str


class LabelField(Document, frozen=True, kw_only=True):
    """Where the label comes from: the source's own values (codes, words) for positive and negative."""

    source: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


class Mapping(Document, frozen=True, kw_only=True):
    """One hospital's map from its own form to the contract."""

    version: Literal["cordon/mapping/v1"]
    contract: str
    connector: Literal["fhir", "sql", "omop", "pdf", "csv"]
    confirmed_by: str
    confirmed_at: str
    patient: str
    features: dict[FeatureId, Field]
    label: LabelField
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The contract id as a file name: ``wdbc/1.0.0`` -> ``wdbc-1.0.0``."""
        return self.contract.replace("/", "-")
