"""How long a training is, and what in its settings is the user's own code. Imports no torch."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import RecipeError, nearest
from edgekd.plugins import is_plugin
from edgekd.stages.user_code import source_digests

if TYPE_CHECKING:
    from edgekd.config.recipe import Recipe, Training

#: Names of edgekd's own optimizers and schedules.
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("onecycle", "cosine", "linear", "constant")

#: A small split is gone through at most this many times as often as a large one.
_MOST_LONGER = 10


def count_batches(samples: int, batch_size: int) -> int:
    """Return the batches of an epoch. Each has two samples or more, unless there is a single one."""
    return min(math.ceil(samples / batch_size), max(samples // 2, 1))


def count_epochs(config: Training, samples: int) -> int:
    """Return how often a training goes through a split of this many samples."""
    if config.epochs != "auto":
        return config.epochs
    usual = config.auto_epochs
    needed = math.ceil(config.min_steps / count_batches(samples, config.batch_size))
    return min(max(usual, needed), _MOST_LONGER * usual)


def describe_length(config: Training, samples: int) -> str:
    """Say that a training is longer than usual, since its split is small; "" where it is not."""
    epochs = count_epochs(config, samples)
    if config.epochs != "auto" or epochs == config.auto_epochs:
        return ""
    steps = epochs * count_batches(samples, config.batch_size)
    return f"{epochs} epochs instead of {config.auto_epochs}, since {samples} samples make few steps: {steps:,} of them"


def check_training(recipe: Recipe) -> None:
    """Check what trains: names of optimizers and schedules; of the user's own only that there is such a file.

    Raises:
        RecipeError: There is none of that name.
    """
    for section, config in training_sections(recipe).items():
        for key, name, known in (
            ("optimizer", config.optimizer, OPTIMIZERS),
            ("schedule", config.schedule, SCHEDULES),
        ):
            if is_plugin(name):
                _home_file(f"{section}.{key}", name)
            elif name not in known:
                raise RecipeError(
                    f"{section}.{key}: there is no '{name}'{nearest(name, known)} One of your own is written "
                    "'path/to/file.py:name'."
                )
    if recipe.log and recipe.log != "tensorboard":
        if not is_plugin(recipe.log):
            raise RecipeError(
                f"log: there is no '{recipe.log}': write 'tensorboard', or a function of your own as "
                "'path/to/file.py:name'"
            )
        _home_file("log", recipe.log)


def training_sections(recipe: Recipe) -> dict[str, Training]:
    """Return the sections that train, by their names."""
    return {
        "teacher": recipe.teacher,
        "distill": recipe.distill,
        "prune": recipe.prune,
        "quantize.qat": recipe.quantize.qat,
    }


def own_training_sources(config: Training) -> dict[str, dict[str, dict[str, str]]]:
    """Return the digests of the files of the user's own optimizer and schedule; empty where there are none.

    Raises:
        RecipeError: A file or module is not there.
    """
    own = {key: name for key in ("optimizer", "schedule") if is_plugin(name := getattr(config, key))}
    homes = {name.rpartition(":")[0]: _home_file(key, name) for key, name in own.items()}
    return {"own_training": {home: source_digests(file) for home, file in sorted(homes.items())}} if homes else {}


def _home_file(key: str, name: str) -> Path:
    """Return the file of a user's function, which is named by its path or as a module."""
    home = name.rpartition(":")[0]
    if home.endswith(".py"):
        if not Path(home).is_file():
            raise RecipeError(f"{key}: {home}: no such file")
        return Path(home).resolve()
    try:
        spec = find_spec(home)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise RecipeError(f"{key}: {home}: no such module; one in a file is 'file.py:name'")
    return Path(spec.origin)
