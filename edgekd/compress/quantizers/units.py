"""First layers whose raw input channels are of unlike units: one scale for all would round some of them away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import initializers, open_at
from edgekd.compress.quantizers.raw import raw_tensors
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    from edgekd.runtime.session import Array, Feeds

    Doubles = NDArray[np.float64]

#: Samples that tell the ranges of raw channels.
RANGED = 64

#: What a step of INT8 in one channel may change a layer's output by, as a share of what the channels change it by. It
#: is about 1 / 255 where all have one unit.
_LARGEST_SHARE = 1 / 16
_STEPS = 255


def unlike_layers(model: ModelProto, feeds: Sequence[Feeds]) -> dict[str, str]:
    """Return the layers of a float graph that must not round their raw inputs, and for each the reason.

    A channel with the spread r and weights of the magnitude w changes the layer's output by r * w. One step of the
    scale that all channels share changes it by step * w; where that is a large share of the largest r * w, the layer
    would compute on noise. It depends on the weights, so that a channel that the network ignores does no harm.

    Args:
        model: The float graph, its nodes named.
        feeds: Some samples in chunks, from which the channels' ranges are taken.
    """
    stored, raw = initializers(model.graph), raw_tensors(model.graph)
    layers = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[0] in raw and node.input[1] in stored
    ]
    if not layers:
        return {}
    ranges = _channel_ranges(model, {node.input[0]: 1 if node.op_type == "Conv" else -1 for node in layers}, feeds)
    to_array = need("onnx", "build").numpy_helper.to_array
    shares = {
        node.name: _share(*ranges[node.input[0]], _gains(node, to_array(stored[node.input[1]]))) for node in layers
    }
    return {name: _reason(share) for name, share in shares.items() if share > _LARGEST_SHARE}


def _reason(share: float) -> str:
    much = f"{share:.0%}" if share < 1 else "more than 100%"
    return (
        "its raw input channels are of unlike units: in one scale for all a step of one of them changes the output by "
        f"{much} of what the channels do"
    )


def _channel_ranges(
    model: ModelProto, axes: dict[str, int], feeds: Sequence[Feeds]
) -> dict[str, tuple[Doubles, Doubles]]:
    """Return for each tensor the least and the largest value of each channel, given the channels' axis."""
    session = open_at(model, axes)
    low: dict[str, Doubles] = {}
    high: dict[str, Doubles] = {}
    for chunk in feeds:
        given = {value.name: chunk[value.name] for value in session.get_inputs() if value.name in chunk}
        for (name, axis), x in zip(axes.items(), session.run(list(axes), given), strict=True):
            rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64)
            low[name] = np.minimum(low.get(name, np.inf), rows.min(1))
            high[name] = np.maximum(high.get(name, -np.inf), rows.max(1))
    return {name: (low[name], high[name]) for name in axes}


def _gains(node: NodeProto, weight: Array) -> Doubles:
    """Return the magnitude of each input channel's weights [groups, channels of a group]."""
    attributes = {item.name: item.i for item in node.attribute}
    if node.op_type != "Conv":
        by_row = node.op_type == "Gemm" and attributes.get("transB", 0)
        axes = tuple(axis for axis in range(weight.ndim) if axis != (1 if by_row else weight.ndim - 2))
        return np.asarray(np.sqrt(np.square(weight.astype(np.float64)).sum(axes)))[None]
    groups = attributes.get("group", 1)
    grouped = weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return np.asarray(np.sqrt(np.square(grouped).sum((1, 3))))


def _share(low: Doubles, high: Doubles, gains: Doubles) -> float:
    """Return the largest change by one step, of any group, as a share of that group's largest change by a channel."""
    step = (max(high.max(), 0.0) - min(low.min(), 0.0)) / _STEPS
    changes = (high - low).reshape(gains.shape) * gains
    largest = changes.max(1)
    return float(np.max((step * gains).max(1)[largest > 0] / largest[largest > 0], initial=0.0))
