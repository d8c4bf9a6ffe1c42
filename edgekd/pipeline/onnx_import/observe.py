"""Run an imported model to see what its tensors are: what a graph states about them is often missing or wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.pipeline.onnx_import.graph import copy_values
from edgekd.runtime.backends.onnxruntime import open_engine

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnx import ModelProto

    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.runtime.session import Array, Session

#: How far a sample's result in a batch may be from its result alone, as a share of the largest magnitude.
_TOLERANCE = 1e-3

#: The same of a quantized model, whose numbers a sum in another order may round to the next level.
_LEVELS = 0.03


def observe(model: ModelProto, tensors: Collection[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model and return these tensors.

    Raises:
        ModelError: ONNX Runtime failed to run the model.
    """
    with observing(model, tensors) as session:
        return session.run(feeds)


def observing(model: ModelProto, tensors: Collection[str]) -> Session:
    """Open a model whose outputs are these tensors, to run it node by node.

    Raises:
        ModelError: ONNX Runtime cannot open it.
    """
    graph, outputs = model.graph, {value.name: value for value in copy_values(model.graph.output)}
    unknown = need("onnx", "build").ValueInfoProto
    try:
        graph.ClearField("output")  # and not in a copy: weights may be large
        graph.output.extend(outputs.get(name) or unknown(name=name) for name in tensors)
        content = model.SerializeToString()
    finally:
        graph.ClearField("output")
        graph.output.extend(outputs.values())
    return open_engine(content, name="the model", fused=False, arena=False)


def rows_are_independent(session: Session, samples: NpzSamples, *, rounded: bool = False) -> bool:
    """Whether two samples in one batch give what each gives alone; some graphs are right for one sample only.

    Args:
        session: The model, with the tensors that are compared as its outputs.
        samples: Samples, of which two are run.
        rounded: Whether the model is quantized, and may give the next level.
    """
    alone = [session.run(samples.row(row)) for row in range(2)]
    try:
        batch = session.run(samples.first(2))
    except ModelError:
        return False
    tolerance = _LEVELS if rounded else _TOLERANCE
    return all(_agree(x, [single[name] for single in alone], tolerance) for name, x in batch.items())


def _agree(batch: Array, alone: Sequence[Array], tolerance: float) -> bool:
    if batch.ndim == 0 or any(single.shape != (1, *batch.shape[1:]) for single in alone) or len(batch) != 2:
        return False
    expected = np.concatenate(alone)
    limit = tolerance * float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
    return bool(np.allclose(batch, expected, rtol=0, atol=limit, equal_nan=True))
