"""The job asks, the site decides: every miss is named, all together."""

import math

import msgspec
import pytest
import yaml

from cordon import documents
from cordon.dp.accounting import epsilon
from cordon.errors import ConfigError, PolicyRefused
from cordon.job import from_folder
from cordon.messages import DPEvent
from cordon.site.policy import SitePolicy, judge


@pytest.fixture(scope="module")
def job(repo_root):
    config = repo_root / "jobs" / "oncology" / "app" / "config"
    return from_folder("oncology", config)


@pytest.fixture
def tree(job, repo_root):
    tree = documents.load(repo_root / "provisioning" / "poc" / "hospital-a.yml", dict)
    tree["allow"]["contracts"] = [job.contract_digest]
    return tree


class Study:
    """What judge reads of a study contract."""

    study, profile, jobs, models = "wdbc-poc", "poc", ("oncology",), ("FullyConnectedNet",)

    def __init__(self, job):
        self.contracts = (job.contract_digest,)


@pytest.fixture
def agreed(job):
    return Study(job)


def _policy(tree):
    return documents.parse(yaml.safe_dump(tree).encode(), SitePolicy, "cordon.yml")


def _codes(policy, agreed, job, epsilon=3.5):
    with pytest.raises(PolicyRefused) as caught:
        judge(policy, agreed, job, epsilon)
    assert caught.value.exit_code == 4
    return [code for code, _ in caught.value.reasons]


def test_the_shipped_job_is_allowed_at_what_it_costs_and_up_to_the_limit(tree, agreed, job):
    policy = _policy(tree)
    plan = [(DPEvent.of(job.executor.dp), job.controller.rounds_per_site)]
    cost = epsilon(plan, policy.dp.delta, accountant="rdp")
    assert 0 < cost < policy.dp.epsilon
    for spent in (cost, policy.dp.epsilon):
        assert judge(policy, agreed, job, spent) is None
    assert _codes(policy, agreed, job, math.nextafter(policy.dp.epsilon, math.inf)) == ["epsilon_over_policy"]


def test_epsilon_over_the_policy_is_refused_with_both_figures(tree, agreed, job):
    with pytest.raises(PolicyRefused, match=r"epsilon 4\.001 .* the site allows 4") as caught:
        judge(_policy(tree), agreed, job, 4.001)
    assert [code for code, _ in caught.value.reasons] == ["epsilon_over_policy"]


@pytest.mark.parametrize(
    ("section", "change", "code"),
    [
        ("allow", {"studies": []}, "study_not_allowed"),
        ("allow", {"jobs": ["oncology2"]}, "job_not_allowed"),
        ("allow", {"jobs": ["onco"]}, "job_not_allowed"),
        ("allow", {"models": []}, "model_not_allowed"),
        ("allow", {"contracts": ["0" * 64]}, "contract_not_allowed"),
        ("allow", {"privacy_modes": ["sealed"]}, "privacy_mode_not_allowed"),
        ("dp", {"epsilon": 3.0}, "epsilon_over_policy"),
        ("dp", {"min_noise": 100.0}, "noise_under_policy"),
        ("caps", {"max_rounds": 1}, "rounds_over_cap"),
    ],
)
def test_each_limit_of_the_site_holds(tree, agreed, job, section, change, code):
    tree[section] = {**tree.get(section, {}), **change}
    assert _codes(_policy(tree), agreed, job) == [code]


@pytest.mark.parametrize(
    ("field", "code"),
    [("jobs", "job_not_allowed"), ("models", "model_not_allowed"), ("contracts", "contract_not_allowed")],
)
def test_each_limit_of_the_study_holds(tree, agreed, job, field, code):
    setattr(agreed, field, ())
    assert _codes(_policy(tree), agreed, job) == [code]


def test_unsafe_things_stop_at_poc(tree, agreed, job):
    agreed.profile = "production"
    assert _codes(_policy(tree), agreed, job) == ["unsafe_outside_poc"]
    tree["unsafe_poc"] = {"flip_labels": True}
    assert _codes(_policy(tree), agreed, job) == ["unsafe_outside_poc", "unsafe_outside_poc"]


def test_all_misses_come_together(tree, agreed, job):
    tree["allow"] = {"studies": [], "jobs": [], "models": [], "contracts": [], "privacy_modes": []}
    assert len(_codes(_policy(tree), agreed, job, epsilon=99.0)) == 6


@pytest.mark.parametrize("field", ["version", "site", "allow", "dp", "data", "attestation"])
def test_no_section_may_be_left_out(tree, field):
    del tree[field]
    with pytest.raises(ConfigError, match=field):
        _policy(tree)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("dp", {"epsilon": 0}),
        ("dp", {"epsilon": float("nan")}),
        ("dp", {"delta": 1.0}),
        ("dp", {"adjacency": "replace_one"}),
        ("dp", {"unit": "row"}),
        ("allow", {"privacy_modes": ["plain"]}),
        ("allow", {"everything": True}),
        ("data", {"connector": "ftp"}),
        ("caps", {"threads": 0}),
        ("unsafe_poc", {"extra_delay_s": 61}),
        ("egress", {"log_streaming": "yes"}),
    ],
)
def test_what_does_not_fit_is_refused(tree, section, change):
    tree[section] = {**tree.get(section, {}), **change}
    with pytest.raises(ConfigError, match=r"cordon\.yml"):
        _policy(tree)


def test_shipped_templates_fit(repo_root, job):
    sites = {}
    for path in sorted((repo_root / "provisioning" / "poc").glob("hospital-*.yml")):
        tree = documents.load(path, dict)
        tree["allow"]["contracts"] = [job.contract_digest]
        policy = _policy(tree)
        assert policy.site == path.stem
        assert not policy.egress.log_streaming
        sites[policy.site] = policy
    assert {policy.data.connector for policy in sites.values()} == {"fhir", "sql", "pdf", "omop", "csv"}
    assert [name for name, policy in sites.items() if policy.unsafe_poc] == ["hospital-d", "hospital-e"]
    assert msgspec.to_builtins(sites["hospital-d"].unsafe_poc) == {
        "extra_delay_s": 4.0,
        "flip_labels": False,
        "scale_update": 1.0,
    }


def test_paths_resolve_against_the_policy(tree, tmp_path):
    policy = _policy(tree)
    assert policy.resolve(tmp_path / "local", policy.data.source) == tmp_path / "data" / "fhir"
