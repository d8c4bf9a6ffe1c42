"""Find the groups of a network that can be cut, before their importance is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekd.errors import ModelError, TaskError, nearest
from edgekd.gram.blame import FUSION
from edgekd.training.loop.autograd_layers import (
    WEIGHTED,
    attention_layers,
    encoder_layers,
    last_layers,
    output_width,
    parameters_trainable,
    width_defining_layers,
)
from edgekd.training.loop.copies import copy_network
from edgekd.training.pruning.curvature import WIDEST, is_too_wide
from edgekd.training.pruning.groups import (
    dependency_graph,
    describe_group,
    groups_by_root,
    members,
    tensors_in,
    traceable,
)
from edgekd.training.pruning.proof import SAMPLES, Ends, Proof
from edgekd.training.pruning.recurrent import keeps_width
from edgekd.training.pruning.refusals import Refusal, weights_not_to_cut
from edgekd.training.pruning.tracing import Trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from torch import Tensor

    from edgekd.config.recipe import PruneConfig, Tap
    from edgekd.training.pruning.groups import Group, History, PruningGraph, PruningGroup
    from edgekd.training.task.protocol import Batch


#: Modules that read the weights of the layers in them without a call, and that torch-pruning knows as a whole.
_WHOLE = (nn.MultiheadAttention,)


@dataclass(frozen=True)
class PrunableGroup:
    """A group that can be cut: as torch-pruning has it, and what is known of it."""

    members: PruningGroup
    group: Group


@dataclass(frozen=True)
class Prunable:
    """What could be cut of a network.

    Attributes:
        widths: Width of each group of layers that can be cut, by the path of the first.
        refusals: The layers that keep their width though a share of them is asked for, and why.
    """

    widths: dict[str, int]
    refusals: list[Refusal]


def find_prunable(
    model: nn.Module, taps: Mapping[str, Tap], batch: Batch, config: PruneConfig, ignored: Sequence[str] = ()
) -> Prunable:
    """Return what could be cut of a network, trained or not; the network stays as it is.

    Args:
        model: The network.
        taps: For each modality where its embedding is.
        batch: A few samples, on the network's device; more than eight are not read.
        config: Which shares are asked for, and what widths must be multiples of.
        ignored: Paths of modules whose width must not change.
    """
    copy = copy_network(model)
    layers = [layer for path in ignored for layer in copy.get_submodule(path).modules()]
    candidates = Candidates(copy, taps, [x[:SAMPLES] for x in batch.inputs.values()], config, layers)
    with traceable(copy):
        found = candidates.find()
    return Prunable({each.group.root: each.group.width for each in found}, candidates.refusals)


class Candidates:
    """Finds the groups of one network that can be cut; a group that was refused once is not tried again.

    Args:
        model: The uncut network.
        taps: For each modality where its embedding is.
        inputs: Samples of each modality, in order.
        config: Which shares are asked for, and what widths must be multiples of.
        ignored: Layers whose width must not change.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[str, Tap],
        inputs: Sequence[Tensor],
        config: PruneConfig,
        ignored: Sequence[nn.Module],
    ) -> None:
        self._model, self._config = model, config
        self.ends = Ends(taps, Trace.of(model, inputs), inputs)
        model.eval()
        with parameters_trainable(model):
            kept = (*width_defining_layers(model, taps, inputs), *attention_layers(model, taps, inputs), *ignored)
            self._branches = encoder_layers(model, taps, inputs)
            # What training alone puts out has losses of its own, which count on its width.
            trained = self.ends.trace.run(model, self.ends.trace.inputs) if self.ends.trace.training else ()
            self._kept = {*kept, *last_layers(tensors_in(trained), model)}
        self._paths = {layer: path for path, layer in model.named_modules()}
        self.refusals: list[Refusal] = []

    def find(self) -> list[PrunableGroup]:
        """Return the groups that can be cut, which each of them is to show, and add the others to the refusals.

        The network must be traceable.
        """
        try:
            graph = dependency_graph(self._model, self.ends.trace)
        except ModelError as error:
            refusal = Refusal((type(self._model).__name__,), None, str(error))
            if refusal not in self.refusals:
                self.refusals.append(refusal)
            return []
        groups, refusals = groups_by_root(graph, self._paths, self._kept)
        self.refuse([*refusals, *self._unseen(graph)])
        reasons = self._reasons()
        candidates = [each for each in (self._described(group, reasons) for group in groups) if each is not None]
        for width in (_half, _one_step_less):
            shown = [_with_any_importance(each.group) for each in candidates]
            refused = self.refuse_unproven(shown, [entry for group in shown for entry in group.cut_to(width(group))])
            candidates = [each for each in candidates if each.group.root not in refused]
        self._take_back({maker.path for each in candidates for maker in each.group.makers})
        return candidates

    def _unseen(self, graph: PruningGraph) -> list[Refusal]:
        """Return the layers that torch-pruning does not see run, and that are not known to keep their width."""
        inside = {layer for each in self._model.modules() if isinstance(each, _WHOLE) for layer in each.modules()}
        return [
            Refusal((path,), output_width(layer), "it is compiled, or its weight is read without a call of the layer")
            for layer, path in self._paths.items()
            if isinstance(layer, WEIGHTED) and layer not in {*graph.module2node, *self._kept, *inside}
        ]

    def _take_back(self, cut: Set[str]) -> None:
        """Forget the refusals of layers that another group cuts, as where two layers read one weight in two ways."""
        self.refusals = [refusal for refusal in self.refusals if not cut >= set(refusal.paths)]
        self._kept.difference_update(map(self._model.get_submodule, cut))

    def refuse_unproven(self, groups: Sequence[Group], removed: History) -> set[str]:
        """Return the roots of the groups whose channels cannot be removed, and add these groups to the refusals."""
        refusals = Proof(self._model, self.ends).refusals(groups, removed)
        self.refuse(refusals)
        return {refusal.paths[0] for refusal in refusals}

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Keep the width of some layers from now on."""
        for refusal in refusals:
            layers = [self._model.get_submodule(path) for path in refusal.paths]
            self._kept.update(layers)
            if self._is_asked_for(layers[0], refusal):
                self.refusals.append(refusal)

    def _is_asked_for(self, layer: nn.Module, refusal: Refusal) -> bool:
        """Whether the recipe would have channels removed from a layer that keeps them."""
        asked = self._config.budget or self._config.ratios.get(self._branches.get(layer, FUSION), self._config.ratio)
        return bool(asked) and (refusal.width or 0) > (self._config.round_to or 1)

    def _reasons(self) -> dict[nn.Module, str]:
        """Return the layers that no group that is cut may have, and why."""
        reasons = weights_not_to_cut(self._model)
        if self._config.importance == "gram":
            reasons |= {
                layer: f"importance = 'gram' holds the products of all channels of '{path}', which has more than "
                f"{WIDEST}; pool before it, or choose another importance"
                for layer, path in self._paths.items()
                if isinstance(layer, WEIGHTED) and layer not in reasons and is_too_wide(layer)
            }
        return reasons

    def _described(self, group: PruningGroup, reasons: Mapping[nn.Module, str]) -> PrunableGroup | None:
        described = describe_group(group, self._paths, self._branches, self._config.round_to or 1)
        if described.width // described.parts < 2:
            return None
        reason = self._reason(group, reasons)
        if reason is not None:
            self.refuse([described.refusal(reason)])
            return None
        return PrunableGroup(group, described)

    def _reason(self, group: PruningGroup, reasons: Mapping[nn.Module, str]) -> str | None:
        """Return why a group is not even tried, if there is a reason."""
        for layer, _, makes in members(group):
            if layer in reasons:
                return reasons[layer]
            if keeps_width(layer, makes):
                return f"the recurrent layer '{self._paths[layer]}' keeps its width"
        return None


def _with_any_importance(group: Group) -> Group:
    """Return the group with an importance that removes no regular pattern of channels, which a wrong cut might keep."""
    order = torch.randperm(group.width // group.parts, generator=torch.Generator().manual_seed(0))
    return replace(group, importance=tuple(order.tolist()))


def _half(group: Group) -> int:
    allowed = group.down_to(group.width // 2)
    # A group that is too narrow to be cut shows what importances may ask of it all the same.
    return allowed if allowed < group.width else group.width - group.width // group.parts // 2 * group.parts


def _one_step_less(group: Group) -> int:
    return group.down_to(group.width - 1)


def ignored_layers(model: nn.Module, paths: list[str]) -> list[nn.Module]:
    """Return the modules at these paths with all modules inside them.

    Raises:
        TaskError: There is no module at a path.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise TaskError(f"[prune] ignore: the student has no module '{path}'{nearest(path, filter(None, modules))}")
    return [module for path in paths for module in modules[path].modules()]
