"""``events.jsonl``: what the coordinator's job process saw, one JSON object per line, ``{"t": seconds, "kind": ...}``.

The log is written while the job runs and read by another process at the same time, so a last line without its newline
is a line still being written, not an error. Every other line that does not fit its schema is one. Names and details
come from sites and are untrusted text: bounded here, escaped where they are shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from cordon.documents import Document, read_bytes
from cordon.errors import ConfigError
from cordon.job import PreAggregation, ServerOpt, Staleness

EVENTS_FILE = "events.jsonl"
MAX_LINE = 256 * 1024  # bytes
MAX_LOG = 64 * 1024 * 1024  # bytes
MAX_CODES = 200
MAX_TEXT = 2048  # characters of any one text

Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Natural = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class _Event(Document, frozen=True, kw_only=True, tag_field="kind"):
    """``t``: seconds since the job started."""

    t: Seconds


class EvaluationSet(Document, frozen=True, kw_only=True):
    """What the coordinator evaluates on; ``rows`` of it. ``none`` is the production default."""

    kind: Literal["none", "public", "consented"]
    name: Text = ""
    rows: Natural = 0


class DPMechanism(Document, frozen=True, kw_only=True):
    """One round's mechanism, as in ``cordon.job.DPPlan``."""

    noise_multiplier: float
    sampling_rate: float
    steps: int
    clip_norm: float
    unit: Text
    expected_batch_size: float | None = None


class MaskedTerms(Document, frozen=True, kw_only=True):
    """Masked: what the secure aggregation of this job asks for and bears (``cordon.secagg.terms``)."""

    cohort: Natural
    threshold: Natural
    u_min: Natural
    c: Natural
    ring_bits: Natural
    distributed: bool
    group_size: Natural | None = None
    f: Natural | None = None


class JobStarted(_Event, frozen=True, kw_only=True, tag="job"):
    """The whole public plan, once, first. ``delta`` is the public DP delta of every epsilon that is reported."""

    job_id: Text
    job: Text
    study: Text
    profile: Literal["poc", "production"]
    privacy: Text
    rule: Text
    rule_args: dict[Text, float]
    server_opt: ServerOpt
    buffer: Natural
    versions: Natural
    rounds_per_site: Natural
    norm_bound: float
    max_staleness: Natural
    staleness: Staleness | None = None
    pre_aggregation: tuple[PreAggregation, ...] = ()
    masked: MaskedTerms | None = None
    sites: Annotated[list[Text], Meta(max_length=1000)]
    evaluation: EvaluationSet
    dp: DPMechanism
    delta: Annotated[float, Meta(gt=0, lt=1)]
    trust: Text


class Attested(_Event, frozen=True, kw_only=True, tag="attested"):
    """Verdict on one participant's evidence; ``codes`` are (code, result, detail) of the checks, open ones first."""

    site: Text
    verdict: Literal["pass", "fail", "not_checked"]
    type: Text
    codes: Annotated[tuple[tuple[Text, Text, Text], ...], Meta(max_length=MAX_CODES)] = ()


class TicketIssued(_Event, frozen=True, kw_only=True, tag="ticket"):
    """``site`` was asked to train from model ``version``; the same ``ticket`` again: asked for what it trained then."""

    site: Text
    ticket: Text
    version: Natural


class Updated(_Event, frozen=True, kw_only=True, tag="update"):
    """An accepted update: ``staleness`` = versions made since its base, L2 ``norm``, ``seconds`` since its ticket."""

    site: Text
    ticket: Text
    base_version: Natural
    staleness: Natural
    norm: Annotated[float, Meta(ge=0)]
    seconds: Seconds


class Rejected(_Event, frozen=True, kw_only=True, tag="rejected"):
    """An update was refused; ``reason`` one of messages.REJECT_REASONS, ``faults`` of this site so far."""

    site: Text
    ticket: Text
    reason: Text
    detail: Text
    faults: Natural


class Excluded(_Event, frozen=True, kw_only=True, tag="excluded"):
    """The coordinator stopped dealing with a site."""

    site: Text
    reason: Text


class SiteRefused(_Event, frozen=True, kw_only=True, tag="refused"):
    """The site declined to train; ``reason`` one of messages.REFUSAL_REASONS."""

    site: Text
    reason: Text


class SiteLost(_Event, frozen=True, kw_only=True, tag="lost"):
    """No answer in time or disconnected; a later ticket says that it came back."""

    site: Text
    reason: Text


class Divergence(Document, frozen=True, kw_only=True):
    """How far the updates (sealed) or group means (masked groups) of a version pointed apart: cosines with the
    aggregate, in -1..1; and the sites or groups that the rule counted least or not at all."""

    least: Annotated[float, Meta(ge=-1, le=1)]
    median: Annotated[float, Meta(ge=-1, le=1)]
    greatest: Annotated[float, Meta(ge=-1, le=1)]
    outliers: Annotated[list[Text], Meta(max_length=1000)] = msgspec.field(default_factory=list)


class VersionMade(_Event, frozen=True, kw_only=True, tag="version"):
    """A model version and whose updates made it, ``staleness`` in the same order; auc, accuracy null without a set.

    ``sha256`` is of the model's safetensors bytes, which the sealed model file opens to.
    """

    version: Natural
    sites: Annotated[list[Text], Meta(max_length=1000)]
    staleness: list[Natural]
    auc: Share | None
    accuracy: Share | None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    step_norm: Annotated[float, Meta(ge=0)]
    divergence: Divergence | None = None


class GroupsDrawn(_Event, frozen=True, kw_only=True, tag="groups"):
    """Masked groups: the map that all commitments and reveals gave, and its digest."""

    groups: Annotated[list[list[Text]], Meta(max_length=1000)]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Ready(_Event, frozen=True, kw_only=True, tag="ready"):
    """Masked: a site finished its round and waits for a cohort."""

    site: Text
    ticket: Text
    base_version: Natural
    staleness: Natural
    seconds: Seconds


class CohortFormed(_Event, frozen=True, kw_only=True, tag="cohort"):
    """Masked: these sites begin a secure aggregation; it opens with ``least`` of them or more."""

    cohort: Text
    group: int | None
    sites: Annotated[list[Text], Meta(max_length=1000)]
    least: Natural


class CohortOpened(_Event, frozen=True, kw_only=True, tag="opened"):
    """Masked: the sum over ``survivors`` and nothing else; ``norm`` of their mean. ``seconds`` since it formed."""

    cohort: Text
    group: int | None
    survivors: Annotated[list[Text], Meta(max_length=1000)]
    norm: Annotated[float, Meta(ge=0)]
    seconds: Seconds


class CohortEnded(_Event, frozen=True, kw_only=True, tag="aborted"):
    """Masked: a cohort that opened nothing; ``stage`` it came to, ``spent``: whose updates had been masked."""

    cohort: Text
    group: int | None
    stage: Text
    reason: Text
    spent: Annotated[list[Text], Meta(max_length=1000)]


class Done(_Event, frozen=True, kw_only=True, tag="done"):
    """The job ended; ``versions`` made and why it stopped."""

    versions: Natural
    reason: Text


Event = (
    JobStarted
    | Attested
    | TicketIssued
    | Updated
    | Rejected
    | Excluded
    | SiteRefused
    | SiteLost
    | VersionMade
    | GroupsDrawn
    | Ready
    | CohortFormed
    | CohortOpened
    | CohortEnded
    | Done
)

_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class EventLog:
    """Writes one job's log. Thread safe: FLARE runs callbacks of several sites at once.

    Args:
        path: a new file; one that is there already is another job's log and is refused.
        clock: seconds, monotonic; ``t`` counts from this constructor.

    Raises:
        ConfigError: the file is there already or cannot be made.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        try:
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise ConfigError(f"{path}: cannot start an event log: {error.strerror}") from error
        self._clock = clock
        self._start = clock()
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: Any) -> Event:
        """Append one event and hand it to the operating system; returns it as a reader will see it.

        Texts over MAX_TEXT are cut: a site can make a detail long, and that must not cost the event.

        Raises:
            ConfigError: kind or fields do not fit the schema (a mistake of the caller).
        """
        bounded = {name: _cut(value) for name, value in fields.items()}
        with self._lock:
            record = {"t": round(max(0.0, self._clock() - self._start), 3), "kind": kind, **bounded}
            line = msgspec.json.encode(record, enc_hook=_number)
            event = _decode(line, f"event {kind}")
            self._file.write(line + b"\n")
        return event

    def close(self) -> None:
        """Close the file; further writes fail."""
        self._file.close()


def read(path: Path) -> tuple[Event, ...]:
    """All complete events of a log that may still be growing.

    Raises:
        ConfigError: unreadable, over MAX_LOG, or a complete line does not fit.
    """
    return tuple(_parse(read_bytes(path, MAX_LOG), str(path), 1)[0])


def follow(path: Path) -> Iterator[list[Event]]:
    """Each ``next()`` gives the events that came since the last one, without waiting; the caller sets the pace.

    A file that is not there yet gives an empty list. The iterator has no end.

    Raises:
        ConfigError: as read(), or the log got shorter (somebody rewrote it).
    """
    offset, line_number = 0, 1
    while True:
        data = b""
        if path.exists():
            try:
                with open(path, "rb") as file:
                    size = file.seek(0, 2)
                    if not offset <= size <= MAX_LOG:
                        raise ConfigError(f"{path}: {size} bytes; want {offset} (read so far) to {MAX_LOG}")
                    file.seek(offset)
                    data = file.read(size - offset)
            except OSError as error:
                raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        events, used = _parse(data, str(path), line_number)
        offset, line_number = offset + used, line_number + len(events)
        yield events


def _parse(data: bytes, name: str, first_line: int) -> tuple[list[Event], int]:
    """Events of the complete lines in ``data`` and how many bytes those are."""
    used = data.rfind(b"\n") + 1
    if len(data) - used > MAX_LINE:
        raise ConfigError(f"{name}: last line is longer than the {MAX_LINE} bytes allowed")
    lines = data[:used].split(b"\n")[:-1]
    return [_decode(line, f"{name}: line {number}") for number, line in enumerate(lines, first_line)], used


def _decode(line: bytes, name: str) -> Event:
    if len(line) > MAX_LINE:
        raise ConfigError(f"{name}: longer than the {MAX_LINE} bytes allowed")
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text") from error


def _cut(value: Any) -> Any:
    return value[: MAX_TEXT - 1] + "…" if isinstance(value, str) and len(value) > MAX_TEXT else value


def _number(value: Any) -> Any:
    """NumPy scalars as plain numbers; anything else is not an event's business."""
    if isinstance(value, np.generic):
        return value.item()
    raise ConfigError(f"an event cannot hold a {type(value).__name__}")
