"""A masked job whose noise is shared out, in one process: what leaves a site, and what is in the sum that opens."""

import numpy as np
import pytest

from cordon import messages
from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.errors import ConfigError
from cordon.flare import plan
from cordon.job import DPPlan
from fakes.fixtures import FIVE
from fakes.in_process import open_message

DP = {
    "noise_multiplier": 4.0, "sampling_rate": 0.5, "steps": 1, "clip_norm": 0.5, "expected_batch_size": 30.0,
    "delta": 1e-5, "unit": "patient",
}  # fmt: skip


@pytest.fixture
def run(aggregate, monkeypatch):
    """A federation of the job, each delta as its site masks it, and each (survivors, mean) that opened."""
    opened, deltas = [], []
    take = MaskedCoordinator.opened

    def look(self, cohort_id, survivors, mean, **unspent):
        opened.append((tuple(survivors), np.array(mean)))
        take(self, cohort_id, survivors, mean, **unspent)

    monkeypatch.setattr(MaskedCoordinator, "opened", look)

    def make(dp=None, masked=None, **arguments):
        asks = {"dp": {**DP, **(dp or {})}}
        federation = aggregate(masked={"distributed": True, **(masked or {})}, executor=asks, **arguments)

        def note(site, task, reply):
            if "masked" in open_message(reply)[0]:
                session = federation.sites[site].session
                deltas.append((site, messages.unpack("delta", session.trained.plaintext, session.layout.size)))
            return [reply]

        federation.on_reply = note
        return federation, deltas, opened

    return make


def test_an_opened_mean_is_the_plain_mean_and_the_shares_of_its_sites(run):
    federation, deltas, opened = run(versions=3, max_staleness=0, staleness={"function": "constant"})
    log = federation.run()
    assert log[-1]["reason"] == "all 3 versions made"
    assert log[0]["masked"]["distributed"]
    shares = []
    for number, (survivors, mean) in enumerate(opened):
        mine = dict(deltas[4 * number : 4 * number + 4])
        assert set(mine) == set(survivors)
        shares.append(4 * (mean - sum(mine.values()) / 4))
    shares = np.concatenate(shares)
    job = federation.sites[FIVE[0]].session.job
    assert isinstance(job.executor.dp, DPPlan)
    one = 4.0 * plan.shared_noise(job, 31).sensitivity  # 4.0 x learning rate 1.0 x 0.5 / 30
    assert one == pytest.approx(4.0 * 0.5 / 30.0)
    assert np.sqrt((shares**2).mean()) == pytest.approx(2 * one, rel=0.35)  # 93 draws: 5 standard errors


def test_every_site_draws_anew_for_every_sum(run):
    federation, deltas, opened = run(versions=2, staleness={"function": "constant"})
    federation.run()
    noise = [
        mean - sum(dict(deltas[4 * number : 4 * number + 4]).values()) / 4 for number, (_, mean) in enumerate(opened)
    ]
    assert len(noise) == 2
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.8


@pytest.mark.parametrize("noise_multiplier", [0.9, 1.0])  # under the floor of the own share; over epsilon in the sum
def test_a_job_whose_shares_do_not_protect_is_refused_by_every_site(run, noise_multiplier):
    federation, deltas, opened = run(dp={"noise_multiplier": noise_multiplier}, rounds_per_site=12)
    log = federation.run()
    assert not deltas
    assert not opened
    refused = [event for event in log if event["kind"] == "refused"]
    assert {event["site"] for event in refused} == set(FIVE)
    assert {event["reason"].split(":")[0] for event in refused} == {"policy_refused"}


def test_a_job_of_several_steps_does_not_start(run):
    federation, deltas, _ = run(dp={"steps": 5})
    with pytest.raises(ConfigError, match=r"dp\.steps = 1, got 5"):
        federation.run()
    assert not deltas
