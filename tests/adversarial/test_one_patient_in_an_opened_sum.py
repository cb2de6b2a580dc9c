"""One patient more or less, seen through an opened masked sum by a coordinator that colludes with a site.

The adversary knows everything but the patient: all other data, the model, its colluder's update and noise share. It
guesses from the sum, as well as anybody can (the sum is shifted Gaussian noise), and its error rates give a lower bound
of epsilon that holds with 99.9 % confidence. The claim is the mechanism's own; one that the guesses refute is a fault.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from cordon.dp.discrete import sample
from cordon.dp.distributed import SharedNoise, Shares
from cordon.dp.noise import keystream
from cordon.secagg import fixedpoint

TRIALS = 200_000
DELTA = 0.05  # large: the bound is then close to what it bounds
SIZE, CLIP = 3, 1.0
SENSITIVITY = 0.05
SHARES = Shares(share=0.8, own=0.8, least=3, colluders=1, rounds=1, sampling_rate=1.0, clip_norm=1.0)
RING = fixedpoint.choose(32, 3, CLIP, 4 * 0.8 * 1.25 * SENSITIVITY)
NOISE = SharedNoise(SHARES, SENSITIVITY, CLIP, SIZE, RING.scale)
DIRECTION = np.array([2.0, -1.0, 2.0]) / 3


def opened(with_patient: bool, stds: list[float], seed: int, noise: SharedNoise = NOISE) -> np.ndarray:
    """(TRIALS,) what the adversary computes of each opened sum, in units of the patient's own shift."""
    rng = np.random.default_rng(seed)
    total = np.zeros(TRIALS * SIZE, RING.dtype)
    for site, std in enumerate(stds):
        update = np.array([0.3, 0.2, -0.1]) + (noise.sensitivity * DIRECTION if with_patient and site == 0 else 0)
        words = fixedpoint.encode(np.tile(update, TRIALS).astype(np.float32), 1.0, CLIP, RING, rng.bytes)
        if std:
            fixedpoint.add_noise(words, sample(std, words.size, keystream(unsafe_seed=100 * seed + site).words))
        total += words
    mean = fixedpoint.decode(total, RING).reshape(TRIALS, SIZE) - len(stds) * np.array([0.3, 0.2, -0.1])
    return mean @ DIRECTION / noise.sensitivity


def lower_bound(stds: list[float], noise: SharedNoise = NOISE) -> float:
    """Epsilon at DELTA that the guesses show: threshold from one half of the trials, rates from the other."""
    present, absent = opened(True, stds, 1, noise), opened(False, stds, 2, noise)
    train, test = slice(None, TRIALS // 2), slice(TRIALS // 2, None)
    grid = np.quantile(absent[train], np.linspace(0.5, 0.999, 100))
    rates = [((present[train] > cut).mean(), max((absent[train] > cut).mean(), 1e-4)) for cut in grid]
    best = grid[int(np.argmax([math.log(max(hit - DELTA, 1e-9) / false) for hit, false in rates]))]
    hits, falses, n = int((present[test] > best).sum()), int((absent[test] > best).sum()), TRIALS // 2
    rate_of_hits = beta.ppf(5e-4, hits, n - hits + 1)  # Clopper-Pearson
    rate_of_falses = beta.ppf(1 - 5e-4, falses + 1, n - falses)
    return math.log(max(rate_of_hits - DELTA, 1e-12) / rate_of_falses)


@pytest.fixture(scope="module")
def claimed() -> float:
    """Against the coordinator and one colluder: two of three shares are unknown."""
    return NOISE.epsilon(DELTA)


def test_the_coordinator_and_its_colluder_learn_no_more_than_is_claimed(claimed: float) -> None:
    std = NOISE.std(RING.scale)
    shown = lower_bound([std, std, 0.0])  # the colluder knows its share: it is as if there were none
    assert 0.8 * claimed < shown <= claimed


def test_against_the_public_less_is_shown_and_less_is_claimed(claimed: float) -> None:
    std = NOISE.std(RING.scale)
    assert lower_bound([std, std, std]) <= NOISE.figures(DELTA).public < claimed


def test_where_all_others_collude_the_own_share_still_holds_its_own_figure(claimed: float) -> None:
    std = NOISE.std(RING.scale)
    shown, alone = lower_bound([std, 0.0, 0.0]), NOISE.figures(DELTA).own_share
    assert claimed < shown <= alone < math.inf


def test_a_site_with_a_top_up_claims_less_and_shows_less(claimed: float) -> None:
    topped = dataclasses.replace(NOISE, shares=SHARES.topped_up(1.6))
    own, other = topped.std(RING.scale), NOISE.std(RING.scale)
    assert own > other
    assert 0.8 * topped.epsilon(DELTA) < lower_bound([own, other, 0.0]) <= topped.epsilon(DELTA) < claimed


FAULTS = ("the site forgets its share", "a share in model units", "a share over the sites", "twice the shift")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_noise_refutes_the_claim(fault: str, claimed: float) -> None:
    """What the test above is worth: each of these is found."""
    std, noise = NOISE.std(RING.scale), NOISE
    stds: list[Any] = {
        "the site forgets its share": [0.0, std, 0.0],
        "a share in model units": [max(1.0, std / RING.scale)] * 2 + [0.0],
        "a share over the sites": [std / math.sqrt(3)] * 2 + [0.0],
        "twice the shift": [std, std, 0.0],
    }[fault]
    if fault == "twice the shift":  # a clip that is not enforced
        noise = dataclasses.replace(NOISE, sensitivity=2 * SENSITIVITY)
    assert lower_bound(stds, noise) > claimed
