"""The stamp of a data vault: which version of which dataset a key broker remembers and a lease carries.

A stamp needs no key to compute (``cordon.data.vault.stamp_of``) and holds no secret.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from cordon.documents import Document
from cordon.study import Sha256

MAX_VERSION = 2**53 - 1  # the largest integer that canonical JSON carries exactly (RFC 8785, section 3.2.2.3)

VaultId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class Stamp(Document, frozen=True, kw_only=True):
    """``vault``: the dataset, over all its versions. ``version``: grows by one whenever it is sealed again or rekeyed.
    ``root``: digest of header and directory, which stand for everything else (custom/cordon/data/vault/README.md)."""

    vault: VaultId
    version: Annotated[int, Meta(ge=1, le=MAX_VERSION)]
    root: Sha256
