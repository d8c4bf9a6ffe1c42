"""Outlier channels of what a layer reads: their magnitude moves into the weights, which have scales of their own.

One scale for a tensor in which a few channels are a hundred times larger than the others leaves those others one or two
levels. Divided by a factor for each channel, and its weights multiplied with it, the layer computes the same (Xiao et
al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", arXiv 2211.10438).
Where a layer before makes the channels, through nothing but a Relu, its weights take up the division (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import copy, drop_unread, initializers, open_at, producers, reads, sort_nodes
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


#: Operators of which f(s x) = s f(x) for s > 0, and which keep channels apart.
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Identity"})


@dataclass(frozen=True)
class _OutlierReaders:
    """The layers that read one activation, each with weights of its own.

    Attributes:
        tensor: The activation; its channels are the second dimension for Conv, and the last one for MatMul and Gemm.
        layers: The Conv nodes, or the MatMul and Gemm nodes.
    """

    tensor: str
    layers: tuple[NodeProto, ...]

    @property
    def of_maps(self) -> bool:
        """Whether the layers are convolutions."""
        return self.layers[0].op_type == "Conv"


def smooth(floats: ModelProto, samples: Iterable[Feeds]) -> tuple[ModelProto, tuple[str, ...]]:
    """Return a float graph without the outlier channels that layers read, and the names of these activations.

    With a the largest magnitudes of an activation's channels and w those of their weights, over all layers that read
    it, the channels are divided by a^0.5 / w^0.5. Where a LayerNormalization or a layer makes the activation for these
    layers alone, its stored tensors are. Else a Mul is inserted before MatMul and Gemm, and Conv stays as it is.

    Args:
        floats: The float graph, its constants folded and its nodes named; it is not changed.
        samples: The samples in chunks on which outliers are looked for.
    """
    model = copy(floats)
    groups = _groups(model)
    ranges = _channel_magnitudes(model, groups, samples) if groups else {}
    writer = _Smoother(model)
    smoothed = []
    for group in groups:
        magnitudes = ranges.get(group.tensor)
        if magnitudes is None or not magnitudes.max() > _OUTLIER * np.median(magnitudes) > 0:
            continue
        if writer.divide(group, magnitudes):
            smoothed.append(group.tensor)
    sort_nodes(model.graph)
    drop_unread(model.graph)
    return model, tuple(smoothed)


def _groups(model: ModelProto) -> list[_OutlierReaders]:
    """Return the activations that layers with stored weights of their own read, in the order of the graph."""
    graph, stored, made = model.graph, initializers(model.graph), producers(model.graph)
    read = Counter(name for node in graph.node for name in node.input)
    single = need("onnx", "build").TensorProto.FLOAT
    layers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or node.input[0] not in made or _attribute(node, "transA"):
            continue
        weight = stored.get(node.input[1])
        if weight is None or weight.data_type != single or read[weight.name] > 1:
            continue
        if node.op_type == "Conv" or len(weight.dims) == 2:
            layers[node.input[0]].append(node)
    groups = [_OutlierReaders(tensor, tuple(nodes)) for tensor, nodes in layers.items()]
    return [group for group in groups if len({node.op_type == "Conv" for node in group.layers}) == 1]


def _channel_magnitudes(
    model: ModelProto, groups: Sequence[_OutlierReaders], samples: Iterable[Feeds]
) -> dict[str, Doubles]:
    """Return the largest magnitude of each channel of the groups' activations, of those that are finite."""
    names = [group.tensor for group in groups]
    session = open_at(model, names, threads=0)
    given = {value.name for value in session.get_inputs()}
    found: dict[str, Doubles] = {}
    for feeds in samples:
        values = session.run(names, {name: x for name, x in feeds.items() if name in given})
        for group, x in zip(groups, values, strict=True):
            axis = 1 if group.of_maps else x.ndim - 1
            others = tuple(other for other in range(x.ndim) if other != axis)
            largest: Doubles = np.abs(x).max(others, initial=0).astype(np.float64)
            found[group.tensor] = np.maximum(found[group.tensor], largest) if group.tensor in found else largest
    return {name: x for name, x in found.items() if np.isfinite(x).all()}


class _Smoother:
    """Divides activations of a graph, and multiplies weights, in place."""

    def __init__(self, model: ModelProto) -> None:
        self._graph, self._names = model.graph, Names(model.graph)
        self._onnx = need("onnx", "build")
        self._stored, self._made = initializers(model.graph), producers(model.graph)
        self._readers = Counter(name for node in model.graph.node for name in reads(node))
        self._outputs = {value.name for value in model.graph.output}

    def divide(self, group: _OutlierReaders, magnitudes: Doubles) -> bool:
        """Divide the channels of a group's activation by factors that its weights take up; return whether it can.

        Args:
            group: The activation and the layers that read it.
            magnitudes: The largest magnitudes of its channels [channels].
        """
        of_weights = np.max([_by_channel(node, self._value(node.input[1])) for node in group.layers], axis=0)
        factors = _positive(magnitudes) ** _SHARE / _positive(of_weights) ** (1 - _SHARE)
        makers = self._makers(group, len(factors))
        if makers is None and group.of_maps:
            return False
        for node in group.layers:
            self._store(node, 1, _times(node, self._value(node.input[1]), factors))
        if makers is None:
            self._insert(group, 1 / factors)
        for node, index in makers or ():
            value = self._value(node.input[index])
            by_row = node.op_type == "Conv" or _attribute(node, "transB")
            along_rows = index == 1 and value.ndim > 1 and by_row
            shape = [-1, *[1] * (value.ndim - 1)] if along_rows else [-1]
            self._store(node, index, value / factors.reshape(shape))
        return True

    def _makers(self, group: _OutlierReaders, channels: int) -> list[tuple[NodeProto, int]] | None:
        """Return the stored inputs, as nodes and indices, that make the channels of a group's activation.

        Returns:
            None where there are none, or where others read the activation too.
        """
        tensor, readers = group.tensor, len(group.layers)
        found: list[tuple[NodeProto, int]] = []
        while (node := self._made.get(tensor)) is not None:
            if self._readers[tensor] != readers or tensor in self._outputs or len(node.output) > 1:
                return None
            ends = ("Conv",) if group.of_maps else ("MatMul", "Gemm", "LayerNormalization")
            if node.op_type in ends:
                found += [(node, index) for index in range(1, len(node.input))]
                return found if all(self._gives(*pair, channels) for pair in found) else None
            vector = next((i for i, name in enumerate(node.input) if name in self._stored), None)
            if node.op_type == "Add" and vector is not None and not group.of_maps:
                found.append((node, vector))
                tensor = node.input[1 - vector]
            elif node.op_type in _HOMOGENEOUS:
                tensor = node.input[0]
            else:
                return None
            readers = 1
        return None

    def _gives(self, node: NodeProto, index: int, channels: int) -> bool:
        """Whether a node's input is stored and has one value, or one row or column of weights, for each channel."""
        tensor = self._stored.get(node.input[index])
        if tensor is None or tensor.data_type != self._onnx.TensorProto.FLOAT:
            return False
        dims = list(tensor.dims)
        if len(dims) < 2 or index != 1:
            return dims == [channels]
        return bool(dims[0 if node.op_type == "Conv" or _attribute(node, "transB") else -1] == channels)

    def _insert(self, group: _OutlierReaders, inverse: Doubles) -> None:
        factor, divided = self._names.tensor(f"{group.tensor}_factor"), self._names.tensor(f"{group.tensor}_smooth")
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(inverse.astype(np.float32), factor))
        node = self._onnx.helper.make_node("Mul", [group.tensor, factor], [divided], name=divided)
        for layer in group.layers:
            layer.input[0] = divided
        self._graph.node.append(node)

    def _value(self, name: str) -> Doubles:
        value: Doubles = self._onnx.numpy_helper.to_array(self._stored[name]).astype(np.float64)
        return value

    def _store(self, node: NodeProto, index: int, value: Doubles) -> None:
        """Let a node read another stored tensor."""
        name = self._names.tensor(f"{node.input[index]}_smooth")
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(value.astype(np.float32), name))
        self._stored[name] = self._graph.initializer[-1]
        node.input[index] = name


def _grouped(node: NodeProto, weight: Doubles) -> Doubles:
    """Return weights as [groups, outputs of a group, channels of a group, positions]."""
    if node.op_type == "Conv":
        groups = _attribute(node, "group", 1)
        return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return (weight if _attribute(node, "transB") else weight.T)[None, ..., None]


def _by_channel(node: NodeProto, weight: Doubles) -> Doubles:
    """Return the largest magnitude of the weights of each channel that a layer reads [channels]."""
    return np.asarray(np.abs(_grouped(node, weight)).max((1, 3)).ravel())


def _times(node: NodeProto, weight: Doubles, factors: Doubles) -> Doubles:
    """Return weights multiplied with a factor for each channel that the layer reads [channels]."""
    grouped = _grouped(node, weight)
    product = grouped * factors.reshape(len(grouped), 1, -1, 1)
    if node.op_type == "Conv":
        return product.reshape(weight.shape)
    return product[0, ..., 0] if _attribute(node, "transB") else product[0, ..., 0].T


def _positive(magnitudes: Doubles) -> Doubles:
    """Return magnitudes of channels, none of them so small that a division by it would tell of nothing but noise."""
    least = max(_LEAST * float(np.median(magnitudes)), float(np.finfo(np.float32).tiny))
    return np.maximum(magnitudes, least)


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)
