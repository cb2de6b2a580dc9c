"""Which masks a vector carries, and which of them are left in the sum.

    y_i = q(w_i s(tau_i) delta_i) + noise_i + PRG(b_i) + sum_{j > i} PRG(k_ij) - sum_{j < i} PRG(k_ij)    mod 2^bits

i, j are names in R1, compared as text. In the sum over the survivors U two survivors' k_ij cancel; what stays is
PRG(b_i) of each survivor, and k_ij of each survivor i with each j of R1 outside U.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cordon.secagg import keys
from cordon.secagg.masking import Sign
from cordon.secagg.roster import View


def of_member(
    view: View, site: str, r1: Iterable[str], self_mask: bytes, private: X25519PrivateKey
) -> list[tuple[bytes, Sign]]:
    """(key, sign) of each mask that ``site`` adds to its vector; ``private`` is its mask key."""
    own: list[tuple[bytes, Sign]] = [(keys.self_mask_key(self_mask, view.ctx, site), 1)]
    return own + [
        (keys.mask_key(private, view.tickets[other].mask_key, view.ctx, site, other), _sign(site, other))
        for other in r1
        if other != site
    ]


def left_in_sum(
    view: View, self_masks: Mapping[str, bytes], mask_keys: Mapping[str, keys.Pair]
) -> list[tuple[bytes, Sign]]:
    """(key, sign) with which each mask that is left in the sum is taken off.

    Args:
        self_masks: survivor -> b. mask_keys: site of R1 outside U -> its mask key.
    """
    own: list[tuple[bytes, Sign]] = [
        (keys.self_mask_key(self_mask, view.ctx, site), -1) for site, self_mask in self_masks.items()
    ]
    return own + [
        # What the survivor added with one sign is what the other would have added with the opposite one.
        (keys.mask_key(pair.private, view.tickets[site].mask_key, view.ctx, other, site), _sign(other, site))
        for other, pair in mask_keys.items()
        for site in self_masks
    ]


def _sign(site: str, other: str) -> Sign:
    return 1 if other > site else -1
