"""One site in one cohort: a state machine that trusts nobody but the study contract's keys and its own arithmetic.

::

    ready --shares--> shared --masked--> masked --confirm--> confirmed --unmask--> unmasked
      \\______________________ any error, any message out of order ____________________> aborted

Each method runs once, in this order. What goes wrong anywhere ends the member for good: it says nothing more, and its
secrets are dropped. Numbers in comments are those of README.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cordon.errors import ConfigError, ProtocolAbort
from cordon.messages import sha256
from cordon.params import Vector
from cordon.secagg import confirming, dealing, fixedpoint, keys, masking, roster, streams, wire
from cordon.secagg.roster import Heads, View
from cordon.secagg.terms import Terms
from cordon.secagg.wire import Confirmation, Confirmations, Delivery, Masked, Survivors, Ticket, Unmask
from cordon.signing import PrivateKey, PublicKey

Random = Callable[[int], bytes]


class Member:
    """A site's part in one cohort; made by ``ready``.

    Attributes:
        state: "ready", "shared", "masked", "confirmed", "unmasked" or "aborted".
        spent: whether the masked update has left ``masked``: from then on it may never be used again.
        view: the cohort, from ``shares`` on: ``view.ring`` (for noise), ``view.factor(site)``, ``view.least``.
    """

    def __init__(
        self,
        terms: Terms,
        site: str,
        ticket: dict[str, Any],
        pairs: tuple[keys.Pair, keys.Pair],
        signing_key: PrivateKey,
        coordinator_key: PublicKey,
        random: Random,
    ) -> None:
        self.state = "ready"
        self.spent = False
        self.view: View | None = None
        self._terms, self._site, self._ticket = terms, site, ticket
        self._pairs: tuple[keys.Pair, keys.Pair] | None = pairs  # mask key, encryption key
        self._signing_key, self._coordinator_key, self._random = signing_key, coordinator_key, random
        self._self_mask = b""
        self._shares: dict[str, Any] = {}  # own Shares envelope, as sent
        self._held: dict[str, dealing.Held] = {}  # dealer -> its shares for this site
        self._r1: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()

    @classmethod
    def ready(
        cls,
        *,
        terms: Terms,
        site: str,
        ticket: str,
        base_version: int,
        head: str,
        ledger: dict[str, Any] | None,
        signing_key: PrivateKey,
        certificate: dict[str, Any],
        coordinator_key: PublicKey,
        random: Random = secrets.token_bytes,
    ) -> tuple[Member, dict[str, Any]]:
        """0: a member with fresh keys, and its ``Ticket`` envelope.

        Args:
            ticket: id under which the coordinator gave out the model of ``base_version``; ``head``: of the chain at it.
            ledger: the ``LedgerHead`` envelope that came with the lease.
            certificate: ``Certificate`` envelope of ``signing_key`` (``certificates.certify``).
            coordinator_key: the coordinator's attested signing key.
        """
        mask, encryption = keys.pair(random), keys.pair(random)
        body = Ticket(
            v=1,
            job=terms.job,
            site=site,
            ticket=ticket,
            base_version=base_version,
            model_chain_head=head,
            layout_digest=terms.layout_digest,
            privacy="masked",
            dp_event=terms.dp_event,
            mask_key=mask.public,
            encryption_key=encryption.public,
            certificate=certificate,
            ledger=ledger,
        )
        envelope = wire.sign(signing_key, body)
        return cls(terms, site, envelope, (mask, encryption), signing_key, coordinator_key, random), envelope

    def shares(
        self, roster_envelope: Any, *, mtls_keys: Mapping[str, PublicKey], heads: Heads, now: datetime
    ) -> dict[str, Any]:
        """1: checks the cohort, deals both secrets; the ``Shares`` envelope.

        Args:
            mtls_keys: site -> mTLS key, of the whole study contract.
            heads: version -> chain head, for every version up to this site's base (and newer ones if it knows them).

        Raises:
            ProtocolAbort: ``bad_message``, ``bad_roster``, ``wrong_terms``, ``too_few``, ``collusion_bound``,
                ``off_chain``.
        """
        with self._stage("ready", "shared"):
            # 1.1 to 1.5, in roster.py: signatures, certificates, terms, size, bounds, keys.
            view, envelopes = roster.read(roster_envelope, self._terms, self._coordinator_key, mtls_keys, now)
            # 1.6 This site is in it, with the ticket that it signed and no other.
            if envelopes.get(self._site) != self._ticket:
                raise ProtocolAbort("bad_roster", f"the roster does not hold this ticket of {self._site}")
            # 1.7 Every base is on the chain that this site has followed.
            roster.check_chain(view, self._site, heads)
            self.view, self._self_mask = view, self._random(32)
            mask, encryption = self._secrets()
            message, own = dealing.deal(view, self._site, self._self_mask, mask, encryption, self._random)
            self._held = {self._site: own}
            self._shares = wire.sign(self._signing_key, message)
        return self._shares

    def masked(
        self, delivery_envelope: Any, vector: Vector, noise: NDArray[np.int64] | None, now: datetime
    ) -> tuple[dict[str, Any], bytes]:
        """2: checks R1, masks; the ``Masked`` envelope and its payload, 4 (8) d bytes. Sets ``spent``.

        Args:
            vector: (d,) float32, the update before weighting, each |coordinate| <= ``terms.clip``.
            noise: (d,) share of distributed noise, in units of the ring (``view.ring.scale``); None exactly where
                ``terms.noise`` is 0.

        Raises:
            ProtocolAbort: ``bad_message``, ``too_few``, ``bad_survivors``, ``bad_share``, ``not_finite``.
        """
        with self._stage("shared", "masked"):
            view = self._known()
            if vector.shape != (self._terms.size,) or (noise is None) != (self._terms.noise == 0):
                raise ConfigError(
                    f"want a vector of {self._terms.size}, and noise exactly where the terms say so "
                    f"({self._terms.noise:g}); got {vector.shape} and {'no noise' if noise is None else 'noise'}"
                )
            delivery = wire.verify(delivery_envelope, Delivery, self._coordinator_key, now)
            # 2.1 R1: members, each once, at least `least`, this one among them with what it sent.
            self._r1 = self._deliver(view, delivery, now)
            # 2.2 Encode; NaN and coordinates over the bound end it here.
            total = fixedpoint.encode(vector, view.factor(self._site), self._terms.clip, view.ring, self._random)
            if noise is not None:
                fixedpoint.add_noise(total, noise)
            # 2.3 Masks over R1.
            mask, _ = self._secrets()
            masking.add_streams(total, streams.of_member(view, self._site, self._r1, self._self_mask, mask.private))
            payload = total.tobytes()
            header = Masked(v=1, ctx=view.ctx, site=self._site, r1=self._r1, payload_sha256=sha256(payload))
            envelope = wire.sign(self._signing_key, header)
            self._pairs, self._self_mask = None, b""  # masked once: nothing here can mask again
            self.spent = True
        return envelope, payload

    def confirm(self, survivors_envelope: Any, now: datetime) -> dict[str, Any]:
        """3: checks U, signs (ctx, R1, U); the ``Confirmation`` envelope.

        Raises:
            ProtocolAbort: ``bad_message``, ``bad_survivors``, ``too_few``.
        """
        with self._stage("masked", "confirmed"):
            view = self._known()
            said = wire.verify(survivors_envelope, Survivors, self._coordinator_key, now)
            if said.ctx != view.ctx:
                raise ProtocolAbort("bad_message", "the survivors are of another cohort")
            # 3.1 Only the R1 that this site masked over: over another, the sum of U could be this site's update alone.
            if said.r1 != self._r1:
                raise ProtocolAbort("two_views", "the survivors are of another R1 than the one masked over")
            # 3.2 U within R1, large enough, this site in it.
            confirming.check_survivors(view, self._r1, said.survivors)
            if self._site not in said.survivors:
                raise ProtocolAbort("bad_survivors", f"{self._site} masked and is not among the survivors")
            self._survivors = said.survivors
            own = Confirmation(v=1, ctx=view.ctx, site=self._site, r1=self._r1, survivors=self._survivors)
            envelope = wire.sign(self._signing_key, own)
        return envelope

    def unmask(self, confirmations_envelope: Any, now: datetime) -> dict[str, Any]:
        """4: with t valid confirmations by members of U of the (R1, U) that was signed here; the ``Unmask`` envelope.

        Raises:
            ProtocolAbort: ``bad_message``, ``two_views``, ``bad_confirmations``.
        """
        with self._stage("confirmed", "unmasked"):
            view = self._known()
            said = wire.verify(confirmations_envelope, Confirmations, self._coordinator_key, now)
            if said.ctx != view.ctx:
                raise ProtocolAbort("bad_message", "the confirmations are of another cohort")
            # 4.1 t survivors or more signed what this site signed, and nobody anything else.
            confirming.check(view, said.confirmations, self._r1, self._survivors, now)
            # 4.2 One secret of each: the self mask of who is in the sum, the mask key of who is not. Never both.
            own = Unmask(
                v=1,
                ctx=view.ctx,
                site=self._site,
                self_masks={site: self._held[site].self_mask for site in self._survivors},
                mask_keys={site: self._held[site].mask_key for site in self._r1 if site not in self._survivors},
            )
            envelope = wire.sign(self._signing_key, own)
            self._held = {}
        return envelope

    # -- internals ----------------------------------------------------------------------------------------------

    def _deliver(self, view: View, delivery: Delivery, now: datetime) -> tuple[str, ...]:
        """Check everybody's shares and keep what is for this site; R1."""
        if delivery.ctx != view.ctx:
            raise ProtocolAbort("bad_message", "the shares are of another cohort")
        _, encryption = self._secrets()
        r1 = []
        for envelope in delivery.shares:
            dealer, shares = dealing.read(view, envelope, now)
            r1.append(dealer)
            if dealer == self._site:
                if envelope != self._shares:
                    raise ProtocolAbort("two_views", "these are not the shares that this site signed")
            else:
                self._held[dealer] = dealing.receive(view, shares, self._site, encryption)
        confirming.check_r1(view, tuple(r1))
        if self._site not in r1:
            raise ProtocolAbort("bad_survivors", f"{self._site} shared and is not in R1")
        return tuple(r1)

    def _secrets(self) -> tuple[keys.Pair, keys.Pair]:
        if self._pairs is None:
            raise ProtocolAbort("out_of_order", "this site has masked already")
        return self._pairs

    def _known(self) -> View:
        if self.view is None:
            raise ProtocolAbort("out_of_order", "this site has seen no roster yet")
        return self.view

    @contextmanager
    def _stage(self, wanted: str, then: str) -> Iterator[None]:
        """Run one stage; whatever ends it early ends the member."""
        if self.state == "unmasked":  # it is done and holds nothing any more
            raise ProtocolAbort("out_of_order", "this site has unmasked already")
        state, self.state = self.state, "aborted"
        try:
            if state != wanted:
                raise ProtocolAbort("out_of_order", f"this site is {state}, the message is for one that is {wanted}")
            yield
            self.state = then
        finally:
            if self.state == "aborted":
                self._pairs, self._self_mask, self._held = None, b"", {}
