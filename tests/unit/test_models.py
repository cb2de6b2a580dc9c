"""The closed table of models: what it builds, what it refuses, vectors in and out."""

import numpy as np
import pytest
import torch

from cordon import models
from cordon.errors import ConfigError


def test_no_hidden_layer_is_logistic_regression() -> None:
    net = models.build("FullyConnectedNet", {"hidden_channels": []}, 30)
    assert type(net).__module__.startswith("monai.")
    assert models.layout_of(net).shapes == (("output.bias", (1,)), ("output.weight", (1, 30)))
    x = torch.randn(4, 30)
    (bias, weight) = dict(net.named_parameters())["output.bias"], dict(net.named_parameters())["output.weight"]
    assert torch.allclose(net(x), x @ weight.T + bias)


def test_unknown_name_lists_the_table() -> None:
    with pytest.raises(ConfigError, match=r"'os\.system'; models are FullyConnectedNet"):
        models.build("os.system", {}, 30)


@pytest.mark.parametrize(
    "args",
    [
        {"hidden_channels": [10**9]},
        {"hidden_channels": [0]},
        {"hidden_channels": [8] * 5},
        {"hidden_channels": "8"},
        {"hidden_channels": [8.5]},
        {"act": "relu"},
        {"out_channels": 2},
    ],
)
def test_hostile_arguments_are_refused(args: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="FullyConnectedNet"):
        models.build("FullyConnectedNet", args, 30)


@pytest.mark.parametrize("features", [0, -1, 10_001])
def test_input_size_is_bounded(features: int) -> None:
    with pytest.raises(ConfigError, match="input features"):
        models.build("FullyConnectedNet", {}, features)


def test_vector_goes_in_and_comes_out() -> None:
    net = models.build("FullyConnectedNet", {"hidden_channels": [5, 3]}, 4)
    w = np.random.default_rng(0).normal(size=models.layout_of(net).size).astype(np.float32)
    models.set_vector(net, w)
    assert np.array_equal(models.get_vector(net), w)
    with pytest.raises(ConfigError, match="does not fit"):
        models.set_vector(net, w[:-1])
    assert np.array_equal(models.get_vector(net), w)


def test_initial_vector_repeats_and_leaves_the_global_rng_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = models.initial_vector("FullyConnectedNet", {}, 30, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first, models.initial_vector("FullyConnectedNet", {}, 30, seed=1))
    assert not np.array_equal(first, models.initial_vector("FullyConnectedNet", {}, 30, seed=2))
    with pytest.raises(ConfigError, match="seed"):
        models.initial_vector("FullyConnectedNet", {}, 30, seed=2**64)


def test_buffers_are_refused_because_they_hold_statistics_of_patients() -> None:
    with pytest.raises(ConfigError, match="buffers"):
        models.get_vector(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))


def test_double_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="float32"):
        models.get_vector(torch.nn.Linear(2, 2).double())
