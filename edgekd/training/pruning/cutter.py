"""Prune one student round by round, by shares of the unpruned widths or by one budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgekd.errors import ModelError
from edgekd.gram.blame import FUSION
from edgekd.training.loop.autograd_layers import WEIGHTED, output_width
from edgekd.training.pruning.budget import Budget, choose_widths, spare
from edgekd.training.pruning.candidates import Candidates
from edgekd.training.pruning.curvature import ImportanceInputs
from edgekd.training.pruning.groups import copy_without, remove_channels, traceable
from edgekd.training.pruning.importance import make_importance
from edgekd.training.pruning.obs import GramImportance
from edgekd.training.pruning.refusals import FAILURES, described

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from edgekd.config.recipe import PruneConfig, Tap
    from edgekd.training.pruning.budget import Widths
    from edgekd.training.pruning.candidates import PrunableGroup
    from edgekd.training.pruning.groups import Group, History, Importance
    from edgekd.training.task.protocol import Batch


@dataclass(frozen=True)
class Cut:
    """The result of one round.

    Attributes:
        removed: The channels that were removed, by group; empty where none could be.
        left: Of each branch how many of the channels that could go are left, and how many there were.
        note: The same, and what is left of the budgeted cost, in words.
        warnings: The layers that were found in this round to keep their width, and why; and a budget that is not met
            because of such layers.
    """

    removed: History
    left: dict[str, tuple[int, int]]
    note: str
    warnings: list[str]


class Cutter:
    """Prunes one network in place and keeps the widths of embeddings, of logits and of attention.

    What cannot be pruned keeps its width, and the rest is pruned: each group shows that it can be before its importance
    is measured, and all of them again with the very channels that are removed (:mod:`edgekd.training.pruning.proof`).

    Args:
        model: The unpruned network.
        taps: For each modality where its embedding is.
        samples: Batches of training samples on its device. The importance is measured on all of them; tracing, proofs
            and latency use the first alone.
        config: Ratio, ratios, budget, importance and round_to.
        ignored: Layers whose width must not change.
        seed: Seed of what is random in an importance.
        shares: For some branches the share that they give of the channels that the recipe asks of them.

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
        shares: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._model, self._taps, self._config, self._shares = model, taps, config, shares
        self._importance_inputs = ImportanceInputs(model, taps, samples, seed)
        first = next(iter(samples))
        self._candidates = Candidates(model, taps, list(first.inputs.values()), config, ignored)
        self._trace = self._candidates.ends.trace
        self._unpruned = {
            path: output_width(layer) for path, layer in model.named_modules() if isinstance(layer, WEIGHTED)
        }
        self._budget = Budget.of(config.budget, model, taps, first) if config.budget else None

    def cut(self, share: float = 1.0) -> Cut:
        """Remove channels until a share of all that are to be removed is gone.

        Raises:
            TaskError: The Taylor importance has no label to start from.
            ModelError: The budget cannot be met.
        """
        known = len(self._candidates.refusals)
        groups, importance = self._groups()
        refused: set[str] | None = None
        while refused is None or refused:
            widths, left, missed = self._widths(groups, share)
            removed = _removed(groups, widths)
            refused = self._candidates.refuse_unproven(groups, removed)
            groups = [group for group in groups if group.root not in refused]
        if isinstance(importance, GramImportance):
            importance.compensate((self._model.get_submodule(root), channels) for root, _, channels in removed)
        self.remove(removed)
        warnings = [*map(str, self._candidates.refusals[known:]), *missed]
        channels = self._channels_left(groups, widths)
        note = ", ".join(f"{name} {count} of {before}" for name, (count, before) in channels.items())
        return Cut(removed, channels, f"left of the channels: {note}{left}", warnings)

    def remove(self, removed: History) -> None:
        """Remove some channels.

        Raises:
            ModelError: Torch-pruning cannot remove them.
        """
        remove_channels(self._model, self._trace, removed)

    def _groups(self) -> tuple[list[Group], Importance]:
        with traceable(self._model):
            candidates = self._candidates.find()
            importance = make_importance(
                self._config.importance, self._importance_inputs, [each.members for each in candidates]
            )
            groups = [self._measured(each, importance) for each in candidates]
        return [group for group in groups if group is not None], importance

    def _measured(self, candidate: PrunableGroup, importance: Importance) -> Group | None:
        """Return a group with the importance of its channels, or None where it is not known."""
        group = candidate.group
        try:
            scores = importance(candidate.members)
            if scores is not None:
                return replace(group, importance=tuple(scores.view(group.parts, -1).mean(0).tolist()))
        except FAILURES as error:
            reason = f"importance = '{self._config.importance}' cannot be measured of them: {described(error)}"
            self._candidates.refuse([group.refusal(reason)])
        return None

    def _widths(self, groups: list[Group], share: float) -> tuple[Widths, str, list[str]]:
        """Return the widths of the groups, and in words: what is left of the budgeted cost, and a budget not met."""
        if self._budget is None:
            return self._spared(groups, {group.root: self._by_ratio(group, share) for group in groups}), "", []
        return self._by_budget(self._budget, groups, share)

    def _spared(self, groups: list[Group], widths: Widths) -> Widths:
        return spare(groups, widths, self._unpruned, self._shares)

    def _by_ratio(self, group: Group, share: float) -> int:
        ratio = self._config.ratios.get(group.branch, self._config.ratio)
        if ratio == 0:
            return group.width
        # 1e-9 more, since 10 * (1 - 0.9) is a little less than 1 in floating point.
        return group.down_to(int(self._unpruned[group.root] * (1 - ratio * share) + 1e-9))

    def _by_budget(self, budget: Budget, groups: list[Group], share: float) -> tuple[Widths, str, list[str]]:
        def cost(widths: Widths) -> float:
            return budget.spent(copy_without(self._model, self._trace, _removed(groups, widths)))

        keep = 1 - (1 - budget.keep) * share
        widths, spent = choose_widths(groups, cost, keep)
        missed = []
        if spent > keep:
            missed = [
                f"[prune] budget = {keep:.1%} of the {budget.what} cannot be met: the narrowest network that round_to "
                f"= {self._config.round_to or 1} and ignore allow still takes {spent:.1%}"
            ]
            if not self._candidates.refusals:
                raise ModelError(*missed)
        if self._shares:
            widths = self._spared(groups, widths)
            spent = cost(widths)
        return widths, f"; {spent:.1%} of the {budget.what}", missed

    def _channels_left(self, groups: list[Group], widths: Widths) -> dict[str, tuple[int, int]]:
        """Return how many of the unpruned network's channels are left in each branch, and how many there were."""
        left: dict[str, tuple[int, int]] = {}
        for group in groups:
            count, before = left.get(group.branch, (0, 0))
            width = widths.get(group.root, group.width)
            left[group.branch] = (count + width, before + self._unpruned[group.root])
        return {name: left[name] for name in (*self._taps, FUSION) if name in left}


def _removed(groups: Sequence[Group], widths: Widths) -> History:
    return [entry for group in groups for entry in group.cut_to(widths.get(group.root, group.width))]
