"""The public plan of a job, as its first event says it, with what one has to trust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cordon.flare.kit import Kit
from cordon.job import Job


def job_event(
    kit: Kit, job: Job, job_id: str, sites: Sequence[str], rows: int, masked: dict[str, Any] | None, trust: str
) -> dict[str, Any]:
    """Fields of the event ``job``.

    Args:
        rows: of the reference set.
        masked: what secure aggregation asks for (``report.events.MaskedTerms``); None where there is none.
        trust: the mode's statement and where the models lie.
    """
    args, dp, study = job.controller, job.executor.dp, kit.study
    return {
        "job_id": job_id,
        "job": job.name,
        "study": study.study,
        "profile": study.profile,
        "privacy": args.privacy,
        "rule": args.rule,
        "rule_args": args.rule_args,
        "server_opt": msgspec.to_builtins(args.server_opt),
        "buffer": args.buffer,
        "versions": args.versions,
        "rounds_per_site": args.rounds_per_site,
        "norm_bound": args.norm_bound,
        "max_staleness": args.max_staleness,
        "staleness": msgspec.to_builtins(args.staleness),
        "pre_aggregation": msgspec.to_builtins(args.pre_aggregation),
        "masked": masked,
        "sites": list(sites),
        "evaluation": {"kind": study.evaluation.kind, "name": study.evaluation.name, "rows": rows},
        "dp": {
            "noise_multiplier": dp.noise_multiplier,
            "sampling_rate": dp.sampling_rate,
            "steps": dp.steps,
            "clip_norm": dp.clip_norm,
            "unit": dp.unit,
            "expected_batch_size": dp.expected_batch_size,
        },
        "delta": dp.delta,
        "trust": trust,
    }
