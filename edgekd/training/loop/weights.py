"""Weights on disk, edgekd's own and the user's, as safetensors or plain state dicts; no pickle is executed."""

from __future__ import annotations

import pickle
import random
import struct
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from edgekd.errors import ModelError
from edgekd.files import atomic_path, need, quiet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn


#: Errors that torch's reader of plain values raises on a damaged or foreign file; it documents none.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    struct.error,
)


def build(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a new model whose initial weights depend on the seed alone."""
    seed_all(seed)
    return factory()


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
        ModelError: The file is missing, is not weights, or belongs to another network (names keys or shapes).
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    state = _read(path)
    expected = model.state_dict()
    # A tensor that has several names is often in a file under one of them only.
    given = {value.data_ptr() for key, value in expected.items() if key in state}
    problems = [
        f"lacks '{key}'" for key, value in expected.items() if key not in state and value.data_ptr() not in given
    ]
    problems += [f"has '{key}', which the network does not" for key in state if key not in expected]
    problems += [
        f"'{key}' is {tuple(state[key].shape)}, the network's is {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"{path}: not the weights of {type(model).__name__}: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state, strict=False)  # the keys were compared above
    return model


def _read(path: Path) -> dict[str, torch.Tensor]:
    safetensors = need("safetensors", "build")
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(str(path), framework="pt") as stored:
                return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  (not a dict)
        except safetensors.SafetensorError as error:
            raise ModelError(f"{path}: not a safetensors file: {error}") from error
    state = load_plain(path, torch.device("cpu"))
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: not a plain state dict of tensors; save it with torch.save(model.state_dict(), ...)")
    return cast("dict[str, torch.Tensor]", state)


def load_plain(path: Path, device: torch.device) -> Any:
    """Load tensors and plain values that ``torch.save`` wrote; no code in the file is executed.

    Raises:
        ModelError: The file is damaged, or holds anything else.
    """
    try:
        with quiet():
            return torch.load(path, map_location=device, weights_only=True)
    except _UNREADABLE as error:
        raise ModelError(
            f"{path}: is damaged or not a plain state dict; files that hold code are refused. Save it with "
            "torch.save(model.state_dict(), ...) or as safetensors"
        ) from error
