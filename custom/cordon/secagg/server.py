"""One cohort at the coordinator: hands messages on, adds up masked vectors, opens their sum.

::

    shares --> masked --> confirm --> unmask --> opened
       \\__________\\__________\\__________\\____> aborted

Nobody trusts it. It checks everything that it can, so that it can say whose fault it is when a sum does not open, and
so that one faulty site does not end the cohort where the others can go on without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cordon.errors import ProtocolAbort
from cordon.messages import sha256
from cordon.params import Vector
from cordon.secagg import confirming, dealing, fixedpoint, opening, roster, wire
from cordon.secagg.terms import Terms
from cordon.secagg.wire import Confirmations, Delivery, Masked, Roster, Shares, Survivors, Ticket, Unmask
from cordon.signing import PrivateKey, PublicKey


@dataclass(frozen=True)
class Opened:
    """What a cohort gave: mean (d,) float32 = sum / sum of w over ``survivors``; ``weight`` = that sum of w."""

    survivors: tuple[str, ...]
    mean: Vector
    weight: float


@dataclass(frozen=True)
class Fault:
    """A fault that signed messages prove: ``evidence`` are their envelopes."""

    site: str
    code: str
    detail: str
    evidence: tuple[dict[str, Any], ...]


class Aggregation:
    """State machine of one cohort. Beside the payload at hand it keeps one vector (in the ring of 64 bits a second one
    when it is read).

    Attributes:
        stage: "shares", "masked", "confirm", "unmask", "opened" or "aborted".
        view: the cohort: ``view.sites``, ``view.least``, ``view.threshold``, ``view.ctx``.
        faults: what sites provably did wrong so far.

    Args:
        cohort_id: unguessable, never used before.
        version: of the model as the cohort forms.
        tickets: site -> (ticket, its envelope, signing key), as ``roster.read_ticket`` gave them.
        signing_key: the coordinator's attested key.

    Raises:
        ProtocolAbort: these tickets make no cohort (``too_few``, ``collusion_bound``, ``bad_roster``, ``off_chain``).
    """

    def __init__(
        self,
        terms: Terms,
        cohort_id: str,
        version: int,
        tickets: Mapping[str, tuple[Ticket, dict[str, Any], PublicKey]],
        signing_key: PrivateKey,
    ) -> None:
        found = {site: (ticket, key) for site, (ticket, _, key) in tickets.items()}
        self.view = roster.view(terms, cohort_id, version, found)
        self.stage = "shares"
        self.faults: list[Fault] = []
        self._key = signing_key
        self._expected = set(self.view.sites)  # who may answer in this stage
        self._answers: dict[str, tuple[dict[str, Any], Any]] = {}  # site -> envelope, message, of this stage
        self._gone: set[str] = set()  # not waited for
        self._dropped: set[str] = set()  # at fault: not heard any more, in no later stage
        self._dealt: dict[str, tuple[dict[str, Any], Shares]] = {}  # R1
        self._survivors: tuple[str, ...] = ()
        self._total: NDArray[Any] | None = None
        self._opened: Opened | None = None
        envelopes = tuple(tickets[site][1] for site in self.view.sites)
        self._message = wire.sign(
            signing_key, Roster(v=1, job=terms.job, cohort=cohort_id, version=version, tickets=envelopes)
        )

    @property
    def waiting(self) -> tuple[str, ...]:
        """Sites that this stage still waits for, sorted."""
        return tuple(sorted(self._expected - set(self._answers) - self._gone))

    @property
    def complete(self) -> bool:
        """Whether everybody was heard that this stage waits for."""
        return not self.waiting

    @property
    def masked_by(self) -> tuple[str, ...]:
        """Sites whose masked vector came in time: their updates are spent, however the cohort ends."""
        return tuple(sorted(self._answers)) if self.stage == "masked" else self._survivors

    @property
    def total(self) -> NDArray[Any]:
        """The opened sum (d,) in words of ``view.ring``; ``out_of_order`` before it opened and after ``result``."""
        if self.stage != "opened" or self._total is None:
            raise ProtocolAbort("out_of_order", f"there is no sum in stage {self.stage}, or it was made a mean")
        return self._total

    def message(self, site: str) -> dict[str, Any]:
        """The envelope for ``site`` in this stage; the same for all. ``out_of_order`` if it has no part in it."""
        if site not in self._expected:
            raise ProtocolAbort("out_of_order", f"stage {self.stage} has nothing for {site}")
        return self._message

    def take(self, site: str, envelope: Any, payload: bytes = b"", *, now: datetime) -> None:
        """The answer of ``site`` in this stage.

        Raises:
            ProtocolAbort: it is not taken. With ``blame`` what the site signed proves it at fault, and it is not heard
                any more; without, anybody may have made it, and the site is still waited for.
        """
        if site not in self._expected or site in self._answers:
            raise ProtocolAbort("out_of_order", f"stage {self.stage} wants nothing (more) of {site}")
        if payload and self.stage != "masked":
            raise ProtocolAbort("bad_message", f"stage {self.stage} takes no payload; {site} sent {len(payload)} bytes")
        try:
            message = self._read(site, envelope, payload, now)
        except ProtocolAbort as error:
            if error.blame:
                self._blame(error, (self._message, envelope))
            raise
        self._answers[site] = (envelope, message)
        self._gone.discard(site)

    def lost(self, site: str) -> None:
        """Wait no longer for ``site``. An answer that comes while its stage is open is taken all the same."""
        self._gone.add(site)

    def advance(self, now: datetime) -> None:
        """Close the stage with those who answered, and open the next.

        Raises:
            ProtocolAbort: the cohort ends (``stage`` "aborted"): ``lost`` with too few left, ``bad_reconstruction``
                with the dealer to blame.
        """
        if self.stage in ("opened", "aborted"):
            raise ProtocolAbort("out_of_order", f"the cohort is {self.stage}")
        stage, self.stage = self.stage, "aborted"
        heard = tuple(sorted(self._answers))
        least = self.view.least if stage in ("shares", "masked") else self.view.threshold
        if len(heard) < least:
            gone = ", ".join(sorted(self._expected - set(heard) | self._dropped)) or "none"
            raise ProtocolAbort("lost", f"stage {stage}: {len(heard)} sites answered, want {least}; without {gone}")
        answers, self._answers = self._answers, {}
        v1: dict[str, Any] = {"v": 1, "ctx": self.view.ctx}
        if stage == "shares":
            self._dealt = {site: answers[site] for site in heard}
            self._message = wire.sign(self._key, Delivery(**v1, shares=tuple(answers[site][0] for site in heard)))
            self.stage = "masked"
        elif stage == "masked":
            self._survivors = heard
            self._message = wire.sign(self._key, Survivors(**v1, r1=tuple(self._dealt), survivors=heard))
            self.stage = "confirm"
        elif stage == "confirm":
            confirmations = tuple(answers[site][0] for site in heard)
            self._message = wire.sign(self._key, Confirmations(**v1, confirmations=confirmations))
            self.stage = "unmask"
        else:
            self._open(answers)
            self.stage, heard = "opened", ()
        self._expected = set(heard)

    def result(self) -> Opened:
        """The opened mean; ``out_of_order`` in any stage but "opened". It takes the place of ``total`` in memory."""
        if self._opened is None:
            view, total = self.view, self.total
            weight = sum(view.terms.weight(site, view.sites) for site in self._survivors)
            room = total.view(np.float32) if view.ring.bits == 32 else None
            self._opened = Opened(self._survivors, fixedpoint.decode(total, view.ring, weight, room), weight)
            self._total = None
        return self._opened

    # -- internals ----------------------------------------------------------------------------------------------

    def _read(self, site: str, envelope: Any, payload: bytes, now: datetime) -> Any:
        view = self.view
        if self.stage == "shares":
            return dealing.read(view, envelope, now, site)[1]
        if self.stage == "masked":
            return self._add(site, wire.verify(envelope, Masked, view.keys[site], now, site), payload)
        if self.stage == "confirm":
            found = confirming.read(view, envelope, now, site=site)
            if (found.r1, found.survivors) != (tuple(self._dealt), self._survivors):
                raise ProtocolAbort("two_views", f"{site} confirms another survivor set than it was sent", site)
            return found
        answer = wire.verify(envelope, Unmask, view.keys[site], now, site)
        opening.check_answer(view, answer, site, self._shares(), self._survivors)
        return answer

    def _add(self, site: str, header: Masked, payload: bytes) -> Masked:
        """Add a masked vector to the sum."""
        view = self.view
        if (header.ctx, header.site) != (view.ctx, site):
            raise ProtocolAbort("bad_message", f"the vector of {site} is of another cohort or site")
        if header.payload_sha256 != sha256(payload):
            raise ProtocolAbort("bad_message", f"the vector of {site} is not the one that it signed")
        if header.r1 != tuple(self._dealt):
            raise ProtocolAbort("two_views", f"{site} masked over another R1 than it was sent", site)
        want = view.terms.size * view.ring.dtype.itemsize
        if len(payload) != want:
            raise ProtocolAbort("bad_message", f"the vector of {site} has {len(payload)} bytes, want {want}", site)
        if self._total is None:
            self._total = np.zeros(view.terms.size, view.ring.dtype)
        np.add(self._total, np.frombuffer(payload, view.ring.dtype), out=self._total)
        return header

    def _open(self, answers: Mapping[str, tuple[dict[str, Any], Unmask]]) -> None:
        view, total = self.view, self._total
        if total is None:
            raise ProtocolAbort("out_of_order", "no vector has come")
        try:
            found = {site: answer for site, (_, answer) in answers.items()}
            opening.unmask(view, total, self._shares(), self._survivors, found)
        except ProtocolAbort as error:
            if error.blame:
                self._blame(error, (self._dealt[error.blame][0], *(envelope for envelope, _ in answers.values())))
            raise

    def _shares(self) -> dict[str, Shares]:
        return {site: shares for site, (_, shares) in self._dealt.items()}

    def _blame(self, error: ProtocolAbort, evidence: tuple[dict[str, Any], ...]) -> None:
        self.faults.append(Fault(error.blame, error.code, error.detail, evidence))
        self._dropped.add(error.blame)
        self._expected.discard(error.blame)
