"""OMOP CDM 5.4 tables as CSV: person, measurement, condition_occurrence (OMOP_CDMv5.4_Field_Level.csv).

``mapping.patient`` is ``person_id`` or ``person_source_value``. A feature's source is a ``measurement_concept_id``
(custom concepts lie above 2 000 000 000); the label's source is ``condition_concept_id`` or ``condition_source_value``.
"""

from __future__ import annotations

from collections.abc import Iterator

from cordon.data.contract import Mapping
from cordon.data.csv_file import rows
from cordon.data.records import Options, Record
from cordon.data.source import Source
from cordon.errors import MappingError, SourceError

CUSTOM_CONCEPTS = 2_000_000_000
_EQUAL = {"", "0", "4172703"}  # operator_concept_id: none, no matching concept, '='


class OmopOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``filter_types``: measurement_type_concept_id and condition_type_concept_id that are set aside."""

    filter_types: tuple[str, ...] = ()


def scan(source: Source, mapping: Mapping, options: OmopOptions) -> Iterator[Record]:
    """The records of a folder of CDM tables: persons, then measurements, then conditions."""
    if mapping.patient not in ("person_id", "person_source_value"):
        raise MappingError(f"OMOP: patient must be person_id or person_source_value, got {mapping.patient!r}")
    if mapping.label.source not in ("condition_concept_id", "condition_source_value"):
        raise MappingError("OMOP: the label's source must be condition_concept_id or condition_source_value")
    members = {member.lower(): member for member in source.members()}
    tables = {}
    for name in ("person", "measurement", "condition_occurrence"):
        if f"{name}.csv" not in members:
            raise SourceError(f"{source.name}: no {name}.csv in this OMOP folder")
        tables[name] = members[f"{name}.csv"]

    keys: dict[str, str] = {}
    for number, row in rows(source, tables["person"], ["person_id", mapping.patient]):
        pointer = f"{tables['person']}:{number}"
        if row is None:
            yield Record("patient", pointer, "", fault="unreadable")
            continue
        if row["person_id"] in keys:
            yield Record("patient", pointer, row[mapping.patient], fault="duplicate")
            continue
        keys[row["person_id"]] = row[mapping.patient]
        yield Record("patient", pointer, row[mapping.patient])
    yield from _measurements(source, tables["measurement"], keys, mapping, options)
    yield from _conditions(source, tables["condition_occurrence"], keys, mapping, options)


def _measurements(
    source: Source, member: str, keys: dict[str, str], mapping: Mapping, options: OmopOptions
) -> Iterator[Record]:
    mapped = {field.source for field in mapping.features.values()}
    columns = ["person_id", "measurement_concept_id", "measurement_type_concept_id", "operator_concept_id"]
    columns += ["value_as_number", "unit_source_value"]
    for number, row in rows(source, member, columns):
        pointer = f"{member}:{number}"
        if row is None:
            yield Record("feature", pointer, "", fault="unreadable")
            continue
        concept = row["measurement_concept_id"]
        patient, fault = _resolve(row["person_id"], keys)
        if row["operator_concept_id"] not in _EQUAL:  # '<' and '>' make the number a bound
            fault = fault or "unparsable_number"
        rule = ""
        if row["measurement_type_concept_id"] in options.filter_types:
            rule = f"type:{row['measurement_type_concept_id']}"
        elif concept not in mapped and not _is_custom(concept):
            rule = "other_concept"
        value, unit = row["value_as_number"], row["unit_source_value"]
        yield Record("feature", pointer, patient, concept, value, unit, fault, rule)


def _conditions(
    source: Source, member: str, keys: dict[str, str], mapping: Mapping, options: OmopOptions
) -> Iterator[Record]:
    wanted = {*mapping.label.positive, *mapping.label.negative}
    column = mapping.label.source
    for number, row in rows(source, member, ["person_id", column, "condition_type_concept_id"]):
        pointer = f"{member}:{number}"
        if row is None:
            yield Record("label", pointer, "", column, fault="unreadable")
            continue
        patient, fault = _resolve(row["person_id"], keys)
        rule = ""
        if row["condition_type_concept_id"] in options.filter_types:
            rule = f"type:{row['condition_type_concept_id']}"
        elif row[column] not in wanted:
            rule = "other_condition"
        yield Record("label", pointer, patient, column, row[column], None, fault, rule)


def _resolve(person: str, keys: dict[str, str]) -> tuple[str, str]:
    if not person:
        return "", "no_patient"
    return keys.get(person, ""), "" if person in keys else "unresolved_reference"


def _is_custom(concept: str) -> bool:
    return concept.isascii() and concept.isdigit() and len(concept) <= 10 and int(concept) > CUSTOM_CONCEPTS
