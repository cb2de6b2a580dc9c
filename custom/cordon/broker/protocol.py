"""What goes over the wire between a site's job process and its hospital's broker: JSON over HTTPS with mTLS.

======================  =====================  ============================================
``POST``                body                   answer (200)
======================  =====================  ============================================
``/v1/challenge``       ``ChallengeRequest``   ``Challenge``
``/v1/release``         ``ReleaseRequest``     ``Release``
``/v1/lease``           ``LeaseQuery``         ``LeaseState``
======================  =====================  ============================================

Every other status has a ``Refusal`` as its body: 400 malformed, 403 refused, 404, 405, 413 too large, 429 rate limited,
500, 503. The client is known by the key of its TLS certificate alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from cordon.broker.gate import JobId, KeyRequest, Nonce, Text
from cordon.documents import Document
from cordon.study import Sha256

MAX_BODY = 2 * 1024 * 1024  # bytes; evidence has at most 1 MiB of base64
WRAP_PURPOSE = "cordon/release/v1"


class ChallengeRequest(Document, frozen=True, kw_only=True):
    """Asks for a nonce for the key of ``job`` (FLARE's job id)."""

    v: Literal[1]
    job: JobId


class Challenge(Document, frozen=True, kw_only=True):
    """``policy_digest``: of the attestation policy by which the broker will judge; the evidence names it."""

    v: Literal[1]
    nonce: Nonce
    policy_digest: Sha256
    expires: datetime


class ReleaseRequest(Document, frozen=True, kw_only=True):
    """``evidence``: DSSE by the mTLS key over ``attest.appraise.Evidence``, purpose ``release``; ``request``: DSSE by
    the attested signing key over ``KeyRequest``."""

    v: Literal[1]
    evidence: dict[str, Any]
    request: dict[str, Any]


class Release(Document, frozen=True, kw_only=True):
    """``lease``, ``ledger`` (over ``messages.LedgerHead``), ``receipt``: DSSE by the broker's long-lived key.

    ``wrapped``: the 32 bytes of the vault key, sealed to the KEM key that the evidence binds (``wrap_context``).
    """

    v: Literal[1]
    lease: dict[str, Any]
    ledger: dict[str, Any]
    receipt: dict[str, Any]
    wrapped: Annotated[bytes, Meta(max_length=4096)]


class LeaseQuery(Document, frozen=True, kw_only=True):
    """Asks whether a lease of this client still stands."""

    v: Literal[1]
    lease: Text


class LeaseState(Document, frozen=True, kw_only=True):
    """``unknown`` is also the answer for another client's lease."""

    v: Literal[1]
    state: Literal["live", "expired", "revoked", "unknown"]


class Refusal(Document, frozen=True, kw_only=True):
    """``code``: of ``gate.REASONS``, or ``bad_http``, ``too_large``, ``internal``. ``receipt`` where one was made."""

    v: Literal[1]
    code: Text
    detail: Annotated[str, Meta(max_length=1000)]
    receipt: dict[str, Any] | None = None


def wrap_context(request: KeyRequest, context: bytes, evidence_sha256: bytes, lease: bytes) -> tuple[bytes, ...]:
    """What the wrapped key is bound to (``sealing.seal(key, kem_key, WRAP_PURPOSE, *wrap_context(...))``).

    Args:
        context: ``attest.binding.Context.canonical()`` of the evidence.
        evidence_sha256: SHA-256 of the evidence envelope's payload text.
        lease: RFC 8785 form of the lease's body.
    """
    return context, request.nonce, evidence_sha256, lease
