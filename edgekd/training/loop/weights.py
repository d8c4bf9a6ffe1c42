"""Weights on disk, edgekd's own and the user's, as safetensors or plain state dicts; no pickle is executed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from edgekd.errors import ModelError, TaskError
from edgekd.files import atomic_path, need
from edgekd.stages.user_code import describe, user_code
from edgekd.training.loop.copies import copy_where_possible
from edgekd.training.loop.weights_file import check_state, not_finite, read_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


#: Classes of modules that run another one, and where they have it; edgekd itself trains in several processes.
_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}

#: Classes of modules whose layers cannot be taken apart, and what to return instead.
_CLOSED = {"ScriptModule": "return the nn.Module that the TorchScript was made of"}


def build(factory: Callable[[], nn.Module], seed: int, what: str = "") -> nn.Module:
    """Return a new model whose initial weights depend on the seed alone.

    It is a copy of what the function returns, which may be one network each time, or hold parts of another.

    Args:
        factory: A function of the user's task.
        seed: The seed.
        what: The function, as messages name it; by default its own name.

    Raises:
        TaskError: The function fails, or returns no network that can be trained and taken apart.
    """
    return copy_where_possible(returned(factory, seed, what))


def returned(factory: Callable[[], nn.Module], seed: int, what: str = "") -> nn.Module:
    """Return the network that a user's function returns; see :func:`build`. It may not be theirs alone."""
    what = what or f"{getattr(factory, '__name__', 'network')}()"
    seed_all(seed)
    with user_code(what):
        model = factory()
    _check_network(what, model)
    return _unwrapped(model)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the network that ``DataParallel`` or ``torch.compile`` wrapped, or the network itself."""
    for kind in type(model).__mro__:
        if kind.__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
            return _unwrapped(getattr(model, _WRAPPERS[kind.__name__]))
    return model


def _check_network(what: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        missing = "; is its 'return' missing?" if model is None else ""
        called = f": call it, as in {model.__name__}()" if isinstance(model, type) else ""
        raise TaskError(f"{what} returned {describe(model)}, must return an nn.Module{missing}{called}")
    for kind in type(model).__mro__:
        if kind.__name__ in _CLOSED:
            advice = _CLOSED[kind.__name__]
            raise TaskError(f"{what} returned a {type(model).__name__}, whose layers cannot be taken apart: {advice}")
    for path, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule) and next(layer.parameters(), None) is not None:
            raise TaskError(
                f"{what}: '{path}' is a {type(layer).__name__}, whose layers cannot be taken apart: put the nn.Module "
                "there that it was made of"
            )
    state = model.state_dict(keep_vars=True)
    for name, tensor in ((name, value) for name, value in state.items() if isinstance(value, torch.Tensor)):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise TaskError(
                f"{what}: '{name}' has no shape yet, as in a lazy layer: call the network once before it is returned, "
                "or give the layer its size"
            )
        if tensor.is_meta:
            raise TaskError(f"{what}: '{name}' has no values, since it was made on the device 'meta'")
        kind_of_value = not_finite(tensor.detach())
        if kind_of_value == "NaN" or (kind_of_value and isinstance(tensor, nn.Parameter)):
            raise TaskError(f"{what}: '{name}' holds {kind_of_value}: was it initialised, or loaded from a good file?")


def seed_all(seed: int) -> None:
    """Seed every global generator that a user's network or augmentation may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights as safetensors, atomically."""
    # Copied, since safetensors refuses tensors that share memory, as the weights of a shared encoder do.
    state = {key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()}
    with atomic_path(path, sum(value.nbytes for value in state.values())) as temporary:
        need("safetensors.torch", "build").save_file(state, str(temporary))


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load weights into a model, in place.

    Args:
        model: A model of the same layout as the one that was saved.
        path: A file ``.safetensors``, or a state dict saved by ``torch.save``, read with ``weights_only=True``.

    Raises:
        ModelError: The file is missing, is not weights, belongs to another network (names keys or shapes), or holds NaN
            or infinite values.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    state = read_state(path, model.state_dict())
    check_state(path, state, model)
    model.load_state_dict(state, strict=False)  # the keys were compared
    return model
