"""The oracle of every rewrite: with nothing rounded, a rewritten graph computes what the float graph computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import open_at
from edgekd.compress.qdq_map import find_sites, initializers, layer_name, producers
from edgekd.compress.switchboard import restore_float
from edgekd.errors import ModelError
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto
    from onnxruntime import InferenceSession

    from edgekd.compress.qdq_map import QdqSite
    from edgekd.runtime.session import Array, Feeds

    Doubles = NDArray[np.float64]

#: Number of samples that graphs are compared on.
SAMPLES = 4
#: Largest |difference| of an element, as a share of the tensor's largest magnitude. What was folded is added up in
#: another order, which costs some 1e-6; the half of an INT8 step is 4e-3.
_TOLERANCE = 1e-3
#: Largest root mean square of a stored tensor's rounding, in steps; that of rounding to the nearest is 0.29.
_STEPS = 1.0


@dataclass(frozen=True)
class Difference:
    """The first node at which a rewritten graph is another network.

    Attributes:
        node: The node's name in the float graph; where it has none, that of its first output.
        reason: What differs.
    """

    node: str
    reason: str


class RewriteError(ModelError):
    """A rewritten graph is another network."""


def first_difference(
    rewritten: ModelProto, floats: ModelProto, feeds: Sequence[Feeds], tolerance: float = _TOLERANCE
) -> Difference | None:
    """Return the first node after which two float graphs compute something else, in the second one's order.

    Both run without ONNX Runtime's optimizers. Tensors are the same where they differ by rounding, 1e-3 of the largest
    magnitude, and are infinite or NaN in the same places. Inner tensors are looked at only where an output differs.

    Args:
        rewritten: The float graph after a rewrite that kept its outputs.
        floats: The float graph before.
        feeds: Few samples in chunks.
        tolerance: Largest |difference|, as a share of a tensor's largest magnitude.
    """
    outputs = [value.name for value in floats.graph.output]
    apart = _first_apart(rewritten, floats, outputs, feeds, tolerance)
    if apart is None:
        return None
    known = producers(rewritten.graph)
    inner = [name for node in floats.graph.node for name in node.output if name in known]
    first = _first_apart(rewritten, floats, inner, feeds, tolerance) or apart
    node = producers(floats.graph).get(first[0])
    return Difference(layer_name(node) if node else first[0], f"'{first[0]}' {first[1]}")


def first_misquantized(qdq: ModelProto, floats: ModelProto, feeds: Sequence[Feeds]) -> Difference | None:
    """Return the first node that a QDQ graph would compute wrong even if nothing were rounded.

    Stored tensors must be what the float graph stores, rounded to about the nearest level. For the rest see
    :func:`require_same`.

    Args:
        qdq: The QDQ graph, its weights at their nearest levels.
        floats: The float graph that was quantized.
        feeds: Few samples in chunks.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    stored, exact = initializers(qdq.graph), initializers(floats.graph)
    for site in find_sites(qdq, floats).values():
        steps = max((_steps(pair[0], stored, exact[site.tensor]) for pair in _stored_pairs(site)), default=0.0)
        if not steps <= _STEPS:
            return Difference(_reader(floats.graph, site.tensor), f"'{site.tensor}' is {steps:.3g} steps off")
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
        _run(session, outputs, chunk)
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


def _first_apart(
    rewritten: ModelProto, floats: ModelProto, tensors: Sequence[str], feeds: Sequence[Feeds], tolerance: float
) -> tuple[str, str] | None:
    """Return the first of some tensors that differs between two graphs, and how; None where none does."""
    sessions = [open_at(model, tensors) for model in (floats, rewritten)]
    first = len(tensors)
    reason = ""
    for chunk in feeds:
        exact, found = (_run(session, tensors, chunk) for session in sessions)
        for index, (one, other) in enumerate(zip(exact[:first], found, strict=False)):
            how = _apart(one, other, tolerance)
            if how:
                first, reason = index, how
                break
    return (tensors[first], reason) if reason else None


def _run(session: InferenceSession, tensors: Sequence[str], feeds: Feeds) -> list[Array]:
    wanted = {value.name: feeds[value.name] for value in session.get_inputs() if value.name in feeds}
    found: list[Array] = session.run(list(tensors), wanted)
    return found


def _apart(exact: Array, found: Array, tolerance: float) -> str:
    """Return how two tensors differ, or "" where they do so by rounding alone."""
    if exact.shape != found.shape or exact.dtype.kind != found.dtype.kind:
        return f"is {found.dtype} {list(found.shape)} instead of {exact.dtype} {list(exact.shape)}"
    if exact.dtype.kind != "f":
        return "" if np.array_equal(exact, found) else "has other values"
    finite = np.isfinite(exact)
    if not np.array_equal(exact[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return "is infinite or NaN in other places"
    one, other = exact[finite].astype(np.float64), found[finite].astype(np.float64)
    error, largest = np.abs(one - other).max(initial=0), np.abs(one).max(initial=0)
    return "" if error <= tolerance * largest else f"is off by {error:.3g}, its largest magnitude is {largest:.3g}"
