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


# -- parameters that stay at a site ----------------------------------------------------------------------------------

HEAD = ("output.weight", "output.bias")


def test_shared_and_local_parameters_go_in_and_out_apart() -> None:
    net = models.build("FullyConnectedNet", {"hidden_channels": [3]}, 4)
    whole, head = models.get_vector(net), models.get_local(net, HEAD)
    shared = models.get_vector(net, HEAD)
    assert (len(whole), len(shared), len(head)) == (len(shared) + 4, 4 * 3 + 3 + 1, 4)  # 1: the PReLU's slope
    models.set_vector(net, shared + 1, HEAD)
    assert np.array_equal(models.get_local(net, HEAD), head)
    assert np.array_equal(models.get_vector(net, HEAD), shared + 1)
    models.set_local(net, head + 2, HEAD)
    assert np.array_equal(models.get_local(net, HEAD), head + 2)
    assert np.array_equal(models.get_vector(net, HEAD), shared + 1)
    layout = models.layout_of(net)
    assert np.array_equal(models.get_vector(net), layout.join(shared + 1, head + 2, HEAD))


def test_local_parameters_that_a_model_does_not_have_are_refused() -> None:
    net = models.build("FullyConnectedNet", {}, 4)
    for call in (
        lambda: models.get_vector(net, ["outputs.bias"]),
        lambda: models.set_vector(net, np.zeros(5, np.float32), ["outputs.bias"]),
        lambda: models.get_local(net, ["outputs.bias"]),
        lambda: models.set_local(net, np.zeros(1, np.float32), ["outputs.bias"]),
    ):
        with pytest.raises(ConfigError, match=r"no parameter outputs\.bias; there are output\.bias, output\.weight"):
            call()
    with pytest.raises(ConfigError, match="nothing is left"):
        models.get_vector(net, HEAD)
    with pytest.raises(ConfigError, match="does not fit"):
        models.set_vector(net, np.zeros(5, np.float32), ["output.bias"])


def test_normalisation_layers_can_stay_at_a_site() -> None:
    """FedBN, Li et al. 2021: everything but the norm layers is shared."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.GroupNorm(2, 6), torch.nn.Linear(6, 1))
    local = [name for name, _ in net.named_parameters() if name.startswith("1.")]
    assert models.layout_of(net).without(local).size == 4 * 6 + 6 + 6 + 1
    models.set_local(net, np.arange(12, dtype=np.float32), local)
    models.set_vector(net, np.zeros(37, np.float32), local)
    assert np.array_equal(net[1].bias.detach().numpy(), np.arange(6))
    assert np.array_equal(net[1].weight.detach().numpy(), np.arange(6, 12))
    assert not net[0].weight.detach().any()


def test_the_first_model_without_its_local_part_is_that_of_the_whole() -> None:
    args = {"hidden_channels": [3]}
    whole = models.initial_vector("FullyConnectedNet", args, 4, 7)
    layout = models.layout_of(models.build("FullyConnectedNet", args, 4))
    assert np.array_equal(models.initial_vector("FullyConnectedNet", args, 4, 7, HEAD), layout.split(whole, HEAD)[0])
