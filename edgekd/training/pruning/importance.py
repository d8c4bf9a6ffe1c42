"""Measures of how important each channel of a dependency group is: torch-pruning's, and edgekd's own for the Gram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekd.errors import TaskError
from edgekd.files import need
from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.answer_losses import AnswerLosses
from edgekd.training.pruning.obs import GramImportance
from edgekd.training.taps.taps import NetworkTaps, TappedModel, outputs_read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from edgekd.training.pruning.curvature import ImportanceInputs
    from edgekd.training.pruning.groups import Importance, PruningGroup


def make_importance(name: str, given: ImportanceInputs, groups: Sequence[PruningGroup]) -> Importance:
    """Return a measure by its name in the recipe.

    Args:
        name: Name of the measure: gram, magnitude, taylor, random or fpgm.
        given: What the measure is computed from. It may leave gradients on the parameters, which the caller clears.
        groups: All groups that are compared.

    Raises:
        TaskError: ``taylor`` has no label to start from.
    """
    importances = need("torch_pruning", "build").importance
    makers: dict[str, Callable[[], Importance]] = {
        "gram": lambda: GramImportance(given, groups),
        "magnitude": lambda: importances.GroupMagnitudeImportance(p=2),
        "taylor": lambda: _taylor(importances, given),
        "random": importances.RandomImportance,
        "fpgm": importances.FPGMImportance,
    }
    torch.manual_seed(given.seed)  # for the random importance, which takes no generator
    return makers[name]()


def _taylor(importances: ModuleType, given: ImportanceInputs) -> Importance:
    batch = next(iter(given.samples))
    if not batch.has_targets and bool((batch.labels == UNLABELLED).all()):
        raise TaskError("[prune] importance = 'taylor' needs labels, and the first training samples have none")
    kinds = outputs_read(given.taps)
    if any(kind.name == "custom" for kind in kinds.values()):
        raise TaskError(
            "[prune] importance = 'taylor' needs the loss of a known kind of output: choose another importance"
        )
    answers, _ = TappedModel(given.model, NetworkTaps({}, kinds))(list(batch.inputs.values()))
    torch.autograd.backward(AnswerLosses(kinds).supervised(answers, batch.targets))
    taylor: Importance = importances.GroupTaylorImportance()
    return taylor
