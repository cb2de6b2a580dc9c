"""What anybody can read of a sealed model: its header (``cordon.sealed_model`` has the format and its offsets)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, BinaryIO, Literal, TypeVar

import msgspec
from msgspec import Meta

from cordon import release_key, sealing, signing, stream
from cordon.documents import Document, body_of
from cordon.errors import ConfigError, PolicyRefused
from cordon.study import Name, Sha256, StudyContract

MAGIC = b"\x8fcordonM"
FORMAT = 1
MAX_HEADER = 1024 * 1024  # bytes; 16 holders, two persons: 120 stanzas, 400 KiB
PREFIX_BYTES = len(MAGIC) + 4 + 4
KEY_BYTES = 32

_SHARE_BYTES = KEY_BYTES + sealing.OVERHEAD

T = TypeVar("T", bound=Document)

SealedShare = Annotated[bytes, Meta(min_length=_SHARE_BYTES, max_length=_SHARE_BYTES)]


class Subject(Document, frozen=True, kw_only=True):
    """What the model is: version ``version`` (1 = the first that was trained) of a job of a study, by their digests."""

    study: Sha256
    study_name: Name
    job: Name
    job_id: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9-]{1,64}\Z")]
    job_digest: Sha256
    version: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    layout_digest: Sha256


class Stanza(Document, frozen=True, kw_only=True):
    """One group of holders that opens the model together, and the share of each."""

    holders: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=2)]
    shares: Annotated[tuple[SealedShare, ...], Meta(min_length=1, max_length=2)]


class Header(Subject, frozen=True, kw_only=True):
    """``holders``: name -> SHA-256 of the public key. ``sha256``: of the model's safetensors bytes."""

    v: Literal[1]
    sha256: Sha256
    persons: Literal[1, 2]
    holders: Annotated[dict[Name, Sha256], Meta(min_length=1, max_length=16)]
    stanzas: Annotated[tuple[Stanza, ...], Meta(max_length=120)]

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Who opens it together, in the order of the stanzas."""
        return list(combinations(sorted(self.holders), self.persons))

    @property
    def context(self) -> bytes:
        """What the shares are bound to."""
        return signing.canonical({key: value for key, value in body_of(self).items() if key != "stanzas"})

    @property
    def about(self) -> str:
        """The model in words, for a person who is asked to open it."""
        return f"version {self.version} of job {self.job} ({self.job_id}), study {self.study_name} ({self.study[:16]})"


@dataclass(frozen=True)
class Sealed:
    """The part of a sealed model that anybody can read. ``id`` names the file."""

    header: Header
    id: str

    def holder(self, public: bytes) -> str:
        """The holder whose key this is; PolicyRefused for a stranger's."""
        wanted = release_key.fingerprint(public)
        for name, key in self.header.holders.items():
            if key == wanted:
                return name
        holders = ", ".join(f"{name} ({key[:16]})" for name, key in sorted(self.header.holders.items()))
        raise PolicyRefused([("not_a_holder", f"key {wanted[:16]} has no release right; who has: {holders}")])


def encode(header: Header) -> tuple[bytes, str]:
    """(everything before the body, id of the file)."""
    data = signing.canonical(body_of(header))
    prefix = MAGIC + FORMAT.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data
    return prefix, _id(prefix)


def read(source: BinaryIO) -> Sealed:
    """The header of the sealed model that ``source`` begins with; leaves it at the body. Needs no key, shows nothing.

    Raises:
        ConfigError: not a sealed model, or of a format that this version does not read.
    """
    start = stream.read(source, PREFIX_BYTES)
    if start[: len(MAGIC)] != MAGIC:
        raise ConfigError("not a sealed model: does not begin with its magic")
    length = int.from_bytes(start[12:16], "big")
    if len(start) != PREFIX_BYTES or start[8:12] != FORMAT.to_bytes(4, "big") or length > MAX_HEADER:
        raise ConfigError(f"sealed model: want format {FORMAT} and a header of at most {MAX_HEADER} bytes")
    data = stream.read(source, length)
    if len(data) != length:
        raise ConfigError(f"sealed model: its header has {length} bytes and the file only {len(data)} of them")
    header = decode(data, Header, "header of the sealed model")
    groups = [stanza.holders for stanza in header.stanzas]
    if groups != header.groups or any(len(stanza.shares) != header.persons for stanza in header.stanzas):
        raise ConfigError(f"sealed model: its stanzas are not all groups of {header.persons} of its holders")
    return Sealed(header, _id(start + data))


def check_study(header: Header, study: StudyContract) -> None:
    """PolicyRefused unless the model is of ``study`` and sealed to those whom it gives the release right."""
    reasons = []
    if (header.study, header.study_name) != (study.digest, study.study):
        said, wanted_study = f"{header.study_name} ({header.study})", f"{study.study} ({study.digest})"
        reasons.append(("other_study", f"sealed for study {said}, the contract is {wanted_study}"))
    release = study.release
    wanted = {} if release is None else {name: release_key.fingerprint(key) for name, key in release.holders.items()}
    if header.holders != wanted:
        named = ", ".join(sorted(header.holders))
        reasons.append(("other_holders", f"opens to {named}; the contract names {', '.join(sorted(wanted)) or 'none'}"))
    if release is not None and header.persons != release.persons:
        reasons.append(("other_persons", f"opens to {header.persons}; the contract wants {release.persons}"))
    if reasons:
        raise PolicyRefused(reasons)


def decode(data: bytes, schema: type[T], what: str) -> T:
    """``data`` as a ``schema``, if it is the one encoding of what it says."""
    try:
        document = msgspec.json.decode(data, type=schema, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{what}: {error}") from error
    if signing.canonical(body_of(document)) != data:
        raise ConfigError(f"{what}: not canonical JSON (RFC 8785)")
    return document


def _id(prefix: bytes) -> str:
    return signing.digest("cordon/model-at-rest/id/v1", prefix)
