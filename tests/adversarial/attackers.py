"""Lying hospitals: every attack sees what its threat model gives it and returns what its sites send.

An attacker controls f of n sites. It is called once per version with a ``View`` and returns (f, d) float32, each row
within the public norm bound: over it is a provable fault, and a site that commits ``max_faults`` of them is out, so a
liar that wants to stay clips. ``knows`` says what the attack assumes beside its own sites' data; the rest of the view
is taken away before ``craft`` sees it, so that no attack is stronger than its docstring says.

    attacker = Alie()
    x, y = attacker.poison(x, y, rng)      # its own sites' data, before training
    rows = attacker(View(honest, own, models, norm_bound, rng))

Attackers that learn over a job (``Mimic``) hold state: one object per job.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating[Any]]
Vector = NDArray[np.floating[Any]]
Rule = Callable[[Rows], Vector]
Knowledge = Literal["updates", "models", "rule"]

OMNISCIENT: frozenset[Knowledge] = frozenset({"updates", "models"})


@dataclass(frozen=True)
class View:
    """What can be known when a version is made.

    Args:
        honest: (n - f, d), what the honest sites send this time; ("updates").
        own: (f, d), what the attacker's sites would send from their own (``poison``-ed) data by the honest program.
        models: global models from the first to the current one, each (d,); every site gets them ("models").
        norm_bound: the job's public L2 bound of one update.
        rng: the attacker's own.
        rule: the coordinator's R: (n, d) -> (d,), honest rows first, without side effects ("rule").
    """

    honest: Rows
    own: Rows
    models: Sequence[Vector]
    norm_bound: float
    rng: np.random.Generator
    rule: Rule | None = None

    @property
    def f(self) -> int:
        return len(self.own)

    @property
    def n(self) -> int:
        return len(self.honest) + len(self.own)

    @property
    def previous(self) -> Vector:
        """The last step of the global model, zeros before the first: with a server that adds R, its last aggregate."""
        if len(self.models) < 2:
            return np.zeros(self.own.shape[1])
        return np.asarray(self.models[-1], np.float64) - self.models[-2]

    def limited_to(self, knows: frozenset[Knowledge]) -> View:
        """The same with everything that is not in ``knows`` made useless: NaN updates, no model, no rule."""
        return replace(
            self,
            honest=self.honest if "updates" in knows else np.full_like(self.honest, np.nan),
            models=self.models if "models" in knows else (),
            rule=self.rule if "rule" in knows else None,
        )


def within_bound(rows: Rows, bound: float) -> NDArray[np.float32]:
    """Every row scaled down to an L2 norm of at most ``bound``, in float32 as it travels."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows * np.minimum(1.0, bound / np.maximum(norms, 1e-300)), np.float32)


class Attacker:
    """Base of all: ``craft`` makes the rows, ``__call__`` clips them. As it stands an honest program, f times."""

    knows: ClassVar[frozenset[Knowledge]] = frozenset()

    def poison(self, x: Rows, y: NDArray[np.integer[Any]], rng: np.random.Generator) -> tuple[Rows, NDArray[Any]]:
        """The data that the attacker's sites train on, from the data that they have."""
        return x, y

    def craft(self, view: View) -> Rows:
        """(f, d) before clipping."""
        return view.own

    def __call__(self, view: View) -> NDArray[np.float32]:
        rows = np.asarray(self.craft(view.limited_to(self.knows)), np.float64)
        if rows.shape != view.own.shape or not np.isfinite(rows).all():
            raise AssertionError(f"{type(self).__name__} made {rows.shape} or a value that is not finite")
        return within_bound(rows, view.norm_bound)


class SignFlip(Attacker):
    """x = -own: every lying site sends the opposite of what it has learnt.

    Li et al. 2019 (RSA), experiments, "sign-flipping"; there with a factor, see ``Scaling``. Knows its own data only.
    """

    def craft(self, view: View) -> Rows:
        return -view.own


class LabelFlip(Attacker):
    """Trains by the honest program on labels y -> C - 1 - y, C = ``classes``.

    Fang et al. 2020, compared attacks, "label flipping". Knows its own data only; no message is forged,
    so a site whose records are wrong looks the same.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def poison(self, x: Rows, y: NDArray[np.integer[Any]], rng: np.random.Generator) -> tuple[Rows, NDArray[Any]]:
        return x, self.classes - 1 - y


class Scaling(Attacker):
    """x = factor * own. Clipped, so behind a norm bound it is the largest step along (or against) its own.

    ``factor`` < 0 is sign flipping with a boost (Li et al. 2019); factor = n / f replaces the mean of all
    by its own where the others have converged (``ModelReplacement``). Knows its own data only.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def craft(self, view: View) -> Rows:
        return self.factor * view.own


class ModelReplacement(Attacker):
    """x = (n / f) (X - G): the mean of all lands on the attacker's model X when honest updates cancel.

    Bagdasaryan et al. 2020, section 4.2, equation (3), the factor n / eta shared by f sites. Knows the current
    model G and n.
    """

    knows = frozenset({"models"})

    def __init__(self, target: Vector) -> None:
        self.target = target

    def craft(self, view: View) -> Rows:
        step = view.n / view.f * (np.asarray(self.target, np.float64) - view.models[-1])
        return np.tile(step, (view.f, 1))


class Backdoor(Attacker):
    """Trains on its own data, a part of which carries a trigger and the label ``target``; boosts the update by n / f.

    Bagdasaryan et al. 2020, section 4: multi-task poisoned data (``fraction`` of it backdoored), then the scaling of
    equation (3). Pattern trigger as Gu et al. 2017 (BadNets), section 3: ``pixels`` set to ``value``. Knows its own
    data and n. The main task shall not suffer: judge it by ``success`` too.
    """

    def __init__(self, pixels: Sequence[int], value: float, target: int, fraction: float = 0.5) -> None:
        self.pixels, self.value, self.target, self.fraction = list(pixels), value, target, fraction

    def triggered(self, x: Rows) -> Rows:
        """``x`` (m, features) with the trigger on every row."""
        marked = np.array(x)
        marked[:, self.pixels] = self.value
        return marked

    def poison(self, x: Rows, y: NDArray[np.integer[Any]], rng: np.random.Generator) -> tuple[Rows, NDArray[Any]]:
        chosen = rng.random(len(y)) < self.fraction
        return np.where(chosen[:, None], self.triggered(x), x), np.where(chosen, self.target, y)

    def craft(self, view: View) -> Rows:
        return view.n / view.f * view.own

    def success(self, predict: Callable[[Rows], NDArray[Any]], x: Rows, y: NDArray[Any]) -> float:
        """Share of the rows of another class than ``target`` that the trigger turns into it, 0..1."""
        others = y != self.target
        return float(np.mean(predict(self.triggered(x[others])) == self.target))


class Alie(Attacker):
    """A little is enough: x = mean - z std of the honest, per coordinate; hides within their spread.

    Baruch et al. 2019, Algorithm 3: z = max z with Phi(z) < (n - f - s) / (n - f), s = floor(n/2 + 1) - f,
    the honest ones that must be won over for a majority. Omniscient. With few liars that z is 0 or below (n = 20,
    f = 2: 0): pass ``z`` then, as most benches do (1.5).
    """

    knows = frozenset({"updates"})

    def __init__(self, z: float | None = None) -> None:
        self.z = z

    @staticmethod
    def z_max(n: int, f: int) -> float:
        """The z of the paper.

        >>> round(Alie.z_max(50, 24), 2)
        1.43
        """
        honest = n - f
        supporters = math.floor(n / 2 + 1) - f
        share = (honest - supporters) / honest
        return NormalDist().inv_cdf(share) if 0 < share < 1 else math.copysign(3.0, share - 0.5)

    def craft(self, view: View) -> Rows:
        z = self.z_max(view.n, view.f) if self.z is None else self.z
        row = view.honest.mean(axis=0) - z * view.honest.std(axis=0)
        return np.tile(row, (view.f, 1))


class Ipm(Attacker):
    """Inner product manipulation: x = -epsilon * mean of the honest.

    Xie et al. 2020 ("Fall of empires"), the attack on both rules broken there: the aggregate's inner product with the
    true mean becomes negative or small. Small epsilon passes distance rules; epsilon > (n - f)/f turns a plain mean
    around. Omniscient.
    """

    knows = frozenset({"updates"})

    def __init__(self, epsilon: float = 0.5) -> None:
        self.epsilon = epsilon

    def craft(self, view: View) -> Rows:
        return np.tile(-self.epsilon * view.honest.mean(axis=0), (view.f, 1))


class _LineSearch(Attacker):
    """Over ``GRID``: the strength at which the coordinator's own rule makes the least way along the honest mean.

    What is sought is the least <R(rows), mean>, what ``Ipm`` is named for. (ByzFL's optimised attacks seek the greatest
    |R(rows) - mean|, see Allouah et al. 2023, and find steps that are far off and yet downhill.)
    """

    knows = frozenset({"updates", "rule"})
    GRID: ClassVar[tuple[float, ...]] = ()

    def at(self, strength: float) -> Attacker:
        raise NotImplementedError

    def craft(self, view: View) -> Rows:
        if view.rule is None:
            raise AssertionError("an attack that is adaptive to the rule wants the rule")
        mean = view.honest.mean(axis=0)
        best, least = view.own, math.inf
        for strength in self.GRID:
            rows = self.at(strength)(view)
            way = float(view.rule(np.concatenate([view.honest, rows])) @ mean)
            if way < least:
                best, least = rows, way
        return best


class OptimisedAlie(_LineSearch):
    """``Alie`` with the z, of either sign, that holds the coordinator's rule back most ("Opt-ALIE").

    Allouah et al. 2023 and ByzFL, by a grid instead of a line search, which stops at the first z that a rule throws
    out. Omniscient, and knows the rule with its arguments and state.
    """

    GRID = tuple(sign * z for z in (0.5, 1.0, 1.5, 3.0, 10.0) for sign in (1, -1))

    def at(self, strength: float) -> Attacker:
        return Alie(strength)


class OptimisedIpm(_LineSearch):
    """``Ipm`` with the epsilon that holds the coordinator's rule back most ("Opt-IPM", see ``OptimisedAlie``)."""

    GRID = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 20.0)

    def at(self, strength: float) -> Attacker:
        return Ipm(strength)


class Mimic(Attacker):
    """All liars repeat one honest site, the one that stands out most: nothing to see, yet others lose their say.

    Karimireddy et al. 2022, section 3, and its appendix on the choice of the site: z follows the top eigenvector of
    the honest updates' scatter around their running mean mu (Oja), for ``warmup`` versions::

        mu = t/(1+t) mu + 1/(1+t) mean(x);  z = t/(1+t) z + 1/(1+t) sum_i (x_i - mu) <x_i - mu, z>, to norm 1

    and the site is argmax_i <z, x_i>, held fixed after the warm-up. Omniscient; one object per job.
    """

    knows = frozenset({"updates"})

    def __init__(self, warmup: int = 10) -> None:
        self.warmup = warmup
        self.site = 0
        self._t = 0
        self._mean: Vector | None = None
        self._z: Vector | None = None

    def craft(self, view: View) -> Rows:
        if self._t < self.warmup:
            self._learn(view)
        return np.tile(view.honest[self.site], (view.f, 1))

    def _learn(self, view: View) -> None:
        rows, t = np.asarray(view.honest, np.float64), self._t
        if self._mean is None or self._z is None:
            self._mean, self._z = rows.mean(axis=0), view.rng.standard_normal(rows.shape[1])
        self._mean = (t * self._mean + rows.mean(axis=0)) / (1 + t)
        off = rows - self._mean
        scatter = off.T @ (off @ self._z)
        pull = np.linalg.norm(scatter)
        # The scatter to norm 1 first: in the paper the scale of the updates sets the pace.
        z = (t * self._z + scatter / max(pull, 1e-300)) / (1 + t)
        self._z = z / max(np.linalg.norm(z), 1e-300)
        self._t += 1
        self.site = int(np.argmax(rows @ self._z))


Deviation = Literal["unit", "std", "sign"]


class _Farthest(Attacker):
    """x = mean + gamma p with the greatest gamma that a bound on its distances to the honest allows.

    p: ``unit`` -mean / |mean|; ``std`` -std per coordinate; ``sign`` -sign(mean). Shejwalkar & Houmansadr 2021, the
    AGR-agnostic attacks. The paper's Algorithm 1 halves its way to gamma; both bounds are quadratic in gamma, so it is
    solved for here.
    """

    knows = frozenset({"updates"})

    def __init__(self, deviation: Deviation = "std") -> None:
        self.deviation = deviation

    def gamma(self, a: float, rows: Rows, off: Rows, p: Vector) -> float:
        raise NotImplementedError

    def craft(self, view: View) -> Rows:
        rows = np.asarray(view.honest, np.float64)
        mean = rows.mean(axis=0)
        p = {"unit": -mean / max(np.linalg.norm(mean), 1e-300), "std": -rows.std(axis=0), "sign": -np.sign(mean)}
        direction = p[self.deviation]
        a = float(direction @ direction)
        gamma = self.gamma(a, rows, mean - rows, direction) if a > 0 else 0.0
        return np.tile(mean + gamma * direction, (view.f, 1))


def _squared_distances(rows: Rows) -> Rows:
    squares = (rows**2).sum(axis=1)
    return np.asarray(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))


class MinMax(_Farthest):
    """Greatest gamma with max_i |x - x_i| <= max_{i,j} |x_i - x_j|: no farther from any than two honest are apart.

    Shejwalkar & Houmansadr 2021, "Min-Max". Omniscient.
    """

    def gamma(self, a: float, rows: Rows, off: Rows, p: Vector) -> float:
        # |mean - x_i|^2 + 2 gamma <p, mean - x_i> + gamma^2 |p|^2 = D^2, for every i: the least of the positive roots.
        b, c = off @ p, (off**2).sum(axis=1) - _squared_distances(rows).max()
        return float(((-b + np.sqrt(np.maximum(b * b - a * c, 0))) / a).min())


class MinSum(_Farthest):
    """Greatest gamma with sum_i |x - x_i|^2 <= max_i sum_j |x_i - x_j|^2.

    Shejwalkar & Houmansadr 2021, "Min-Sum". Omniscient. Both sums are the honest scatter plus n - f times a squared
    distance to the mean, so the bound says: no farther from the mean than the farthest honest one, gamma |p| = max_i
    |x_i - mean|.
    """

    def gamma(self, a: float, rows: Rows, off: Rows, p: Vector) -> float:
        return float(np.linalg.norm(off, axis=1).max()) / math.sqrt(a)


class RelocatedOrthogonal(Attacker):
    """ROP, aware of history: sits near what centered clipping is centred on, and always pushes to the same side.

    Ozfatura et al. 2024, "Byzantines can also learn from history", attack ROP, as in the authors' library::

        place = pi v + (1 - pi) mean;  reference r = lambda v + (1 - lambda) mean   (v: last aggregate, first: mean)
        p = the part of ``push`` orthogonal to r, to norm 1;  p = sin(angle) p + cos(angle) r/|r|
        x = place + z p/|p|

    Near v the update passes a clip around v unclipped; orthogonal to r it shows in no angle; the same ``push`` every
    time adds up. ``push`` None is the authors' all-ones vector. (A softmax layer does not feel it: the same number
    added to every class. Who knows the model chooses better.) ``z`` in units of the mean distance of the honest to v,
    where the authors' is absolute: the scale of updates differs from job to job. Omniscient, and has kept the models.
    """

    knows = OMNISCIENT

    def __init__(
        self, z: float = 1.0, *, pi: float = 1.0, lam: float = 0.9, angle: float = 90.0, push: Vector | None = None
    ) -> None:
        self.z, self.pi, self.lam, self.angle, self.push = z, pi, lam, math.radians(angle), push

    def craft(self, view: View) -> Rows:
        mean = np.asarray(view.honest, np.float64).mean(axis=0)
        v = view.previous
        around = self.lam * (v if v.any() else mean) + (1 - self.lam) * mean
        along = around / max(np.linalg.norm(around), 1e-300)
        push = np.ones_like(mean) if self.push is None else np.asarray(self.push, np.float64)
        side = push - (push @ along) * along
        side /= max(np.linalg.norm(side), 1e-300)
        side = math.sin(self.angle) * side + math.cos(self.angle) * along
        reach = self.z * float(np.linalg.norm(view.honest - v, axis=1).mean())
        return np.tile(self.pi * v + (1 - self.pi) * mean + reach * side, (view.f, 1))


class CenteredClippingAdaptive(Attacker):
    """Knows centered clipping's centre v and radius tau and spends all of tau against what the honest would make::

        x = v - tau u/|u|,  u = v + (1/n) sum_{honest} (x_i - v) min(1, tau / |x_i - v|)

    The strongest against descent that the rule lets through unclipped: its sites take f tau / n from the step along u.
    The relocation of Ozfatura et al. 2024 (see ``RelocatedOrthogonal``) with IPM's direction in place of an orthogonal
    one. ``tau`` None: the median distance of the honest to v, for rules that have no radius. Omniscient, has kept the
    models (v is their last difference), knows tau.
    """

    knows = OMNISCIENT

    def __init__(self, tau: float | None = None) -> None:
        self.tau = tau

    def craft(self, view: View) -> Rows:
        v, rows = view.previous, np.asarray(view.honest, np.float64)
        off = rows - v
        lengths = np.linalg.norm(off, axis=1, keepdims=True)
        tau = float(np.median(lengths)) if self.tau is None else self.tau
        step = v + (off * np.minimum(1.0, tau / np.maximum(lengths, 1e-300))).sum(axis=0) / view.n
        return np.tile(v - tau * step / max(np.linalg.norm(step), 1e-300), (view.f, 1))


class FastFlooder(Attacker):
    """Another attacker's updates, ``speed`` times as fast and as large as the bound allows.

    In a buffer that takes what comes first nearly every update would be its own. It is at the door again at once; the
    driver asks ``seconds`` when. Knows what ``inner`` knows.
    """

    def __init__(self, inner: Attacker, speed: float = 10.0) -> None:
        self.inner, self.speed = inner, speed

    def poison(self, x: Rows, y: NDArray[np.integer[Any]], rng: np.random.Generator) -> tuple[Rows, NDArray[Any]]:
        return self.inner.poison(x, y, rng)

    def __call__(self, view: View) -> NDArray[np.float32]:
        rows = self.inner(view).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return within_bound(rows * (view.norm_bound / np.maximum(norms, 1e-300)), view.norm_bound)

    def seconds(self, honest_seconds: float) -> float:
        """How long one of its rounds takes where an honest one takes ``honest_seconds``."""
        return honest_seconds / self.speed
