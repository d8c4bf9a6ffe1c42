"""Layers that multiply by stored matrices: MatMul, Gemm and LSTM nodes, and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import NodeProto, TensorProto

    from edgekd.runtime.session import Array

#: Operators of such layers.
OPERATORS = ("Gemm", "LSTM", "MatMul")


def is_stored_matrix(node: NodeProto, stored: Mapping[str, TensorProto]) -> bool:
    """Whether a node is a MatMul or Gemm of an activation with a stored float32 matrix [inputs, outputs]."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] in stored or _flag(node, "transA"):
        return False
    return _is_float(stored.get(node.input[1]), 2)


def is_stored_lstm(node: NodeProto, stored: Mapping[str, TensorProto]) -> bool:
    """Whether a node is an LSTM of sequences [steps, batch, inputs] with stored float32 weights."""
    is_plain = node.op_type == "LSTM" and not _flag(node, "layout")
    return is_plain and all(_is_float(stored.get(name), 3) for name in node.input[1:3])


def is_transposed(node: NodeProto) -> bool:
    """Whether the weight of a MatMul or Gemm is stored as [outputs, inputs]."""
    return _flag(node, "transB")


def read_matrix(node: NodeProto, stored: Mapping[str, TensorProto]) -> Array:
    """Return the weight of a MatMul or Gemm as [inputs, outputs]."""
    matrix: Array = need("onnx", "build").numpy_helper.to_array(stored[node.input[1]])
    return matrix.T if is_transposed(node) else matrix


def _flag(node: NodeProto, name: str) -> bool:
    return any(item.name == name and item.i for item in node.attribute)


def _is_float(tensor: TensorProto | None, rank: int) -> bool:
    single = need("onnx", "build").TensorProto.FLOAT
    return tensor is not None and tensor.data_type == single and len(tensor.dims) == rank and all(tensor.dims)
