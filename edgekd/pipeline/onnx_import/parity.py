"""Compare what edgekd wrote of a model with the user's own file, on real samples."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.gram.npz import EMBEDDING_PREFIX
from edgekd.pipeline.onnx_import.file.single import has_half
from edgekd.pipeline.onnx_import.graph import keep_tensors
from edgekd.pipeline.onnx_import.inputs import input_specs, unbatched
from edgekd.pipeline.onnx_import.observe import observing
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import run_behind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.runtime.session import Array

#: Largest |written - user's| that is allowed, as a share of the output's largest magnitude.
_TOLERANCE = 1e-3

#: The same where the user's model rounds all that it computes to float16.
_HALF_TOLERANCE = 0.05

#: The most samples that are compared; two of them are, however long that takes, and no more after these seconds.
_COMPARED, _LIMIT_S = 8, 5.0


def compare(
    model: Path,
    written: Path,
    rest: Path | None,
    samples: NpzSamples,
    size: int = 1,
    constants: Mapping[str, Array] = MappingProxyType({}),
) -> float:
    """Return how far the written graph is from the user's file.

    Args:
        model: The user's file.
        written: The graph.
        rest: What takes the graph's outputs, where the user's outputs are its outputs; None where there is none.
        samples: Samples to run both with, one by one.
        size: The number of samples that the user's file takes at a time.
        constants: Inputs of the user's file that are constants of the written graph.

    Of outputs that have names of edgekd's, such as embeddings, nothing is known of the user's file.

    Returns:
        The largest |written - user's|, as a share of the output's largest magnitude.

    Raises:
        ModelError: An output is empty or not finite, or they disagree: edgekd has altered what the model computes.
    """
    original = need("onnx", "build").load(str(model))
    keep_tensors(original.graph)
    known = {name for node in original.graph.node for name in node.output if not name.startswith(EMBEDDING_PREFIX)}
    single = unbatched([spec for spec in input_specs(original, model) if spec.name not in constants], samples.inputs)
    tolerance = _HALF_TOLERANCE if has_half(original.graph) else _TOLERANCE
    largest, began = 0.0, time.monotonic()
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(written, fused=False, arena=False))
        behind = stack.enter_context(open_engine(rest, fused=False, arena=False)) if rest else None
        answers = {spec.name for spec in engine.outputs}
        names = [spec.name for session in (engine, behind) if session for spec in session.outputs if spec.name in known]
        exact = stack.enter_context(observing(original, names))
        for row in range(min(_COMPARED, len(samples.ids))):
            if row > 1 and time.monotonic() - began > _LIMIT_S:
                break
            feeds = samples.row(row)
            block = np.arange(row, row + size) % len(samples.ids)
            given = {name: np.asarray(x[row]) if name in single else x[block] for name, x in samples.inputs.items()}
            expected = {
                name: x[: len(x) // size] if size > 1 else x for name, x in exact.run({**given, **constants}).items()
            }
            found = {**feeds, **engine.run(feeds)}
            found |= run_behind(behind, found) if behind else {}
            for name, x in expected.items():
                if name in answers:
                    _require_numbers(f"{model}: its output '{name}'", x, samples.ids[row])
                where = f"{model}: its output '{name}'"
                largest = max(largest, _distance(where, x, found[name], samples.ids[row], tolerance))
    return largest


def _require_numbers(where: str, x: Array, sample: str) -> None:
    if np.isnan(x).any() or not np.isfinite(x).any():
        what = "is empty" if not x.size else "is not finite"
        raise ModelError(
            f"{where} {what} for the sample '{sample}', so there is nothing to compare; --output names those that "
            "matter"
        )


def _distance(where: str, expected: Array, written: Array, sample: str, tolerance: float) -> float:
    """Return the largest |written - expected| of one output for one sample, as a share of the largest magnitude.

    What is infinite, as a mask's scores are, must be so in both.
    """
    one, other = expected.astype(np.float64), written.astype(np.float64)
    if one.size != other.size:
        shapes = f"{list(one.shape)} for the sample '{sample}', but {list(other.shape)}"
        raise ModelError(f"{where} is {shapes} as edgekd wrote it")
    other = other.reshape(one.shape)
    finite = np.isfinite(one)
    differences = np.abs(other[finite] - one[finite])
    distance = float(differences.max(initial=0)) / max(float(np.abs(one[finite]).max(initial=0)), 1e-6)
    if not distance <= tolerance or not np.array_equal(other[~finite], one[~finite], equal_nan=True):
        raise ModelError(
            f"{where}, as edgekd wrote it, is another for the sample '{sample}': it differs by {distance:.2g} of its "
            "magnitude"
        )
    return distance
