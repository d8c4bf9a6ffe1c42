"""INT8 whose activations are rounded with the range that each inference has: ONNX Runtime's dynamic quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import drop_unread, initializers, save
from edgekd.compress.quantizers.levels import LARGEST, to_levels
from edgekd.compress.quantizers.names import Names
from edgekd.compress.quantizers.quantizer import ONNX_RUNTIME, Quantizer
from edgekd.compress.quantizers.smoothing import find_factors
from edgekd.compress.stored_layers import is_stored_lstm, is_stored_matrix, is_transposed, read_matrix
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto, NodeProto

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.compress.work import GraphWork
    from edgekd.config.target import Scheme
    from edgekd.runtime.session import Array

#: Multiplications by stored matrices below which rounding activations takes as long as it saves.
_FEWEST = 150_000


def write(prepared: Path, samples: CalibrationSamples, scheme: Scheme, work: Path, floats: Collection[str]) -> Path:
    """Write a float graph whose products with stored matrices are of integers, and return the file.

    MatMul, Gemm and LSTM nodes are rewritten. An activation is rounded to uint8 over its own extremes, by
    DynamicQuantizeLinear; weights have a scale for each output channel where the scheme says so. Activations whose
    channels are of unlike magnitude are multiplied by factors first, where that brings the products closer. Since a
    range is that of the whole tensor, the graph takes one sample at a time: in a batch a sample's result would depend
    on the others.

    Args:
        prepared: The float graph, its constants folded.
        samples: The samples that show which channels of an activation are large, one at a time; no range is stored.
        scheme: Whether weights have a scale for each channel, and their range.
        work: A folder for the result.
        floats: Names of the nodes that stay float.
    """
    onnx = need("onnx", "build")
    model = onnx.load(str(prepared))
    rewriter = _DynamicWriter(model, scheme, find_factors(model, samples, scheme, floats))
    nodes = [made for node in model.graph.node for made in rewriter.rewrite(node, node.name in floats)]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    drop_unread(model.graph)
    _take_one_sample(model)
    save(model, work / "dynamic.onnx")
    return work / "dynamic.onnx"


def _take_one_sample(model: ModelProto) -> None:
    """Fix the batch of a graph at one, in place: the first dimension of its inputs, wherever it is named again."""
    first = [value.type.tensor_type.shape.dim[:1] for value in model.graph.input]
    batches = {dim.dim_param for shape in first for dim in shape if dim.dim_param}
    for shape in first:
        for dim in shape:
            dim.dim_value = dim.dim_value or 1
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in batches:
                dim.dim_value = 1
    model.graph.ClearField("value_info")


class _DynamicWriter:
    """Rewrites the nodes of a graph one by one, in its order."""

    def __init__(self, model: ModelProto, scheme: Scheme, factors: Mapping[str, Array]) -> None:
        self._onnx = need("onnx", "build")
        self._graph, self._scheme, self._factors = model.graph, scheme, factors
        self._names, self._stored = Names(model.graph), initializers(model.graph)
        self._rounded: dict[str, tuple[str, str, str]] = {}
        self._weights: dict[tuple[str, bool, str], tuple[str, str, str]] = {}

    def rewrite(self, node: NodeProto, keep: bool) -> list[NodeProto]:
        """Return the nodes that compute what one node does."""
        if keep:
            return [node]
        if is_stored_matrix(node, self._stored):
            return self._product(node)
        return [self._lstm(node)] if is_stored_lstm(node, self._stored) else [node]

    def _product(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes of a MatMul or Gemm; the one that multiplies has its name."""
        x, (weight, scale, zero_point) = node.input[0], self._weight(node)
        nodes = []
        if x not in self._rounded:
            rounded = self._new(x, "rounded"), self._new(x, "step"), self._new(x, "zero")
            self._rounded[x] = rounded
            smooth = x
            if x in self._factors:
                smooth, stored = self._new(x, "smooth"), self._new(x, "factors")
                self._graph.initializer.append(self._onnx.numpy_helper.from_array(self._factors[x], stored))
                nodes.append(self._node("Mul", [x, stored], smooth))
            nodes.append(self._node("DynamicQuantizeLinear", [smooth], *rounded))
        levels, step, zero = self._rounded[x]
        result, has_bias = node.output[0], len(node.input) > 2
        summed, cast, both = (self._new(result, part) for part in ("sums", "single", "steps"))
        product = self._new(result, "product") if has_bias else result
        multiply = self._node("MatMulInteger", [levels, weight, zero, zero_point], summed)
        multiply.name = node.name
        nodes += [
            multiply,
            self._node("Cast", [summed], cast, to=self._onnx.TensorProto.FLOAT),
            self._node("Mul", [step, scale], both),
            self._node("Mul", [cast, both], product),
        ]
        return [*nodes, self._node("Add", [product, node.input[2]], result)] if has_bias else nodes

    def _weight(self, node: NodeProto) -> tuple[str, str, str]:
        """Return the levels [inputs, outputs] of a node's weight, their scale and their zero point."""
        x = node.input[0]
        key = node.input[1], is_transposed(node), x if x in self._factors else ""
        if key not in self._weights:
            matrix = read_matrix(node, self._stored)
            matrix = matrix / self._factors[x][:, None] if x in self._factors else matrix
            levels, scale = to_levels(matrix, 0 if self._scheme.per_channel else None, self._largest)
            scale = scale.reshape(-1) if self._scheme.per_channel else scale.reshape(())
            self._weights[key] = self._store(node.input[1], np.ascontiguousarray(levels), scale)
        return self._weights[key]

    def _lstm(self, node: NodeProto) -> NodeProto:
        """Return the DynamicQuantizeLSTM of an LSTM: its weights are stored as [directions, inputs, outputs]."""
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        tail = []
        for index in (1, 2):
            weight = self._onnx.numpy_helper.to_array(self._stored[node.input[index]])
            levels, scale = to_levels(weight, 2 if self._scheme.per_channel else (1, 2), self._largest)
            shape = weight.shape[:2] if self._scheme.per_channel else weight.shape[:1]
            packed = np.ascontiguousarray(levels.transpose(0, 2, 1))
            inputs[index], *parts = self._store(node.input[index], packed, scale.reshape(shape))
            tail += parts
        made: NodeProto = self._onnx.helper.make_node(
            "DynamicQuantizeLSTM", [*inputs, *tail], list(node.output), node.name, domain="com.microsoft"
        )
        made.attribute.extend(item for item in node.attribute if item.name != "layout")
        return made

    @property
    def _largest(self) -> int:
        return LARGEST[self._scheme.reduce_range]

    def _store(self, name: str, levels: Array, scale: Array) -> tuple[str, str, str]:
        """Store levels, their scale and zero point; return their names."""
        parts = {"levels": levels, "scales": scale, "zeros": np.zeros(scale.shape, np.int8)}
        names = tuple(self._new(name, part) for part in parts)
        tensors = zip(names, parts.values(), strict=True)
        self._graph.initializer.extend(self._onnx.numpy_helper.from_array(value, new) for new, value in tensors)
        return names[0], names[1], names[2]

    def _new(self, name: str, part: str) -> str:
        return self._names.tensor(f"{name}_{part}")

    def _node(self, kind: str, inputs: Sequence[str], *outputs: str, **attributes: object) -> NodeProto:
        name = self._names.node(outputs[0])
        made: NodeProto = self._onnx.helper.make_node(kind, list(inputs), list(outputs), name, **attributes)
        return made


def _unsuitable(work: GraphWork) -> str | None:
    """Explain why rounding activations at each inference cannot make a graph faster; None where it may."""
    if work.stored_products < _FEWEST:
        return f"its matrices take {work.stored_products:.2g} multiplications, too few to gain by"
    return work.few_products()


QUANTIZER = Quantizer(
    "dynamic",
    "edgekd's dynamic INT8",
    write,
    packages=("onnx", "onnxruntime"),
    pairs=False,
    runtimes=ONNX_RUNTIME,
    unsuitable=_unsuitable,
)
