"""Noise that is shared out: what a job asks of a site, what the site makes of it, and what its key broker is told."""

import math
from datetime import UTC, datetime
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from cordon import job as jobs
from cordon.attest.keys import ProcessKeys
from cordon.broker.config import Gate
from cordon.broker.gate import Plan
from cordon.broker.release_gate import ReleaseGate, Terms
from cordon.dp.accounting import epsilon
from cordon.errors import ConfigError, PolicyRefused, PrivacyError, Refused
from cordon.flare import plan
from cordon.flare.kit import load_kit
from cordon.flare.session import Session, Trained
from fakes.in_process import job_files

change = msgspec.structs.replace


@pytest.fixture
def hospital(made_kits):
    return load_kit(made_kits / "hospital-a", datetime.now(UTC))


@pytest.fixture(scope="module")
def shipped():
    """As it ships, but for its 4 rounds a site."""
    return jobs.from_files("oncology_masked", job_files(job="oncology_masked"))


@pytest.fixture
def job(shipped):
    """The same with shared-out noise: 4 sites in a cohort, of which 3 suffice and 1 may collude."""
    return _with(shipped, masked={"distributed": True}, dp={"steps": 1, "noise_multiplier": 4.0})


def _with(job, *, masked=None, dp=None, controller=None, executor=None):
    controller = {"masked": change(job.controller.masked, **(masked or {})), **(controller or {})}
    executor = {"dp": change(job.executor.dp, **(dp or {})), **(executor or {})}
    return change(job, controller=change(job.controller, **controller), executor=change(job.executor, **executor))


def _policy(kit, **dp):
    return change(kit.policy, dp=change(kit.policy.dp, **dp))


def _codes(call, *args):
    with pytest.raises(PolicyRefused) as caught:
        call(*args)
    return [code for code, _ in caught.value.reasons]


def test_the_event_is_that_of_the_honest_shares_of_the_smallest_sum(job, shipped):
    event = plan.round_event(job)
    assert event.mechanism == "distributed_discrete_gaussian"
    assert event.noise_multiplier == pytest.approx(4.0 * math.sqrt(3 - 1))
    assert (event.sampling_rate, event.steps, event.unit) == (job.executor.dp.sampling_rate, 1, "patient")
    assert plan.round_event(shipped).mechanism == "poisson_subsampled_gaussian"


def test_the_smallest_sum_follows_from_cohort_threshold_and_floor(job):
    for fields, least in (({}, 3), ({"c": 0}, 3), ({"u_min": 4}, 4)):
        assert plan.least(_with(job, masked=fields)) == least
    assert plan.least(_with(job, controller={"buffer": 5})) == 4  # t = floor((5 + 1) / 2) + 1
    groups = jobs.Groups(size=4, f=0, drop_outs=1)
    assert plan.least(_with(job, masked={"groups": groups})) == 3


def test_a_site_tops_up_to_its_floor_and_its_own_event_says_so(job, hospital):
    high = _policy(hospital, min_noise=7.0)
    own = plan.shares(job, high).own
    assert own == pytest.approx(math.sqrt(7.0**2 - 4.0**2))
    assert plan.round_event(job, high).noise_multiplier == pytest.approx(7.0)
    assert plan.round_event(job).noise_multiplier < 7.0  # what all sites state is the job's
    assert plan.round_event(job, _policy(hospital, min_noise=0.5)) == plan.round_event(job)


def test_a_floor_that_the_ring_has_no_room_for_is_refused(job, hospital):
    assert _codes(plan.shares, job, _policy(hospital, min_noise=17.0)) == ["noise_under_policy"]


def test_a_hospital_judges_the_sum_against_the_coordinator_and_colluders(job, hospital):
    plan.judge_job(hospital, job)
    spent = epsilon([(plan.round_event(job), 4)], 1e-5, accountant="rdp")
    limit = SimpleNamespace(**{**vars(hospital), "policy": _policy(hospital, epsilon=0.999 * spent)})
    assert _codes(plan.judge_job, limit, job) == ["epsilon_over_policy"]
    assert _codes(plan.judge_noise, limit, job, 31) == ["epsilon_over_policy"]
    limit.policy = _policy(hospital, epsilon=1.001 * spent)
    plan.judge_job(limit, job)
    plan.judge_noise(limit, job, 31)
    # The same plan with a floor above it costs less: the site's own noise is counted.
    limit.policy = _policy(hospital, epsilon=0.999 * spent, min_noise=7.0)
    plan.judge_job(limit, job)


def test_the_floor_of_the_own_share_holds_too(job, hospital):
    floors = change(hospital.policy.masked, min_own_noise=4.1)
    strict = SimpleNamespace(**{**vars(hospital), "policy": change(hospital.policy, masked=floors)})
    assert _codes(plan.judge_job, strict, job) == ["own_noise_under_policy"]


def test_an_update_without_its_noise_is_never_sealed_for_anybody(job, shipped, hospital):
    keys = ProcessKeys.generate()
    session = Session(kit=hospital, job=job, job_id="job", keys=keys)
    session.trained = Trained(SimpleNamespace(), b"delta")
    with pytest.raises(PrivacyError, match="no update of one site leaves it"):
        session.seal_update(keys)


def test_a_ring_too_coarse_for_the_model_is_refused(job, hospital):
    assert _codes(plan.judge_noise, hospital, job, 10**14) == ["noise_not_accountable"]


@pytest.mark.parametrize("wrong", [{"dp": {"steps": 2}}, {"executor": {"local_parameters": ("output.bias",)}}])
def test_a_job_that_cannot_share_out_its_noise_is_refused(job, hospital, wrong):
    with pytest.raises(ConfigError, match=r"masked\.distributed"):
        plan.judge_job(hospital, _with(job, **wrong))


def _view(job, members, least=None):
    size = plan.layout(job).size
    terms = SimpleNamespace(size=size)
    ring = plan.fixedpoint.choose(32, members, job.controller.norm_bound, plan.noise_bound(job))
    return SimpleNamespace(terms=terms, ring=ring, least=plan.least(job) if least is None else least)


def test_a_share_is_drawn_for_the_cohort_s_ring(job, hospital, shipped):
    view = _view(job, 4)
    draws = np.concatenate([plan.noise_share(job, hospital, view) for _ in range(60)])
    noise = plan.shared_noise(job, view.terms.size, hospital.policy)
    assert draws.dtype == np.int64
    assert draws.std() / view.ring.scale == pytest.approx(4.0 * noise.sensitivity, rel=0.08)
    assert plan.noise_share(shipped, hospital, view) is None


def test_a_coordinator_that_forms_a_smaller_or_a_larger_cohort_gets_no_share(job, hospital):
    wide = _with(job, controller={"buffer": 5})  # 4 of 5 must be in the sum
    plan.noise_share(wide, hospital, _view(wide, 5))
    with pytest.raises(PrivacyError, match="3 shares of noise, 4 were accounted"):
        plan.noise_share(wide, hospital, _view(wide, 3, least=3))
    with pytest.raises(PrivacyError, match="scale"):
        plan.noise_share(job, hospital, _view(job, 40, least=21))


def test_the_three_figures_of_a_site(job, hospital):
    figures = plan.figures(job, hospital.policy, 4)
    assert figures.public < figures.coordinator < figures.own_share
    assert figures.coordinator == epsilon([(plan.round_event(job), 4)], 1e-5)
    assert plan.figures(job, hospital.policy, 1).coordinator < figures.coordinator


def test_the_key_broker_prices_what_the_site_draws(job, hospital):
    gate = ReleaseGate(
        None, Terms(tenant="a", gate=Gate(max_releases=1, epsilon=4.0, delta=1e-5), check_s=1, lease_s=9), None
    )
    ask = Plan(dp_event=plan.round_event(job, hospital.policy), rounds=4)
    assert gate.price(ask) == epsilon([(ask.dp_event, 4)], 1e-5, accountant="rdp")
    local = change(ask.dp_event, mechanism="poisson_subsampled_gaussian")
    assert gate.price(ask) >= gate.price(change(ask, dp_event=local))  # a part of delta is kept for what is discrete
    with pytest.raises(Refused, match="bad_request"):
        gate.price(change(ask, dp_event=change(ask.dp_event, steps=2)))
