"""Write a QDQ graph with outlier channels as they are and smoothed; keep the one that is nearer to the float graph."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.activations.smooth import smooth
from edgekd.compress.graph import open_at, save
from edgekd.compress.oracles.fused import relative_error
from edgekd.compress.oracles.identity import first_difference, run_few
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.stages.artifacts import PREPARED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.compress.quantizers.quantizer import QuantizedGraph
    from edgekd.config.target import Scheme
    from edgekd.runtime.session import Feeds

    Write = Callable[[Path, CalibrationSamples, Scheme, Path], QuantizedGraph]

#: Samples on which outliers are looked for, and on which the two graphs are compared.
_SAMPLES = 16
_SMOOTH = "smooth.onnx"


def write_nearest(write: Write, model: Path, samples: CalibrationSamples, scheme: Scheme, work: Path) -> QuantizedGraph:
    """Write the QDQ graph of a float graph, with outlier channels smoothed where that is nearer to the float graph.

    The float graph that was quantized lies beside the file that is returned. A smoothed graph that computes something
    else than the float graph, or that the quantizer refuses, is left out with a note.

    Args:
        write: Writes the QDQ graph of a float graph's file, as
            :func:`~edgekd.compress.quantizers.write.write_quantized` does with a quantizer.
        model: The float graph.
        samples: The samples that ranges are found on, and how.
        scheme: How the target wants INT8.
        work: An existing folder for the files.

    Raises:
        ModelError: The graph cannot be quantized as it is.
    """
    plain = write(model, samples, scheme, work)
    onnx = need("onnx", "build")
    floats = onnx.load(str(work / PREPARED))
    few = list(samples.fewer(_SAMPLES))
    smoothed, tensors = smooth(floats, few)
    if not tensors:
        return plain
    difference = first_difference(smoothed, floats, few)
    if difference:
        note = f"outlier channels are not smoothed, since that changes '{difference.node}': {difference.reason}"
        return replace(plain, notes=(*plain.notes, note))
    folder = work / "smoothed"
    folder.mkdir()
    save(smoothed, work / _SMOOTH)
    try:
        other = write(work / _SMOOTH, samples, scheme, folder)
    except ModelError as error:
        return replace(plain, notes=(*plain.notes, f"outlier channels are not smoothed: {error}"))
    errors = [output_error(onnx.load(str(written.path)), floats, few) for written in (plain, other)]
    if not errors[1] < errors[0]:
        return plain
    note = (
        f"outlier channels of {len(tensors)} activations are smoothed: the outputs' relative error falls from "
        f"{errors[0]:.3g} to {errors[1]:.3g}"
    )
    return replace(other, notes=(*other.notes, note))


def output_error(qdq: ModelProto, floats: ModelProto, feeds: Sequence[Feeds]) -> float:
    """Return the outputs' root mean square error over their own root mean square, mean over the outputs."""
    names = [value.name for value in floats.graph.output]
    sessions = [open_at(graph, names, threads=0) for graph in (qdq, floats)]
    chunks = [[run_few(session, names, chunk) for chunk in feeds] for session in sessions]
    found, exact = ([np.concatenate(parts) for parts in zip(*outputs, strict=True)] for outputs in chunks)
    return float(np.mean([relative_error(one, other) for one, other in zip(found, exact, strict=True)]))
