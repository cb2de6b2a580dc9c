"""``report.html``: one file that opens anywhere, loads nothing and runs nothing.

The page's policy (CSP ``default-src 'none'``) forbids scripts and loads even if a text slipped through the escaping.
Jinja's autoescape is on: site names, reasons and log lines come from other parties.
"""

from __future__ import annotations

import math
from typing import Any

import jinja2

from cordon.errors import ConfigError
from cordon.job import Staleness
from cordon.messages import REFUSAL_REASONS, REJECT_REASONS
from cordon.report import charts, cohort_charts
from cordon.report.cohorts import Cohort
from cordon.report.events import Attested, MaskedTerms, Rejected
from cordon.report.metrics import attested
from cordon.report.record import ROLES, RunRecord

MAX_REPORT = 1_500_000  # characters
MAX_REJECTED_ROWS = 200
MAX_COHORT_ROWS = 200

EVIDENCE = {
    "software": "A test root made for this workspace signed the statement. It shows that the protocol ran: fresh "
    "challenge, right study, right software digest as reported by the software itself. It proves nothing about "
    "hardware: whoever has root on that machine can read its memory and can sign the same statement.",
    "failed": "The evidence did not show what the policy asks. Nothing about this participant is shown.",
    "none": "No evidence was appraised. Nothing about this participant is shown.",
}
HARDWARE = (
    "The vendor's root signed the measurement. It does not prove that the measured software is free of faults, nor "
    "that side channels are closed, nor that the vendor's key is safe."
)


def render(run: RunRecord, metrics: dict[str, Any]) -> str:
    """The whole page.

    Args:
        run: the record that ``metrics`` was computed from.
        metrics: cordon.report.metrics.metrics(run).

    Raises:
        ConfigError: the page would be larger than MAX_REPORT.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cordon.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(fixed=_fixed, power=_power, bound=_bound)
    page = environment.get_template("report.html.j2").render(
        run=run,
        job=run.job,
        m=metrics,
        summary=summary(run, metrics),
        charts={
            draw.__name__: charts.both(draw, run, metrics)
            for draw in (
                charts.convergence,
                charts.timeline,
                charts.epsilon,
                charts.comparison,
                cohort_charts.cohorts,
                cohort_charts.divergence,
            )
        },
        epsilons={site: facts.epsilon for site, facts in run.sites.items()},
        software_keys=any("software" in keys.evidence for keys in run.key_releases.values()),
        roles={site: _role(run, site) for site in run.names},
        status={site: run.status(site) for site in run.names},
        staleness_weight=_staleness_weight(run.job.staleness),
        cohorts=_cohort_rows(run),
        outliers=[version for version in run.versions if version.divergence and version.divergence.outliers],
        rejected=run.of(Rejected)[:MAX_REJECTED_ROWS],
        rejected_total=len(run.of(Rejected)),
        reason_texts={**REFUSAL_REASONS, **REJECT_REASONS},
        participants=_participants(run),
        limitations=limitations(run, metrics),
        chart_rows=charts.MAX_ROWS,
    )
    if len(page) > MAX_REPORT:
        raise ConfigError(f"report: {len(page)} characters; at most {MAX_REPORT}")
    return page


def summary(run: RunRecord, metrics: dict[str, Any]) -> str:
    """The run in a few sentences."""
    sites = metrics["sites"].values()
    updates, rejected = sum(s["updates"] for s in sites), sum(s["rejected"] for s in sites)
    trained = sum(1 for s in sites if s["updates"])
    text = (
        f"{_count(trained, 'hospital')} trained one model together, sending noised updates and no records. "
        f"The coordinator made {_count(metrics['versions'], 'model version')} from {_count(updates, 'update')} "
        f"in {run.events[-1].t:.0f} s of training"
    )
    if metrics["cohorts"] is not None:
        text += f"; of what was in them it saw {_count(metrics['cohorts']['opened'], 'sum')} and nothing else"
    out = [f"{site} ({run.status(site)})" for site in run.names if run.status(site) != "took part"]
    text += f", and refused {rejected} more. " if rejected else ". "
    if out:
        text += f"Not there to the end: {', '.join(out[:10])}{' and others' if len(out) > 10 else ''}. "
    if metrics["auc"] is not None:
        against = []
        if metrics["auc_centralised"] is not None:
            against.append(f"{metrics['auc_centralised']:.3f} for a non-private logistic regression on pooled data")
        if run.auc_local:
            values = sorted(run.auc_local.values())
            span = f"{values[0]:.3f} to {values[-1]:.3f}" if len(values) > 1 else f"{values[0]:.3f}"
            against.append(f"{span} for a hospital alone")
        text += f"Its AUC on the {_kind(run)} reference set is {metrics['auc']:.3f}"
        text += f"; {' and '.join(against)}. " if against else ". "
    spent = [facts.epsilon for facts in run.sites.values() if facts.epsilon]
    if spent:
        replace_one = max(e.pld_replace_one for e in spent)
        text += (
            f"No hospital spent more than ε = {max(e.pld for e in spent):.2f} per {run.job.dp.unit} "
            f"(add/remove adjacency, δ = {_power(run.job.delta)}; {replace_one:.2f} if replace-one). "
        )
    return text.strip()


def limitations(run: RunRecord, metrics: dict[str, Any]) -> list[str]:
    """What a reader must not conclude from this run."""
    job, rows = run.job, run.job.evaluation.rows
    points = ["One run with one seed. Differences between AUCs in this report have no confidence interval."]
    if rows and metrics["accuracy"] is not None:
        p = metrics["accuracy"]
        half = 1.96 * math.sqrt(max(p * (1 - p), 1 / rows) / rows)
        points[0] += f" With {rows} rows, chance alone moves the accuracy by about ± {100 * half:.1f} points (95 %)."
    if job.profile == "poc":
        points.append(
            "Proof-of-concept profile: all participants ran on one machine of one owner, with keys made by one "
            "builder. It shows the protocol, not protection from that owner."
        )
    if job.privacy.startswith("unsafe_"):
        points.append(f"Privacy mode {job.privacy} does not hide single updates from the coordinator.")
    if job.masked is not None:
        points += _masked_limitations(job.masked)
    if job.evaluation.kind != "none":
        points.append(
            "The reference set comes from the same source as the training data, so it says nothing about a hospital "
            "elsewhere, other equipment or another time."
            if job.profile == "poc"
            else "The reference set is what the study contract names; it need not look like any hospital's patients."
        )
    if any(facts.role == "malicious" for facts in run.sites.values()):
        points.append(
            "The malicious site follows a script. That this one was dealt with does not show that a cleverer one is."
        )
    points += [
        "Epsilon is per hospital. A patient treated in two of them is exposed to the sum.",
        "Differential privacy bounds what the model tells about one patient. It does not make the model right, fair or "
        "fit for clinical use.",
    ]
    return points


def _masked_limitations(masked: MaskedTerms) -> list[str]:
    points = [
        "Masking holds per cohort. Many overlapping cohorts of one job, and a coordinator that sends crafted models, "
        "are held back by the noise that each hospital adds, that is, by epsilon.",
        f"The sums hold against the coordinator together with {_count(masked.c, 'hospital')}. More that collude with "
        "it can learn an honest hospital's noised update.",
    ]
    if masked.f is None:
        points.append(
            "No protection against a lying site: nobody sees a single update, so one hospital that lies about its own "
            "can put any model in place of the joint one, and nobody can tell which it was."
        )
    else:
        points.append(
            f"Robust against at most {_count(masked.f, 'lying site')}: one spoils its whole group's mean, and with "
            "more spoilt groups than the rule bears the model is theirs. No norm bound can be enforced on a lying site."
        )
    return points


def _cohort_rows(run: RunRecord) -> list[Cohort]:
    """Those that opened nothing or lost somebody first, then the latest of the others; in their order."""
    told = sorted(run.cohorts, key=lambda each: (each.state == "opened" and not each.missing, -each.number))
    return sorted(told[:MAX_COHORT_ROWS], key=lambda each: each.number)


def _staleness_weight(staleness: Staleness | None) -> str:
    """s(τ) in words; '' where the log does not say it."""
    if staleness is None:
        return ""
    a, b = staleness.a, staleness.b
    if staleness.function == "constant":
        return "as much as a fresh one"
    if staleness.function == "polynomial":
        return "1/√(1+τ)" if a == 0.5 else f"(1+τ)^-{a:g}"
    return f"1 up to τ = {b}, then 1/({a:g}·(τ-{b}) + 1)"


def _participants(run: RunRecord) -> list[dict[str, Any]]:
    """Attestation rows: every site and whoever else was appraised (the coordinator)."""
    appraised: dict[str, Attested] = {event.site: event for event in run.of(Attested)}
    rows = []
    for name in dict.fromkeys([*run.names, *appraised]):
        status, last = attested(run, name), appraised.get(name)
        rows.append(
            {
                "name": name,
                "status": status,
                "passed": sum(1 for _, result, _ in last.codes if result == "pass") if last else 0,
                "open": [code for code in last.codes if code[1] != "pass"] if last else [],
                "meaning": EVIDENCE.get(status, HARDWARE),
            }
        )
    return rows


def _role(run: RunRecord, site: str) -> str:
    role = run.sites[site].role
    return "honest, made slow on purpose" if role == "slow" else ROLES[role]


def _kind(run: RunRecord) -> str:
    return run.job.evaluation.kind.upper()


def _fixed(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash for what is not known."""
    return "–" if value is None else f"{value:.{digits}f}"


def _bound(epsilon: float | None) -> str:
    """An epsilon that may be infinite."""
    return "∞" if epsilon is None else _fixed(epsilon)


def _power(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
