"""Nodes that some engine libraries refuse or compute wrong, written with other operators that compute the same.

Each was seen with OpenVINO 2026.4: a condition [1, 1] of an ``If`` is refused, ``Resize`` leaves out antialiasing and
``exclude_outside`` and does not know ``half_pixel_symmetric``, and ``AveragePool`` counts asymmetric padding wrong
where it rounds its size up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.compress.graph import copy, initializers, open_at
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

    from edgekd.runtime.session import Array

    Shapes = Mapping[str, list[int]]


def scalar_conditions(model: ModelProto, _sample: Mapping[str, Array]) -> ModelProto | None:
    """Return a graph in which the condition of each ``If`` has no dimensions."""
    helper, written = need("onnx", "build").helper, copy(model)
    shapes = _shapes(written)
    changed = False
    for node in list(written.graph.node):
        condition = node.input[0] if node.op_type == "If" else ""
        if condition and shapes.get(condition) != []:
            scalar = f"{condition}:scalar"
            if not changed or all(scalar not in other.output for other in written.graph.node):
                squeeze = helper.make_node("Squeeze", [condition], [scalar], name=scalar)
                written.graph.node.insert(list(written.graph.node).index(node), squeeze)
            node.input[0], changed = scalar, True
    return written if changed else None


def pads_apart(model: ModelProto, _sample: Mapping[str, Array]) -> ModelProto | None:
    """Return a graph in which each ``AveragePool`` that counts its padding has that in a ``Pad`` before it."""
    onnx, written = need("onnx", "build"), copy(model)
    changed = False
    for place, node in reversed(list(enumerate(written.graph.node))):
        pads = _attribute(node, "pads", [])
        if node.op_type != "AveragePool" or not _attribute(node, "count_include_pad", 0) or not any(pads):
            continue
        half = len(pads) // 2
        sizes = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        padded, name = f"{node.output[0]}:padded", f"{node.output[0]}:pads"
        written.graph.initializer.append(onnx.numpy_helper.from_array(sizes, name))
        written.graph.node.insert(place, onnx.helper.make_node("Pad", [node.input[0], name], [padded], name=padded))
        node.input[0], changed = padded, True
        kept = [item for item in node.attribute if item.name not in ("pads", "count_include_pad")]
        del node.attribute[:]
        node.attribute.extend(kept)
    return written if changed else None


def resize_by_matrices(model: ModelProto, _sample: Mapping[str, Array]) -> ModelProto | None:
    """Return a graph in which each ``Resize`` of a rare kind is a product with a matrix for each axis that it changes.

    Along one axis a ``Resize`` is linear, and its matrix is what it makes of the unit vectors. The graph's sizes must
    be fixed.
    """
    onnx, written = need("onnx", "build"), copy(model)
    shapes, stored = _shapes(written), initializers(written.graph)
    changed = False
    for place, node in reversed(list(enumerate(written.graph.node))):
        if node.op_type != "Resize" or not _is_rare(node):
            continue
        given, made = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        scales = stored.get(node.input[2]) if len(node.input) > 2 else None
        axes = [axis for axis in range(len(given)) if given[axis] != made[axis]] if len(given) == len(made) else []
        last = range(max(len(given) - 2, 1), len(given))
        if not axes or not set(axes) <= set(last) or any(made[axis] < 1 or given[axis] < 1 for axis in axes):
            continue
        stated = onnx.numpy_helper.to_array(scales) if scales is not None and scales.dims[0] else None
        factors = {axis: stated[axis] if stated is not None else made[axis] / given[axis] for axis in axes}
        matrices = {axis: _matrix(written, node, given[axis], float(factors[axis])) for axis in axes}
        nodes = _products(written.graph, node, matrices, len(given) - 1)
        written.graph.node.remove(node)
        for product in reversed(nodes):
            written.graph.node.insert(place, product)
        changed = True
    return written if changed else None


def _is_rare(node: NodeProto) -> bool:
    symmetric = _attribute(node, "coordinate_transformation_mode", b"") == b"half_pixel_symmetric"
    rare = _attribute(node, "antialias", 0) or _attribute(node, "exclude_outside", 0) or symmetric
    return bool(rare) and not _attribute(node, "axes", []) and not _attribute(node, "keep_aspect_ratio_policy", b"")


def _matrix(model: ModelProto, node: NodeProto, size: int, factor: float) -> NDArray[np.float32]:
    """Return the matrix [new, size] of a ``Resize`` along one axis of ``size``."""
    onnx = need("onnx", "build")
    resize = onnx.helper.make_node("Resize", ["x", "", "scales"], ["y"])
    resize.attribute.extend(node.attribute)
    alone = copy(model)
    alone.graph.CopyFrom(
        onnx.helper.make_graph(
            [resize],
            "axis",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [size, 1, size, 1])],
            [],
            [onnx.numpy_helper.from_array(np.array([1, 1, factor, 1], np.float32), "scales")],
        )
    )
    (columns,) = open_at(alone, ["y"]).run(["y"], {"x": np.eye(size, dtype=np.float32).reshape(size, 1, size, 1)})
    matrix: NDArray[np.float32] = np.ascontiguousarray(columns[:, 0, :, 0].T)
    return matrix


def _products(
    graph: GraphProto, node: NodeProto, matrices: Mapping[int, NDArray[np.float32]], last: int
) -> list[NodeProto]:
    """Return the products that take a node's place: from the right along the last axis, else from the left."""
    onnx = need("onnx", "build")
    nodes, source = [], node.input[0]
    for step, (axis, matrix) in enumerate(matrices.items(), 1):
        name = f"{node.output[0]}:matrix {axis}"
        graph.initializer.append(onnx.numpy_helper.from_array(matrix.T.copy() if axis == last else matrix, name))
        made = node.output[0] if step == len(matrices) else f"{node.output[0]}:axis {axis}"
        factors = [source, name] if axis == last else [name, source]
        nodes.append(onnx.helper.make_node("MatMul", factors, [made], name=f"{node.name or node.output[0]}:{axis}"))
        source = made
    return nodes


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    helper = need("onnx", "build").helper
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """Return the shapes of the tensors whose number of dimensions is known; 0 for a size that is not."""
    inferred = need("onnx", "build").shape_inference.infer_shapes(model, data_prop=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
