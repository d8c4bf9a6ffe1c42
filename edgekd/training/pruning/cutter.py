"""Prune one student round by round, by shares of the unpruned widths or by one budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekd.errors import ModelError
from edgekd.training.loop.autograd_layers import (
    WEIGHTED,
    attention_layers,
    encoder_layers,
    output_width,
    parameters_trainable,
    width_defining_layers,
)
from edgekd.training.pruning.budget import Budget, choose_widths
from edgekd.training.pruning.curvature import ImportanceInputs
from edgekd.training.pruning.groups import (
    FUSION,
    copy_without,
    dependency_graph,
    describe_group,
    prunable_groups,
    remove_channels,
)
from edgekd.training.pruning.importance import make_importance
from edgekd.training.pruning.obs import GramImportance
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgekd.config.recipe import PruneConfig, Tap
    from edgekd.training.pruning.budget import Widths
    from edgekd.training.pruning.groups import Group, History, Importance
    from edgekd.training.task.protocol import Batch


@dataclass(frozen=True)
class Cut:
    """The result of one round.

    Attributes:
        removed: The channels that were removed, by group; empty where none could be.
        note: What is left of each branch's channels and of the budgeted cost, in words.
    """

    removed: History
    note: str


class Cutter:
    """Prunes one network in place and keeps the widths of embeddings, of logits and of attention.

    Args:
        model: The unpruned network.
        taps: For each modality where its embedding is.
        samples: Batches of training samples on its device. The importance is measured on all of them; tracing and
            latency use the first alone.
        config: Ratio, ratios, budget, importance and round_to.
        ignored: Layers whose width must not change.
        seed: Seed of what is random in an importance.

    Raises:
        ModelError: The budget is of latency, and torch cannot export the network to time it.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[str, Tap],
        samples: Iterable[Batch],
        config: PruneConfig,
        ignored: Sequence[nn.Module],
        seed: int,
    ) -> None:
        self._model, self._taps, self._config = model, taps, config
        self._importance_inputs = ImportanceInputs(model, taps, samples, seed)
        first = next(iter(samples))
        self._inputs = list(first.inputs.values())
        model.eval()
        with parameters_trainable(model):
            self._kept = [
                *width_defining_layers(model, taps, self._inputs),
                *attention_layers(model, taps, self._inputs),
                *ignored,
            ]
            self._branches = encoder_layers(model, taps, self._inputs)
        self._fixed = self._fixed_widths()
        self._paths = {layer: path for path, layer in model.named_modules()}
        self._unpruned = {
            path: output_width(layer) for layer, path in self._paths.items() if isinstance(layer, WEIGHTED)
        }
        self._budget = Budget.of(config.budget, model, taps, first) if config.budget else None

    def cut(self, share: float = 1.0) -> Cut:
        """Remove channels until a share of all that are to be removed is gone.

        Raises:
            TaskError: The Taylor importance has no label to start from.
            ModelError: Torch-pruning cannot prune this network, a width that must stay has changed, or the budget
                cannot be met.
        """
        groups, importance = self._groups()
        if self._budget is None:
            widths, left = {group.root: self._by_ratio(group, share) for group in groups}, ""
        else:
            widths, spent = self._by_budget(self._budget, groups, share)
            left = f"; {spent:.1%} of the {self._budget.what}"
        removed = _removed(groups, widths)
        if isinstance(importance, GramImportance):
            importance.compensate((self._model.get_submodule(root), channels) for root, _, channels in removed)
        self.remove(removed)
        return Cut(removed, self._branch_widths(groups, widths) + left)

    def remove(self, removed: History) -> None:
        """Remove some channels.

        Raises:
            ModelError: Torch-pruning cannot remove them, or a width that must stay has changed.
        """
        remove_channels(self._model, self._inputs, removed)
        after = self._fixed_widths()
        if after != self._fixed:
            raise ModelError(
                f"pruning changed widths that must stay: {self._fixed} became {after}; add the layers to [prune] ignore"
            )

    def _groups(self) -> tuple[list[Group], Importance]:
        with dependency_graph(self._model, self._inputs) as graph:
            groups = prunable_groups(graph, self._kept)
            importance = make_importance(self._config.importance, self._importance_inputs, graph, groups)
            round_to = self._config.round_to or 1
            described = [
                describe_group(each, graph, self._paths, self._branches, importance, round_to) for each in groups
            ]
        return [group for group in described if group is not None], importance

    def _by_ratio(self, group: Group, share: float) -> int:
        ratio = self._config.ratios.get(group.branch, self._config.ratio)
        if ratio == 0:
            return group.width
        # 1e-9 more, since 10 * (1 - 0.9) is a little less than 1 in floating point.
        return group.down_to(int(self._unpruned[group.root] * (1 - ratio * share) + 1e-9))

    def _by_budget(self, budget: Budget, groups: list[Group], share: float) -> tuple[Widths, float]:
        def cost(widths: Widths) -> float:
            return budget.spent(copy_without(self._model, self._inputs, _removed(groups, widths)))

        keep = 1 - (1 - budget.keep) * share
        widths, spent = choose_widths(groups, cost, keep)
        if spent > keep:
            raise ModelError(
                f"[prune] budget = {keep:.1%} of the {budget.what} cannot be met: the narrowest network that round_to "
                f"= {self._config.round_to or 1} and ignore allow still takes {spent:.1%}"
            )
        return widths, spent

    def _branch_widths(self, groups: list[Group], widths: Widths) -> str:
        """Return, in words, how many of the unpruned network's channels are left in each branch."""
        left: dict[str, list[int]] = {}
        for group in groups:
            sums = left.setdefault(group.branch, [0, 0])
            sums[0] += widths.get(group.root, group.width)
            sums[1] += self._unpruned[group.root]
        return "left of the channels: " + ", ".join(
            f"{name} {left[name][0]} of {left[name][1]}" for name in (*self._taps, FUSION) if name in left
        )

    def _fixed_widths(self) -> dict[str, int]:
        with torch.no_grad(), TappedModel(self._model, self._taps) as tapped:
            logits, embeddings = tapped(self._inputs)
        return {"logits": logits.shape[1], **{name: z.shape[1] for name, z in embeddings.items()}}


def _removed(groups: Sequence[Group], widths: Widths) -> History:
    return [entry for group in groups for entry in group.cut_to(widths.get(group.root, group.width))]
