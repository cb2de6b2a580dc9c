"""The aggregation that a job's arguments name."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cordon import job
from cordon.errors import ConfigError
from cordon.flare.aggregation import Aggregation, of
from cordon.job import Groups, Masked, PreAggregation

ARGS = job.from_folder("oncology", Path(__file__).parents[3] / "jobs" / "oncology" / "app" / "config").controller
ROWS = [np.full(3, value, np.float32) for value in (1.0, 2.0, 3.0, 4.0, -50.0)]


def args(**changes: Any) -> job.ControllerArgs:
    return msgspec.structs.replace(ARGS, **{"buffer": 5, **changes})


def test_rule_and_steps_before_it_are_the_job_s() -> None:
    weights = np.ones(5)
    assert np.allclose(of(args())(ROWS, weights).step, -8)
    assert np.allclose(of(args(rule="trimmed_mean", rule_args={"f": 1.0}))(ROWS, weights).step, 2)
    mixed = args(pre_aggregation=(PreAggregation(step="nnm", args={"f": 1.0}),))
    assert np.allclose(of(mixed)(ROWS, weights).step, (2.5 * 4 + (1 + 2 + 3 - 50) / 4) / 5)


def test_what_the_rule_carries_goes_from_version_to_version() -> None:
    aggregation = of(args(rule="centered_clipping", rule_args={"tau": 0.1}))
    rows = [np.array([10.0], np.float32)] * 5
    steps = [float(aggregation(rows, np.ones(5)).step[0]) for _ in range(3)]
    assert np.allclose(steps, [0.1, 0.2, 0.3])


def test_a_bucketing_seed_is_drawn_when_the_rows_are_there_and_anew_each_time() -> None:
    drawn: list[int] = []

    def random(below: int) -> int:
        drawn.append(below)
        return len(drawn)

    aggregation = Aggregation(
        args(buffer=6, pre_aggregation=(PreAggregation(step="bucketing", args={"s": 2.0}),)), random
    )
    assert drawn == []
    for _ in range(2):
        assert np.allclose(aggregation([*ROWS, ROWS[0]], np.ones(6)).step, -39 / 6)
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"buffer": 4, "rule": "trimmed_mean", "rule_args": {"f": 1.0}}, "fewer than 3"),
        ({"rule_args": {"f": 1.0}}, "takes"),
        ({"rule": "krum", "rule_args": {"f": 1.0}}, "fewer than 3"),
        ({"rule": "median"}, "fewer than 3"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_before_training(changes: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        of(args(**changes))


def test_group_means_may_go_through_any_rule_that_bears_the_liars() -> None:
    def masked(f: int) -> Masked:
        return Masked(u_min=3, c=0, groups=Groups(size=3, f=f))

    of(args(privacy="masked", rule="median", masked=masked(2)))
    with pytest.raises(ConfigError, match="bears 2 liars among 5"):
        of(args(privacy="masked", rule="median", masked=masked(3)))
