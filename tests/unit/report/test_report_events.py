"""events.jsonl: what is written is what is read, and what does not fit is refused."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cordon.errors import ConfigError
from cordon.report import events
from cordon.report.events import EventLog, JobStarted, SiteLost, Updated, follow, read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def test_roundtrip_with_time_from_the_start(path, clock, plan):
    clock.now = 100.0
    log = EventLog(path, clock)
    log.write("job", **plan(["a", "b"]))
    clock.now = 102.5
    written = log.write("lost", site="a", reason="no answer")
    job, lost = read(path)
    assert isinstance(job, JobStarted) and job.t == 0.0 and job.server_opt.algorithm == "FedAdam"
    assert lost == written == SiteLost(t=2.5, site="a", reason="no answer")
    assert json.loads(path.read_text().splitlines()[1]) == {
        "t": 2.5,
        "kind": "lost",
        "site": "a",
        "reason": "no answer",
    }


def test_numpy_scalars_become_numbers(path, clock):
    log = EventLog(path, clock)
    log.write(
        "update", site="a", ticket="t", base_version=np.int64(1), staleness=np.int32(0), norm=np.float32(0.5), seconds=1
    )
    (event,) = read(path)
    assert isinstance(event, Updated) and event.norm == 0.5 and event.base_version == 1


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("no_such_kind", {"site": "a"}),
        ("lost", {"site": "a"}),
        ("lost", {"site": "a", "reason": "x", "patient": "y"}),
        ("lost", {"site": 3, "reason": "x"}),
        ("lost", {"site": "a", "reason": object()}),
        ("update", {"site": "a", "ticket": "t", "base_version": 0, "staleness": -1, "norm": 1.0, "seconds": 1.0}),
        (
            "update",
            {"site": "a", "ticket": "t", "base_version": 0, "staleness": 0, "norm": float("nan"), "seconds": 1.0},
        ),
    ],
)
def test_writer_refuses_what_a_reader_would(path, clock, kind, fields):
    log = EventLog(path, clock)
    with pytest.raises(ConfigError):
        log.write(kind, **fields)
    assert path.read_bytes() == b""


def test_a_long_text_is_cut_not_lost(path, clock):
    log = EventLog(path, clock)
    log.write("rejected", site="a", ticket="t", reason="bad_header", detail="x" * 10**6, faults=1)
    (event,) = read(path)
    assert len(event.detail) == events.MAX_TEXT and event.detail.endswith("…")


def test_a_second_log_in_the_same_place_is_refused(path, clock):
    EventLog(path, clock)
    with pytest.raises(ConfigError, match="cannot start"):
        EventLog(path, clock)


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"null", b'{"t":-1,"kind":"done","versions":1,"reason":""}', b"\xff", b""]
)
def test_a_bad_complete_line_is_named(path, line):
    path.write_bytes(b'{"t":0,"kind":"done","versions":1,"reason":""}\n' + line + b"\n")
    with pytest.raises(ConfigError, match="line 2"):
        read(path)


def test_deep_nesting_is_a_config_error(path):
    path.write_bytes(b'{"t":0,"kind":"done","x":' + b"[" * 100_000 + b"\n")
    with pytest.raises(ConfigError):
        read(path)


def test_bounds(path, monkeypatch):
    monkeypatch.setattr(events, "MAX_LINE", 50)
    path.write_bytes(b'{"t":0,"kind":"lost","site":"a","reason":"' + b"x" * 60 + b'"}\n')
    with pytest.raises(ConfigError, match="longer"):
        read(path)
    path.write_bytes(b"x" * 60)  # a partial line that never ends
    with pytest.raises(ConfigError, match="longer"):
        next(follow(path))
    monkeypatch.setattr(events, "MAX_LOG", 10)
    with pytest.raises(ConfigError):
        read(path)
    with pytest.raises(ConfigError):
        next(follow(path))


def test_follow_waits_for_the_file_and_for_whole_lines(path):
    line = b'{"t":1,"kind":"lost","site":"a","reason":"\xc3\xa9"}\n'
    tail = follow(path)
    assert next(tail) == []
    path.write_bytes(line[:43])  # cut within a character
    assert next(tail) == [] and read(path) == ()
    path.write_bytes(line + line[:5])
    assert [event.reason for event in next(tail)] == ["é"]
    assert next(tail) == []
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="read so far"):
        next(tail)


@given(st.data())
def test_follow_gives_the_same_events_however_the_file_grows(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    reasons = data.draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=8))
    content = b"".join(
        msgspec.json.encode({"t": i, "kind": "lost", "site": "a", "reason": reason}) + b"\n"
        for i, reason in enumerate(reasons)
    )
    cuts = [*sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6))), len(content)]
    tail, seen = follow(path), []
    for cut in cuts:
        path.write_bytes(content[:cut])
        seen += next(tail)
    assert [event.reason for event in seen] == reasons and tuple(seen) == read(path)
