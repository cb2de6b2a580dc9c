"""FLModel <-> Cordon's signed messages; nowhere else.

A message is ``FLModel(params={"payload": uint8 array}, meta={"cordon": {...}})``. FLARE adds keys of its own to meta;
they are not read.
"""

from __future__ import annotations

import base64
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


def from_model(model: FLModel) -> tuple[dict[str, Any], bytes]:
    """(parts, payload) of a message; SignatureError if it is not one: nothing signed can be in it."""
    parts = (model.meta or {}).get(META)
    params = model.params if isinstance(model.params, dict) else {}
    payload = params.get(PAYLOAD)
    if not isinstance(parts, dict) or set(params) != {PAYLOAD}:
        raise SignatureError("not a Cordon message: want params {payload} and meta.cordon")
    if not isinstance(payload, np.ndarray) or payload.dtype != np.uint8 or payload.ndim != 1:
        raise SignatureError("payload is not a one-dimensional uint8 array")
    if payload.size > MAX_PAYLOAD:
        raise SignatureError(f"payload is larger than {MAX_PAYLOAD} bytes")
    return parts, payload.tobytes()


def nonce(parts: dict[str, Any]) -> bytes:
    """The challenge in a message, NONCE_BYTES long; SignatureError if there is none."""
    try:
        value = base64.b64decode(parts["nonce"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise SignatureError("the message holds no challenge") from error
    if len(value) != NONCE_BYTES:
        raise SignatureError(f"challenge has {len(value)} bytes, want {NONCE_BYTES}")
    return value
