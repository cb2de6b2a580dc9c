"""What the parties of one secure aggregation say to each other: signed documents, and why one of them stops.

Every message is a DSSE envelope. A site signs with its attested key, which its ``Certificate`` ties to the mTLS key of
the study contract's roster: so the coordinator can mint no site. The coordinator signs with its own attested key: so
two different things said to two sites prove what it is. One vector travels beside the messages (``Masked``), as raw
little-endian words of the ring.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from cordon import signing
from cordon.documents import Document, body_of
from cordon.errors import ProtocolAbort, SignatureError
from cordon.messages import DPEvent
from cordon.signing import PrivateKey, PublicKey
from cordon.study import Name, Sha256, Spki

MAX_COHORT = 40
KEY_BYTES = 32  # X25519
SHARE_BYTES = 33  # an element of GF(2^256 + 297), big-endian
SALT_BYTES = 16
SEALED_BYTES = 2 * SHARE_BYTES + 3 * SALT_BYTES + 16  # what one site deals to another, and the tag of AES-256-GCM

ABORT_REASONS = {
    "out_of_order": "a message came that this stage does not take, or came twice",
    "bad_message": "a message is not signed by who it must be of, does not fit its schema or is of another cohort",
    "bad_roster": "the roster holds a site that the study does not know, one twice, not this site, or another ticket",
    "too_few": "fewer sites than the study, the job or the site's policy asks for",
    "collusion_bound": "more colluding sites than the threshold can bear",
    "off_chain": "a ticket of the cohort is not on the one chain of models",
    "wrong_terms": "a ticket differs from the job's plan",
    "bad_share": "a share does not open, or is not the one that its owner signed",
    "bad_survivors": "R1 or the survivor set is not within the set before it, or does not hold this site",
    "two_views": "another R1, survivor set or deal was shown or signed in this cohort",
    "bad_confirmations": "too few valid signatures on one survivor set",
    "bad_reconstruction": "shares do not give the secret that its owner committed to",
    "bad_group_map": "the group map is not what all commitments and reveals give",
    "not_finite": "the vector holds NaN or infinity, or a coordinate over its bound",
    "lost": "too many sites were lost for the sum to open",
}
"""Stable codes of ``ProtocolAbort``."""

Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Salt = Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
ShareValue = Annotated[bytes, Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
SealedShares = Annotated[bytes, Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
Id = Annotated[str, Meta(min_length=16, max_length=128)]
Sites = Annotated[tuple[Name, ...], Meta(max_length=MAX_COHORT)]


class Certificate(Document, frozen=True, kw_only=True):
    """The mTLS key of a site says: in this job, ``signing_key`` is mine."""

    v: Literal[1]
    study: Sha256
    job: str
    site: Name
    signing_key: Spki


class Ticket(Document, frozen=True, kw_only=True):
    """0, site -> coordinator -> cohort: an update made under the coordinator's ``ticket`` is ready to be masked.

    ``mask_key`` and ``encryption_key`` are X25519 keys made for this message: one ticket, one cohort, one mask.
    """

    v: Literal[1]
    job: str
    site: Name
    ticket: Id
    base_version: Annotated[int, Meta(ge=0)]
    model_chain_head: Sha256
    layout_digest: Sha256
    privacy: Literal["masked"]
    dp_event: DPEvent
    mask_key: Key
    encryption_key: Key
    certificate: dict[str, Any]
    ledger: dict[str, Any] | None = None


class Roster(Document, frozen=True, kw_only=True):
    """1, coordinator -> site: the cohort. ``version`` of the model as it formed; staleness is counted from it."""

    v: Literal[1]
    job: str
    cohort: Id
    version: Annotated[int, Meta(ge=0)]
    tickets: Annotated[tuple[dict[str, Any], ...], Meta(max_length=MAX_COHORT)]


class Shares(Document, frozen=True, kw_only=True):
    """1, site -> coordinator -> cohort: shares of the site's two secrets, sealed to each other member, and the salted
    hash of every share (site -> (of the self mask's, of the mask key's)); ``own`` commits to the self mask itself."""

    v: Literal[1]
    ctx: Sha256
    site: Name
    sealed: Annotated[dict[Name, SealedShares], Meta(max_length=MAX_COHORT)]
    hashes: Annotated[dict[Name, tuple[Sha256, Sha256]], Meta(max_length=MAX_COHORT)]
    own: Sha256


class Delivery(Document, frozen=True, kw_only=True):
    """2, coordinator -> site: everybody's ``Shares`` envelopes; the sites in it are R1."""

    v: Literal[1]
    ctx: Sha256
    shares: Annotated[tuple[dict[str, Any], ...], Meta(max_length=MAX_COHORT)]


class Masked(Document, frozen=True, kw_only=True):
    """2, site -> coordinator: header of the masked vector."""

    v: Literal[1]
    ctx: Sha256
    site: Name
    r1: Sites
    payload_sha256: Sha256


class Survivors(Document, frozen=True, kw_only=True):
    """3, coordinator -> site: whose masked vectors are in the sum."""

    v: Literal[1]
    ctx: Sha256
    r1: Sites
    survivors: Sites


class Confirmation(Document, frozen=True, kw_only=True):
    """3, site -> coordinator -> survivors: signed once in a cohort, for the R1 that the site masked over."""

    v: Literal[1]
    ctx: Sha256
    site: Name
    r1: Sites
    survivors: Sites


class Confirmations(Document, frozen=True, kw_only=True):
    """4, coordinator -> site: the ``Confirmation`` envelopes."""

    v: Literal[1]
    ctx: Sha256
    confirmations: Annotated[tuple[dict[str, Any], ...], Meta(max_length=MAX_COHORT)]


class OpenedShare(Document, frozen=True, kw_only=True):
    """One share and the salt of its hash; ``own_salt`` beside a self mask's share is that of ``Shares.own``."""

    share: ShareValue
    salt: Salt
    own_salt: Salt | None = None


class Unmask(Document, frozen=True, kw_only=True):
    """4, site -> coordinator: for each survivor its self mask's share, for each other site of R1 its mask key's share;
    never both of one site."""

    v: Literal[1]
    ctx: Sha256
    site: Name
    self_masks: Annotated[dict[Name, OpenedShare], Meta(max_length=MAX_COHORT)]
    mask_keys: Annotated[dict[Name, OpenedShare], Meta(max_length=MAX_COHORT)]


class Commit(Document, frozen=True, kw_only=True):
    """Group map, site -> coordinator -> all: the salted hash of the site's contribution."""

    v: Literal[1]
    job: str
    site: Name
    commitment: Sha256
    certificate: dict[str, Any]


class Commits(Document, frozen=True, kw_only=True):
    """Group map, coordinator -> site: everybody's ``Commit`` envelopes. A site reveals for one such set, once."""

    v: Literal[1]
    job: str
    commits: Annotated[tuple[dict[str, Any], ...], Meta(max_length=1000)]


class Reveal(Document, frozen=True, kw_only=True):
    """Group map, site -> coordinator -> all: the contribution, for the set of commits with digest ``commits``."""

    v: Literal[1]
    job: str
    site: Name
    commits: Sha256
    contribution: Key


class Reveals(Document, frozen=True, kw_only=True):
    """Group map, coordinator -> site: everybody's ``Reveal`` envelopes; the map follows from them (``groups.draw``)."""

    v: Literal[1]
    job: str
    reveals: Annotated[tuple[dict[str, Any], ...], Meta(max_length=1000)]


Message = TypeVar(
    "Message",
    Certificate,
    Ticket,
    Roster,
    Shares,
    Delivery,
    Masked,
    Survivors,
    Confirmation,
    Confirmations,
    Unmask,
    Commit,
    Commits,
    Reveal,
    Reveals,
)


# Characters of base64. 40 tickets or deals of this length fit one envelope of the coordinator's, and 1000 commitments.
_LIMITS: dict[type, int] = {
    **dict.fromkeys((Ticket, Shares, Masked, Confirmation, Unmask), 32 * 1024),
    **dict.fromkeys((Certificate, Commit, Reveal), 5 * 1024),
}


def _type(schema: type) -> str:
    return f"application/vnd.cordon.secagg.{schema.__name__.lower()}.v1+json"


def sign(key: PrivateKey, message: Any) -> dict[str, Any]:
    """``message`` as a DSSE envelope of its own type."""
    return signing.sign(key, _type(type(message)), body_of(message))


def verify(envelope: Any, schema: type[Message], key: PublicKey, now: datetime, signer: str = "") -> Message:
    """The message in ``envelope`` if ``key`` signed it as a ``schema``; ProtocolAbort ``bad_message`` if not.

    Args:
        signer: whose key it is: blamed for what it signed and what does not fit the schema, never for a bad signature.
    """
    _check_size(envelope, schema)
    try:
        body, _ = signing.verify(envelope, _type(schema), [key], now)
    except SignatureError as error:
        raise ProtocolAbort("bad_message", f"{schema.__name__}: {error}") from error
    try:
        return msgspec.convert(body, schema, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProtocolAbort("bad_message", f"{schema.__name__}: {error}", signer) from error


def _check_size(envelope: Any, schema: type) -> None:
    """What sites say is handed on to all others in one message: one long one must not make that too long to read."""
    if not isinstance(envelope, dict) or not isinstance(envelope.get("payload"), str):
        raise ProtocolAbort("bad_message", f"{schema.__name__}: not a DSSE envelope")
    limit = _LIMITS.get(schema, signing.MAX_ENVELOPE * 4 // 3)
    if len(envelope["payload"]) > limit:
        raise ProtocolAbort("bad_message", f"{schema.__name__}: longer than the {limit} characters allowed")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise ProtocolAbort("bad_message", f"{schema.__name__}: want one signature, of who it must be of")


def named_site(envelope: Any) -> str:
    """The site that an envelope names, '' if none: only to choose which key to verify it with."""
    try:
        site = signing.unverified_body(envelope).get("site")
    except SignatureError as error:
        raise ProtocolAbort("bad_message", str(error)) from error
    return site if isinstance(site, str) else ""
