"""The operator that an output of a graph ends in, behind those that only move or convert its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.compress.graph import initializers, producers
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import GraphProto, NodeProto

    from edgekd.gram.npz import Array

#: Operators that leave values as they are, but for their place, their type, or the rounding of INT8.
_MOVING = frozenset({
    "Identity", "Reshape", "Transpose", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Dropout", "Expand",
    "QuantizeLinear", "DequantizeLinear",
})  # fmt: skip

#: Operators that take a part of the values, so that distributions are none any more.
_TAKING = frozenset({"Slice", "Split", "Gather", "GatherElements", "GatherND"})

#: Operators behind which probabilities are probabilities still, and of distributions the mean is one.
_POOLING = frozenset({"ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"})

#: What lies between the length of a vector and the division by it.
_GUARDING = frozenset({"Clip", "Max", "Add", "Expand", "Identity", "Reshape", "Unsqueeze", "Cast", "Sqrt", "Pow"})

#: Other names of the same operators: of ONNX Runtime's integer kernels.
_NAMES = {"QLinearSoftmax": "Softmax", "QLinearSigmoid": "Sigmoid", "HardSigmoid": "Sigmoid"}

#: Names of what is told of an output, besides operators of ONNX.
NORMALIZE, TOKENS = "Normalize", "tokens"

#: Steps that are followed; a graph that ends in more of them ends in nothing clear.
_MOST = 64


@dataclass(frozen=True)
class LastOperator:
    """What an output ends in.

    Attributes:
        name: The operator of ONNX; :data:`NORMALIZE` for a division by the vector's own length, however it is written;
            :data:`TOKENS` for the mean over tokens, one of them, or their LayerNormalization.
        whole: Whether the output has all of its values: of a Softmax a part may have been taken.
    """

    name: str
    whole: bool = True


def last_operators(graph: GraphProto) -> dict[str, LastOperator]:
    """Return what each output of a graph ends in; without those that are inputs, or in which several operators end."""
    search = _EndSearch(graph)
    found = {output.name: search.behind(output.name) for output in graph.output}
    return {name: last for name, last in found.items() if last is not None}


class _EndSearch:
    """Follows tensors of one graph back to what computes their values."""

    def __init__(self, graph: GraphProto) -> None:
        self._made, self._stored = producers(graph), initializers(graph)

    def behind(self, tensor: str) -> LastOperator | None:
        """Return what a tensor ends in."""
        whole, pooled = True, None
        for _ in range(_MOST):
            node = self._made.get(tensor)
            if node is None or self._ends_in(node):
                return self._named(node, pooled, whole)
            if node.op_type == "Concat":
                parts = {self.behind(part) for part in node.input if part not in self._stored}
                return parts.pop() if len(parts) == 1 else None
            whole = whole and node.op_type not in _TAKING
            pooled = pooled or (node if node.op_type in _POOLING else None)
            tensor = node.input[0]
        return None

    def _ends_in(self, node: NodeProto) -> bool:
        """Whether a node computes values, or takes the token that stands for a sequence."""
        return node.op_type not in _MOVING | _TAKING | _POOLING | {"Concat"} or self._is_token(node)

    def _named(self, node: NodeProto | None, pooled: NodeProto | None, whole: bool) -> LastOperator | None:
        """Return what a tensor ends in, given the node that computes its values and what pools these, if anything."""
        node = node if node is None else self._without_bias(node)
        name = None if node is None else _NAMES.get(node.op_type, node.op_type)
        if pooled is not None and name not in ("Softmax", "Sigmoid"):
            return LastOperator(TOKENS if self._is_over_tokens(pooled) else pooled.op_type, whole)
        if node is None or name is None:
            return None
        if name == "LayerNormalization" or self._is_token(node) or self._is_masked_mean(node):
            return LastOperator(TOKENS, whole)
        return LastOperator(NORMALIZE if self._is_normalization(node) else name, whole)

    def _without_bias(self, node: NodeProto) -> NodeProto:
        """Return the layer that a stored bias is added to; any other node as it is."""
        if node.op_type != "Add" or self._stored.keys().isdisjoint(node.input):
            return node
        layer = next((self._made[name] for name in node.input if name in self._made), node)
        return layer if layer.op_type in ("MatMul", "Conv", "ConvTranspose") else node

    def _values(self, tensor: str) -> Array | None:
        """Return the values of a stored tensor; None for another."""
        stored = self._stored.get(tensor)
        return None if stored is None else np.asarray(need("onnx", "build").numpy_helper.to_array(stored))

    def _is_token(self, node: NodeProto) -> bool:
        """Whether a node takes one token of a normalised sequence, as of CLS."""
        if node.op_type != "Gather":
            return False
        before, index = self._made.get(node.input[0]), self._values(node.input[1])
        along = _attributes(node).get("axis", 0) == 1 and index is not None and index.size == 1
        return along and before is not None and before.op_type == "LayerNormalization"

    def _is_over_tokens(self, node: NodeProto) -> bool:
        """Whether a node averages over the second dimension alone, where sequences have their steps."""
        axes = _attributes(node).get("axes") or (self._values(node.input[1]) if len(node.input) > 1 else None)
        listed = [] if axes is None else np.ravel(axes).tolist()
        return node.op_type == "ReduceMean" and listed in ([1], [-2])

    def _is_masked_mean(self, node: NodeProto) -> bool:
        """Whether a node divides a sum over tokens by another sum: that of their mask."""
        if node.op_type != "Div":
            return False
        above, below = self._made.get(node.input[0]), self._guarded(node.input[1])
        return bool(above and below and above.op_type == "ReduceSum" and below.op_type == "ReduceSum")

    def _is_normalization(self, node: NodeProto) -> bool:
        """Whether a node divides a vector by its own length."""
        if node.op_type == "LpNormalization":
            return True
        if node.op_type == "Div":
            vector, length = node.input[0], self._guarded(node.input[1])
        elif node.op_type == "Mul":
            sides = [(node.input[1 - side], self._made.get(node.input[side])) for side in (0, 1)]
            reciprocal = next((pair for pair in sides if pair[1] and pair[1].op_type == "Reciprocal"), None)
            if reciprocal is None or reciprocal[1] is None:
                return False
            vector, length = reciprocal[0], self._guarded(reciprocal[1].input[0])
        else:
            return False
        return length is not None and self._is_length(length, vector)

    def _is_length(self, node: NodeProto, vector: str) -> bool:
        """Whether a node gives the length of a vector, or the square of it."""
        source = node.input[0]
        if node.op_type == "ReduceSum":
            squared = self._made.get(source)
            if squared is None or squared.op_type not in ("Mul", "Pow"):
                return False
            if squared.op_type == "Mul" and squared.input[0] != squared.input[1]:
                return False
            source = squared.input[0]
        elif node.op_type not in ("ReduceL2", "ReduceSumSquare"):
            return False
        return self._root(source) == self._root(vector)

    def _guarded(self, tensor: str) -> NodeProto | None:
        """Return the reduction behind a divisor, and behind what keeps that from being zero."""
        for _ in range(_MOST):
            node = self._made.get(tensor)
            if node is None or node.op_type not in _GUARDING:
                return node
            tensor = next((name for name in node.input if name in self._made), "")
        return None

    def _root(self, tensor: str) -> str:
        for _ in range(_MOST):
            node = self._made.get(tensor)
            if node is None or node.op_type not in ("Identity", "Cast", "Reshape", "Dropout"):
                break
            tensor = node.input[0]
        return tensor


def _attributes(node: NodeProto) -> Mapping[str, Any]:
    get = need("onnx", "build").helper.get_attribute_value
    return {attribute.name: get(attribute) for attribute in node.attribute}
