"""Where the figures of each epoch go beside the report: TensorBoard, or a function of the user's own."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from edgekd.errors import EdgekdError, RecipeError
from edgekd.files import need
from edgekd.plugins import guarded
from edgekd.stages.progress import SerialObserver
from edgekd.stages.user_code import describe
from edgekd.training.task.imports import import_own

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.stages.progress import Observer

#: The folder of TensorBoard's files in the cache.
_FOLDER = "tensorboard"


class EpochLogger(Protocol):
    """Receives the figures of each epoch."""

    def __call__(self, stage: str, epoch: int, figures: Mapping[str, float]) -> object:
        """Receive an epoch of a stage, its number from 1."""


class _LoggedEpochs(SerialObserver):
    """Passes on what a build reports, and gives a logger its epochs. One that fails ends no training.

    Args:
        observer: Receives all events.
        logger: Receives the epochs.
        name: What the recipe calls the logger.
    """

    def __init__(self, observer: Observer, logger: EpochLogger, name: str) -> None:
        super().__init__(observer)
        self._logger: EpochLogger | None = logger
        self._name = name

    def epoch(self, stage: str, number: int, figures: Mapping[str, float]) -> None:
        """Give the logger the epoch, and pass the event on."""
        super().epoch(stage, number, figures)
        if self._logger is None:
            return
        try:
            with guarded(f"log {self._name}", RecipeError):
                self._logger(stage, number, dict(figures))
        except EdgekdError as error:
            self._logger = None
            self.warn(stage, f"{error}; it is called no more, and training goes on")


def logged(observer: Observer, name: str, cache: Path) -> SerialObserver:
    """Return an observer that passes all events on, and the epochs to a logger too.

    Args:
        observer: Receives all events.
        name: The recipe's ``log``; "" for none.
        cache: Folder of finished stages, beside which TensorBoard's files are written.

    Raises:
        MissingDependency: TensorBoard is asked for, and is not installed.
        RecipeError: It names what is no function.
        TaskError: The user's file fails, or has nothing of that name.
    """
    if not name:
        return SerialObserver(observer)
    if name == _FOLDER:
        need("tensorboard", "tensorboard")
        return _LoggedEpochs(observer, _TensorBoard(cache / _FOLDER / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"), name)
    function = import_own(name, "log")
    if not callable(function):
        raise RecipeError(f"log {name}: is {describe(function)}, must be a function of a stage, an epoch and figures")
    return _LoggedEpochs(observer, function, name)


class _TensorBoard:
    """Writes TensorBoard's files, those of each stage into a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, stage: str, epoch: int, figures: Mapping[str, float]) -> None:
        from edgekd.training.tensorboard_log import write_epoch

        write_epoch(self._folder / stage.replace(" ", "-"), epoch, figures)
