"""A bundle's reference samples, and the comparison of an engine's outputs with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import BundleError
from edgekd.gram.matrix import comparable, pair_cosines, within_cosines
from edgekd.gram.npz import INPUT_PREFIX, OUTPUT_PREFIX, answers_of, embeddings_of
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
        max_logit_error: The largest absolute difference of an output, of either variant.
        flips: The number of samples whose top-1 class differs, in either variant; None where no output is of classes.
        gram_drift: The mean absolute difference of the cosines between modalities, or within each where they do not
            compare.
        output_error: The root mean square of an output's differences over that of the output, of the worst output and
            variant.
        ok: Whether no class differs, every output is finite, and drift and output error are within
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
        outputs: The outputs of ``probe.onnx``: the network's answers [n, ...] and ``embedding.<modality>`` [n, D].
    """
    arrays = {INPUT_PREFIX + name: array for name, array in inputs.items()}
    arrays |= {OUTPUT_PREFIX + name: array for name, array in answers_of(outputs).items()}
    write_arrays(path, {"ids": ids, "gram": _cosines(outputs), **arrays})


def compare_reference(
    deploy: Mapping[str, Array],
    probe: Mapping[str, Array],
    reference: Mapping[str, Array],
    kinds: Mapping[str, str],
) -> Verification:
    """Compare outputs of both variants with the reference.

    Args:
        deploy: The outputs of ``deploy.onnx``: the network's answers [n, ...].
        probe: The outputs of ``probe.onnx``: the same and ``embedding.<modality>`` [n, D].
        reference: The arrays that :func:`write_reference` wrote.
        kinds: The name of each answer's kind.

    Raises:
        BundleError: the shapes differ, so that the reference is not this engine's.
    """
    gram = _cosines(probe)
    _check_shape("gram", gram, reference["gram"])
    errors, shares = [], []
    flipped = None
    for name, kind in kinds.items():
        expected = reference[OUTPUT_PREFIX + name]
        for variant in (deploy, probe):
            _check_shape(name, variant[name], expected)
        found = np.stack([deploy[name], probe[name]]).astype(np.float64)  # differences of integers may wrap round
        errors.append(np.abs(found - expected).max())
        shares.append(_relative_error(found, expected))
        if kind == "classes":
            differs = (found.argmax(-1) != expected.argmax(-1)).any(0)
            flipped = differs if flipped is None else flipped | differs
    error, share = float(np.max(errors)), float(np.max(shares))
    flips = None if flipped is None else int(flipped.sum())
    drift = float(np.abs(gram - reference["gram"]).mean())
    ok = not flips and bool(np.isfinite(error)) and drift <= MAX_GRAM_DRIFT and share <= MAX_OUTPUT_ERROR
    return Verification(len(gram), error, flips, drift, share, ok)


def _check_shape(name: str, found: Array, reference: Array) -> None:
    if found.shape != reference.shape:
        raise BundleError(f"{REFERENCE}: has {name} {reference.shape}, but the engine gives {found.shape}")


def _relative_error(found: Array, reference: Array) -> Array:
    """Return the largest relative error of some variants' output [V, n, ...]."""
    square = np.square(found - reference, dtype=np.float64).reshape(len(found), -1).mean(1).max()
    power = np.square(reference, dtype=np.float64).mean()
    error: Array = np.sqrt(square / max(power, np.finfo(np.float32).tiny))
    return error


def _cosines(outputs: Mapping[str, Array]) -> Array:
    """Return the cosines between modalities [n, P]; within each [n, M, n] where they do not compare."""
    embeddings = embeddings_of(outputs)
    cosines: Array = pair_cosines(embeddings) if comparable(embeddings) else within_cosines(embeddings)
    return cosines
