"""One call from a hospital's source to what training sees: ``load_patients``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cordon.data.contract import FeatureContract, Mapping
from cordon.data.harmonise import Patients, check_mapping, harmonise, judge
from cordon.data.ledger import Conservation
from cordon.data.records import Options, Record, read_options
from cordon.data.source import Source
from cordon.errors import MappingError

# connector -> (module, its options); imported when used, so that a site loads only the libraries of its own form
CONNECTORS = {
    "fhir": ("fhir", "FhirOptions"),
    "sql": ("sql", "SqlOptions"),
    "omop": ("omop", "OmopOptions"),
    "pdf": ("pdf", "PdfOptions"),
    "csv": ("csv_file", "CsvOptions"),
}

Scan = Callable[[Source, Mapping, Any], Iterator[Record]]


@dataclass(frozen=True)
class Loaded:
    """Patients fit for training, and the ledger of how they came about."""

    patients: Patients
    conservation: Conservation


def load_patients(contract: FeatureContract, mapping: Mapping, connector: str, source: Source) -> Loaded:
    """The patients of ``source`` (one member or several, as the connector wants) as the contract's feature vectors.

    Raises:
        MappingError: the mapping does not cover the contract, or names what the source does not have.
        SourceError: the source is missing, unreadable or not of the connector's form.
        DataError: code ``data_not_finite`` for any NaN or infinity in the source, with pointer and column.
        RowsRejected: a larger fraction of the patients rejected than the contract allows.
    """
    loaded = read_source(contract, mapping, connector, source)
    judge(contract, loaded.conservation)
    return loaded


def read_source(contract: FeatureContract, mapping: Mapping, connector: str, source: Source) -> Loaded:
    """``load_patients`` without the verdict: for showing a hospital what is wrong with its data."""
    scan, kind = _connector(connector)
    check_mapping(contract, mapping, connector)
    options = read_options(mapping, kind)
    patients, ledger = harmonise(contract, mapping, options, scan(source, mapping, options))
    return Loaded(patients, ledger)


def _connector(name: str) -> tuple[Scan, type[Options]]:
    if name not in CONNECTORS:
        raise MappingError(f"no connector {name!r}; there are {', '.join(sorted(CONNECTORS))}")
    module_name, options_name = CONNECTORS[name]
    module = import_module(f"cordon.data.{module_name}")
    return module.scan, getattr(module, options_name)
