"""Masked mode at a site: the group map, and one secure aggregation after another (``cordon.secagg``).

What must hold whatever the coordinator sends: an update is masked once; a cohort is joined with keys made for it; the
group map is drawn once; a site that lost more masked updates than its policy allows trains no more.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cordon import messages, signing
from cordon.errors import ConfigError, PrivacyError, ProtocolAbort, SignatureError
from cordon.flare import plan
from cordon.params import Layout
from cordon.secagg.certificates import certify
from cordon.secagg.client import Member
from cordon.secagg.groups import GroupMap, SiteDraw
from cordon.secagg.roster import View
from cordon.secagg.terms import Terms

if TYPE_CHECKING:
    from cordon.flare.session import Session

Answer = tuple[dict[str, Any], bytes]
"""(parts, payload) of a reply."""

SPENT, TOO_MANY_ABORTS = "update_spent", "too_many_aborts"
ANSWERS = ("ready", "commit", "reveal", "map", "shares", "masked", "confirmation", "unmask")
"""Parts of replies that leave within live leases only."""


class MaskedSite:
    """``aborts``: cohorts that ended with a masked update of this site in them. ``groups``: the map, once drawn."""

    def __init__(self, session: Session) -> None:
        kit, job = session.kit, session.job
        if job.controller.masked is None or kit.policy is None or kit.policy.masked is None:
            raise ConfigError(f"{kit.name}: neither job nor policy say how masked sums may open")
        self.aborts = 0
        self.groups: GroupMap | None = None
        self._session, self._asks, self._max_aborts = session, job.controller.masked, kit.policy.masked.max_aborts
        self._mtls_keys = {hospital.name: hospital.mtls_key for hospital in kit.study.roster}
        own = session.keys.signing_key.public_key()
        self._certificate = certify(kit.mtls_key, kit.study.digest, session.job_id, kit.name, own)
        self._draw: SiteDraw | None = None
        self._member: Member | None = None
        self._ticket = ""  # the coordinator's ticket that the newest member answered
        self._counted = False  # whether the newest cohort is counted in ``aborts``
        self._stages: dict[str, Callable[[dict[str, Any], datetime], Answer]] = {
            "meet": lambda parts, now: ({"met": True}, b""),
            "commit": self._commit,
            "reveal": self._reveal,
            "map": self._map,
            "shares": self._shares,
            "masked": self._masked,
            "confirm": self._confirm,
            "unmask": self._unmask,
        }

    def judge_noise(self) -> None:
        """PolicyRefused unless noise that is shared out is within the site's policy in this ring."""
        plan.judge_noise(self._session.kit, self._session.job, self._layout().size)

    def may_train(self) -> str:
        """'' if another round may begin, else the refusal's code.

        Raises:
            SignatureError: the job has groups and they are not drawn yet.
        """
        self._settle()
        if self._asks.groups is not None and self.groups is None:
            raise SignatureError("a ticket before the group map")
        return TOO_MANY_ABORTS if self.aborts > self._max_aborts else ""

    @property
    def spent(self) -> bool:
        """Whether the update that the session holds was masked: it is not masked again."""
        return self._member is not None and self._member.spent and self._holds_update()

    def ready(self, coordinator_key: signing.PublicKey) -> dict[str, Any]:
        """The signed ticket of the update that the session holds, with keys that were never used."""
        session = self._session
        trained = session.trained
        if trained is None or self.spent:
            raise SignatureError("there is no update to mask")
        header = trained.header
        self._settle()
        self._member, envelope = Member.ready(
            terms=self._terms(),
            site=session.kit.name,
            ticket=header.ticket,
            base_version=header.base_version,
            head=header.model_chain_head,
            ledger=None if session.data_key is None else session.data_key.ledger,
            signing_key=session.keys.signing_key,
            certificate=self._certificate,
            coordinator_key=coordinator_key,
            random=secrets.token_bytes,
        )
        self._ticket, self._counted = header.ticket, False
        return envelope

    def serve(self, parts: dict[str, Any], now: datetime) -> Answer:
        """The answer to one message of secure aggregation; the leases are the caller's to ask for, before and after.

        Raises:
            ProtocolAbort: what came does not allow this site to go on.
            SignatureError: no stage, or links that don't fit.
        """
        stage = self._stages.get(str(parts.get("stage")))
        if stage is None:
            raise SignatureError("the message names no stage of secure aggregation")
        return stage(parts, now)

    # -- the group map -----------------------------------------------------------------------------------------------

    def _commit(self, parts: dict[str, Any], now: datetime) -> Answer:
        session = self._session
        if self._asks.groups is None or self._draw is not None:
            raise ProtocolAbort("bad_group_map", "this job has no groups, or this site committed before")
        self._draw = SiteDraw(
            study=session.kit.study.digest,
            job=session.job_id,
            site=session.kit.name,
            size=self._asks.groups.size,
            signing_key=session.keys.signing_key,
            certificate=self._certificate,
            coordinator_key=session.require_coordinator().signing_key,
            mtls_keys=self._mtls_keys,
            random=secrets.token_bytes,
        )
        return {"commit": self._draw.commit()}, b""

    def _reveal(self, parts: dict[str, Any], now: datetime) -> Answer:
        return {"reveal": self._drawing().reveal(parts.get("message"), now)}, b""

    def _map(self, parts: dict[str, Any], now: datetime) -> Answer:
        drawing = self._drawing()
        if self.groups is not None:
            raise ProtocolAbort("bad_group_map", "the map of this job is drawn; there is no other")
        groups = drawing.groups(parts.get("message"), now)
        plan.check_groups(self._session.job, groups)
        self.groups = groups
        return {"map": self._terms().group_map_digest}, b""

    def _drawing(self) -> SiteDraw:
        if self._draw is None:
            raise ProtocolAbort("out_of_order", "this site has not committed to a contribution")
        return self._draw

    # -- a cohort ----------------------------------------------------------------------------------------------------

    def _shares(self, parts: dict[str, Any], now: datetime) -> Answer:
        session, message = self._session, parts.get("message")
        self._settle()
        version = signing.unverified_body(message).get("version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 0:
            raise SignatureError("the roster names no version")
        first = "" if session.chain.models else session.first_model()
        chain = session.chain.extend(parts.get("links"), version, first)
        member = self._current()
        envelope = member.shares(message, mtls_keys=self._mtls_keys, heads=chain.head, now=now)
        # What a site that holds the newest model of the cohort has signed is from now on the chain here too.
        newest = max(ticket.base_version for ticket in self._cohort(member).tickets.values())
        session.chain = chain.upto(max(newest, len(session.chain.heads) - 1))
        return {"shares": envelope}, b""

    def _masked(self, parts: dict[str, Any], now: datetime) -> Answer:
        member, trained, size = self._current(), self._session.trained, self._layout().size
        if trained is None or not self._holds_update():
            raise ProtocolAbort("out_of_order", "the update of this cohort's ticket is gone")
        delta = messages.unpack("delta", trained.plaintext, size)
        envelope, payload = member.masked(parts.get("message"), delta, self._noise(member), now)
        return {"masked": envelope}, payload

    def _confirm(self, parts: dict[str, Any], now: datetime) -> Answer:
        return {"confirmation": self._current().confirm(parts.get("message"), now)}, b""

    def _unmask(self, parts: dict[str, Any], now: datetime) -> Answer:
        return {"unmask": self._current().unmask(parts.get("message"), now)}, b""

    # -- internals ---------------------------------------------------------------------------------------------------

    def _current(self) -> Member:
        if self._member is None:
            raise ProtocolAbort("out_of_order", "this site has nothing ready to be masked")
        return self._member

    def _noise(self, member: Member) -> NDArray[np.int64] | None:
        """This site's share of noise for its cohort, where noise is shared out; none for one that hides too little."""
        if member.view is None:
            return None  # the member itself refuses what comes before the roster
        try:
            return plan.noise_share(self._session.job, self._session.kit, member.view)
        except PrivacyError as error:
            raise ProtocolAbort("too_few", str(error)) from error

    @staticmethod
    def _cohort(member: Member) -> View:
        if member.view is None:
            raise ProtocolAbort("out_of_order", "this site has not seen the roster of its cohort")
        return member.view

    def _holds_update(self) -> bool:
        """Whether the session still holds the update that the newest member is for."""
        trained = self._session.trained
        return trained is not None and trained.header.ticket == self._ticket

    def _settle(self) -> None:
        """Something new begins: a cohort that ended with this site's masked update, and did not open here, counts."""
        member = self._member
        if member is not None and member.spent and member.state != "unmasked" and not self._counted:
            self.aborts += 1
            self._counted = True

    def _layout(self) -> Layout:
        if self._session.layout is None:
            raise SignatureError("secure aggregation before this site attested")
        return self._session.layout

    def _terms(self) -> Terms:
        session = self._session
        return plan.terms(session.kit.study, session.job, session.job_id, self._layout(), self.groups)
