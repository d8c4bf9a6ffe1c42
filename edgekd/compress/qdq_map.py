"""Where a QDQ graph is quantized, in the names of the float graph that it was made from.

Both graphs are matched by structure, since each quantizer gives names of its own: an activation keeps its name, and a
stored tensor is found by the node that reads it and the index at which it does.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekd.compress.graph import LIMITS, WEIGHT_BEARING, initializers, layer_name, producers, reads
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.gram.blame import FUSION, WeightedLayer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Kind = Literal["activation", "weight", "bias"]


@dataclass(frozen=True)
class Quantized:
    """One quantized tensor of a QDQ graph.

    Attributes:
        tensor: Its name in the float graph.
        kind: "weight" for a tensor that is stored quantized; "bias" for one that is stored in INT32, or in float with a
            value that quantization changed; "activation" for one that is computed.
        layers: Names of the weight-bearing nodes that it reaches before any other such node, in the order of the
            graph; where it reaches graph outputs only, the layers that it comes from.
        branch: The only graph input that it is computed from, or, for a stored tensor, that it is multiplied with;
            "fusion" where there are several.
    """

    tensor: str
    kind: Kind
    layers: tuple[str, ...]
    branch: str


@dataclass(frozen=True)
class QdqSite:
    """The nodes of a QDQ graph that quantize one tensor.

    Attributes:
        tensor: The tensor's name in the float graph.
        kind: Its kind, as in :class:`Quantized`.
        pairs: Each DequantizeLinear of the QDQ graph with the QuantizeLinear before it, which is None for a stored
            tensor. Empty for a tensor that is stored in float and whose value quantization changed: a bias that
            corrects an error.
        limits: The float graph's Relu and Clip nodes, in the order of the graph, that the QDQ graph lacks between the
            tensor that it computes under this name and the tensor itself.
    """

    tensor: str
    kind: Kind
    pairs: list[tuple[NodeProto, NodeProto | None]]
    limits: list[NodeProto]


def find_sites(qdq: ModelProto, floats: ModelProto) -> dict[str, QdqSite]:
    """Return the site of each quantized tensor, by its name in the float graph.

    Args:
        qdq: The QDQ graph, to whose nodes the sites refer.
        floats: The float graph that was quantized.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    made, original, readers = producers(qdq.graph), producers(floats.graph), _readers(qdq.graph)
    int32 = need("onnx", "build").TensorProto.INT32
    quantized, stored = initializers(qdq.graph), initializers(floats.graph)
    known = {*original, *(value.name for value in floats.graph.input)}
    sites: dict[str, QdqSite] = {}
    for dequantize in (node for node in qdq.graph.node if node.op_type == "DequantizeLinear"):
        quantize = made.get(dequantize.input[0])
        kind: Kind = "activation"
        limits: list[NodeProto] = []
        if quantize:
            name = quantize.input[0]
            limits = _limits(made[name], original) if name in made else []
        else:
            name = _counterpart(*readers[dequantize.output[0]][0], original)
            kind = "bias" if quantized[dequantize.input[0]].data_type == int32 else "weight"
        if name not in (known if quantize else stored):
            raise ModelError(f"'{name}' is quantized, and the float graph has no such tensor: it is of another model")
        sites.setdefault(name, QdqSite(name, kind, [], limits)).pairs.append((dequantize, quantize))
    return sites | {name: QdqSite(name, "bias", [], []) for name in _changed(quantized, stored)}


def describe_sites(sites: Mapping[str, QdqSite], floats: ModelProto) -> tuple[Quantized, ...]:
    """Return the quantized tensors, in the order in which the float graph reads them."""
    graph = floats.graph
    readers, made, behind = _readers(graph), producers(graph), inputs_behind(graph)
    ranks = {node.output[0]: rank for rank, node in enumerate(graph.node)}
    found = []
    for name, site in sites.items():
        computed = [name] if site.kind == "activation" else [node.output[0] for node, _ in readers[name]]
        inputs = frozenset[str]().union(*(behind[tensor] for tensor in computed))
        reached = _layers_after(name, readers) or _layers_before(name, made)
        layers = [layer_name(graph.node[rank]) for rank in sorted(ranks[first] for first in reached)]
        first_read = min((ranks[node.output[0]] for node, _ in readers[name]), default=len(ranks))
        found.append((first_read, Quantized(name, site.kind, tuple(layers), _branch(inputs))))
    return tuple(quantized for _, quantized in sorted(found, key=lambda item: item[0]))


def list_layers(floats: ModelProto) -> tuple[WeightedLayer, ...]:
    """Return the weight-bearing nodes of a float graph, in its order, each with those that follow on it."""
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
    """Return the branch of each node of an ONNX file, by the node's name and by the names of its outputs.

    A node that reads no input of the graph, such as the DequantizeLinear of weights, belongs to the nodes that read it.
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


def _behind(node: NodeProto, behind: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*(behind[name] for name in node.output if name))


def _readers(graph: GraphProto) -> dict[str, list[tuple[NodeProto, int]]]:
    """Return for each tensor the nodes that read it, each with the index of the input."""
    readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name:
                readers[name].append((node, index))
    return readers


def _changed(stored: Mapping[str, TensorProto], original: Mapping[str, TensorProto]) -> list[str]:
    """Return the tensors that both graphs store in one type, with different values."""
    to_array = need("onnx", "build").numpy_helper.to_array
    common = [name for name in stored if name in original and stored[name].data_type == original[name].data_type]
    return [name for name in common if not np.array_equal(to_array(stored[name]), to_array(original[name]))]


def _counterpart(node: NodeProto, index: int, original: Mapping[str, NodeProto]) -> str:
    """Return the tensor that the matching node of the float graph reads at the same index."""
    limits = _limits(node, original)
    same = original.get(limits[0].input[0] if limits else node.output[0])
    if same is None or same.op_type != node.op_type:
        raise ModelError(f"the float graph has no node like '{node.name}' ({node.op_type}): it is of another model")
    return str(same.input[index])


def _limits(node: NodeProto, original: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Return the float graph's Relu and Clip nodes that followed on a node and were removed."""
    found: list[NodeProto] = []
    last = original.get(node.output[0])
    while last and last.op_type in LIMITS and (last.op_type, last.name) != (node.op_type, node.name):
        found.insert(0, last)
        last = original.get(last.input[0])
    return found


def _layers_after(tensor: str, readers: Mapping[str, list[tuple[NodeProto, int]]]) -> set[str]:
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


def _layers_before(tensor: str, made: Mapping[str, NodeProto]) -> set[str]:
    """Return the first outputs of the weight-bearing nodes that a tensor comes from, without another between."""
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


def inputs_behind(graph: GraphProto) -> dict[str, frozenset[str]]:
    """Return for each tensor the graph inputs from which it is computed."""
    stored = initializers(graph)
    behind: dict[str, frozenset[str]] = defaultdict(frozenset)
    behind |= {value.name: frozenset([value.name]) for value in graph.input if value.name not in stored}
    for node in graph.node:
        union = frozenset[str]().union(*(behind[name] for name in reads(node)))
        behind |= dict.fromkeys(filter(None, node.output), union)
    return behind
