"""What a job costs and whether a hospital allows it."""

from datetime import UTC, datetime

import msgspec
import pytest

from cordon import job as jobs
from cordon.dp.accounting import epsilon
from cordon.errors import ConfigError, PolicyRefused
from cordon.flare import plan
from cordon.flare.kit import load_kit
from fakes.in_process import job_files


@pytest.fixture
def hospital(made_kits):
    return load_kit(made_kits / "hospital-a", datetime.now(UTC))


@pytest.fixture
def oncology():
    return jobs.from_files("oncology", job_files())


def _with(job, *, controller=None, executor=None, dp=None, **fields):
    """``job`` with some values changed."""
    change = msgspec.structs.replace
    executor = {**(executor or {}), **({"dp": change(job.executor.dp, **dp)} if dp else {})}
    return change(
        job,
        controller=change(job.controller, **(controller or {})),
        executor=change(job.executor, **executor),
        **fields,
    )


def test_the_event_of_a_round_is_the_job_s_mechanism(oncology):
    event, dp = plan.round_event(oncology), oncology.executor.dp
    assert event.mechanism == "poisson_subsampled_gaussian"
    for name in ("noise_multiplier", "sampling_rate", "steps", "clip_norm", "unit"):
        assert getattr(event, name) == getattr(dp, name)


def test_the_layout_is_the_model_on_the_contract_s_features(oncology):
    assert plan.layout(oncology).size == len(plan.feature_contract(oncology).features) + 1


def test_parameters_that_stay_at_a_site_are_not_in_the_layout_nor_in_the_first_model(oncology):
    local = _with(oncology, executor={"local_parameters": ("output.bias",)})
    assert plan.layout(local).size == plan.layout(oncology).size - 1
    assert len(plan.first_model(local)) == plan.layout(local).size
    assert plan.layout(local).digest != plan.layout(oncology).digest


@pytest.mark.parametrize("names", [("output",), ("output.bias", "output.weight")])
def test_a_job_that_names_no_parameter_or_all_of_them_has_no_layout(oncology, names):
    with pytest.raises(ConfigError, match=r"no parameter output|nothing is left"):
        plan.layout(_with(oncology, executor={"local_parameters": names}))


def test_the_job_as_it_is_is_allowed(hospital, oncology):
    assert plan.judge_job(hospital, oncology) is None  # a refusal would be raised


def test_the_whole_plan_is_judged_not_one_round(hospital, oncology):
    """The first plan over the hospital's epsilon is refused, the last one under it is not."""
    limit, event = hospital.policy.dp.epsilon, plan.round_event(oncology)
    rounds = 1
    while epsilon([(event, rounds + 1)], hospital.policy.dp.delta, accountant="rdp") <= limit:
        rounds += 1
    assert rounds > 4
    plan.judge_job(hospital, _with(oncology, controller={"rounds_per_site": rounds}))
    with pytest.raises(PolicyRefused) as refused:
        plan.judge_job(hospital, _with(oncology, controller={"rounds_per_site": rounds + 1}))
    assert [code for code, _ in refused.value.reasons] == ["epsilon_over_policy"]


def test_every_miss_is_said_at_once(hospital, oncology):
    greedy = _with(oncology, name="other", dp={"noise_multiplier": 0.4, "delta": 1e-3})
    with pytest.raises(PolicyRefused) as refused:
        plan.judge_job(hospital, greedy)
    assert {code for code, _ in refused.value.reasons} == {
        *("job_not_allowed", "epsilon_over_policy", "noise_under_policy", "delta_over_policy"),
    }


def test_an_unknown_model_or_argument_is_refused_before_anything_is_built(hospital, oncology, monkeypatch):
    monkeypatch.setattr(plan.models, "build", lambda *args: pytest.fail("was built"))
    for executor in (
        {"model": "DenseNet121"},
        {"model_args": {"hidden_channels": [10**9]}},
        {"model_args": {"path": "subprocess.Popen"}},
    ):
        with pytest.raises(ConfigError, match="model"):
            plan.judge_job(hospital, _with(oncology, executor=executor))


def test_the_coordinator_judges_no_job(made_kits, oncology):
    with pytest.raises(ConfigError, match="only a hospital judges a job"):
        plan.judge_job(load_kit(made_kits / "server", datetime.now(UTC)), oncology)
