"""``jobs/oncology`` as it lies in the repository: accepted, affordable, and scaled by published constants only."""

import json
import re
from pathlib import Path

import pytest
from sklearn.datasets import load_breast_cancer

from cordon import documents, job, models
from cordon.data.contract import FeatureContract
from cordon.demo import wdbc
from cordon.dp.accounting import epsilon
from cordon.messages import DPEvent

FOLDER = Path(__file__).parents[2] / "jobs" / "oncology"
CONFIG = FOLDER / "app" / "config"


@pytest.fixture(scope="module")
def oncology() -> job.Job:
    return job.from_folder("oncology", CONFIG)


@pytest.fixture(scope="module")
def contract(oncology: job.Job) -> FeatureContract:
    return documents.parse(oncology.contract, FeatureContract, "contract.yml")


def test_folder_holds_configuration_only() -> None:
    # FLARE signs a job where it lies when it is submitted: those two files aren't the job's.
    paths = [path for path in FOLDER.rglob("*") if path.is_file() and path.name not in job.FLARE_FILES]
    files = {str(path.relative_to(FOLDER)) for path in paths}
    assert files == {"meta.json", *(f"app/config/{name}" for name in job.FILES)}
    meta = json.loads((FOLDER / "meta.json").read_text())
    assert meta == {"name": "oncology", "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}, "min_clients": 3}


def test_whole_plan_costs_every_hospital_at_most_what_the_poc_policy_allows(oncology: job.Job) -> None:
    dp, args = oncology.executor.dp, oncology.controller
    plan = [(DPEvent.of(dp), args.rounds_per_site)]
    assert dp.delta == 1e-5
    assert 2.5 < epsilon(plan, 1e-5) <= 3.0
    assert epsilon(plan, 1e-5, accountant="rdp") <= 4.0
    assert epsilon(plan, 1e-5, adjacency="replace_one") > 6.0  # what a report has to show beside it


def test_plan_can_be_finished_with_one_site_excluded_and_one_dead(oncology: job.Job) -> None:
    args = oncology.controller
    assert args.buffer <= len(wdbc.SITES) - 2
    assert args.versions <= args.rounds_per_site
    assert args.max_faults == 2


def test_model_is_logistic_regression_on_thirty_features(oncology: job.Job, contract: FeatureContract) -> None:
    asks = oncology.executor
    assert models.layout_of(models.build(asks.model, asks.model_args, len(contract.features))).size == 31


def test_contract_names_every_feature_in_the_source_s_order(contract: FeatureContract) -> None:
    assert contract.contract == "wdbc/1.0.0"
    assert tuple(feature.id for feature in contract.features) == wdbc.feature_ids()
    assert all(feature.concept.code == feature.id for feature in contract.features)
    assert contract.label.id == "malignant"


def test_units_are_lengths_areas_and_ratios(contract: FeatureContract) -> None:
    for feature in contract.features:
        kind = next((k for k in ("radius", "perimeter", "area") if k in feature.id), None)
        assert feature.unit == {"radius": "um", "perimeter": "um", "area": "um2", None: "1"}[kind]


def test_scaling_is_one_public_rule_on_the_published_minima_and_maxima(contract: FeatureContract) -> None:
    """center = min + 0.3 (max - min), scale = 0.25 (max - min), from the data set's description and nothing else."""
    published = {}
    pattern = r"^([a-z ]+) \((mean|standard error|worst)\):\s+([\d.]+)\s+([\d.]+)$"
    for name, kind, low, high in re.findall(pattern, load_breast_cancer().DESCR, re.MULTILINE):
        plain = name.replace(" ", "_")
        key = f"{plain}_error" if kind == "standard error" else f"{kind}_{plain}"
        published[key] = (float(low), float(high))
    assert len(published) == 30
    for feature in contract.features:
        low, high = published[feature.id]
        assert feature.center == pytest.approx(low + 0.3 * (high - low), rel=1e-5)
        assert feature.scale == pytest.approx(0.25 * (high - low), rel=1e-5)
        assert feature.range == pytest.approx((0.0, 2 * high), rel=1e-5)


def test_every_patient_is_in_the_plausible_range(contract: FeatureContract) -> None:
    table = wdbc.load()
    for column, feature in enumerate(contract.features):
        assert feature.range[0] <= table.x[:, column].min()
        assert table.x[:, column].max() <= feature.range[1]
        assert (
            feature.range[1] < 1000 * table.x[:, column].min() or table.x[:, column].min() == 0 or feature.unit == "1"
        )
