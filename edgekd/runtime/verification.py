"""A bundle's reference samples, and the comparison of an engine's outputs with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import BundleError
from edgekd.gram.matrix import comparable, pair_cosines, within_cosines
from edgekd.gram.npz import EMBEDDING_PREFIX, INPUT_PREFIX
from edgekd.runtime.manifest import REFERENCE
from edgekd.runtime.session import Array, Feeds, write_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Largest mean difference of the pair cosines that verifies. The same engine on another processor differs by rounding
#: only, an order of magnitude less; INT8 that saturates differs by more.
MAX_GRAM_DRIFT = 0.005

#: Largest error of the outputs, as a share of their root mean square, that verifies: neither classes nor cosines see a
#: scale. Kernels of INT8 differ by a rounding step here and there, a few hundredths.
MAX_OUTPUT_ERROR = 0.2


@dataclass(frozen=True)
class Verification:
    """The difference between a bundle's outputs on this machine and those on the machine that built it.

    Attributes:
        samples: The number of reference samples.
        max_logit_error: The largest absolute difference of a logit, of either variant.
        flips: The number of samples whose top-1 class differs, in either variant; None where the engine names no
            classes.
        gram_drift: The mean absolute difference of the cosines between modalities, or within each where they do not
            compare.
        output_error: The root mean square of the logits' differences over that of the logits, of the worse variant.
        ok: Whether no class differs, every logit is finite, and drift and output error are within
            :data:`MAX_GRAM_DRIFT` and :data:`MAX_OUTPUT_ERROR`.
    """

    samples: int
    max_logit_error: float
    flips: int | None
    gram_drift: float
    output_error: float
    ok: bool


def write_reference(path: Path, ids: Array, inputs: Feeds, outputs: Mapping[str, Array]) -> None:
    """Write the samples with which a bundle verifies itself.

    Args:
        path: The ``.npz``.
        ids: The samples' names [n].
        inputs: The inputs by modality [n, ...]. Take samples that the engine is sure of: one on the edge between two
            classes may flip by rounding alone on another processor.
        outputs: The outputs of ``probe.onnx``: ``logits`` [n, C] and ``embedding.<modality>`` [n, D].
    """
    arrays = {INPUT_PREFIX + name: array for name, array in inputs.items()}
    write_arrays(path, {"ids": ids, "logits": outputs["logits"], "gram": _cosines(outputs), **arrays})


def compare_reference(
    deploy: Mapping[str, Array], probe: Mapping[str, Array], reference: Mapping[str, Array], classifies: bool
) -> Verification:
    """Compare outputs of both variants with the reference.

    Args:
        deploy: The outputs of ``deploy.onnx``: ``logits`` [n, C].
        probe: The outputs of ``probe.onnx``: ``logits`` [n, C] and ``embedding.<modality>`` [n, D].
        reference: The arrays that :func:`write_reference` wrote.
        classifies: Whether the logits are those of classes.

    Raises:
        BundleError: the shapes differ, so that the reference is not this engine's.
    """
    gram = _cosines(probe)
    for name, found in (("logits", deploy["logits"]), ("logits", probe["logits"]), ("gram", gram)):
        if found.shape != reference[name].shape:
            raise BundleError(f"{REFERENCE}: has {name} {reference[name].shape}, but the engine gives {found.shape}")
    logits = np.stack([deploy["logits"], probe["logits"]])
    error = float(np.abs(logits - reference["logits"]).max())
    flips = int((logits.argmax(-1) != reference["logits"].argmax(-1)).any(0).sum()) if classifies else None
    drift = float(np.abs(gram - reference["gram"]).mean())
    share = float(_relative_error(logits, reference["logits"]))
    ok = not flips and bool(np.isfinite(error)) and drift <= MAX_GRAM_DRIFT and share <= MAX_OUTPUT_ERROR
    return Verification(len(gram), error, flips, drift, share, ok)


def _relative_error(logits: Array, reference: Array) -> Array:
    """Return the largest relative error of some variants' logits [V, n, ...]."""
    square = np.square(logits - reference, dtype=np.float64).reshape(len(logits), -1).mean(1).max()
    power = np.square(reference, dtype=np.float64).mean()
    error: Array = np.sqrt(square / max(power, np.finfo(np.float32).tiny))
    return error


def _cosines(outputs: Mapping[str, Array]) -> Array:
    """Return the cosines between modalities [n, P]; within each [n, M, n] where they do not compare."""
    embeddings = {name: z for name, z in outputs.items() if name.startswith(EMBEDDING_PREFIX)}
    cosines: Array = pair_cosines(embeddings) if comparable(embeddings) else within_cosines(embeddings)
    return cosines
