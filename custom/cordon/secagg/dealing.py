"""Dealing a site's two secrets to its cohort, and the hashes by which a wrong share is somebody's fault.

What i deals to j, in bytes, sealed under a key that i and j alone have (AES-256-GCM, aad = lp(ctx) lp(i) lp(j))::

    0    33  share of i's self mask b_i at x_j
    33   16  its salt
    49   16  salt of ``Shares.own``
    65   33  share of i's mask key at x_j
    98   16  its salt

The owner signs H(kind, ctx, i, j, share, salts) of each share. Who opens a share that does not hash to it lies (the
opener's fault); shares that hash to it and are on no one polynomial, or give another secret, were dealt so (the
dealer's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cordon.errors import ProtocolAbort
from cordon.secagg import keys, shamir, wire
from cordon.secagg.roster import View
from cordon.secagg.wire import SALT_BYTES, SHARE_BYTES, OpenedShare, Shares
from cordon.signing import digest, lp

_NONCE = bytes(12)  # each key seals one message: the encryption key is one cohort's, the direction is in the derivation
_LABEL = "cordon/secagg/sealed-shares/v1"


@dataclass(frozen=True)
class Held:
    """What one dealer dealt to one holder."""

    self_mask: OpenedShare = field(repr=False)
    mask_key: OpenedShare = field(repr=False)


def share_hash(kind: str, ctx: str, dealer: str, holder: str, share: OpenedShare) -> str:
    """The salted hash of a share; that of a self mask's covers ``own_salt`` too, so that it cannot be lied about."""
    names = (ctx.encode(), dealer.encode(), holder.encode())
    return digest(f"cordon/secagg/{kind}-share/v1", *names, share.share, share.salt, share.own_salt or b"")


def own_hash(ctx: str, dealer: str, self_mask: bytes, salt: bytes) -> str:
    """``Shares.own``: the dealer's commitment to its self mask."""
    return digest("cordon/secagg/self-mask/v1", ctx.encode(), dealer.encode(), self_mask, salt)


def hashes(ctx: str, dealer: str, holder: str, held: Held) -> tuple[str, str]:
    """What ``Shares.hashes`` says of ``holder``."""
    return (
        share_hash("self-mask", ctx, dealer, holder, held.self_mask),
        share_hash("mask-key", ctx, dealer, holder, held.mask_key),
    )


def deal(
    view: View,
    dealer: str,
    self_mask: bytes,
    mask: keys.Pair,
    encryption: keys.Pair,
    random: Callable[[int], bytes],
) -> tuple[Shares, Held]:
    """The ``Shares`` of ``dealer`` for the whole cohort, and what it keeps itself."""
    points = [view.coordinate(site) for site in view.sites]
    of_self = shamir.split(self_mask, points, view.threshold, random)
    of_key = shamir.split(mask.secret, points, view.threshold, random)
    own_salt = random(SALT_BYTES)
    dealt = {
        site: Held(
            OpenedShare(share=of_self[view.coordinate(site)], salt=random(SALT_BYTES), own_salt=own_salt),
            OpenedShare(share=of_key[view.coordinate(site)], salt=random(SALT_BYTES)),
        )
        for site in view.sites
    }
    message = Shares(
        v=1,
        ctx=view.ctx,
        site=dealer,
        sealed={
            site: AESGCM(_key(encryption, view.tickets[site].encryption_key, view.ctx, dealer, site)).encrypt(
                _NONCE, _packed(held), _aad(view.ctx, dealer, site)
            )
            for site, held in dealt.items()
            if site != dealer
        },
        hashes={site: hashes(view.ctx, dealer, site, held) for site, held in dealt.items()},
        own=own_hash(view.ctx, dealer, self_mask, own_salt),
    )
    return message, dealt[dealer]


def read(view: View, envelope: Any, now: datetime, site: str | None = None) -> tuple[str, Shares]:
    """The dealer and its ``Shares``, for exactly the cohort; ProtocolAbort ``bad_message`` if not.

    Args:
        site: whose they must be; the member that they name where None.
    """
    dealer = site if site is not None else wire.named_site(envelope)
    if dealer not in view.keys:
        raise ProtocolAbort("bad_message", "shares of a site that is not in the cohort")
    shares = wire.verify(envelope, Shares, view.keys[dealer], now, dealer)
    if shares.ctx != view.ctx or shares.site != dealer:  # an old message, which anybody may send again
        raise ProtocolAbort("bad_message", f"the shares of {dealer} are of another cohort or site")
    if set(shares.hashes) != set(view.sites) or set(shares.sealed) != set(view.sites) - {dealer}:
        raise ProtocolAbort("bad_message", f"{dealer} does not deal to exactly the cohort", dealer)
    return dealer, shares


def receive(view: View, shares: Shares, site: str, encryption: keys.Pair) -> Held:
    """What ``shares`` hold for ``site``; ProtocolAbort ``bad_share``, the dealer's fault, if its hashes say other."""
    dealer = shares.site
    key = _key(encryption, view.tickets[dealer].encryption_key, view.ctx, dealer, site)
    try:
        held = _unpacked(AESGCM(key).decrypt(_NONCE, shares.sealed[site], _aad(view.ctx, dealer, site)))
    except InvalidTag as error:
        raise ProtocolAbort("bad_share", f"what {dealer} dealt to {site} does not open", dealer) from error
    if hashes(view.ctx, dealer, site, held) != shares.hashes[site]:
        raise ProtocolAbort("bad_share", f"what {dealer} dealt to {site} is not what it signed", dealer)
    return held


def _key(encryption: keys.Pair, public: bytes, ctx: str, dealer: str, holder: str) -> bytes:
    return keys.agree(encryption.private, public, _LABEL, ctx, dealer, holder)


def _aad(ctx: str, dealer: str, holder: str) -> bytes:
    return lp(ctx.encode()) + lp(dealer.encode()) + lp(holder.encode())


def _packed(held: Held) -> bytes:
    own, key = held.self_mask, held.mask_key
    return own.share + own.salt + (own.own_salt or b"") + key.share + key.salt


def _unpacked(data: bytes) -> Held:
    fields, at = [], 0
    for size in (SHARE_BYTES, SALT_BYTES, SALT_BYTES, SHARE_BYTES, SALT_BYTES):
        fields.append(data[at : at + size])
        at += size
    return Held(
        OpenedShare(share=fields[0], salt=fields[1], own_salt=fields[2]), OpenedShare(share=fields[3], salt=fields[4])
    )


def check_opened(
    view: View,
    holder: str,
    said: Mapping[str, OpenedShare],
    dealers: tuple[str, ...],
    dealt: Mapping[str, Shares],
    kind: Literal["self-mask", "mask-key"],
) -> None:
    """Check that ``holder`` opened exactly the shares of ``dealers``, each as its dealer signed it.

    Raises:
        ProtocolAbort: ``bad_share``, the holder's fault: at an honest one each share matched when it was dealt.
    """
    if set(said) != set(dealers):
        raise ProtocolAbort(
            "bad_share", f"{holder} does not open exactly the {kind} shares that were asked for", holder
        )
    place = 0 if kind == "self-mask" else 1
    for dealer in dealers:
        share = said[dealer]
        if (share.own_salt is None) != (kind == "mask-key"):
            raise ProtocolAbort("bad_share", f"{holder} opens a {kind} share of {dealer} of the wrong kind", holder)
        if share_hash(kind, view.ctx, dealer, holder, share) != dealt[dealer].hashes[holder][place]:
            raise ProtocolAbort("bad_share", f"{holder} opens a {kind} share that {dealer} did not deal to it", holder)
