"""Errors that real exports hold, planted one at a time in every form: each gets its reason, and no value leaks."""

import csv
import json
import shutil
import sqlite3
import traceback
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon.data.load import load_patients, read_source
from cordon.data.source import FolderSource
from cordon.errors import DataError, RowsRejected

FIRST = "HX-00000"
FORMS = ("fhir", "sql", "pdf", "omop", "csv")


def edit_csv(path, change):
    """Rewrite a CSV; ``change(rows)`` alters the list of dicts in place."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames
    change(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def edit_ndjson(path, change):
    """Rewrite an NDJSON file; ``change(resources)`` alters the list in place; strings are written as they are."""
    resources = [json.loads(line) for line in path.read_text().splitlines()]
    change(resources)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in resources]
    path.write_text("\n".join(lines) + "\n")


def one(resources, code="mean_radius", patient=FIRST):
    return next(
        entry
        for entry in resources
        if entry["subject"]["reference"] == f"Patient/{patient}"
        and entry["code"]["coding"][0]["code"] == code
        and entry["status"] == "final"
    )


def sql(path, statement, *arguments):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, arguments)


def write_report(folder, name, lines):
    from reportlab.pdfgen.canvas import Canvas

    page = Canvas(str(folder / name), invariant=1)
    for number, line in enumerate(lines):
        page.drawString(60, 800 - 16 * number, line)
    page.save()


def set_value(form, source, raw, column=0):
    """Replace mean_radius (``column`` 0) of the first patient by the raw text or number ``raw``, in the given form."""
    if form == "fhir":

        def change(resources):
            at = resources.index(one(resources))
            text = json.dumps(resources[at])
            value = json.dumps(resources[at]["valueQuantity"]["value"])
            resources[at] = text.replace(f'"value": {value}', f'"value": {raw}')

        edit_ndjson(source / "Observation.ndjson", change)
    elif form == "sql":
        sql(source, "UPDATE messwerte SET radius_mittel = ? WHERE patient_nr = ? AND status = 'gueltig'", raw, FIRST)
    elif form == "omop":

        def change_rows(rows):
            with open(source / "person.csv", newline="") as file:
                person = next(r["person_id"] for r in csv.DictReader(file) if r["person_source_value"] == FIRST)
            for row in rows:
                if row["person_id"] == person and row["measurement_concept_id"] == "2000000101":
                    row["value_as_number"] = raw

        edit_csv(source / "measurement.csv", change_rows)
    elif form == "pdf":
        write_report(source, f"{FIRST}.pdf", [f"Patient ID: {FIRST}", f"Mean radius: {raw} µm", "Diagnosis: benign"])
    else:
        edit_csv(source, lambda rows: next(r for r in rows if r["patient_id"] == FIRST).update(mean_radius=raw))


def texts(error):
    return str(error) + "".join(traceback.format_exception(error)) + repr(error.args)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("raw", ["NaN", "-Infinity", "1e999"])
def test_non_finite_is_answered_with_pointer_and_column(contract, mappings, hospital, form, raw):
    source = hospital(form)
    if form == "sql" and raw == "1e999":
        raw = float("inf")  # a REAL cell, as a broken import leaves it
    set_value(form, source, raw)
    with pytest.raises(DataError, match="mean_radius") as caught:
        load_patients(contract, mappings[form], form, FolderSource(source))
    assert caught.value.code == "data_not_finite"
    pointer = {"fhir": "Observation.ndjson:", "sql": "messwerte:", "omop": "measurement.csv:", "csv": "csv:"}
    assert pointer.get(form, f"{FIRST}.pdf:p1:") in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("99999", "out_of_range"),
        ("12,5", "unparsable_number"),
        ("<5", "unparsable_number"),
        ("1'200", "unparsable_number"),
    ],
)
def test_bad_number_rejects_the_value_and_its_patient(contract, mappings, hospital, form, raw, reason):
    if form == "sql":
        raw = {"12,5": "12.5"}.get(raw, raw)  # this column is declared to have decimal commas: there the point is wrong
    if form == "fhir" and reason == "unparsable_number":
        raw, reason = f'"{raw}"', "unreadable"  # a string where FHIR wants a number
    source = hospital(form)
    set_value(form, source, raw)
    loaded = load_patients(contract, mappings[form], form, FolderSource(source))
    assert FIRST not in loaded.patients.ids
    assert loaded.patients.x.shape == (29, 30)
    rows, patients = loaded.conservation.rows, loaded.conservation.patients
    assert rows.rejected[reason] == 1
    assert patients.rejected == {"missing_feature": 1}
    assert rows.rows_in == rows.rows_out + rows.rejected.total() + rows.filtered.total()
    assert rows.rows_out == 29 * 31 and patients.rows_out == 29 and patients.rows_in == 30
    assert rows.rejected["patient_rejected"] == (1 if form == "pdf" else 30)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(10**11, 10**12 - 1), form=st.sampled_from(FORMS), kind=st.sampled_from(["", "x", "NaN"]))
def test_no_value_is_ever_said(contract, mappings, hospital, tmp_path_factory, number, form, kind):
    """A distinctive number, rejected in three ways, is in no message, cause, traceback, ledger or example."""
    source = hospital(form)
    try:
        raw = f"{number}{kind}"
        set_value(form, source, f'"{raw}"' if form == "fhir" and kind else raw)
        strict = contract.__class__(
            **{**{n: getattr(contract, n) for n in contract.__struct_fields__}, "max_rejected": 0.0}
        )
        with pytest.raises(RowsRejected) as caught:
            load_patients(strict, mappings[form], form, FolderSource(source))
        assert str(number) not in texts(caught.value)
        ledger = read_source(contract, mappings[form], form, FolderSource(source)).conservation
        assert str(number) not in repr(ledger) + json.dumps(ledger.to_dict())
        assert any(example.column == "mean_radius" or form == "fhir" for example in ledger.examples)
    finally:
        shutil.rmtree(source) if source.is_dir() else source.unlink()


def test_more_rejected_patients_than_the_contract_allows(contract, mappings, hospital):
    source = hospital("csv")

    def blank_three(rows):
        for row in rows[:3]:
            row["mean_area"] = ""

    edit_csv(source, blank_three)
    with pytest.raises(RowsRejected, match=r"3 of 30 patients rejected.*5\.0%.*missing_feature 3") as caught:
        load_patients(contract, mappings["csv"], "csv", FolderSource(source))
    assert caught.value.code == "data_rows_rejected"
    assert read_source(contract, mappings["csv"], "csv", FolderSource(source)).patients.x.shape == (27, 30)


def test_swapped_columns_are_out_of_range(contract, mappings, hospital):
    source = hospital("csv")

    def swap(rows):
        for row in rows:
            row["mean_radius"], row["mean_area"] = row["mean_area"], row["mean_radius"]

    edit_csv(source, swap)
    with pytest.raises(RowsRejected, match="no usable patient of 30"):
        load_patients(contract, mappings["csv"], "csv", FolderSource(source))
    ledger = read_source(contract, mappings["csv"], "csv", FolderSource(source)).conservation
    assert ledger.rows.rejected["out_of_range"] == 30  # a radius of an area's size; the area itself may pass


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ("kg", "unit_not_convertible"),
        ("furlong", "unit_unknown"),
        ("", "unit_unknown"),
        ("um2", "unit_not_convertible"),
    ],
)
def test_wrong_unit_in_fhir(contract, mappings, hospital, unit, reason):
    source = hospital("fhir")
    edit_ndjson(source / "Observation.ndjson", lambda all_: one(all_)["valueQuantity"].update(code=unit))
    loaded = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source))
    assert loaded.conservation.rejected == {reason: 1, "patient_rejected": 30}


def test_a_unit_of_another_system_is_no_ucum_code(contract, mappings, hospital):
    source = hospital("fhir")
    edit_ndjson(source / "Observation.ndjson", lambda all_: one(all_)["valueQuantity"].update(system="urn:local"))
    assert (
        load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).conservation.rejected["unit_unknown"]
        == 1
    )


def test_another_convertible_unit_gives_the_same_tensor(contract, mappings, hospital):
    source = hospital("fhir")
    before = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).patients

    def to_millimetres(resources):
        quantity = one(resources)["valueQuantity"]
        quantity.update(value=quantity["value"] / 1000, code="mm", unit="mm")

    edit_ndjson(source / "Observation.ndjson", to_millimetres)
    after = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).patients
    np.testing.assert_array_equal(before.x, after.x)


def test_wrong_unit_in_a_report_and_in_omop(contract, mappings, hospital):
    source = hospital("omop")
    edit_csv(
        source / "measurement.csv",
        lambda rows: next(
            r
            for r in rows
            if r["measurement_concept_id"] == "2000000104"  # mean_area
        ).update(unit_source_value="um"),
    )
    loaded = load_patients(contract, mappings["omop"], "omop", FolderSource(source))
    assert loaded.conservation.rejected == {"unit_not_convertible": 1, "patient_rejected": 30}


def test_entered_in_error_is_filtered_and_counted(contract, mappings, hospital):
    source = hospital("fhir")
    before = read_source(contract, mappings["fhir"], "fhir", FolderSource(source)).conservation.rows.filtered[
        "status:entered-in-error"
    ]
    edit_ndjson(source / "Observation.ndjson", lambda all_: one(all_).update(status="entered-in-error"))
    loaded = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source))
    assert loaded.conservation.rows.filtered["status:entered-in-error"] == before + 1
    assert loaded.conservation.patients.rejected == {"missing_feature": 1}


def test_a_bound_is_no_number(contract, mappings, hospital):
    fhir, omop = hospital("fhir"), hospital("omop")
    edit_ndjson(fhir / "Observation.ndjson", lambda all_: one(all_)["valueQuantity"].update(comparator="<"))
    edit_csv(
        omop / "measurement.csv",
        lambda rows: next(r for r in rows if r["measurement_concept_id"] == "2000000101").update(
            operator_concept_id="4171756"
        ),
    )
    for form, source in (("fhir", fhir), ("omop", omop)):
        assert (
            load_patients(contract, mappings[form], form, FolderSource(source)).conservation.rejected[
                "unparsable_number"
            ]
            == 1
        )


def test_exact_duplicates_are_counted_once_and_harmless(contract, mappings, hospital):
    source = hospital("fhir")
    before = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).patients
    edit_ndjson(source / "Observation.ndjson", lambda all_: all_.append(one(all_)))
    edit_ndjson(source / "Condition.ndjson", lambda all_: all_.append(all_[0]))
    loaded = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source))
    assert loaded.conservation.rejected == {"duplicate": 2}
    np.testing.assert_array_equal(before.x, loaded.patients.x)


def test_two_different_values_use_neither(contract, mappings, hospital):
    source = hospital("fhir")

    def other_value(resources):
        twin = json.loads(json.dumps(one(resources)))
        twin["valueQuantity"]["value"] += 1
        resources += [twin, twin]

    edit_ndjson(source / "Observation.ndjson", other_value)
    loaded = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source))
    assert loaded.conservation.rejected == {"conflicting_value": 3, "patient_rejected": 30}
    assert FIRST not in loaded.patients.ids


def test_conflicting_and_missing_label(contract, mappings, hospital):
    source = hospital("fhir", rows=60)

    def conflict(resources):
        twin = json.loads(json.dumps(resources[0]))
        code = twin["code"]["coding"][0]
        code["code"] = "D24" if code["code"] == "C50.9" else "C50.9"
        resources.append(twin)
        resources[1]["code"]["coding"][0]["code"] = "J45"

    edit_ndjson(source / "Condition.ndjson", conflict)
    loaded = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source))
    assert loaded.conservation.patients.rejected == {"conflicting_label": 1, "missing_label": 1}
    assert loaded.conservation.rejected["conflicting_label"] == 2
    assert loaded.conservation.rows.filtered["other_condition"] == 1


def test_same_patient_twice_is_one_patient(contract, mappings, hospital):
    source = hospital("csv")
    edit_csv(source, lambda rows: rows.append(rows[0]))
    loaded = load_patients(contract, mappings["csv"], "csv", FolderSource(source))
    assert loaded.conservation.patients.rejected == {"duplicate": 1}
    assert loaded.conservation.rejected == {"duplicate": 31}
    assert len(loaded.patients.ids) == len(set(loaded.patients.ids)) == 30


def test_patient_keys_that_are_missing(contract, mappings, hospital):
    source = hospital("csv")
    edit_csv(source, lambda rows: rows[0].update(patient_id=" "))
    loaded = load_patients(contract, mappings["csv"], "csv", FolderSource(source))
    assert loaded.conservation.patients.rejected == {"no_patient": 1}
    assert loaded.conservation.rejected == {"no_patient": 31}


def test_unmapped_code_of_the_study_system_is_unknown(contract, mappings, hospital):
    source = hospital("fhir")
    edit_ndjson(source / "Observation.ndjson", lambda all_: one(all_)["code"]["coding"][0].update(code="mean_radios"))
    ledger = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).conservation
    assert ledger.rejected["unknown_code"] == 1
    assert any(example.column == "mean_radios" for example in ledger.examples)
