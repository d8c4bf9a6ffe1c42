"""Outlier channels of what a MatMul reads: their magnitude moves into the weights, which have a scale for each column.

One scale for a tensor in which a few channels are a hundred times larger than the others leaves those others one or two
levels. Divided by a factor for each channel, and its weights multiplied with it, the layer computes the same (Xiao et
al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", arXiv 2211.10438).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import copy, drop_unread, initializers, open_at, producers, sort_nodes
from edgekd.compress.quantizers.names import Names
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    from edgekd.runtime.session import Feeds

    Doubles = NDArray[np.float64]

#: A channel is an outlier where its largest magnitude is this many times the median channel's.
_OUTLIER = 8.0
#: The share of the magnitude that moves into the weights; the paper's alpha.
_SHARE = 0.5
#: Channels that are 0 on all samples count as this share of the median one.
_LEAST = 1e-3


@dataclass(frozen=True)
class _Group:
    """The layers that read one activation, each with weights of its own [channels, outputs], or transposed.

    Attributes:
        tensor: The activation [..., channels].
        layers: The MatMul and Gemm nodes.
    """

    tensor: str
    layers: tuple[NodeProto, ...]


def smooth(floats: ModelProto, samples: Iterable[Feeds]) -> tuple[ModelProto, tuple[str, ...]]:
    """Return a float graph without the outlier channels that layers read, and the names of these activations.

    With a the largest magnitudes of an activation's channels and w those of their weights, over all layers that read
    it, the channels are divided by a^0.5 / w^0.5. Where a LayerNormalization makes the activation for these layers
    alone, its scale and bias are; else a Mul is inserted.

    Args:
        floats: The float graph, its constants folded and its nodes named; it is not changed.
        samples: The samples in chunks on which outliers are looked for.
    """
    model = copy(floats)
    groups = _groups(model)
    ranges = _channel_magnitudes(model, [group.tensor for group in groups], samples) if groups else {}
    writer = _Writer(model)
    smoothed = []
    for group in groups:
        magnitudes = ranges.get(group.tensor)
        if magnitudes is not None and magnitudes.max() > _OUTLIER * np.median(magnitudes) > 0:
            writer.divide(group, magnitudes)
            smoothed.append(group.tensor)
    sort_nodes(model.graph)
    drop_unread(model.graph)
    return model, tuple(smoothed)


def _groups(model: ModelProto) -> list[_Group]:
    """Return the activations that layers with stored weights of their own read."""
    graph, stored, made = model.graph, initializers(model.graph), producers(model.graph)
    read = Counter(name for node in graph.node for name in node.input)
    layers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] not in made or _attribute(node, "transA"):
            continue
        weight = stored.get(node.input[1])
        if weight is not None and len(weight.dims) == 2 and read[weight.name] == 1:
            layers[node.input[0]].append(node)
    return [_Group(tensor, tuple(nodes)) for tensor, nodes in layers.items()]


def _channel_magnitudes(model: ModelProto, tensors: Sequence[str], samples: Iterable[Feeds]) -> dict[str, Doubles]:
    """Return the largest magnitude of each channel, the last dimension, of those tensors that are finite."""
    session = open_at(model, tensors, threads=0)
    given = {value.name for value in session.get_inputs()}
    found: dict[str, Doubles] = {}
    for feeds in samples:
        values = session.run(list(tensors), {name: x for name, x in feeds.items() if name in given})
        for name, x in zip(tensors, values, strict=True):
            largest = np.abs(x.astype(np.float64)).reshape(-1, x.shape[-1]).max(0)
            found[name] = np.maximum(found.get(name, 0), largest)
    return {name: x for name, x in found.items() if np.isfinite(x).all()}


class _Writer:
    """Divides activations of a graph, and multiplies weights, in place."""

    def __init__(self, model: ModelProto) -> None:
        self._graph, self._names = model.graph, Names(model.graph)
        self._onnx = need("onnx", "build")
        self._stored, self._made = initializers(model.graph), producers(model.graph)
        self._readers = Counter(name for node in model.graph.node for name in node.input)
        self._outputs = {value.name for value in model.graph.output}

    def divide(self, group: _Group, magnitudes: Doubles) -> None:
        """Divide the channels of a group's activation [channels] by factors that its weights take up."""
        weights = [self._weight(node) for node in group.layers]
        of_weights = np.max([np.abs(weight).max(1) for weight in weights], axis=0)
        factors = _positive(magnitudes) ** _SHARE / _positive(of_weights) ** (1 - _SHARE)
        for node, weight in zip(group.layers, weights, strict=True):
            product = weight * factors[:, None]
            self._store(node, 1, product.T if _attribute(node, "transB") else product)
        norm = self._made[group.tensor]
        alone = self._readers[group.tensor] == len(group.layers) and group.tensor not in self._outputs
        if alone and self._is_foldable(norm, len(factors)):
            for index in range(1, len(norm.input)):
                self._store(norm, index, self._value(norm.input[index]) / factors)
            return
        self._insert(group, 1 / factors)

    def _is_foldable(self, node: NodeProto, channels: int) -> bool:
        """Whether a node ends in a scale, and maybe a bias, of each channel."""
        if node.op_type != "LayerNormalization" or len(node.output) > 1:
            return False
        return all(name in self._stored and list(self._stored[name].dims) == [channels] for name in node.input[1:])

    def _insert(self, group: _Group, inverse: Doubles) -> None:
        factor, divided = self._names.tensor(f"{group.tensor}_factor"), self._names.tensor(f"{group.tensor}_smooth")
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(inverse.astype(np.float32), factor))
        node = self._onnx.helper.make_node("Mul", [group.tensor, factor], [divided], name=divided)
        for layer in group.layers:
            layer.input[0] = divided
        self._graph.node.append(node)

    def _weight(self, node: NodeProto) -> Doubles:
        """Return a layer's weights [channels, outputs]."""
        value = self._value(node.input[1])
        return value.T if _attribute(node, "transB") else value

    def _value(self, name: str) -> Doubles:
        value: Doubles = self._onnx.numpy_helper.to_array(self._stored[name]).astype(np.float64)
        return value

    def _store(self, node: NodeProto, index: int, value: Doubles) -> None:
        """Let a node read another stored tensor."""
        name = self._names.tensor(f"{node.input[index]}_smooth")
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(value.astype(np.float32), name))
        node.input[index] = name


def _positive(magnitudes: Doubles) -> Doubles:
    """Return magnitudes of channels, none of them so small that a division by it would tell of nothing but noise."""
    return np.maximum(magnitudes, max(_LEAST * float(np.median(magnitudes)), np.finfo(np.float32).tiny))


def _attribute(node: NodeProto, name: str) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), 0)
