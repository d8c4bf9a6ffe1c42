"""Remove channels in torch-pruning's dependency groups, whose layers must lose the same channels together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.files import need, quiet
from edgekd.gram.blame import FUSION
from edgekd.training.loop.autograd_layers import WEIGHTED, output_width, parameters_trainable
from edgekd.training.loop.copies import copy_network
from edgekd.training.pruning.mappings import single_mappings
from edgekd.training.pruning.recurrent import CELLS, SEQUENCES, RecurrentPruner
from edgekd.training.pruning.refusals import FAILURES, Refusal, described

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    from edgekd.training.pruning.tracing import Trace


#: torch-pruning's group of layers, and its graph of a network: the library has no types.
PruningGroup: TypeAlias = Any
PruningGraph: TypeAlias = Any

#: torch-pruning's record of what was removed: (module path, whether from its outputs, channel indices) of each group.
History = list[tuple[str, bool, list[int]]]

#: Layers that make the channels of a group.
MAKERS = (*WEIGHTED, nn.Embedding)


class Importance(Protocol):
    """The interface of a measure in torch-pruning."""

    def __call__(self, group: PruningGroup) -> Tensor | None:
        """Return the importance [N] of a dependency group's N channels, or None where it is not known."""


@dataclass(frozen=True)
class Maker:
    """A layer that makes channels of a group.

    Attributes:
        path: Path of the layer.
        channels: Its output channels that belong to the group.
        roots: For each of them the channel of the group.
    """

    path: str
    channels: tuple[int, ...]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """One dependency group.

    Attributes:
        root: Path of the layer whose output channels the group's channels are.
        branch: The modality in whose encoder it is, or :data:`~edgekd.gram.blame.FUSION`.
        width: Number of its channels.
        parts: Number of slices of equal size that must each lose the same channels, as in grouped convolutions; mostly
            1.
        step: The number that its width must stay a multiple of.
        importance: Importance of each channel of a slice [width / parts].
        makers: The layers that make its channels, the root first.
    """

    root: str
    branch: str
    width: int
    parts: int
    step: int
    importance: tuple[float, ...]
    makers: tuple[Maker, ...] = ()

    def down_to(self, width: int) -> int:
        """Return the largest allowed width of at most ``width``: at least one step, at most the present width."""
        return min(max(width - width % self.step, self.step), self.width)

    def order(self) -> list[int]:
        """Return the channels of a slice, the least important first."""
        return sorted(range(len(self.importance)), key=self.importance.__getitem__)

    def cut_to(self, width: int) -> History:
        """Return the entry that removes the least important channels down to an allowed width, if there are any."""
        size = self.width // self.parts
        removed = sorted(self.order()[: (self.width - width) // self.parts])
        channels = [part * size + channel for part in range(self.parts) for channel in removed]
        return [(self.root, True, channels)] if channels else []

    def refusal(self, reason: str) -> Refusal:
        """Return that the group keeps its width, and why."""
        return Refusal(tuple(maker.path for maker in self.makers), self.width, reason)


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Let torch-pruning read a network: in evaluation mode, with trainable parameters, and without its warnings."""
    model.eval()
    with quiet(), parameters_trainable(model), single_mappings():
        yield
        model.zero_grad(set_to_none=True)


def dependency_graph(model: nn.Module, trace: Trace) -> PruningGraph:
    """Return torch-pruning's dependency graph of a network that is traceable.

    Raises:
        ModelError: Torch-pruning cannot read this network.
    """
    graph = need("torch_pruning", "build").DependencyGraph()
    pruners = dict.fromkeys((*SEQUENCES, *CELLS), RecurrentPruner())
    try:
        return graph.build_dependency(
            model, trace.inputs, forward_fn=trace.run, output_transform=tensors_in, customized_pruners=pruners
        )
    except FAILURES as error:
        raise ModelError(f"torch-pruning cannot read {type(model).__name__}: {described(error)}") from error


def tensors_in(output: object) -> list[Tensor]:
    """Return every tensor with a graph in a model's output, however nested: torch-pruning traces back from them."""
    if isinstance(output, Tensor):
        return [output] if output.requires_grad else []
    if isinstance(output, Mapping):
        parts = list(output.values())
    else:
        parts = list(output) if isinstance(output, list | tuple) else list(getattr(output, "__dict__", {}).values())
    return [tensor for part in parts for tensor in tensors_in(part)]


def remove_channels(model: nn.Module, trace: Trace, removed: History) -> None:
    """Remove channels in place, with everything that depends on them.

    Raises:
        ModelError: Torch-pruning cannot, or the network no longer runs without them.
    """
    if not removed:
        return
    with traceable(model):
        graph = dependency_graph(model, trace)
        try:
            graph.load_pruning_history(removed)
            model(*trace.inputs)
        except FAILURES as error:
            raise ModelError(f"torch-pruning cannot prune {type(model).__name__}: {described(error)}") from error


def copy_without(model: nn.Module, trace: Trace, removed: History) -> nn.Module:
    """Return a copy of the network without some channels."""
    copy = copy_network(model)
    remove_channels(copy, trace, removed)
    return copy


def groups_by_root(
    graph: PruningGraph, paths: Mapping[nn.Module, str], kept: Set[nn.Module]
) -> tuple[list[PruningGroup], list[Refusal]]:
    """Return torch-pruning's groups whose root is a layer with weights and which make no channel of a kept layer.

    Returns:
        The groups, and the layers from which torch-pruning can follow none.
    """
    groups, refusals, seen = [], [], set(kept)
    for layer in list(graph.module2node):
        if not isinstance(layer, WEIGHTED) or layer in seen:
            continue
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        try:
            group = graph.get_pruning_group(layer, prune, list(range(output_width(layer))))
        except FAILURES as error:
            reason = f"torch-pruning cannot follow them ({described(error)})"
            refusals.append(Refusal((paths[layer],), output_width(layer), reason))
            continue
        made = [(module, item) for module, item, makes in members(group) if makes]
        if kept.isdisjoint(module for module, _ in made):
            groups.append(group)
        # Where torch-pruning takes a few channels of a layer for those of a narrow one, the layer is asked itself, too.
        seen |= {module for module, item in made if len(item.idxs) == _width(module)}
    return groups, refusals


def _width(module: nn.Module) -> int | None:
    return output_width(module) if isinstance(module, WEIGHTED) else None


def members(group: PruningGroup) -> list[tuple[nn.Module, Any, bool]]:
    """Return the members of one of torch-pruning's groups: module, item, and whether it makes the group's channels."""
    return [
        (
            item.dep.target.module,
            item,
            item.dep.handler == pruner_of(group, item.dep.target.module).prune_out_channels,
        )
        for item in group.items
    ]


def pruner_of(group: PruningGroup, module: nn.Module) -> Any:
    """Return torch-pruning's pruner of a module, which tells its inputs from its outputs."""
    return group._DG.get_pruner_of_module(module)


def describe_group(
    group: PruningGroup, paths: Mapping[nn.Module, str], branches: Mapping[nn.Module, str], round_to: int
) -> Group:
    """Return what is known of one of torch-pruning's groups without its importance."""
    width = len(group[0].idxs)
    made = [(layer, item) for layer, item, makes in members(group) if makes and isinstance(layer, MAKERS)]
    branches_of = {branches.get(layer, FUSION) for layer, _ in made if isinstance(layer, WEIGHTED)}
    parts = max(_parts(layer, pruner_of(group, layer), makes) for layer, _, makes in members(group))
    return Group(
        root=paths[group[0].dep.target.module],
        branch=branches_of.pop() if len(branches_of) == 1 else FUSION,
        width=width,
        parts=parts,
        step=math.lcm(round_to, parts),
        importance=(),
        makers=tuple(Maker(paths[layer], tuple(item.idxs), tuple(item.root_idxs)) for layer, item in made),
    )


def _parts(layer: nn.Module, pruner: Any, outputs: bool) -> int:
    """Return the number of slices into which a layer divides the channels; each must lose the same ones."""
    if getattr(layer, "groups", 1) == getattr(layer, "out_channels", 0):  # depthwise: any channel may go
        return 1
    return int(pruner.get_out_channel_groups(layer) if outputs else pruner.get_in_channel_groups(layer))
