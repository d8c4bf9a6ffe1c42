"""What ONNX's own checker does not look at, or could not end with: texts, types, and the size of functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.graph import all_nodes, inner_graphs
from edgekd.errors import ModelError
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from onnx import FunctionProto, GraphProto, ModelProto, TensorProto

#: The most nodes of a model; that of a large language model has some thousands.
_MOST_NODES = 1_000_000


def stored_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield the tensors that a model holds: weights, and the attributes of nodes, in all of its graphs."""
    yield from model.graph.initializer
    for part in (model.graph, *model.functions):
        for node in all_nodes(part):
            for graph in inner_graphs(node):
                yield from graph.initializer
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def require_text(message: Any, path: Path) -> None:
    """Raise ModelError where a text in a model is not UTF-8: protobuf gives its bytes, which nothing expects."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in (value,) if hasattr(value, "ListFields") else value:
                require_text(item, path)
        elif field.type == field.TYPE_STRING and not isinstance(value, str):
            wrong = [value] if isinstance(value, bytes) else [item for item in value if not isinstance(item, str)]
            if wrong:
                raise ModelError(f"{path}: has a name that is not UTF-8, {wrong[0]!r}; export it with another")


def require_types(model: ModelProto, path: Path) -> None:
    """Raise ModelError for a stored tensor of a type that ONNX lacks; its checker looks at initializers alone."""
    types = need("onnx", "build").TensorProto
    known = {*types.DataType.values()} - {types.UNDEFINED}
    for tensor in stored_tensors(model):
        if tensor.ByteSize() and tensor.data_type not in known:
            raise ModelError(
                f"{path}: is not valid ONNX: tensor '{tensor.name}' is of the unknown type {tensor.data_type}"
            )


def require_size(model: ModelProto, path: Path) -> None:
    """Raise ModelError where functions that call others add up to more nodes than a computer can hold.

    A function that calls itself is left to ONNX, which refuses it.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(part: GraphProto | FunctionProto) -> int:
        return sum(called((node.domain, node.op_type)) for node in all_nodes(part))

    def called(key: tuple[str, str]) -> int:
        if key in functions and key not in sizes:
            sizes[key] = 1  # until it is known, should it call itself
            sizes[key] = min(size(functions[key]), _MOST_NODES + 1)
        return sizes.get(key, 1)

    if size(model.graph) > _MOST_NODES:
        raise ModelError(f"{path}: its functions add up to more than {_MOST_NODES:,} nodes; export it without them")
