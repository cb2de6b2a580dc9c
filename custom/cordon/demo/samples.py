"""The demo's patients in the forms in which hospitals keep them: FHIR Bulk Data, SQL, PDF reports, OMOP CDM, CSV.

The measurements are those of real patients (``wdbc``); names, birth dates and everything else around them are made up.
Numbers are written so that they come back exactly: shortest decimal text, units shifted by powers of ten. Beside the
wanted values lies what real exports hold too: other observations, withdrawn entries, free text.
The matching mappings are ``provisioning/poc/mappings/hospital-*.yml``.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from cordon.demo import wdbc
from cordon.errors import ConfigError

SYSTEM = "https://cordon.example/CodeSystem/wdbc"
ICD10 = "http://hl7.org/fhir/sid/icd-10"
CONDITION_STATUS = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
UCUM = "http://unitsofmeasure.org"
MALIGNANT, BENIGN = "C50.9", "D24"  # ICD-10 (WHO): malignant, benign neoplasm of breast
FIRST_CONCEPT = 2_000_000_101  # OMOP keeps 2 000 000 001 and above for local concepts
WITHDRAWN = 0.1  # share of patients with one withdrawn entry

_GERMAN = "radius textur umfang flaeche glattheit kompaktheit konkavitaet konkave_punkte symmetrie fraktale_dimension"
COLUMNS = tuple(f"{name}_{kind}" for kind in ("mittel", "streuung", "max") for name in _GERMAN.split())
"""The SQL hospital's column names, in the order of the features."""


@dataclass(frozen=True)
class _Share:
    """One hospital's patients: ``ids`` (n,), ``x`` (n, 30) in contract units, ``y`` (n,), and made-up birth dates."""

    ids: tuple[str, ...]
    x: NDArray[np.float64]
    y: NDArray[np.int64]
    born: tuple[date, ...]

    def cells(self) -> Iterable[tuple[int, int]]:
        """All (patient, feature) pairs."""
        return ((row, column) for row in range(len(self.ids)) for column in range(self.x.shape[1]))


def patient_ids(site: str, rows: Iterable[int]) -> tuple[str, ...]:
    """Made-up patient numbers: ``hospital-a``, 17 -> ``HA-00017``."""
    return tuple(f"H{site[-1].upper()}-{row:05d}" for row in rows)


def feature_units() -> tuple[str, ...]:
    """The contract's unit of every feature."""
    kinds = {"radius": "um", "perimeter": "um", "area": "um2"}
    return tuple(next((kinds[part] for part in name.split("_") if part in kinds), "1") for name in wdbc.feature_ids())


def write_hospital(site: str, form: str, target: Path, table: wdbc.Table, seed: int = 0) -> None:
    """Write the patients of ``table`` in ``form`` to ``target``: a file for sql and csv, a folder for the others.

    Args:
        site: name of the hospital; its last letter goes into the patient numbers.
        seed: of what is made up and of the order of entries; the same seed gives the same files.

    Raises:
        ConfigError: no such form, or ``target`` is there already.
    """
    writers = {"fhir": _fhir, "sql": _sql, "pdf": _pdf, "omop": _omop, "csv": _csv}
    if form not in writers:
        raise ConfigError(f"no form {form!r}; there are {', '.join(writers)}")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"{target} is there already")
    rng = np.random.default_rng([seed, *site.encode()])
    born = tuple(date(1930, 1, 1) + timedelta(days=int(days)) for days in rng.integers(0, 22_000, len(table)))
    share = _Share(patient_ids(site, map(int, table.patients)), table.x, table.y, born)
    if form in ("fhir", "pdf", "omop"):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
    writers[form](target, share, rng)


def write_reference(path: Path, x: NDArray[np.float64], y: NDArray[np.int64]) -> None:
    """The coordinator's public reference set: the contract's ids as columns, the label last, no patient numbers."""
    rows = ([*map(_text, values), int(label)] for values, label in zip(x, y, strict=True))
    _write_csv(path, [*wdbc.feature_ids(), "malignant"], rows)


def _fhir(folder: Path, share: _Share, rng: np.random.Generator) -> None:
    names, units = wdbc.feature_ids(), feature_units()

    def observation(row: int, system: str, code: str, value: float, unit: str, status: str = "final") -> dict[str, Any]:
        return {
            "resourceType": "Observation",
            "status": status,
            "code": {"coding": [{"system": system, "code": code}], "text": code.replace("_", " ")},
            "subject": {"reference": f"Patient/{share.ids[row]}"},
            "effectiveDateTime": str(date(2024, 1, 1) + timedelta(days=int(rng.integers(0, 600)))),
            "valueQuantity": {"value": value, "unit": unit, "system": UCUM, "code": unit},
        }

    patients = [
        {"resourceType": "Patient", "id": key, "gender": "female", "birthDate": str(born)}
        for key, born in zip(share.ids, share.born, strict=True)
    ]
    observations = [
        observation(row, SYSTEM, names[at], float(share.x[row, at]), units[at]) for row, at in share.cells()
    ]
    for row in range(len(share.ids)):
        observations.append(observation(row, "http://loinc.org", "29463-7", float(rng.integers(48, 99)), "kg"))
        if rng.random() < WITHDRAWN:
            wrong = float(share.x[row, 0]) * 2
            observations.append(observation(row, SYSTEM, names[0], wrong, units[0], "entered-in-error"))
    conditions = [
        {
            "resourceType": "Condition",
            "verificationStatus": {"coding": [{"system": CONDITION_STATUS, "code": "confirmed"}]},
            "code": {"coding": [{"system": ICD10, "code": MALIGNANT if label else BENIGN}]},
            "subject": {"reference": f"Patient/{key}"},
        }
        for key, label in zip(share.ids, share.y, strict=True)
    ]
    for kind, resources in (("Patient", patients), ("Observation", observations), ("Condition", conditions)):
        order = rng.permutation(len(resources))
        with open(folder / f"{kind}.ndjson", "w", encoding="utf-8") as file:
            for number, at in enumerate(order, start=1):
                file.write(json.dumps({"id": f"{kind.lower()}-{number}", **resources[at]}) + "\n")


def _sql(path: Path, share: _Share, rng: np.random.Generator) -> None:
    """German tables; radii in mm as text with a decimal comma, areas in mm2, one row per patient and entry."""
    units = feature_units()
    radius = [at for at, column in enumerate(COLUMNS) if column.startswith("radius")]

    def cell(at: int, value: float) -> str | float | None:
        if at in radius:
            return f"{Decimal(_text(value)).scaleb(-3):f}".replace(".", ",")
        return float(Decimal(_text(value)).scaleb(-6)) if units[at] == "um2" else value

    types = ", ".join(f"{column} {'TEXT' if at in radius else 'REAL'}" for at, column in enumerate(COLUMNS))
    entries = [
        [key, "gueltig", *map(cell, range(30), map(float, row))] for key, row in zip(share.ids, share.x, strict=True)
    ]
    entries += [[entry[0], "storniert", *entry[2:5], None, *entry[6:]] for entry in entries if rng.random() < WITHDRAWN]
    order = rng.permutation(len(entries))
    marks = ", ".join("?" * (len(COLUMNS) + 2))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE patienten (patient_nr TEXT PRIMARY KEY, geburtsjahr INTEGER, befund TEXT)")
        database.execute(f"CREATE TABLE messwerte (lfd_nr INTEGER PRIMARY KEY, patient_nr TEXT, status TEXT, {types})")
        database.executemany(
            "INSERT INTO patienten VALUES (?, ?, ?)",
            zip(
                share.ids,
                (born.year for born in share.born),
                map(("benigne", "maligne").__getitem__, share.y),
                strict=True,
            ),
        )
        insert = f"INSERT INTO messwerte (patient_nr, status, {', '.join(COLUMNS)}) VALUES ({marks})"  # noqa: S608
        database.executemany(insert, [entries[at] for at in order])


def _pdf(folder: Path, share: _Share, rng: np.random.Generator) -> None:
    spelling = {"um": "µm", "um2": "µm²", "1": "-"}
    lines = [
        (report_label(name), spelling[unit]) for name, unit in zip(wdbc.feature_ids(), feature_units(), strict=True)
    ]
    for key, values, label, born in zip(share.ids, share.x, share.y, share.born, strict=True):
        page = Canvas(str(folder / f"{key}.pdf"), pagesize=A4, invariant=1)
        page.setFont("Helvetica-Bold", 14)
        page.drawString(60, 790, "Department of Pathology - fine needle aspirate of the breast")
        page.setFont("Helvetica", 10)
        slides = int(rng.integers(2, 9))
        text = [f"Patient ID: {key}", f"Date of birth: {born}", f"Slides examined: {slides} in total", ""]
        text += [f"{name}: {_text(value)} {unit}" for (name, unit), value in zip(lines, values, strict=True)]
        text += ["", f"Diagnosis: {'malignant' if label else 'benign'}", "Measured by image analysis of cell nuclei."]
        for number, line in enumerate(text):
            page.drawString(60, 760 - 16 * number, line)
        page.showPage()
        page.save()


def report_label(feature: str) -> str:
    """How the PDF reports call a feature: ``mean_radius`` -> ``Mean radius``."""
    return feature.replace("_", " ").capitalize()


def _omop(folder: Path, share: _Share, rng: np.random.Generator) -> None:
    names, units = wdbc.feature_ids(), feature_units()
    people = 10_000 + rng.permutation(len(share.ids))
    ehr = 32817  # type concept: from the electronic health record

    def day() -> date:
        return date(2024, 1, 1) + timedelta(days=int(rng.integers(0, 600)))

    _write_rows(
        folder / "person.csv",
        "person_id gender_concept_id year_of_birth month_of_birth day_of_birth birth_datetime race_concept_id "
        "ethnicity_concept_id location_id provider_id care_site_id person_source_value gender_source_value "
        "gender_source_concept_id race_source_value race_source_concept_id ethnicity_source_value "
        "ethnicity_source_concept_id",
        [
            {
                "person_id": person,
                "gender_concept_id": 8532,
                "year_of_birth": born.year,
                "race_concept_id": 0,
                "ethnicity_concept_id": 0,
                "person_source_value": key,
                "gender_source_value": "F",
            }
            for person, key, born in zip(people, share.ids, share.born, strict=True)
        ],
    )
    measured = [
        (people[row], FIRST_CONCEPT + at, _text(share.x[row, at]), units[at], names[at]) for row, at in share.cells()
    ]
    measured += [(person, 3025315, f"{rng.integers(48, 99)}.0", "kg", "29463-7") for person in people]  # body weight
    _write_rows(
        folder / "measurement.csv",
        "measurement_id person_id measurement_concept_id measurement_date measurement_datetime measurement_time "
        "measurement_type_concept_id operator_concept_id value_as_number value_as_concept_id unit_concept_id range_low "
        "range_high provider_id visit_occurrence_id visit_detail_id measurement_source_value "
        "measurement_source_concept_id unit_source_value unit_source_concept_id value_source_value "
        "measurement_event_id meas_event_field_concept_id",
        [
            {
                "measurement_id": number,
                "person_id": person,
                "measurement_concept_id": concept,
                "measurement_date": day(),
                "measurement_type_concept_id": ehr,
                "operator_concept_id": 4172703,
                "value_as_number": value,
                "unit_concept_id": 0,
                "measurement_source_value": name,
                "unit_source_value": unit,
                "value_source_value": value,
            }
            for number, (person, concept, value, unit, name) in enumerate(_shuffled(measured, rng), start=1)
        ],
    )
    _write_rows(
        folder / "condition_occurrence.csv",
        "condition_occurrence_id person_id condition_concept_id condition_start_date condition_start_datetime "
        "condition_end_date condition_end_datetime condition_type_concept_id condition_status_concept_id stop_reason "
        "provider_id visit_occurrence_id visit_detail_id condition_source_value condition_source_concept_id "
        "condition_status_source_value",
        [
            {
                "condition_occurrence_id": number,
                "person_id": person,
                "condition_concept_id": 0,
                "condition_start_date": day(),
                "condition_type_concept_id": ehr,
                "condition_source_value": MALIGNANT if label else BENIGN,
            }
            for number, (person, label) in enumerate(_shuffled(list(zip(people, share.y, strict=True)), rng), start=1)
        ],
    )


def _csv(path: Path, share: _Share, rng: np.random.Generator) -> None:
    rows = [
        [key, *map(_text, values), "M" if label else "B"]
        for key, values, label in zip(share.ids, share.x, share.y, strict=True)
    ]
    _write_csv(path, ["patient_id", *wdbc.feature_ids(), "diagnosis"], _shuffled(rows, rng))


def _shuffled(rows: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    return [rows[at] for at in rng.permutation(len(rows))]


def _write_rows(path: Path, columns: str, rows: Iterable[dict[str, Any]]) -> None:
    names = columns.split()
    _write_csv(path, names, ([row.get(name, "") for name in names] for row in rows))


def _write_csv(path: Path, header: list[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _text(value: float) -> str:
    """The shortest decimal text that reads back as the same float."""
    return repr(float(value))
