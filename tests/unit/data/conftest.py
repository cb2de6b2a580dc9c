"""The study's contract, the five mappings and a small hospital in any of the five forms."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cordon import documents
from cordon.data.contract import FeatureContract, Mapping
from cordon.demo import samples, wdbc

FORMS = {"fhir": "a", "sql": "b", "pdf": "c", "omop": "d", "csv": "e"}


@pytest.fixture(scope="session")
def contract(repo_root: Path) -> FeatureContract:
    return documents.load(repo_root / "jobs" / "oncology" / "app" / "config" / "contract.yml", FeatureContract)


@pytest.fixture(scope="session")
def mappings(repo_root: Path) -> dict[str, Mapping]:
    folder = repo_root / "provisioning" / "poc" / "mappings"
    return {form: documents.load(folder / f"hospital-{letter}.yml", Mapping) for form, letter in FORMS.items()}


@pytest.fixture
def hospital(tmp_path: Path) -> Callable[..., Path]:
    """hospital(form) -> where 30 patients (rows 0..29 of the data set) lie in that form; same patients every time."""

    def make(form: str, rows: int = 30) -> Path:
        target = tmp_path / form
        table = wdbc.load()
        samples.write_hospital("hospital-x", form, target, table.take(table.patients[:rows]))
        return target

    return make
