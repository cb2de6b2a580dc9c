"""The coordinator's public reference set: a CSV whose columns are the contract's ids, in the contract's units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cordon.data.contract import FeatureContract, Field, LabelField, Mapping
from cordon.data.csv_file import ROW_NUMBER
from cordon.data.load import load_patients
from cordon.data.source import FolderSource


def read_reference(path: Path, contract: FeatureContract) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(x (n, k) float32 scaled by the contract, y (n,) float32 in {0, 1}) in the order of the file.

    Raises:
        DataError: as ``load_patients``; the file is held to the same rules as a hospital's.
    """
    mapping = Mapping(
        version="cordon/mapping/v1",
        contract=contract.contract,
        connector="csv",
        confirmed_by="the study contract, which names this file",
        confirmed_at="with the study contract",
        patient=ROW_NUMBER,
        features={feature.id: Field(source=feature.id, unit=feature.unit) for feature in contract.features},
        label=LabelField(source=contract.label.id, positive=("1",), negative=("0",)),
    )
    patients = load_patients(contract, mapping, "csv", FolderSource(path)).patients
    return patients.x, patients.y
