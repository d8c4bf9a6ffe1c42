"""Recurrent layers for torch-pruning: one node of its graph each, which can lose inputs and keeps its outputs."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Layers that run over a sequence, and those that take one step of it.
SEQUENCES = (nn.RNN, nn.GRU, nn.LSTM)
CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)


class RecurrentPruner:
    """Torch-pruning's interface for a recurrent layer. Its widths other than that of its inputs are kept."""

    pruning_dim = -1

    def prune_in_channels(self, layer: nn.RNNBase, channels: Sequence[int]) -> nn.Module:
        """Remove some inputs."""
        stay = torch.tensor([index for index in range(layer.input_size) if index not in set(channels)])
        for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
            weight = getattr(layer, name, None)
            if weight is not None:
                setattr(layer, name, nn.Parameter(weight.detach()[:, stay.to(weight.device)]))
        layer.input_size = len(stay)
        return layer

    def prune_out_channels(self, layer: nn.Module, _channels: Sequence[int]) -> nn.Module:
        """Raise an error: the gates and the state are as wide as the outputs."""
        raise ValueError(f"{type(layer).__name__} keeps its width")

    def get_in_channels(self, layer: nn.RNNBase) -> int:
        """Return the number of inputs."""
        return layer.input_size

    def get_out_channels(self, layer: nn.RNNBase) -> int:
        """Return the number of outputs."""
        return (getattr(layer, "proj_size", 0) or layer.hidden_size) * (1 + getattr(layer, "bidirectional", False))

    def get_in_channel_groups(self, _layer: nn.Module) -> int:
        """Return 1: any input may go."""
        return 1

    get_out_channel_groups = get_in_channel_groups


def keeps_width(layer: object, outputs: bool) -> bool:
    """Whether the outputs, or the inputs, of a layer keep their width because it is recurrent."""
    return isinstance(layer, CELLS) or (outputs and isinstance(layer, SEQUENCES))


@contextmanager
def as_single_nodes(model: nn.Module) -> Iterator[None]:
    """Make each run of a recurrent layer one node of the autograd graph, which cannot run backwards.

    Unrolled, it has some ten nodes for each step, and torch-pruning's search grows faster than their number.
    """
    layers = [
        layer for layer in model.modules() if isinstance(layer, (*SEQUENCES, *CELLS)) and "forward" not in vars(layer)
    ]
    for layer in layers:
        vars(layer)["forward"] = partial(_as_single_node, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _as_single_node(forward: Callable[..., object], *args: object, **kwargs: object) -> object:
    given, layout = pytree.tree_flatten((args, kwargs))
    made: list[pytree.TreeSpec] = []

    def run(*flat: object) -> tuple[object, ...]:
        args, kwargs = pytree.tree_unflatten(list(flat), layout)
        outputs, spec = pytree.tree_flatten(forward(*args, **kwargs))
        made.append(spec)
        return tuple(outputs)

    outputs = _SingleNode.apply(run, *given)  # type: ignore[no-untyped-call]
    return pytree.tree_unflatten(list(outputs), made[0])


class _SingleNode(torch.autograd.Function):
    """Runs a function without a graph of its own."""

    @staticmethod
    def forward(_context: Any, run: Callable[..., tuple[object, ...]], *given: object) -> tuple[object, ...]:
        return run(*given)

    @staticmethod
    def backward(_context: Any, *_gradients: Tensor | None) -> Any:
        raise NotImplementedError("it stands in a graph that is only looked at")
