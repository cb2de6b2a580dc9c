"""The consistency round: one survivor set per cohort, signed by t of its members, or nothing opens.

Two sets of t signers within K sites, c of which may sign anything, share an honest one as 2t > K + c; an honest site
signs once. So at most one (R1, U) is ever confirmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cordon.errors import ProtocolAbort
from cordon.secagg import wire
from cordon.secagg.roster import View
from cordon.secagg.wire import Confirmation


def check_r1(view: View, r1: tuple[str, ...]) -> None:
    """ProtocolAbort unless ``r1`` are sites of the roster, sorted, each once, at least ``view.least``."""
    if list(r1) != sorted(set(r1)) or not set(r1) <= set(view.sites):
        raise ProtocolAbort("bad_survivors", "R1 is not a sorted part of the roster")
    if len(r1) < view.least:
        raise ProtocolAbort("too_few", f"{len(r1)} sites shared, want {view.least} or more")


def check_survivors(view: View, r1: tuple[str, ...], survivors: tuple[str, ...]) -> None:
    """ProtocolAbort unless ``survivors`` are sites of ``r1``, sorted, each once, at least ``view.least``."""
    if list(survivors) != sorted(set(survivors)) or not set(survivors) <= set(r1):
        raise ProtocolAbort("bad_survivors", "the survivors are not a sorted part of R1")
    if len(survivors) < view.least:
        raise ProtocolAbort("too_few", f"{len(survivors)} sites survive, want {view.least} or more")


def read(view: View, envelope: Any, now: datetime, *, site: str | None = None) -> Confirmation:
    """A confirmation in this cohort by ``site``, or by the one of its members that it names.

    Raises:
        ProtocolAbort: ``bad_confirmations``: not of a member, not signed by it, or of another cohort.
    """
    signer = site if site is not None else wire.named_site(envelope)
    if signer not in view.keys:
        raise ProtocolAbort("bad_confirmations", "a confirmation of a site that is not in the cohort")
    try:
        found = wire.verify(envelope, Confirmation, view.keys[signer], now, signer)
    except ProtocolAbort as error:
        raise ProtocolAbort("bad_confirmations", f"of {signer}: {error.detail}", error.blame) from error
    if found.site != signer or found.ctx != view.ctx:
        raise ProtocolAbort("bad_confirmations", f"the confirmation of {signer} is of another cohort or site")
    return found


def check(
    view: View,
    envelopes: Sequence[Any],
    r1: tuple[str, ...],
    survivors: tuple[str, ...],
    now: datetime,
) -> None:
    """Check that ``envelopes`` are confirmations of (``r1``, ``survivors``) by t members of ``survivors`` or more.

    Raises:
        ProtocolAbort: ``two_views`` if a member signed another set; ``bad_confirmations`` if one is not valid or there
            twice, or for fewer than t.
    """
    signers = set()
    for envelope in envelopes:
        found = read(view, envelope, now)
        if (found.r1, found.survivors) != (r1, survivors):
            raise ProtocolAbort("two_views", f"{found.site} signed another survivor set in this cohort")
        if found.site not in survivors or found.site in signers:
            raise ProtocolAbort("bad_confirmations", f"{found.site} is no survivor, or is there twice")
        signers.add(found.site)
    if len(signers) < view.threshold:
        raise ProtocolAbort("bad_confirmations", f"{len(signers)} survivors confirm, want {view.threshold} or more")
