"""The model file: a sealed model, whole or not there, and nothing in the clear."""

import stat

import numpy as np
import pytest
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from safetensors.numpy import save

from cordon import sealed_model
from cordon.errors import ConfigError
from cordon.flare import persistor
from cordon.flare.persistor import MODEL_FILE, SafetensorsPersistor, to_model
from cordon.sealing import KemKey
from cordon.study import ReleaseRight
from fakes.in_process import Engine

ARRAYS = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "layer.bias": np.ones(2, np.float32)}
KEY = KemKey.generate()
SUBJECT = sealed_model.Subject(
    study="a" * 64,
    study_name="study",
    job="job",
    job_id="1",
    job_digest="b" * 64,
    version=1,
    layout_digest="c" * 64,
)


def sealed(arrays=ARRAYS):
    right = ReleaseRight(holders={"anna": KEY.public_bytes}, persons=1)
    return sealed_model.seal(save(arrays), SUBJECT, right)


@pytest.fixture
def run(kits):
    """(context, model file) of a new run at the coordinator."""
    engine = Engine(kits / "server", "server")
    context = engine.new_context()
    folder = kits / "server" / context.get_job_id()
    folder.mkdir()
    return context, folder / MODEL_FILE


def saved(context, params):
    SafetensorsPersistor().save_model(make_model_learnable(params, {}), context)


def test_what_is_saved_is_the_sealed_model_for_its_owner_alone(run):
    context, path = run
    data = sealed()
    saved(context, to_model(data).params)
    assert path.read_bytes() == data
    assert sealed_model.open_file(path, [KEY])[1] == save(ARRAYS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == [MODEL_FILE]


def test_the_coordinator_cannot_read_a_model_back(run):
    context, _ = run
    assert SafetensorsPersistor().load_model(context)[ModelLearnableKey.WEIGHTS] == {}
    saved(context, to_model(sealed()).params)
    assert SafetensorsPersistor().load_model(context)[ModelLearnableKey.WEIGHTS] == {}


@pytest.mark.parametrize(
    "params",
    [
        ARRAYS,
        {},
        None,
        {"sealed": ARRAYS["layer.bias"]},
        {"sealed": np.frombuffer(save(ARRAYS), np.uint8)},
        {"sealed": np.frombuffer(sealed(), np.uint8)[:100]},
        {"sealed": np.frombuffer(sealed(), np.uint8)[None]},
        {"sealed": sealed()},
        {"sealed": np.frombuffer(sealed(), np.uint8), **ARRAYS},
    ],
    ids=["arrays", "nothing", "none", "floats", "safetensors", "cut", "two axes", "no array", "arrays beside"],
)
def test_a_model_in_the_clear_is_not_written(run, params):
    context, path = run
    with pytest.raises(ConfigError):
        saved(context, params)
    assert list(path.parent.iterdir()) == []


def test_the_next_version_replaces_the_last(run):
    context, path = run
    saved(context, to_model(sealed()).params)
    other = sealed({"w": np.zeros(3, np.float32)})
    saved(context, to_model(other).params)
    assert path.read_bytes() == other


def test_a_write_that_fails_leaves_the_last_model_and_no_part(run, monkeypatch):
    context, path = run
    saved(context, to_model(sealed()).params)
    before = path.read_bytes()

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(persistor.os, "fsync", disk_full)
    with pytest.raises(ConfigError, match="No space left"):
        saved(context, to_model(sealed()).params)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [MODEL_FILE]
