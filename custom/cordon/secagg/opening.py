"""Opening a sum: secrets from shares, each held against what its owner committed to, before any mask is taken off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from cordon.errors import ProtocolAbort
from cordon.secagg import dealing, keys, masking, shamir, streams
from cordon.secagg.roster import View
from cordon.secagg.wire import OpenedShare, Shares, Unmask


def check_answer(
    view: View, answer: Unmask, site: str, dealt: Mapping[str, Shares], survivors: tuple[str, ...]
) -> None:
    """Check that ``site`` opened what was asked for, each share as its dealer signed it.

    Args:
        dealt: dealer -> its ``Shares``, for all of R1.

    Raises:
        ProtocolAbort: ``bad_message`` if it is of another cohort, ``bad_share`` with ``site`` to blame.
    """
    if (answer.ctx, answer.site) != (view.ctx, site):
        raise ProtocolAbort("bad_message", f"the shares that {site} opens are of another cohort or site")
    away = tuple(dealer for dealer in dealt if dealer not in survivors)
    dealing.check_opened(view, site, answer.self_masks, survivors, dealt, "self-mask")
    dealing.check_opened(view, site, answer.mask_keys, away, dealt, "mask-key")


def unmask(
    view: View,
    total: NDArray[Any],
    dealt: Mapping[str, Shares],
    survivors: tuple[str, ...],
    answers: Mapping[str, Unmask],
) -> None:
    """Take off ``total`` (d,), in place, every mask that is left in the sum over ``survivors``.

    Args:
        answers: holder -> what it opened, each through ``check_answer``; t of them or more.

    Raises:
        ProtocolAbort: ``bad_reconstruction``, with the dealer to blame: each share is the one that it signed. Nothing
            was taken off then.
    """
    self_masks, mask_keys = {}, {}
    for dealer in dealt:
        if dealer in survivors:
            shares = {holder: answer.self_masks[dealer] for holder, answer in answers.items()}
            secret, salt = _combine(view, dealer, shares), next(iter(shares.values())).own_salt or b""
            if dealing.own_hash(view.ctx, dealer, secret, salt) != dealt[dealer].own:
                raise ProtocolAbort("bad_reconstruction", f"{dealer} dealt another self mask than it signed", dealer)
            self_masks[dealer] = secret
        else:
            shares = {holder: answer.mask_keys[dealer] for holder, answer in answers.items()}
            pair = keys.pair_of(_combine(view, dealer, shares))
            if pair.public != view.tickets[dealer].mask_key:
                raise ProtocolAbort("bad_reconstruction", f"{dealer} dealt another mask key than its ticket's", dealer)
            mask_keys[dealer] = pair
    masking.add_streams(total, streams.left_in_sum(view, self_masks, mask_keys))


def _combine(view: View, dealer: str, shares: Mapping[str, OpenedShare]) -> bytes:
    if len({share.own_salt for share in shares.values()}) > 1:
        raise ProtocolAbort("bad_reconstruction", f"{dealer} dealt different salts of one self mask", dealer)
    try:
        points = {view.coordinate(holder): share.share for holder, share in shares.items()}
        return shamir.combine(points, view.threshold)
    except ProtocolAbort as error:
        raise ProtocolAbort(error.code, f"what {dealer} dealt: {error.detail}", dealer) from error
