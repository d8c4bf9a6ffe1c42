"""What ONNX Runtime takes and ONNX's checker does not, brought into the one form that both take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import all_nodes, sort_nodes
from edgekd.files import need
from edgekd.runtime.backends.onnxruntime import open_engine

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import ModelProto, ValueInfoProto

#: Another name of ONNX's own domain.
_ALIAS = "ai.onnx"

#: Since this version of the format stored tensors need not be listed as inputs.
_IR_VERSION = 4

#: The opset of ONNX's own operators where a model has none of them.
_OPSET = 13


def normalize(model: ModelProto, path: Path) -> None:
    """Bring a model into the form that ONNX asks for, in place; what it computes in ONNX Runtime stays the same.

    Nodes are sorted, those of ONNX's own domain have the domain "", and each domain is listed once, with the opset that
    is listed last, which is the one that ONNX Runtime goes by. The format's version is at least 4, the graph has a
    name, and what is stored twice under one name is stored once. Outputs state their type.

    Args:
        model: The model.
        path: File of the model, for errors.

    Raises:
        ModelError: ONNX Runtime is needed for the type of an output, and cannot open the model.
    """
    _merge_opsets(model)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    model.graph.name = model.graph.name or "graph"
    sort_nodes(model.graph)
    _drop_repeated(model)
    _state_outputs(model, path)


def _merge_opsets(model: ModelProto) -> None:
    make = need("onnx", "build").helper.make_opsetid
    versions = {_domain(item.domain): item.version for item in model.opset_import}
    nodes = [node for part in (model.graph, *model.functions) for node in all_nodes(part)]
    for node in nodes:
        node.domain = _domain(node.domain)
    if all(node.domain for node in nodes):
        versions.setdefault("", _OPSET)  # what edgekd adds is of it
    del model.opset_import[:]
    model.opset_import.extend(make(domain, version) for domain, version in versions.items())


def _domain(name: str) -> str:
    return "" if name == _ALIAS else name


def _drop_repeated(model: ModelProto) -> None:
    """Of tensors stored under one name keep the last, as ONNX Runtime does, in place."""
    graph = model.graph
    stored = {tensor.name: index for index, tensor in enumerate(graph.initializer)}
    if len(stored) < len(graph.initializer):
        for index in reversed(range(len(graph.initializer))):
            if stored[graph.initializer[index].name] != index:
                del graph.initializer[index]


def _state_outputs(model: ModelProto, path: Path) -> None:
    """State type and sizes of outputs that do not, as ONNX Runtime finds them, in place."""
    outputs = {value.name: value for value in model.graph.output}
    if all(map(_is_stated, outputs.values())):
        return
    helper = need("onnx", "build").helper
    with open_engine(model.SerializeToString(), name=str(path), fused=False) as session:
        for spec in session.outputs:
            if not _is_stated(outputs[spec.name]):
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
                sizes = [size if isinstance(size, int) else None for size in spec.shape]
                outputs[spec.name].CopyFrom(helper.make_tensor_value_info(spec.name, kind, sizes))


def _is_stated(value: ValueInfoProto) -> bool:
    """Whether an output states its type, and sizes where it is a tensor."""
    kind = value.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or value.type.tensor_type.HasField("shape"))
