"""Masked mode at the coordinator: it learns which sites are ready, and of their updates the sums that cohorts open."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cordon import messages
from cordon.asyncfl.cohorts import MaskedCoordinator
from cordon.errors import ConfigError, ProtocolAbort, SignatureError, UpdateRejected
from cordon.flare import aggregation, codec, group_map, plan
from cordon.flare.admission import Peer
from cordon.flare.cohort_runs import CohortRuns, SignedTicket
from cordon.flare.executors import SECAGG_TASK
from cordon.flare.group_map import GroupMapRun
from cordon.flare.masked_site import SPENT
from cordon.flare.mode import RETRY_S
from cordon.flare.session import MENDABLE
from cordon.params import Vector
from cordon.secagg import roster, wire
from cordon.secagg.groups import GroupMap
from cordon.secagg.groups import digest as map_digest
from cordon.secagg.terms import Terms, trust
from cordon.signing import PublicKey

if TYPE_CHECKING:
    from cordon.flare.run import Run

ABORTED = "cohort_aborted"


class MaskedMode:
    """What ``Run`` asks of this mode. ``state``: the state machine; ``run``: whose mode it is."""

    answer = "ready"

    def __init__(self, run: Run) -> None:
        args, study = run.job.controller, run.kit.study
        if args.masked is None:
            raise ConfigError(f"job {run.job.name} is not masked")
        self.run, self.masked = run, args.masked
        self.trust = trust(args, len(study.roster))
        self.max_payload = args.masked.ring_bits // 8 * run.layout.size
        self.mtls_keys = {hospital.name: hospital.mtls_key for hospital in study.roster}
        self.cohorts = CohortRuns(self)
        self._map: GroupMapRun | None = None
        # In groups there are none before the map.
        self._terms = None if args.masked.groups else plan.terms(study, run.job, run.job_id, run.layout, None)
        self._tickets: dict[str, SignedTicket] = {}  # site -> the newest

    def new_state(self, sites: Sequence[str], weights: Mapping[str, float], initial: Vector) -> MaskedCoordinator:
        """The state machine of a job that begins; ConfigError where it cannot work with the sites that are there."""
        job = self.run.job
        plan.check_job(job, len(sites))
        self.state = MaskedCoordinator(
            job.controller,
            sites,
            weights,
            initial,
            self.run.layout.digest,
            dp_event=plan.round_event(job),
            rule=None if self.masked.groups is None else aggregation.of(job.controller),
        )
        return self.state

    def go_on(self, state: MaskedCoordinator) -> None:
        """With the state machine of a process that died; a group map stands with the keys of the one that drew it."""
        if self.masked.groups is not None:
            raise ConfigError("a job with masked groups does not go on in a new process: its sites drew no map with it")
        self.state = state

    @property
    def terms(self) -> dict[str, Any]:
        """As ``report.events.MaskedTerms`` has them; the threshold is that of a cohort in full number."""
        masked, groups = self.masked, self.masked.groups
        cohort = self.run.job.controller.buffer if groups is None else groups.size
        return {
            "cohort": cohort,
            "threshold": masked.threshold(cohort),
            "u_min": masked.u_min,
            "c": masked.c,
            "ring_bits": masked.ring_bits,
            "distributed": masked.distributed,
            "group_size": None if groups is None else groups.size,
            "f": None if groups is None else groups.f,
        }

    @property
    def open(self) -> bool:
        """Tickets are given out once the map, if there is one, is everybody's."""
        return self.masked.groups is None or (self._map is not None and self._map.stage == "drawn")

    @property
    def full(self) -> bool:
        """Whether the next version can be made."""
        return self.state.ready_to_apply()

    @property
    def ended(self) -> str | None:
        """A map that was not drawn ends the job."""
        return None if self._map is None else self._map.why

    # -- messages of sites -------------------------------------------------------------------------------------------

    def judge(self, peer: Peer, key: PublicKey, parts: dict[str, Any], payload: bytes, now: datetime) -> None:
        """A ready ticket, or an answer in secure aggregation.

        Raises:
            SignatureError: a ticket that ``key``, which ``peer`` attested, did not sign; or none of these messages.
        """
        if "met" in parts:
            peer.evidence = None
        elif "ready" in parts:
            self._ready(peer, key, parts["ready"], now)
        elif self._map is not None and self._map.stage not in ("drawn", "ended"):
            self._map.take(peer, parts)
        elif not {"commit", "reveal", "map"}.isdisjoint(parts):
            self.run.flare.info(f"{peer.name} answers for a group map that is drawn: ignored")
        else:
            self.cohorts.take(peer, parts, payload, time.monotonic())

    def _ready(self, peer: Peer, key: PublicKey, envelope: Any, now: datetime) -> None:
        run = self.run
        try:
            said = wire.verify(envelope, wire.Ticket, key, now)
        except ProtocolAbort as error:
            raise SignatureError(error.detail) from error
        if said.job != run.job_id or said.site != peer.name:
            run.fault(peer, UpdateRejected("bad_header", "the ticket is of another job or site"), said.ticket)
            return
        if (ticket := run.answered(peer, said.ticket)) is None:
            return
        try:
            run.ledger_heads.check(run.kit.study.hospital(peer.name), said.ledger, now)
            _, certified = roster.read_ticket(envelope, self.terms_now(), self.mtls_keys, now)
            if certified != key:
                raise ProtocolAbort("bad_roster", "the certified key is not the one that the site attested")
        except UpdateRejected as error:
            run.fault(peer, error, said.ticket)
            return
        except ProtocolAbort as error:
            run.fault(peer, UpdateRejected("bad_secagg", f"{error.code}: {error.detail}"), said.ticket)
            return
        try:
            accepted = self.state.ready(peer.name, said)
        except UpdateRejected as error:
            run.rejected(peer, error, said.ticket)
            return
        self._tickets[peer.name] = (said, envelope, key)
        peer.evidence, peer.version = None, max(peer.version, said.base_version)
        run.log.write(
            "ready",
            site=peer.name,
            ticket=said.ticket,
            base_version=said.base_version,
            staleness=accepted.staleness,
            seconds=time.monotonic() - ticket.issued_at,
        )

    def refused(self, peer: Peer, refusal: messages.Refusal) -> bool:
        """Refusals that end a cohort or a ticket for a site, and not its part in the job."""
        if refusal.code == SPENT:
            self.run.flare.info(f"{peer.name} has masked the update that it is asked for: its ticket is used up")
            self.state.spent(peer.name, refusal.ticket)
            return True
        each = self.cohorts.of(peer.name)
        if refusal.code in MENDABLE and self._waits(peer.name):
            # It keeps its update: once it showed fresh evidence it is asked again, for this cohort too late.
            peer.ask_at = time.monotonic() + RETRY_S
            self.cohorts.lost(peer.name, time.monotonic())
            return True
        if refusal.code != ABORTED:
            return False
        self.run.flare.warning(f"{peer.name} does not go on with {refusal.ticket}: {ABORTED}")
        if refusal.ticket == group_map.COHORT and self._map is not None:
            self._map.gone(peer.name)
        elif each is not None and refusal.ticket == each.cohort.id:
            self.cohorts.lost(peer.name, time.monotonic())
        return True

    def admitted(self, peer: Peer) -> None:
        """A site that waits gets no model soon: this process's evidence reaches it by itself, while it is fresh."""
        if self._waits(peer.name):
            self.send(peer.name, {"stage": "meet", "cohort": ""})

    def lost(self, site: str) -> None:
        """To its cohort, and to the map."""
        if self._map is not None:
            self._map.gone(site)
        self.cohorts.lost(site, time.monotonic())

    # -- the clock ---------------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """The group map first; then cohorts: those at work, sites to be asked again, new ones."""
        run = self.run
        if self.masked.groups is not None and not self.open:
            self._draw(now)
            return
        at_work = (site for each in self.state.cohorts for site in each.sites)
        for site in (*self.state.pool, *self.state.unspent(), *at_work):
            if run.admission.renewal_due(run.peers[site], now):  # they wait, and their leases may end meanwhile
                run.challenge(run.peers[site])
        self.cohorts.step(now)
        for site in self.state.unspent():
            peer = run.peers[site]
            if peer.leased(now) and not peer.nonce and peer.ask_at is None:
                ticket = self.state.again(site, now)
                run.log.write("ticket", site=site, ticket=ticket.id, version=ticket.version)
                run.ask(peer)
        while (cohort := self.state.form(secrets.token_hex(16), now)) is not None:
            self.cohorts.start(cohort, {site: self._tickets[site] for site in cohort.sites}, now)

    def _draw(self, now: float) -> None:
        groups, run = self.masked.groups, self.run
        if groups is None or run.awaited:  # everybody who comes in time is in the map
            return
        if self._map is None:
            sites = tuple(
                name for name, peer in run.peers.items() if peer.leased(now) and self.state.state[name] == "live"
            )
            for name in run.peers.keys() - set(sites):
                if self.state.state[name] in ("live", "lost"):
                    self.leave(name, "not attested when the group map was drawn")
            self._map = GroupMapRun(self, sites, groups.size, now)
        self._map.step(now)

    def _waits(self, site: str) -> bool:
        """Whether ``site`` has an update ready, in the pool or in a cohort at work."""
        return site in self.state.pool or self.cohorts.of(site) is not None

    # -- what cohorts and the map ask for ----------------------------------------------------------------------------

    def terms_now(self) -> Terms:
        """Of every cohort; where there are groups, once the map is drawn."""
        if self._terms is None:
            raise ProtocolAbort("bad_group_map", "no group map is drawn yet")
        return self._terms

    def drawn(self, groups: GroupMap) -> None:
        """The map is this one."""
        run = self.run
        self.state.draw(groups)
        self._terms = plan.terms(run.kit.study, run.job, run.job_id, run.layout, groups)
        run.log.write("groups", groups=[list(group) for group in groups], digest=map_digest(groups))

    def leave(self, site: str, why: str) -> None:
        """``site`` is not in the map, so out of the job."""
        self.run.lose(site, f"{why}: out of this job")
        self.run.leave(site, ABORTED)

    def send(self, site: str, parts: dict[str, Any]) -> None:
        """A message of secure aggregation; with this process's evidence until the site's next ticket is answered.

        Not only until its next answer: that may be to a message from before there was this evidence.
        """
        peer = self.run.peers[site]
        if peer.evidence is not None:
            parts = {**parts, "evidence": peer.evidence}
        self.run.flare.send(SECAGG_TASK, codec.to_model(parts), site)
