"""The oracle of graphs of integer operators: their rounding left aside, they compute what the float graph computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import copy, drop_unread, initializers, open_at, producers
from edgekd.compress.oracles.identity import Difference, first_difference, run_few
from edgekd.errors import ModelError
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx import ModelProto, NodeProto

    from edgekd.runtime.session import Array, Feeds

#: Largest root mean square of a weight's rounding, in steps; that of rounding to the nearest is 0.29.
_STEPS = 1.0
_ROUNDING = "DynamicQuantizeLinear"
_ONE = np.ones((1, 1))


class _WrongWeight(ModelError):
    """A stored weight is not the float one, rounded.

    Args:
        difference: The node that multiplies by it, and how it differs.
    """

    def __init__(self, difference: Difference) -> None:
        super().__init__(f"'{difference.node}': {difference.reason}")
        self.difference = difference


def first_miswritten(integers: ModelProto, floats: ModelProto, feeds: Sequence[Feeds]) -> Difference | None:
    """Return the first node that a graph of integer operators would compute wrong even if nothing were rounded.

    Operators are read as their specifications say: DynamicQuantizeLinear and MatMulInteger of ONNX, MatMulNBits and
    DynamicQuantizeLSTM of ONNX Runtime (docs/ContribOperators.md). Each weight, dequantized, must be the one that the
    float graph stores for the node of the same name, but for rounding. With these float weights in place of the levels,
    and activations that are not rounded, the graph must compute what the float graph does; it must run; and what it
    rounds must be finite.

    Args:
        integers: The graph of integer operators, whose nodes that multiply are called as in the float graph.
        floats: The float graph.
        feeds: Few samples, in chunks that both graphs take.
    """
    try:
        difference = first_difference(_Reader(integers, floats).without_rounding(), floats, feeds)
    except _WrongWeight as wrong:
        return wrong.difference
    return difference or _first_not_finite(integers, floats, feeds)


def _first_not_finite(integers: ModelProto, floats: ModelProto, feeds: Sequence[Feeds]) -> Difference | None:
    """Return the first node that would round infinite or NaN values, which have no range; their sums are anything.

    It also runs the graph of integers.
    """
    outputs, original = [value.name for value in floats.graph.output], {node.name: node for node in floats.graph.node}
    layers = [node.name for node in integers.graph.node if node.op_type in _READERS and node.op_type != _ROUNDING]
    read = {original[name].input[0]: name for name in reversed(layers)}
    if not read:
        return None
    tensors, names = list(read), list(read.values())
    session, written = open_at(floats, tensors), open_at(integers, outputs)
    for chunk in feeds:
        run_few(written, outputs, chunk)
        for name, x in zip(names, run_few(session, tensors, chunk), strict=True):
            if not np.isfinite(x).all():
                return Difference(name, "it reads infinite or NaN values, which have no range")
    return None


class _Reader:
    """Reads integer operators, and writes what they would compute without rounding."""

    def __init__(self, integers: ModelProto, floats: ModelProto) -> None:
        onnx = need("onnx", "build")
        self._make, self._helper = onnx.helper.make_node, onnx.numpy_helper
        self._model = copy(integers)
        self._stored, self._exact = initializers(self._model.graph), initializers(floats.graph)
        self._floats = {node.name: node for node in floats.graph.node}
        self._made = producers(self._model.graph)

    def without_rounding(self) -> ModelProto:
        """Return the float graph that the integer operators stand for.

        Raises:
            _WrongWeight: A stored weight is another one.
        """
        graph = self._model.graph
        nodes = [self._read(node) for node in graph.node]
        graph.ClearField("node")
        graph.node.extend(nodes)
        drop_unread(graph)
        return self._model

    def _read(self, node: NodeProto) -> NodeProto:
        reader = _READERS.get(node.op_type)
        return reader(self, node) if reader else node

    def rounding(self, node: NodeProto) -> NodeProto:
        """Read DynamicQuantizeLinear: its result is what it was given, in steps of 1."""
        self._store(np.array(1, np.float32), node.output[1])
        self._store(np.array(0, np.float32), node.output[2])
        return self._node("Identity", node.input[:1], node.output[:1], node.name)

    def product(self, node: NodeProto) -> NodeProto:
        """Read MatMulInteger, whose weight is in steps of the scale that its result is multiplied by."""
        levels = self._value(node.input[1]).astype(np.float64) - self._value(node.input[3])
        scale = self._scale_of(node)
        exact = self._check(node, 1, levels, scale, self._factors(node))
        self._store((exact / scale).astype(np.float32), f"{node.name}:weight")
        return self._node("MatMul", [node.input[0], f"{node.name}:weight"], node.output, node.name)

    def blocks(self, node: NodeProto) -> NodeProto:
        """Read MatMulNBits, whose weight has a scale for each block of inputs."""
        given = {item.name: item.i for item in node.attribute}
        packed, scales = self._value(node.input[1]), self._value(node.input[2]).astype(np.float64)
        if given["bits"] == 4:
            packed = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1)
        levels = packed.astype(np.float64) - 2 ** (given["bits"] - 1)
        scale = np.broadcast_to(scales[..., None], levels.shape)
        levels, scale = (x.reshape(given["N"], -1)[:, : given["K"]].T for x in (levels, scale))
        exact = self._check(node, 1, levels, scale)
        self._store(exact.astype(np.float32), f"{node.name}:weight")
        return self._node("MatMul", [node.input[0], f"{node.name}:weight"], node.output, node.name)

    def lstm(self, node: NodeProto) -> NodeProto:
        """Read DynamicQuantizeLSTM, whose weights are stored as [directions, inputs, gates]."""
        inputs = list(node.input[:8])
        for index, (scale, zero) in ((1, node.input[8:10]), (2, node.input[10:12])):
            levels = self._value(node.input[index]).astype(np.float64).transpose(0, 2, 1)
            steps, zeros = (self._value(name).astype(np.float64) for name in (scale, zero))
            spread = [*steps.shape, *[1] * (3 - steps.ndim)]
            exact = self._check(node, index, levels - zeros.reshape(spread), steps.reshape(spread))
            inputs[index] = f"{node.name}:weight{index}"
            self._store(exact.astype(np.float32), inputs[index])
        read = self._node("LSTM", inputs, node.output, node.name)
        read.attribute.extend(node.attribute)
        return read

    def _factors(self, node: NodeProto) -> Array:
        """Return the factors [inputs, 1] that the channels of an activation are multiplied by before it is rounded."""
        given, original = self._made[node.input[0]].input[0], self._floats[node.name].input[0]
        if given == original:
            return _ONE
        factors: Array = self._value(self._made[given].input[1]).astype(np.float64)[:, None]
        return factors

    def _scale_of(self, node: NodeProto) -> Array:
        """Return the stored factor of the product that the sums of a MatMulInteger are multiplied by."""
        readers = {name: reader for reader in self._model.graph.node for name in reader.input}
        cast = readers[node.output[0]]
        multiply = readers[cast.output[0]]
        steps = self._made[next(name for name in multiply.input if name != cast.output[0])]
        return self._value(next(name for name in steps.input if name in self._stored)).astype(np.float64)

    def _check(self, node: NodeProto, index: int, levels: Array, scale: Array, factors: Array = _ONE) -> Array:
        """Return the float graph's weight for a node, as the levels lie, which must be that weight rounded.

        Args:
            node: The node.
            index: The index of the weight among its inputs.
            levels: The levels of the weight.
            scale: Their scale, which is broadcast.
            factors: What the activation is multiplied by, and the weight is divided by in return.
        """
        original = self._floats[node.name]
        exact: Array = self._helper.to_array(self._exact[original.input[index]])
        if original.op_type == "Gemm" and any(item.name == "transB" and item.i for item in original.attribute):
            exact = exact.T
        if exact.shape != levels.shape or len(factors) not in (1, len(exact)):
            raise _WrongWeight(Difference(node.name, f"its weight is {list(levels.shape)}, not {list(exact.shape)}"))
        exact = exact / factors
        steps = float(np.sqrt(np.mean(np.square(levels - exact / scale)))) if exact.size else 0.0
        if not steps <= _STEPS:
            raise _WrongWeight(Difference(node.name, f"its weight is {steps:.3g} steps off"))
        return np.asarray(exact)

    def _value(self, name: str) -> Array:
        value: Array = self._helper.to_array(self._stored[name])
        return value

    def _store(self, value: Array, name: str) -> None:
        self._model.graph.initializer.append(self._helper.from_array(np.ascontiguousarray(value), name))

    def _node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], name: str) -> NodeProto:
        made: NodeProto = self._make(kind, list(inputs), list(outputs), name)
        return made


_READERS: dict[str, Callable[[_Reader, NodeProto], NodeProto]] = {
    _ROUNDING: _Reader.rounding,
    "MatMulInteger": _Reader.product,
    "MatMulNBits": _Reader.blocks,
    "DynamicQuantizeLSTM": _Reader.lstm,
}
