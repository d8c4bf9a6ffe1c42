"""Embedding tables in INT8: what a Gather looks up is stored in a byte a number, and scaled behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import drop_unread, initializers, open_at, producers, reads
from edgekd.compress.oracles.identity import RewriteError, run_few
from edgekd.compress.quantizers.levels import to_levels
from edgekd.compress.quantizers.names import Names
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from onnx import GraphProto, ModelProto, NodeProto

    from edgekd.runtime.session import Array, Feeds

#: Bytes of a float table below which nothing is gained.
_FEWEST_BYTES = 16_384
#: Levels of a row are -127 to 127: no product of two levels is summed, which could saturate.
_LARGEST = 127
#: What rounding changes an element by at most, as a share of its row's largest magnitude; a little more for float32.
_TOLERANCE = 0.51 / _LARGEST


def store_tables(model: ModelProto) -> None:
    """Store the tables that Gather nodes look rows up in as INT8, in place.

    Each row has a scale of its own, which is looked up likewise: rows of an embedding differ by more than its columns.
    A table that anything else reads too, such as a product, stays as it is. What is looked up is bytes, so that no
    library unpacks the table when it opens the graph.

    Args:
        model: A graph in float32, or with Q/DQ pairs.
    """
    onnx = need("onnx", "build")
    graph, names, stored = model.graph, Names(model.graph), initializers(model.graph)
    written: dict[str, tuple[str, str]] = {}
    for name in find_tables(graph):
        levels, scales = to_levels(onnx.numpy_helper.to_array(stored[name]), 1, _LARGEST)
        written[name] = names.tensor(f"{name}_levels"), names.tensor(f"{name}_scales")
        for value, new in zip((levels, scales), written[name], strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(value, new))
    if written:
        nodes = [made for node in graph.node for made in _looked_up(node, written, names)]
        graph.ClearField("node")
        graph.node.extend(nodes)
        drop_unread(graph)


def find_tables(graph: GraphProto) -> list[str]:
    """Return the names of the float32 matrices, not small, whose rows Gather nodes look up and nothing else reads."""
    single = need("onnx", "build").TensorProto.FLOAT
    fixed = {value.name for value in (*graph.input, *graph.output)}
    large = [
        name
        for name, tensor in initializers(graph).items()
        if tensor.data_type == single and len(tensor.dims) == 2 and 4 * tensor.dims[0] * tensor.dims[1] >= _FEWEST_BYTES
    ]
    lookups = [node for node in graph.node if _looks_up_rows(node)]
    read = {node.input[0] for node in lookups}
    others = {name for node in graph.node for name in reads(node)[1 if _looks_up_rows(node) else 0 :]}
    return [name for name in large if name in read and name not in fixed | others]


def _looks_up_rows(node: NodeProto) -> bool:
    return node.op_type == "Gather" and not any(item.name == "axis" and item.i for item in node.attribute)


def _looked_up(node: NodeProto, written: dict[str, tuple[str, str]], names: Names) -> list[NodeProto]:
    """Return the nodes that look up levels and scales, and multiply them; other nodes as they are."""
    if not _looks_up_rows(node) or node.input[0] not in written:
        return [node]
    onnx = need("onnx", "build")
    make, result = onnx.helper.make_node, node.output[0]
    levels, scales, single = (names.tensor(f"{result}_{part}") for part in ("levels", "scales", "single"))
    table, row_scales = written[node.input[0]]
    return [
        make("Gather", [table, node.input[1]], [levels], names.node(levels), axis=0),
        make("Gather", [row_scales, node.input[1]], [scales], names.node(scales), axis=0),
        make("Cast", [levels], [single], names.node(single), to=onnx.TensorProto.FLOAT),
        make("Mul", [single, scales], [result], node.name),
    ]


def require_same_rows(model: ModelProto, before: ModelProto, feeds: Sequence[Feeds]) -> None:
    """Raise where what a graph looks up is not what it looked up before, but for rounding.

    Args:
        model: The graph with tables of INT8.
        before: The graph before.
        feeds: Few samples, in chunks that both take.

    Raises:
        RewriteError: It is not; the error names the node.
    """
    nodes = _lookups(before.graph, find_tables(before.graph))
    made = producers(model.graph)
    tensors = [name for name in nodes if name in made and name in producers(before.graph)]
    if not tensors:
        return
    sessions = [open_at(graph, tensors) for graph in (before, model)]
    for chunk in feeds:
        rows = (run_few(session, tensors, chunk) for session in sessions)
        for name, exact, found in zip(tensors, *rows, strict=True):
            if exact.shape != found.shape or not _as_close(exact, found):
                raise RewriteError(f"INT8 changes the table that '{nodes[name].name}' looks rows up in")


def _as_close(exact: Array, found: Array) -> bool:
    reach = np.abs(exact).max(-1, keepdims=True, initial=0)
    return bool((np.abs(found - exact) <= _TOLERANCE * reach).all())


def _lookups(graph: GraphProto, tables: Collection[str]) -> dict[str, NodeProto]:
    """Return the nodes that look rows up in tables, by what they give."""
    nodes = (node for node in graph.node if _looks_up_rows(node))
    return {node.output[0]: node for node in nodes if node.input[0] in tables}
