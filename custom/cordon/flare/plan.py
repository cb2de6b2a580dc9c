"""From a job's config to what it costs and on which terms it runs: where policy, accountant, model table, rules and
secure aggregation meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cordon import documents, models
from cordon.data.contract import FeatureContract
from cordon.dp.accounting import epsilon
from cordon.dp.distributed import Figures, SharedNoise, Shares, noise_bound
from cordon.errors import ConfigError, PolicyRefused, PrivacyError, ProtocolAbort
from cordon.flare import aggregation
from cordon.flare.kit import Kit
from cordon.job import Job
from cordon.messages import DPEvent
from cordon.params import Layout, Vector
from cordon.secagg import fixedpoint
from cordon.secagg.groups import GroupMap
from cordon.secagg.roster import View
from cordon.secagg.terms import Terms, check_feasible, terms_of
from cordon.secagg.wire import MAX_COHORT
from cordon.site.policy import SitePolicy, judge
from cordon.study import StudyContract

if TYPE_CHECKING:
    from torch import nn


def round_event(job: Job, policy: SitePolicy | None = None) -> DPEvent:
    """The mechanism of one round of ``job``: as every site states it, or what it is at the site of ``policy``.

    The two differ where noise is shared out and that site draws more than its share. The event is then of the sum that
    opens, against the coordinator and c colluding sites.
    """
    return shares(job, policy).event() if distributed(job) else DPEvent.of(job.executor.dp)


def feature_contract(job: Job) -> FeatureContract:
    """The feature contract that ``job`` carries."""
    return documents.parse(job.contract, FeatureContract, f"job {job.name}: contract.yml")


def layout(job: Job) -> Layout:
    """Layout of what the job's sites share: its model's parameters on the contract's features but the local ones."""
    return models.layout_of(network(job)).without(job.executor.local_parameters)


def network(job: Job) -> nn.Module:
    """The job's network; every parameter is that of MONAI's initialisation under the job's public seed."""
    asks, features = job.executor, len(feature_contract(job).features)
    module = models.build(asks.model, asks.model_args, features)
    models.set_vector(module, models.initial_vector(asks.model, asks.model_args, features, job.controller.init_seed))
    return module


def first_model(job: Job) -> Vector:
    """Version 0 of ``job`` (d,): what its sites share of ``network``."""
    return models.get_vector(network(job), job.executor.local_parameters)


# -- noise that is shared out ----------------------------------------------------------------------------------------


def distributed(job: Job) -> bool:
    """Whether noise is drawn in shares, in the ring."""
    return job.controller.masked is not None and job.controller.masked.distributed


def least(job: Job) -> int:
    """Sites in the smallest masked sum that opens: max(t, u_min), in groups for one with all its drop-outs away."""
    args, masked = job.controller, job.controller.masked
    if masked is None:
        raise ConfigError(f"job {job.name} is not masked")
    members = args.buffer if masked.groups is None else masked.groups.size - masked.groups.drop_outs
    return masked.least(members)


def shares(job: Job, policy: SitePolicy | None = None) -> Shares:
    """The noise shares of ``job`` in the smallest sum, with what the site of ``policy`` adds to reach its floor.

    Raises:
        ConfigError: the job's noise is not shared out, or cannot be.
        PolicyRefused: the site would have to draw more than the ring has room for.
    """
    drawn = Shares.of(job, least(job))
    try:
        return drawn if policy is None else drawn.topped_up(policy.dp.min_noise)
    except PrivacyError as error:
        raise PolicyRefused([("noise_under_policy", str(error))]) from error


def shared_noise(job: Job, size: int, policy: SitePolicy | None = None) -> SharedNoise:
    """The shares for vectors of ``size`` parameters in the ring of the largest cohort, which is the coarsest."""
    masked, bound = job.controller.masked, job.controller.norm_bound
    if masked is None:
        raise ConfigError(f"job {job.name} is not masked")
    # A group takes in who is left over when all are divided: fewer than g sites more.
    largest = job.controller.buffer if masked.groups is None else min(MAX_COHORT, 2 * masked.groups.size - 1)
    ring = fixedpoint.choose(masked.ring_bits, largest, bound, noise_bound(job))
    return SharedNoise.of(job, shares(job, policy), size, ring.scale)


def noise_share(job: Job, kit: Kit, view: View) -> NDArray[np.int64] | None:
    """This site's share (d,) for the cohort ``view``, in units of its ring; None where no noise is shared out."""
    if not distributed(job) or kit.policy is None:
        return None
    return shared_noise(job, view.terms.size, kit.policy).draw(view.ring.scale, view.least)


def figures(job: Job, policy: SitePolicy, rounds: int) -> Figures:
    """Three epsilons (PLD, add or remove one) of ``rounds`` masked sums at the job's delta, for the site of ``policy``:
    against the coordinator and c sites, against the public, and by its own share alone."""
    return shared_noise(job, layout(job).size, policy).figures(job.executor.dp.delta, rounds=rounds)


# -- secure aggregation ------------------------------------------------------------------------------------


def terms(study: StudyContract, job: Job, job_id: str, layout: Layout, groups: GroupMap | None) -> Terms:
    """On which every cohort of this job run works; both sides make them from the same signed files."""
    noise = noise_bound(job) if distributed(job) else 0.0
    weights = {hospital.name: study.weight(hospital.name) for hospital in study.roster}
    return terms_of(job, study.digest, job_id, weights, layout, round_event(job), noise, groups)


def check_job(job: Job, sites: int) -> None:
    """ConfigError, with the numbers, unless secure aggregation, shared noise and rule can work with ``sites`` sites."""
    masked = job.controller.masked
    if masked is not None:
        check_feasible(job.controller, sites)
    elif job.controller.buffer > sites:
        raise ConfigError(f"a version wants {job.controller.buffer} distinct sites (buffer), and there are {sites}")
    if distributed(job):
        shares(job)
    if masked is None or masked.groups is not None:
        aggregation.of(job.controller)


def check_groups(job: Job, groups: GroupMap) -> None:
    """ProtocolAbort unless ``job`` can work with the map that was drawn."""
    try:
        check_job(job, sum(map(len, groups)))
    except ConfigError as error:
        raise ProtocolAbort("bad_group_map", str(error)) from error


# -- what a hospital allows ------------------------------------------------------------------------------------------


def judge_job(kit: Kit, job: Job) -> None:
    """Raise PolicyRefused or ConfigError unless the hospital of ``kit`` allows the whole plan of ``job``."""
    if kit.policy is None:
        raise ConfigError(f"{kit.name} has no site policy: only a hospital judges a job")
    asks = job.executor
    models.check(asks.model, asks.model_args, len(feature_contract(job).features))
    check_job(job, len(kit.study.roster))
    plan = [(round_event(job, kit.policy), job.controller.rounds_per_site)]
    judge(kit.policy, kit.study, job, epsilon(plan, kit.policy.dp.delta, accountant="rdp"))


def judge_noise(kit: Kit, job: Job, size: int) -> None:
    """Where noise is shared out: PolicyRefused unless the whole plan, for ``size`` parameters in the coarsest ring that
    a cohort may have, is within the policy of ``kit``'s hospital and as near to a Gaussian as is accounted."""
    if not distributed(job) or kit.policy is None:
        return
    noise = shared_noise(job, size, kit.policy)
    try:
        spent = noise.epsilon(kit.policy.dp.delta, accountant="rdp")
    except PrivacyError as error:
        raise PolicyRefused([("noise_not_accountable", str(error))]) from error
    if not spent <= kit.policy.dp.epsilon:
        said = f"shared-out noise spends epsilon {spent:.3f}, the site allows {kit.policy.dp.epsilon:g}"
        raise PolicyRefused([("epsilon_over_policy", said)])
