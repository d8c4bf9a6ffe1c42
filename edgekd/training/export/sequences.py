"""Recurrent layers in operators that ONNX has: over padded sequences in the place of packed ones, and step by step.

ONNX has no packed sequence, and PyTorch's exporter ignores ``proj_size``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def padded_sequences() -> Iterator[None]:
    """Within the context a ``PackedSequence`` holds padded data [T, B, ...], and for each step how many have it [T].

    Torch's own holds the steps of all sequences one after the other, as many as the lengths add up to, which no graph
    of fixed shapes can hold. The functions that pack and unpack call these operators, however a user imported them.
    """
    names = vars(rnn)
    kept = names["_VF"]
    names["_VF"] = _Operators
    try:
        yield
    finally:
        names["_VF"] = kept


class _Operators:
    """Torch's operators under packing and unpacking."""

    @staticmethod
    def _pack_padded_sequence(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        x = x.transpose(0, 1) if batch_first else x
        return x, (lengths[None] > torch.arange(x.shape[0])[:, None]).sum(1)

    @staticmethod
    def _pad_packed_sequence(
        x: Tensor, counts: Tensor, batch_first: bool, padding: float, _length: int
    ) -> tuple[Tensor, Tensor]:
        lengths = _lengths(x, counts)
        there = _is_there(x, lengths)
        x = x.masked_fill(~there.view(*there.shape, *[1] * (x.dim() - 2)), padding)
        return x.transpose(0, 1) if batch_first else x, lengths


def _lengths(x: Tensor, counts: Tensor) -> Tensor:
    """Return the length of each sequence [B], the longest first, of how many have each step."""
    return (counts[:, None] > torch.arange(x.shape[1])[None]).sum(0)


def _is_there(x: Tensor, lengths: Tensor) -> Tensor:
    """Return whether each step of each sequence is one of its own, as bool [T, B]."""
    return torch.arange(x.shape[0])[:, None] < lengths[None]


def run_packed(layer: nn.RNNBase, packed: PackedSequence, state: Any) -> tuple[PackedSequence, Any]:
    """Run a recurrent layer on a padded sequence that stands for a packed one."""
    lengths = _lengths(packed.data, packed.batch_sizes)
    if state is not None and packed.sorted_indices is not None:
        state = _in_order(state, packed.sorted_indices)
    y, last = (_run_steps if layer.proj_size else _run_operator)(layer, packed.data, state, lengths)
    if packed.unsorted_indices is not None:
        last = _in_order(last, packed.unsorted_indices)
    return PackedSequence(y, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), last


def run_projected(layer: nn.LSTM, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Run an LSTM that projects its output, on a tensor [B, T, D] or [T, B, D] as the layer has it, or [T, D]."""
    alone = x.dim() == 2
    x = x[:, None] if alone else x.transpose(0, 1) if layer.batch_first else x
    if alone and state is not None:
        state = tuple(each[:, None] for each in state)
    y, last = _run_steps(layer, x, state, None)
    if alone:
        return y[:, 0], tuple(each[:, 0] for each in last)
    return (y.transpose(0, 1) if layer.batch_first else y), last


def _in_order(state: Any, order: Tensor) -> Any:
    """Return a state [layers, B, H], or both of an LSTM, with its sequences in another order."""
    return tuple(each[:, order] for each in state) if isinstance(state, tuple) else state[:, order]


#: For each kind of layer ONNX's operator, and its order of the gates that torch has as LSTM: input, forget, cell,
#: output; GRU: reset, update, new.
_OPERATORS = {
    "LSTM": ("LSTM", (0, 3, 1, 2)),
    "GRU": ("GRU", (1, 0, 2)),
    "RNN_TANH": ("RNN", (0,)),
    "RNN_RELU": ("RNN", (0,)),
}


def _run_operator(layer: nn.RNNBase, x: Tensor, state: Any, lengths: Tensor) -> tuple[Tensor, Any]:
    """Run a recurrent layer [T, B, D] as ONNX's operators, which take the lengths; torch has nothing that does."""
    ways = 1 + layer.bidirectional
    states = state if isinstance(state, tuple) else () if state is None else (state,)
    lasts = []
    for number in range(layer.num_layers):
        rows = slice(number * ways, (number + 1) * ways)
        y, *last = _operator(layer, x, [each[rows] for each in states], layer.all_weights[rows], lengths)
        x = y.transpose(1, 2).flatten(2)
        lasts.append(last)
    together = tuple(torch.cat(each) for each in zip(*lasts, strict=True))
    return x, together if layer.mode == "LSTM" else together[0]


def _operator(
    layer: nn.RNNBase, x: Tensor, states: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], lengths: Tensor
) -> Sequence[Tensor]:
    """Return the outputs [T, ways, B, H] of one layer, and its last states [ways, B, H]."""
    name, order = _OPERATORS[layer.mode]
    ways, hidden = len(weights), layer.hidden_size

    def gates(weight: Tensor) -> Tensor:
        parts = weight.chunk(len(order))
        return torch.cat([parts[place] for place in order])

    stacked = [torch.stack([gates(way[place]) for way in weights]) for place in (0, 1)]
    bias = torch.stack([torch.cat([gates(way[2]), gates(way[3])]) for way in weights]) if layer.bias else None
    options: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if ways > 1 else "forward"}
    if layer.mode == "GRU":
        options["linear_before_reset"] = 1
    if layer.mode == "RNN_RELU":
        options["activations"] = ["Relu"] * ways
    last = (ways, x.shape[1], hidden)
    shapes = [(x.shape[0], ways, x.shape[1], hidden), *[last] * (1 + (layer.mode == "LSTM"))]
    inputs = [x, *stacked, bias, lengths.to(torch.int32), *states]
    return torch.onnx.ops.symbolic_multi_out(
        f"::{name}", inputs, options, dtypes=[x.dtype] * len(shapes), shapes=shapes
    )


def _run_steps(layer: nn.RNNBase, x: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
    """Run an LSTM that projects, [T, B, D], step by step, for sequences of some lengths or of all steps."""
    ways = 1 + layer.bidirectional
    lasts = []
    for number in range(layer.num_layers):
        outputs = []
        for way in range(ways):
            place = number * ways + way
            initial = [z[place] for z in state or _zeros(layer, x)]
            h, c = _steps(layer, _turned(x, lengths) if way else x, initial, layer.all_weights[place])
            outputs.append(_turned(h, lengths) if way else h)
            lasts.append((_at_end(h, lengths), _at_end(c, lengths)))
        x = torch.cat(outputs, 2)
    return x, tuple(torch.cat(each) for each in zip(*lasts, strict=True))


def _zeros(layer: nn.RNNBase, x: Tensor) -> list[Tensor]:
    """Return the states [layers, B, H] that an LSTM begins with where it is given none."""
    count, widths = layer.num_layers * (1 + layer.bidirectional), (layer.proj_size, layer.hidden_size)
    return [x.new_zeros(count, x.shape[1], width) for width in widths]


def _steps(layer: nn.RNNBase, x: Tensor, initial: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Run one LSTM in one direction; return its outputs [T, B, P] and cells [T, B, H]."""
    biases = weights[2:4] if layer.bias else (None, None)
    h, c = initial
    outputs, cells = [], []
    for step in nn.functional.linear(x, weights[0], biases[0]).unbind(0):
        i, f, g, o = (step + nn.functional.linear(h, weights[1], biases[1])).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        h = nn.functional.linear(h, weights[-1])
        outputs.append(h)
        cells.append(c)
    return torch.stack(outputs), torch.stack(cells)


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return each sequence backwards, from its own end."""
    if lengths is None:
        return x.flip(0)
    place = (lengths[None] - 1 - torch.arange(x.shape[0])[:, None]).clamp(min=0)
    return x.gather(0, place[:, :, None].expand(-1, -1, x.shape[2]))


def _at_end(y: Tensor, lengths: Tensor | None) -> Tensor:
    """Return what each sequence has at its last step [1, B, H]."""
    return y[-1:] if lengths is None else y.gather(0, (lengths - 1)[None, :, None].expand(-1, -1, y.shape[2]))
