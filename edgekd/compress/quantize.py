"""Write the network in every precision that a target has; INT8 as a QDQ graph in the target's scheme."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from edgekd.compress.activations.nearest import output_error, write_nearest
from edgekd.compress.activations.range_search import SAMPLES, shrink_ranges
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.graph import copy, save
from edgekd.compress.oracles import identity
from edgekd.compress.oracles.fp16_identity import require_same_in_half
from edgekd.compress.oracles.rounding_aside import require_same
from edgekd.compress.precision import count_quantized
from edgekd.compress.quantizers.integers import write_integers
from edgekd.compress.quantizers.levels import LARGEST
from edgekd.compress.quantizers.names import Names
from edgekd.compress.quantizers.prepare import open_samples, refusals
from edgekd.compress.quantizers.registry import find_quantizer
from edgekd.compress.quantizers.write import write_quantized
from edgekd.compress.rounding import reconstruct
from edgekd.compress.tables import require_same_rows
from edgekd.compress.variants import Candidate, CandidateSpec, has_half, write_variants
from edgekd.compress.work import measure_work
from edgekd.config.target import Calibration
from edgekd.errors import ModelError, TargetError
from edgekd.files import need, quiet, scratch_folder, sha256_file
from edgekd.plugins import is_plugin, source_file
from edgekd.stages.artifacts import PREPARED, PROBE_GRAPH, QDQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.compress.quantizers.quantizer import Quantizer
    from edgekd.config.recipe import QuantizeConfig
    from edgekd.config.target import Scheme, Target

#: Weights are reconstructed on as many samples as ``_BYTES`` hold, but on no fewer than ``_FEWEST``. Each of several
#: passes runs all of them; large samples take long, and have many positions each.
_BYTES, _FEWEST = 32_000_000, 128
#: Samples on which the chosen weights are held against the nearest ones.
_JUDGED = 64


def candidate_specs(target: Target, config: QuantizeConfig) -> tuple[CandidateSpec, ...]:
    """Return the candidates for a target, the preferred first.

    Args:
        target: The target, with its precisions and quantizers.
        config: The precision that the recipe asks for, "best" for all that the target has; and the quantizers, none for
            those of the target.

    Raises:
        TargetError: The target does not have the precision that was asked for, or a quantizer is named that there is
            not, or that writes operators which the target's engine library lacks.
    """
    precision, quantizers = config.precision, config.quantizers or target.quantizers
    if precision != "best" and precision not in target.precisions:
        raise TargetError(
            f"[quantize] precision = '{precision}': target '{target.name}' has {', '.join(target.precisions)} only"
        )
    for name in quantizers:
        _require_runtime(find_quantizer(name), target)
    wanted = target.precisions if precision == "best" else [precision]
    return tuple(
        CandidateSpec(kind, quantizer) for kind in wanted for quantizer in (quantizers if kind == "int8" else [None])
    )


def _require_runtime(quantizer: Quantizer, target: Target) -> None:
    if quantizer.runtimes and target.runtime not in quantizer.runtimes and not is_plugin(target.runtime):
        raise TargetError(
            f"quantizers: '{quantizer.name}' writes operators of {' and '.join(quantizer.runtimes)}; target "
            f"'{target.name}' runs engines in {target.runtime}"
        )


def has_pairs(spec: CandidateSpec) -> bool:
    """Whether a candidate has Q/DQ pairs, which are what blame, repair and fine-tuning for INT8 work on."""
    return spec.quantizer is not None and find_quantizer(spec.quantizer).pairs


def why_unsuitable(specs: Iterable[CandidateSpec], model: Path, samples: Path) -> dict[str, str]:
    """Return for each candidate that cannot be faster than the float graph the reason, by its name.

    Args:
        specs: The candidates.
        model: Float ONNX file.
        samples: File ``.npz`` of the calibration split, of which one sample is run.

    Raises:
        ModelError: The graph cannot be read, or run.
    """
    asked = [spec for spec in specs if spec.quantizer and not has_pairs(spec)]
    if not asked:
        return {}
    one = CalibrationSamples(samples, Calibration(description="", ranges="minmax", samples=1))
    with quiet(), refusals(model, "ONNX Runtime"):
        graph = need("onnx", "build").load(str(model))
        work = measure_work(graph, next(iter(one)))
    reasons = {spec.name: find_quantizer(str(spec.quantizer)).unsuitable(work) for spec in asked}
    return {name: reason for name, reason in reasons.items() if reason}


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
    tell: Callable[[int, int], None] | None = None,
) -> Candidate:
    """Write a candidate's graphs into a folder of its name; for INT8 also ``prepared.onnx`` and ``qdq.onnx``.

    Args:
        spec: The candidate's precision and quantizer.
        model: Float ONNX file with outputs ``logits`` and ``embedding.<modality>``.
        samples: File ``.npz`` of the calibration split.
        scheme: How the target wants INT8.
        calibration: How ranges and weights are chosen.
        folder: The folder in which the candidate's folder is made.
        tell: Is called with the number of layers whose weights are chosen, and the number of all.

    Raises:
        ModelError: The quantizer cannot take the graph, nothing in it could be quantized, or what is written is another
            network, its rounding left aside.
    """
    onnx = need("onnx", "build")
    chunks = open_samples(model, samples, calibration)
    if spec.quantizer and not has_pairs(spec):
        return _run_integers(spec, model, chunks, scheme, folder)
    if not spec.quantizer:
        graph = onnx.load(str(model))
        if spec.precision == "float16":
            Names(graph.graph).vacate()  # its conversion gives names too
        return _write_same(graph, spec, chunks, scheme, folder / spec.name)
    with scratch_folder(folder) as work, quiet():
        write = partial(write_quantized, find_quantizer(spec.quantizer))
        if calibration.rounding == "reconstruct":
            written = write_nearest(write, model, chunks, scheme, work)
        else:  # scales stay as they are, such as those that a network was fine-tuned with
            written = write(model, chunks, scheme, work)
        graph, floats = (onnx.load(str(path)) for path in (written.path, written.path.parent / PREPARED))
        if not count_quantized(graph)[0]:
            operators = ", ".join(scheme.operators)
            raise ModelError(f"{model}: nothing in it could be quantized; the scheme quantizes {operators}")
        graph = _improve(graph, floats, chunks, scheme, tell)
        require_same(graph, floats, list(chunks.fewer(identity.SAMPLES)))
        candidate = replace(_write_same(graph, spec, chunks, scheme, folder / spec.name), notes=written.notes)
    save(floats, folder / spec.name / PREPARED)
    save(graph, folder / spec.name / QDQ)
    return candidate


def _run_integers(
    spec: CandidateSpec, model: Path, samples: CalibrationSamples, scheme: Scheme, folder: Path
) -> Candidate:
    """Write a candidate of integer operators, which has no ranges and no roundings to choose."""
    one_by_one = samples.one_by_one()
    with scratch_folder(folder) as work, quiet():
        graph, notes = write_integers(find_quantizer(str(spec.quantizer)), model, samples, scheme, work)
        if not count_quantized(graph)[0]:
            raise ModelError(f"{model}: nothing in it could be quantized; {spec.name} is for stored matrices")
        return replace(_write_same(graph, spec, one_by_one, scheme, folder / spec.name), notes=notes)


def _write_same(
    graph: ModelProto, spec: CandidateSpec, samples: CalibrationSamples, scheme: Scheme, folder: Path
) -> Candidate:
    """Write both variants, and make sure that they are the network that the graph is."""
    candidate = write_variants(graph, spec, scheme, folder)
    few = list(samples.fewer(identity.SAMPLES))
    probe = need("onnx", "build").load(str(folder / PROBE_GRAPH))
    if has_half(spec, scheme):
        require_same_in_half(probe, graph, few)
    elif spec.quantizer:
        require_same_rows(probe, graph, few)
    return candidate


def _improve(
    graph: ModelProto,
    floats: ModelProto,
    samples: CalibrationSamples,
    scheme: Scheme,
    tell: Callable[[int, int], None] | None,
) -> ModelProto:
    """Return the graph with ranges and weights as the calibration says.

    Weights that reproduce each layer's output may be worse for the network's than the nearest ones, since errors of
    layers add up and cancel: then the nearest stay.
    """
    if samples.calibration.ranges == "gram":
        shrink_ranges(graph, floats, samples.fewer(SAMPLES))
    if samples.calibration.rounding == "reconstruct":
        nearest, few = copy(graph), list(samples.fewer(_JUDGED))
        many = samples.fewer(max(_FEWEST, _BYTES // samples.row_bytes))
        reconstruct(graph, floats, many, LARGEST[scheme.reduce_range], tell)
        return graph if output_error(graph, floats, few) <= output_error(nearest, floats, few) else nearest
    return graph
