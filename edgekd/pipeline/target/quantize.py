"""Stage quantize: the network in every precision and by every quantizer of the target, each run on this host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from edgekd.compress import quantize
from edgekd.compress.quantize import DEPLOY, Candidate
from edgekd.config.target import load_calibration
from edgekd.errors import ModelError
from edgekd.pipeline.target.context import OUTPUTS, Context, LedgerStep, PreparedCandidate
from edgekd.pipeline.target.outputs import probe_variants, run_on_host
from edgekd.stages.artifacts import CALIBRATION, TEST, onnx_name
from edgekd.stages.stage import library_versions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.config.target import Calibration
    from edgekd.pipeline.source import Tuned
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done


@dataclass(frozen=True)
class QuantizedCandidates:
    """The candidates' graphs lie in folders of their names, each with what ONNX Runtime made of it on this host.

    Attributes:
        candidates: in the target's order of preference.
        deploy_logit_error: for each candidate the largest |difference| of a logit between its two variants.
        refused: for each way in which the network could not be written, why not.
    """

    candidates: tuple[Candidate, ...]
    deploy_logit_error: dict[str, float]
    refused: dict[str, str]


def write(context: Context) -> tuple[list[PreparedCandidate], dict[str, str]]:
    """Write every candidate of the target; return them, and why others were left out."""
    ways = quantize.candidate_specs(context.target, context.recipe.quantize.precision)
    calibration = load_calibration(context.recipe.quantize.calibration)
    written = _quantize(context, ways, context.exported, context.origin.network, calibration, "")
    offers = []
    for candidate in written.result.candidates:
        way = next(way for way in ways if way.name == candidate.name)
        step = LedgerStep("quantized" if way.quantizer else "exported", "", written.folder / way.name / OUTPUTS)
        offers.append(_offer(written, candidate, way, (step,)))
    return offers, written.result.refused


def write_again(context: Context, tuned: Tuned, broken: PreparedCandidate) -> PreparedCandidate:
    """Write the INT8 of a network that was tuned for it; ``broken`` is the INT8 of before.

    Each weight goes to its nearest level: those are the levels that it was tuned with.
    """
    nearest = msgspec.structs.replace(load_calibration(context.recipe.quantize.calibration), rounding="nearest")
    written = _quantize(context, [broken.way], tuned.exported, context.origin.network, nearest, "tuned")
    (candidate,) = written.result.candidates
    steps = (
        LedgerStep("qat", "tuned with fake quantization, in float", tuned.probe),
        LedgerStep("requantized", "", written.folder / candidate.name / OUTPUTS),
    )
    named = replace(candidate, name=f"{broken.name}-qat")
    offer = _offer(written, candidate, broken.way, (*broken.steps, *steps))
    return replace(offer, candidate=named, history=tuple(tuned.history))


def _offer(
    written: Done[QuantizedCandidates], candidate: Candidate, way: quantize.CandidateSpec, steps: tuple[LedgerStep, ...]
) -> PreparedCandidate:
    error = written.result.deploy_logit_error[candidate.name]
    return PreparedCandidate(candidate, way, written.folder / way.name, written.key, error, steps)


def _quantize(
    context: Context,
    ways: Sequence[quantize.CandidateSpec],
    exported: Done[Exported],
    network: str,
    calibration: Calibration,
    batch: str,
) -> Done[QuantizedCandidates]:
    samples, test = exported.folder / CALIBRATION, exported.folder / TEST

    def run(folder: Path, report: StageReporter) -> QuantizedCandidates:
        candidates, errors, refused = [], {}, {}
        for done, way in enumerate(ways, 1):
            place = folder / way.name
            try:
                candidate = quantize.run(
                    way, exported.folder / onnx_name(network), samples, context.target.scheme, calibration, folder
                )
                probe, errors[way.name] = probe_variants(
                    lambda name, place=place: run_on_host(place / name, test),  # type: ignore[misc]
                    test,
                    str(place),
                )
            except ModelError as error:
                refused[way.name] = leave_out(context, way.name, error, exported.folder, report)
                continue
            probe.save(place / OUTPUTS)
            candidates.append(candidate)
            report.advance(done, len(ways), way.name)
        return QuantizedCandidates(tuple(candidates), errors, refused)

    depends = {
        "ways": [way.name for way in ways],
        "scheme": msgspec.to_builtins(context.target.scheme),
        "calibration": msgspec.to_builtins(calibration),
        "exported": exported.key,
        "versions": library_versions({"onnx", "onnxruntime", *quantize.quantizer_packages(ways)}, "build"),
        "quantizers": quantize.quantizer_digests(ways),
    }
    return context.stage("quantize", batch, depends, QuantizedCandidates, run, _describe)


def leave_out(context: Context, name: str, error: ModelError, folder: Path, report: StageReporter) -> str:
    """Warn that a candidate is left out, and return why, without the path of a folder of the cache.

    Only a second way to a precision may be lacking: for a first one the error is raised again. Of a model that is
    brought float32 is enough, since it cannot be made anew for what a quantizer or a device refuses.
    """
    ways = quantize.candidate_specs(context.target, context.recipe.quantize.precision)
    first = {way.precision: way.name for way in reversed(ways)}
    enough = context.recipe.model is not None and "float32" in first
    if name in ({first["float32"]} if enough else first.values()):
        raise error
    reason = str(error).replace(f"{folder}/", "")
    report.warn(f"{name} is left out: {reason}")
    return reason


def _describe(written: QuantizedCandidates) -> str:
    return ", ".join(
        f"{c.name} {c.sizes[DEPLOY] / 1e3:.0f} kB"
        + (f" ({c.quantized_nodes}/{c.weight_nodes} layers)" if c.quantized_nodes else "")
        for c in written.candidates
    )
