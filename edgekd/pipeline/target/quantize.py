"""Stage quantize: write the network in every precision and by every quantizer of the target, and run each here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from edgekd.compress import quantize
from edgekd.compress.variants import Candidate, CandidateSpec
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
        untried: For each candidate that was not written, since it cannot be faster than the float graph, the reason.
    """

    candidates: tuple[Candidate, ...]
    deploy_logit_error: dict[str, float]
    refused: dict[str, str]
    untried: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """A sentence on each candidate that is not there, those that were not tried for one reason together."""
        left_out = [f"{name} was left out: {reason}" for name, reason in self.refused.items()]
        reasons = dict.fromkeys(self.untried.values())
        alike = {reason: [name for name in self.untried if self.untried[name] == reason] for reason in reasons}
        return left_out + [f"Not tried: {' and '.join(names)}, since {reason}." for reason, names in alike.items()]


def _describe(written: QuantizedCandidates) -> str:
    return ", ".join(
        f"{c.name} {c.sizes[DEPLOY] / 1e3:.0f} kB"
        + (f" ({c.quantized_nodes}/{c.weight_nodes} layers)" if c.quantized_nodes else "")
        for c in written.candidates
    )


QUANTIZE: StageSpec[QuantizedCandidates] = StageSpec(
    "quantize", 13, QuantizedCandidates, ("onnx", "onnxruntime"), "write the candidates in INT8 and float", _describe
)


def write_candidates(
    context: Context, specs: Sequence[CandidateSpec] | None = None
) -> tuple[list[PreparedCandidate], QuantizedCandidates]:
    """Write the candidates, by default all of the target, that can be faster; return them, and the stage's result.

    A model that is built as it is is the only one.
    """
    if given := context.origin.given:
        spec = CandidateSpec(given.candidate.precision, None)
        step = LedgerStep(given.row, "", given.folder / OUTPUTS)
        error = given.deploy_logit_error
        prepared = PreparedCandidate(given.candidate, spec, given.folder, given.key, error, (step,))
        return [prepared], QuantizedCandidates((given.candidate,), {given.candidate.name: error}, {})
    specs = specs or quantize.candidate_specs(context.target, context.recipe.quantize)
    calibration = load_calibration(context.recipe.quantize.ranges_and_rounding)
    written = _quantize(context, specs, context.exported, calibration, "")
    candidates = []
    for candidate in written.result.candidates:
        spec = next(spec for spec in specs if spec.name == candidate.name)
        row = "quantized" if spec.quantizer else "exported"
        step = LedgerStep(row, "", written.folder / spec.name / OUTPUTS)
        candidates.append(_prepared(written, candidate, spec, (step,)))
    return candidates, written.result


def requantize(context: Context, student: QatStudent, rejected: PreparedCandidate) -> PreparedCandidate:
    """Write the INT8 of a network that was fine-tuned for it.

    Each weight goes to its nearest level: those are the levels that it was fine-tuned with.

    Args:
        context: The target.
        student: The fine-tuned network.
        rejected: The INT8 candidate of before, whose ledger the new one continues.
    """
    nearest = msgspec.structs.replace(load_calibration(context.recipe.quantize.ranges_and_rounding), rounding="nearest")
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


def _tell_layers(report: StageReporter, number: int, count: int, name: str, done: int, total: int) -> None:
    """Report the layers whose weights are chosen as a part of the candidates, of which this is the ``number``-th."""
    report.advance((number - 1) * total + done, count * total, f"{name}: weights of {done} of {total} layers")


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
    asked = bool(context.recipe.quantize.quantizers)

    def run(folder: Path, report: StageReporter) -> QuantizedCandidates:
        candidates, errors, refused = [], {}, {}
        untried = {} if asked else quantize.why_unsuitable(specs, model, samples)
        for done, spec in enumerate(specs, 1):
            if spec.name in untried:
                continue
            place = folder / spec.name
            try:
                tell = partial(_tell_layers, report, done, len(specs), spec.name)
                candidate = quantize.run(spec, model, samples, context.target.scheme, calibration, folder, tell)
                for note in candidate.notes:
                    report.warn(f"{spec.name}: {note}")
                probe, errors[spec.name] = probe_variants(
                    lambda name, steps, place=place: run_on_host(place / name, steps),  # type: ignore[misc]
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
        return QuantizedCandidates(tuple(candidates), errors, refused, untried)

    config = {
        "candidates": [spec.name for spec in specs],
        "asked": asked,
        "scheme": msgspec.to_builtins(context.target.scheme),
        "calibration": msgspec.to_builtins(calibration),
        "versions": library_versions(quantize.quantizer_packages(specs), "build"),
        "quantizers": quantize.quantizer_digests(specs),
    }
    return context.stage(QUANTIZE, label, config=config, inputs={"exported": exported.key}, run=run)
