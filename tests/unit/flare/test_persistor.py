"""The model file: safetensors, float32, whole or not there."""

import json

import numpy as np
import pytest
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from safetensors.numpy import load_file

from cordon.flare import persistor
from cordon.flare.persistor import MODEL_FILE, SafetensorsPersistor
from fakes.in_process import Engine

ARRAYS = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "layer.bias": np.ones(2, np.float32)}


@pytest.fixture
def run(kits):
    """(context, model file) of a new run at the coordinator."""
    engine = Engine(kits / "server", "server")
    context = engine.new_context()
    folder = kits / "server" / context.get_job_id()
    folder.mkdir()
    return context, folder / MODEL_FILE


def test_a_new_run_has_no_model(run):
    context, _ = run
    assert SafetensorsPersistor().load_model(context)[ModelLearnableKey.WEIGHTS] == {}


def test_there_and_back(run):
    context, path = run
    SafetensorsPersistor().save_model(make_model_learnable(ARRAYS, {}), context)
    loaded = SafetensorsPersistor().load_model(context)[ModelLearnableKey.WEIGHTS]
    assert set(loaded) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert [each.name for each in path.parent.iterdir()] == [MODEL_FILE]


def test_everything_is_float32_in_order(run):
    context, path = run
    odd = {"w": np.arange(6, dtype=np.float64).reshape(2, 3).T}
    SafetensorsPersistor().save_model(make_model_learnable(odd, {}), context)
    stored = load_file(path)["w"]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, odd["w"])


def test_the_file_is_no_pickle(run):
    context, path = run
    SafetensorsPersistor().save_model(make_model_learnable(ARRAYS, {}), context)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {name for name in header if name != "__metadata__"} == set(ARRAYS)


def test_a_write_that_fails_leaves_the_last_model(run, monkeypatch):
    context, path = run
    SafetensorsPersistor().save_model(make_model_learnable(ARRAYS, {}), context)
    before = path.read_bytes()

    def disk_full(arrays, part):
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(persistor, "save_file", disk_full)
    with pytest.raises(OSError, match="no space left"):
        SafetensorsPersistor().save_model(make_model_learnable({"w": np.zeros(9)}, {}), context)
    assert path.read_bytes() == before
