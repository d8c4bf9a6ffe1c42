"""Losses of the user's own, named in a recipe as ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekd.errors import TaskError, nearest
from edgekd.files import sha256_file
from edgekd.plugins import is_plugin
from edgekd.stages.user_code import user_code
from edgekd.training.distillation.loss import Loss
from edgekd.training.distillation.loss_registry import find_shipped_loss
from edgekd.training.task.imports import import_loss_file, import_module

if TYPE_CHECKING:
    from types import ModuleType


def find_loss(reference: str) -> Loss:
    """Return a loss by the name that a recipe gives it: one of edgekd's, or one in a user's file.

    What the user's function raises becomes one line with its place, and what it returns is checked.

    Raises:
        RecipeError: Edgekd has no loss of that name.
        TaskError: The user's file is not there or fails, or has no such loss in it.
    """
    if not is_plugin(reference):
        return find_shipped_loss(reference)
    home, _, name = reference.rpartition(":")
    module = _import(home)
    if not hasattr(module, name):
        losses = [key for key, value in vars(module).items() if isinstance(value, Loss)]
        raise TaskError(f"{home}: defines no '{name}'{nearest(name, losses)}")
    loss = getattr(module, name)
    if not isinstance(loss, Loss):
        raise TaskError(f"{home}: '{name}' is a {type(loss).__name__}, must be an edgekd.Loss")
    return _guarded(loss, Path(module.__file__ or home).resolve().parent)


def _import(home: str) -> ModuleType:
    if not home.endswith(".py"):
        return import_module(home, "module of losses")
    path = Path(home)
    return _import_version(path, sha256_file(path) if path.is_file() else "")


@lru_cache
def _import_version(path: Path, _digest: str) -> ModuleType:
    """Import a file once for each content that it has."""
    return import_loss_file(path)


def _guarded(loss: Loss, folder: Path) -> Loss:
    """Return the loss with functions that say in one line what went wrong in the user's."""

    def function(*inputs: object, **options: object) -> Tensor:
        with user_code(f"loss '{loss.name}'", folder):
            value: object = loss.function(*inputs, **options)
        if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
            given = (
                f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise TaskError(f"loss '{loss.name}': its function returns {given}, must be a scalar tensor of floats")
        return value

    def projection(inputs: int, outputs: int) -> nn.Module:
        assert loss.projection is not None
        with user_code(f"the projection of loss '{loss.name}'", folder):
            return loss.projection(inputs, outputs)

    return replace(loss, function=function, projection=projection if loss.projection else None)
