"""The job asks, the site decides: every miss is named, all together."""

import math

import msgspec
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import documents
from cordon.dp.accounting import epsilon
from cordon.errors import ConfigError, PolicyRefused
from cordon.job import from_folder
from cordon.messages import DPEvent
from cordon.signing import encode_spki
from cordon.site.policy import SitePolicy, judge

BROKER = {"url": "https://127.0.0.1:8004", "spki": encode_spki(Ed25519PrivateKey.generate().public_key())}


@pytest.fixture(scope="module")
def job(repo_root):
    config = repo_root / "jobs" / "oncology" / "app" / "config"
    return from_folder("oncology", config)


@pytest.fixture(scope="module")
def masked_job(repo_root):
    return from_folder("oncology_masked", repo_root / "jobs" / "oncology_masked" / "app" / "config")


@pytest.fixture
def tree(job, repo_root):
    tree = documents.load(repo_root / "provisioning" / "poc" / "hospital-a.yml", dict)
    tree["allow"]["contracts"] = [job.contract_digest]
    tree["broker"] = BROKER
    return tree


class Study:
    """What judge reads of a study contract."""

    study, profile, models, release = "wdbc-poc", "poc", ("FullyConnectedNet",), object()
    jobs = ("oncology", "oncology_masked")

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
        ("allow", {"privacy_modes": ["masked"]}, "privacy_mode_not_allowed"),
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


@pytest.mark.parametrize("unsafe", ["unsafe_poc", "unsafe_source"])
def test_unsafe_things_stop_at_poc(tree, agreed, job, unsafe):
    if unsafe == "unsafe_poc":
        tree["unsafe_poc"] = {"flip_labels": True}
    else:
        tree["data"]["unsafe_source"] = tree["data"].pop("vault")
        del tree["broker"]
    assert judge(_policy(tree), agreed, job, 3.5) is None
    agreed.profile = "production"
    assert _codes(_policy(tree), agreed, job) == ["unsafe_outside_poc"]


@pytest.mark.parametrize("mode", ["sealed", "masked"])
def test_a_job_wants_somebody_who_may_open_its_model(tree, agreed, job, masked_job, mode):
    agreed.release = None
    assert _codes(_policy(tree), agreed, job if mode == "sealed" else masked_job) == ["no_release_right"]


def test_the_shipped_masked_job_is_allowed_at_what_it_costs(tree, agreed, masked_job):
    plan = [(DPEvent.of(masked_job.executor.dp), masked_job.controller.rounds_per_site)]
    assert judge(_policy(tree), agreed, masked_job, epsilon(plan, 1e-5, accountant="rdp")) is None


@pytest.mark.parametrize(
    ("floor", "code", "said"),
    [
        ({"u_min": 4}, "u_min_under_policy", r"sums open with 3 sites .* wants at least 4"),
        ({"c": 2}, "collusion_under_policy", r"against 1 colluding .* wants at least 2"),
        ({"max_aborts": 2}, "aborts_over_policy", r"3 cohorts may end .* allows 2"),
    ],
)
def test_each_masked_floor_of_the_site_holds_with_both_figures(tree, agreed, masked_job, floor, code, said):
    tree["masked"].update(floor)
    assert _codes(_policy(tree), agreed, masked_job) == [code]
    with pytest.raises(PolicyRefused, match=said):
        judge(_policy(tree), agreed, masked_job, 3.5)


def test_masked_floors_weaker_than_the_job_are_kept(tree, agreed, masked_job):
    """min_own_noise is not compared: nothing is shared out in this job."""
    tree["masked"] = {"u_min": 3, "c": 0, "max_aborts": 1000, "min_own_noise": 100.0}
    assert judge(_policy(tree), agreed, masked_job, 3.5) is None


def test_a_site_without_masked_floors_takes_no_masked_job(tree, agreed, job, masked_job):
    del tree["masked"]
    assert _codes(_policy(tree), agreed, masked_job) == ["masked_without_floors"]
    assert judge(_policy(tree), agreed, job, 3.5) is None


def test_floors_alone_do_not_allow_the_mode(tree, agreed, masked_job):
    tree["allow"]["privacy_modes"] = ["sealed"]
    assert _codes(_policy(tree), agreed, masked_job) == ["privacy_mode_not_allowed"]


def test_a_share_of_noise_under_the_site_s_floor_is_refused(tree, agreed, masked_job):
    """The floor holds if more sites than c collude; ``dp.min_noise`` is the sum's, and the site tops up to it."""
    distributed = msgspec.structs.replace(
        masked_job,
        controller=msgspec.structs.replace(
            masked_job.controller, masked=msgspec.structs.replace(masked_job.controller.masked, distributed=True)
        ),
    )
    own = distributed.executor.dp.noise_multiplier
    tree["masked"]["min_own_noise"], tree["dp"]["min_noise"] = own, 2 * own
    assert judge(_policy(tree), agreed, distributed, 3.5) is None
    tree["masked"]["min_own_noise"] = math.nextafter(own, math.inf)
    assert _codes(_policy(tree), agreed, distributed) == ["own_noise_under_policy"]
    assert _codes(_policy(tree), agreed, masked_job) == ["noise_under_policy"]  # local noise has no sum to lean on


def test_all_masked_misses_come_together(tree, agreed, masked_job):
    tree["masked"] = {"u_min": 5, "c": 3, "max_aborts": 0}
    assert _codes(_policy(tree), agreed, masked_job) == [
        "u_min_under_policy", "collusion_under_policy", "aborts_over_policy"
    ]  # fmt: skip


def test_a_vault_and_the_broker_that_keeps_its_key_belong_together(tree):
    without = {key: value for key, value in tree.items() if key != "broker"}
    with pytest.raises(ConfigError, match="a vault wants a broker"):
        _policy(without)
    plain = {**tree, "data": {**tree["data"], "unsafe_source": "../data/plain"}}
    with pytest.raises(ConfigError, match="either a vault or an unsafe_source"):
        _policy(plain)
    del plain["data"]["vault"]
    with pytest.raises(ConfigError, match="a vault wants a broker"):
        _policy(plain)
    assert _policy({**without, "data": plain["data"]}).broker is None


@pytest.mark.parametrize("url", ["http://broker:8004", "https://broker:8004/x", "https://a@b", "https://b:8004\n"])
def test_a_broker_is_an_https_address_and_nothing_else(tree, url):
    tree["broker"] = {**BROKER, "url": url}
    with pytest.raises(ConfigError, match="broker"):
        _policy(tree)


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
        ("masked", {"u_min": 2}),
        ("masked", {"c": -1}),
        ("masked", {"max_aborts": -1}),
        ("masked", {"min_own_noise": 0}),
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
        policy = _policy({**tree, "broker": BROKER})
        assert policy.site == path.stem
        assert policy.data.unsafe_source is None
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
    assert policy.resolve(tmp_path / "local", "../data/x.vault") == tmp_path / "data" / "x.vault"
