"""Switch single tensors of a QDQ graph between quantized and float: run by run in one session, or for good."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.compress.graph import drop_unread
from edgekd.compress.qdq_map import (
    WEIGHT_BEARING,
    Quantized,
    describe,
    find_places,
    initializers,
    producers,
)
from edgekd.files import need
from edgekd.gram.blame import FUSION

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from edgekd.compress.qdq_map import QdqSite
    from edgekd.runtime.session import Array, Feeds

    #: Scale and zero point.
    Scale = tuple[Array, Array]

__all__ = ["FUSION", "WEIGHT_BEARING", "Quantized", "Switchboard", "undo"]


class Switchboard:
    """One ONNX Runtime session in which every quantized tensor can be float, or have another scale, in each run.

    Behind each DequantizeLinear, and each float bias that quantizing changed, stands a Where between it and the float
    tensor; the condition, and the scales and zero points of activations, are inputs with defaults. The arithmetic is
    ONNX's definition of Q/DQ in float32; an engine that fuses to integers differs by its own rounding.

    Attributes:
        tensors: what is quantized, in the order in which the float graph reads it.
        scales: of each activation, as quantized.
    """

    def __init__(self, qdq: Any, floats: Any) -> None:
        """Build the session.

        Args:
            qdq: the QDQ ``ModelProto``; it is left as it is.
            floats: the float graph that was quantized.

        Raises:
            ModelError: the two graphs do not belong together.
        """
        ort = need("onnxruntime", "build")
        model = _copy(qdq)
        places = find_places(model, floats)
        self.tensors: tuple[Quantized, ...] = describe(places, floats)
        self.scales: dict[str, Scale] = _scales(model, places)
        _wire(model, floats, places, self.scales)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._known = frozenset(places)

    def run(
        self, feeds: Feeds, off: Collection[str] = (), scales: Mapping[str, Scale] | None = None
    ) -> dict[str, Array]:
        """Run the graph with some tensors float, or some activations with other scales.

        Args:
            feeds: the graph's inputs.
            off: tensors that are float in this run.
            scales: of the types and shapes of :attr:`scales`.

        Raises:
            ValueError: a tensor is not quantized.
        """
        scales = scales or {}
        _require(self._known, [*off, *scales])
        switches = {_on(name): np.array(False) for name in off}
        for name, (scale, zero_point) in scales.items():
            switches |= {_scale(name): scale, _zero_point(name): zero_point}
        results = self._session.run(self._outputs, {**feeds, **switches})
        return dict(zip(self._outputs, results, strict=True))


def undo(qdq: Any, floats: Any, tensors: Collection[str]) -> Any:
    """Return a QDQ graph in which some tensors are float again, without the nodes and constants that this frees.

    Relu and Clip nodes that ONNX Runtime's quantizer left to the limits of a type come back.

    Args:
        qdq: the QDQ ``ModelProto``; it is left as it is.
        floats: the float graph that was quantized.
        tensors: names in the float graph.

    Raises:
        ModelError: the two graphs do not belong together.
        ValueError: a tensor is not quantized.
    """
    model = _copy(qdq)
    places, made = find_places(model, floats), producers(model.graph)
    _require(places, tensors)
    behind: dict[str, list[Any]] = {}
    for place in (places[name] for name in tensors):
        for dequantize, _ in place.pairs:
            _reread(model.graph, dequantize.output[0], place.tensor)
            dequantize.output[0] = f"{place.tensor}:unread"  # a bias has the name that its float tensor takes
        if not place.pairs:
            initializers(model.graph)[place.tensor].CopyFrom(initializers(floats.graph)[place.tensor])
        if place.limits:
            source = place.limits[0].input[0]
            made[place.tensor].output[0] = source
            behind[source] = place.limits
    _insert(model.graph, behind)
    drop_unread(model.graph)
    _restore(model.graph, floats.graph)
    return model


def _wire(model: Any, floats: Any, places: Mapping[str, QdqSite], scales: Mapping[str, Scale]) -> None:
    """Put a switch behind each pair, and make scales and zero points inputs, in place."""
    onnx = need("onnx", "build")
    graph, stored = model.graph, initializers(floats.graph)
    first: list[Any] = []
    behind: dict[str, list[Any]] = defaultdict(list)
    for name, place in places.items():
        exact = name
        if name in scales:
            for given, value in zip((_scale(name), _zero_point(name)), scales[name], strict=True):
                _add_default(graph, given, value)
        else:
            exact = f"{name}:float"
            graph.initializer.append(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stored[name]), exact))
        for limit in place.limits:
            node = onnx.NodeProto()
            node.CopyFrom(limit)
            node.input[0], node.output[0], exact = exact, f"{limit.output[0]}:float", f"{limit.output[0]}:float"
            behind[name].append(node)
        _add_default(graph, _on(name), np.array(True))
        if not place.pairs:
            changed = initializers(graph)[name]
            changed.name = f"{name}:changed"
            first.append(onnx.helper.make_node("Where", [_on(name), changed.name, exact], [name]))
        for dequantize, quantize in place.pairs:
            if quantize:
                for node in (dequantize, quantize):
                    node.input[1], node.input[2] = _scale(name), _zero_point(name)
            result = dequantize.output[0]
            dequantize.output[0] = f"{result}:rounded"
            switch = onnx.helper.make_node("Where", [_on(name), dequantize.output[0], exact], [result])
            behind[dequantize.output[0]].append(switch)
    _insert(graph, behind, first)
    _restore(graph, floats.graph)


def _scales(model: Any, places: Mapping[str, QdqSite]) -> dict[str, Scale]:
    to_array, stored = need("onnx", "build").numpy_helper.to_array, initializers(model.graph)
    return {
        name: (to_array(stored[dequantize.input[1]]), to_array(stored[dequantize.input[2]]))
        for name, place in places.items()
        for dequantize, quantize in place.pairs[:1]
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


def _copy(model: Any) -> Any:
    copy = need("onnx", "build").ModelProto()
    copy.CopyFrom(model)
    return copy


def _add_default(graph: Any, name: str, value: Array) -> None:
    """Add an input that has a value unless it is fed."""
    onnx = need("onnx", "build")
    tensor = onnx.numpy_helper.from_array(value, name)
    graph.initializer.append(tensor)
    graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, value.shape))


def _insert(graph: Any, behind: Mapping[str, list[Any]], first: Sequence[Any] = ()) -> None:
    """Insert nodes right behind the one that computes a tensor, and others before all."""
    nodes = [*first, *(item for node in graph.node for item in (node, *behind.get(node.output[0], [])))]
    graph.ClearField("node")
    graph.node.extend(nodes)


def _reread(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _restore(graph: Any, floats: Any) -> None:
    """Store again what nodes read and only the float graph has."""
    stored, computed = initializers(floats), {*producers(graph), *initializers(graph)}
    read = dict.fromkeys(name for node in graph.node for name in node.input)
    graph.initializer.extend(stored[name] for name in read if name in stored and name not in computed)
