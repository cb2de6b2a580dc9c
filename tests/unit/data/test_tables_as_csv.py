"""The two CSV forms (plain and OMOP) and the coordinator's reference set."""

import msgspec
import numpy as np
import pytest

from cordon.data.load import load_patients, read_source
from cordon.data.reference import read_reference
from cordon.data.source import FolderSource
from cordon.demo import samples, wdbc
from cordon.errors import DataError, MappingError, RowsRejected, SourceError


def test_missing_column_names_it(contract, mappings, hospital):
    source = hospital("csv")
    source.write_text(source.read_text().replace("worst_area", "worst_aera"))
    with pytest.raises(MappingError, match="worst_area"):
        load_patients(contract, mappings["csv"], "csv", FolderSource(source))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: b"", "no header"),
        (lambda data: data.replace(b"mean_texture", b"mean_radius"), "column name twice"),
        (lambda data: data + b"\xff\xfe\n", "not UTF-8"),
        (lambda data: data + b'"open', "csv:|end of data"),
        (lambda data: data + b"x" * 200_000, "field limit"),
    ],
)
def test_broken_files(contract, mappings, hospital, change, match):
    source = hospital("csv")
    source.write_bytes(change(source.read_bytes()))
    with pytest.raises(SourceError, match=match):
        load_patients(contract, mappings["csv"], "csv", FolderSource(source))


def test_rows_of_another_width_are_counted(contract, mappings, hospital):
    source = hospital("csv")
    source.write_text(source.read_text() + "HX-00099,1,2\n\n")
    ledger = load_patients(contract, mappings["csv"], "csv", FolderSource(source)).conservation
    assert ledger.patients.rejected == {"unreadable": 1}
    assert ledger.examples[0].pointer == "csv:32"


def test_byte_order_mark_semicolons_and_decimal_commas(contract, mappings, hospital):
    source = hospital("csv")
    before = load_patients(contract, mappings["csv"], "csv", FolderSource(source)).patients
    text = source.read_text().replace(",", ";").replace(".", ",")
    source.write_text(text, encoding="utf-8-sig")
    features = [feature.id for feature in contract.features]
    mapping = msgspec.structs.replace(mappings["csv"], options={"delimiter": ";", "decimal_comma": features})
    np.testing.assert_array_equal(load_patients(contract, mapping, "csv", FolderSource(source)).patients.x, before.x)
    undeclared = msgspec.structs.replace(mappings["csv"], options={"delimiter": ";"})
    with pytest.raises(RowsRejected, match="no usable patient"):
        load_patients(contract, undeclared, "csv", FolderSource(source))


def test_decimal_comma_must_name_a_source(contract, mappings, hospital):
    mapping = msgspec.structs.replace(mappings["csv"], options={"decimal_comma": ["mean_radios"]})
    with pytest.raises(MappingError, match="mean_radios"):
        load_patients(contract, mapping, "csv", FolderSource(hospital("csv")))


def test_empty_table(contract, mappings, hospital):
    source = hospital("csv")
    source.write_text(source.read_text().splitlines()[0] + "\n")
    with pytest.raises(RowsRejected, match="no usable patient of 0"):
        load_patients(contract, mappings["csv"], "csv", FolderSource(source))


def test_omop_person_twice_and_stranger(contract, mappings, hospital):
    source = hospital("omop")
    person = (source / "person.csv").read_text()
    (source / "person.csv").write_text(person + person.splitlines()[1] + "\n")
    measurement = (source / "measurement.csv").read_text()
    stranger = next(line for line in measurement.splitlines() if "mean_radius" in line).split(",")
    stranger[1] = "99999999"
    nobody = [*stranger[:1], "", *stranger[2:]]
    (source / "measurement.csv").write_text(measurement + ",".join(stranger) + "\n" + ",".join(nobody) + "\n")
    ledger = load_patients(contract, mappings["omop"], "omop", FolderSource(source)).conservation
    assert ledger.patients.rejected == {"duplicate": 1}
    assert ledger.rejected == {"unresolved_reference": 1, "no_patient": 1}


def test_omop_local_concept_without_mapping_is_unknown_standard_ones_are_set_aside(contract, mappings, hospital):
    source = hospital("omop")
    text = (source / "measurement.csv").read_text()
    line = next(line for line in text.splitlines() if "2000000101" in line)
    (source / "measurement.csv").write_text(
        text + line.replace("2000000101", "2000000999") + "\n" + line.replace("2000000101", "3025315") + "\n"
    )
    ledger = load_patients(contract, mappings["omop"], "omop", FolderSource(source)).conservation
    assert ledger.rejected == {"unknown_code": 1}
    assert ledger.rows.filtered == {"other_concept": 31}


def test_omop_type_filter_is_declared(contract, mappings, hospital):
    source = hospital("omop")
    text = (source / "measurement.csv").read_text().replace(",32817,", ",32865,", 1)  # 1 row from another provenance
    (source / "measurement.csv").write_text(text)
    mapping = msgspec.structs.replace(mappings["omop"], options={"filter_types": ["32865"]})
    assert read_source(contract, mapping, "omop", FolderSource(source)).conservation.rows.filtered["type:32865"] == 1


@pytest.mark.parametrize("table", ["person", "measurement", "condition_occurrence"])
def test_omop_table_missing(contract, mappings, hospital, table):
    source = hospital("omop")
    (source / f"{table}.csv").unlink()
    with pytest.raises(SourceError, match=table):
        load_patients(contract, mappings["omop"], "omop", FolderSource(source))


def test_omop_names_outside_the_model(contract, mappings, hospital):
    for wrong in (
        msgspec.structs.replace(mappings["omop"], patient="year_of_birth"),
        msgspec.structs.replace(
            mappings["omop"], label=msgspec.structs.replace(mappings["omop"].label, source="stop_reason")
        ),
    ):
        with pytest.raises(MappingError, match="must be"):
            load_patients(
                contract,
                wrong,
                "omop",
                FolderSource(hospital("omop") if wrong.patient == "year_of_birth" else hospital("csv").parent / "omop"),
            )


def test_reference_set_keeps_the_order_of_the_file(contract, tmp_path):
    table = wdbc.load()
    samples.write_reference(tmp_path / "reference.csv", table.x[:40], table.y[:40])
    x, y = read_reference(tmp_path / "reference.csv", contract)
    center = np.array([feature.center for feature in contract.features])
    scale = np.array([feature.scale for feature in contract.features])
    np.testing.assert_array_equal(x, ((table.x[:40] - center) / scale).astype(np.float32))
    np.testing.assert_array_equal(y, table.y[:40])


def test_reference_set_is_held_to_the_same_rules(contract, tmp_path):
    path = tmp_path / "reference.csv"
    table = wdbc.load()
    samples.write_reference(path, table.x[:4], table.y[:4])
    text = path.read_text()
    path.write_text(text.replace(text.splitlines()[2].split(",")[0], "nan", 1))
    with pytest.raises(DataError, match=r"reference\.csv:3 mean_radius"):
        read_reference(path, contract)
    with pytest.raises(SourceError):
        read_reference(tmp_path / "none.csv", contract)
