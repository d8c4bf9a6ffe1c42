"""The oracle of INT8: its rounding left aside, a QDQ graph computes what the float graph computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import initializers, layer_name, open_at
from edgekd.compress.oracles.identity import Difference, RewriteError, first_difference, run_few
from edgekd.compress.qdq_map import find_sites
from edgekd.compress.switchboard import restore_float
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from edgekd.compress.qdq_map import QdqSite
    from edgekd.runtime.session import Feeds

    Doubles = NDArray[np.float64]

#: Largest root mean square of a stored tensor's rounding, in steps; that of rounding to the nearest is 0.29.
_STEPS = 1.0


def first_misquantized(
    qdq: ModelProto, floats: ModelProto, feeds: Sequence[Feeds], aside: Collection[str] = ()
) -> Difference | None:
    """Return the first node that a QDQ graph would compute wrong even if nothing were rounded.

    Stored tensors must be what the float graph stores, rounded to about the nearest level. For the rest see
    :func:`require_same`.

    Args:
        qdq: The QDQ graph, its weights at their nearest levels.
        floats: The float graph that was quantized.
        feeds: Few samples in chunks.
        aside: Stored tensors that will be float again, such as masks, whose levels do not matter.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    stored, exact = initializers(qdq.graph), initializers(floats.graph)
    for site in find_sites(qdq, floats).values():
        if site.tensor in aside:
            continue
        for dequantize, _ in _stored_pairs(site):
            steps = _steps(dequantize, stored, exact[site.tensor])
            if not steps <= _STEPS:
                node = _reader(qdq.graph, dequantize.output[0])
                return Difference(node, f"'{site.tensor}' is {steps:.3g} steps off")
    return _first_changed(qdq, floats, feeds)


def require_same(qdq: ModelProto, floats: ModelProto, feeds: Sequence[Feeds]) -> None:
    """Raise where a QDQ graph is another network than the float graph that was quantized.

    The QDQ graph must run; and it must compute what the float graph does, once each Q/DQ pair is replaced by its input,
    and each stored tensor by the float one.

    Raises:
        RewriteError: It does not; the error names the first node that differs.
    """
    difference = _first_changed(qdq, floats, feeds)
    if difference:
        raise RewriteError(f"INT8 changes the network at '{difference.node}': {difference.reason}")


def _first_changed(qdq: ModelProto, floats: ModelProto, feeds: Sequence[Feeds]) -> Difference | None:
    outputs = [value.name for value in qdq.graph.output]
    session = open_at(qdq, outputs)
    for chunk in feeds:
        run_few(session, outputs, chunk)
    return first_difference(restore_float(qdq, floats, find_sites(qdq, floats)), floats, feeds)


def _stored_pairs(site: QdqSite) -> list[tuple[NodeProto, NodeProto | None]]:
    return [] if site.kind == "activation" else site.pairs


def _steps(dequantize: NodeProto, stored: Mapping[str, TensorProto], exact: TensorProto) -> float:
    """Return the root mean square of a stored tensor's rounding, in steps of its scale."""
    levels, scale = stored_levels(dequantize, stored)
    values = need("onnx", "build").numpy_helper.to_array(exact).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(levels - values / scale)))) if values.size else 0.0


def stored_levels(dequantize: NodeProto, stored: Mapping[str, TensorProto]) -> tuple[Doubles, Doubles]:
    """Return what a DequantizeLinear node reads, in steps from its zero point, and the step for each element.

    Args:
        dequantize: A node that reads a stored tensor.
        stored: The graph's stored tensors.
    """
    to_array = need("onnx", "build").numpy_helper.to_array
    levels, scale, *zero_point = (to_array(stored[name]).astype(np.float64) for name in dequantize.input)
    axis = next((item.i for item in dequantize.attribute if item.name == "axis"), 1)
    shape = [1] * levels.ndim
    if scale.size > 1:
        shape[axis] = -1
    zero = zero_point[0].reshape(shape) if zero_point else 0.0
    return levels - zero, scale.reshape(shape)


def _reader(graph: GraphProto, tensor: str) -> str:
    return next(layer_name(node) for node in graph.node if tensor in node.input)
