"""What the layers of a float graph do for one sample: how much they multiply, and by what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.compress.graph import initializers, open_at
from edgekd.compress.oracles.identity import run_few
from edgekd.compress.stored_layers import is_stored_lstm, is_stored_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto, NodeProto

    from edgekd.runtime.session import Feeds

    Shapes = Mapping[str, tuple[int, ...]]

#: Share of a graph's multiplications that products with stored matrices must have: if three times as fast, they make
#: the whole a quarter faster.
_SHARE = 0.3


@dataclass(frozen=True)
class GraphWork:
    """The multiplications of a graph for one sample, and the weights behind them.

    Attributes:
        matrices: Multiplications by stored matrices, of MatMul and Gemm nodes.
        recurrent: Multiplications by the stored weights of LSTM nodes.
        others: Multiplications of convolutions, of products of two activations, and of other recurrent layers.
        matrix_bytes: Bytes of the stored matrices in float32.
    """

    matrices: int
    recurrent: int
    others: int
    matrix_bytes: int

    @property
    def stored_products(self) -> int:
        """Multiplications by stored matrices, recurrent ones among them."""
        return self.matrices + self.recurrent

    @property
    def rows(self) -> float:
        """How often each weight of a matrix is used, on average."""
        return self.matrices / (self.matrix_bytes / 4) if self.matrix_bytes else 0.0

    def few_products(self) -> str | None:
        """Explain that other layers do most of the work; None where stored matrices do enough of it."""
        whole = self.stored_products + self.others
        share = self.stored_products / whole if whole else 0.0
        return f"products with stored matrices are {share:.0%} of its multiplications" if share < _SHARE else None


def measure_work(model: ModelProto, feeds: Feeds) -> GraphWork:
    """Measure a float graph's work on one sample; graphs inside nodes are not looked into.

    Args:
        model: The float graph.
        feeds: The sample, one row of each input.
    """
    constants = {n.output[0]: item.t for n in model.graph.node for item in n.attribute if n.op_type == "Constant"}
    stored = {**initializers(model.graph), **constants}
    layers = [node for node in model.graph.node if node.op_type in _COUNTS]
    made = {name for node in model.graph.node for name in node.output if name}
    made |= {value.name for value in model.graph.input}
    tensors = list(dict.fromkeys(name for node in layers for name in (node.input[0], node.output[0]) if name in made))
    shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.dims) for name, tensor in stored.items()}
    if tensors:
        shapes |= {n: x.shape for n, x in zip(tensors, run_few(open_at(model, tensors), tensors, feeds), strict=True)}
    counts = {"matrices": 0, "recurrent": 0, "others": 0}
    weights: dict[str, int] = {}
    for node in layers:
        kind = "others"
        if is_stored_matrix(node, stored):
            kind, weights[node.input[1]] = "matrices", math.prod(shapes[node.input[1]])
        elif is_stored_lstm(node, stored):
            kind = "recurrent"
        counts[kind] += _COUNTS[node.op_type](node, shapes)
    return GraphWork(**counts, matrix_bytes=4 * sum(weights.values()))


def _of_product(node: NodeProto, shapes: Shapes) -> int:
    """Multiplications of a MatMul or Gemm: its result's size times the width that is summed over."""
    inner = shapes[node.input[0]]
    first = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(shapes[node.output[0]]) * inner[0 if first else -1]


def _of_convolution(node: NodeProto, shapes: Shapes) -> int:
    """Multiplications of a Conv: each result sums over the kernel and the channels of its group."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes.get(node.input[1], ())[1:])


def _of_transposed(node: NodeProto, shapes: Shapes) -> int:
    """Multiplications of a ConvTranspose: each element that it reads goes to every place of the kernel."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes.get(node.input[1], ())[1:])


def _of_recurrent(node: NodeProto, shapes: Shapes) -> int:
    """Multiplications of a recurrent layer: all weights at every step of every sequence."""
    steps, batch, _ = shapes[node.input[0]]
    return steps * batch * sum(math.prod(shapes.get(name, (0,))) for name in node.input[1:3])


_COUNTS = {
    "MatMul": _of_product, "Gemm": _of_product, "Conv": _of_convolution, "ConvTranspose": _of_transposed,
    "LSTM": _of_recurrent, "GRU": _of_recurrent, "RNN": _of_recurrent,
}  # fmt: skip
