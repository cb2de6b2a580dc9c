"""Charts of masked mode: cohorts over time, and how far the updates or group means of a version pointed apart."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from cordon.report.charts import MAX_MARKS, MAX_ROWS, WIDE, Canvas, css_of, frame, row_label, thin, ticks
from cordon.report.cohorts import Cohort
from cordon.report.record import RunRecord


def cohorts(run: RunRecord, metrics: dict[str, Any], width: float) -> Markup:
    """Per site: a bar from ready to the end of its cohort; each cohort a line through its sites where it ended: dots
    for those in the sum that opened, crosses for those whose masked update is gone, rings for those that fell out."""
    if not run.cohorts:
        return Markup("")
    sites = run.names[:MAX_ROWS]
    left, right, row, top = frame(width)
    canvas = Canvas(width, top + row * len(sites) + 30)
    end, bottom = max(run.events[-1].t, 1e-9), canvas.height - 26

    def x(t: float) -> float:
        return left + (right - left) * min(t, end) / end

    for tick in ticks(0, end, 8 if width == WIDE else 4):
        canvas.line(x(tick), top, x(tick), bottom, "grid")
        canvas.text(x(tick), bottom + 16, f"{tick:g} s", "tick", "middle")
    rows: dict[str, float] = {}
    for index, site in enumerate(sites):
        rows[site] = row_label(canvas, site, top + row * index, width)
        canvas.line(left, rows[site], right, rows[site], "rail")
    shown = thin(run.cohorts, max(4, MAX_MARKS // (2 * len(sites))))
    for number in thin([cohort.number for cohort in shown if cohort.ended_at is not None], 12 if width == WIDE else 5):
        at = run.cohorts[number - 1].ended_at
        canvas.text(x(end if at is None else at), top - 10, f"c{number}", "tick faint", "middle")
    for cohort in shown:
        _cohort(canvas, cohort, rows, x(cohort.formed_at), x(end if cohort.ended_at is None else cohort.ended_at))
    return canvas.svg("Cohorts of secure aggregation over time", css_of(width))


def _cohort(canvas: Canvas, cohort: Cohort, rows: dict[str, float], begin: float, finish: float) -> None:
    mine = [rows[site] for site in cohort.sites if site in rows]
    if not mine:
        return
    opened = cohort.state == "opened"
    canvas.line(finish, min(mine), finish, max(mine), "cohort" if opened else "cohort-ended")
    for site in cohort.sites:
        if site not in rows:
            continue
        y = rows[site]
        canvas.rect(begin, y - 3, finish - begin, 6, "work")
        name = f"cohort {cohort.number}, {site}"
        if site in cohort.survivors:
            tau = cohort.staleness[site]
            canvas.dot(finish, y, 5, f"mark s{min(tau, 4)}", f"{name}: in the sum that opened, staleness {tau}")
        elif site in cohort.spent:
            canvas.cross(finish, y, 5, "refused", f"{name}: masked, and nothing opened ({cohort.reason})")
        elif cohort.state != "running":
            canvas.dot(finish, y, 4.5, "ring", f"{name}: not in a sum; its update was not masked, or it was lost")


def divergence(run: RunRecord, metrics: dict[str, Any], width: float) -> Markup:
    """Per version: the span of the cosines between each update (or group mean) and the aggregate, the median marked."""
    measured = [(made.version, made.divergence) for made in run.versions if made.divergence is not None]
    if not measured:
        return Markup("")
    canvas = Canvas(width, 220)
    left, right, top, bottom = 40, width - 12, 12, 220 - 30
    first, last = measured[0][0], measured[-1][0]
    low = min(0.0, *(spread.least for _, spread in measured))

    def x(version: float) -> float:
        return left + 8 + (right - left - 16) * (version - first) / max(last - first, 1)

    def y(cosine: float) -> float:
        return bottom - (bottom - top) * (cosine - low) / (1.0 - low)

    for tick in ticks(low, 1.0, 5):
        canvas.line(left, y(tick), right, y(tick), "grid")
        canvas.text(left - 6, y(tick) + 4, f"{tick:.1f}", "tick", "end")
    for version, spread in thin(measured, 400):
        canvas.line(x(version), y(spread.least), x(version), y(spread.greatest), "stem federated")
        tip = f"version {version}: cosines {spread.least:.3f} to {spread.greatest:.3f}, median {spread.median:.3f}"
        canvas.dot(x(version), y(spread.median), 4, "mark federated", tip)
    for version in thin([version for version, _ in measured], 10 if width == WIDE else 5):
        canvas.text(x(version), bottom + 18, f"v{version}", "tick", "middle")
    return canvas.svg("Cosine between the updates of a version and its aggregate", css_of(width))
