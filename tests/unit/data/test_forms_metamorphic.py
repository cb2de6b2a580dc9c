"""The strongest test of the connectors: the same patients in five forms are the same tensor, bit for bit."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon.data.load import load_patients
from cordon.data.source import FolderSource
from cordon.demo import samples, wdbc

FORMS = ("fhir", "sql", "pdf", "omop", "csv")


def test_five_forms_give_the_identical_tensor(contract, mappings, hospital):
    loaded = {
        form: load_patients(contract, mappings[form], form, FolderSource(hospital(form, rows=60))) for form in FORMS
    }
    first = loaded["csv"].patients
    assert first.ids == tuple(sorted(samples.patient_ids("hospital-x", range(60))))
    for form, each in loaded.items():
        assert each.patients.ids == first.ids, form
        np.testing.assert_array_equal(each.patients.x, first.x, err_msg=form)
        np.testing.assert_array_equal(each.patients.y, first.y, err_msg=form)
        assert each.conservation.rows.rows_out == 60 * 31, form


def test_the_tensor_is_the_source_table_scaled_by_the_contract(contract, mappings, hospital):
    patients = load_patients(contract, mappings["fhir"], "fhir", FolderSource(hospital("fhir"))).patients
    center = np.array([feature.center for feature in contract.features])
    scale = np.array([feature.scale for feature in contract.features])
    table = wdbc.load()
    np.testing.assert_array_equal(patients.x, ((table.x[:30] - center) / scale).astype(np.float32))
    np.testing.assert_array_equal(patients.y, table.y[:30].astype(np.float32))
    assert patients.x.dtype == patients.y.dtype == np.float32
    assert set(patients.y) == {0.0, 1.0}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_plausible_decimal_survives_every_form(contract, mappings, tmp_path_factory, data):
    rows = data.draw(st.integers(1, 4))
    cells = [
        [
            data.draw(st.decimals(feature.range[0], str(feature.range[1]), places=data.draw(st.integers(0, 7))))
            for feature in contract.features
        ]
        for _ in range(rows)
    ]
    table = wdbc.Table(np.arange(rows), np.array(cells, float), np.arange(rows) % 2)
    seen = []
    for form in FORMS:
        target = tmp_path_factory.mktemp(form) / "source"
        samples.write_hospital("hospital-x", form, target, table)
        seen.append(load_patients(contract, mappings[form], form, FolderSource(target)).patients.x)
    for form, x in zip(FORMS, seen, strict=True):
        np.testing.assert_array_equal(x, seen[0], err_msg=form)


@pytest.mark.parametrize("form", FORMS)
def test_order_of_entries_does_not_matter(contract, mappings, tmp_path, form):
    table = wdbc.load().take(np.arange(12))
    loaded = []
    for seed in (1, 2):
        samples.write_hospital("hospital-x", form, tmp_path / f"{form}-{seed}", table, seed)
        loaded.append(load_patients(contract, mappings[form], form, FolderSource(tmp_path / f"{form}-{seed}")).patients)
    assert loaded[0].ids == loaded[1].ids
    np.testing.assert_array_equal(loaded[0].x, loaded[1].x)


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_the_same_for_the_same_seed(tmp_path, form):
    table = wdbc.load().take(np.arange(5))
    digests = []
    for name in ("one", "two"):
        samples.write_hospital("hospital-x", form, tmp_path / name, table, seed=3)
        files = sorted((tmp_path / name).iterdir()) if (tmp_path / name).is_dir() else [tmp_path / name]
        digests.append(
            [(path.name * (len(files) > 1), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
        )
    assert digests[0] == digests[1]


def test_samples_do_not_overwrite(tmp_path: Path):
    from cordon.errors import ConfigError

    table = wdbc.load().take(np.arange(2))
    samples.write_hospital("hospital-x", "csv", tmp_path / "a.csv", table)
    with pytest.raises(ConfigError, match="there already"):
        samples.write_hospital("hospital-x", "csv", tmp_path / "a.csv", table)
    with pytest.raises(ConfigError, match="no form"):
        samples.write_hospital("hospital-x", "xml", tmp_path / "b", table)
