"""Everything that coordinator and site say to each other during a job: headers, payloads, reasons.

A message is an FLModel with ``params = {"payload": uint8 array}`` and ``meta["cordon"]`` = a DSSE envelope over one of
the headers below, signed by the sender's *attested* key. A payload is safetensors, sealed to the receiver's *attested*
KEM key and bound to its header (``seal``, ``open_payload``). The header names the SHA-256 of the payload as sent; a
signature that does not cover the payload is no signature. Nothing else leaves a site: no metric, no count.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from cordon import sealing, signing
from cordon.documents import Document, body_of
from cordon.errors import SealError, SignatureError, UpdateRejected
from cordon.job import DPPlan
from cordon.params import Vector
from cordon.signing import PrivateKey, PublicKey, canonical, digest
from cordon.study import Sha256

REJECT_REASONS = {
    "bad_signature": "not signed by the key that the site attested for this job",
    "bad_header": "header does not fit its schema or names another job",
    "bad_payload": "payload is not one float32 tensor of the agreed name and shape, or not the signed bytes",
    "bad_seal": "does not open with the key of this coordinator process under the header that was signed",
    "bad_ledger": "carries no ledger head of the hospital's key broker, or an older or another one than was seen",
    "bad_layout": "made for another model layout",
    "unknown_ticket": "answers no outstanding ticket of this site (duplicate, replay or forgery)",
    "wrong_base": "trained from another base model than its ticket names",
    "too_stale": "older than the job's max_staleness",
    "not_finite": "holds NaN or infinity",
    "over_norm_bound": "L2 norm over the job's public norm_bound",
    "wrong_privacy": "privacy mode or DP event differs from the job's plan",
    "bad_secagg": "a signed message of secure aggregation that its protocol proves wrong",
}
"""Stable reason codes for a refused update; each is a fault that the site's signature proves, or a broken message."""

REFUSAL_REASONS = {
    "data_source": "the site's data source cannot be read",
    "data_mapping": "the mapping is missing, unconfirmed or does not cover the contract",
    "data_not_finite": "a value in the site's data is NaN or infinite",
    "data_rows_rejected": "more rows were rejected than the contract allows",
    "data_vault": "the site's data vault does not open, or was changed",
    "data_error": "the site's data cannot be used",
    "key_refused": "the hospital's key broker released no key for this job",
    "key_unavailable": "the hospital's key broker cannot be reached at the moment",
    "policy_refused": "the site's policy forbids what the job asks",
    "attestation_failed": "the coordinator's evidence does not show what the site's policy asks",
    "coordinator_not_attested": "the coordinator is not attested at the site any more",
    "evidence_unavailable": "the site's hardware makes no evidence at the moment",
    "bad_message": "the coordinator's message is not signed, not for this job or not on the model chain",
    "cohort_aborted": "secure aggregation ended for this site: what came does not allow it to go on",
    "update_spent": "the update was masked in a cohort that ended: it is not used again",
    "too_many_aborts": "more cohorts ended with a masked update of the site in them than its policy allows",
    "plan_exhausted": "the site already used its rounds_per_site",
    "site_error": "an error inside the site; its own log has the details",
}
"""Stable codes of a signed refusal: what a site may say about why it does not train."""


class DPEvent(Document, frozen=True, kw_only=True):
    """A mechanism run as a frozen value: accountants interpret it, nothing here computes."""

    mechanism: Literal["poisson_subsampled_gaussian", "distributed_discrete_gaussian"]
    noise_multiplier: float
    sampling_rate: float
    steps: int
    clip_norm: float
    unit: Literal["patient"]

    @classmethod
    def of(cls, plan: DPPlan) -> DPEvent:
        """The mechanism of one round of ``plan``."""
        return cls(
            mechanism="poisson_subsampled_gaussian",
            noise_multiplier=plan.noise_multiplier,
            sampling_rate=plan.sampling_rate,
            steps=plan.steps,
            clip_norm=plan.clip_norm,
            unit=plan.unit,
        )


class LedgerHead(Document, frozen=True, kw_only=True):
    """Head of a hospital's ledger, signed by its key broker: whoever saw a later one notices a rolled-back copy."""

    v: Literal[1]
    ledger: Annotated[str, Meta(max_length=128)]
    seq: Annotated[int, Meta(ge=0)]
    head: Sha256


class ModelHeader(Document, frozen=True, kw_only=True):
    """Coordinator -> site: this is global model ``version``; train from it under ``ticket``."""

    v: Literal[1]
    job: str
    ticket: str
    version: Annotated[int, Meta(ge=0)]
    model_chain_head: Sha256
    layout_digest: Sha256
    payload_sha256: Sha256


class UpdateHeader(Document, frozen=True, kw_only=True):
    """Site -> coordinator: the clipped, noised delta made under ``ticket`` from ``base_version``.

    ``sealed_to`` names the KEM key that it is sealed to (``sealing.kem_digest``): so a process that was started anew
    tells an update for its predecessor, which is nobody's fault, from one that does not open.

    ``ledger`` is the envelope over ``LedgerHead`` that came with the lease of the site's data key; None only where the
    study contract names no broker of the site (POC).
    """

    v: Literal[1]
    job: str
    ticket: str
    base_version: Annotated[int, Meta(ge=0)]
    model_chain_head: Sha256
    layout_digest: Sha256
    privacy: str
    dp_event: DPEvent
    sealed_to: Sha256
    payload_sha256: Sha256
    ledger: dict[str, Any] | None = None


class Refusal(Document, frozen=True, kw_only=True):
    """Site -> coordinator: no update under ``ticket``; ``code`` is one of REFUSAL_REASONS and all that is said."""

    v: Literal[1]
    job: str
    ticket: str
    code: str


Header = TypeVar("Header", ModelHeader, UpdateHeader, Refusal, LedgerHead)
Sealed = TypeVar("Sealed", ModelHeader, UpdateHeader)

_TYPES: dict[type, str] = {
    ModelHeader: "application/vnd.cordon.model.v1+json",
    UpdateHeader: "application/vnd.cordon.update.v1+json",
    Refusal: "application/vnd.cordon.refusal.v1+json",
    LedgerHead: "application/vnd.cordon.ledger-head.v1+json",
}

_PURPOSES: dict[type, str] = {ModelHeader: "cordon/model/v1", UpdateHeader: "cordon/update/v1"}


def sign(key: PrivateKey, header: ModelHeader | UpdateHeader | Refusal | LedgerHead) -> dict[str, Any]:
    """``header`` as a DSSE envelope."""
    return signing.sign(key, _TYPES[type(header)], body_of(header))


def verify(envelope: Any, schema: type[Header], key: PublicKey, now: datetime) -> Header:
    """The header in ``envelope`` if ``key`` signed it as a ``schema``; SignatureError for anything else."""
    body, _ = signing.verify(envelope, _TYPES[schema], [key], now)
    try:
        return msgspec.convert(body, schema, strict=True)
    except msgspec.ValidationError as error:
        raise SignatureError(f"signed header does not fit its schema: {error}") from error


def seal(header: Sealed, plaintext: bytes, key: MLKEM768X25519PublicKey) -> tuple[Sealed, bytes]:
    """``plaintext`` sealed to ``key`` under ``header``; and the header to sign, with the hash of what is sent.

    ``info = lp(purpose) || lp(RFC 8785 form of the header's body without payload_sha256)``: bytes that were sealed
    under one header (site's ticket, version, job ...) don't open under another, whoever signs that one.
    """
    sealed = sealing.seal(plaintext, key, _PURPOSES[type(header)], _bound(header))
    return msgspec.structs.replace(header, payload_sha256=sha256(sealed)), sealed


def open_payload(header: ModelHeader | UpdateHeader, payload: bytes, key: MLKEM768X25519PrivateKey) -> bytes:
    """Inverse of ``seal``; ``header`` comes from ``verify``.

    Raises:
        UpdateRejected: ``bad_payload`` if these are not the bytes that were signed, ``bad_seal`` if they don't open.
    """
    if header.payload_sha256 != sha256(payload):
        raise UpdateRejected("bad_payload", "payload is not the signed one")
    try:
        return sealing.open_sealed(payload, key, _PURPOSES[type(header)], _bound(header))
    except SealError as error:
        raise UpdateRejected("bad_seal", str(error)) from error


def _bound(header: ModelHeader | UpdateHeader) -> bytes:
    body = body_of(header)
    del body["payload_sha256"]  # it covers what is made here
    return canonical(body)


def chain_head(previous: str, version: int, model_sha256: str) -> str:
    """Head of the model chain after ``version``: commits to every model since the first ('' before it).

    Args:
        model_sha256: of the packed model in the clear; the same whoever it is sealed to.
    """
    return digest("cordon/model-chain/v1", previous.encode(), str(version).encode(), model_sha256.encode())


def pack(name: Literal["w", "delta"], vector: Vector) -> bytes:
    """A payload: safetensors with the one tensor ``name`` (d,) float32."""
    return save_safetensors({name: np.ascontiguousarray(vector, dtype=np.float32)})


def max_payload(size: int) -> int:
    """Bytes that a packed vector of ``size`` parameters may have: the numbers and safetensors' header."""
    return 4 * size + 1024


def max_sealed(size: int) -> int:
    """The same as it is sent."""
    return max_payload(size) + sealing.OVERHEAD


def unpack(name: Literal["w", "delta"], payload: bytes, size: int) -> Vector:
    """The tensor of a payload; its length is bounded before it is parsed.

    Raises:
        UpdateRejected: ``bad_payload`` unless it is exactly one float32 tensor ``name`` of shape (size,).
    """
    if len(payload) > max_payload(size):
        raise UpdateRejected("bad_payload", f"{len(payload)} bytes for {size} parameters")
    try:
        tensors = load_safetensors(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UpdateRejected("bad_payload", "not safetensors") from error
    vector = tensors.get(name)
    if set(tensors) != {name} or vector is None or vector.dtype != np.float32 or vector.shape != (size,):
        shapes = {key: (str(value.dtype), value.shape) for key, value in tensors.items()}
        raise UpdateRejected("bad_payload", f"want {name!r} float32 ({size},), got {shapes}")
    return np.array(vector, dtype=np.float32)


def sha256(payload: bytes) -> str:
    """Hex SHA-256 of bytes: a payload as sent, a packed model."""
    return hashlib.sha256(payload).hexdigest()
