"""From raw records to the contract's feature vectors: units, ranges, one value per patient and feature, scaling.

``x = (value in the contract's unit - center) / scale`` with the contract's public constants, never with a site's own.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cordon.data.contract import Feature, FeatureContract, Mapping
from cordon.data.ledger import Conservation
from cordon.data.quantity import Rejected, conversion, convert, parse_number
from cordon.data.records import Options, Record
from cordon.errors import DataError, MappingError, RowsRejected

MAX_PATIENTS = 10_000_000


@dataclass(frozen=True)
class Patients:
    """What training sees, in the order of the sorted ids.

    Attributes:
        ids: (n,) the source's patient keys.
        x: (n, k) float32, scaled.
        y: (n,) float32, 0 or 1.
    """

    ids: tuple[str, ...]
    x: NDArray[np.float32]
    y: NDArray[np.float32]


def check_mapping(contract: FeatureContract, mapping: Mapping, connector: str) -> None:
    """Raise MappingError unless ``mapping`` is confirmed and covers exactly ``contract`` for ``connector``."""
    if mapping.contract != contract.contract:
        raise MappingError(f"the mapping is for contract {mapping.contract}, the job asks for {contract.contract}")
    if mapping.connector != connector:
        raise MappingError(f"the mapping is for connector {mapping.connector}, the site's policy says {connector}")
    if not mapping.confirmed_by.strip() or not mapping.confirmed_at.strip():
        raise MappingError("the mapping is not confirmed: confirmed_by and confirmed_at must name the data steward")
    wanted = {feature.id for feature in contract.features}
    if missing := sorted(wanted - set(mapping.features)):
        raise MappingError(f"the mapping does not say where to find: {', '.join(missing)}")
    if extra := sorted(set(mapping.features) - wanted):
        raise MappingError(f"the mapping has features that the contract does not ask for: {', '.join(extra)}")
    sources = [field.source for field in mapping.features.values()]
    if len(sources) != len(set(sources)):
        raise MappingError("two features of the mapping have the same source")
    positive, negative = set(mapping.label.positive), set(mapping.label.negative)
    if not positive or not negative or positive & negative:
        raise MappingError("the label's positive and negative values must be given and must not overlap")
    for feature in contract.features:
        try:
            conversion(mapping.features[feature.id].unit, feature.unit)
        except Rejected as error:
            unit = mapping.features[feature.id].unit
            raise MappingError(f"{feature.id}: {unit!r} to {feature.unit!r}: {error.code}") from error


def harmonise(
    contract: FeatureContract, mapping: Mapping, options: Options, records: Iterable[Record]
) -> tuple[Patients, Conservation]:
    """The patients that ``records`` describe completely, and the closed ledger of everything else."""
    table = _Table(contract, mapping, options)
    for record in records:
        table.add(record)
    return table.patients(), table.ledger


def judge(contract: FeatureContract, ledger: Conservation) -> None:
    """Raise unless the source is fit for training.

    Raises:
        DataError: code ``data_not_finite``: the source holds a NaN or an infinity.
        RowsRejected: no patient left, or a larger fraction rejected than ``contract.max_rejected``.
    """
    if bad := ledger.first.get("not_finite"):
        count, where = ledger.rows.rejected["not_finite"], f"{bad.pointer} {bad.column}"
        raise DataError(f"{count} values are not finite (NaN or infinity); first: {where}", "data_not_finite")
    balance = ledger.patients
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(balance.rejected.items())) or "none"
    if balance.rows_out == 0:
        raise RowsRejected(f"no usable patient of {balance.rows_in} (rejected: {reasons})")
    fraction = balance.rejected.total() / balance.rows_in
    if fraction > contract.max_rejected:
        raise RowsRejected(
            f"{balance.rejected.total()} of {balance.rows_in} patients rejected, the contract allows "
            f"{contract.max_rejected:.1%} (patients by reason: {reasons}; see `cordon data check`)"
        )


class _Table:
    """One growing table: a row of doubles per declared patient, NaN where nothing has come yet."""

    def __init__(self, contract: FeatureContract, mapping: Mapping, options: Options) -> None:
        self.ledger = Conservation()
        self._features = contract.features
        self._columns = {mapping.features[feature.id].source: at for at, feature in enumerate(contract.features)}
        self._units = [mapping.features[feature.id].unit for feature in contract.features]
        self._label = contract.label.id
        self._classes = dict.fromkeys(mapping.label.positive, 1.0) | dict.fromkeys(mapping.label.negative, 0.0)
        self._spelling = options.units
        self._comma = set(options.decimal_comma)
        if unknown := self._comma - set(self._columns):
            raise MappingError(f"decimal_comma names what is no feature's source: {', '.join(sorted(unknown))}")
        self._empty = array("d", [math.nan]) * (len(contract.features) + 1)
        self._rows: dict[str, array[float]] = {}
        self._pointers: dict[str, str] = {}
        self._conflicts: set[tuple[str, int]] = set()

    def add(self, record: Record) -> None:
        """Take one record in: into the table or into the ledger."""
        if record.kind == "patient":
            self._declare(record)
            return
        self.ledger.rows.rows_in += 1
        if record.filtered:
            self.ledger.rows.filtered[record.filtered] += 1
            return
        at = len(self._features) if record.kind == "label" else self._columns.get(record.code, -1)
        try:
            self._store(record, at)
        except Rejected as error:
            self.ledger.reject(self.ledger.rows, error.code, record.pointer, self._name(at, record))

    def _declare(self, record: Record) -> None:
        self.ledger.patients.rows_in += 1
        if record.filtered:
            self.ledger.patients.filtered[record.filtered] += 1
            return
        fault = record.fault or ("" if record.patient else "no_patient")
        if not fault and record.patient in self._rows:
            fault = "duplicate"
        if fault:
            self.ledger.reject(self.ledger.patients, fault, record.pointer, "patient")
            return
        if len(self._rows) >= MAX_PATIENTS:
            raise DataError(f"more than {MAX_PATIENTS} patients", "data_too_many_patients")
        self._rows[record.patient] = self._empty[:]
        self._pointers[record.patient] = record.pointer

    def _store(self, record: Record, at: int) -> None:
        if record.fault:
            raise Rejected(record.fault)
        if not record.patient:
            raise Rejected("no_patient")
        row = self._rows.get(record.patient)
        if row is None:
            raise Rejected("unresolved_reference")
        if at < 0:
            raise Rejected("unknown_code")
        value = self._class(record) if record.kind == "label" else self._number(record, at)
        is_label = at == len(self._features)
        if (record.patient, at) in self._conflicts:
            raise Rejected("conflicting_label" if is_label else "conflicting_value")
        if math.isnan(row[at]):
            row[at] = value
        elif row[at] == value:
            raise Rejected("duplicate")
        else:
            # No rule of the contract says which one is right, and the order of a file is none: neither is used.
            row[at] = math.nan
            self._conflicts.add((record.patient, at))
            reason = "conflicting_label" if is_label else "conflicting_value"
            self.ledger.reject(self.ledger.rows, reason, record.pointer, self._name(at, record))
            raise Rejected(reason)

    def _number(self, record: Record, at: int) -> float:
        feature = self._features[at]
        value = parse_number(record.value, record.code in self._comma)
        unit = self._units[at] if record.unit is None else self._spelling.get(record.unit, record.unit)
        if not unit:
            raise Rejected("unit_unknown")
        number = convert(value, unit, feature.unit)
        if not feature.range[0] <= number <= feature.range[1]:
            raise Rejected("out_of_range")
        return number

    def _class(self, record: Record) -> float:
        if record.value is None or record.value == "":
            raise Rejected("missing_label")
        found = self._classes.get(str(record.value))
        if found is None:
            raise Rejected("unknown_code")
        return found

    def _name(self, at: int, record: Record) -> str:
        """How the ledger calls a record's column: the contract's id, or what the source calls an unmapped one."""
        if at == len(self._features):
            return self._label
        return self._features[at].id if at >= 0 else record.code

    def patients(self) -> Patients:
        """The complete patients, scaled; closes the ledger."""
        ids, ledger = [], self.ledger
        for patient in sorted(self._rows):
            row = self._rows[patient]
            known = sum(not math.isnan(value) for value in row)
            if known == len(row):
                ids.append(patient)
                continue
            reason, column = self._lack(patient, row)
            ledger.reject(ledger.patients, reason, self._pointers[patient], column)
            if known:  # good values of a patient who cannot be used
                ledger.rows.rejected["patient_rejected"] += known
        table = np.array([self._rows[patient] for patient in ids], np.float64).reshape(len(ids), len(self._empty))
        x = scale(self._features, table[:, :-1])
        ledger.patients.rows_out, ledger.rows.rows_out = x.shape[0], table.size
        ledger.check()
        return Patients(tuple(ids), x, table[:, -1].astype(np.float32))

    def _lack(self, patient: str, row: array[float]) -> tuple[str, str]:
        if (patient, len(self._features)) in self._conflicts:
            return "conflicting_label", self._label
        at = next(at for at, value in enumerate(row) if math.isnan(value))
        if at == len(self._features):
            return "missing_label", self._label
        return "missing_feature", self._features[at].id


def scale(features: tuple[Feature, ...], values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Network inputs (n, k) of ``values`` (n, k), which are in the features' units.

    Raises:
        DataError: an input is not finite: the contract's constants do not fit its ranges.
    """
    centers = np.array([feature.center for feature in features])
    scales = np.array([feature.scale for feature in features])
    with np.errstate(over="ignore", invalid="ignore"):
        x: NDArray[np.float32] = ((values - centers) / scales).astype(np.float32)
    if not np.isfinite(x).all():
        raise DataError("scaled values are not finite: the contract's center and scale do not fit its ranges")
    return x
