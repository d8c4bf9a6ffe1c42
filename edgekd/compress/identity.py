"""The oracle of every rewrite: with nothing rounded, a rewritten graph computes what the float graph computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import open_at
from edgekd.compress.qdq_map import find_sites, initializers, layer_name, producers
from edgekd.compress.switchboard import restore_float
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto
    from onnxruntime import InferenceSession

    from edgekd.compress.qdq_map import QdqSite
    from edgekd.runtime.session import Array, Feeds

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


def first_difference(rewritten: ModelProto, floats: ModelProto, feeds: Sequence[Feeds]) -> Difference | None:
    """Return the first node after which two float graphs compute something else, in the second one's order.

    Both run without ONNX Runtime's optimizers. Tensors are the same where they differ by rounding, 1e-3 of the largest
    magnitude, and are infinite or NaN in the same places. Inner tensors are looked at only where an output differs.

    Args:
        rewritten: The float graph after a rewrite that kept its outputs.
        floats: The float graph before.
        feeds: Few samples in chunks.
    """
    outputs = [value.name for value in floats.graph.output]
    apart = _first_apart(rewritten, floats, outputs, feeds)
    if apart is None:
        return None
    known = producers(rewritten.graph)
    inner = [name for node in floats.graph.node for name in node.output if name in known]
    first = _first_apart(rewritten, floats, inner, feeds) or apart
    node = producers(floats.graph).get(first[0])
    return Difference(layer_name(node) if node else first[0], f"'{first[0]}' {first[1]}")


def first_misquantized(qdq: ModelProto, floats: ModelProto, feeds: Sequence[Feeds]) -> Difference | None:
    """Return the first node that a QDQ graph would compute wrong even if nothing were rounded.

    The QDQ graph must run. Stored tensors must be what the float graph stores, rounded to about the nearest level; and
    the QDQ graph must compute what the float graph does, once each Q/DQ pair is replaced by its input, and each stored
    tensor by the float one.

    Args:
        qdq: The QDQ graph, its weights at their nearest levels.
        floats: The float graph that was quantized.
        feeds: Few samples in chunks.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    outputs = [value.name for value in qdq.graph.output]
    session = open_at(qdq, outputs)
    for chunk in feeds:
        _run(session, outputs, chunk)
    sites = find_sites(qdq, floats)
    stored, exact = initializers(qdq.graph), initializers(floats.graph)
    for site in sites.values():
        steps = max((_steps(pair[0], stored, exact[site.tensor]) for pair in _stored_pairs(site)), default=0.0)
        if not steps <= _STEPS:
            return Difference(_reader(floats.graph, site.tensor), f"'{site.tensor}' is {steps:.3g} steps off")
    return first_difference(restore_float(qdq, floats, sites), floats, feeds)


def _stored_pairs(site: QdqSite) -> list[tuple[NodeProto, NodeProto | None]]:
    return [] if site.kind == "activation" else site.pairs


def _steps(dequantize: NodeProto, stored: dict[str, TensorProto], exact: TensorProto) -> float:
    """Return the root mean square of a stored tensor's rounding, in steps of its scale."""
    to_array = need("onnx", "build").numpy_helper.to_array
    levels, scale, *zero_point = (to_array(stored[name]).astype(np.float64) for name in dequantize.input)
    axis = next((item.i for item in dequantize.attribute if item.name == "axis"), 1)
    zero = zero_point[0] if zero_point else np.zeros_like(scale)
    if scale.size > 1:
        shape = [1] * levels.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    values = to_array(exact).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(levels - zero - values / scale)))) if values.size else 0.0


def _reader(graph: GraphProto, tensor: str) -> str:
    return next(layer_name(node) for node in graph.node if tensor in node.input)


def _first_apart(
    rewritten: ModelProto, floats: ModelProto, tensors: Sequence[str], feeds: Sequence[Feeds]
) -> tuple[str, str] | None:
    """Return the first of some tensors that differs between two graphs, and how; None where none does."""
    sessions = [open_at(model, tensors) for model in (floats, rewritten)]
    first = len(tensors)
    reason = ""
    for chunk in feeds:
        exact, found = (_run(session, tensors, chunk) for session in sessions)
        for index, (one, other) in enumerate(zip(exact[:first], found, strict=False)):
            how = _apart(one, other)
            if how:
                first, reason = index, how
                break
    return (tensors[first], reason) if reason else None


def _run(session: InferenceSession, tensors: Sequence[str], feeds: Feeds) -> list[Array]:
    wanted = {value.name: feeds[value.name] for value in session.get_inputs() if value.name in feeds}
    found: list[Array] = session.run(list(tensors), wanted)
    return found


def _apart(exact: Array, found: Array) -> str:
    """Return how two tensors differ, or "" where they do so by rounding alone."""
    if exact.shape != found.shape or exact.dtype.kind != found.dtype.kind:
        return f"is {found.dtype} {list(found.shape)} instead of {exact.dtype} {list(exact.shape)}"
    if exact.dtype.kind != "f":
        return "" if np.array_equal(exact, found) else "has other values"
    finite = np.isfinite(exact)
    if not np.array_equal(exact[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return "is infinite or NaN in other places"
    one, other = _doubles(exact[finite]), _doubles(found[finite])
    error, largest = np.abs(one - other).max(initial=0), np.abs(one).max(initial=0)
    return "" if error <= _TOLERANCE * largest else f"is off by {error:.3g}, its largest magnitude is {largest:.3g}"


def _doubles(x: Array) -> NDArray[np.float64]:
    return x.astype(np.float64)
