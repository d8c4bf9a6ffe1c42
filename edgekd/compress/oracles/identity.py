"""The oracle of every rewrite: with nothing rounded, a rewritten graph computes what the float graph computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import layer_name, open_at, producers
from edgekd.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto
    from onnxruntime import InferenceSession

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


def _first_apart(
    rewritten: ModelProto, floats: ModelProto, tensors: Sequence[str], feeds: Sequence[Feeds], tolerance: float
) -> tuple[str, str] | None:
    """Return the first of some tensors that differs between two graphs, and how; None where none does."""
    sessions = [open_at(model, tensors) for model in (floats, rewritten)]
    first = len(tensors)
    reason = ""
    for chunk in feeds:
        exact, found = (run_few(session, tensors, chunk) for session in sessions)
        for index, (one, other) in enumerate(zip(exact[:first], found, strict=False)):
            how = _apart(one, other, tolerance)
            if how:
                first, reason = index, how
                break
    return (tensors[first], reason) if reason else None


def run_few(session: InferenceSession, tensors: Sequence[str], feeds: Feeds) -> list[Array]:
    """Return some tensors of a session, given at least the inputs that it has."""
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
