"""``jobs/oncology_masked``: ``jobs/oncology`` with masked sums, feasible with the demo's sites, at the same cost."""

import json
from pathlib import Path

import msgspec
import pytest

from cordon import job
from cordon.demo import wdbc
from cordon.dp.accounting import epsilon
from cordon.errors import ConfigError
from cordon.job import threshold
from cordon.messages import DPEvent
from cordon.secagg.terms import check_feasible

ROOT = Path(__file__).parents[2] / "jobs"
SITES = len(wdbc.SITES)


def load(name: str) -> job.Job:
    return job.from_folder(name, ROOT / name / "app" / "config")


@pytest.fixture(scope="module")
def masked() -> job.Job:
    return load("oncology_masked")


def test_folder_holds_configuration_only() -> None:
    folder = ROOT / "oncology_masked"
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in job.FLARE_FILES]
    files = {str(path.relative_to(folder)) for path in paths}
    assert files == {"meta.json", *(f"app/config/{name}" for name in job.FILES)}
    assert json.loads((folder / "meta.json").read_text()) == {
        "name": "oncology_masked", "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}, "min_clients": 4
    }  # fmt: skip


def test_contract_model_and_training_are_those_of_the_sealed_job(masked: job.Job) -> None:
    """So the numbers compare: only the noise differs, for fewer rounds at the same epsilon."""
    sealed = load("oncology")
    assert masked.contract == sealed.contract
    same_noise = msgspec.structs.replace(masked.executor.dp, noise_multiplier=sealed.executor.dp.noise_multiplier)
    assert msgspec.structs.replace(masked.executor, dp=same_noise) == sealed.executor
    assert masked.controller.server_opt == sealed.controller.server_opt
    assert masked.controller.norm_bound == sealed.controller.norm_bound


def test_whole_plan_costs_what_the_sealed_one_does(masked: job.Job) -> None:
    def cost(each: job.Job, accountant: str) -> float:
        return epsilon([(DPEvent.of(each.executor.dp), each.controller.rounds_per_site)], 1e-5, accountant=accountant)

    assert 2.5 < cost(masked, "pld") <= 3.0 and cost(masked, "rdp") <= 4.0
    assert cost(masked, "pld") == pytest.approx(cost(load("oncology"), "pld"), rel=0.05)


def test_the_demo_s_sites_can_do_it_also_with_one_dead_but_not_with_two(masked: job.Job) -> None:
    check_feasible(masked.controller, SITES)
    check_feasible(masked.controller, SITES - 1)
    with pytest.raises(ConfigError, match="buffer = 4 > N = 3"):
        check_feasible(masked.controller, SITES - 2)


def test_a_cohort_bears_one_drop_out_and_one_colluder_and_leaves_the_slow_site_behind(masked: job.Job) -> None:
    asks = masked.controller.masked
    assert asks is not None and asks.groups is None and not asks.distributed
    cohort = masked.controller.buffer
    assert cohort == SITES - 1
    assert max(threshold(cohort, asks.c), asks.u_min) == 3 == cohort - 1
    assert asks.c == 1


def test_rounds_are_left_for_cohorts_that_end(masked: job.Job) -> None:
    assert masked.controller.versions + 2 == masked.controller.rounds_per_site
