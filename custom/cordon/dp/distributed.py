"""The noise of one step shared out over the sites of a masked sum: mechanism, guarantee and figures (README.md).

A site's update is one un-noised clipped step; weighted, rounded into the ring at scale S, and with a share of discrete
Gaussian noise it goes into the masked sum. The sum opens with at least ``least`` = max(t, u_min) shares, of which the
coordinator's ``c`` colluders know their own: h = least - c shares hide every patient from it.

Everything is relative to L, the most that one patient moves the *rounded* vector (``SharedNoise.ring_sensitivity``). A
share of multiplier z has standard deviation sqrt((z L)^2 + 1/12); the sum of h of them is accounted as the Gaussian
mechanism of multiplier sqrt(h) z, with Poisson sampling, and the difference to it as a part of delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cordon.dp.accounting import RESERVE, Accountant, Adjacency, epsilon
from cordon.dp.discrete import MAX_STD, Words, sample
from cordon.dp.noise import keystream
from cordon.errors import ConfigError, PrivacyError
from cordon.job import Job
from cordon.messages import DPEvent

MIN_STD = 8.0
"""Least standard deviation of a share, in steps of the ring."""
MAX_ROUNDING = 0.25
"""The most that rounding may add to the sensitivity, as a part of it."""
HEADROOM = 4.0
"""How many times the job's share a site may draw to reach its own floor; the ring has room for it."""

_FLOAT64 = 1 + 2.0**-20
_FLOAT32 = 2.0**-20


@dataclass(frozen=True)
class Figures:
    """Epsilon of a site's patients at one delta; inf where nothing is guaranteed at that delta.

    coordinator: against the coordinator and c colluding sites, who know their own shares and updates.
    public: against whoever sees opened sums and models only. own_share: if all other sites collude.
    """

    coordinator: float
    public: float
    own_share: float


@dataclass(frozen=True)
class Shares:
    """Who draws how much: the multipliers of the shares in one opened sum, as one site accounts them.

    Attributes:
        share: z, the multiplier of each other site's share. own: that of this site's, z or more.
        least: shares in the smallest sum that a site of this job lets open, max(t, u_min). colluders: c.
        rounds: opened sums that the site takes part in at most.
        sampling_rate, clip_norm: q and C, for the event.
    """

    share: float
    own: float
    least: int
    colluders: int
    rounds: int
    sampling_rate: float
    clip_norm: float

    def __post_init__(self) -> None:
        if not 1 <= self.honest <= self.least:
            raise ConfigError(f"of {self.least} shares in a sum {self.colluders} collude: no noise is left")
        if not 0 < self.share <= self.own < math.inf:
            raise ConfigError(f"want multipliers 0 < share <= own, got {self.share} and {self.own}")
        if self.own > HEADROOM * self.share:
            raise PrivacyError(
                f"the site's own share would need multiplier {self.own:.4g}, over {HEADROOM:g} times the job's "
                f"{self.share:g}: the ring has no room for it"
            )

    @classmethod
    def of(cls, job: Job, least: int) -> Shares:
        """The shares of ``job`` without any site's own top-up.

        Raises:
            ConfigError: the job's noise is not shared out, or it is one that cannot be accounted so.
        """
        args, dp = job.executor, job.executor.dp
        masked = job.controller.masked
        if masked is None or not masked.distributed:
            raise ConfigError(f"job {job.name}: the noise is each site's own (masked.distributed is not set)")
        if dp.steps != 1:
            raise ConfigError(
                f"job {job.name}: masked.distributed wants dp.steps = 1, got {dp.steps}: a second local step would "
                "start from a model that nothing hides"
            )
        if args.local_parameters:
            raise ConfigError(
                f"job {job.name}: masked.distributed takes no local_parameters: trained without noise they carry each "
                "patient into every later update, at a sensitivity that nobody bounds"
            )
        return cls(
            share=dp.noise_multiplier,
            own=dp.noise_multiplier,
            least=least,
            colluders=masked.c,
            rounds=job.controller.rounds_per_site,
            sampling_rate=dp.sampling_rate,
            clip_norm=dp.clip_norm,
        )

    @property
    def honest(self) -> int:
        """h: shares that nobody who colludes knows."""
        return self.least - self.colluders

    def topped_up(self, min_noise: float) -> Shares:
        """The same with the site's own share such that the h honest ones have ``min_noise`` or more together."""
        return replace(self, own=top_up(min_noise, self.share, self.honest))

    def multiplier(self, shares: int) -> float:
        """Guaranteed noise multiplier of a sum of the site's own share and ``shares`` - 1 others."""
        return math.sqrt(self.own**2 + (shares - 1) * self.share**2)

    def event(self, shares: int | None = None) -> DPEvent:
        """One opened sum, as accountants read it; by default against the coordinator and its colluders."""
        return DPEvent(
            mechanism="distributed_discrete_gaussian",
            noise_multiplier=self.multiplier(self.honest if shares is None else shares),
            sampling_rate=self.sampling_rate,
            steps=1,
            clip_norm=self.clip_norm,
            unit="patient",
        )


@dataclass(frozen=True)
class SharedNoise:
    """Shares in a ring: what is drawn, and what it costs.

    Attributes:
        sensitivity: Delta = learning_rate C / B: what one patient moves an update by at most, in model units.
        norm_bound: L2 bound of an update. size: d, parameters that are sent.
        scale: S of the coarsest ring that a cohort of this job may have.
    """

    shares: Shares
    sensitivity: float
    norm_bound: float
    size: int
    scale: float

    def __post_init__(self) -> None:
        for name in ("sensitivity", "norm_bound", "size", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, want a finite number over 0")

    @classmethod
    def of(cls, job: Job, shares: Shares, size: int, scale: float) -> SharedNoise:
        """Noise of ``job`` for vectors of ``size`` parameters; ``scale`` is that of the ring of its largest cohort."""
        return cls(shares, _sensitivity(job), job.controller.norm_bound, size, scale)

    # -- in the ring -------------------------------------------------------------------------------------------------

    @property
    def _moved(self) -> float:
        return _moved(self.sensitivity, self.norm_bound)

    def ring_sensitivity(self, scale: float) -> float:
        """L = S Delta' + sqrt(d): one patient moves the integer vector by at most this, in L2.

        Rounding is floor(x + u), the dither u the same for both neighbours: a coordinate that differs by |x - x'|
        before it differs by less than |x - x'| + 1 after it.
        """
        return scale * self._moved + math.sqrt(self.size) * _FLOAT64

    def std(self, scale: float) -> float:
        """Standard deviation of the site's own share, in steps of a ring of scale ``scale``.

        Raises:
            PrivacyError: the ring is too coarse for this model, or the share outside of what the sampler draws.
        """
        return self._std(self.shares.own, scale)

    def draw(self, scale: float, least: int, words: Words | None = None) -> NDArray[np.int64]:
        """The site's noise share (d,) int64, for one masked vector: fresh in each call, used once.

        Args:
            scale: S = 2**scale_bits of *this* cohort's ring.
            least: max(t, u_min) of *this* cohort, as the site's own secagg state has it.
            words: None draws from the operating system's entropy through AES-256-CTR. Others for tests and benches.

        Raises:
            PrivacyError: the cohort would open with fewer shares, or in a coarser ring, than was accounted; or as
                ``std``.
        """
        if scale < self.scale:
            raise PrivacyError(f"the cohort's ring has scale {scale:g}, {self.scale:g} was accounted")
        if least < self.shares.least:
            raise PrivacyError(f"the cohort opens with {least} shares of noise, {self.shares.least} were accounted")
        return sample(self.std(scale), self.size, keystream().words if words is None else words)

    def _std(self, multiplier: float, scale: float) -> float:
        bound = self.ring_sensitivity(scale)
        if bound > (1 + MAX_ROUNDING) * scale * self._moved:
            raise PrivacyError(
                f"scale {scale:g} is too coarse: rounding {self.size} parameters adds {math.sqrt(self.size):.4g} to a "
                f"patient's {scale * self._moved:.4g}, allowed is {MAX_ROUNDING:g} of it; use ring_bits 64"
            )
        std = math.nextafter(math.sqrt((multiplier * bound) ** 2 + 1 / 12) * _FLOAT64, math.inf)
        if not MIN_STD <= std <= MAX_STD:
            raise PrivacyError(f"a share of standard deviation {std:.4g} in the ring, want {MIN_STD:g} to {MAX_STD:g}")
        return std

    # -- figures -----------------------------------------------------------------------------------------------------

    def distance(self, rounds: int | None = None) -> float:
        """Total variation of ``rounds`` opened sums from the rounded Gaussians they are accounted as (README.md)."""
        divergence = coordinate_divergence(self._std(self.shares.share, self.scale), self.shares.least)
        return math.sqrt((self.shares.rounds if rounds is None else rounds) * self.size * divergence / 2)

    def epsilon(
        self,
        delta: float,
        *,
        shares: int | None = None,
        rounds: int | None = None,
        accountant: Accountant = "pld",
        adjacency: Adjacency = "add_or_remove_one",
    ) -> float:
        """Epsilon at ``delta`` of ``rounds`` opened sums (the whole plan) with ``shares`` shares that the adversary
        does not know (by default the honest ones); what discrete noise differs from continuous is in it.

        Raises:
            PrivacyError: that difference takes more of delta than is reserved for it, or as ``std``.
        """
        rounds = self.shares.rounds if rounds is None else rounds
        spent = epsilon([(self.shares.event(shares), rounds)], delta, accountant=accountant, adjacency=adjacency)
        distance = self.distance(rounds)
        # In logarithms: exp(epsilon) overflows where a single share hides next to nothing.
        if distance > 0 and math.log(distance) + np.logaddexp(0, spent) > math.log(RESERVE * delta):
            raise PrivacyError(
                f"{rounds} sums of {self.size} parameters are {distance:.3g} from the Gaussians they are accounted "
                f"as; at epsilon {spent:.4g} that is over {RESERVE:g} of delta {delta:g}: use ring_bits 64"
            )
        return spent

    def figures(
        self,
        delta: float,
        *,
        rounds: int | None = None,
        accountant: Accountant = "pld",
        adjacency: Adjacency = "add_or_remove_one",
    ) -> Figures:
        """The three epsilons; inf where ``epsilon`` refuses."""

        def spent(shares: int) -> float:
            try:
                return self.epsilon(delta, shares=shares, rounds=rounds, accountant=accountant, adjacency=adjacency)
            except PrivacyError:
                return math.inf

        return Figures(coordinator=spent(self.shares.honest), public=spent(self.shares.least), own_share=spent(1))


def noise_bound(job: Job) -> float:
    """Standard deviation in model units that no site's share exceeds: what the ring's scale is chosen for."""
    most = HEADROOM * job.executor.dp.noise_multiplier * (1 + MAX_ROUNDING) * (1 + 1 / MIN_STD**2)
    return most * _moved(_sensitivity(job), job.controller.norm_bound)


def _sensitivity(job: Job) -> float:
    dp = job.executor.dp
    return job.executor.learning_rate * dp.clip_norm / dp.expected_batch_size


def _moved(sensitivity: float, norm_bound: float) -> float:
    """Delta with what arithmetic adds: float64 in the sum, float32 where an update is stored and clipped."""
    return sensitivity * _FLOAT64 + norm_bound * _FLOAT32


def top_up(min_noise: float, share: float, honest: int) -> float:
    """Multiplier of the own share with which ``honest`` shares, all others ``share``, have ``min_noise`` or more.

    >>> round(top_up(3.0, 2.0, 2), 6), top_up(2.0, 2.0, 2)
    (2.236068, 2.0)
    """
    lacking = min_noise**2 - (honest - 1) * share**2
    return max(share, math.nextafter(math.sqrt(lacking), math.inf)) if lacking > share**2 else share


def coordinate_divergence(std: float, shares: int) -> float:
    """Bound of KL(sum of up to ``shares`` discrete Gaussians || rounded Gaussian of variance V - 1/12), one coordinate.

    Each has standard deviation ``std`` >= 8 or more; V is the sum of their variances. README.md has the proof:
    2 (1.5e-4 / std^8 + 3 eta), eta = 5 (shares - 1) exp(-pi^2 std^2), with std for the sum's (larger) deviation.
    """
    if not std >= MIN_STD:
        raise PrivacyError(f"standard deviation {std} of a share, want {MIN_STD:g} or more")
    eta = 5 * (shares - 1) * math.exp(-((math.pi * std) ** 2))
    return 2 * (1.5e-4 / std**8 + 3 * eta)
