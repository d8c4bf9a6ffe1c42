"""How much each channel of a dependency group matters: torch-pruning's measures, and one of our own for the Gram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from edgekd.errors import TaskError
from edgekd.files import need
from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.losses.logits import cross_entropy
from edgekd.training.pruning.obs import GramImportance
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.training.pruning.curvature import ImportanceInputs


class Importance(Protocol):
    """torch-pruning's interface of a measure."""

    def __call__(self, group: Any) -> Tensor | None:
        """Return the importance [N] of a dependency group's N channels, None where it cannot tell."""


def make_importance(name: str, evidence: ImportanceInputs, graph: Any, groups: Sequence[Any]) -> Importance:
    """Return a measure by its name in the recipe.

    Args:
        name: gram, magnitude, taylor, random or fpgm.
        evidence: what it may look at; gradients that it leaves on the parameters are the caller's to clear.
        graph: torch-pruning's dependency graph of the network.
        groups: all groups that are to be compared.

    Raises:
        TaskError: ``taylor`` has no label to start from.
    """
    importances = need("torch_pruning", "build").importance
    makers: dict[str, Callable[[], Importance]] = {
        "gram": lambda: GramImportance(evidence, graph, groups),
        "magnitude": lambda: importances.GroupMagnitudeImportance(p=2),
        "taylor": lambda: _taylor(importances, evidence),
        "random": importances.RandomImportance,
        "fpgm": importances.FPGMImportance,
    }
    torch.manual_seed(evidence.seed)  # of the random importance, which takes no generator
    return makers[name]()


def _taylor(importances: Any, evidence: ImportanceInputs) -> Importance:
    batch = next(iter(evidence.samples))
    if bool((batch.labels == UNLABELLED).all()):
        raise TaskError("[prune] importance = 'taylor' needs labels, and the first training samples have none")
    logits, _ = TappedModel(evidence.model, {})(list(batch.inputs.values()))
    torch.autograd.backward(cross_entropy(logits, batch.labels))
    taylor: Importance = importances.GroupTaylorImportance()
    return taylor
