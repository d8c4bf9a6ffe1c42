"""The smallest and largest value of every activation of a float graph on samples, streamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.compress.graph import copy, open_at
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from onnx import ModelProto, NodeProto

    from edgekd.runtime.session import Feeds

    Number: TypeAlias = "np.floating[Any]"

#: Operators whose results tell what a tensor holds. ONNX Runtime's extremes pass over NaN, which its sum does not.
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum")
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Extremes:
    """What a tensor holds over all samples.

    Attributes:
        low: The smallest value that is a number, in the tensor's type.
        high: The largest value that is a number, likewise.
        finite: Whether the sum of each chunk is finite; so are all its values then.
    """

    low: Number
    high: Number
    finite: bool

    def __or__(self, other: Extremes) -> Extremes:
        return Extremes(np.fmin(self.low, other.low), np.fmax(self.high, other.high), self.finite and other.finite)

    @property
    def magnitude(self) -> float:
        """The largest magnitude."""
        return float(max(abs(self.low), abs(self.high)))


def float_tensors(path: Path) -> tuple[ModelProto, list[str]]:
    """Read a float graph; return it and the names of its float inputs and activations, as the quantizer finds them."""
    calibrator = need("onnxruntime.quantization.calibrate", "build").CalibraterBase(path)
    tensors, _ = calibrator.select_tensors_to_calibrate(calibrator.model)
    return calibrator.model, sorted(tensors)


def find_extremes(model: ModelProto, tensors: Collection[str], samples: Iterable[Feeds]) -> dict[str, Extremes]:
    """Return the extremes of some tensors of a float graph.

    Only the extremes are kept, and only one chunk of samples is computed at a time; chunks do not change the result.

    Args:
        model: The float graph, which is not changed.
        tensors: Names of its inputs or activations.
        samples: The samples in chunks.
    """
    reduced = _with_nodes(model, tensors, _REDUCTIONS)
    names = [f"{tensor}:{operator}" for tensor in tensors for operator in _REDUCTIONS]
    session = open_at(reduced, names, threads=0)
    found: dict[str, Extremes] = {}
    for feeds in samples:
        values = iter(session.run(names, feeds))
        for tensor, low, high, total in zip(tensors, values, values, values, strict=True):
            if low.size:  # a tensor without elements has none
                here = Extremes(low.ravel()[0], high.ravel()[0], bool(np.isfinite(total).all()))
                found[tensor] = found[tensor] | here if tensor in found else here
    return found


def activation_bytes(path: Path, feeds: Feeds) -> int:
    """Return the bytes of all float activations of a graph, inputs included, as one inference makes them.

    Args:
        path: File of the float graph.
        feeds: Its inputs.
    """
    model, tensors = float_tensors(path)
    names = [f"{tensor}:Size" for tensor in tensors]
    session = open_at(_with_nodes(model, tensors, ("Size",)), names, threads=0)
    sizes: list[np.integer[Any]] = session.run(names, feeds)
    return _FLOAT_BYTES * sum(int(size) for size in sizes)


def _with_nodes(model: ModelProto, tensors: Collection[str], operators: Sequence[str]) -> ModelProto:
    """Return the graph with nodes of some operators that read each tensor, right behind the node that makes it."""
    reduced = copy(model)
    graph = reduced.graph
    del graph.output[:]
    inputs = [value.name for value in graph.input]
    nodes = [None, *graph.node]
    graph.ClearField("node")
    for node in nodes:
        if node is not None:
            graph.node.append(node)
        for tensor in inputs if node is None else node.output:
            if tensor in tensors:
                graph.node.extend(_reading(tensor, operator) for operator in operators)
    return reduced


def _reading(tensor: str, operator: str) -> NodeProto:
    keepdims = {"keepdims": 1} if operator in _REDUCTIONS else {}
    node: NodeProto = need("onnx", "build").helper.make_node(operator, [tensor], [f"{tensor}:{operator}"], **keepdims)
    return node
