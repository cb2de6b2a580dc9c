"""The terminal while a run is under way: phases, a table of hospitals, the metric per version, time left.

On a terminal one live display; elsewhere (a pipe, a CI log) plain lines without control codes. Texts of sites are
untrusted: whatever is not printable (escape sequences, direction overrides) is replaced before it reaches the terminal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cordon.report.events import Event
from cordon.report.progress import PHASES, Progress

BLOCKS = "▁▂▃▄▅▆▇█"
STYLES = {
    "training": "cyan",
    "ready": "blue",
    "masking": "magenta",
    "finished": "green",
    "excluded": "red",
    "refused": "red",
    "lost": "yellow",
}


class LiveView:
    """Shows one run. Use as a context manager; leaving it by an exception marks the running phase as failed.

    Args:
        console: where to; ``console.is_terminal`` picks the form.
        clock: seconds, monotonic.
        epsilon: (site, rounds begun so far) -> epsilon spent; called once per ticket.
        sources: site -> form of its data at rest.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float],
        epsilon: Callable[[str, int], float],
        sources: Mapping[str, str] | None = None,
    ) -> None:
        self._console, self._clock = console, clock
        self._sources = dict(sources or {})
        self._began = clock()
        self._progress = Progress(clock, epsilon)
        self._lock = threading.RLock()  # the display's own thread reads while events come in
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            told = any(phase.state == "failed" for phase in self._progress.phases.values())
        if error is not None and not told:
            self.fail("interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
        else:
            with self._lock:
                self._progress.end("done")
                failed = [name for name, phase in self._progress.phases.items() if phase.state == "failed"]
            self._say(f"ended; failed: {', '.join(failed)}" if failed else "all phases done")
        if self._console.is_terminal:
            self._live.stop()

    def phase(self, name: str, detail: str = "") -> None:
        """Begin phase ``name``, one of PHASES (the one before it is done), or change the running one's detail."""
        with self._lock:
            line = self._progress.phase(name, detail)
        self._say(line)

    def fail(self, reason: str) -> None:
        """The running phase failed; later phases may still run (stop)."""
        with self._lock:
            line = self._progress.end("failed", reason)
        self._say(line)

    def event(self, event: Event) -> None:
        """Take in one event of the job's log."""
        with self._lock:
            line = self._progress.event(event)
        self._say(line)

    def final_table(self, metrics: dict[str, Any]) -> None:
        """Print the short table of the end: one line per hospital, why updates were refused, the model's figures."""
        table = _table()
        table.add_column("role", overflow="fold")
        for heading in (
            "updates",
            "staleness",
            self._ascii("ε", "eps"),
            self._ascii("ε replace", "eps replace"),
        ):
            table.add_column(heading, justify="right")
        table.add_column("attested")
        table.add_column("refused", justify="right")
        for name, site in metrics["sites"].items():
            staleness = site["mean_staleness"]
            table.add_row(
                self._text(name),
                self._text(site["role"]),
                str(site["updates"]),
                "-" if staleness is None else f"{staleness:.2f}",
                f"{site['epsilon']:.2f}",
                f"{site['epsilon_replace_one']:.2f}",
                self._text(site["attested"]),
                Text(str(site["rejected"]), style="red" if site["rejected"] else ""),
            )
        local = list(metrics["auc_local"].values())
        cohorts = metrics["cohorts"]
        figures = [
            ("AUC", _figure(metrics["auc"])),
            ("pooled", _figure(metrics["auc_centralised"])),
            ("alone", f"{min(local):.3f} to {max(local):.3f}" if local else "-"),
            ("accuracy", _figure(metrics["accuracy"])),
            ("versions", str(metrics["versions"])),
            ("seconds", f"{metrics['wall_s']:.0f}"),
        ]
        if cohorts is not None:
            figures.append(("sums opened", f"{cohorts['opened']} of {cohorts['formed']}"))
        self._console.print(table)
        for name, site in metrics["sites"].items():
            if site["status"] != "took part":
                self._console.print(self._text(f"{name}: {site['status']}", "red"), soft_wrap=True)
            for reason, count in site["reasons"].items():
                self._console.print(self._text(f"{name}: refused {count} times: {reason}", "red"), soft_wrap=True)
        self._console.print(Text("  ".join(f"{name} {value}" for name, value in figures), style="bold"), soft_wrap=True)

    def _say(self, line: str) -> None:
        """One plain line; nothing on a terminal, where the display shows it."""
        if line and not self._console.is_terminal:
            stamp = f"[{self._clock() - self._began:7.1f} s] "
            self._console.print(self._text(stamp + line), soft_wrap=True)

    def _render(self) -> RenderableType:
        with self._lock:
            parts: list[RenderableType] = [self._phase_lines()]
            if self._progress.rows:
                parts.append(self._site_table())
            if self._progress.job:
                parts.append(self._progress_line())
            return Group(*parts)

    def _phase_lines(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        marks = {"running": self._ascii("●", ">"), "done": self._ascii("✓", "+"), "failed": self._ascii("✗", "x")}
        styles = {"running": "bold cyan", "done": "green", "failed": "bold red"}
        for name in PHASES:
            phase = self._progress.phases.get(name)
            if phase is None:
                grid.add_row(self._ascii("·", " "), Text(name, style="dim"), "", "")
                continue
            seconds = (self._clock() if phase.ended is None else phase.ended) - phase.began
            style = styles[phase.state]
            detail = self._text(phase.detail, "red" if phase.state == "failed" else "dim")
            grid.add_row(Text(marks[phase.state], style=style), Text(name, style=style), f"{seconds:6.1f} s", detail)
        return grid

    def _site_table(self) -> Table:
        table = _table()
        table.add_column("data", overflow="fold")
        table.add_column("state")
        for heading in ("updates", "staleness", self._ascii("ε so far", "eps so far")):
            table.add_column(heading, justify="right")
        table.add_column("refused", overflow="fold")
        rounds = self._progress.job.rounds_per_site if self._progress.job else 0
        for site, row in self._progress.rows.items():
            staleness = f"{row.taus[-1]} ({sum(row.taus) / len(row.taus):.1f})" if row.taus else "-"
            count = f"{row.rejected}× " if row.rejected else ""
            table.add_row(
                self._text(site),
                self._text(self._sources.get(site, "")),
                Text(row.state, style=STYLES.get(row.state, "dim")),
                f"{len(row.taus)}/{rounds}",
                staleness,
                f"{row.epsilon:.2f}",
                self._text(f"{count}{row.reason}", "red" if row.rejected or row.reason else ""),
            )
        return table

    def _progress_line(self) -> Table:
        done, planned, left = self._progress.done, self._progress.planned, self._progress.time_left()
        text = f"version {done}/{planned}"
        if left is not None and done < planned:
            text += f", about {left:.0f} s left"
        values = [made.auc for made in self._progress.made if made.auc is not None][-8:]
        if values:
            text += f"   AUC {'' if self._plain_letters else sparkline(values) + ' '}{values[-1]:.4f}"
        cohorts = [cohort.state for cohort in self._progress.cohorts.all.values()]
        if cohorts:
            text += f"   sums opened {cohorts.count('opened')}"
            text += f", cohorts ended {cohorts.count('ended')}" if "ended" in cohorts else ""
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=max(planned, 1), completed=done, width=24), self._text(text))
        return grid

    @property
    def _plain_letters(self) -> bool:
        return self._console.options.ascii_only

    def _ascii(self, fine: str, plain: str) -> str:
        return plain if self._plain_letters else fine

    def _text(self, content: str, style: str = "") -> Text:
        shown = _printable(content)
        return Text(shown.encode("ascii", "replace").decode() if self._plain_letters else shown, style=style)


def sparkline(values: list[float]) -> str:
    """One block per value, from the least to the greatest of them."""
    low, span = min(values), max(values) - min(values)
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1)) if span else 3] for value in values)


def _table() -> Table:
    """An empty table that fits 80 columns; its first column is the hospital."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("hospital", overflow="fold")
    return table


def _printable(text: str) -> str:
    one_line = text.replace("\n", " ").replace("\t", " ")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in one_line)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
