"""Model persistor that takes a sealed model and nothing else: the coordinator's disk never holds one in the clear."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor

from cordon import sealed_model
from cordon.errors import ConfigError

MODEL_FILE = "model.sealed"
_SEALED = "sealed"


def to_model(sealed: bytes) -> FLModel:
    """A sealed model (``cordon.sealed_model``) as FLARE hands it to the persistor."""
    return FLModel(params_type=ParamsType.FULL, params={_SEALED: np.frombuffer(sealed, np.uint8)})


class SafetensorsPersistor(ModelPersistor):
    """Writes the sealed safetensors of ``to_model`` atomically to ``<run folder>/model.sealed``; starts empty."""

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """Empty: what is saved opens to the holders of the release right, not to the coordinator."""
        return make_model_learnable({}, {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Replace the model file; a reader never sees half of one.

        Raises:
            ConfigError: not a sealed model (named arrays, say), or the file cannot be written.
        """
        sealed = _sealed(model[ModelLearnableKey.WEIGHTS])
        workspace = fl_ctx.get_engine().get_workspace()
        path = Path(workspace.get_run_dir(fl_ctx.get_job_id())) / MODEL_FILE
        part = path.with_name(path.name + ".part")
        try:
            try:
                with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                    file.write(sealed)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    part.unlink()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _sealed(weights: object) -> memoryview:
    array = weights.get(_SEALED) if isinstance(weights, dict) and set(weights) == {_SEALED} else None
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 1:
        raise ConfigError("the persistor writes a sealed model only, as one array of bytes")
    data = np.ascontiguousarray(array).data
    sealed_model.read(io.BytesIO(data))
    return data
