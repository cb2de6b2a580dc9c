"""What FLARE's record of a job says about sites that did not take it."""

from __future__ import annotations

from typing import Any

from cordon.flare import poc


def refusals(federation: poc.Poc, job: str, meta: dict[str, Any]) -> dict[str, str]:
    """site -> why it did not take the job, out of FLARE's record of the deployment."""
    found = {}
    for line in meta.get(poc.DEPLOY_DETAIL, []):
        site, _, reason = str(line).partition(": ")
        if site in federation.sites and reason != "OK":
            reason = reason.removeprefix("NVFLARE_ERROR: ")
            found[site] = reason.removeprefix(f"{site} refuses job {job!r}: ")
    return found


def grouped(refusals: dict[str, str]) -> list[tuple[str, str]]:
    """(sites, reason) with each reason once."""
    by_reason: dict[str, list[str]] = {}
    for site, reason in refusals.items():
        by_reason.setdefault(reason, []).append(site)
    return [(", ".join(sorted(sites)), reason) for reason, sites in by_reason.items()]


def why(federation: poc.Poc, job: str, meta: dict[str, Any]) -> str:
    """Why a job made no model, in the words of FLARE and of the sites."""
    said = [f"{sites}: {reason}" for sites, reason in grouped(refusals(federation, job, meta))]
    history = [str(line) for line in meta.get(poc.SCHEDULE_HISTORY, [])][-1:]
    return f"FLARE says {meta.get(poc.STATUS, 'unknown')}. " + " ".join(said + history)
