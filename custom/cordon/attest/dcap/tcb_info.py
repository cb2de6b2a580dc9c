"""Intel's documents on platforms and quoting enclaves, as far as they are read; field names are Intel's.

Source: Intel PCS API v4, "TCB info V3", "Enclave Identity V2". Unknown fields are left alone: Intel adds some.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-fA-F]+\Z")]


class Dated(msgspec.Struct, frozen=True):
    """Dates are in UTC, as Intel writes them: one with an offset can have no date in UTC, and then nothing shows it."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, datetime) and value.utcoffset():
                raise ValueError(f"{name}: {value.isoformat()} is not in UTC")


class Svn(msgspec.Struct, frozen=True):
    """SVN of one component."""

    svn: int


class Components(msgspec.Struct, frozen=True):
    """What a platform must reach; 16 components each."""

    sgxtcbcomponents: list[Svn]
    pcesvn: int
    tdxtcbcomponents: list[Svn] = []


class TcbLevel(Dated, frozen=True):
    """A level of a platform."""

    tcb: Components
    tcbDate: Moment
    tcbStatus: str
    advisoryIDs: list[str] = []


class IsvSvn(msgspec.Struct, frozen=True):
    """ISVSVN of an enclave or of the TDX module."""

    isvsvn: int


class IsvLevel(Dated, frozen=True):
    """A level of QE or TDX module."""

    tcb: IsvSvn
    tcbDate: Moment
    tcbStatus: str
    advisoryIDs: list[str] = []


class Module(msgspec.Struct, frozen=True):
    """The TDX module, or one version of it."""

    mrsigner: Hex
    attributes: Hex
    attributesMask: Hex
    id: str = ""
    tcbLevels: list[IsvLevel] = []


class TcbInfo(msgspec.Struct, frozen=True):
    """TCB info V3: the levels of all platforms of one FMSPC."""

    id: str
    version: int
    fmspc: Hex
    pceId: Hex
    tcbEvaluationDataNumber: int
    tcbLevels: list[TcbLevel]
    tdxModule: Module | None = None
    tdxModuleIdentities: list[Module] = []


class QeIdentity(msgspec.Struct, frozen=True):
    """Enclave identity V2 of a quoting enclave."""

    id: str
    version: int
    miscselect: Hex
    miscselectMask: Hex
    attributes: Hex
    attributesMask: Hex
    mrsigner: Hex
    isvprodid: int
    tcbEvaluationDataNumber: int
    tcbLevels: list[IsvLevel]
