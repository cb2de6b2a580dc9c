"""The attackers do what their papers' formulas say, know no more than they state, and each harms a plain mean."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adversarial import attackers as liars
from adversarial.attackers import Attacker, View

N, F, D, BOUND = 20, 5, 12, 3.0
RNG = np.random.default_rng(0)
HONEST = RNG.standard_normal((N - F, D)) * 0.1 + np.linspace(0.2, 0.6, D)
OWN = RNG.standard_normal((F, D)) * 0.1 + np.linspace(0.2, 0.6, D)
MODELS = (np.zeros(D), np.full(D, 0.5), np.full(D, 0.8))
MEAN = HONEST.mean(axis=0)

ALL: dict[str, Callable[[], Attacker]] = {
    "sign_flip": liars.SignFlip,
    "label_flip": lambda: liars.LabelFlip(10),
    "scaling": lambda: liars.Scaling(-10),
    "model_replacement": lambda: liars.ModelReplacement(np.full(D, -1.0)),
    "backdoor": lambda: liars.Backdoor([0], 1.0, 0),
    "alie": lambda: liars.Alie(1.5),
    "ipm": liars.Ipm,
    "optimised_alie": liars.OptimisedAlie,
    "optimised_ipm": liars.OptimisedIpm,
    "mimic": liars.Mimic,
    "min_max": liars.MinMax,
    "min_sum": liars.MinSum,
    "relocated_orthogonal": liars.RelocatedOrthogonal,
    "clipping_adaptive": liars.CenteredClippingAdaptive,
    "flooder": lambda: liars.FastFlooder(liars.SignFlip()),
}


def plain_mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(axis=0)


def view(honest: np.ndarray = HONEST, own: np.ndarray = OWN, bound: float = BOUND, **changes: object) -> View:
    fields = {"models": MODELS, "rng": np.random.default_rng(1), "rule": plain_mean} | changes
    return View(honest, own, norm_bound=bound, **fields)  # type: ignore[arg-type]


# -- what all of them keep to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bound", [1e-3, 0.5, 1e6])
def test_every_attack_stays_within_the_public_bound_so_that_no_fault_is_proven(name: str, bound: float) -> None:
    rows = ALL[name]()(view(bound=bound))
    assert rows.shape == (F, D)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows.astype(np.float64), axis=1).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", [name for name in ALL if "updates" not in ALL[name]().knows])
def test_an_attack_on_its_own_data_does_not_read_the_updates_of_others(name: str) -> None:
    elsewhere = view(honest=np.flip(HONEST) * 7 + 1)
    assert np.array_equal(ALL[name]()(view()), ALL[name]()(elsewhere))


def test_what_an_attack_does_not_know_is_taken_away_from_it() -> None:
    class Curious(Attacker):
        def craft(self, view: View) -> np.ndarray:
            return view.honest[: view.f]

    with pytest.raises(AssertionError, match="not finite"):
        Curious()(view())
    seen = view().limited_to(frozenset())
    assert seen.rule is None
    assert not len(seen.models)
    assert seen.n == N


@pytest.mark.parametrize("name", ["optimised_alie", "optimised_ipm"])
def test_an_attack_on_a_rule_says_so_when_it_is_given_none(name: str) -> None:
    with pytest.raises(AssertionError, match="wants the rule"):
        ALL[name]()(view(rule=None))


# -- formulas ---------------------------------------------------------------------------------------------------------


def test_sign_flip_and_scaling_act_on_their_own_update() -> None:
    assert np.allclose(liars.SignFlip()(view()), -OWN)
    assert np.allclose(liars.Scaling(2.0)(view(bound=1e3)), 2 * OWN)


def test_label_flip_mirrors_the_classes_and_leaves_the_records() -> None:
    x, y = np.ones((4, 2)), np.array([0, 1, 8, 9])
    poisoned, labels = liars.LabelFlip(10).poison(x, y, RNG)
    assert labels.tolist() == [9, 8, 1, 0]
    assert np.array_equal(poisoned, x)
    assert np.allclose(liars.LabelFlip(10)(view()), OWN)  # trained by the honest program


def test_model_replacement_lands_on_the_attackers_model_when_the_others_cancel() -> None:
    target = np.linspace(-1, 1, D)
    cancelling = np.concatenate([HONEST[:7], -HONEST[:7], np.zeros((1, D))])
    rows = liars.ModelReplacement(target)(view(honest=cancelling, bound=1e3))
    mean = np.concatenate([cancelling, rows]).mean(axis=0)
    assert np.allclose(MODELS[-1] + mean, target, atol=1e-6)


def test_backdoor_puts_trigger_and_target_on_part_of_its_records_and_boosts() -> None:
    attack = liars.Backdoor([1, 2], 0.9, target=7, fraction=0.5)
    x, y = np.zeros((2000, 4)), np.ones(2000, int)
    poisoned, labels = attack.poison(x, y, np.random.default_rng(2))
    marked = labels == 7
    assert 0.4 < marked.mean() < 0.6
    assert (poisoned[marked][:, [1, 2]] == 0.9).all()
    assert not poisoned[~marked].any()
    assert not x.any()  # the caller's data is as it was
    assert np.allclose(attack(view(bound=1e3)), N / F * OWN)


def test_backdoor_success_counts_rows_of_other_classes_only() -> None:
    attack = liars.Backdoor([0], 1.0, target=7)
    x, y = np.zeros((4, 2)), np.array([7, 7, 1, 2])
    assert attack.success(lambda rows: np.where(rows[:, 0] == 1.0, 7, 0), x, y) == 1.0
    assert attack.success(lambda rows: np.zeros(len(rows)), x, y) == 0.0
    assert attack.success(lambda rows: np.array([7, 0]), x, y) == 0.5


@pytest.mark.parametrize(
    ("n", "f", "z"),
    [(50, 24, 1.43), (20, 5, 0.25), (20, 2, 0.0), (25, 5, 0.25)],
)
def test_alie_z_is_the_papers(n: int, f: int, z: float) -> None:
    """n = 50, f = 24: s = 2, (50 - 24 - 2)/26 = 0.923, Phi^-1 = 1.43; the other rows likewise by hand."""
    assert liars.Alie.z_max(n, f) == pytest.approx(z, abs=0.005)


def test_alie_is_z_standard_deviations_below_the_mean_in_each_coordinate() -> None:
    rows = liars.Alie(1.5)(view())
    assert np.allclose(rows, MEAN - 1.5 * HONEST.std(axis=0), atol=1e-6)
    assert np.allclose(liars.Alie()(view()), MEAN - liars.Alie.z_max(N, F) * HONEST.std(axis=0), atol=1e-6)


def test_alie_within_the_spread_passes_a_median_that_a_sign_flip_cannot_move_further() -> None:
    """What the attack is for: at z_max its value lies nearer the mean than some honest ones, in every coordinate."""
    row = liars.Alie()(view())[0]
    assert ((row > HONEST).any(axis=0)).all()


def test_ipm_is_minus_epsilon_times_the_honest_mean_and_turns_a_mean_when_large() -> None:
    assert np.allclose(liars.Ipm(0.5)(view()), -0.5 * MEAN, atol=1e-6)
    turned = np.concatenate([HONEST, liars.Ipm((N - F) / F + 1)(view(bound=1e3))]).mean(axis=0)
    assert turned @ MEAN < 0
    kept = np.concatenate([HONEST, liars.Ipm((N - F) / F - 1)(view(bound=1e3))]).mean(axis=0)
    assert kept @ MEAN > 0


def test_optimised_attacks_take_the_strength_at_which_this_rule_gets_least_far() -> None:
    def rejects_far_ones(rows: np.ndarray) -> np.ndarray:
        return rows[np.linalg.norm(rows - MEAN, axis=1) < 2.0].mean(axis=0)

    for attack, fixed in ((liars.OptimisedIpm(), liars.Ipm), (liars.OptimisedAlie(), liars.Alie)):
        seen = view(rule=rejects_far_ones, bound=1e3)
        way = {
            strength: float(rejects_far_ones(np.concatenate([HONEST, fixed(strength)(seen)])) @ MEAN)
            for strength in attack.GRID
        }
        best = min(way, key=way.__getitem__)
        assert np.allclose(attack(seen), fixed(best)(seen))
        assert abs(best) != max(attack.GRID)  # the largest is thrown out, so the search had to look


def test_mimic_repeats_one_honest_site_and_keeps_to_it() -> None:
    attack = liars.Mimic(warmup=3)
    outlier = HONEST.copy()
    outlier[4] += 5.0
    seen = [attack(view(honest=outlier + 0.01 * RNG.standard_normal(outlier.shape), bound=1e3)) for _ in range(4)]
    assert attack.site == 4 or all(rows[0] @ MEAN < outlier[4] @ MEAN for rows in seen)  # either end of the axis
    swapped = np.flip(outlier, axis=0)
    assert np.allclose(attack(view(honest=swapped, bound=1e3)), swapped[attack.site])
    assert all(np.array_equal(rows[0], rows[1]) for rows in seen)


def test_mimic_follows_the_axis_of_most_spread() -> None:
    """Two clusters of sites: whatever z starts as, the one it repeats is at an end of the axis between them."""
    side = np.where(np.arange(15) < 5, 1.0, -1.0)
    apart = np.outer(side * np.linspace(1, 2, 15), np.eye(D)[0])
    for seed in range(10):
        attack = liars.Mimic()
        for _ in range(10):
            attack(view(honest=apart, rng=np.random.default_rng(seed)))
        assert attack.site in (4, 14)


@pytest.mark.parametrize("deviation", ["unit", "std", "sign"])
def test_min_max_is_as_far_from_the_farthest_honest_as_two_honest_are_apart(deviation: liars.Deviation) -> None:
    row = liars.MinMax(deviation)(view(bound=1e3))[0]
    apart = max(np.linalg.norm(a - b) for a, b in itertools.combinations(HONEST, 2))
    assert np.linalg.norm(row - HONEST, axis=1).max() == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize("deviation", ["unit", "std", "sign"])
def test_min_sum_spends_the_largest_sum_of_squared_distances(deviation: liars.Deviation) -> None:
    row = liars.MinSum(deviation)(view(bound=1e3))[0]
    allowed = max(((each - HONEST) ** 2).sum() for each in HONEST)
    assert ((row - HONEST) ** 2).sum() == pytest.approx(allowed, rel=1e-5)
    assert np.linalg.norm(row - MEAN) == pytest.approx(np.linalg.norm(HONEST - MEAN, axis=1).max(), rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["unit", "std", "sign"]))
def test_no_larger_gamma_would_do(seed: int, deviation: liars.Deviation) -> None:
    honest = np.random.default_rng(seed).standard_normal((7, 3))
    apart = max(np.linalg.norm(a - b) for a, b in itertools.combinations(honest, 2))
    mean = honest.mean(axis=0)
    row = liars.MinMax(deviation)(view(honest=honest, own=np.zeros((2, 3)), bound=1e6))[0]
    further = mean + (row - mean) * 1.001
    assert np.linalg.norm(further - honest, axis=1).max() > apart


def test_identical_honest_updates_leave_min_max_no_room() -> None:
    same = np.tile(MEAN, (N - F, 1))
    for attack in (liars.MinMax(), liars.MinSum(), liars.MinMax("unit")):
        assert np.allclose(attack(view(honest=same)), MEAN, atol=1e-5)


def test_relocated_orthogonal_sits_at_the_last_aggregate_and_pushes_across_it() -> None:
    v, reach = MODELS[-1] - MODELS[-2], 0.7
    push = np.arange(D, dtype=float)
    row = liars.RelocatedOrthogonal(reach, push=push)(view(bound=1e3))[0]
    reference = 0.9 * v + 0.1 * MEAN
    off = row - v
    assert off @ reference == pytest.approx(0, abs=1e-5)
    assert np.linalg.norm(off) == pytest.approx(reach * np.linalg.norm(HONEST - v, axis=1).mean(), rel=1e-5)
    assert off @ push > 0
    centred = liars.RelocatedOrthogonal(reach, push=push, pi=0.0, lam=0.0)(view(bound=1e3))[0] - MEAN
    assert centred @ MEAN == pytest.approx(0, abs=1e-5)
    along = liars.RelocatedOrthogonal(reach, push=push, angle=180.0)(view(bound=1e3))[0] - v
    assert np.allclose(along / np.linalg.norm(along), -reference / np.linalg.norm(reference), atol=1e-5)


def test_relocated_orthogonal_pushes_to_the_same_side_version_after_version() -> None:
    attack = liars.RelocatedOrthogonal()
    offs = []
    for shift in np.linspace(-0.05, 0.05, 5):
        seen = view(honest=HONEST + shift * np.eye(D)[3], bound=1e3)
        offs.append(attack(seen)[0] - seen.previous)
    assert all(a @ b > 0.9 * np.linalg.norm(a) * np.linalg.norm(b) for a, b in itertools.combinations(offs, 2))


def test_clipping_adaptive_spends_the_whole_radius_against_the_honest_step() -> None:
    tau, v = 0.4, MODELS[-1] - MODELS[-2]
    row = liars.CenteredClippingAdaptive(tau)(view(bound=1e3))[0]
    assert np.linalg.norm(row - v) == pytest.approx(tau, rel=1e-5)

    def clipped(rows: np.ndarray) -> np.ndarray:
        off = rows - v
        return v + (off * np.minimum(1, tau / np.linalg.norm(off, axis=1, keepdims=True))).mean(axis=0)

    honest_part = v + (N - F) / N * (clipped(HONEST) - v)
    step = clipped(np.concatenate([HONEST, np.tile(row, (F, 1))]))
    assert np.linalg.norm(honest_part) - np.linalg.norm(step) == pytest.approx(F * tau / N, rel=1e-4)
    for other in (liars.SignFlip(), liars.Ipm(0.5), liars.Scaling(-10)):
        assert step @ honest_part <= clipped(np.concatenate([HONEST, other(view(bound=1e3))])) @ honest_part + 1e-6


def test_flooder_is_fast_and_fills_the_bound() -> None:
    attack = liars.FastFlooder(liars.SignFlip(), speed=10)
    assert attack.seconds(5.0) == 0.5
    rows = attack(view())
    assert np.allclose(np.linalg.norm(rows, axis=1), BOUND, rtol=1e-6)
    assert np.allclose(rows / BOUND, -OWN / np.linalg.norm(OWN, axis=1, keepdims=True), atol=1e-6)


# -- harm -------------------------------------------------------------------------------------------------------------


class Blobs:
    """A task that a plain mean learns: two classes of three Gaussian features. At each site other features tell."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.x = rng.standard_normal((N, 40, 4))
        self.y = rng.random((N, 40)) < np.linspace(0.05, 0.95, N)[:, None]
        self.x[..., :3] += np.where(self.y, 1.0, -1.0)[..., None] * rng.uniform(-0.5, 2.5, (N, 1, 3))
        self.x[..., 3] = 0.0  # silent, until a trigger uses it
        self.x_test = rng.standard_normal((2000, 4))
        self.y_test = rng.random(2000) < 0.5
        self.x_test[:, :3] += np.where(self.y_test, 1.0, -1.0)[:, None]
        self.x_test[:, 3] = 0.0

    def learn(self, attacker: Attacker, f: int, rounds: int = 200, lr: float = 0.5) -> np.ndarray:
        x, y = self.x.copy(), self.y.astype(int)
        for site in range(N - f, N):
            x[site], y[site] = attacker.poison(x[site], y[site], np.random.default_rng(site))
        model, models, rng = np.zeros(5), [np.zeros(5)], np.random.default_rng(6)
        for _ in range(rounds):
            wrong = 0.5 * (1 + np.tanh((x @ model[:4] + model[4]) / 2)) - y
            gradients = np.concatenate([(x * wrong[..., None]).mean(axis=1), wrong.mean(axis=1, keepdims=True)], axis=1)
            rows = -lr * gradients
            if f:
                seen = View(rows[: N - f], rows[N - f :], models, 10.0, rng, plain_mean)
                rows = np.concatenate([rows[: N - f], attacker(seen)])
            model = model + rows.mean(axis=0)
            models.append(model)
        return model

    def predict(self, model: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (x @ model[:4] + model[4] > 0).astype(int)

    def loss(self, model: np.ndarray) -> float:
        """Of all sites' true records: what the honest mean makes least, so whatever differs is harm."""
        signed = (self.x @ model[:4] + model[4]) * np.where(self.y, 1, -1)
        return float(np.logaddexp(0, -signed).mean())


HARM = {
    **{name: ALL[name] for name in ALL if name != "backdoor"},
    "label_flip": lambda: liars.LabelFlip(2),
    "relocated_orthogonal": lambda: liars.RelocatedOrthogonal(3.0, push=np.array([1.0, -2.0, 1.0, 0.0, 3.0])),
    "model_replacement": lambda: liars.ModelReplacement(np.full(5, -1.0)),
}


@pytest.mark.parametrize("name", HARM)
def test_each_attack_leaves_a_plain_mean_worse_off_than_the_same_sites_telling_the_truth(name: str) -> None:
    task = Blobs()
    honest = task.loss(task.learn(Attacker(), F))
    assert task.loss(task.learn(HARM[name](), F)) > honest * 1.05


@pytest.mark.parametrize("name", ["scaling", "model_replacement", "optimised_ipm", "flooder"])
def test_a_forceful_attack_destroys_a_plain_mean(name: str) -> None:
    task = Blobs()
    model = task.learn(HARM[name](), F)
    assert np.mean(task.predict(model, task.x_test) == task.y_test) < 0.5


def test_a_backdoor_opens_in_a_plain_mean_and_the_main_task_stands() -> None:
    task, attack = Blobs(), liars.Backdoor([3], 3.0, target=1)
    honest, model = task.learn(Attacker(), F), task.learn(attack, F)

    def success(weights: np.ndarray) -> float:
        return attack.success(lambda x: task.predict(weights, x), task.x_test, task.y_test.astype(int))

    assert success(honest) < 0.15
    assert success(model) > 0.9
    assert np.mean(task.predict(model, task.x_test) == task.y_test) > 0.9


def test_one_liar_is_enough_for_a_plain_mean() -> None:
    task = Blobs()
    assert task.loss(task.learn(liars.Scaling(-1000), 1)) > 20 * task.loss(task.learn(Attacker(), 1))
