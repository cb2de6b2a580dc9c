"""The one sequence of global models that a site goes along with: the heads that it verified, and the newest it saw.

``head(t) = messages.chain_head(head(t-1), t, SHA-256 of the packed model t)``, head(-1) = ''. Digests are those of the
models in the clear: every site gets the same model under another seal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cordon import messages
from cordon.errors import SignatureError

MAX_LINKS = 100_000


@dataclass(frozen=True)
class ModelChain:
    """``version``: of the newest model that came (-1: none). ``models``: SHA-256 of each packed model from version 0
    on, as far as this site knows the chain, which may be further than ``version``; ``heads``: the head at each."""

    version: int = -1
    models: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def follow(self, header: messages.ModelHeader, links: Any, model: str, first: str) -> ModelChain:
        """The chain up to the model of ``header``. Showing sites different models would let a coordinator read one
        site's update out of the next version; so each link is recomputed here.

        Args:
            links: ``{"after": version, "sha256": [digests of the versions after it]}``, from the coordinator.
            model: SHA-256 of the packed model that came.
            first: what version 0 must be: it follows from the job's public seed.

        Raises:
            SignatureError: older than what was seen, another model of the same version, or no continuation.
        """
        if header.version < self.version:
            raise SignatureError(f"model version {header.version} is older than {self.version}, which was seen")
        known = self.extend(links, header.version, first)
        if (known.heads[header.version], known.models[header.version]) != (header.model_chain_head, model):
            raise SignatureError(f"model version {header.version} does not continue the chain seen at {self.version}")
        return replace(known, version=header.version)

    def extend(self, links: Any, wanted: int, first: str) -> ModelChain:
        """This chain, known up to version ``wanted`` at least; only what is new to it is read from ``links``.

        Raises:
            SignatureError: they don't lead there, or not from the job's first model.
        """
        models, heads = list(self.models), list(self.heads)
        for digest in _between(links, len(models) - 1, wanted):
            if not models and digest != first:
                raise SignatureError("the chain does not begin with the job's public first model")
            heads.append(messages.chain_head(heads[-1] if heads else "", len(models), digest))
            models.append(digest)
        return ModelChain(self.version, tuple(models), tuple(heads))

    def upto(self, version: int) -> ModelChain:
        """Without what is known of versions after ``version``."""
        return ModelChain(self.version, self.models[: version + 1], self.heads[: version + 1])

    def head(self, version: int) -> str | None:
        """At ``version``; None where this site does not know the chain so far."""
        return self.heads[version] if 0 <= version < len(self.heads) else None


def _between(links: Any, known: int, wanted: int) -> list[str]:
    """Digests of versions ``known`` + 1 to ``wanted`` out of ``links``."""
    after, digests = (links.get("after"), links.get("sha256")) if isinstance(links, dict) else (None, None)
    if not isinstance(after, int) or not isinstance(digests, list) or len(digests) > MAX_LINKS:
        raise SignatureError("the message holds no links of the model chain")
    # What is known need not be linked to again; what came with the links must agree with it all the same (the head).
    if not -1 <= after <= known or after + len(digests) != wanted or not all(isinstance(each, str) for each in digests):
        raise SignatureError(f"links of the model chain do not lead from version {known} to {wanted}")
    return digests[known - after :]
