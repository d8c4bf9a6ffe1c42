"""Recurrent layers in operators that ONNX has: over padded sequences in the place of packed ones, and step by step.

ONNX has no packed sequence, and PyTorch's exporter ignores ``proj_size``.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
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
    x, lengths = packed.data, _lengths(packed.data, packed.batch_sizes)
    if state is not None and packed.sorted_indices is not None:
        state = _in_order(state, packed.sorted_indices)
    y, last = _Recurrence(layer, lengths).run(x, state)
    if packed.unsorted_indices is not None:
        last = _in_order(last, packed.unsorted_indices)
    return PackedSequence(y, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), last


def run_projected(layer: nn.LSTM, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Run an LSTM that projects its output, on a tensor [B, T, D] or [T, B, D] as the layer has it, or [T, D]."""
    alone = x.dim() == 2
    x = x[:, None] if alone else x.transpose(0, 1) if layer.batch_first else x
    if alone and state is not None:
        state = tuple(each[:, None] for each in state)
    y, last = _Recurrence(layer, None).run(x, state)
    if alone:
        return y[:, 0], tuple(each[:, 0] for each in last)
    return (y.transpose(0, 1) if layer.batch_first else y), last


def _in_order(state: Any, order: Tensor) -> Any:
    """Return a state [layers, B, H], or both of an LSTM, with its sequences in another order."""
    return tuple(each[:, order] for each in state) if isinstance(state, tuple) else state[:, order]


@dataclass(frozen=True)
class _Recurrence:
    """One recurrent layer in evaluation mode, over time first.

    Attributes:
        layer: The layer.
        lengths: The length of each sequence [B]; None where all are as long as the tensor.
    """

    layer: nn.RNNBase
    lengths: Tensor | None

    def run(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the outputs [T, B, H], in which what is past a sequence's end is arbitrary, and the last states."""
        ways = 2 if self.layer.bidirectional else 1
        states: Sequence[Any] = state if isinstance(state, tuple) else (state,)
        lasts = []
        for number in range(self.layer.num_layers):
            outputs = []
            for way in range(ways):
                place = number * ways + way
                initial = [each if each is None else each[place : place + 1] for each in states]
                y, last = self._one_way(x, initial, number, back=way == 1)
                outputs.append(y)
                lasts.append(last)
            x = torch.cat(outputs, 2)
        collected = tuple(torch.cat(each) for each in zip(*lasts, strict=True))
        return x, collected if self.layer.mode == "LSTM" else collected[0]

    def _one_way(self, x: Tensor, initial: Sequence[Any], number: int, back: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one layer in one direction."""
        x = self._turned(x) if back else x
        weights: list[Tensor] = [*self.layer.all_weights[number * (2 if self.layer.bidirectional else 1) + back]]
        if initial[0] is None:
            hidden = self.layer.proj_size or self.layer.hidden_size
            widths = (hidden, self.layer.hidden_size) if self.layer.mode == "LSTM" else (hidden,)
            initial = [x.new_zeros(1, x.shape[1], width) for width in widths]
        if self.layer.mode == "LSTM":
            y, last = self._lstm(x, initial, weights)
        else:
            run = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[self.layer.mode]
            y, _ = run(x, initial[0], weights, self.layer.bias, 1, 0.0, False, False, False)
            last = (self._at_end(y),)
        return (self._turned(y) if back else y), last

    def _lstm(self, x: Tensor, initial: Sequence[Tensor], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run an LSTM. ONNX's own tells the cells of the last step alone: where others are asked for, all are."""
        steps, cells = self._lstm_steps(x, initial, weights)
        if self.layer.proj_size:
            y = steps
        else:
            y = torch.lstm(x, tuple(initial), weights, self.layer.bias, 1, 0.0, False, False, False)[0]
        return y, (self._at_end(y), self._at_end(cells))

    def _lstm_steps(self, x: Tensor, initial: Sequence[Tensor], weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Run an LSTM step by step; return its outputs and cells [T, B, H]."""
        of_input, of_state = weights[:2]
        biases = weights[2:4] if self.layer.bias else (None, None)
        given = nn.functional.linear(x, of_input, biases[0])
        h, c = initial[0][0], initial[1][0]
        outputs, cells = [], []
        for step in given.unbind(0):
            i, f, g, o = (step + nn.functional.linear(h, of_state, biases[1])).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            h = nn.functional.linear(h, weights[-1]) if self.layer.proj_size else h
            outputs.append(h)
            cells.append(c)
        return torch.stack(outputs), torch.stack(cells)

    def _turned(self, x: Tensor) -> Tensor:
        """Return each sequence backwards, from its own end."""
        if self.lengths is None:
            return x.flip(0)
        place = (self.lengths[None] - 1 - torch.arange(x.shape[0])[:, None]).clamp(min=0)
        return x.gather(0, place[:, :, None].expand(-1, -1, x.shape[2]))

    def _at_end(self, y: Tensor) -> Tensor:
        """Return what each sequence has at its last step [1, B, H]."""
        if self.lengths is None:
            return y[-1:]
        return y.gather(0, (self.lengths - 1)[None, :, None].expand(-1, -1, y.shape[2]))
