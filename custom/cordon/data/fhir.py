"""HL7 FHIR R4 Bulk Data: NDJSON files of Patient, Observation and Condition (Bulk Data Access IG 2.0, section "File
Formats"; https://hl7.org/fhir/R4/).

``mapping.patient`` is ``subject``; a feature's source is its code in ``options.code_system``; the label's source is the
code system of Condition.code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from cordon.data.contract import Mapping
from cordon.data.records import Options, Record
from cordon.data.source import Source
from cordon.errors import MappingError, SourceError

UCUM = "http://unitsofmeasure.org"
_REFERENCE = re.compile(
    r"(?:Patient/([A-Za-z0-9.-]{1,64})(?:/_history/[A-Za-z0-9.-]{1,64})?|urn:uuid:([0-9a-fA-F-]{36}))", re.ASCII
)


class FhirOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``code_system``: URI of Observation.code. ``filter_status``: statuses of Observations, and verification statuses
    of Conditions, that are set aside (as rule ``status:<status>``)."""

    code_system: str
    filter_status: tuple[str, ...] = ("entered-in-error", "cancelled", "refuted")


class _Coding(msgspec.Struct, frozen=True, gc=False):
    system: str = ""
    code: str = ""


class _Concept(msgspec.Struct, frozen=True, gc=False):
    coding: tuple[_Coding, ...] = ()


class _Quantity(msgspec.Struct, frozen=True, gc=False):
    value: float | None = None
    comparator: str = ""
    system: str = ""
    code: str = ""


class _Reference(msgspec.Struct, frozen=True, gc=False):
    reference: str = ""


# what a line that is no such resource can raise (RecursionError: nesting made to exhaust the stack)
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_NO_CONCEPT, _NOBODY = _Concept(), _Reference()


class _Patient(msgspec.Struct, frozen=True, gc=False):
    resourceType: str
    id: str


class _Observation(msgspec.Struct, frozen=True, gc=False):
    resourceType: str
    status: str = ""
    code: _Concept = _NO_CONCEPT
    subject: _Reference = _NOBODY
    valueQuantity: _Quantity | None = None


class _Condition(msgspec.Struct, frozen=True, gc=False):
    resourceType: str
    verificationStatus: _Concept = _NO_CONCEPT
    code: _Concept = _NO_CONCEPT
    subject: _Reference = _NOBODY


def scan(source: Source, mapping: Mapping, options: FhirOptions) -> Iterator[Record]:
    """The records of a Bulk Data folder: all Patients, then Observations, then Conditions."""
    if mapping.patient != "subject":
        raise MappingError(f"FHIR: patient must be 'subject', got {mapping.patient!r}")
    files = {kind: _files(source, kind) for kind in ("Patient", "Observation", "Condition")}
    yield from _patients(source, files["Patient"])
    yield from _observations(source, files["Observation"], options)
    yield from _conditions(source, files["Condition"], mapping, options)


def _files(source: Source, kind: str) -> list[str]:
    """Members of one resource type: Patient.ndjson, Patient.000.ndjson, Patient_1.ndjson ..."""
    pattern = re.compile(rf"{kind}(?:[._-][A-Za-z0-9_-]+)*\.ndjson", re.ASCII)
    found = [member for member in source.members() if pattern.fullmatch(member)]
    if not found:
        raise SourceError(f"{source.name}: no {kind}.ndjson in this FHIR Bulk Data folder")
    return found


def _patients(source: Source, files: list[str]) -> Iterator[Record]:
    decode = msgspec.json.Decoder(_Patient).decode
    for file in files:
        for number, line in source.lines(file):
            pointer = f"{file}:{number}"
            try:
                patient = decode(line)
            except _BROKEN:
                yield Record("patient", pointer, "", fault="unreadable")
                continue
            fault = "" if patient.resourceType == "Patient" else "unreadable"
            yield Record("patient", pointer, patient.id, fault=fault)


def _observations(source: Source, files: list[str], options: FhirOptions) -> Iterator[Record]:
    decode = msgspec.json.Decoder(_Observation).decode
    system, aside = options.code_system, {status: f"status:{status}" for status in options.filter_status}
    for file in files:
        for number, line in source.lines(file):
            pointer = f"{file}:{number}"
            try:
                seen = decode(line)
            except _BROKEN:
                yield _undecoded(line, pointer, system)
                continue
            if seen.resourceType != "Observation":
                yield Record("feature", pointer, "", fault="unreadable")
                continue
            patient, fault = _resolve(seen.subject.reference)
            code = _code(seen.code, system)
            rule = aside.get(seen.status, "") or ("" if code else "other_code_system")
            value, unit = None, ""
            if seen.valueQuantity is not None:
                value = seen.valueQuantity.value
                unit = seen.valueQuantity.code if seen.valueQuantity.system == UCUM else ""
                if seen.valueQuantity.comparator:  # "< 5" is a bound, not a number
                    fault = fault or "unparsable_number"
            yield Record("feature", pointer, patient, code, value, unit, fault, rule)


def _conditions(source: Source, files: list[str], mapping: Mapping, options: FhirOptions) -> Iterator[Record]:
    decode = msgspec.json.Decoder(_Condition).decode
    system, wanted = mapping.label.source, {*mapping.label.positive, *mapping.label.negative}
    for file in files:
        for number, line in source.lines(file):
            pointer = f"{file}:{number}"
            try:
                seen = decode(line)
            except _BROKEN:
                yield Record("label", pointer, "", system, fault="unreadable")
                continue
            if seen.resourceType != "Condition":
                yield Record("label", pointer, "", system, fault="unreadable")
                continue
            patient, fault = _resolve(seen.subject.reference)
            code = next((c.code for c in seen.code.coding if c.system == system and c.code in wanted), "")
            status = next((c.code for c in seen.verificationStatus.coding if c.code in options.filter_status), "")
            rule = f"status:{status}" if status else ("" if code else "other_condition")
            yield Record("label", pointer, patient, system, code, None, fault, rule)


def _resolve(reference: str) -> tuple[str, str]:
    """(patient id, fault) of ``Patient/<id>`` (servers) or ``urn:uuid:<id>`` (bundles); anything else is counted."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        return "", "unresolved_reference" if reference else "no_patient"
    return found[1] or found[2], ""


def _code(concept: _Concept, system: str) -> str:
    for coding in concept.coding:
        if coding.system == system:
            return coding.code
    return ""


def _undecoded(line: bytes, pointer: str, system: str) -> Record:
    """A line that is no Observation; exporters that write NaN or 1e999 (no JSON) are told so, not just 'unreadable'."""
    try:
        tree: Any = json.loads(line)
        quantity = tree["valueQuantity"]["value"]
        coding = next(entry["code"] for entry in tree["code"]["coding"] if entry["system"] == system)
    except (ValueError, RecursionError, KeyError, TypeError, StopIteration):
        return Record("feature", pointer, "", fault="unreadable")
    infinite = isinstance(quantity, float) and quantity - quantity != 0  # NaN, inf
    return Record("feature", pointer, "", str(coding), fault="not_finite" if infinite else "unreadable")
