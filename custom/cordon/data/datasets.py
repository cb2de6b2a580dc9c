"""Patients as a torch dataset; every sample carries its patient, the unit of privacy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cordon.data.harmonise import Patients


class PatientDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """One sample per patient: (x (k,) float32 scaled, y () float32, pid = index on this site)."""

    def __init__(self, patients: Patients) -> None:
        self.x = torch.from_numpy(patients.x)
        self.y = torch.from_numpy(patients.y)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.x[index], self.y[index], index
