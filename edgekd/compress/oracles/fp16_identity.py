"""The oracle of the conversion to FP16: but for rounding, the converted graph computes what the graph before does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import copy, drop_unread, initializers, producers
from edgekd.compress.oracles.identity import RewriteError, first_difference
from edgekd.compress.oracles.rounding_aside import stored_levels
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto, TensorProto

    from edgekd.runtime.session import Feeds

#: Largest |difference| of an element, as a share of the tensor's largest magnitude. FP16 rounds each stored number by
#: up to 5e-4 of itself, and a network adds these up.
_TOLERANCE = 3e-2


def require_same_in_half(half: ModelProto, graph: ModelProto, feeds: Sequence[Feeds]) -> None:
    """Raise where a graph in FP16 is another network than the float or QDQ graph that was converted.

    Both are computed in float32 and without their Q/DQ pairs: what FP16 stores is rounded, and nothing else.

    Args:
        half: The graph in FP16.
        graph: The graph before.
        feeds: Few samples in chunks.

    Raises:
        RewriteError: It is another; the error names the first node that differs.
    """
    difference = first_difference(_in_single(_without_pairs(half)), _without_pairs(graph), feeds, _TOLERANCE)
    if difference:
        raise RewriteError(f"FP16 changes the network at '{difference.node}': {difference.reason}")


def _without_pairs(model: ModelProto) -> ModelProto:
    """Return a graph without its Q/DQ pairs; what is stored quantized is stored as the number that it stands for."""
    numpy_helper, model = need("onnx", "build").numpy_helper, copy(model)
    made, stored = producers(model.graph), initializers(model.graph)
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        if node.input[0] in made:
            name = made[node.input[0]].input[0]
        else:
            levels, scale = stored_levels(node, stored)
            name = f"{node.output[0]}:stored"
            model.graph.initializer.append(numpy_helper.from_array((levels * scale).astype(np.float32), name))
        node.op_type = "Identity"
        del node.attribute[:]
        node.input[:] = [name]
    drop_unread(model.graph)
    return model


def _in_single(model: ModelProto) -> ModelProto:
    """Return a graph in which everything of FP16 is float32."""
    types, model = need("onnx", "build").TensorProto, copy(model)
    constants = [item.t for node in model.graph.node for item in node.attribute if item.HasField("t")]
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_type == types.FLOAT16:
            tensor.CopyFrom(_as_single(tensor))
    for item in (item for node in model.graph.node if node.op_type == "Cast" for item in node.attribute):
        item.i = types.FLOAT if item.name == "to" and item.i == types.FLOAT16 else item.i
    model.graph.ClearField("value_info")
    return model


def _as_single(tensor: TensorProto) -> TensorProto:
    numpy_helper = need("onnx", "build").numpy_helper
    single: TensorProto = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
    return single
