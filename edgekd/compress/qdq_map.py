"""Where a QDQ graph is quantized, told in the names of the float graph that it was made from.

Both graphs are matched by structure, since each quantizer has names of its own: an activation keeps its name, and a
stored tensor is what the same node reads at the same place.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.gram.blame import FUSION, WeightedLayer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Kind = Literal["activation", "weight", "bias"]

#: Operators that multiply by weights: what INT8 makes faster. Each such node is a layer.
WEIGHT_BEARING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: What ONNX Runtime's quantizer takes out of a graph where the limits of uint8 do the same.
_LIMITS = ("Relu", "Clip")


@dataclass(frozen=True)
class Quantized:
    """One quantized tensor of a QDQ graph.

    Attributes:
        tensor: its name in the float graph.
        kind: "weight" for a tensor that is stored quantized, "bias" for one in INT32, or in float with another value.
        layers: names of the weight-bearing nodes that it reaches before any other such node, in the order of the
            graph; where it reaches outputs only, those that it comes from.
        branch: the graph input from which alone it is computed, or, for a stored tensor, what it is multiplied with;
            "fusion" where several meet.
    """

    tensor: str
    kind: Kind
    layers: tuple[str, ...]
    branch: str


@dataclass(frozen=True)
class QdqSite:
    """Where one tensor is quantized.

    Attributes:
        tensor: its name in the float graph.
        kind: as in :class:`Quantized`.
        pairs: each DequantizeLinear of the QDQ graph with the QuantizeLinear before it, None for a stored tensor; none
            for one that is stored in float, where quantizing only changed its value: a bias that makes good an error.
        limits: the float graph's Relu and Clip nodes between what the QDQ graph computes under the tensor's name and
            the tensor itself, in the order of the graph.
    """

    tensor: str
    kind: Kind
    pairs: list[tuple[Any, Any]]
    limits: list[Any]


def find_places(qdq: Any, floats: Any) -> dict[str, QdqSite]:
    """Return where each tensor is quantized, by its name in the float graph.

    Args:
        qdq: the QDQ ``ModelProto``, to whose nodes the places refer.
        floats: the float graph that was quantized.

    Raises:
        ModelError: the two graphs do not belong together.
    """
    made, original, readers = producers(qdq.graph), producers(floats.graph), _readers(qdq.graph)
    int32 = need("onnx", "build").TensorProto.INT32
    quantized, stored = initializers(qdq.graph), initializers(floats.graph)
    known = {*original, *(value.name for value in floats.graph.input)}
    places: dict[str, QdqSite] = {}
    for dequantize in (node for node in qdq.graph.node if node.op_type == "DequantizeLinear"):
        quantize = made.get(dequantize.input[0])
        kind: Kind = "activation"
        limits: list[Any] = []
        if quantize:
            name = quantize.input[0]
            limits = _limits(made[name], original) if name in made else []
        else:
            name = _counterpart(*readers[dequantize.output[0]][0], original)
            kind = "bias" if quantized[dequantize.input[0]].data_type == int32 else "weight"
        if name not in (known if quantize else stored):
            raise ModelError(f"'{name}' is quantized, and the float graph has no such tensor: it is of another model")
        places.setdefault(name, QdqSite(name, kind, [], limits)).pairs.append((dequantize, quantize))
    return places | {name: QdqSite(name, "bias", [], []) for name in _changed(quantized, stored)}


def describe(places: Mapping[str, QdqSite], floats: Any) -> tuple[Quantized, ...]:
    """Return what is quantized, in the order in which the float graph reads it."""
    graph = floats.graph
    readers, made, behind = _readers(graph), producers(graph), inputs_behind(graph)
    ranks = {node.output[0]: rank for rank, node in enumerate(graph.node)}
    found = []
    for name, place in places.items():
        computed = [name] if place.kind == "activation" else [node.output[0] for node, _ in readers[name]]
        inputs = frozenset[str]().union(*(behind[tensor] for tensor in computed))
        reached = _layers_after(name, readers) or _layers_before(name, made)
        layers = [layer_name(graph.node[rank]) for rank in sorted(ranks[first] for first in reached)]
        first_read = min((ranks[node.output[0]] for node, _ in readers[name]), default=len(ranks))
        found.append((first_read, Quantized(name, place.kind, tuple(layers), _branch(inputs))))
    return tuple(quantized for _, quantized in sorted(found, key=lambda item: item[0]))


def list_layers(floats: Any) -> tuple[WeightedLayer, ...]:
    """Return the weight-bearing nodes of a float graph, in its order, and which of them follow on which."""
    graph = floats.graph
    readers, behind = _readers(graph), inputs_behind(graph)
    layers = [node for node in graph.node if node.op_type in WEIGHT_BEARING]
    names = {node.output[0]: layer_name(node) for node in layers}
    found = []
    for node in layers:
        reached = _layers_after(node.output[0], readers)
        following = tuple(name for output, name in names.items() if output in reached)
        found.append(WeightedLayer(layer_name(node), node.op_type, _branch(behind[node.output[0]]), following))
    return tuple(found)


def branches(path: Path) -> dict[str, str]:
    """Return the branch of each node of an ONNX file, by its name and by those of its outputs, which layers may bear.

    What reads no input of the graph, such as the dequantizing of weights, belongs where it is read.
    """
    graph = need("onnx", "build").load(str(path), load_external_data=False).graph
    readers, behind = _readers(graph), inputs_behind(graph)
    found = {}
    for index, node in enumerate(graph.node):
        reading = [reader for name in node.output for reader, _ in readers[name]]
        inputs = _behind(node, behind) or frozenset[str]().union(*(_behind(reader, behind) for reader in reading))
        if inputs:
            name = node.name or f"{node.op_type}_{index}"  # ONNX Runtime's, of a node without one
            found.update(dict.fromkeys((*filter(None, node.output), name), _branch(inputs)))
    return found


def _behind(node: Any, behind: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*(behind[name] for name in node.output))


def layer_name(node: Any) -> str:
    """Return the name of a node, or of what it computes where it has none."""
    return str(node.name or node.output[0])


def producers(graph: Any) -> dict[str, Any]:
    """Return the node that computes each tensor."""
    return {name: node for node in graph.node for name in node.output}


def initializers(graph: Any) -> dict[str, Any]:
    """Return the graph's stored tensors by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def _readers(graph: Any) -> dict[str, list[tuple[Any, int]]]:
    """Return for each tensor the nodes that read it, with the place at which each does."""
    readers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers[name].append((node, index))
    return readers


def _changed(stored: Mapping[str, Any], original: Mapping[str, Any]) -> list[str]:
    """Return the tensors that both graphs store in one type, with different values."""
    to_array = need("onnx", "build").numpy_helper.to_array
    common = [name for name in stored if name in original and stored[name].data_type == original[name].data_type]
    return [name for name in common if not np.array_equal(to_array(stored[name]), to_array(original[name]))]


def _counterpart(node: Any, index: int, original: Mapping[str, Any]) -> str:
    """Return what the float graph's node that computes the same reads at the same place."""
    limits = _limits(node, original)
    same = original.get(limits[0].input[0] if limits else node.output[0])
    if same is None or same.op_type != node.op_type:
        raise ModelError(f"the float graph has no node like '{node.name}' ({node.op_type}): it is of another model")
    return str(same.input[index])


def _limits(node: Any, original: Mapping[str, Any]) -> list[Any]:
    """Return the float graph's Relu and Clip nodes that stood behind a node and were taken out."""
    found: list[Any] = []
    last = original.get(node.output[0])
    while last and last.op_type in _LIMITS and (last.op_type, last.name) != (node.op_type, node.name):
        found.insert(0, last)
        last = original.get(last.input[0])
    return found


def _layers_after(tensor: str, readers: Mapping[str, list[tuple[Any, int]]]) -> set[str]:
    """Return the first outputs of the weight-bearing nodes that a tensor reaches before any other."""
    found, seen, ahead = set(), {tensor}, [tensor]
    while ahead:
        for node, _ in readers[ahead.pop()]:
            if node.op_type in WEIGHT_BEARING:
                found.add(node.output[0])
                continue
            ahead += [name for name in node.output if name not in seen]
            seen.update(node.output)
    return found


def _layers_before(tensor: str, made: Mapping[str, Any]) -> set[str]:
    """Return the first outputs of the weight-bearing nodes that a tensor comes from without another between."""
    found, seen, before = set(), {tensor}, [tensor]
    while before:
        node = made.get(before.pop())
        if node is None:
            continue
        if node.op_type in WEIGHT_BEARING:
            found.add(node.output[0])
            continue
        before += [name for name in node.input if name not in seen]
        seen.update(node.input)
    return found


def _branch(inputs: frozenset[str]) -> str:
    return next(iter(inputs)) if len(inputs) == 1 else FUSION


def inputs_behind(graph: Any) -> dict[str, frozenset[str]]:
    """Return for each tensor the graph inputs from which it is computed."""
    stored = initializers(graph)
    behind: dict[str, frozenset[str]] = defaultdict(frozenset)
    behind |= {value.name: frozenset([value.name]) for value in graph.input if value.name not in stored}
    for node in graph.node:
        union = frozenset[str]().union(*(behind[name] for name in node.input))
        behind |= dict.fromkeys(node.output, union)
    return behind
