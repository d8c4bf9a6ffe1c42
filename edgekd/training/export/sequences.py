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

#: What a gate adds up to that is shut or open for certain: its sigmoid is 0 or 1, in half precision too.
_SHUT = 1e4


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
    y, last = _run(layer, packed.data, state, lengths)
    if packed.unsorted_indices is not None:
        last = _in_order(last, packed.unsorted_indices)
    return PackedSequence(y, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), last


def run_projected(layer: nn.LSTM, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Run an LSTM that projects its output, on a tensor [B, T, D] or [T, B, D] as the layer has it, or [T, D]."""
    alone = x.dim() == 2
    x = x[:, None] if alone else x.transpose(0, 1) if layer.batch_first else x
    if alone and state is not None:
        state = tuple(each[:, None] for each in state)
    y, last = _run(layer, x, state, None)
    if alone:
        return y[:, 0], tuple(each[:, 0] for each in last)
    return (y.transpose(0, 1) if layer.batch_first else y), last


def _in_order(state: Any, order: Tensor) -> Any:
    """Return a state [layers, B, H], or both of an LSTM, with its sequences in another order."""
    return tuple(each[:, order] for each in state) if isinstance(state, tuple) else state[:, order]


def _run(layer: nn.RNNBase, x: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
    """Run a recurrent layer over [T, B, D], of which each sequence has a length; None for all steps.

    Engine libraries differ in what they make of the lengths that ONNX's recurrent operators take, so none is given
    any: a sequence is turned round by its own length, and what it has at its end is looked up.

    Returns:
        The outputs [T, B, H], in which what is past a sequence's end is arbitrary, and the last states.
    """
    ways = 1 + layer.bidirectional
    states = _zeros(layer, x) if state is None else state if isinstance(state, tuple) else (state,)
    lasts = []
    for number in range(layer.num_layers):
        outputs = []
        for way in range(ways):
            place = number * ways + way
            initial, weights = [z[place : place + 1] for z in states], layer.all_weights[place]
            y, last = _one_way(layer, _turned(x, lengths) if way else x, initial, weights, lengths)
            outputs.append(_turned(y, lengths) if way else y)
            lasts.append(last)
        x = torch.cat(outputs, 2)
    together = tuple(torch.cat(each) for each in zip(*lasts, strict=True))
    return x, together if layer.mode == "LSTM" else together[0]


def _one_way(
    layer: nn.RNNBase, x: Tensor, initial: Sequence[Tensor], weights: Sequence[Tensor], lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in one direction; return its outputs and last states."""
    options = (layer.bias, 1, 0.0, False, False, False)
    if layer.proj_size or lengths is None:
        y, cells = _steps(layer, x, [z[0] for z in initial], weights)
        return y, (_at_end(y, lengths), _at_end(cells, lengths))
    if layer.mode == "LSTM":
        x, weights = _holding(x, weights, lengths)
        y, _, cell = torch.lstm(x, tuple(initial), list(weights), *options)
        return y, (_at_end(y, lengths), cell)
    run = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[layer.mode]
    y, _ = run(x, initial[0], list(weights), *options)
    return y, (_at_end(y, lengths),)


def _holding(x: Tensor, weights: Sequence[Tensor], lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return inputs and weights of an LSTM that keeps its cell past a sequence's end, so that the last is that there.

    One input more is 1 there: it shuts the input gate and opens the forget gate.
    """
    over = (~_is_there(x, lengths)).to(x.dtype)[..., None]
    hidden = len(weights[0]) // 4
    gates = torch.cat([x.new_full((hidden, 1), -_SHUT), x.new_full((hidden, 1), _SHUT), x.new_zeros(2 * hidden, 1)])
    return torch.cat([x, over], 2), [torch.cat([weights[0], gates], 1), *weights[1:]]


def _zeros(layer: nn.RNNBase, x: Tensor) -> list[Tensor]:
    """Return the states [layers, B, H] that a recurrent layer begins with where it is given none."""
    count, widths = layer.num_layers * (1 + layer.bidirectional), [layer.proj_size or layer.hidden_size]
    widths += [layer.hidden_size] * (layer.mode == "LSTM")
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
