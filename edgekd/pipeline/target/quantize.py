"""Stage quantize: write the network in every precision and by every quantizer of the target, and run each here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from edgekd.compress import quantize
from edgekd.compress.candidate import Candidate  # noqa: TC001  # msgspec reads the annotations of a result
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.errors import ModelError
from edgekd.pipeline.target.context import OUTPUTS, Context, LedgerStep, PreparedCandidate, require_one
from edgekd.pipeline.target.outputs import probe_variants, run_on_host
from edgekd.stages.artifacts import CALIBRATION, DEPLOY, VALIDATION, onnx_name
from edgekd.stages.stage import StageSpec, library_versions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.config.target import Calibration
    from edgekd.pipeline.source import QatStudent
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done


@dataclass(frozen=True)
class QuantizedCandidates:
    """The candidates' graphs lie in folders of their names, each with its outputs in ONNX Runtime on this host.

    Attributes:
        candidates: The candidates in the target's order of preference.
        deploy_logit_error: For each candidate the largest |difference| of a logit between its two variants.
        refused: For each candidate that could not be written, the reason.
    """

    candidates: tuple[Candidate, ...]
    deploy_logit_error: dict[str, float]
    refused: dict[str, str]


def _describe(written: QuantizedCandidates) -> str:
    return ", ".join(
        f"{c.name} {c.sizes[DEPLOY] / 1e3:.0f} kB"
        + (f" ({c.quantized_nodes}/{c.weight_nodes} layers)" if c.quantized_nodes else "")
        for c in written.candidates
    )


QUANTIZE: StageSpec[QuantizedCandidates] = StageSpec(
    "quantize", 12, QuantizedCandidates, ("onnx", "onnxruntime"), "write the candidates in INT8 and float", _describe
)


def write_candidates(context: Context) -> tuple[list[PreparedCandidate], dict[str, str]]:
    """Write every candidate of the target; return them, and for each that was left out the reason.

    A model that is built as it is is the only one.
    """
    if given := context.origin.given:
        spec = CandidateSpec(given.candidate.precision, None)
        step = LedgerStep(given.row, "", given.folder / OUTPUTS)
        error = given.deploy_logit_error
        return [PreparedCandidate(given.candidate, spec, given.folder, given.key, error, (step,))], {}
    specs = quantize.candidate_specs(context.target, context.recipe.quantize.precision)
    calibration = load_calibration(context.recipe.quantize.calibration)
    written = _quantize(context, specs, context.exported, calibration, "")
    candidates = []
    for candidate in written.result.candidates:
        spec = next(spec for spec in specs if spec.name == candidate.name)
        row = "quantized" if spec.quantizer else "exported"
        step = LedgerStep(row, "", written.folder / spec.name / OUTPUTS)
        candidates.append(_prepared(written, candidate, spec, (step,)))
    return candidates, written.result.refused


def requantize(context: Context, student: QatStudent, rejected: PreparedCandidate) -> PreparedCandidate:
    """Write the INT8 of a network that was fine-tuned for it.

    Each weight goes to its nearest level: those are the levels that it was fine-tuned with.

    Args:
        context: The target.
        student: The fine-tuned network.
        rejected: The INT8 candidate of before, whose ledger the new one continues.
    """
    nearest = msgspec.structs.replace(load_calibration(context.recipe.quantize.calibration), rounding="nearest")
    written = _quantize(context, [rejected.spec], student.exported, nearest, "qat")
    (candidate,) = written.result.candidates
    steps = (
        LedgerStep(
            "qat",
            "fine-tuned with fake quantization, in float",
            student.probes["validation"],
            student.probes["test"],
        ),
        LedgerStep("requantized", "", written.folder / candidate.name / OUTPUTS),
    )
    prepared = _prepared(written, candidate, rejected.spec, (*rejected.steps, *steps))
    return replace(prepared, candidate=replace(candidate, name=f"{rejected.name}-qat"), history=tuple(student.history))


def _prepared(
    written: Done[QuantizedCandidates], candidate: Candidate, spec: CandidateSpec, steps: tuple[LedgerStep, ...]
) -> PreparedCandidate:
    error = written.result.deploy_logit_error[candidate.name]
    return PreparedCandidate(candidate, spec, written.folder / spec.name, written.key, error, steps)


def _quantize(
    context: Context, specs: Sequence[CandidateSpec], exported: Done[Exported], calibration: Calibration, label: str
) -> Done[QuantizedCandidates]:
    samples, validation = exported.folder / CALIBRATION, exported.folder / VALIDATION
    model = exported.folder / onnx_name(context.origin.network)

    def run(folder: Path, report: StageReporter) -> QuantizedCandidates:
        candidates, errors, refused = [], {}, {}
        for done, spec in enumerate(specs, 1):
            place = folder / spec.name
            try:
                candidate = quantize.run(spec, model, samples, context.target.scheme, calibration, folder)
                for note in candidate.notes:
                    report.warn(f"{spec.name}: {note}")
                probe, errors[spec.name] = probe_variants(
                    lambda name, place=place: run_on_host(place / name, validation),  # type: ignore[misc]
                    validation,
                    str(place),
                )
            except ModelError as error:
                refused[spec.name] = context.leave_out(spec.name, error, exported.folder, report)
                continue
            probe.save(place / OUTPUTS)
            candidates.append(candidate)
            report.advance(done, len(specs), spec.name)
        require_one(candidates, refused)
        return QuantizedCandidates(tuple(candidates), errors, refused)

    config = {
        "candidates": [spec.name for spec in specs],
        "scheme": msgspec.to_builtins(context.target.scheme),
        "calibration": msgspec.to_builtins(calibration),
        "versions": library_versions(quantize.quantizer_packages(specs), "build"),
        "quantizers": quantize.quantizer_digests(specs),
    }
    return context.stage(QUANTIZE, label, config=config, inputs={"exported": exported.key}, run=run)
