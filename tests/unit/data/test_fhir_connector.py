"""FHIR Bulk Data: references, broken lines, members; and real Synthea and OMOP files where the vectors are at hand."""

import gzip
import json
from collections import Counter

import msgspec
import pytest

from cordon.data.contract import LabelField, Mapping
from cordon.data.fhir import FhirOptions, scan
from cordon.data.load import load_patients, read_source
from cordon.data.omop import OmopOptions
from cordon.data.omop import scan as scan_omop
from cordon.data.source import MAX_LINE, FolderSource
from cordon.errors import MappingError, SourceError

LOINC = "http://loinc.org"


def rewrite(path, change):
    path.write_text("".join(change(json.loads(line)) + "\n" for line in path.read_text().splitlines()))


def test_urn_uuid_references_resolve(contract, mappings, hospital):
    """Bundles refer by urn:uuid; a resolver that splits at '/' would silently find nobody."""
    source = hospital("fhir")
    before = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).patients
    uuid = {key: f"00000000-0000-4000-8000-{number:012d}" for number, key in enumerate(before.ids)}

    def rename(resource):
        text = json.dumps(resource)
        for key, value in uuid.items():
            text = text.replace(f"Patient/{key}", f"urn:uuid:{value}").replace(f'"id": "{key}"', f'"id": "{value}"')
        return text

    for kind in ("Patient", "Observation", "Condition"):
        rewrite(source / f"{kind}.ndjson", rename)
    after = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).patients
    assert after.ids == tuple(sorted(uuid.values()))
    assert (after.x == before.x).all()


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("urn:uuid:00000000-0000-4000-8000-00000000dead", "unresolved_reference"),
        ("Patient/HX-99999", "unresolved_reference"),
        ("Group/HX-00000", "unresolved_reference"),
        ("https://elsewhere.example/fhir/Patient/HX-00000", "unresolved_reference"),
        ("Patient/HX-00000/../HX-00001", "unresolved_reference"),
        ("Patient/HX-00000\n", "unresolved_reference"),
        ("", "no_patient"),
    ],
)
def test_references_that_lead_nowhere_are_counted(contract, mappings, hospital, reference, reason):
    source = hospital("fhir")
    lines = (source / "Observation.ndjson").read_text().splitlines()
    wanted = next(
        at for at, line in enumerate(lines) if "mean_radius" in line and "HX-00000" in line and "final" in line
    )
    resource = json.loads(lines[wanted])
    resource["subject"]["reference"] = reference
    lines[wanted] = json.dumps(resource)
    (source / "Observation.ndjson").write_text("\n".join(lines))
    ledger = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).conservation
    assert ledger.rejected == {reason: 1, "patient_rejected": 30}
    assert ledger.examples[0].pointer == f"Observation.ndjson:{wanted + 1}"


def test_version_specific_reference_resolves(contract, mappings, hospital):
    source = hospital("fhir")
    text = (source / "Observation.ndjson").read_text().replace("Patient/HX-00000", "Patient/HX-00000/_history/2")
    (source / "Observation.ndjson").write_text(text)
    assert len(load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).patients.ids) == 30


@pytest.mark.parametrize(
    "line",
    [
        b"{not json}",
        b'{"resourceType":"Patient","id":"x"}',
        b"\xff\xfe",
        b"[]",
        b'{"resourceType":"Observation","x":' + b"[" * 100_000,
        b'{"resourceType":"Observation","status":7}',
        b'{"valueQuantity":{"value":NaN}}',
    ],
)
def test_broken_lines_are_counted_not_fatal(contract, mappings, hospital, line):
    source = hospital("fhir")
    with open(source / "Observation.ndjson", "ab") as file:
        file.write(line + b"\n")
    ledger = load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).conservation
    assert ledger.rejected == {"unreadable": 1}
    assert ledger.patients.rows_out == 30


def test_broken_patient_and_condition_lines(contract, mappings, hospital):
    source = hospital("fhir")
    for kind in ("Patient", "Condition"):
        with open(source / f"{kind}.ndjson", "a") as file:
            file.write('{"resourceType":"Practitioner","id":"p"}\n{\n')
    ledger = read_source(contract, mappings["fhir"], "fhir", FolderSource(source)).conservation
    assert ledger.patients.rejected == {"unreadable": 2}
    assert ledger.rejected == {"unreadable": 2}


def test_an_endless_line_ends_the_reading(contract, mappings, hospital):
    source = hospital("fhir")
    with open(source / "Observation.ndjson", "ab") as file:
        file.write(b" " * (MAX_LINE + 2))
    with pytest.raises(SourceError, match="longer than"):
        load_patients(contract, mappings["fhir"], "fhir", FolderSource(source))


def test_several_files_of_one_type_and_a_missing_type(contract, mappings, hospital):
    source = hospital("fhir")
    lines = (source / "Observation.ndjson").read_text().splitlines(keepends=True)
    (source / "Observation.ndjson").unlink()
    (source / "Observation.000.ndjson").write_text("".join(lines[:400]))
    (source / "Observation_1.ndjson").write_text("".join(lines[400:]))
    assert len(load_patients(contract, mappings["fhir"], "fhir", FolderSource(source)).patients.ids) == 30
    (source / "Condition.ndjson").rename(source / "Conditions.ndjson")
    with pytest.raises(SourceError, match=r"no Condition\.ndjson"):
        load_patients(contract, mappings["fhir"], "fhir", FolderSource(source))


def test_links_are_no_members(contract, mappings, hospital, tmp_path):
    source = hospital("fhir")
    (source / "Patient.ndjson").rename(tmp_path / "elsewhere.ndjson")
    (source / "Patient.ndjson").symlink_to(tmp_path / "elsewhere.ndjson")
    with pytest.raises(SourceError, match=r"no Patient\.ndjson"):
        load_patients(contract, mappings["fhir"], "fhir", FolderSource(source))


def test_members_cannot_leave_the_folder(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in").mkdir()
    for name in ("../secret", "/etc/hostname", "..", "."):
        with pytest.raises(SourceError):
            FolderSource(tmp_path / "in").open(name)


def test_options_are_a_closed_set(contract, mappings, hospital):
    wrong = msgspec.structs.replace(mappings["fhir"], options={"code_system": "x", "eval": "1"})
    with pytest.raises(MappingError, match="eval"):
        load_patients(contract, wrong, "fhir", FolderSource(hospital("fhir")))
    wrong = msgspec.structs.replace(mappings["fhir"], patient="id")
    with pytest.raises(MappingError, match="subject"):
        load_patients(contract, wrong, "fhir", FolderSource(hospital("csv").parent / "fhir"))


def test_real_bulk_data(vectors, tmp_path):
    """Synthea's export: every line is read, every reference (all urn:uuid) resolved; counts as the index says."""
    for kind in ("Patient", "Observation", "Condition"):
        packed = vectors / "clinical" / "fhir" / "bulk" / f"{kind}.ndjson.gz"
        (tmp_path / f"{kind}.ndjson").write_bytes(gzip.decompress(packed.read_bytes()))
    label = LabelField(source="http://snomed.info/sct", positive=("254837009",), negative=("40055000",))
    mapping = Mapping(
        version="cordon/mapping/v1",
        contract="real/1.0.0",
        connector="fhir",
        confirmed_by="a test",
        confirmed_at="2026-11-02",
        patient="subject",
        features={},
        label=label,
    )
    records = list(scan(FolderSource(tmp_path), mapping, FhirOptions(code_system=LOINC)))
    kinds = Counter(record.kind for record in records)
    assert kinds == {"patient": 100, "feature": 16315, "label": 639}
    assert not any(record.fault for record in records)
    patients = {record.patient for record in records if record.kind == "patient"}
    assert {record.patient for record in records} == patients
    assert sum(record.value is not None for record in records if record.kind == "feature") == 14251
    assert sum(record.value == "254837009" for record in records) == 2


def test_real_omop_tables(vectors, tmp_path):
    """Synthea in CDM 5.4: 28 persons, 10040 measurements of which 933 have no number."""
    for name in ("PERSON", "MEASUREMENT", "CONDITION_OCCURRENCE"):
        packed = vectors / "clinical" / "omop" / f"{name}.csv.gz"
        (tmp_path / f"{name}.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    mapping = Mapping(
        version="cordon/mapping/v1",
        contract="real/1.0.0",
        connector="omop",
        confirmed_by="a test",
        confirmed_at="2026-11-02",
        patient="person_id",
        features={},
        label=LabelField(source="condition_concept_id", positive=("372328",), negative=("43530622",)),
    )
    records = list(scan_omop(FolderSource(tmp_path), mapping, OmopOptions()))
    assert Counter(record.kind for record in records) == {"patient": 28, "feature": 10040, "label": 470}
    assert not any(record.fault for record in records)
    assert sum(record.value == "" for record in records if record.kind == "feature") == 933
