"""Switch single tensors of a QDQ graph between quantized and float, in each run of one session or permanently."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import WEIGHT_BEARING, copy, drop_unread, initializers, producers, reads
from edgekd.compress.qdq_map import Quantized, describe_sites, find_sites
from edgekd.files import need
from edgekd.gram.blame import FUSION

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnx import GraphProto, ModelProto, NodeProto

    from edgekd.compress.qdq_map import QdqSite
    from edgekd.runtime.session import Array, Feeds

    #: Scale and zero point.
    Scale = tuple[Array, Array]

__all__ = ["FUSION", "WEIGHT_BEARING", "Quantized", "Switchboard", "restore_float"]


class Switchboard:
    """One ONNX Runtime session in which every quantized tensor can be float, or have another scale, in each run.

    Behind each DequantizeLinear, and each float bias that quantization changed, a Where node chooses between it and
    the float tensor; the condition, and the scales and zero points of activations, are inputs with defaults. The
    arithmetic is ONNX's definition of Q/DQ in float32; an engine that fuses to integers differs by its own rounding.

    Attributes:
        tensors: The quantized tensors, in the order in which the float graph reads them.
        scales: Scale and zero point of each activation in the QDQ graph, by its name.
    """

    def __init__(self, qdq: ModelProto, floats: ModelProto) -> None:
        """Build the session.

        Args:
            qdq: The QDQ graph, which is not changed.
            floats: The float graph that was quantized.

        Raises:
            ModelError: The two graphs do not belong together.
        """
        ort = need("onnxruntime", "build")
        model = copy(qdq)
        sites = find_sites(model, floats)
        self.tensors: tuple[Quantized, ...] = describe_sites(sites, floats)
        self.scales: dict[str, Scale] = _scales(model, sites)
        _wire(model, floats, sites, self.scales)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # Q/DQ nodes stay as they are
        options.log_severity_level = 3
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._known = frozenset(sites)

    def run(
        self, feeds: Feeds, off: Collection[str] = (), scales: Mapping[str, Scale] | None = None
    ) -> dict[str, Array]:
        """Run the graph with some tensors float, or some activations with other scales.

        Args:
            feeds: The graph's inputs by name.
            off: Names of the tensors that are float in this run.
            scales: Other scales and zero points, in the types and shapes of :attr:`scales`.

        Raises:
            ValueError: A tensor is not quantized.
        """
        scales = scales or {}
        _require(self._known, [*off, *scales])
        switches = {_on(name): np.array(False) for name in off}
        for name, (scale, zero_point) in scales.items():
            switches |= {_scale(name): scale, _zero_point(name): zero_point}
        results = self._session.run(self._outputs, {**feeds, **switches})
        return dict(zip(self._outputs, results, strict=True))


def restore_float(qdq: ModelProto, floats: ModelProto, tensors: Collection[str]) -> ModelProto:
    """Return a QDQ graph in which some tensors are float again, without the nodes and constants no longer needed.

    Relu and Clip nodes that ONNX Runtime's quantizer replaced by the limits of a type come back.

    Args:
        qdq: The QDQ graph, which is not changed.
        floats: The float graph that was quantized.
        tensors: Names of the tensors in the float graph.

    Raises:
        ModelError: The two graphs do not belong together.
        ValueError: A tensor is not quantized.
    """
    model = copy(qdq)
    sites, made = find_sites(model, floats), producers(model.graph)
    _require(sites, tensors)
    behind: dict[str, list[NodeProto]] = {}
    for site in (sites[name] for name in tensors):
        for dequantize, _ in site.pairs:
            _reread(model.graph, dequantize.output[0], site.tensor)
            dequantize.output[0] = f"{site.tensor}:unread"  # the float tensor takes the name of a bias
        if not site.pairs:
            initializers(model.graph)[site.tensor].CopyFrom(initializers(floats.graph)[site.tensor])
        if site.limits:
            source = site.limits[0].input[0]
            made[site.tensor].output[0] = source
            behind[source] = site.limits
    _insert(model.graph, behind)
    drop_unread(model.graph)
    _restore(model.graph, floats.graph)
    return model


def _wire(model: ModelProto, floats: ModelProto, sites: Mapping[str, QdqSite], scales: Mapping[str, Scale]) -> None:
    """Add a switch behind each Q/DQ pair, and make scales and zero points inputs, in place."""
    onnx = need("onnx", "build")
    graph, stored = model.graph, initializers(floats.graph)
    first: list[NodeProto] = []
    behind: dict[str, list[NodeProto]] = defaultdict(list)
    for name, site in sites.items():
        exact = name
        if name in scales:
            for given, value in zip((_scale(name), _zero_point(name)), scales[name], strict=True):
                _add_default(graph, given, value)
        else:
            exact = f"{name}:float"
            graph.initializer.append(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stored[name]), exact))
        for limit in site.limits:
            node = onnx.NodeProto()
            node.CopyFrom(limit)
            node.input[0], node.output[0], exact = exact, f"{limit.output[0]}:float", f"{limit.output[0]}:float"
            behind[name].append(node)
        _add_default(graph, _on(name), np.array(True))
        if not site.pairs:
            changed = initializers(graph)[name]
            changed.name = f"{name}:changed"
            first.append(onnx.helper.make_node("Where", [_on(name), changed.name, exact], [name]))
        for dequantize, quantize in site.pairs:
            if quantize:
                for node in (dequantize, quantize):
                    node.input[1], node.input[2] = _scale(name), _zero_point(name)
            result = dequantize.output[0]
            dequantize.output[0] = f"{result}:rounded"
            switch = onnx.helper.make_node("Where", [_on(name), dequantize.output[0], exact], [result])
            behind[dequantize.output[0]].append(switch)
    _insert(graph, behind, first)
    _restore(graph, floats.graph)


def _scales(model: ModelProto, sites: Mapping[str, QdqSite]) -> dict[str, Scale]:
    to_array, stored = need("onnx", "build").numpy_helper.to_array, initializers(model.graph)
    return {
        name: (to_array(stored[dequantize.input[1]]), to_array(stored[dequantize.input[2]]))
        for name, site in sites.items()
        for dequantize, quantize in site.pairs[:1]
        if quantize
    }


def _on(tensor: str) -> str:
    return f"{tensor}:on"


def _scale(tensor: str) -> str:
    return f"{tensor}:scale"


def _zero_point(tensor: str) -> str:
    return f"{tensor}:zero_point"


def _require(known: Collection[str], names: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"'{name}' is not quantized")


def _add_default(graph: GraphProto, name: str, value: Array) -> None:
    """Add an input with a default value, in place."""
    onnx = need("onnx", "build")
    tensor = onnx.numpy_helper.from_array(value, name)
    graph.initializer.append(tensor)
    graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, value.shape))


def _insert(graph: GraphProto, behind: Mapping[str, list[NodeProto]], first: Sequence[NodeProto] = ()) -> None:
    """Insert nodes right behind the one that computes each tensor, and the nodes ``first`` before all others."""
    nodes = [*first, *(item for node in graph.node for item in (node, *behind.get(node.output[0], [])))]
    graph.ClearField("node")
    graph.node.extend(nodes)


def _reread(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _restore(graph: GraphProto, floats: GraphProto) -> None:
    """Add the constants of the float graph that nodes read and this graph lacks, in place."""
    stored, computed = initializers(floats), {*producers(graph), *initializers(graph)}
    read = dict.fromkeys(name for node in graph.node for name in reads(node))
    graph.initializer.extend(stored[name] for name in read if name in stored and name not in computed)
