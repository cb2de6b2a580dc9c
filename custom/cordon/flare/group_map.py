"""Drawing the group map at the coordinator, before the first ticket: commit, reveal, map (``cordon.secagg.groups``).

Who has not committed at the deadline is not in the map, and out of the job. Who committed must reveal: there is no
second draw, for whoever could ask for one would choose among maps.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cordon.errors import ProtocolAbort, UpdateRejected
from cordon.flare import plan
from cordon.flare.admission import Peer
from cordon.secagg.groups import CoordinatorDraw, GroupMap
from cordon.secagg.groups import digest as map_digest

if TYPE_CHECKING:
    from cordon.flare.masked_run import MaskedMode

COHORT = "group-map"
"""What refusals and messages name where others name a cohort."""

ANSWER_OF = {"commit": "commit", "reveal": "reveal", "map": "map"}
"""Stage -> part of the answer."""


class GroupMapRun:
    """One draw. ``stage``: "commit", "reveal", "map", then "drawn"; or "ended", and ``why`` the job is over."""

    def __init__(self, mode: MaskedMode, sites: tuple[str, ...], size: int, now: float) -> None:
        run = mode.run
        self.stage = "commit"
        self.why: str | None = None
        self.groups: GroupMap | None = None
        self._mode, self._timeout = mode, mode.masked.stage_timeout_s
        self._waiting = set(sites)
        self._draw = CoordinatorDraw(
            study=run.kit.study.digest,
            job=run.job_id,
            sites=sites,
            size=size,
            signing_key=run.keys.signing_key,
            mtls_keys=mode.mtls_keys,
        )
        self._send(now, {})

    def take(self, peer: Peer, parts: dict[str, Any]) -> None:
        """An answer of ``peer``; one to another stage, or a second one, changes nothing."""
        part = ANSWER_OF.get(self.stage, "")
        if part not in parts or peer.name not in self._waiting:
            self._mode.run.flare.info(f"{peer.name} answers a stage of the group map that is over")
            return
        peer.evidence = None
        if self.stage == "map":
            if self.groups is None or parts["map"] != map_digest(self.groups):
                self._mode.run.lose(peer.name, "it draws another group map")  # it can take part in no cohort
                return
        else:
            try:
                self._draw.take(peer.name, parts[part], datetime.now(UTC))
            except ProtocolAbort as error:
                fault = UpdateRejected("bad_secagg", f"{error.code}: {error.detail}")
                (self._mode.run.fault if error.blame == peer.name else self._mode.run.rejected)(peer, fault, COHORT)
                return
        self._waiting.discard(peer.name)

    def gone(self, site: str) -> None:
        """``site`` said no, is lost or out: it is not waited for in a stage that can do without it."""
        if self.stage in ("commit", "map"):
            self._waiting.discard(site)

    def step(self, now: float) -> None:
        """The next stage, once everybody was heard or the time is over."""
        if self.stage in ("drawn", "ended") or (self._waiting and now < self._deadline):
            return
        try:
            if self.stage == "commit":
                self._committed(now)
            elif self.stage == "reveal":
                self._revealed(now)
            else:
                self._accepted()
        except ProtocolAbort as error:
            self.stage, self.why = "ended", f"no group map: {error}"

    def _committed(self, now: float) -> None:
        missing = set(self._draw.waiting)
        for site in sorted(missing):
            self._mode.leave(site, "no commitment to the group map in time")
        message = self._draw.commits(datetime.now(UTC))
        self.stage, self._waiting = "reveal", set(self._draw.waiting)
        plan.check_groups(self._mode.run.job, (tuple(self._waiting),))  # too few are left: nobody needs to reveal
        self._send(now, message)

    def _revealed(self, now: float) -> None:
        message = self._draw.reveals()
        groups = self._draw.groups
        if groups is None:
            raise ProtocolAbort("bad_group_map", "nothing was drawn")
        self._mode.drawn(groups)
        self.groups, self.stage, self._waiting = groups, "map", {site for group in groups for site in group}
        self._send(now, message)

    def _accepted(self) -> None:
        for site in sorted(self._waiting):
            self._mode.leave(site, "it has not taken the group map in time")
        self.stage = "drawn"

    def _send(self, now: float, message: dict[str, Any]) -> None:
        self._deadline = now + self._timeout
        for site in sorted(self._waiting):
            self._mode.send(site, {"stage": self.stage, "cohort": COHORT, "message": message})
