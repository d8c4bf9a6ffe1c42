"""The metric of a user's own for an imported model: ``file.py:name``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import TaskError
from edgekd.gram.nest import map_nest
from edgekd.plugins import import_plugin, is_plugin
from edgekd.stages.user_code import describe, shown, user_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.gram.nest import Nest
    from edgekd.gram.probe import Answer


@dataclass(frozen=True)
class OwnMetric:
    """A user's function of outputs and targets, as a task's ``metric`` is.

    Attributes:
        where: The function as errors call it.
        name: Name of the metric: the function's ``metric_name``, or its own name.
        higher_is_better: Whether a larger metric is better: the function's ``higher_is_better``, by default so.
    """

    where: str
    name: str
    higher_is_better: bool
    _function: Callable[..., object]

    def __call__(self, outputs: Answer, targets: Nest) -> float:
        """Return the metric of what a network answered for N samples, and their targets, each array [N, ...].

        Raises:
            TaskError: The user's code fails, or returns no number.
        """
        with user_code(self.where):  # which is given copies: they are its own to change
            value = self._function(map_nest(outputs, np.copy), map_nest(targets, np.copy))
        if value is None:
            raise TaskError(f"{self.where} returned None, must return a number; is its 'return' missing?")
        wrong = f"{self.where} returned {describe(value)} ({shown(value)}), must return one number"
        if isinstance(value, str | bytes) or np.size(np.asarray(value, object)) != 1:
            raise TaskError(wrong)
        try:
            return float(value)  # type: ignore[arg-type]  # whatever is a number, of a library's own too
        except (TypeError, ValueError) as error:
            raise TaskError(wrong) from error


def load_metric(reference: str) -> OwnMetric:
    """Return the metric that a name leads to.

    Raises:
        TaskError: The name leads nowhere, its code cannot be imported, or it is no function.
    """
    where = f"metric {reference}"
    if not is_plugin(reference):
        raise TaskError(f"{where}: write it as path/to/file.py:name or package.module:name")
    function = import_plugin(reference, "metric", TaskError)
    if not callable(function):
        raise TaskError(f"{where} is {describe(function)}, must be a function of outputs and targets")
    name = getattr(function, "metric_name", getattr(function, "__name__", reference.rpartition(":")[2]))
    better = getattr(function, "higher_is_better", True)
    if not isinstance(name, str) or not name:
        raise TaskError(f"{where}: its metric_name is {shown(name)}, must be a text")
    if not isinstance(better, bool):
        raise TaskError(f"{where}: its higher_is_better is {shown(better)}, must be True or False")
    return OwnMetric(where, name, better, function)
