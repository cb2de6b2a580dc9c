"""Who is in a cohort and on which terms: checked alike by sites and coordinator, and hashed into ``ctx``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cordon import signing
from cordon.documents import body_of
from cordon.errors import ProtocolAbort
from cordon.secagg import certificates, keys, wire
from cordon.secagg.fixedpoint import Ring
from cordon.secagg.terms import Terms, collusion_bound
from cordon.secagg.wire import MAX_COHORT, Roster, Ticket
from cordon.signing import PublicKey

Heads = Mapping[int, str] | Callable[[int], str | None]
"""Model version -> head of the chain at it, for each version that a site has followed; nothing for any other."""

_FIELD = 2**255 - 19


@dataclass(frozen=True)
class View:
    """What one party takes the cohort to be. Two parties agree in all of it exactly if they agree in ``ctx``.

    Attributes:
        sites: sorted names; the place in it, from 1, is a site's Shamir coordinate, the order fixes the masks' signs.
        keys: site -> its certified signing key.
        threshold: t. least: max(t, u_min).
    """

    terms: Terms
    cohort: str
    version: int
    sites: tuple[str, ...]
    tickets: Mapping[str, Ticket]
    keys: Mapping[str, PublicKey]
    ctx: str
    threshold: int
    least: int
    ring: Ring

    def coordinate(self, site: str) -> int:
        """x of ``site`` in every polynomial of the cohort, 1 to K."""
        return self.sites.index(site) + 1

    def factor(self, site: str) -> float:
        """w s(tau) of ``site``."""
        return self.terms.factor(site, self.version - self.tickets[site].base_version, self.sites)


def read_ticket(
    envelope: Any, terms: Terms, mtls_keys: Mapping[str, PublicKey], now: datetime
) -> tuple[Ticket, PublicKey]:
    """A ticket and the key that signed it, certified by its site's mTLS key for this study and job.

    Raises:
        ProtocolAbort: ``bad_roster`` for a site that the study does not know, a wrong certificate or signature, or
            X25519 keys that are none; ``wrong_terms`` where it differs from the job's plan.
    """
    site, key = certificates.signer(envelope, terms.study, terms.job, mtls_keys, now, "bad_roster")
    try:
        ticket = wire.verify(envelope, Ticket, key, now, site)
    except ProtocolAbort as error:
        raise ProtocolAbort("bad_roster", f"the ticket of {site}: {error.detail}", error.blame) from error
    if ticket.job != terms.job:
        raise ProtocolAbort("bad_roster", f"the ticket of {site} is of another job")
    if site not in terms.weights:
        raise ProtocolAbort("bad_roster", f"the terms give {site} no weight")
    for name, value in (("mask_key", ticket.mask_key), ("encryption_key", ticket.encryption_key)):
        _check_key(value, f"{name} of {site}", site)
    for name, said, want in (
        ("layout_digest", ticket.layout_digest, terms.layout_digest),
        ("dp_event", ticket.dp_event, terms.dp_event),
    ):
        if said != want:
            raise ProtocolAbort("wrong_terms", f"{name} in the ticket of {site} is {said}, the plan says {want}", site)
    return ticket, key


def read(
    envelope: Any,
    terms: Terms,
    coordinator_key: PublicKey,
    mtls_keys: Mapping[str, PublicKey],
    now: datetime,
) -> tuple[View, dict[str, dict[str, Any]]]:
    """The cohort in a ``Roster`` envelope, as a site sees it, and each site's ticket envelope."""
    roster = wire.verify(envelope, Roster, coordinator_key, now)
    if roster.job != terms.job:
        raise ProtocolAbort("bad_message", "the roster is of another job")
    tickets: dict[str, tuple[Ticket, PublicKey]] = {}
    envelopes: dict[str, dict[str, Any]] = {}
    for each in roster.tickets:
        ticket, key = read_ticket(each, terms, mtls_keys, now)
        if ticket.site in tickets:
            raise ProtocolAbort("bad_roster", f"{ticket.site} is in the roster twice")
        tickets[ticket.site], envelopes[ticket.site] = (ticket, key), each
    return view(terms, roster.cohort, roster.version, tickets), envelopes


def view(terms: Terms, cohort: str, version: int, tickets: Mapping[str, tuple[Ticket, PublicKey]]) -> View:
    """The cohort of these verified ``tickets`` as it forms at model ``version``.

    Raises:
        ProtocolAbort: ``too_few``, ``collusion_bound``, ``bad_roster`` (over 40 sites, over two groups, or a key that
            two share), ``off_chain``.
    """
    sites = tuple(sorted(tickets))
    # 1. As many as the threshold and the floors want.
    if len(sites) > MAX_COHORT:
        raise ProtocolAbort("bad_roster", f"{len(sites)} sites in one cohort, at most {MAX_COHORT}")
    if terms.members not in (0, len(sites)):
        raise ProtocolAbort("bad_roster", f"{len(sites)} sites in the roster, the job's cohorts have {terms.members}")
    threshold, least = terms.threshold(len(sites)), terms.least(len(sites))
    if len(sites) < least:
        raise ProtocolAbort("too_few", f"{len(sites)} sites in the roster, want {least} or more")
    if terms.c > (bound := collusion_bound(len(sites), threshold, terms.u_min)):
        raise ProtocolAbort("collusion_bound", f"c = {terms.c} > {bound} that {len(sites)} sites bear")
    # 2. Within one group: sums over parts of several groups, subtracted, would be sums of a few sites.
    if terms.groups is not None and not any(set(sites) <= set(group) for group in terms.groups):
        raise ProtocolAbort("bad_roster", "the roster is not within one group of the map")
    # 3. No key stands for two.
    found = {site: ticket for site, (ticket, _) in tickets.items()}
    exchange = [key for ticket in found.values() for key in (ticket.mask_key, ticket.encryption_key)]
    signers = {signing.spki_digest(key) for _, key in tickets.values()}
    if len(set(exchange)) < len(exchange) or len(signers) < len(sites):
        raise ProtocolAbort("bad_roster", "two sites share a key")
    # 4. Bases on one chain, none newer than the cohort's version or older than the job allows.
    heads: dict[int, str] = {}
    for site, ticket in found.items():
        late = version - ticket.base_version
        if not 0 <= late <= terms.max_staleness:
            raise ProtocolAbort("off_chain", f"{site} is {late} versions late, want 0 to {terms.max_staleness}")
        if heads.setdefault(ticket.base_version, ticket.model_chain_head) != ticket.model_chain_head:
            raise ProtocolAbort("off_chain", f"two models of version {ticket.base_version} in one cohort")
    # 5. One hash of it all.
    body = {
        "terms": terms.body(),
        "cohort": cohort,
        "version": version,
        "tickets": [body_of(found[site]) for site in sites],
        "threshold": threshold,
        "least": least,
    }
    return View(
        terms=terms,
        cohort=cohort,
        version=version,
        sites=sites,
        tickets=found,
        keys={site: key for site, (_, key) in tickets.items()},
        ctx=signing.digest("cordon/secagg/v1", signing.canonical(body)),
        threshold=threshold,
        least=least,
        ring=terms.ring(len(sites)),
    )


def check_chain(view: View, site: str, heads: Heads) -> None:
    """ProtocolAbort ``off_chain`` unless every base up to ``site``'s own is on the chain that ``site`` has followed.

    Newer bases are for the sites that hold them: each of those checks all older ones, so any two honest sites of a
    cohort are on one chain, or the newer one stops.
    """
    lookup = heads if callable(heads) else heads.get
    own = view.tickets[site].base_version
    for other, ticket in view.tickets.items():
        known = lookup(ticket.base_version)
        if known is None and ticket.base_version > own:
            continue
        if known != ticket.model_chain_head:
            raise ProtocolAbort("off_chain", f"the base of {other}, version {ticket.base_version}, is not on the chain")


def _check_key(key: bytes, what: str, site: str) -> None:
    if int.from_bytes(key, "little") >= _FIELD:  # a second encoding of some other key
        raise ProtocolAbort("bad_roster", f"{what} is not in canonical form", site)
    try:
        keys.check_public(key)
    except ProtocolAbort as error:
        raise ProtocolAbort("bad_roster", f"{what} is of low order", site) from error
