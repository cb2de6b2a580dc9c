"""What a connector yields: one record per value in the source, with a pointer to where it stands.

A record is either *usable*, *filtered* (a rule that the mapping declares, or that the connector documents, sets it
aside) or carries a *fault* (the connector could not read it). Nothing is dropped here: the ledger counts all three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from cordon.data.contract import Mapping as SiteMapping
from cordon.errors import MappingError

REASONS = (
    "unknown_code",
    "unit_unknown",
    "unit_not_convertible",
    "out_of_range",
    "unparsable_number",
    "not_finite",
    "no_patient",
    "unresolved_reference",
    "duplicate",
    "conflicting_value",
    "missing_feature",
    "missing_label",
    "conflicting_label",
    "patient_rejected",
    "unreadable",
    "too_large",
)
"""Why a record or a patient can be rejected; stable names, free of patient data."""

Kind = Literal["patient", "feature", "label"]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One raw value.

    Attributes:
        kind: ``patient`` declares that a patient exists and comes before all other records of that patient.
        pointer: where it stands, as ``Observation.ndjson:123``; never holds a value.
        patient: the source's patient key, '' if it names none.
        code: column, code or line label, as ``Field.source`` of the mapping spells it.
        value: raw text or number; None where the source is empty.
        unit: the unit that the source states, '' if it should state one and does not, None if the form has no place for
            it (then the mapping's unit holds).
        fault: one of REASONS if the record cannot be used.
        filtered: the rule that sets the record aside.
    """

    kind: Kind
    pointer: str
    patient: str
    code: str = ""
    value: str | float | None = None
    unit: str | None = None
    fault: str = ""
    filtered: str = ""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``mapping.options`` that all connectors know.

    Attributes:
        decimal_comma: sources (columns, codes, labels) whose numbers are written with a decimal comma.
        units: the source's own spelling of a unit -> UCUM.
    """

    decimal_comma: tuple[str, ...] = ()
    units: dict[str, str] = {}


O = TypeVar("O", bound=Options)  # noqa: E741 - a type variable


def read_options(mapping: SiteMapping, kind: type[O]) -> O:
    """``mapping.options`` as the connector's closed set of options; MappingError for anything else."""
    try:
        return msgspec.convert(mapping.options, kind, strict=True)
    except msgspec.ValidationError as error:
        raise MappingError(f"mapping options for connector {mapping.connector}: {error}") from error


def wide_row(pointer: str, cells: Mapping[str, Any], mapping: SiteMapping, *, label: bool = True) -> Iterator[Record]:
    """The records of one table row that holds all of a patient's values; no place for units."""
    patient = as_key(cells[mapping.patient])
    for field in mapping.features.values():
        yield Record("feature", pointer, patient, field.source, as_raw(cells[field.source]))
    if label:
        yield Record("label", pointer, patient, mapping.label.source, as_key(cells[mapping.label.source]))


def as_key(cell: object) -> str:
    """A database or CSV cell as a key: text without surrounding blanks, '' for NULL."""
    return "" if cell is None else str(cell).strip()


def as_raw(cell: object) -> str | float | None:
    """A database or CSV cell as a record's value; other types (BLOB, date) become text that is no number."""
    if cell is None or isinstance(cell, float):
        return cell
    if isinstance(cell, bytes | bytearray | bool):
        return type(cell).__name__
    return str(cell)
