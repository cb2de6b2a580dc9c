"""The live view: right state from events, plain lines off a terminal, nothing hostile on one."""

import io

import pytest
from rich.console import Console

from cordon.report.events import TicketIssued
from cordon.report.live import LiveView, sparkline
from cordon.report.metrics import metrics
from cordon.report.progress import Progress


def view(clock, terminal=False, encoding="utf-8", width=120):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n", write_through=True)
    console = Console(file=stream, force_terminal=terminal, width=width, height=40, _environ={"TERM": "xterm"})
    made = LiveView(console, clock, lambda site, updates: 0.1 * updates, {"hospital-a": "FHIR R4 NDJSON"})
    return made, lambda: stream.buffer.getvalue().decode(encoding)


def play(live, run, clock):
    for event in run.events:
        clock.now = event.t
        live.event(event)


def test_plain_lines_for_a_log(make_run, clock):
    live, output = view(clock)
    with live:
        live.phase("environment", "Python 3.11")
        clock.now = 2.0
        live.phase("train")
        play(live, make_run(), clock)
    lines = output().splitlines()
    assert "\x1b" not in output() and "\r" not in output()
    assert lines[0] == "[    0.0 s] environment: Python 3.11" and lines[1] == "[    2.0 s] train"
    assert sum("] version " in line for line in lines) == 13  # the initial model and twelve
    assert sum("hospital-e: update refused: over_norm_bound" in line for line in lines) == 2
    assert sum("hospital-e: excluded" in line for line in lines) == 1
    assert lines[-1].endswith("all phases done") and not any("attestation" in line for line in lines)


def test_display_on_a_terminal(make_run, clock):
    live, output = view(clock, terminal=True)
    with live:
        live.phase("train")
        play(live, make_run(), clock)
    last = output().rsplit("hospital-a", 1)[1]
    assert "FHIR R4 NDJSON" in last and "finished" in last and "excluded" in last and "version 12/12" in last
    assert any(block in last for block in "▁▂▃▄▅▆▇█")


def test_escape_sequences_of_a_site_never_reach_the_terminal(make_run, clock):
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\nforged line [bold]x[/bold]"
    run = make_run(sites=["hospital-a", "hospital-b", "hospital-c", "hospital-d", evil], hostile=evil)
    for terminal in (True, False):
        live, output = view(clock, terminal=terminal)
        with live:
            live.phase("train", evil)
            play(live, run, clock)
            live.fail(evil)
        live.final_table(metrics(run))
        for forbidden in ("\x1b]0;", "\x1b[2J", "\x9b", "\u202e", "\x07", "\nforged"):
            assert forbidden not in output()
    assert "[bold]x[/bold]" in output()


def test_ascii_terminals_get_ascii(make_run, clock):
    live, output = view(clock, terminal=True, encoding="ascii")
    with live:
        live.phase("train", "naïve")
        play(live, make_run(), clock)
    live.final_table(metrics(make_run()))
    assert "eps replace" in output()  # and encoding any of it did not fail


def test_an_exception_marks_the_running_phase(clock):
    live, output = view(clock)
    with pytest.raises(RuntimeError), live:
        live.phase("provision")
        live.phase("start")
        raise RuntimeError("port 8002 in use")
    assert output().splitlines()[-1].endswith("start FAILED: port 8002 in use")


def test_a_failed_phase_is_not_called_done(clock):
    live, output = view(clock)
    with live:
        live.phase("train")
        live.fail("no site left")
        live.phase("stop")
    assert output().splitlines()[-1].endswith("ended; failed: train")


def test_phase_seconds_and_unknown_phase(clock):
    progress = Progress(clock, lambda site, updates: 0.0)
    progress.phase("start", "")
    clock.now = 4.0
    assert progress.phase("start", "") == "" and progress.phase("start", "5 sites up") == "start: 5 sites up"
    clock.now = 9.0
    progress.phase("attest", "")
    start, attest = progress.phases["start"], progress.phases["attest"]
    assert (start.state, start.ended - start.began, attest.state, attest.ended) == ("done", 9.0, "running", None)
    with pytest.raises(ValueError, match="unknown phase"):
        progress.phase("dance", "")


def test_rows_follow_the_events(make_run, clock):
    asked = []

    def spent(site, updates):
        asked.append((site, updates))
        return 0.1 * updates

    run, progress = make_run(), Progress(clock, spent)
    for event in run.events[:-1]:
        clock.now = event.t
        progress.event(event)
    result = metrics(run)["sites"]
    for site, row in progress.rows.items():
        assert (len(row.taus), row.rejected) == (result[site]["updates"], result[site]["rejected"])
        tickets = sum(isinstance(event, TicketIssued) and event.site == site for event in run.events)
        assert row.epsilon == pytest.approx(0.1 * tickets)  # a round begun may be spent, whatever came of it
    assert len(asked) == sum(isinstance(event, TicketIssued) for event in run.events)
    assert progress.rows["hospital-e"].state == "excluded" and progress.rows["hospital-d"].state == "training"


def test_time_left_from_the_rate(make_run, clock):
    progress = Progress(clock, lambda site, updates: 0.0)
    assert progress.time_left() is None
    for event in make_run().events:
        clock.now = event.t
        progress.event(event)
        if progress.done == 6:
            break
    pace = clock.now / 6  # the first ticket is at 0
    assert progress.time_left() == pytest.approx(6 * pace)
    clock.now += 1.0
    assert progress.time_left() == pytest.approx(6 * pace - 1.0)
    clock.now += 1e6
    assert progress.time_left() == 0.0


def test_sparkline():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█" and sparkline([0.7, 0.7]) == "▄▄"


def test_final_table_fits_80_columns(make_run, clock):
    live, output = view(clock, width=80)
    live.final_table(metrics(make_run()))
    text = output()
    for said in ("hospital-e: refused 2 times: over_norm_bound", "malicious", "pooled 0.994", " refused \n"):
        assert said in text, said
    assert "\x1b" not in text
