"""Means and sums that OpenVINO's processor plugin computes wrong, put in a form that it computes right.

OpenVINO 2026.4 reduces tensors of three dimensions in INT8 wrong: mostly the first sample of a batch is right,
and the others are left as the memory was. The same values in four dimensions are right, at any batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.files import need

if TYPE_CHECKING:
    from openvino import Model, Node

_WRONG_RANK = 3
#: Where the fourth dimension goes. As the last one it would part each channel from its scale, which OpenVINO refuses.
_WIDENED = 1
#: Functions that make the nodes which are computed wrong, by the nodes' types.
_REDUCTIONS = {"ReduceMean": "reduce_mean", "ReduceSum": "reduce_sum"}


def widen_reductions(model: Model) -> None:
    """Give every mean and every sum over a tensor of three dimensions one more, of size 1, in place."""
    for node in model.get_ordered_ops():
        if node.get_type_name() in _REDUCTIONS and _is_wrong(node):
            _widen(node)


def _is_wrong(node: Node) -> bool:
    rank = node.input(0).get_partial_shape().rank
    return bool(rank.is_static and rank.get_length() == _WRONG_RANK and _axes(node))


def _axes(node: Node) -> list[int]:
    """Return the axes that a node reduces; none where they are computed."""
    source = node.input_value(1).get_node()
    if source.get_type_name() != "Constant":
        return []
    return [int(axis) % _WRONG_RANK for axis in np.atleast_1d(source.get_data())]


def _widen(node: Node) -> None:
    operators = need("openvino.opset13", "openvino")
    reduce = getattr(operators, _REDUCTIONS[node.get_type_name()])
    axes = [axis + (axis >= _WIDENED) for axis in _axes(node)]
    superfluous = [_WIDENED] if node.get_attributes()["keep_dims"] else [_WIDENED, *axes]
    wide = operators.unsqueeze(node.input_value(0), operators.constant(np.array([_WIDENED])))
    reduced = reduce(wide, operators.constant(np.array(axes)), True)
    narrow = operators.squeeze(reduced, operators.constant(np.array(superfluous)))
    narrow.set_friendly_name(node.get_friendly_name())
    narrow.output(0).set_names(node.output(0).get_names())
    node.output(0).replace(narrow.output(0))
