"""Epsilon: known values, the two accountants against each other, monotony."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from cordon.dp.accounting import epsilon
from cordon.errors import ConfigError
from cordon.messages import DPEvent


def event(sigma: float, rate: float, steps: int = 1) -> DPEvent:
    return DPEvent(
        mechanism="poisson_subsampled_gaussian",
        noise_multiplier=sigma,
        sampling_rate=rate,
        steps=steps,
        clip_norm=1.0,
        unit="patient",
    )


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta", "pld", "rdp", "replace"),
    [
        # measured with other software too: Opacus RDP 6.150 and PRV 5.626; Opacus RDP 9.670 and PRV 8.618
        (1.0, 0.02, 2000, 1e-5, 5.617, 6.150, 9.406),
        (1.0, 0.10, 200, 1e-4, 8.607, 9.670, 14.157),
    ],
)
def test_known_values(
    sigma: float, rate: float, steps: int, delta: float, pld: float, rdp: float, replace: float
) -> None:
    plan = [(event(sigma, rate, steps), 1)]
    assert epsilon(plan, delta) == pytest.approx(pld, abs=0.005)
    # Only whole orders here: never below the optimum over all orders, and close to it.
    assert 0.999 * rdp <= epsilon(plan, delta, accountant="rdp") <= 1.05 * rdp
    assert epsilon(plan, delta, adjacency="replace_one") == pytest.approx(replace, abs=0.005)


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    """Exact: Balle and Wang 2018, Theorem 8, with mu = sqrt(steps)/sigma."""
    mu, delta = math.sqrt(50) / 5.0, 1e-5
    exact = brentq(lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta, 0.1, 50)
    got = epsilon([(event(5.0, 1.0, 50), 1)], delta)
    assert exact <= got <= exact + 0.01


def test_rounds_multiply_steps_and_events_add_up() -> None:
    whole = epsilon([(event(3.0, 0.25, 8), 12)], 1e-5)
    assert whole == epsilon([(event(3.0, 0.25, 96), 1)], 1e-5)
    assert whole == epsilon([(event(3.0, 0.25, 8), 5), (event(3.0, 0.25, 8), 7)], 1e-5)
    assert whole < epsilon([(event(3.0, 0.25, 8), 12), (event(6.0, 0.25, 8), 1)], 1e-5)
    assert epsilon([], 1e-5) == epsilon([(event(3.0, 0.25), 0)], 1e-5) == 0.0


@settings(max_examples=12, deadline=None)
@given(st.floats(0.8, 50.0), st.floats(0.001, 1.0), st.integers(1, 500), st.sampled_from([1e-6, 1e-5, 1e-3]))
def test_pld_is_at_most_rdp_and_replace_one_costs_more(sigma: float, rate: float, steps: int, delta: float) -> None:
    plan = [(event(sigma, rate, steps), 1)]
    pld = epsilon(plan, delta)
    assert 0 <= pld <= epsilon(plan, delta, accountant="rdp")
    assert epsilon(plan, delta, adjacency="replace_one") >= pld


def test_a_cheap_plan_of_many_steps_needs_a_finer_grid() -> None:
    """At 1e-3 this plan's PLD would come out as .110, above RDP's .093."""
    plan = [(event(20.0, 0.01, 3000), 1)]
    assert epsilon(plan, 1e-5) <= epsilon(plan, 1e-5, accountant="rdp") < 0.1


@pytest.mark.parametrize(
    ("bad", "delta"),
    [
        ((event(1.0, 0.5), 1), 0.0),
        ((event(1.0, 0.5), 1), 1.0),
        ((event(1.0, 0.5), -1), 1e-5),
        ((event(0.0, 0.5), 1), 1e-5),
        ((event(float("nan"), 0.5), 1), 1e-5),
        ((event(1.0, 0.0), 1), 1e-5),
        ((event(1.0, 1.5), 1), 1e-5),
        ((event(1.0, 0.5, 0), 1), 1e-5),
    ],
)
def test_what_cannot_be_accounted_is_refused(bad: tuple[DPEvent, int], delta: float) -> None:
    with pytest.raises(ConfigError):
        epsilon([bad], delta)


def test_rdp_has_no_replace_one_here() -> None:
    with pytest.raises(ConfigError, match="replace_one"):
        epsilon([(event(1.0, 0.5), 1)], 1e-5, accountant="rdp", adjacency="replace_one")
