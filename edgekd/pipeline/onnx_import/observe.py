"""Run a brought model to see what its tensors are: what a graph states of them is often missing or wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import ModelError
from edgekd.pipeline.onnx_import.graph import add_outputs
from edgekd.runtime.backends.onnxruntime import open_engine

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.runtime.session import Array

#: How far a sample's result in a batch may be from the one that it has alone, as a share of the largest.
_TOLERANCE = 1e-3


def observe(model: Any, tensors: Collection[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model and return these tensors.

    Raises:
        ModelError: ONNX Runtime failed to run it.
    """
    extended = add_outputs(model, tensors)
    for output in [output for output in extended.graph.output if output.name not in tensors]:
        extended.graph.output.remove(output)
    with open_engine(extended.SerializeToString(), name="the model") as session:
        return session.run(feeds)


def rows_are_independent(model: Any, tensors: Collection[str], samples: NpzSamples) -> bool:
    """Whether two samples in one batch give what they give one after the other; some graphs are right for one alone."""
    both = samples.first(2)
    alone = [observe(model, tensors, {name: x[row : row + 1] for name, x in both.items()}) for row in range(2)]
    try:
        together = observe(model, tensors, both)
    except ModelError:
        return False
    return all(_agree(together[name], [one[name] for one in alone]) for name in tensors)


def _agree(together: Array, alone: Sequence[Array]) -> bool:
    if together.ndim == 0 or any(one.shape != (1, *together.shape[1:]) for one in alone) or len(together) != 2:
        return False
    expected = np.concatenate(alone)
    limit = _TOLERANCE * float(np.abs(expected).max(initial=0))
    return bool(np.allclose(together, expected, rtol=0, atol=limit, equal_nan=True))
