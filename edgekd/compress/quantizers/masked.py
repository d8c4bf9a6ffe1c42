"""Masked activations of a graph that is quantized: which there are, and how they stay float."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.activations.extremes import find_extremes, float_tensors
from edgekd.compress.activations.masks import find_masked
from edgekd.compress.qdq_map import find_sites
from edgekd.compress.switchboard import restore_float

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.compress.activations.masks import Masked
    from edgekd.runtime.session import Feeds

#: Names that a message shows at most.
_SHOWN = 3


def survey(prepared: Path, samples: Iterable[Feeds]) -> dict[str, Masked]:
    """Return the masked tensors of the float graph in a file, as :func:`find_masked` does."""
    graph, tensors = float_tensors(prepared)
    return find_masked(graph, find_extremes(graph, tensors, samples), samples)


def leave_float(
    qdq: ModelProto, floats: ModelProto, masked: Mapping[str, Masked]
) -> tuple[ModelProto, tuple[str, ...]]:
    """Return a QDQ graph in which masked tensors are float, and a note for the user where there are any.

    Args:
        qdq: The QDQ graph, which is not changed.
        floats: The float graph that was quantized.
        masked: The masked tensors of the float graph.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    if not masked:
        return qdq, ()
    rounded = find_sites(qdq, floats).keys() & masked.keys()
    told = {name: mask for name, mask in masked.items() if mask.infinite or name in rounded}
    notes = (_describe(told),) if told else ()
    return (restore_float(qdq, floats, rounded) if rounded else qdq), notes


def _describe(masked: Mapping[str, Masked]) -> str:
    names = [f"'{name}'" for name in masked]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    kind = "infinite values" if any(mask.infinite for mask in masked.values()) else "huge values"
    return (
        f"{kind} in {', '.join(names[:_SHOWN])}{more} are taken for a mask, since no output shows them; these tensors "
        "stay float"
    )
