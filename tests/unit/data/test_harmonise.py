"""The ledger closes whatever comes in; the mapping must be whole; the verdict is the contract's."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.data.contract import Concept, Feature, FeatureContract, Field, Label, LabelField, Mapping
from cordon.data.harmonise import check_mapping, harmonise, judge
from cordon.data.ledger import Balance, Conservation
from cordon.data.load import load_patients
from cordon.data.records import REASONS, Options, Record
from cordon.data.source import FolderSource
from cordon.errors import DataError, MappingError, RowsRejected


def concept(code):
    return Concept(system="urn:test", code=code)


def feature(name, unit="um", **more):
    return Feature(
        **{"id": name, "concept": concept(name), "unit": unit, "type": "numeric", "range": (0, 100)},
        **{"center": 10.0, "scale": 2.0, **more},
    )


CONTRACT = FeatureContract(
    version="cordon/contract/v1",
    contract="tiny/1.0.0",
    privacy_unit="patient",
    features=(feature("size"), feature("ratio", "1")),
    label=Label(id="sick", positive=concept("yes"), negative=concept("no")),
)
MAPPING = Mapping(
    version="cordon/mapping/v1",
    contract="tiny/1.0.0",
    connector="csv",
    confirmed_by="steward",
    confirmed_at="2026-11-02",
    patient="pid",
    features={"size": Field(source="A", unit="mm"), "ratio": Field(source="B", unit="1")},
    label=LabelField(source="L", positive=("yes", "ja"), negative=("no",)),
)


def whole(patient, size="0.01", ratio="4", label="yes", at=0):
    return [
        Record("patient", f"t:{at}", patient),
        Record("feature", f"t:{at}", patient, "A", size),
        Record("feature", f"t:{at}", patient, "B", ratio),
        Record("label", f"t:{at}", patient, "L", label),
    ]


def test_scaling_units_and_labels():
    patients, ledger = harmonise(CONTRACT, MAPPING, Options(), [*whole("b", "0.012"), *whole("a", label="no")])
    assert patients.ids == ("a", "b")
    np.testing.assert_array_equal(patients.x, np.array([[0, -3], [1, -3]], np.float32))
    np.testing.assert_array_equal(patients.y, np.array([0, 1], np.float32))
    assert ledger.to_dict()["rows"] == {"rows_in": 6, "rows_out": 6, "rejected": {}, "filtered": {}}


def test_a_stated_unit_holds_against_the_mappings():
    records = whole("a")
    records[1] = Record("feature", "t:0", "a", "A", "14", "um")
    assert harmonise(CONTRACT, MAPPING, Options(), records)[0].x[0, 0] == 2


def test_range_bounds_are_inclusive():
    good = [*whole("a", "0", "100"), *whole("b", "0.1", "0")]
    assert harmonise(CONTRACT, MAPPING, Options(), good)[0].ids == ("a", "b")
    for size in ("-0.0000001", "0.1000001"):
        assert harmonise(CONTRACT, MAPPING, Options(), whole("a", size))[1].rejected["out_of_range"] == 1


def test_records_before_their_patient_are_unresolved():
    records = whole("a")
    _, ledger = harmonise(CONTRACT, MAPPING, Options(), records[1:] + records[:1])
    assert ledger.rejected == {"unresolved_reference": 3}


cells = st.sampled_from(["0.01", "0.02", "0,01", "7000", "", None, "x", 0.01, "NaN"])
random_records = st.builds(
    Record,
    kind=st.sampled_from(["patient", "feature", "feature", "label"]),
    pointer=st.just("t:1"),
    patient=st.sampled_from(["a", "b", "c", ""]),
    code=st.sampled_from(["A", "B", "C", "L"]),
    value=st.one_of(cells, st.sampled_from(["yes", "no", "ja", "perhaps"])),
    unit=st.sampled_from([None, None, "mm", "kg", "wibble", ""]),
    fault=st.sampled_from(["", "", "", "unreadable", "no_patient"]),
    filtered=st.sampled_from(["", "", "", "status:void"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(random_records, max_size=60), st.lists(st.sampled_from(["d", "e", "f"]), unique=True))
def test_conservation_for_any_records(noise, patients):
    """in = out + rejected + filtered for values and patients, whatever comes; complete patients are never lost."""
    records = [*itertools.chain.from_iterable(whole(patient) for patient in patients), *noise]
    found, ledger = harmonise(CONTRACT, MAPPING, Options(), records)
    assert set(patients) <= set(found.ids)
    declared = sum(record.kind == "patient" for record in records)
    assert (ledger.patients.rows_in, ledger.rows.rows_in) == (declared, len(records) - declared)
    for balance in (ledger.patients, ledger.rows):
        assert balance.rows_in == balance.rows_out + balance.rejected.total() + balance.filtered.total()
        assert set(balance.rejected) <= set(REASONS)
    assert ledger.rows.rows_out == 3 * len(found.ids)
    assert np.isfinite(found.x).all() and set(found.y) <= {0.0, 1.0}


def merged(ledger):
    """The ledger with both reasons for a second value as one: an equal value before a conflict stays a duplicate."""
    counts = ledger.to_dict()
    rejected = counts["rows"]["rejected"]
    twice = ("duplicate", "conflicting_value", "conflicting_label")
    rejected["twice"] = sum(rejected.pop(reason, 0) for reason in twice)
    return counts


@settings(max_examples=200, deadline=None)
@given(st.lists(random_records, max_size=25), st.randoms(use_true_random=False))
def test_the_order_of_records_changes_nothing(noise, random):
    declared = [Record("patient", "t:0", patient) for patient in "abc"]
    values = [record for record in noise if record.kind != "patient"]
    first = harmonise(CONTRACT, MAPPING, Options(), declared + values)
    random.shuffle(values)
    second = harmonise(CONTRACT, MAPPING, Options(), declared + values)
    assert first[0].ids == second[0].ids
    np.testing.assert_array_equal(first[0].x, second[0].x)
    assert merged(first[1]) == merged(second[1])


def test_a_balance_that_does_not_close_is_an_error():
    with pytest.raises(DataError) as caught:
        Balance(rows_in=3, rows_out=2).check("rows")
    assert caught.value.code == "data_conservation"
    with pytest.raises(ValueError, match="not a rejection reason"):
        Conservation().reject(Balance(), "because", "t:1", "A")


@pytest.mark.parametrize(("bad", "raises"), [(0, False), (5, False), (6, True), (100, True)])
def test_the_verdict_is_the_contracts_limit(bad, raises):
    records = [record for at in range(100) for record in whole(f"p{at}", size="" if at < bad else "0.01", at=at)]
    _, ledger = harmonise(CONTRACT, MAPPING, Options(), records)
    if raises:
        with pytest.raises(RowsRejected):
            judge(CONTRACT, ledger)
    else:
        judge(CONTRACT, ledger)


def test_scale_that_overflows_is_an_error():
    contract = msgspec.structs.replace(CONTRACT, features=(feature("size", scale=1e-300), feature("ratio", "1")))
    with pytest.raises(DataError, match="scaled values"):
        harmonise(contract, MAPPING, Options(), whole("a", "0.02"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"contract": "other/1.0.0"}, "other/1.0.0"),
        ({"connector": "fhir"}, "connector fhir"),
        ({"confirmed_by": " "}, "not confirmed"),
        ({"confirmed_at": ""}, "not confirmed"),
        ({"features": {"size": Field(source="A", unit="mm")}}, "ratio"),
        ({"features": {**MAPPING.features, "age": Field(source="C", unit="a")}}, "age"),
        ({"features": {name: Field(source="A", unit="1") for name in ("size", "ratio")}}, "same source"),
        ({"features": {**MAPPING.features, "size": Field(source="A", unit="kg")}}, "unit_not_convertible"),
        ({"features": {**MAPPING.features, "size": Field(source="A", unit="wibble")}}, "unit_unknown"),
        ({"label": LabelField(source="L", positive=("x",), negative=("x",))}, "overlap"),
        ({"label": LabelField(source="L", positive=(), negative=("x",))}, "must be given"),
    ],
)
def test_mappings_that_do_not_fit(change, match, tmp_path):
    check_mapping(CONTRACT, MAPPING, "csv")
    with pytest.raises(MappingError, match=match):
        load_patients(
            CONTRACT, msgspec.structs.replace(MAPPING, **change), "csv", FolderSource(tmp_path / "never-opened")
        )


def test_unknown_connector(tmp_path):
    with pytest.raises(MappingError, match="no connector 'xlsx'; there are csv, fhir"):
        load_patients(CONTRACT, MAPPING, "xlsx", FolderSource(tmp_path))
