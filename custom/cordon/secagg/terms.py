"""What the parties of a masked job agree on before any of them speaks: terms, what is feasible, what a site accepts.

Symbols (README.md): K sites in a cohort, threshold t, survivors U,
u_min = the least of them that a sum may show, c = sites that may collude with the coordinator, N sites in the job,
g = least size of a group, f = sites that may lie, s(tau) = weight of an update that is tau versions late.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cordon import staleness
from cordon.documents import body_of
from cordon.errors import ConfigError
from cordon.job import ControllerArgs, Groups, Job, Masked, Staleness, threshold
from cordon.messages import DPEvent
from cordon.params import Layout
from cordon.secagg import fixedpoint
from cordon.secagg.groups import GroupMap
from cordon.secagg.groups import digest as map_digest
from cordon.secagg.wire import MAX_COHORT


def collusion_bound(members: int, t: int, u_min: int) -> int:
    """The most colluders that K, t and u_min bear: min(2t - K - 1, u_min - 2).

    2t - K > c, or the coordinator gets t shares of both secrets of one site; u_min - c >= 2, or an opened sum less the
    colluders' own updates is one site's.
    """
    return min(2 * t - members - 1, u_min - 2)


@dataclass(frozen=True)
class Terms:
    """Terms of every cohort of one job; all of them go into ``ctx``, so parties that differ get noise and no sum.

    Attributes:
        study: digest of the study contract.
        job: id of this run of the job.
        mode: ``sum`` (a cohort makes a version) or ``groups`` (a cohort is a whole group of the group map).
        clip: bound of every coordinate of an update before weighting.
        size: d, parameters of the model.
        members: K of every cohort in mode ``sum``, 0 for any: fewer than planned would leave less noise in the sum
            than the plan was priced at.
        weights: site -> public weight p > 0 of the study contract.
        noise: standard deviation of one site's share of distributed noise, in model units; 0 where none is drawn.
        groups: the group map (sorted sites of each group), None in mode ``sum``.
        max_staleness: versions that a base may be behind the cohort's.
    """

    study: str
    job: str
    mode: Literal["sum", "groups"]
    u_min: int
    c: int
    ring_bits: Literal[32, 64]
    clip: float
    size: int
    weights: Mapping[str, float]
    staleness: Staleness
    layout_digest: str
    dp_event: DPEvent
    noise: float = 0.0
    group_map_digest: str = ""
    groups: GroupMap | None = None
    max_staleness: int = 10
    members: int = 0

    def __post_init__(self) -> None:
        if (self.mode == "groups") != (self.groups is not None):
            raise ConfigError('a group map belongs to mode "groups", and to no other')
        if self.group_map_digest != ("" if self.groups is None else map_digest(self.groups)):
            raise ConfigError("group_map_digest is not that of the groups")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights.values()):
            raise ConfigError("weights must be finite and over 0")
        if self.size < 1 or not (math.isfinite(self.clip) and self.clip > 0) or not 0 <= self.noise < math.inf:
            raise ConfigError(f"want size >= 1, clip > 0, noise >= 0; got {self.size}, {self.clip}, {self.noise}")

    def threshold(self, members: int) -> int:
        """t for a cohort of ``members``."""
        return threshold(members, self.c)

    def least(self, members: int) -> int:
        """max(t, u_min): fewer sites are neither masked over nor opened."""
        return max(self.threshold(members), self.u_min)

    def ring(self, members: int) -> fixedpoint.Ring:
        """The fixed point of a cohort of ``members``: no sum of theirs overflows."""
        return fixedpoint.choose(self.ring_bits, members, self.clip, self.noise)

    def weight(self, site: str, sites: Iterable[str]) -> float:
        """w = p / max p over the cohort's ``sites``, in (0, 1]: what the opened sum is divided by, added over U."""
        return self.weights[site] / max(self.weights[other] for other in sites)

    def factor(self, site: str, tau: int, sites: Iterable[str]) -> float:
        """w s(tau): what ``site`` multiplies its update by, in (0, 1]."""
        return max(self.weight(site, sites) * staleness.weight(tau, self.staleness), sys.float_info.min)

    def body(self) -> dict[str, Any]:
        """All of it as JSON values, for ``ctx``."""
        body = {**asdict(self), "staleness": body_of(self.staleness), "dp_event": body_of(self.dp_event)}
        body["weights"] = dict(self.weights)
        body["groups"] = None if self.groups is None else [list(group) for group in self.groups]
        return body


def terms_of(
    job: Job,
    study_digest: str,
    job_id: str,
    weights: Mapping[str, float],
    layout: Layout,
    dp_event: DPEvent,
    noise: float = 0.0,
    groups: GroupMap | None = None,
) -> Terms:
    """The terms of ``job`` as a site and the coordinator both make them from the same public files.

    An update's L2 norm is at most ``norm_bound``, so no coordinate is over it: that is the fixed point's clip.

    Args:
        weights: site -> p for all sites of the study contract.
        groups: the map that ``groups.draw`` gave, in groups mode.
    """
    args = job.controller
    masked = _masked(args)
    return Terms(
        study=study_digest,
        job=job_id,
        mode="sum" if masked.groups is None else "groups",
        u_min=masked.u_min,
        c=masked.c,
        ring_bits=masked.ring_bits,
        clip=args.norm_bound,
        size=layout.size,
        weights=dict(weights),
        staleness=args.staleness,
        layout_digest=layout.digest,
        dp_event=dp_event,
        noise=noise,
        group_map_digest="" if groups is None else map_digest(groups),
        groups=groups,
        max_staleness=args.max_staleness,
        members=args.buffer if masked.groups is None else 0,
    )


def check_feasible(args: ControllerArgs, sites: int) -> None:
    """Raise ConfigError with every inequality that a masked job of ``sites`` sites breaks; None if it can run."""
    masked = _masked(args)
    fails = _sum(args, masked, sites) if masked.groups is None else _groups(args, masked, masked.groups, sites)
    if fails:
        raise ConfigError(f"this masked job cannot run with {sites} sites: " + "; ".join(fails))


def trust(args: ControllerArgs, sites: int) -> str:
    """Whom a masked job of ``sites`` sites has to trust and whom not: one paragraph for the report."""
    masked = _masked(args)
    if masked.groups is None:
        least = max(threshold(args.buffer, masked.c), masked.u_min)
        learns = f"the sum of at least {least} of {args.buffer} updates per version"
        lies = (
            "Robustness: no protection against a lying site. One that sends poison moves the model as far as it likes, "
            "and one that breaks the protocol can end a cohort."
        )
    else:
        low, high = _group_sizes(masked.groups, sites)
        least = max(threshold(low, masked.c), masked.u_min)
        of = f"{low}" if low == high else f"{low} to {high}"
        learns = f"one sum per group and version, of at least {least} of the group's {of} updates"
        lies = (
            f"Robustness: the rule {args.rule} over the means of at least {args.buffer} groups bears "
            f"{masked.groups.f} lying {'site' if masked.groups.f == 1 else 'sites'} in all; each can spoil or stop its "
            "own group, unattributed. Beyond that, nothing is promised."
        )
    noise = (
        "Noise is distributed: each site draws a share that protects its patients alone less than the sum does."
        if masked.distributed
        else "Each site's own noise protects its patients even from a coordinator that breaks all of this."
    )
    return (
        f"Masked {'sum' if masked.groups is None else 'groups'}. Privacy: the coordinator is not trusted. It learns "
        f"{learns} and no single update, even if it is malicious and {_sites(masked.c)} collude{'s' * (masked.c == 1)} "
        f"with it: less what those put in, it is a sum of at least {least - masked.c} others'. Against more, "
        f"and for what many overlapping cohorts show together, there is differential privacy only. {noise} {lies}"
    )


# -- inequalities ----------------------------------------------------------------------------------------------------


def _sites(count: int) -> str:
    return "1 site" if count == 1 else f"{count} sites"


def _masked(args: ControllerArgs) -> Masked:
    if args.masked is None:
        raise ConfigError(f'privacy mode is "{args.privacy}", want "masked"')
    return args.masked


def _group_sizes(wanted: Groups, sites: int) -> tuple[int, int]:
    """Sizes of the smallest and the largest group: floor(N / g) groups, who is left over spread among them."""
    count = max(sites // wanted.size, 1)
    return sites // count, -(-sites // count)


def _cohort(size: int, masked: Masked, away: int, norm_bound: float) -> list[str]:
    """What a cohort of ``size`` sites, ``away`` of which may drop out, breaks."""
    fails = []
    t = threshold(size, masked.c)
    least = max(t, masked.u_min)
    if masked.c > 2 * t - size - 1:
        fails.append(f"c = {masked.c} > 2t - K - 1 = {2 * t - size - 1} (K = {size}, t = {t})")
    if least + away > size:
        fails.append(f"K = {size} < max(t, u_min) + drop_outs = max({t}, {masked.u_min}) + {away} = {least + away}")
    if size > MAX_COHORT:
        fails.append(f"K = {size} > {MAX_COHORT} sites in one cohort")
    try:
        fixedpoint.choose(masked.ring_bits, size, norm_bound)
    except ConfigError as error:
        fails.append(str(error))
    return fails


def _collusion(masked: Masked) -> list[str]:
    if masked.c > masked.u_min - 2:
        return [f"c = {masked.c} > u_min - 2 = {masked.u_min - 2}"]
    return []


def _sum(args: ControllerArgs, masked: Masked, sites: int) -> list[str]:
    fails = _collusion(masked)
    if args.buffer > sites:
        fails.append(f"buffer = {args.buffer} > N = {sites} sites")
    fails += _cohort(args.buffer, masked, 0, args.norm_bound)
    if args.rule != "weighted_mean":
        fails.append(f"rule = {args.rule}: one sum gives a weighted_mean and no other rule")
    if args.pre_aggregation:
        fails.append(
            f"pre_aggregation has {len(args.pre_aggregation)} steps: one sum leaves nothing to work on, want 0"
        )
    return fails


def _groups(args: ControllerArgs, masked: Masked, wanted: Groups, sites: int) -> list[str]:
    fails = _collusion(masked)
    count, f, may_stop = sites // wanted.size, wanted.f, wanted.may_stop
    # The drawn groups are at least as large as asked for; the smallest and the largest must both work.
    for size in sorted({wanted.size, *(_group_sizes(wanted, sites) if count else ())}):
        fails += [f"group of {size}: {fail}" for fail in _cohort(size, masked, wanted.drop_outs, args.norm_bound)]
    need = 2 * f + 1 + may_stop
    if count < need:
        fails.append(f"floor(N/g) = floor({sites}/{wanted.size}) = {count} groups < 2f + 1 + may_stop = {need}")
    if args.buffer < 2 * f + 1:
        fails.append(f"buffer = {args.buffer} < 2f + 1 = {2 * f + 1} groups")
    if args.buffer > count - may_stop:
        fails.append(f"buffer = {args.buffer} > floor(N/g) - may_stop = {count - may_stop} groups")
    if args.rule == "weighted_mean" and f > 0:
        fails.append(f"rule = weighted_mean bears f = 0 lying sites < f = {f}")
    return fails
