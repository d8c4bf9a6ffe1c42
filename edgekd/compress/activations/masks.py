"""Activations that are not finite, or huge, on purpose: a mask of attention or of padding is among their values.

No INT8 range can hold both a mask and the values beside it, and none needs to: what is masked counts no more. Such
tensors stay float, and their ranges are those of the values that are not masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import WEIGHT_BEARING, initializers, layer_name, open_at, producers
from edgekd.errors import ModelError
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from onnx import ModelProto

    from edgekd.compress.activations.extremes import Extremes, Number
    from edgekd.runtime.session import Array, Feeds

#: Largest magnitude below which a tensor is not looked at again: masks are larger.
_LEAST_MASK = 1000.0
#: Where all but a mask is below this share of it, INT8 would round it to a single level.
_LEVEL = 1 / 255
#: Operators that may read NaN and give none: they choose what is not masked, leave it out, write over it, or ask.
_CHOOSING = (
    "Where", "IsNaN", "IsInf", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Slice", "Split", "Pad",
    "Gather", "GatherElements", "GatherND", "Compress", "ScatterElements", "ScatterND",
)  # fmt: skip
#: Names that a message shows at most.
_SHOWN = 3


@dataclass(frozen=True)
class Masked:
    """A tensor with a mask among its values.

    Attributes:
        low: The smallest value that is not masked.
        high: The largest value that is not masked.
        infinite: Whether an activation's mask is infinite, or NaN.
    """

    low: Number
    high: Number
    infinite: bool


@dataclass(frozen=True)
class _Content:
    """What a suspect holds: whether any NaN, whether anything infinite, and the extremes of what is no mask."""

    nan: bool
    infinite: bool
    low: Number
    high: Number

    def __or__(self, other: _Content) -> _Content:
        return _Content(
            self.nan or other.nan,
            self.infinite or other.infinite,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    @classmethod
    def of(cls, x: Array, limit: float) -> _Content:
        """Look at an array, in which magnitudes of ``limit`` and more are masked."""
        infinite, nan = bool(np.isinf(x).any()), bool(np.isnan(x).any())
        kept = x[np.isfinite(x) & (np.abs(x) < limit)]
        zero = x.dtype.type(0)  # every range holds it
        return cls(nan, infinite, kept.min(initial=zero), kept.max(initial=zero))


def find_masked(model: ModelProto, extremes: Mapping[str, Extremes], samples: Iterable[Feeds]) -> dict[str, Masked]:
    """Return the activations, and the stored tensors but weights, of a float graph among whose values is a mask.

    An infinite value is a mask where the network's outputs are finite all the same. So is NaN, which attention makes of
    a row that is masked throughout, where it ends in a node that chooses or leaves it out. A huge value is a mask where
    the tensor's other values are less than one level of INT8 beside it, and no layer with weights reads the tensor.

    Args:
        model: The float graph.
        extremes: What its activations hold.
        samples: The same samples in chunks, read once more where anything is suspect.

    Raises:
        ModelError: NaN or an overflow reaches an output, or NaN is lost on the way.
    """
    weighted = {name for node in model.graph.node if node.op_type in WEIGHT_BEARING for name in node.input}
    inputs = {value.name for value in model.graph.input}
    suspects = {
        name: (found.magnitude / 2 if np.isfinite(found.magnitude) else np.inf)
        for name, found in extremes.items()
        if not found.finite or (found.magnitude >= _LEAST_MASK and name not in weighted | inputs)
    }
    contents = _look(model, suspects, samples) if suspects else {}
    broken = {name: content for name, content in contents.items() if content.nan or content.infinite}
    _require_masks(model, broken)
    huge = {
        name: content
        for name, content in contents.items()
        if name not in broken and name not in weighted | inputs and _is_dwarfed(content, 2 * suspects[name])
    }
    found = {name: Masked(content.low, content.high, name in broken) for name, content in {**broken, **huge}.items()}
    return found | _masked_constants(model, weighted)


def _masked_constants(model: ModelProto, weighted: Collection[str]) -> dict[str, Masked]:
    """Return the stored tensors that are masks, or hold one, and are no weights."""
    found = {}
    for name, x in _float_constants(model).items():
        if name in weighted or not x.size:
            continue
        magnitude = float(np.abs(x).max())
        content = _Content.of(x, magnitude / 2)
        if content.infinite or (magnitude >= _LEAST_MASK and _is_dwarfed(content, magnitude)):
            found[name] = Masked(content.low, content.high, infinite=False)
    return found


def _is_dwarfed(content: _Content, magnitude: float) -> bool:
    rest = max(-content.low, content.high)
    return bool(0 < rest < magnitude * _LEVEL)


def _look(model: ModelProto, suspects: Mapping[str, float], samples: Iterable[Feeds]) -> dict[str, _Content]:
    names = list(suspects)
    session = open_at(model, names, threads=0)
    found: dict[str, _Content] = {}
    for feeds in samples:
        values = session.run(names, feeds)
        for name, x in zip(names, values, strict=True):
            content = _Content.of(x, suspects[name])
            found[name] = found[name] | content if name in found else content
    return found


def _require_masks(model: ModelProto, broken: Mapping[str, _Content]) -> None:
    """Raise ModelError where what is not finite reaches an output, or where a node hides NaN."""
    if not broken:
        return
    for output in model.graph.output:
        if output.name in broken:
            raise _not_finite(model, broken, output.name, f"output '{output.name}' is")
    for node in model.graph.node:
        lost = [name for name in node.input if name in broken and broken[name].nan]
        if lost and node.op_type not in _CHOOSING and broken.keys().isdisjoint(node.output):
            hiding = f"node '{layer_name(node)}' ({node.op_type}) reads '{lost[0]}', and hides that it is"
            raise _not_finite(model, broken, lost[0], hiding)


def _not_finite(model: ModelProto, broken: Mapping[str, _Content], tensor: str, which: str) -> ModelError:
    """Return an error that names the node which made what is not finite in ``tensor``.

    It is the first that made it of finite values alone. Where every infinity is stored in the graph, as a mask's is, it
    is the first that made NaN of one.
    """
    made = producers(model.graph)
    behind, ahead = {tensor}, [tensor]
    while ahead:
        before = (broken.keys() & made.keys()).intersection(made[ahead.pop()].input) - behind
        behind |= before
        ahead += before
    nodes = [node for node in model.graph.node if not behind.isdisjoint(node.output)]
    infinite = broken.keys() | _infinite_constants(model)
    overflows = [node for node in nodes if infinite.isdisjoint(node.input)]
    made_nan = [node for node in nodes if any(broken[name].nan for name in node.output if name in broken)]
    first = next(iter([*overflows, *made_nan, *nodes]))
    what = "NaN" if any(broken[name].nan for name in first.output if name in broken) else "infinity"
    return ModelError(
        f"{which} not finite on the calibration samples: node '{layer_name(first)}' ({first.op_type}) makes {what} "
        "first; look for an overflow, a division by zero, a logarithm of zero, or a row that is masked throughout"
    )


def _infinite_constants(model: ModelProto) -> set[str]:
    return {name for name, x in _float_constants(model).items() if not np.isfinite(x).all()}


def _float_constants(model: ModelProto) -> dict[str, Array]:
    """Return the stored floats of a graph."""
    to_array, stored = need("onnx", "build").numpy_helper.to_array, initializers(model.graph)
    arrays = {name: to_array(tensor) for name, tensor in stored.items()}
    return {name: x for name, x in arrays.items() if x.dtype.kind == "f"}
