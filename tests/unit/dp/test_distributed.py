"""Noise shared out over a masked sum: each step of the guarantee in dp/README.md, by property or by number."""

import dataclasses
import math
from typing import Any

import mpmath
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon import job as jobs
from cordon import models
from cordon.dp import accounting, distributed, noise
from cordon.dp.accounting import RESERVE, epsilon
from cordon.dp.distributed import Figures, SharedNoise, Shares, coordinate_divergence, noise_bound, top_up
from cordon.dp.train import clip_update, train_round, unnoised_step
from cordon.errors import ConfigError, CordonError, DataError, PrivacyError
from cordon.job import DPPlan
from cordon.messages import DPEvent
from cordon.secagg import fixedpoint

SHARES = Shares(share=2.0, own=2.0, least=3, colluders=1, rounds=50, sampling_rate=0.3, clip_norm=1.0)
NOISE = SharedNoise(SHARES, sensitivity=0.05, norm_bound=1.0, size=31, scale=2.0**22)
PLAN = DPPlan(
    noise_multiplier=2.0, sampling_rate=0.5, steps=1, clip_norm=0.7, expected_batch_size=20.0, delta=1e-5,
    unit="patient",
)  # fmt: skip
FEATURES = 30


def change(value: Any, **fields: Any) -> Any:
    """``value`` with some fields changed."""
    return dataclasses.replace(value, **fields)


@pytest.fixture(scope="module")
def job(repo_root: Any) -> jobs.Job:
    found = jobs.from_folder("oncology_masked", repo_root / "jobs" / "oncology_masked" / "app" / "config")
    replace = msgspec.structs.replace
    return replace(
        found,
        controller=replace(found.controller, masked=replace(found.controller.masked, distributed=True)),
        executor=replace(found.executor, dp=replace(found.executor.dp, steps=1)),
    )


# -- 1. sensitivity ----------------------------------------------------------------------------------------------------


def net() -> Any:
    module = models.build("FullyConnectedNet", {}, FEATURES)
    models.set_vector(module, models.initial_vector("FullyConnectedNet", {}, FEATURES, 0))
    return module


def patients(n: int, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(n, FEATURES))).astype(np.float32)
    return x, rng.integers(0, 2, n).astype(np.float32)


def forward(module: Any, x: np.ndarray) -> float:
    return float(module(torch.from_numpy(x)).detach())


def plan(**fields: Any) -> DPPlan:
    return msgspec.structs.replace(PLAN, **fields)


@pytest.mark.parametrize("scale", [0.1, 100.0])
@pytest.mark.parametrize("norm_bound", [1e-2, 1e3])
def test_one_patient_moves_the_ring_vector_by_at_most_the_ring_sensitivity(scale: float, norm_bound: float) -> None:
    """The real step, projection and rounding; the dither is the same for both, as the proof has it."""
    x, y = patients(40, scale)
    y[39] = forward(net(), x[39:]) < 0  # on the wrong side: a gradient as long as they come
    shared = change(NOISE, sensitivity=0.5 * 0.7 / 20.0, norm_bound=norm_bound, size=FEATURES + 1)
    ring = fixedpoint.choose(32, 3, norm_bound, 1.0)
    moved = []
    for seed in range(5):
        both = []
        for n in (40, 39):  # sampling draws patient by patient: the other 39 are the same
            delta = unnoised_step(net(), x[:n], y[:n], plan(sampling_rate=0.9), 0.5, unsafe_seed=seed)
            words = fixedpoint.encode(clip_update(delta, norm_bound), 0.8, norm_bound, ring, lambda size: bytes(size))
            both.append(words.view(np.int32).astype(np.float64))
        moved.append(np.linalg.norm(both[0] - both[1]))
    assert max(moved) <= shared.ring_sensitivity(ring.scale)
    if scale > 1 and norm_bound > 1:
        assert max(moved) > 0.75 * shared.ring_sensitivity(ring.scale)  # 0.8 of it: the bound is the patient's own


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 64), st.floats(0, 3), st.floats(0.01, 1), st.integers(0, 2**32), st.sampled_from([32, 64]))
def test_coupled_rounding_adds_less_than_one_per_coordinate(
    size: int, apart: float, factor: float, seed: int, bits: Any
) -> None:
    rng = np.random.default_rng(seed)
    ring = fixedpoint.Ring(bits, 3)  # coarse: rounding is most of it
    one = rng.uniform(-20, 20, size).astype(np.float32)
    step = rng.normal(size=size)
    other = (one + apart * step / np.linalg.norm(step)).astype(np.float32)
    key = rng.bytes(64)
    first, second = (
        fixedpoint.encode(vector, factor, 50.0, ring, lambda n: key[:n]).view(f"i{bits // 8}").astype(float)
        for vector in (one, other)
    )
    between = factor * ring.scale * np.abs(one.astype(float) - other)
    assert (np.abs(first - second) <= np.ceil(between + 1e-3)).all()
    assert np.linalg.norm(first - second) <= np.linalg.norm(between) + math.sqrt(size) * (1 + 2.0**-20)


def test_rounding_with_independent_dither_would_break_the_bound_of_the_proof() -> None:
    """Equal vectors, other dither: not at distance 0, so the coupling is what the bound rests on."""
    vector = np.full(1000, 0.5, np.float32) / 8
    ring = fixedpoint.Ring(32, 3)
    first, second = (
        fixedpoint.encode(vector, 1.0, 50.0, ring, lambda n, fill=fill: bytes([fill]) * n).view(np.int32)
        for fill in (1, 2)
    )
    assert np.abs(first - second).sum() > 300


def test_the_unnoised_step_is_the_noised_one_without_its_noise() -> None:
    x, y = patients(40, 1.0)
    bare = unnoised_step(net(), x, y, PLAN, 0.5, unsafe_seed=7)
    noised = train_round(net(), x, y, plan(noise_multiplier=1e-3), 0.5, unsafe_seed=7)
    assert 0 < np.linalg.norm(bare - noised) < 10 * 1e-3 * 0.5 * 0.7 / 20
    assert np.linalg.norm(bare) > 0.05


def test_an_empty_site_a_nan_and_a_wrong_plan() -> None:
    x, y = patients(5, 1.0)
    assert not unnoised_step(net(), x[:0], y[:0], PLAN, 0.5).any()
    x[0] = np.nan
    whole = unnoised_step(net(), x, y, plan(sampling_rate=1.0), 0.5)
    assert np.array_equal(whole, unnoised_step(net(), x[1:], y[1:], plan(sampling_rate=1.0), 0.5))
    with pytest.raises(ConfigError, match="1 step"):
        unnoised_step(net(), x, y, plan(steps=2), 0.5)
    with pytest.raises(DataError):
        unnoised_step(net(), x, y[1:], PLAN, 0.5)
    with pytest.raises(CordonError, match="counts as spent"):
        unnoised_step(net(), x, y, PLAN, 0.5, should_stop=lambda: True)


# -- 3. and 4. how far the noise of a sum is from a Gaussian -----------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.0, 2.0), (1.3, 0.9)])
def test_a_sum_of_two_discrete_gaussians_is_within_the_stated_divergence_of_one(a: float, b: float) -> None:
    n = np.arange(-80, 81)

    def pmf(variance: float) -> np.ndarray:
        weights = np.exp(-(n**2) / (2 * variance))
        return weights / weights.sum()

    total = np.convolve(pmf(a**2), pmf(b**2), mode="same")
    inner = np.abs(n) <= 12
    ratio = np.abs(np.log(total[inner] / pmf(a**2 + b**2)[inner]))
    bound = 5 * math.exp(-2 * math.pi**2 / (1 / a**2 + 1 / b**2))
    assert 1e-9 < ratio.max() <= bound
    assert ratio.max() > bound / 5  # and the bound is no more than a few times too large


@pytest.mark.parametrize("std", [8.0, 9.3, 25.0])
def test_a_discrete_gaussian_is_within_the_stated_divergence_of_a_rounded_one(std: float) -> None:
    with mpmath.workdps(40):
        variance = mpmath.mpf(std) ** 2
        sigma = mpmath.sqrt(variance - mpmath.mpf(1) / 12)
        values = range(-math.ceil(13 * std), math.ceil(13 * std) + 1)
        weights = [mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * variance)) for x in values]
        whole, divergence = mpmath.fsum(weights), mpmath.mpf(0)
        for x, weight in zip(values, weights, strict=True):
            x = abs(x)  # of the upper tail, where a difference of cumulative probabilities loses nothing
            low, high = ((x + half) / (sigma * mpmath.sqrt(2)) for half in (-0.5, 0.5))
            rounded = (mpmath.erfc(low) - mpmath.erfc(high)) / 2
            divergence += weight / whole * mpmath.log(weight / whole / rounded)
        exact = float(divergence)
    assert 0 < exact <= coordinate_divergence(std, 40)
    assert exact == pytest.approx(1 / (691_200 * float(sigma) ** 8), rel=0.1)  # the expansion in the README


def test_the_divergence_of_a_sum_grows_with_its_shares_and_wants_a_deviation_of_8() -> None:
    assert coordinate_divergence(8.0, 40) >= coordinate_divergence(8.0, 1) > coordinate_divergence(9.0, 1)
    for std in (7.9, math.nan):
        with pytest.raises(PrivacyError):
            coordinate_divergence(std, 3)


def test_the_distance_is_pinsker_s_over_rounds_and_coordinates() -> None:
    one = change(NOISE, shares=change(SHARES, rounds=1), size=1).distance()
    std = NOISE.std(NOISE.scale)
    assert one == pytest.approx(math.sqrt(1.5e-4) / std**4, rel=1e-3)
    assert NOISE.distance() == pytest.approx(math.sqrt(50 * 31) * one, rel=1e-4)


# -- shares, top-up ----------------------------------------------------------------------------------------------------


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.integers(1, 40))
def test_a_top_up_reaches_the_floor_and_no_more(floor: float, share: float, honest: int) -> None:
    own = top_up(floor, share, honest)
    together = math.sqrt(own**2 + (honest - 1) * share**2)
    assert own >= share
    assert together >= floor * (1 - 1e-12)
    if own > share:
        assert together <= floor * (1 + 1e-12)
    else:
        assert math.sqrt(honest) * share >= floor * (1 - 1e-12)


def test_more_than_the_ring_has_room_for_is_no_top_up() -> None:
    assert SHARES.topped_up(8.0).multiplier(2) == pytest.approx(8.0)
    with pytest.raises(PrivacyError, match="no room"):
        SHARES.topped_up(8.5)


@given(st.floats(0.3, 20), st.integers(0, 3), st.floats(1e-3, 1), st.integers(1, 10_000), st.integers(18, 40))
def test_the_shares_of_honest_sites_add_up_to_the_guaranteed_multiplier(
    share: float, colluders: int, sensitivity: float, size: int, scale_bits: int
) -> None:
    """The variance of h shares, less the 1/12 that rounding takes, is (sqrt(h) z L)^2 or more."""
    shares = change(SHARES, share=share, own=1.5 * share, least=5, colluders=colluders)
    shared = SharedNoise(shares, sensitivity, 1.0, size, 2.0**scale_bits)
    try:
        own, other = shared.std(shared.scale), change(shared, shares=change(shares, own=share)).std(shared.scale)
    except PrivacyError:
        return
    variance = own**2 + (shares.honest - 1) * other**2 - 1 / 12
    multiplier = math.sqrt(variance) / shared.ring_sensitivity(shared.scale)
    assert shares.event().noise_multiplier <= multiplier <= 1.01 * shares.event().noise_multiplier
    assert shared.ring_sensitivity(shared.scale) >= shared.scale * sensitivity + math.sqrt(size)


def test_no_share_exceeds_what_the_ring_has_room_for(job: jobs.Job) -> None:
    most = noise_bound(job)
    ring = fixedpoint.choose(32, 4, job.controller.norm_bound, most)
    shares = Shares.of(job, 3)
    greatest = change(shares, own=distributed.HEADROOM * shares.share)
    for size in (31, 10_000_000):
        try:
            assert SharedNoise.of(job, greatest, size, ring.scale).std(ring.scale) / ring.scale <= most
        except PrivacyError as error:
            assert "too coarse" in str(error)


def test_a_draw_is_the_discrete_gaussian_of_its_deviation_and_never_twice_the_same() -> None:
    wide = change(NOISE, size=20_000)
    draws = wide.draw(wide.scale, 3, noise.keystream(unsafe_seed=1).words)
    assert draws.dtype == np.int64
    assert draws.std() == pytest.approx(wide.std(wide.scale), rel=0.03)
    assert not np.array_equal(NOISE.draw(NOISE.scale, 3), NOISE.draw(NOISE.scale, 3))


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_an_opened_sum_costs_what_its_gaussian_costs_at_the_rest_of_delta() -> None:
    gaussian = DPEvent(
        mechanism="poisson_subsampled_gaussian", noise_multiplier=2.0 * math.sqrt(2), sampling_rate=0.3, steps=1,
        clip_norm=1.0, unit="patient",
    )  # fmt: skip
    for accountant in ("pld", "rdp"):
        want = epsilon([(gaussian, 50)], 1e-5 * (1 - RESERVE), accountant=accountant)
        assert NOISE.epsilon(1e-5, accountant=accountant) == want
        assert want >= epsilon([(gaussian, 50)], 1e-5, accountant=accountant)
    assert NOISE.epsilon(1e-5) < NOISE.epsilon(1e-5, accountant="rdp")
    assert NOISE.epsilon(1e-5, adjacency="replace_one") > NOISE.epsilon(1e-5)


def test_colluders_and_drop_outs_cost_and_a_top_up_pays() -> None:
    def cost(**fields: Any) -> float:
        return change(NOISE, shares=change(SHARES, **fields)).epsilon(1e-5)

    by_colluders = [cost(least=5, colluders=c) for c in range(5)]
    assert by_colluders == sorted(set(by_colluders))
    by_survivors = [cost(least=least) for least in (6, 5, 4, 3, 2)]
    assert by_survivors == sorted(set(by_survivors))
    assert cost(own=3.0) < cost(own=2.0)
    assert cost(rounds=60) > cost(rounds=50)


def test_the_three_figures_are_in_order_and_each_the_epsilon_of_its_shares() -> None:
    figures = NOISE.figures(1e-5)
    assert figures.public < figures.coordinator < figures.own_share < math.inf
    alone = change(SHARES, least=1, colluders=0)
    assert figures.own_share == change(NOISE, shares=alone).epsilon(1e-5)
    assert change(NOISE, scale=NOISE.scale * 2).figures(1e-5) == figures  # the ring is not in the multiplier
    assert NOISE.figures(1e-5, rounds=5).coordinator < figures.coordinator


def test_noise_that_is_too_far_from_a_gaussian_is_no_guarantee() -> None:
    coarse = change(NOISE, sensitivity=0.5, scale=100.0, size=100)  # deviation 120, 50 sums: distance 6e-9
    assert 1e-9 < coarse.distance() < 1e-6
    with pytest.raises(PrivacyError, match=r"over 0\.001 of delta"):
        coarse.epsilon(1e-6)
    assert coarse.figures(1e-6) == Figures(math.inf, math.inf, math.inf)
    assert coarse.epsilon(1e-2) < math.inf


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"size": 10**13}, "use ring_bits 64"),
        ({"scale": 1000.0, "size": 1, "shares": change(SHARES, share=0.1, own=0.1)}, "standard deviation"),
        ({"scale": 2.0**70}, "standard deviation"),
    ],
)
def test_a_ring_that_does_not_fit_is_refused(fields: dict[str, Any], why: str) -> None:
    shared = change(NOISE, **fields)
    for call in (lambda: shared.std(shared.scale), lambda: shared.draw(shared.scale, 3), lambda: shared.epsilon(1e-5)):
        with pytest.raises(PrivacyError, match=why):
            call()


def test_a_coordinator_that_forms_another_cohort_than_was_accounted_gets_no_noise() -> None:
    assert NOISE.draw(NOISE.scale, 4).shape == (31,)
    with pytest.raises(PrivacyError, match="2 shares"):
        NOISE.draw(NOISE.scale, 2)
    with pytest.raises(PrivacyError, match="scale"):
        NOISE.draw(NOISE.scale / 2, 3)


def test_a_job_s_shares_are_its_config_s(job: jobs.Job) -> None:
    shares = Shares.of(job, 3)
    assert (shares.share, shares.own, shares.honest, shares.rounds) == (5.6, 5.6, 2, 12)
    shared = SharedNoise.of(job, shares, 31, 2.0**20)
    assert shared.sensitivity == 1.0 * 0.5 / 30.0
    event = shares.event()
    assert event.mechanism == "distributed_discrete_gaussian"
    assert (event.noise_multiplier, event.steps) == (pytest.approx(5.6 * math.sqrt(2)), 1)


def test_a_job_that_cannot_share_out_its_noise_is_refused_with_the_reason(job: jobs.Job) -> None:
    replace = msgspec.structs.replace
    wrong = {
        "steps = 1, got 5": replace(job, executor=replace(job.executor, dp=replace(job.executor.dp, steps=5))),
        "local_parameters": replace(job, executor=replace(job.executor, local_parameters=("output.bias",))),
        "each site's own": replace(
            job, controller=replace(job.controller, masked=replace(job.controller.masked, distributed=False))
        ),
        "no noise is left": replace(
            job, controller=replace(job.controller, masked=replace(job.controller.masked, c=3))
        ),
    }
    for why, bad in wrong.items():
        with pytest.raises(ConfigError, match=why):
            Shares.of(bad, 3)


def test_an_opened_sum_of_several_steps_cannot_be_accounted() -> None:
    event = msgspec.structs.replace(SHARES.event(), steps=2)
    with pytest.raises(ConfigError, match="one step"):
        accounting.epsilon([(event, 1)], 1e-5)
