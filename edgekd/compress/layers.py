"""Layers of a QDQ graph whose INT8 weights can be chosen anew, with their float inputs and weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.compress.graph import initializers, producers
from edgekd.compress.qdq_map import find_sites
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    from edgekd.runtime.session import Array

    Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Int8Layer:
    """A Conv, Gemm or MatMul with stored INT8 weights that no other node reads.

    Weights are arranged as [G, K, O / G]: for each of G groups the K inputs of a patch, for each of its outputs. G is 1
    but for grouped convolutions.

    Attributes:
        node: The layer's node in the QDQ graph.
        attributes: The node's attributes by name.
        source: Name of the tensor that it reads in the QDQ graph.
        exact: Name of the tensor that it reads in the float graph.
        depth: Number of such layers before it, on the longest path from an input.
        weights: The float graph's weights, arranged [G, K, O / G].
        scales: Scales of the INT8 weights [G, 1, O / G].
        levels: Name of the stored INT8 weights.
        bias: The float graph's bias [O]; None where there is none.
    """

    node: NodeProto
    attributes: Mapping[str, Any]
    source: str
    exact: str
    depth: int
    weights: Doubles
    scales: Doubles
    levels: str
    bias: Doubles | None

    def patches(self, x: Array, most: int) -> Array:
        """Return the patches that the layer multiplies with its weights.

        Args:
            x: The layer's input [B, ...].
            most: Largest number of output positions for each sample; where there are more, that many are drawn, the
                same ones for every input of this shape.

        Returns:
            The patches [G, B * positions, K].
        """
        windows, inner = (self._windows(x), x.ndim - 1) if self.node.op_type == "Conv" else (x, 1)
        sizes = windows.shape[1 : windows.ndim - inner]
        count = int(np.prod(sizes))
        chosen = np.random.default_rng(0).permutation(count)[:most]
        positions: tuple[slice | NDArray[np.intp], ...] = (
            (slice(None), *np.unravel_index(chosen, sizes)) if sizes else ()
        )
        patches = windows[positions]
        groups, inputs, _ = self.weights.shape
        return np.ascontiguousarray(patches.reshape(-1, groups, inputs).swapaxes(0, 1))

    def stored(self, weights: Array) -> Array:
        """Return arranged weights [G, K, O / G] in the shape that the node reads."""
        rows = weights.swapaxes(1, 2).reshape(-1, weights.shape[1])
        if self.node.op_type == "Conv":
            return rows.reshape(len(rows), -1, *self.attributes["kernel_shape"])
        return rows if self.attributes.get("transB") else rows.T

    def _windows(self, x: Array) -> Array:
        """Return a view of a convolution's padded input [B, positions..., C, kernel...]."""
        axes = x.ndim - 2
        ones = [1] * axes
        pads = np.reshape(self.attributes.get("pads", [0] * 2 * axes), (2, axes)).T
        dilations = self.attributes.get("dilations", ones)
        spans = tuple(
            (size - 1) * step + 1 for size, step in zip(self.attributes["kernel_shape"], dilations, strict=True)
        )
        padded = np.pad(x, ((0, 0), (0, 0), *pads))
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, x.ndim)))
        steps = (slice(None, None, step) for step in (*self.attributes.get("strides", ones), *dilations))
        every = (slice(None), slice(None), *steps)
        return np.moveaxis(windows[every], 1, axes + 1)


def find_layers(qdq: ModelProto, floats: ModelProto) -> list[Int8Layer]:
    """Return the layers whose weights can be chosen anew, in the order of the graph.

    Left out are ConvTranspose, weights and biases that are computed or that several nodes read, weights that are no
    matrix, convolutions whose padding depends on the input's size, and Gemm with factors or a transposed input.

    Args:
        qdq: The QDQ graph, to whose nodes the layers refer.
        floats: The float graph that was quantized.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    numpy_helper, get = need("onnx", "build").numpy_helper, need("onnx", "build").helper.get_attribute_value
    stored, exact = (
        {name: numpy_helper.to_array(tensor) for name, tensor in initializers(model.graph).items()}
        for model in (qdq, floats)
    )
    made = producers(qdq.graph)
    names = {pair[0].output[0]: place.tensor for place in find_sites(qdq, floats).values() for pair in place.pairs}
    computed = {*producers(floats.graph), *(value.name for value in floats.graph.input)}
    read = Counter(name for node in qdq.graph.node for name in node.input)
    found: list[Int8Layer] = []
    depths: dict[str, int] = {}
    for node in qdq.graph.node:
        depth = max((depths.get(name, 0) for name in node.input), default=0)
        attributes = {item.name: get(item) for item in node.attribute}
        tensors = [names.get(name, name) for name in node.input]
        if (
            _is_plain(node, attributes)
            and tensors[0] in computed
            and node.input[1] in names
            and all(read[name] == 1 for name in node.input[1:])
            and all(name in exact for name in tensors[1:])
            and exact[tensors[1]].ndim >= 2
        ):
            dequantize = made[node.input[1]]
            if node.op_type == "Conv":  # which may leave it out
                attributes.setdefault("kernel_shape", exact[tensors[1]].shape[2:])
            weights = _arranged(node, attributes, exact[tensors[1]].astype(np.float64))
            groups, _, outputs = weights.shape
            scales = np.broadcast_to(stored[dequantize.input[1]].astype(np.float64).ravel(), groups * outputs)
            found.append(
                Int8Layer(
                    node=node,
                    attributes=attributes,
                    source=node.input[0],
                    exact=tensors[0],
                    depth=depth,
                    weights=weights,
                    scales=scales.reshape(groups, 1, outputs),
                    levels=dequantize.input[0],
                    bias=exact[tensors[2]].astype(np.float64) if len(tensors) > 2 else None,
                )
            )
            depth += 1
        depths |= dict.fromkeys(node.output, depth)
    return found


def write_bias(qdq: ModelProto, node: NodeProto, bias: Doubles) -> None:
    """Store a layer's bias, in float or at its INT32 scale, in place."""
    numpy_helper, stored = need("onnx", "build").numpy_helper, initializers(qdq.graph)
    dequantize = producers(qdq.graph).get(node.input[2])
    if dequantize is None:
        store(qdq, node.input[2], bias.astype(np.float32))
        return
    scale = numpy_helper.to_array(stored[dequantize.input[1]]).astype(np.float64)
    limits = np.iinfo(np.int32)
    store(qdq, dequantize.input[0], np.round(bias / scale).clip(limits.min, limits.max).astype(np.int32))


def store(model: ModelProto, name: str, values: Array) -> None:
    """Replace the values of a stored tensor, in place."""
    initializers(model.graph)[name].CopyFrom(need("onnx", "build").numpy_helper.from_array(values, name))


def _is_plain(node: NodeProto, attributes: Mapping[str, Any]) -> bool:
    """Whether a node only multiplies patches of its input with its weights and adds its bias."""
    if node.op_type == "Gemm":
        return bool(not attributes.get("transA") and attributes.get("alpha", 1) == attributes.get("beta", 1) == 1)
    if node.op_type == "Conv":
        return bool(attributes.get("auto_pad", b"NOTSET") == b"NOTSET")
    return bool(node.op_type == "MatMul")


def _arranged(node: NodeProto, attributes: Mapping[str, Any], weights: Doubles) -> Doubles:
    if node.op_type == "Conv":
        groups = attributes.get("group", 1)
        return weights.reshape(groups, len(weights) // groups, -1).swapaxes(1, 2)
    return (weights.T if attributes.get("transB") else weights)[None]
