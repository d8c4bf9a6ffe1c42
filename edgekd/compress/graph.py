"""Small edits of ONNX graphs, including those inside nodes such as ``If`` and ``Loop``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.files import atomic_path, need
from edgekd.gram.npz import EMBEDDING_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto
    from onnxruntime import InferenceSession


#: Operators that multiply by weights, which INT8 makes faster. Each such node is a layer.
WEIGHT_BEARING = ("Conv", "ConvTranspose", "Gemm", "MatMul")

#: Operators that ONNX Runtime's quantizer removes where the limits of uint8 have the same effect: for what is rounded.
LIMITS = ("Relu", "Clip")


def copy(model: ModelProto) -> ModelProto:
    """Return a copy of an ONNX model, for edits that leave the original as it is."""
    copied: ModelProto = need("onnx", "build").ModelProto()
    copied.CopyFrom(model)
    return copied


def save(model: ModelProto, path: Path) -> None:
    """Check an ONNX model and write it atomically."""
    onnx = need("onnx", "build")
    content = model.SerializeToString()  # once: weights may be large
    onnx.checker.check_model(content)
    with atomic_path(path, len(content)) as temporary:
        temporary.write_bytes(content)


def drop_embeddings(source: Path, target: Path) -> None:
    """Write a graph without its embeddings, and without the nodes and constants that its other outputs do not need."""
    onnx = need("onnx", "build")
    model = onnx.load(str(source))
    _keep(model.graph.output, lambda output: not output.name.startswith(EMBEDDING_PREFIX))
    drop_unread(model.graph)
    save(model, target)


def open_at(model: ModelProto, tensors: Iterable[str], threads: int = 1) -> InferenceSession:
    """Return an ONNX Runtime session whose outputs are some tensors of a graph, computed node by node.

    Args:
        model: The graph, which is not changed.
        tensors: Names of inputs or of tensors that nodes compute; each becomes an output once.
        threads: The number of threads of one inference; 0 for all cores.
    """
    onnx, ort = need("onnx", "build"), need("onnxruntime", "build")
    cut = copy(model)
    del cut.graph.output[:]
    cut.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(tensors))
    drop_unread(cut.graph)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(cut.SerializeToString(), options, providers=["CPUExecutionProvider"])


def unquantize_outputs(model: ModelProto, floats: ModelProto) -> None:
    """Replace each graph output that is quantized and dequantized by its float tensor, in place.

    Rounding a graph output costs about 3 dB and saves nothing. Other readers of the tensor keep reading it quantized. A
    Relu or Clip before it, which the quantizer left to the limits of the rounding, comes back.

    Args:
        model: The QDQ graph.
        floats: The float graph that was quantized.
    """
    graph = model.graph
    original = producers(floats.graph)
    producer = {name: node for node in graph.node for name in node.output}
    fixed = {value.name for value in (*graph.input, *graph.output)}
    for output in graph.output:
        dequantize = producer.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        source = producer[dequantize.input[0]].input[0]
        rename(graph, output.name, f"{output.name}_dequantized")
        if source in fixed:  # an input or another output, whose name must stay
            graph.node.append(need("onnx", "build").helper.make_node("Identity", [source], [output.name]))
        elif limits := _left_out(output.name, original, producer):
            rename(graph, source, limits[0].input[0])
            graph.node.extend(limits)
            missing = {name for node in limits for name in node.input} - {tensor.name for tensor in graph.initializer}
            graph.initializer.extend(tensor for tensor in floats.graph.initializer if tensor.name in missing)
        else:
            rename(graph, source, output.name)
            producer[output.name] = producer[source]
    drop_unread(graph)


def _left_out(name: str, original: Mapping[str, NodeProto], made: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Return the Relu and Clip nodes of the float graph that a tensor comes from, as far as the QDQ graph lacks them.

    Args:
        name: Name of the tensor.
        original: The node of the float graph that makes each of its tensors.
        made: The same of the QDQ graph.
    """
    kept = {(node.op_type, node.name) for node in made.values()}
    limits: list[NodeProto] = []
    node = original.get(name)
    while node is not None and node.op_type in LIMITS and (node.op_type, node.name) not in kept:
        limits.insert(0, node)
        node = original.get(node.input[0])
    return limits


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of all graphs inside its nodes."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from all_nodes(inner)


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node holds: the branches of an ``If``, the body of a ``Loop``."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: NodeProto) -> list[str]:
    """Return the names of the tensors that a node reads, including those that graphs inside it capture."""
    inner = (name for graph in inner_graphs(node) for name in captured(graph))
    return [name for name in (*node.input, *inner) if name]


def captured(graph: GraphProto) -> list[str]:
    """Return what a graph inside a node reads of the graphs around it."""
    own = _own_names(graph)
    read = [*(name for node in graph.node for name in reads(node)), *(value.name for value in graph.output)]
    return [name for name in dict.fromkeys(read) if name not in own]


def _own_names(graph: GraphProto) -> set[str]:
    """Return the names of the tensors that a graph defines itself; inside it they hide others of the same name."""
    defined = (*graph.input, *graph.initializer)
    return {*(item.name for item in defined), *(name for node in graph.node for name in node.output)}


def sort_nodes(graph: GraphProto) -> None:
    """Put each node behind those that it, or a graph inside it, reads from, in place; else the order stays.

    Nodes that read from each other in a circle have no such order, and keep the one that they have.
    """
    made = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    before = [[made[name] for name in reads(node) if name in made] for node in graph.node]
    order: dict[int, None] = {}
    for index in range(len(graph.node)):
        path = {index: None}  # from a node to one that it reads from, and so on
        while path:
            last = next(reversed(path))
            ahead = next((other for other in before[last] if other not in order), None)
            if ahead is None:
                del path[last]
                order[last] = None
            elif ahead in path:
                return
            else:
                path[ahead] = None
    nodes = [graph.node[index] for index in order]
    graph.ClearField("node")
    graph.node.extend(nodes)


def rename(graph: GraphProto, old: str, new: str) -> None:
    """Rename a tensor in all nodes, in place. Graph inputs, graph outputs and initializers keep their names.

    Those of graphs inside nodes do not: one that hides an outer tensor by its name goes on hiding it.
    """
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
        for inner in inner_graphs(node):
            rename(inner, old, new)
            for item in (*inner.input, *inner.output, *inner.initializer):
                item.name = new if item.name == old else item.name


def drop_unread(graph: GraphProto) -> None:
    """Remove the nodes that no graph output needs, with their constants and shapes, in place."""
    needed = {output.name for output in graph.output}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(reads(node))
    _keep(graph.node, lambda node: bool(needed.intersection(node.output)))
    _keep(graph.initializer, lambda tensor: tensor.name in needed)
    _keep(graph.value_info, lambda value: value.name in needed)


def _keep(repeated: Any, wanted: Any) -> None:
    kept = [item for item in repeated if wanted(item)]
    del repeated[:]
    repeated.extend(kept)


def layer_name(node: NodeProto) -> str:
    """Return the name of a node; where it has none, that of its first output."""
    return str(node.name or node.output[0])


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Return the node that computes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the graph's stored tensors by name."""
    return {tensor.name: tensor for tensor in graph.initializer}
