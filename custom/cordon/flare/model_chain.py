"""The one sequence of global models that a site goes along with: the version that it saw last, and the head over all.

``head(t) = messages.chain_head(head(t-1), t, SHA-256 of the packed model t)``, head(-1) = ''. Digests are those of the
models in the clear: every site gets the same model under another seal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cordon import messages
from cordon.errors import SignatureError

MAX_LINKS = 100_000


@dataclass(frozen=True)
class ModelChain:
    """``version`` seen last (-1: none), its ``head``, SHA-256 ``model`` of that version's packed model."""

    version: int = -1
    head: str = ""
    model: str = ""

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
        head, last = self.head, self.model
        for number, digest in enumerate(_between(links, self.version, header.version), self.version + 1):
            if number == 0 and digest != first:
                raise SignatureError("the chain does not begin with the job's public first model")
            head, last = messages.chain_head(head, number, digest), digest
        if head != header.model_chain_head or last != model:
            raise SignatureError(f"model version {header.version} does not continue the chain seen at {self.version}")
        return ModelChain(header.version, head, last)


def _between(links: Any, seen: int, wanted: int) -> list[str]:
    """Digests of versions ``seen`` + 1 to ``wanted`` out of ``links``."""
    after, digests = (links.get("after"), links.get("sha256")) if isinstance(links, dict) else (None, None)
    if not isinstance(after, int) or not isinstance(digests, list) or len(digests) > MAX_LINKS:
        raise SignatureError("the message holds no links of the model chain")
    if not -1 <= after <= seen or after + len(digests) != wanted or not all(isinstance(each, str) for each in digests):
        raise SignatureError(f"links of the model chain do not lead from version {seen} to {wanted}")
    return digests[seen - after :]
