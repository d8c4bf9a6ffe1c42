"""Remove channels in torch-pruning's dependency groups, whose layers must lose the same channels together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.files import need, quiet
from edgekd.training.loop.autograd_layers import WEIGHTED, parameters_trainable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


#: torch-pruning's group of layers, and its graph of a network: the library has no types.
PruningGroup: TypeAlias = Any
PruningGraph: TypeAlias = Any

#: torch-pruning's record of what was removed: (module path, whether from its outputs, channel indices) of each group.
History = list[tuple[str, bool, list[int]]]

#: The branch of groups that lie in no modality's encoder alone.
FUSION = "fusion"


class Importance(Protocol):
    """The interface of a measure in torch-pruning."""

    def __call__(self, group: PruningGroup) -> Tensor | None:
        """Return the importance [N] of a dependency group's N channels, or None where it is not known."""


@dataclass(frozen=True)
class Group:
    """One dependency group.

    Attributes:
        root: Path of the layer whose output channels the group's channels are.
        branch: The modality in whose encoder it is, or :data:`FUSION`.
        width: Number of its channels.
        parts: Number of slices of equal size that must each lose the same channels, as in grouped convolutions; mostly
            1.
        step: The number that its width must stay a multiple of.
        importance: Importance of each channel of a slice [width / parts].
    """

    root: str
    branch: str
    width: int
    parts: int
    step: int
    importance: tuple[float, ...]

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


@contextmanager
def dependency_graph(model: nn.Module, inputs: Sequence[Tensor]) -> Iterator[PruningGraph]:
    """Yield torch-pruning's dependency graph of a network, in evaluation mode and with trainable parameters.

    Raises:
        ModelError: Torch-pruning cannot read, or cannot prune, this network.
    """
    model.eval()
    with quiet(), parameters_trainable(model):
        try:
            yield (
                need("torch_pruning", "build")
                .DependencyGraph()
                .build_dependency(model, tuple(x[:2] for x in inputs), output_transform=_tensors)
            )
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise ModelError(
                f"torch-pruning cannot prune {type(model).__name__}: {error}; try [prune] ignore"
            ) from error
        model.zero_grad(set_to_none=True)


def _tensors(output: object) -> list[Tensor]:
    """Return every tensor in a model's output, however nested: torch-pruning traces back from them."""
    if isinstance(output, Tensor):
        return [output] if output.requires_grad else []
    if isinstance(output, Mapping):
        parts = list(output.values())
    else:
        parts = list(output) if isinstance(output, list | tuple) else list(getattr(output, "__dict__", {}).values())
    return [tensor for part in parts for tensor in _tensors(part)]


def remove_channels(model: nn.Module, inputs: Sequence[Tensor], removed: History) -> None:
    """Remove channels in place, with everything that depends on them.

    Raises:
        ModelError: Torch-pruning cannot, or the network no longer runs without them.
    """
    with dependency_graph(model, inputs) as graph:
        graph.load_pruning_history(removed)
        model(*(x[:2] for x in inputs))


def copy_without(model: nn.Module, inputs: Sequence[Tensor], removed: History) -> nn.Module:
    """Return a copy of the network without some channels."""
    copy = deepcopy(model)
    remove_channels(copy, inputs, removed)
    return copy


def prunable_groups(graph: PruningGraph, kept: Sequence[nn.Module]) -> list[PruningGroup]:
    """Return torch-pruning's groups whose root is a layer with weights and which have no layer that is kept."""
    return list(graph.get_all_groups(ignored_layers=list(kept), root_module_types=WEIGHTED))


def describe_group(
    group: PruningGroup,
    graph: PruningGraph,
    paths: Mapping[nn.Module, str],
    branches: Mapping[nn.Module, str],
    importance: Importance,
    round_to: int,
) -> Group | None:
    """Return what is known of one of torch-pruning's groups, or None where its importance is not."""
    scores = importance(group)
    if scores is None:
        return None
    members = [(d.target.module, graph.get_pruner_of_module(d.target.module), d.handler) for d, _ in group]
    outputs = [layer for layer, pruner, handler in members if handler == pruner.prune_out_channels]
    branches_of = {branches.get(layer, FUSION) for layer in outputs if isinstance(layer, WEIGHTED)}
    parts = max(_parts(*member) for member in members)
    return Group(
        root=paths[group[0].dep.target.module],
        branch=branches_of.pop() if len(branches_of) == 1 else FUSION,
        width=len(scores),
        parts=parts,
        step=math.lcm(round_to, parts),
        importance=tuple(scores.view(parts, -1).mean(0).tolist()),
    )


def _parts(layer: nn.Module, pruner: Any, handler: object) -> int:
    """Return the number of slices into which a layer divides the channels; each must lose the same ones."""
    if getattr(layer, "groups", 1) == getattr(layer, "out_channels", 0):  # depthwise: any channel may go
        return 1
    outputs = handler == pruner.prune_out_channels
    return int(pruner.get_out_channel_groups(layer) if outputs else pruner.get_in_channel_groups(layer))
