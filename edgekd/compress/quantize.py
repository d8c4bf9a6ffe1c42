"""Write the network in every precision that a target has; INT8 as a QDQ graph in the target's scheme."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from edgekd.compress.graph import save
from edgekd.compress.oracles import identity
from edgekd.compress.oracles.fp16_identity import require_same_in_half
from edgekd.compress.oracles.rounding_aside import require_same
from edgekd.compress.precision import count_quantized
from edgekd.compress.quantizers.names import Names
from edgekd.compress.quantizers.prepare import open_samples
from edgekd.compress.quantizers.registry import find_quantizer
from edgekd.compress.quantizers.write import write_quantized
from edgekd.compress.range_search import SAMPLES, shrink_ranges
from edgekd.compress.rounding import reconstruct
from edgekd.compress.variants import CandidateSpec, has_half, write_variants
from edgekd.errors import ModelError, TargetError
from edgekd.files import need, quiet, scratch_folder, sha256_file
from edgekd.plugins import is_plugin, source_file
from edgekd.stages.artifacts import PREPARED, PROBE_GRAPH, QDQ

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.compress.candidate import Candidate
    from edgekd.compress.ranges import CalibrationSamples
    from edgekd.config.target import Calibration, Precision, Scheme, Target

#: Weights are reconstructed on as many samples as ``_BYTES`` hold, but on no fewer than ``_FEWEST``. Each of several
#: passes runs all of them; large samples take long, and have many positions each.
_BYTES, _FEWEST = 32_000_000, 128
#: The largest level of symmetric INT8 weights, by ``Scheme.reduce_range``.
_LARGEST = {True: 64, False: 127}


def candidate_specs(target: Target, precision: Literal["best"] | Precision) -> tuple[CandidateSpec, ...]:
    """Return the candidates for a target, the preferred first.

    Args:
        target: The target, with its precisions and quantizers.
        precision: The precision that the recipe asks for; "best" for all that the target has.

    Raises:
        TargetError: The target does not have the precision that was asked for, or it names a quantizer that there is
            not.
    """
    if precision != "best" and precision not in target.precisions:
        raise TargetError(
            f"[quantize] precision = '{precision}': target '{target.name}' has {', '.join(target.precisions)} only"
        )
    for name in target.quantizers:
        find_quantizer(name)
    wanted = target.precisions if precision == "best" else [precision]
    return tuple(
        CandidateSpec(kind, quantizer)
        for kind in wanted
        for quantizer in (target.quantizers if kind == "int8" else [None])
    )


def quantizer_packages(specs: Iterable[CandidateSpec]) -> list[str]:
    """Return the distributions whose versions decide what the candidates' quantizers write, each once."""
    names = dict.fromkeys(spec.quantizer for spec in specs if spec.quantizer)
    return sorted({package for name in names for package in find_quantizer(name).packages})


def quantizer_digests(specs: Iterable[CandidateSpec]) -> dict[str, str]:
    """Return the SHA-256 of the source of each of a user's own quantizers, by its name."""
    plugins = dict.fromkeys(spec.quantizer for spec in specs if spec.quantizer and is_plugin(spec.quantizer))
    sources = {name: source_file(name) for name in plugins}
    return {name: sha256_file(source) for name, source in sources.items() if source}


def run(
    spec: CandidateSpec,
    model: Path,
    samples: Path,
    scheme: Scheme,
    calibration: Calibration,
    folder: Path,
) -> Candidate:
    """Write a candidate's graphs into a folder of its name; for INT8 also ``prepared.onnx`` and ``qdq.onnx``.

    Args:
        spec: The candidate's precision and quantizer.
        model: Float ONNX file with outputs ``logits`` and ``embedding.<modality>``.
        samples: File ``.npz`` of the calibration split.
        scheme: How the target wants INT8.
        calibration: How ranges and weights are chosen.
        folder: The folder in which the candidate's folder is made.

    Raises:
        ModelError: The quantizer cannot take the graph, nothing in it could be quantized, or what is written is another
            network, its rounding left aside.
    """
    onnx = need("onnx", "build")
    chunks = open_samples(model, samples, calibration)
    if not spec.quantizer:
        graph = onnx.load(str(model))
        if spec.precision == "float16":
            Names(graph.graph).vacate()  # its conversion gives names too
        return _write_same(graph, spec, chunks, scheme, folder / spec.name)
    with scratch_folder(folder) as work, quiet():
        written = write_quantized(find_quantizer(spec.quantizer), model, chunks, scheme, work)
        graph, floats = onnx.load(str(written.path)), onnx.load(str(work / PREPARED))
        if not count_quantized(graph)[0]:
            operators = ", ".join(scheme.operators)
            raise ModelError(f"{model}: nothing in it could be quantized; the scheme quantizes {operators}")
        _improve(graph, floats, chunks, scheme)
        require_same(graph, floats, list(chunks.fewer(identity.SAMPLES)))
        candidate = replace(_write_same(graph, spec, chunks, scheme, folder / spec.name), notes=written.notes)
    save(floats, folder / spec.name / PREPARED)
    save(graph, folder / spec.name / QDQ)
    return candidate


def _write_same(
    graph: ModelProto, spec: CandidateSpec, samples: CalibrationSamples, scheme: Scheme, folder: Path
) -> Candidate:
    """Write both variants, and make sure that they are the network that the graph is."""
    candidate = write_variants(graph, spec, scheme, folder)
    if has_half(spec, scheme):
        half = need("onnx", "build").load(str(folder / PROBE_GRAPH))
        require_same_in_half(half, graph, list(samples.fewer(identity.SAMPLES)))
    return candidate


def _improve(graph: ModelProto, floats: ModelProto, samples: CalibrationSamples, scheme: Scheme) -> None:
    """Choose ranges and weights as the calibration says, in place."""
    if samples.calibration.ranges == "gram":
        shrink_ranges(graph, floats, samples.fewer(SAMPLES))
    if samples.calibration.rounding == "reconstruct":
        few = samples.fewer(max(_FEWEST, _BYTES // samples.row_bytes))
        reconstruct(graph, floats, few, _LARGEST[scheme.reduce_range])
