"""All that a malicious coordinator and its colluders can compute from what they saw of one cohort.

A set S of sites is *exposed* if the sum of exactly their masked vectors can be freed of every mask: b_i is known for
each i in S, and each k_ij of i in S is known (from sk_i or sk_j) or cancels, because j is in S too and masked over an
R1 with i. Masks are independent keystreams, each in two vectors at most: linear algebra over them gives nothing else.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cordon import signing
from cordon.secagg import dealing, keys, masking, shamir, wire
from cordon.secagg.client import Member
from cordon.secagg.roster import View

from .secagg_cohort import NOW, key_of


class Colluder(Member):
    """Deals like any other, keeps all of its secrets and all that it is dealt, and signs whatever it is asked to."""

    def shares(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        envelope = super().shares(*args, **kwargs)
        self.kept_mask, self.kept_encryption = self._secrets()
        self.kept_self_mask = self._self_mask
        self.kept_own = dict(self._held)
        return envelope


class Spy:
    """What is known: masked vectors and shares as they come in, and all that ``colluders`` hold.

    Args:
        view: the cohort; messages of another ctx are passed over.
    """

    def __init__(self, view: View, colluders: Mapping[str, Colluder] | None = None) -> None:
        self.view = view
        self.vectors: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}  # site -> R1 it masked over, y
        self._shares: dict[tuple[str, str], dict[int, bytes]] = {}  # (kind, owner) -> x -> share
        self._self_masks: dict[str, bytes] = {}
        self._mask_keys: dict[str, keys.Pair] = {}
        for site, colluder in (colluders or {}).items():
            self._self_masks[site], self._mask_keys[site] = colluder.kept_self_mask, colluder.kept_mask
            self.holds(site, colluder.kept_own)
        self._colluders = dict(colluders or {})

    def holds(self, holder: str, held: Mapping[str, dealing.Held]) -> None:
        """Shares that ``holder`` gives away."""
        for owner, each in held.items():
            self._add("self", owner, holder, each.self_mask.share)
            self._add("key", owner, holder, each.mask_key.share)

    def saw_shares(self, site: str, envelope: Any) -> None:
        """A ``Shares`` envelope: the colluders open what is theirs."""
        shares = wire.verify(envelope, wire.Shares, key_of(site).public_key(), NOW)
        if shares.ctx == self.view.ctx:
            for name, colluder in self._colluders.items():
                if name != site:
                    self.holds(name, {site: dealing.receive(self.view, shares, name, colluder.kept_encryption)})

    def saw_masked(self, site: str, envelope: Any, payload: bytes) -> None:
        """A masked vector."""
        header = wire.verify(envelope, wire.Masked, key_of(site).public_key(), NOW)
        if header.ctx == self.view.ctx:
            self.vectors[site] = (header.r1, np.frombuffer(payload, self.view.ring.dtype))

    def saw_unmask(self, site: str, envelope: Any) -> None:
        """Opened shares."""
        answer = wire.verify(envelope, wire.Unmask, key_of(site).public_key(), NOW)
        if answer.ctx == self.view.ctx:
            for owner, each in answer.self_masks.items():
                self._add("self", owner, site, each.share)
            for owner, each in answer.mask_keys.items():
                self._add("key", owner, site, each.share)

    def self_mask(self, site: str) -> bytes | None:
        """b of ``site``, if t shares of it are known."""
        return self._self_masks.get(site) or self._secret("self", site)

    def mask_key(self, site: str) -> keys.Pair | None:
        """The mask key of ``site``, likewise."""
        known = self._mask_keys.get(site)
        secret = None if known else self._secret("key", site)
        return known or (keys.pair_of(secret) if secret else None)

    def exposed(self) -> list[tuple[str, ...]]:
        """Every set of honest sites whose plain sum can be computed, by size."""
        honest = sorted(set(self.vectors) - set(self._colluders))
        return [
            chosen
            for count in range(1, len(honest) + 1)
            for chosen in itertools.combinations(honest, count)
            if self._masks(chosen) is not None
        ]

    def plain_sum(self, chosen: Iterable[str]) -> NDArray[Any]:
        """The plain sum of an exposed set, in words of the ring."""
        chosen = tuple(chosen)
        masks = self._masks(chosen)
        assert masks is not None, "not exposed"
        total = np.zeros_like(self.vectors[chosen[0]][1])
        for site in chosen:
            total = total + self.vectors[site][1]
        masking.add_streams(total, masks)
        return total

    def _masks(self, chosen: tuple[str, ...]) -> list[tuple[bytes, Any]] | None:
        """What has to be taken off the sum over ``chosen``, or None if some of it is not known."""
        masks: list[tuple[bytes, Any]] = []
        for site in chosen:
            self_mask = self.self_mask(site)
            if self_mask is None:
                return None
            masks.append((keys.self_mask_key(self_mask, self.view.ctx, site), -1))
            for other in self.vectors[site][0]:
                if other == site or (other in chosen and site in self.vectors[other][0]):
                    continue
                key = self._pair_key(site, other)
                if key is None:
                    return None
                masks.append((key, -1 if other > site else 1))
        return masks

    def _pair_key(self, site: str, other: str) -> bytes | None:
        for own, peer in ((site, other), (other, site)):
            pair = self.mask_key(own)
            if pair is not None:
                return keys.mask_key(pair.private, self.view.tickets[peer].mask_key, self.view.ctx, own, peer)
        return None

    def _add(self, kind: str, owner: str, holder: str, share: bytes) -> None:
        self._shares.setdefault((kind, owner), {})[self.view.coordinate(holder)] = share

    def _secret(self, kind: str, owner: str) -> bytes | None:
        shares = self._shares.get((kind, owner), {})
        if len(shares) < self.view.threshold:
            return None
        return shamir.combine(dict(itertools.islice(shares.items(), self.view.threshold)), self.view.threshold)


def altered(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(where, tree with one thing changed) for everything in ``tree``: leaves, what lists hold, what envelopes wrap."""
    if isinstance(tree, dict) and set(tree) == {"payloadType", "payload", "signatures"}:
        for where, body in altered(signing.unverified_body(tree), path):
            yield where, {**tree, "payload": base64.b64encode(signing.canonical(body)).decode()}
        for where, other in altered(tree["signatures"], f"{path}/signatures"):
            yield where, {**tree, "signatures": other}
        yield f"{path}/payloadType", {**tree, "payloadType": tree["payloadType"] + "x"}
    elif isinstance(tree, dict):
        for key, value in tree.items():
            for where, other in altered(value, f"{path}/{key}"):
                yield where, {**tree, key: other}
            yield f"{path}/{key} removed", {name: each for name, each in tree.items() if name != key}
        yield f"{path} with an unknown key", {**tree, "more": 1}
    elif isinstance(tree, list):
        for at in {0, len(tree) - 1} if tree else ():
            for where, other in altered(tree[at], f"{path}/{at}"):
                yield where, [*tree[:at], other, *tree[at + 1 :]]
            yield f"{path}/{at} dropped", tree[:at] + tree[at + 1 :]
            yield f"{path}/{at} twice", [*tree[: at + 1], *tree[at:]]
        if len(tree) > 1:
            yield f"{path} reversed", tree[::-1]
    elif isinstance(tree, str):
        middle = len(tree) // 2
        yield path, tree[:middle] + ("0" if tree[middle : middle + 1] != "0" else "1") + tree[middle + 1 :]
    elif isinstance(tree, int | float):
        yield path, tree + 1
    else:
        yield path, {}
