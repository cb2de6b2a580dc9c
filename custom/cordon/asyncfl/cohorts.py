"""The coordinator of one asynchronous masked job: who finished, which cohorts form, what becomes of their sums.

Pure, as ``Coordinator``; of secure aggregation itself (``cordon.secagg``) it knows only how a cohort ended. A site that
says it is ready keeps its update and waits in the pool. Two modes (README.md)::

    sum      a cohort = the ``buffer`` sites that are ready longest; its mean is one version:  W += ServerOpt(mean)
    groups   a cohort = a whole group of the job's map; its mean is one row in a buffer of ``buffer`` distinct groups:
             W += ServerOpt( R(means, P) ),  P_g = sum of p over the group's survivors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cordon.asyncfl.pool import ReadyPool
from cordon.asyncfl.records import Version
from cordon.asyncfl.versions import Aggregator
from cordon.errors import ConfigError
from cordon.job import ControllerArgs, Groups
from cordon.messages import DPEvent
from cordon.params import Vector


class MaskedCoordinator(ReadyPool):
    """State machine of one masked job; arguments as ``Tickets``. Where ``args.masked.groups`` is set, nobody gets a
    ticket before ``draw``.

    Args:
        rule: over group means (rows sorted by group) and their weights; not used in sum mode, where nothing is mixed.
    """

    def __init__(
        self,
        args: ControllerArgs,
        sites: Sequence[str],
        weights: Mapping[str, float],
        initial: Vector,
        layout_digest: str,
        *,
        dp_event: DPEvent,
        rule: Aggregator | None = None,
    ) -> None:
        masked, wanted = args.masked, args.buffer
        if masked is None:
            raise ConfigError("a masked job wants the arguments masked")
        if masked.groups is not None:
            wanted *= masked.groups.size
            if rule is None:
                raise ConfigError("masked groups want a rule over group means")
        elif args.rule != "weighted_mean" or args.pre_aggregation or args.rule_args:
            raise ConfigError("a masked sum has no rule: only the weighted_mean, without arguments or steps before it")
        if len(sites) < wanted:
            raise ConfigError(f"the job wants {wanted} sites or more, got {len(sites)}")
        super().__init__(args, masked, sites, weights, initial, layout_digest, dp_event=dp_event, rule=rule)
        self._groups: tuple[tuple[str, ...], ...] = ()
        self._group_of: dict[str, int] = {}

    # -- groups -------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The group map; empty before ``draw`` and in sum mode."""
        return self._groups

    @property
    def stopped(self) -> dict[int, str]:
        """Groups that never open again, and why."""
        return {group: why for group in range(len(self._groups)) if (why := self._stopped(group))}

    def draw(self, groups: Sequence[Sequence[str]]) -> None:
        """The job's group map (``secagg.groups``), once, before the first ticket. A site outside it gets no ticket.

        Raises:
            ConfigError: not a groups job, drawn before, a group that is too small, a stranger or a site twice, or fewer
                groups than a version wants.
        """
        if self._masked.groups is None or self._groups:
            raise ConfigError("a group map is drawn once, in a job with groups")
        size, flat = self._masked.groups.size, [site for group in groups for site in group]
        for site in flat:
            self._known(site)
        if len(set(flat)) != len(flat) or any(len(group) < size for group in groups) or len(groups) < self.args.buffer:
            sizes = ", ".join(str(len(group)) for group in groups)
            raise ConfigError(f"want {self.args.buffer} disjoint groups of {size} or more, got sizes {sizes or 'none'}")
        self._groups = tuple(tuple(sorted(group)) for group in groups)
        self._group_of = {site: index for index, group in enumerate(self._groups) for site in group}

    # -- versions -----------------------------------------------------------------------------------------------

    def ready_to_apply(self) -> bool:
        """Whether an opened sum, or a full buffer of groups, waits to be applied."""
        return len(self._opened) >= (1 if self._masked.groups is None else self.args.buffer)

    def apply(self) -> Version:
        """Make the next version: of the sum that opened first, or of the full buffer of groups."""
        if not self.ready_to_apply():
            raise ConfigError(f"nothing to apply: {len(self._opened)} sums are opened")
        if self._masked.groups is None:
            first = self._opened.pop(0)
            self._leave(first.staleness, None)
            step_norm = self._versions.add(first.mean)
            return Version(self.version, tuple(first.staleness), tuple(first.staleness.values()), step_norm)
        entries = sorted(self._opened, key=lambda each: each.group or 0)
        self._opened = []
        for each in entries:
            self._leave(each.staleness, each.group)
        members = sorted((site, tau) for each in entries for site, tau in each.staleness.items())
        groups = tuple(each.group or 0 for each in entries)
        aggregate, divergence = self._versions.mix(
            [each.mean for each in entries],
            [sum(self._weights[site] for site in each.staleness) for each in entries],
            [f"group {group}" for group in groups],
        )
        del entries
        step_norm = self._versions.add(aggregate)
        sites, taus = tuple(site for site, _ in members), tuple(tau for _, tau in members)
        return Version(self.version, sites, taus, step_norm, groups, divergence)

    def finished(self) -> str | None:
        """Why the job is over, or None while it goes on."""
        if self.version >= self.args.versions:
            return f"all {self.args.versions} versions made"
        plan = self._masked.groups
        return self._sum_finished() if plan is None else self._groups_finished(plan)

    # -- internals ----------------------------------------------------------------------------------------------

    def _goes(self, site: str) -> bool:
        if self._masked.groups is None:
            return True
        return site in self._group_of and not self._over(self._group_of[site])

    def _held(self, site: str) -> bool:
        """A whole group waits while its cohort is at work and until its mean was applied: one say per buffer."""
        return site in self._group_of and self._group_of[site] in self._busy

    def _next(self) -> tuple[int | None, tuple[str, ...]]:
        if self._masked.groups is not None:
            return self._next_group()
        planned = self.version + len(self._cohorts) + len(self._opened)
        if planned >= self.args.versions or len(self._pool) < self.args.buffer or self._over(None):
            return None, ()
        return None, tuple(sorted(list(self._pool)[: self.args.buffer]))

    def _next_group(self) -> tuple[int | None, tuple[str, ...]]:
        place = {site: index for index, site in enumerate(self._pool)}
        complete: list[tuple[int, int, tuple[str, ...]]] = []
        for group, members in enumerate(self._groups):
            if group in self._busy or self._over(group):
                continue
            here = tuple(site for site in members if site in place)
            missing = any(site not in place and self._coming(site) for site in members)
            if not missing and self._enough(len(here)):
                complete.append((max(place[site] for site in here), group, here))
        if not complete:
            return None, ()
        _, group, sites = min(complete)
        return group, sites

    def _sum_finished(self) -> str | None:
        if self._cohorts or self._opened:
            return None
        if self._over(None):
            return f"{self.aborts[None]} cohorts one after another opened nothing"
        able = sum(site in self._pool or self._coming(site) for site in self.sites)
        if able < self.args.buffer:
            return f"{able} sites can still contribute, a cohort wants {self.args.buffer}"
        return None

    def _groups_finished(self, plan: Groups) -> str | None:
        wanted = f"a version wants {self.args.buffer} (f = {plan.f}: at least {2 * plan.f + 1})"
        if not self._groups:
            live = sum(state == "live" for state in self.state.values())
            if live // plan.size < self.args.buffer:
                return f"{live} sites give {live // plan.size} groups of {plan.size}, {wanted}"
            return None
        able = {group: self._able(group) for group in range(len(self._groups))}
        left = [group for group, sites in able.items() if group in self._busy or self._enough(sites)]
        if len(left) >= self.args.buffer:
            return None
        short = [
            f"group {group}: {self._stopped(group) or f'{sites} of its sites can contribute now'}"
            for group, sites in able.items()
            if group not in left
        ]
        return f"{len(left)} of {len(able)} groups can still open, {wanted}; {'; '.join(short)}"

    def _able(self, group: int) -> int:
        """How many sites of ``group`` can be in its next cohort, as things stand; 0 if it was stopped."""
        if self._over(group):
            return 0
        return sum(site in self._pool or self._coming(site) for site in self._groups[group])

    def _stopped(self, group: int) -> str:
        """Why ``group`` never opens again, '' while it may."""
        if group in self._busy:
            return ""
        if self._over(group):
            return f"{self.aborts[group]} of its cohorts opened nothing"
        members = self._groups[group]
        left = sum(self._may_come(site) for site in members)
        return "" if self._enough(left) else f"{left} of its {len(members)} sites are left, {self._masked.u_min} wanted"
