"""Closed table: model name -> MONAI network that DP training accepts.

A job names a model and its arguments; both come from the job's author, so every argument has a schema and a bound:
building a model can cost memory and time up to the bound and do nothing else. A vector is the model's parameters in
the order of their sorted names (``cordon.params``). Parameters that a job names ``local`` (FedBN, Li et al. 2021,
section 3: normalisation layers; personal heads) stay at a site: the shared vector is that of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from cordon.documents import Document
from cordon.errors import ConfigError
from cordon.params import Layout, Vector

# torch and MONAI are imported where a network is built: a site's parent process judges jobs (`check`) without them.
if TYPE_CHECKING:
    from torch import nn

MAX_FEATURES = 10_000
MAX_SEED = 2**63 - 1


class FullyConnectedArgs(Document, frozen=True, kw_only=True):
    """``FullyConnectedNet``: widths of the hidden layers. None at all is logistic regression."""

    hidden_channels: Annotated[tuple[Annotated[int, Meta(ge=1, le=512)], ...], Meta(max_length=4)] = ()


def _fully_connected(args: FullyConnectedArgs, in_features: int) -> nn.Module:
    from monai.networks.nets.fullyconnectednet import FullyConnectedNet

    net: nn.Module = FullyConnectedNet(in_features, 1, args.hidden_channels, dropout=None)
    return net


_TABLE: Mapping[str, tuple[type[FullyConnectedArgs], Callable[[FullyConnectedArgs, int], nn.Module]]] = {
    "FullyConnectedNet": (FullyConnectedArgs, _fully_connected),
}

NAMES = tuple(sorted(_TABLE))


def build(name: str, model_args: Mapping[str, Any], in_features: int) -> nn.Module:
    """The network ``name``: input (n, in_features) float32, output (n, 1) logits. Raises as ``check``."""
    args = check(name, model_args, in_features)
    return _TABLE[name][1](args, in_features)


def check(name: str, model_args: Mapping[str, Any], in_features: int) -> FullyConnectedArgs:
    """The arguments of model ``name``, if it is in the table and they are within their bounds.

    Raises:
        ConfigError: unknown name (the message lists the table), unknown argument, or one out of its bounds.
    """
    if name not in _TABLE:
        raise ConfigError(f"unknown model {name!r}; models are {', '.join(NAMES)}")
    if not 1 <= in_features <= MAX_FEATURES:
        raise ConfigError(f"model {name}: want 1 to {MAX_FEATURES} input features, got {in_features}")
    try:
        return msgspec.convert(dict(model_args), _TABLE[name][0], strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"model {name}: {error}") from error


def layout_of(module: nn.Module) -> Layout:
    """Names and shapes of the parameters of ``module``."""
    return Layout.of(_arrays(module))


def get_vector(module: nn.Module, local: Iterable[str] = ()) -> Vector:
    """The shared parameters of ``module``, all but those named ``local``, as one (d,) float32 vector (a copy)."""
    arrays = _arrays(module)
    shared = Layout.of(arrays).without(local)
    return shared.flatten({name: arrays[name] for name, _ in shared.shapes})


def set_vector(module: nn.Module, w: Vector, local: Iterable[str] = ()) -> None:
    """Put the (d,) vector ``w`` into the shared parameters of ``module``; those named ``local`` stay as they are.

    Raises:
        ConfigError: ``w`` does not fit, or a name is no parameter.
    """
    _put(module, layout_of(module).without(local).unflatten(w))


def get_local(module: nn.Module, local: Iterable[str]) -> Vector:
    """The parameters named ``local``, in the order of their sorted names, as one float32 vector (a copy)."""
    arrays = _arrays(module)
    own = Layout.of(arrays).only(local)
    return own.flatten({name: arrays[name] for name, _ in own.shapes})


def set_local(module: nn.Module, own: Vector, local: Iterable[str]) -> None:
    """Put back what ``get_local`` gave; the shared parameters stay as they are. ConfigError as ``set_vector``."""
    _put(module, layout_of(module).only(local).unflatten(own))


def initial_vector(
    name: str, model_args: Mapping[str, Any], in_features: int, seed: int, local: Iterable[str] = ()
) -> Vector:
    """The first model of a job, without the parameters named ``local``: MONAI's initialisation under the public
    ``seed``; the global RNG is left alone."""
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed must lie in 0 to {MAX_SEED}, got {seed}")
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_vector(build(name, model_args, in_features), local)


def _put(module: nn.Module, arrays: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in arrays:
                parameter.copy_(torch.from_numpy(arrays[name]))


def _arrays(module: nn.Module) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    import torch

    arrays = {}
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigError(f"parameter {name}: want float32, got {parameter.dtype}")
        arrays[name] = parameter.detach().cpu().numpy()
    if next(module.buffers(), None) is not None:
        # A buffer (a BatchNorm mean, say) is statistics of patients that the clipping of gradients doesn't cover.
        raise ConfigError("a model with buffers is not accepted")
    return arrays
