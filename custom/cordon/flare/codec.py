"""FLModel <-> Cordon's signed messages; nowhere else.

A message is ``FLModel(params={"payload": uint8 array}, meta={"cordon": {...}})``. FLARE adds keys of its own to meta;
they are not read.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from cordon.attest.binding import NONCE_BYTES
from cordon.errors import SignatureError

META = "cordon"
PAYLOAD = "payload"
MAX_PAYLOAD = 4 * 1024**3


def to_model(parts: dict[str, Any], payload: bytes = b"") -> FLModel:
    """A message: named JSON parts (envelopes, nonces) and one payload."""
    return FLModel(
        params_type=ParamsType.FULL, params={PAYLOAD: np.frombuffer(payload, dtype=np.uint8)}, meta={META: parts}
    )


def from_model(model: FLModel, limit: int = MAX_PAYLOAD) -> tuple[dict[str, Any], bytes]:
    """(parts, payload) of a message; SignatureError if it is not one: nothing signed can be in it.

    Args:
        limit: bytes of payload accepted before it is copied.
    """
    parts = (model.meta or {}).get(META)
    params = model.params if isinstance(model.params, dict) else {}
    payload = params.get(PAYLOAD)
    if not isinstance(parts, dict) or set(params) != {PAYLOAD}:
        raise SignatureError("not a Cordon message: want params {payload} and meta.cordon")
    if not isinstance(payload, np.ndarray) or payload.dtype != np.uint8 or payload.ndim != 1:
        raise SignatureError("payload is not a one-dimensional uint8 array")
    if payload.size > limit:
        raise SignatureError(f"payload is larger than {limit} bytes")
    return parts, payload.tobytes()


def has(message: Any, part: str) -> bool:
    """Whether ``message`` says it holds ``part``; nothing of it is verified or copied."""
    parts = (getattr(message, "meta", None) or {}).get(META)
    return isinstance(parts, dict) and part in parts


def nonce(parts: dict[str, Any]) -> bytes:
    """The challenge in a message, NONCE_BYTES long; SignatureError if there is none."""
    try:
        value = base64.b64decode(parts["nonce"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise SignatureError("the message holds no challenge") from error
    if len(value) != NONCE_BYTES:
        raise SignatureError(f"challenge has {len(value)} bytes, want {NONCE_BYTES}")
    return value


def policy_digest(parts: dict[str, Any]) -> str:
    """The digest of the attestation policy by which the asker will judge; it goes into a signed statement as it is."""
    value = parts.get("policy_digest")
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise SignatureError("the message names no policy digest")
    return value
