"""The cohorts of a masked job at the coordinator: each is driven from its roster to its sum, all at the same time.

A stage ends when everybody was heard that it waits for, or ``masked.stage_timeout_s`` after it began. Who is lost by
then is lost to its cohort; what it sends later is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from cordon import signing
from cordon.asyncfl.records import Cohort
from cordon.errors import ProtocolAbort, SignatureError, UpdateRejected
from cordon.flare.admission import Peer
from cordon.secagg.server import Aggregation
from cordon.secagg.wire import Ticket
from cordon.signing import PublicKey

if TYPE_CHECKING:
    from cordon.flare.masked_run import MaskedMode

SignedTicket = tuple[Ticket, dict[str, Any], PublicKey]
"""(ticket, its envelope, the key that signed it)."""

ANSWER_OF = {"shares": "shares", "masked": "masked", "confirm": "confirmation", "unmask": "unmask"}
"""Stage -> part of the answer."""


@dataclass
class CohortRun:
    """One cohort at work. Times are monotonic seconds."""

    cohort: Cohort
    aggregation: Aggregation
    deadline: float
    faults: int = 0  # of ``aggregation.faults``, how many were counted


class CohortRuns:
    """All of them, by id."""

    def __init__(self, mode: MaskedMode) -> None:
        self._mode, self._timeout = mode, mode.masked.stage_timeout_s
        self._runs: dict[str, CohortRun] = {}

    def of(self, site: str) -> CohortRun | None:
        """The cohort at work that ``site`` is in."""
        return next((each for each in self._runs.values() if site in each.cohort.sites), None)

    def start(self, cohort: Cohort, tickets: Mapping[str, SignedTicket], now: float) -> None:
        """Send its roster to everybody in ``cohort``."""
        run = self._mode.run
        group, sites = cohort.group, list(cohort.sites)
        run.log.write("cohort", cohort=cohort.id, group=group, sites=sites, least=cohort.least)
        try:
            aggregation = Aggregation(self._mode.terms_now(), cohort.id, cohort.version, tickets, run.keys.signing_key)
        except ProtocolAbort as error:
            self._end(cohort, "roster", error, ())
            return
        self._runs[cohort.id] = CohortRun(cohort, aggregation, 0.0)
        self._send(self._runs[cohort.id], now)

    def take(self, peer: Peer, parts: dict[str, Any], payload: bytes, now: float) -> None:
        """An answer of ``peer``. One to a stage or a cohort that is over changes nothing."""
        each = self.of(peer.name)
        part = "" if each is None else ANSWER_OF.get(each.aggregation.stage, "")
        if each is None or part not in parts or _ctx(parts[part]) != each.aggregation.view.ctx:
            self._mode.run.flare.info(f"{peer.name} answers a stage of secure aggregation that is over: ignored")
            return
        try:
            each.aggregation.take(peer.name, parts[part], payload, now=datetime.now(UTC))
        except ProtocolAbort as error:
            if error.code == "out_of_order":
                self._mode.run.flare.info(f"{peer.name} answers stage {each.aggregation.stage} twice: ignored")
            elif not error.blame:
                rejected = UpdateRejected("bad_secagg", f"{error.code}: {error.detail}; no fault")
                self._mode.run.rejected(peer, rejected, each.cohort.id)
        self._go_on(each, now)

    def lost(self, site: str, now: float) -> None:
        """``site`` is not there any more."""
        if (each := self.of(site)) is not None:
            each.aggregation.lost(site)
            self._go_on(each, now)

    def step(self, now: float) -> None:
        """Close the stages whose time is over."""
        for each in list(self._runs.values()):
            self._go_on(each, now)

    # -- one cohort --------------------------------------------------------------------------------------------------

    def _go_on(self, each: CohortRun, now: float) -> None:
        """As far as it can go now."""
        while each.cohort.id in self._runs and (each.aggregation.complete or now >= each.deadline):
            self._count_faults(each)
            stage, masked_by = each.aggregation.stage, each.aggregation.masked_by
            try:
                each.aggregation.advance(datetime.now(UTC))
            except ProtocolAbort as error:
                del self._runs[each.cohort.id]
                self._count_faults(each)
                self._end(each.cohort, stage, error, masked_by)
                return
            if each.aggregation.stage == "opened":
                del self._runs[each.cohort.id]
                self._open(each, masked_by, now)
            else:
                self._send(each, now)
        self._count_faults(each)

    def _send(self, each: CohortRun, now: float) -> None:
        aggregation = each.aggregation
        each.deadline = now + self._timeout
        for site in aggregation.waiting:
            parts = {"stage": aggregation.stage, "cohort": each.cohort.id, "message": aggregation.message(site)}
            if aggregation.stage == "shares":
                parts["links"] = self._mode.run.links(site, each.cohort.version)
            self._mode.send(site, parts)

    def _open(self, each: CohortRun, masked_by: tuple[str, ...], now: float) -> None:
        cohort, opened = each.cohort, each.aggregation.result()
        self._mode.run.log.write(
            "opened",
            cohort=cohort.id,
            group=cohort.group,
            survivors=list(opened.survivors),
            norm=float(np.linalg.norm(opened.mean.astype(np.float64))),
            seconds=now - cohort.formed_at,
        )
        self._mode.run.apply()  # where the buffer of groups is full
        unspent = set(cohort.sites) - set(masked_by) - set(opened.survivors)
        self._mode.state.opened(cohort.id, opened.survivors, opened.mean, unspent=unspent)

    def _end(self, cohort: Cohort, stage: str, error: ProtocolAbort, spent: tuple[str, ...]) -> None:
        why = str(error)
        self._mode.run.log.write(
            "aborted", cohort=cohort.id, group=cohort.group, stage=stage, reason=why, spent=list(spent)
        )
        self._mode.run.flare.warning(f"cohort {cohort.id} ends in stage {stage}: {why}")
        self._mode.state.aborted(cohort.id, spent, why)

    def _count_faults(self, each: CohortRun) -> None:
        """What signed messages prove against a site."""
        found = each.aggregation.faults
        while each.faults < len(found):
            fault = found[each.faults]
            each.faults += 1
            peer = self._mode.run.peers[fault.site]
            self._mode.run.fault(peer, UpdateRejected("bad_secagg", f"{fault.code}: {fault.detail}"), each.cohort.id)


def _ctx(envelope: Any) -> Any:
    """The cohort that an answer says it is of; an answer without is of none."""
    try:
        return signing.unverified_body(envelope).get("ctx")
    except SignatureError:
        return None
