"""Aggregation rules R(updates, p): n updates in, one out.

``RULES[name](updates, weights, **args) -> (d,)``, and ``.outcome(...)`` for the influence of each row beside it.

    updates: (n, d) array or n rows (d,), float32 or float64; one row per *distinct* site; never changed.
    weights: (n,) public weights p, > 0, not necessarily summing to one; every rule checks them, some use them.

The result has the rows' dtype; sums are made in float64. Every rule is a pure function, does not depend on the order of
the rows (not in one bit), gives back u when every update is u, and refuses NaN and infinity. Each docstring: formula;
breakdown point; paper and section; whether it uses weights; whether sealed mode may release it. Notation: x_i row,
p_i weight, n rows, f of them may lie, |.| Euclidean norm.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cordon.errors import ConfigError
from cordon.robust import arguments
from cordon.robust.points import Array, Floats, Points

Args = Mapping[str, Any]

MIN_SITES = 3
"""Distinct sites that a released step mixes in every coordinate, at the least: fewer would show a hospital's update."""


@dataclass(frozen=True)
class Outcome:
    """What a rule made of the rows.

    Args:
        step: (d,) the aggregate, in the rows' dtype.
        shares: (n,) influence 0..1 of each row, in the order the rows came: 1 as much as its weight says, 0 dropped.
            For coordinate-wise rules the part of the coordinates in which the row's value was among the kept ones.
    """

    step: Array
    shares: Floats


@dataclass(frozen=True)
class Rule:
    """A rule and what is known of it before it sees a row.

    Args:
        name: as job configs name it.
        function: (Points, **args) -> Outcome; the docstring says what it computes.
        uses_weights: whether weights that differ change the result.
        sealed: whether its step may be released when rows are single sites' updates: it mixes at least ``MIN_SITES``
            distinct sites in every coordinate, given arguments that ``check`` accepts.
        breakdown: (n, args) -> the most liars among n rows for which its guarantee holds.
        keeps: (n, args) -> rows that are mixed in every coordinate, at the least.
        takes_state: whether it centres on the previous aggregate (``state``).
    """

    name: str
    function: Callable[..., Outcome] = field(repr=False)
    uses_weights: bool
    sealed: bool
    breakdown: Callable[[int, Args], int] = field(repr=False)
    keeps: Callable[[int, Args], int] = field(repr=False)
    takes_state: bool = False

    def __call__(self, updates: Array | Sequence[Array], weights: Array | Sequence[float], **args: Any) -> Array:
        """The step alone. Raises ConfigError: rows, weights or arguments that don't fit."""
        return self.outcome(updates, weights, **args).step

    def outcome(self, updates: Array | Sequence[Array], weights: Array | Sequence[float], **args: Any) -> Outcome:
        """Step and influence of each row."""
        return self.apply(Points(updates, weights), args)

    def apply(self, points: Points, args: Args) -> Outcome:
        """Likewise, of points that may be mixed already."""
        self.check_names(args)
        return self.function(points, **args)

    def check_names(self, args: Args) -> None:
        """ConfigError where ``args`` are not those of this rule."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        known = [parameter.name for parameter in parameters]
        wanted = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
        if not set(args) <= set(known) or not set(wanted) <= set(args):
            got = ", ".join(sorted(args)) or "none"
            raise ConfigError(f"rule {self.name} takes {', '.join(known) or 'no arguments'}; got {got}")


def weighted_mean(points: Points) -> Outcome:
    """Weighted mean: sum_i p_i x_i / sum_i p_i.

    Breakdown point: 0. One site moves the result by p_i / sum(p) times its norm: safe only behind a norm bound.
    Source: McMahan et al. 2017, Algorithm 1 (FedAvg).
    Weights: used. Sealed: may be released (n >= 3).
    """
    return Outcome(points.combine(points.weights), points.influence(np.ones(points.k)))


def median(points: Points) -> Outcome:
    """Coordinate-wise median; for even n the mean of the two in the middle.

    Breakdown point: floor((n - 1) / 2) of n.
    Source: Yin et al. 2018, Definition 1.
    Weights: not used. Sealed: not by itself: every coordinate is one site's value, or the mean of two.
    """
    step, kept = points.trimmed((points.k - 1) // 2, None)
    return Outcome(step, points.influence(kept))


def trimmed_mean(points: Points, f: float | None = None, fraction: float | None = None) -> Outcome:
    """Coordinate-wise trimmed mean: drop the f smallest and f largest of each coordinate, weighted mean of the rest.

    Of equal values the lightest leave first at the low end and the heaviest at the high end. Give either ``f`` or
    ``fraction`` (f = floor(fraction * n)).
    Breakdown point: f of n, f < n/2.
    Source: Yin et al. 2018, Definition 2 (there with uniform weights).
    Weights: used for what is kept; f counts sites, not weight. Sealed: may be released where n - 2f >= 3.
    """
    weights = points.weights
    uniform = bool((weights == weights[0]).all())
    step, kept = points.trimmed(arguments.trim(points.k, f, fraction), None if uniform else weights)
    return Outcome(step, points.influence(kept))


def krum(points: Points, f: float) -> Outcome:
    """Krum: the x_i with the least sum of squared distances to its n - f nearest rows, itself among them.

    Breakdown point: f of n, f < n/2.
    Source: Blanchard et al. 2017, section 4, who count the n - f - 2 nearest others and prove it for n > 2f + 2; n - f
    with itself and f < n/2 as Allouah et al. 2023, section 8 (appendix).
    Weights: not used. Sealed: not by itself: it releases one site's update.
    """
    chosen = _least_scores(points, arguments.liars("krum", points.k, f), 1)
    return Outcome(points.combine(chosen), points.influence(chosen))


def multi_krum(points: Points, f: float, m: float | None = None) -> Outcome:
    """Multi-Krum: mean of the m rows with the least Krum scores; m = n - f unless given.

    Breakdown point: f of n, f < n/2, for m <= n - f.
    Source: Blanchard et al. 2017, section 4 (there m <= n - f - 2); scores and m = n - f as in ``krum``.
    Weights: not used. Sealed: may be released where m >= 3.
    """
    count = arguments.liars("multi_krum", points.k, f)
    chosen = _least_scores(points, count, arguments.selected(points.k, count, m))
    return Outcome(points.combine(chosen), points.influence(chosen))


def geometric_median(points: Points, nu: float = 1e-6, iterations: float = 100) -> Outcome:
    """Geometric median, argmin_z sum_i p_i |z - x_i|, by the smoothed Weiszfeld algorithm.

    z <- sum_i b_i x_i / sum_i b_i with b_i = p_i / max(nu, |z - x_i|), ``iterations`` times or until no b_i moves by
    1e-12 of itself. From the mean of the half of the rows nearest to the medoid: from the mean of all, liars far out
    would be left behind too slowly. Worked out on distances between rows; z itself is made once. ``nu`` is in units of
    the updates.
    Breakdown point: less than half of the weight; floor((n - 1) / 2) of n where weights are the same.
    Source: Pillutla et al. 2022 (RFA), Algorithm 2, equation (9) of the smoothed objective.
    Weights: used. Sealed: may be released (n >= 3): all rows have a part, if an unequal one.
    """
    nu = arguments.positive("geometric_median: nu", nu)
    rounds = arguments.count("geometric_median: iterations", iterations)
    p = points.weights / points.weights.sum()
    products, own = _from_medoid(points, p)
    part = np.where(own <= np.median(own), p, 0.0)
    part /= part.sum()
    for _ in range(rounds):
        pulls = p / np.maximum(nu, np.sqrt(_to_mean(products, part)))
        before, part = part, pulls / pulls.sum()
        if (np.abs(part - before) <= 1e-12 * before).all():
            break
    relative = part / p
    return Outcome(points.combine(part), points.influence(relative / relative.max()))


def centered_clipping(
    points: Points, tau: float, iterations: float = 1, momentum: float = 1.0, state: Array | None = None
) -> Outcome:
    """Centred clipping: v <- v + sum_i p_i (x_i - v) min(1, tau / |x_i - v|) / sum_i p_i, ``iterations`` times.

    v starts at ``momentum`` times ``state``, the previous aggregate (the caller keeps it and hands it in again; None:
    the origin). ``tau`` is in units of the updates. (Momentum of the senders, which the paper's section 5 asks for, is
    theirs.)
    Breakdown point: no sharp one: whoever lies, f sites move v by at most f tau / n in one iteration (uniform
    weights); the paper's guarantee is for f <= n/10.
    Source: Karimireddy et al. 2021, section 4, equation (CC), Theorem IV (there with uniform weights).
    Weights: used. Sealed: may be released (n >= 3): all rows have a part; v is public.
    """
    tau = arguments.positive("centered_clipping: tau", tau)
    rounds = arguments.count("centered_clipping: iterations", iterations)
    momentum = arguments.between("centered_clipping: momentum", momentum, 0.0, 1.0)
    centre = np.zeros(points.d, dtype=points.dtype) if state is None else _state(points, state, momentum)
    p = points.weights / points.weights.sum()
    products = points.gram(centre) if rounds > 1 else np.diag(points.squares_to(centre))
    # v = centre + part @ (points - centre): only ``part`` is iterated.
    part = factor = np.zeros(points.k)
    for _ in range(rounds):
        distance = np.sqrt(_to_mean(products, part))
        factor = np.minimum(1.0, tau / np.maximum(distance, tau))
        part = (1 - p @ factor) * part + p * factor if (factor < 1).any() else p
    rest = 0.0 if (factor == 1).all() else 1 - float(part.sum())
    return Outcome(points.combine(part, None, centre, rest), points.influence(factor))


def norm_bounding(points: Points, bound: float) -> Outcome:
    """Norm bounding: sum_i p_i x_i min(1, bound / |x_i|) / sum_i p_i.

    Breakdown point: none that brings back the honest mean; f sites move the result by at most f bound / n (uniform
    weights), and its norm is at most ``bound``.
    Source: Sun et al. 2019, section 5 ("norm thresholding of updates").
    Weights: used. Sealed: may be released (n >= 3): all rows have a part.
    """
    bound = arguments.positive("norm_bounding: bound", bound)
    norms = np.sqrt(points.squares_to(np.zeros(points.d, dtype=points.dtype)))
    factor = np.minimum(1.0, bound / np.maximum(norms, bound))
    mass = None if (factor == 1).all() else float(points.weights.sum())  # of all: a clipped row is shorter, not lighter
    return Outcome(points.combine(points.weights * factor, mass), points.influence(factor))


def _least_scores(points: Points, f: int, m: int) -> Floats:
    """(k,) 1.0 for the m points with the least Krum scores, 0.0 for the others; of equal scores the first."""
    nearest = np.sort(points.squares(), axis=1)[:, : points.k - f]
    chosen = np.zeros(points.k)
    chosen[np.argsort(nearest.sum(axis=1), kind="stable")[:m]] = 1.0
    return chosen


def _to_mean(products: Floats, part: Floats) -> Floats:
    """(k,) squared distances of points to ``part @ points``, from their inner products (k, k) seen from some origin."""
    along = products @ part
    return np.asarray(np.maximum(0.0, part @ along - 2 * along + np.diag(products)))


def _from_medoid(points: Points, p: Floats) -> tuple[Floats, Floats]:
    """Inner products (k, k) seen from the point with the least sum of distances to all; squared distances to it (k,).

    They follow from the distances, unless some point is so far out that the distances of the others drown in its own.
    """
    squares = points.squares()
    medoid = int(np.argmin(np.sqrt(squares) @ p))
    own = squares[medoid]
    if own.max() > 1e4 * np.median(own):
        return points.gram(medoid), own
    return np.asarray((own[:, None] + own[None, :] - squares) / 2), own


def _state(points: Points, state: Array, momentum: float) -> Array:
    if not isinstance(state, np.ndarray) or state.shape != (points.d,) or not np.isfinite(state).all():
        raise ConfigError(f"centered_clipping: state must be a finite vector ({points.d},)")
    return state if momentum == 1 else state * state.dtype.type(momentum)


def _half(n: int, args: Args) -> int:
    return (n - 1) // 2


def _declared(n: int, args: Args) -> int:
    return arguments.liars("krum", n, args["f"])


def _trim(n: int, args: Args) -> int:
    return arguments.trim(n, args.get("f"), args.get("fraction"))


def _chosen(n: int, args: Args) -> int:
    return arguments.selected(n, arguments.liars("multi_krum", n, args["f"]), args.get("m"))


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("weighted_mean", weighted_mean, True, True, lambda n, args: 0, lambda n, args: n),
        Rule("median", median, False, False, _half, lambda n, args: 2 - n % 2),
        Rule("trimmed_mean", trimmed_mean, True, True, _trim, lambda n, args: n - 2 * _trim(n, args)),
        Rule("krum", krum, False, False, _declared, lambda n, args: 1),
        Rule("multi_krum", multi_krum, False, True, _declared, _chosen),
        Rule("geometric_median", geometric_median, True, True, _half, lambda n, args: n),
        Rule("centered_clipping", centered_clipping, True, True, lambda n, args: n // 10, lambda n, args: n, True),
        Rule("norm_bounding", norm_bounding, True, True, lambda n, args: 0, lambda n, args: n),
    )
}
