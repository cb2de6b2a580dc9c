"""Model persistor without pickle: one safetensors file in the job's run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from safetensors.numpy import load_file, save_file

MODEL_FILE = "model.safetensors"


class SafetensorsPersistor(ModelPersistor):
    """Saves named arrays atomically to ``<run folder>/model.safetensors``; starts empty in a new run."""

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The arrays saved in this run, or an empty model (the controller then makes the initial one)."""
        path = self._path(fl_ctx)
        return make_model_learnable(load_file(path) if path.exists() else {}, {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Write all arrays as float32; a reader never sees half a file."""
        path = self._path(fl_ctx)
        arrays = {
            name: np.ascontiguousarray(value, np.float32) for name, value in model[ModelLearnableKey.WEIGHTS].items()
        }
        part = path.with_suffix(".part")
        save_file(arrays, part)
        part.replace(path)

    @staticmethod
    def _path(fl_ctx: FLContext) -> Path:
        workspace = fl_ctx.get_engine().get_workspace()
        return Path(workspace.get_run_dir(fl_ctx.get_job_id())) / MODEL_FILE
