"""What a library refused, in the user's terms: the node, its module, and the line of the user's code."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import msgspec

from edgekd.compress.graph import reads
from edgekd.errors import DeviceError, ModelError
from edgekd.files import need
from edgekd.stages.node_origin import NodeOrigin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from onnx import ModelProto, NodeProto

#: How errors name a node.
_NODE = re.compile(r"node '([^']+)'(?: \(\w+\))?")

#: What can take the place of an operator that a library cannot build.
_INSTEAD = {"GRU": "an nn.LSTM in its place can be built", "RNN": "an nn.LSTM in its place can be built"}


def read_origins(path: Path) -> dict[str, NodeOrigin]:
    """Return where the nodes of an exported graph come from; nothing where that was not kept, as of an imported one."""
    if not path.is_file():
        return {}
    return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), dict[str, NodeOrigin])


def in_users_terms(error: ModelError, folders: Iterable[Path], origins: Mapping[str, NodeOrigin]) -> str:
    """Return an error's text without paths of the cache, and with the origin of each node that it names.

    Args:
        error: The error.
        folders: Folders of the cache that it may name.
        origins: The origins of the graph's nodes, by name.
    """
    text = str(error)
    for folder in folders:
        text = text.replace(f"{folder}/", "")

    def with_origin(found: re.Match[str]) -> str:
        return f"{found[0]} of {origins[found[1]]}" if found[1] in origins else found[0]

    return _NODE.sub(with_origin, text)


def name_node(error: ModelError, graph: Path, build: Callable[[Path], object]) -> ModelError:
    """Return an error that names the node at which a build fails, where it did not.

    The graph is built up to one node and another, by halves: the first that it cannot be built with is the one.

    Args:
        error: What the build of the whole graph raised.
        graph: The graph.
        build: Builds a graph, or raises ModelError.
    """
    if _NODE.search(str(error)):
        return error
    node = _first_refused(graph, build)
    if node is None:
        return error
    instead = f"; {_INSTEAD[node.op_type]}" if node.op_type in _INSTEAD else ""
    return ModelError(f"{error}, at node '{node.name}' ({node.op_type}); what comes before it can be built{instead}")


def _first_refused(graph: Path, build: Callable[[Path], object]) -> NodeProto | None:
    """Return the first node, in the graph's order, with which the graph up to there cannot be built."""
    onnx = need("onnx", "build")
    model = onnx.shape_inference.infer_shapes(onnx.load(str(graph)))
    nodes = list(model.graph.node)
    built, refused = 0, len(nodes)
    while refused - built > 1:
        middle = (built + refused) // 2
        if _builds(_beginning(model, middle), graph.with_name(f"until-{middle}.onnx"), build):
            built = middle
        else:
            refused = middle
    return nodes[built] if nodes else None


def _builds(part: ModelProto | None, path: Path, build: Callable[[Path], object]) -> bool:
    """Whether a part of a graph can be built; one without an output of its own need not."""
    if part is None:
        return True
    path.write_bytes(part.SerializeToString())
    try:
        build(path)
    except (ModelError, DeviceError):
        return False
    finally:
        path.unlink()
    return True


def _beginning(model: ModelProto, count: int) -> ModelProto | None:
    """Return the first nodes of a graph, whose float results that others would read are its outputs; None without."""
    onnx = need("onnx", "build")
    first, rest = model.graph.node[:count], model.graph.node[count:]
    typed = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    read = {name for node in rest for name in reads(node)} | {value.name for value in model.graph.output}
    made = [name for node in first for name in node.output if name in read and name in typed]
    outputs = [typed[name] for name in made if typed[name].type.tensor_type.elem_type in floats]
    if not outputs:
        return None
    part: ModelProto = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[count:], part.graph.output[:], part.graph.value_info[:]
    part.graph.output.extend(outputs)
    needed = {name for node in part.graph.node for name in reads(node)}
    kept = [value for value in part.graph.initializer if value.name in needed]
    del part.graph.initializer[:]
    part.graph.initializer.extend(kept)
    return part
