"""Charts of the report as inline SVG: no script, no font, no file from elsewhere; colours are the page's CSS variables.

Drawn by hand rather than by a plotting library: the same SVG then follows dark mode and print through CSS, is a few
kilobytes, and is the same bytes for the same run. Every text goes through ``Markup.format``, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

from cordon.report.record import RunRecord

WIDE, NARROW = 880, 350  # user units = CSS pixels on a desktop and on a phone
MAX_ROWS = 60  # sites that a chart shows; tables show all
MAX_MARKS = 2000

Chart = Callable[[RunRecord, dict[str, Any], float], Markup]
T = TypeVar("T")


class Canvas:
    """One SVG under construction, ``width`` x ``height`` user units, origin top left."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[Markup] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self._add('<path class="{}" d="M{} {}L{} {}"/>', css, _n(x1), _n(y1), _n(x2), _n(y2))

    def curve(self, points: Sequence[tuple[float, float]], css: str) -> None:
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._add('<path class="{}" d="{}"/>', css, path)

    def rect(self, x: float, y: float, width: float, height: float, css: str, tip: str = "") -> None:
        self._add(
            '<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2">{}</rect>',
            css, _n(x), _n(y), _n(max(width, 0.5)), _n(height), _tip(tip),
        )  # fmt: skip

    def dot(self, x: float, y: float, radius: float, css: str, tip: str = "") -> None:
        self._add('<circle class="{}" cx="{}" cy="{}" r="{}">{}</circle>', css, _n(x), _n(y), _n(radius), _tip(tip))

    def diamond(self, x: float, y: float, radius: float, css: str, tip: str = "") -> None:
        path = f"M{_n(x)} {_n(y - radius)}L{_n(x + radius)} {_n(y)}L{_n(x)} {_n(y + radius)}L{_n(x - radius)} {_n(y)}Z"
        self._add('<path class="{}" d="{}">{}</path>', css, path, _tip(tip))

    def cross(self, x: float, y: float, radius: float, css: str, tip: str = "") -> None:
        a, b, c, d = _n(x - radius), _n(y - radius), _n(x + radius), _n(y + radius)
        self._add('<path class="{}" d="{}">{}</path>', css, f"M{a} {b}L{c} {d}M{a} {d}L{c} {b}", _tip(tip))

    def text(self, x: float, y: float, content: str, css: str = "", anchor: str = "start") -> None:
        self._add('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>', css, _n(x), _n(y), anchor, content)

    def svg(self, label: str, css: str) -> Markup:
        """The element; ``label`` is what a screen reader says."""
        return Markup('<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            css, _n(self.width), _n(self.height), label, Markup("").join(self._parts)
        )

    def _add(self, template: str, *values: Any) -> None:
        self._parts.append(Markup(template).format(*values))  # noqa: S704 - templates are the literals above


def both(draw: Chart, run: RunRecord, metrics: dict[str, Any]) -> Markup:
    """``draw`` at desktop and at phone width; the page's CSS shows one of them."""
    return draw(run, metrics, WIDE) + draw(run, metrics, NARROW)


def convergence(run: RunRecord, metrics: dict[str, Any], width: float) -> Markup:
    """AUC and accuracy on the evaluation set per model version, between the pooled and the local baselines."""
    series = {
        "auc": [(v.version, v.auc, v.t) for v in run.versions if v.auc is not None],
        "accuracy": [(v.version, v.accuracy, v.t) for v in run.versions if v.accuracy is not None],
    }
    local = list(run.auc_local.values())
    baselines = [*local, *([run.auc_centralised] if run.auc_centralised is not None else [])]
    values = [value for points in series.values() for _, value, _ in points] + baselines
    if not series["auc"] and not series["accuracy"]:
        return Markup("")
    canvas = Canvas(width, 300 if width == WIDE else 250)
    left, right, top, bottom = 40, width - 12, 12, canvas.height - 44
    low = max(0.0, math.floor(min(values) * 20 - 0.4) / 20)
    first, last = min(v.version for v in run.versions), max(v.version for v in run.versions)

    def x(version: float) -> float:
        return left + (right - left) * (version - first) / max(last - first, 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (1.0 - low)

    for tick in ticks(low, 1.0, 6):
        canvas.line(left, y(tick), right, y(tick), "grid")
        canvas.text(left - 6, y(tick) + 4, f"{tick:.2f}", "tick", "end")
    if local:
        canvas.rect(left, y(max(local)), right - left, y(min(local)) - y(max(local)), "band")
        for value in local:
            canvas.line(left, y(value), right, y(value), "local")
    if run.auc_centralised is not None:
        canvas.line(left, y(run.auc_centralised), right, y(run.auc_centralised), "pooled")
    times = {v.version: v.t for v in run.versions}
    for version in thin(sorted(times), 10 if width == WIDE else 5):
        anchor = "end" if version == last and last > first else "middle"
        canvas.text(x(version), bottom + 18, f"v{version}", "tick", anchor)
        canvas.text(x(version), bottom + 33, f"{times[version]:.0f} s", "tick faint", anchor)
    for name, points in series.items():
        if points:
            shown = thin(points, 400)
            canvas.curve([(x(version), y(value)) for version, value, _ in shown], f"series {name}")
            for version, value, t in shown:
                tip = f"{name}, version {version}, {t:.1f} s: {value:.4f}"
                canvas.dot(x(version), y(value), 3.5, f"mark {name}", tip)
    return canvas.svg("AUC and accuracy per model version", css_of(width))


def timeline(run: RunRecord, metrics: dict[str, Any], width: float) -> Markup:
    """Per site: bars from ticket to answer, marks coloured by staleness, crosses for refused, a box while out."""
    sites = run.names[:MAX_ROWS]
    left, right, row, top = frame(width)
    canvas = Canvas(width, top + row * len(sites) + 30)
    end = max(run.events[-1].t, 1e-9)
    bottom = canvas.height - 26

    def x(t: float) -> float:
        return left + (right - left) * min(t, end) / end

    for tick in ticks(0, end, 8 if width == WIDE else 4):
        canvas.line(x(tick), top, x(tick), bottom, "grid")
        canvas.text(x(tick), bottom + 16, f"{tick:g} s", "tick", "middle")
    for version in thin(run.versions, 200):
        canvas.line(x(version.t), top - 7, x(version.t), bottom, "version")
    for version in thin(run.versions, 12 if width == WIDE else 5):
        canvas.text(x(version.t), top - 10, f"v{version.version}", "tick faint", "middle")
    budget = max(4, MAX_MARKS // max(len(sites), 1))
    for index, site in enumerate(sites):
        y = row_label(canvas, site, top + row * index, width)
        canvas.line(left, y, right, y, "rail")
        for begin, finish, state, reason in run.absences.get(site, []):
            stop = end if finish is None else finish
            canvas.rect(x(begin), y - 7, x(stop) - x(begin), 14, "out", f"{state} at {begin:.1f} s: {reason}")
            if x(stop) - x(begin) > 70:
                canvas.text(x(begin) + (12 if state == "excluded" else 6), y + 4, state, "out-label")
        updates = thin(run.updates[site], budget)
        for update in updates:
            begin = max(0.0, update.t - update.seconds)
            canvas.rect(x(begin), y - 3, x(update.t) - x(begin), 6, "work")
        for update in updates:
            tip = f"{site}: update at {update.t:.1f} s from version {update.base_version}, staleness {update.staleness}"
            canvas.dot(x(update.t), y, 5.5, f"mark s{min(update.staleness, 4)}", tip)
        for gone in thin(run.unused[site], budget):
            begin = max(0.0, gone.t - gone.seconds)
            canvas.rect(x(begin), y - 3, x(gone.t) - x(begin), 6, "work")
            canvas.dot(x(gone.t), y, 4.5, "ring", f"{site}: ready at {gone.t:.1f} s, in no sum ({gone.fate})")
        for refused in thin(run.rejections[site], budget):
            tip = f"{site}: update refused at {refused.t:.1f} s: {refused.reason} ({refused.detail})"
            canvas.cross(x(refused.t), y, 5.5, "refused", tip)
    return canvas.svg("Updates of every hospital over time", css_of(width))


def epsilon(run: RunRecord, metrics: dict[str, Any], width: float) -> Markup:
    """Per site: the RDP figure as a bar against the policy's limit, with both PLD figures as marks."""
    sites = run.names[:MAX_ROWS]
    spent = {site: run.sites[site].epsilon for site in sites}
    values = [v for e in spent.values() if e for v in (e.pld, e.pld_replace_one, e.rdp, e.limit or 0.0)]
    top_value = 1.06 * max([value for value in values if math.isfinite(value)], default=1.0) or 1.0
    left, right, row, top = frame(width, top=6)
    canvas = Canvas(width, top + row * len(sites) + 30)
    bottom = canvas.height - 26

    def x(value: float) -> float:
        return left + (right - left) * min(value, top_value) / top_value

    for tick in ticks(0, top_value, 8 if width == WIDE else 5):
        canvas.line(x(tick), top, x(tick), bottom, "grid")
        canvas.text(x(tick), bottom + 16, f"{tick:g}", "tick", "middle")
    for index, site in enumerate(sites):
        y = row_label(canvas, site, top + row * index, width)
        figures = spent[site]
        if figures is None:
            canvas.text(left + 6, y + 4, "nothing spent: no update left this site", "tick faint")
            continue
        over = figures.limit is not None and figures.rdp > figures.limit
        bar = "meter over" if over else "meter"
        canvas.rect(left, y - 5, x(figures.rdp) - left, 10, bar, f"{site}: RDP, add/remove {figures.rdp:.3f}")
        canvas.dot(x(figures.pld), y, 4.5, "mark pld", f"{site}: PLD, add/remove {figures.pld:.3f}")
        one = figures.pld_replace_one
        canvas.diamond(x(one), y, 6, "mark replace", f"{site}: PLD, replace-one {one:.3f}")
        if figures.limit is not None:
            canvas.line(x(figures.limit), y - 10, x(figures.limit), y + 10, "limit")
    return canvas.svg("Epsilon spent per hospital against its policy's limit", css_of(width))


def comparison(run: RunRecord, metrics: dict[str, Any], width: float) -> Markup:
    """AUC of the federated model, the pooled model and each hospital alone on one scale."""
    rows: list[tuple[str, float, str]] = []
    if metrics["auc"] is not None:
        rows.append(("federated (this run)", metrics["auc"], "federated"))
    if run.auc_centralised is not None:
        rows.append(("pooled data", run.auc_centralised, "centre"))
    rows += [(f"{site} alone", value, "alone") for site, value in list(run.auc_local.items())[:MAX_ROWS]]
    if not rows:
        return Markup("")
    left, right, row, top = frame(width, top=6, label=150)
    right -= 44
    canvas = Canvas(width, top + row * len(rows) + 30)
    bottom = canvas.height - 26
    low = max(0.0, math.floor(min(value for _, value, _ in rows) * 50 - 0.5) / 50)

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (1.0 - low) if low < 1 else left

    for tick in ticks(low, 1.0, 6 if width == WIDE else 4):
        canvas.line(x(tick), top, x(tick), bottom, "grid")
        canvas.text(x(tick), bottom + 16, f"{tick:.2f}" if tick * 100 % 1 < 1e-6 else f"{tick:.3f}", "tick", "middle")
    for index, (name, value, css) in enumerate(rows):
        y = row_label(canvas, name, top + row * index, width)
        canvas.line(left, y, x(value), y, f"stem {css}")
        canvas.dot(x(value), y, 5.5, f"mark {css}", f"{name}: {value:.4f}")
        canvas.text(x(value) + 11, y + 4, f"{value:.3f}", "value")
    return canvas.svg("AUC of the federated model, the pooled model and each hospital alone", css_of(width))


def frame(width: float, top: float = 26, label: float = 116) -> tuple[float, float, float, float]:
    """(left, right, row height, top): on a phone names stand above their row, else left of it."""
    return (label, width - 14, 30, top) if width == WIDE else (10, width - 12, 40, top)


def row_label(canvas: Canvas, name: str, y: float, width: float) -> float:
    """Write the name of the row that begins at ``y``; returns the row's middle."""
    if width == WIDE:
        canvas.text(0, y + 19, _short(name, 20), "name")
        return y + 15
    canvas.text(10, y + 16, _short(name, 40), "name")
    return y + 28


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def css_of(width: float) -> str:
    """Which of the two widths: the page shows one of them."""
    return "wide" if width == WIDE else "narrow"


def _n(value: float) -> str:
    """A coordinate: one decimal, and never NaN or infinity in a path."""
    return f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else "0"


def _tip(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, roughly ``about`` of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    start = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(start, math.floor(high / step + 1e-9) + 1)]


def thin(items: Iterable[T], most: int) -> list[T]:
    """At most about ``most`` items, evenly, the last one kept."""
    everything = list(items)
    stride = math.ceil(len(everything) / most) or 1
    return [item for i, item in enumerate(everything) if (len(everything) - 1 - i) % stride == 0]
