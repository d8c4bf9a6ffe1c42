"""Optimizers and schedules of the learning rate, by the names in recipes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from edgekd.errors import RecipeError
from edgekd.plugins import guarded, is_plugin
from edgekd.stages.user_code import describe, shown
from edgekd.training.task.imports import import_own

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.config.recipe import Training

#: The share of the steps over which OneCycle raises the learning rate, where the recipe does not say.
_ONECYCLE_WARM_UP = 0.3

#: The learning rate after the warm-up as a share of its peak, by the share of the steps that are done.
_FALLS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda _: 1.0,
}


def make_optimizer(config: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over parameters.

    Raises:
        RecipeError: The user's own fails, or returns no optimizer.
        TaskError: Its file cannot be imported.
    """
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
    function, what, folder = _own(config.optimizer, "optimizer")
    with guarded(what, RecipeError, folder):
        optimizer = function(parameters, rate, decay)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RecipeError(f"{what}: returned {describe(optimizer)}, must be a torch.optim.Optimizer")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise RecipeError(f"{what}: LBFGS computes the loss of a step many times, which a training here does not")
    return optimizer


def make_schedule(config: Training, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return the recipe's schedule of the learning rate over a number of steps, each from the optimizer's own rates.

    Raises:
        RecipeError: The user's own fails, or returns no number.
        TaskError: Its file cannot be imported.
    """
    if config.schedule == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        warm_up = _ONECYCLE_WARM_UP if config.warm_up is None else config.warm_up
        # Momentum falls while the rate rises, as OneCycle has it; but where the recipe states one, that is kept.
        cycles = config.optimizer in ("adamw", "adam")
        return OneCycleLR(optimizer, rates, total_steps=steps, pct_start=warm_up, cycle_momentum=cycles)
    falls = _FALLS.get(config.schedule) or _own_schedule(config.schedule)
    warming = round((config.warm_up or 0.0) * steps)

    def factor(step: int) -> float:
        if step < warming:
            return (step + 1) / warming
        return falls(min((step - warming) / max(steps - warming, 1), 1.0))

    return LambdaLR(optimizer, factor)


def _own(name: str, kind: str) -> tuple[Callable[..., object], str, Path | None]:
    """Return a user's function, what errors call it, and the folder of its file."""
    function, where = import_own(name, kind), name.rpartition(":")[0]
    if not callable(function):
        raise RecipeError(f"{kind} {name}: is {describe(function)}, must be a function")
    return function, f"{kind} {name}", Path(where).parent if where.endswith(".py") else None


def _own_schedule(name: str) -> Callable[[float], float]:
    assert is_plugin(name)  # settings.check_training refuses every other
    function, what, folder = _own(name, "schedule")

    def falls(done: float) -> float:
        with guarded(what, RecipeError, folder):
            share = function(done)
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < math.inf:
            raise RecipeError(
                f"{what}: returned {shown(share)} after {done:.0%} of the steps, must be a number from 0 on: the share "
                "of the peak learning rate"
            )
        return float(share)

    return falls
