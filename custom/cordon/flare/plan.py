"""From a job's config to what it costs: the one place where policy, accountant and model table meet."""

from __future__ import annotations

from cordon import documents, models
from cordon.data.contract import FeatureContract
from cordon.dp.accounting import epsilon
from cordon.errors import ConfigError
from cordon.flare.kit import Kit
from cordon.job import Job
from cordon.messages import DPEvent
from cordon.params import Layout
from cordon.site.policy import judge


def round_event(job: Job) -> DPEvent:
    """The mechanism of one round of ``job``."""
    return DPEvent.of(job.executor.dp)


def feature_contract(job: Job) -> FeatureContract:
    """The feature contract that ``job`` carries."""
    return documents.parse(job.contract, FeatureContract, f"job {job.name}: contract.yml")


def layout(job: Job) -> Layout:
    """Parameter layout of the job's model on the contract's features."""
    return models.layout_of(
        models.build(job.executor.model, job.executor.model_args, len(feature_contract(job).features))
    )


def judge_job(kit: Kit, job: Job) -> None:
    """Raise PolicyRefused or ConfigError unless the hospital of ``kit`` allows the whole plan of ``job``."""
    if kit.policy is None:
        raise ConfigError(f"{kit.name} has no site policy: only a hospital judges a job")
    asks = job.executor
    models.check(asks.model, asks.model_args, len(feature_contract(job).features))
    plan = [(round_event(job), job.controller.rounds_per_site)]
    judge(kit.policy, kit.study, job, epsilon(plan, kit.policy.dp.delta, accountant="rdp"))
