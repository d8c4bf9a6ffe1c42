"""The order of a target's stages: write the candidates, evaluate and repair them, profile them, ship one of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from edgekd.compress.quantize import candidate_specs, has_pairs
from edgekd.devices.parallel import run_parallel
from edgekd.devices.ssh.device import SshDevice
from edgekd.errors import ModelError, TargetError
from edgekd.gram.gate import FINETUNED
from edgekd.pipeline.publish import BUNDLE, ENGINES, REJECTED, Files, files_below
from edgekd.pipeline.target.agree.stage import agree
from edgekd.pipeline.target.context import BUNDLED
from edgekd.pipeline.target.details import detail_shipped
from edgekd.pipeline.target.evaluate import Evaluation, evaluate
from edgekd.pipeline.target.judge import judge_shipped
from edgekd.pipeline.target.package import bundle, name_shipped, profile
from edgekd.pipeline.target.quantize import requantize, write_candidates
from edgekd.pipeline.target.repair.blame import blame_candidate
from edgekd.pipeline.target.repair.outlook import promising
from edgekd.pipeline.target.repair.stage import return_layers
from edgekd.pipeline.target.result import candidate_results, target_result
from edgekd.pipeline.target.robustness import measure_shipped
from edgekd.pipeline.target.select import choose
from edgekd.pipeline.target.verify import verify
from edgekd.report.results import GRAM, LATENCY, TargetResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.devices.refusals import Refusals
    from edgekd.gram.blame import Blame
    from edgekd.pipeline.target.context import Context, EvaluatedCandidate, PreparedCandidate
    from edgekd.pipeline.target.quantize import QuantizedCandidates


@dataclass(frozen=True)
class FinishedTarget:
    """A target all of whose stages are finished.

    Attributes:
        result: Its part of the report.
        shown: Files to show in the output, by folder.
        history: One entry for each epoch of the fine-tune for INT8; empty where there was none.
    """

    result: TargetResult
    shown: dict[str, Files]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class CheckedCandidates:
    """The candidates of a target after evaluation and repair.

    Attributes:
        candidates: The candidates that ran, each with its ledger.
        evaluations: The evaluations that they come from, in order.
        facts: Sentences for the user on how they came about.
    """

    candidates: tuple[EvaluatedCandidate, ...]
    evaluations: tuple[Evaluation, ...]
    facts: tuple[str, ...]


def check(context: Context) -> CheckedCandidates:
    """Write every candidate, run it where the device can, judge it, and repair what the gate rejects."""
    prepared, quantized = _write(context)
    first = evaluate(context, prepared)
    repairs, notes = _repair(context, first.candidates)
    evaluations = (first, *repairs)
    refused = {name: reason for evaluation in evaluations for name, reason in evaluation.refused.items()}
    left_out = (f"{name} was left out: {reason}" for name, reason in refused.items())
    candidates = tuple(candidate for evaluation in evaluations for candidate in evaluation.candidates)
    written = (f"{candidate.name}: {note}." for candidate in prepared for note in candidate.candidate.notes)
    told = (f"{name}: {text}." for evaluation in evaluations for name, text in evaluation.disagreements.items())
    return CheckedCandidates(candidates, evaluations, (*quantized.notes, *left_out, *written, *told, *notes))


def _write(context: Context) -> tuple[list[PreparedCandidate], QuantizedCandidates]:
    """Write the candidates that are worth their time; return them, and the result of the stage."""
    if context.origin.given:
        return write_candidates(context)
    specs, hopeless = promising(context, candidate_specs(context.target, context.recipe.quantize))
    prepared, quantized = write_candidates(context, specs)
    return prepared, replace(quantized, untried={**hopeless, **quantized.untried})


def build_target(context: Context) -> FinishedTarget:
    """Run or read every stage of the target."""
    context, agreement = agree(context)
    checked = check(context)
    profiled = profile(context, checked.candidates) if context.timed else None
    results = candidate_results(checked.candidates, profiled.result if profiled else None)
    releases, slack = context.limits.releases, context.recipe.quantize.slack
    choice = choose(results, context.target.budgets, slack, undecided_ships=releases("undecided"))
    chosen = next(candidate for candidate in checked.candidates if candidate.name == choice.name)
    shipped, notes = judge_shipped(context, chosen)
    details = detail_shipped(context, shipped)
    robustness = measure_shipped(context, shipped)
    bundled = bundle(context, shipped, profiled)
    verified = verify(context, bundled)
    result = target_result(
        context,
        shipped,
        choice,
        results=results,
        profiled=name_shipped(profiled.result, choice.name) if profiled else None,
        compiled=[evaluation.compiled for evaluation in checked.evaluations if evaluation.compiled],
        facts=(f"{agreement}.", *checked.facts, *notes),
    )
    folders = {
        BUNDLE if result.bundle else REJECTED: files_below(bundled.folder / BUNDLED),
        LATENCY: {path.name: path for path in sorted(profiled.folder.glob("*.npy"))} if profiled else {},
        GRAM: files_below(bundled.folder / GRAM),
        ENGINES: files_below(verified.folder / ENGINES) if verified else {},
    }
    histories = (list(candidate.prepared.history) for candidate in checked.candidates if candidate.prepared.history)
    result = replace(result, robustness=robustness, details=details.result.outputs)
    return FinishedTarget(result, folders, next(histories, []))


def build_targets(contexts: Mapping[str, Context], refusals: Refusals) -> dict[str, FinishedTarget]:
    """Run or read every stage of some targets, and return those that did not refuse, in their order.

    A target whose engines run on this host has it alone; boards work side by side.

    Args:
        contexts: What the stages of each target are given, by the target's name.
        refusals: Takes the targets that refuse.

    Raises:
        EdgekdError: All targets refused, or something failed that concerns them all.
    """
    boards: dict[SshDevice, list[str]] = {}
    finished: dict[str, FinishedTarget | None] = {}
    for name, context in contexts.items():
        if isinstance(context.device, SshDevice):
            boards.setdefault(context.device, []).append(name)
        else:
            finished[name] = refusals.attempt(name, partial(build_target, context))
    for names in boards.values():
        for name in names:  # computes on this host, where each is to have all cores
            refusals.attempt(name, partial(_write_ahead, contexts[name]))

    def build_on(names: list[str]) -> dict[str, FinishedTarget | None]:
        left = [name for name in names if name not in refusals.errors]
        return {name: refusals.attempt(name, partial(build_target, contexts[name])) for name in left}

    def stop() -> None:
        for board in boards:
            board.stop()

    jobs = {", ".join(names): partial(build_on, names) for names in boards.values()}
    for on_board in run_parallel(jobs, stop).values():
        finished |= on_board
    return {name: done for name in contexts if (done := finished.get(name))}


def _write_ahead(context: Context) -> None:
    _write(agree(context)[0])


def find_blame(context: Context) -> Blame:
    """Find out what breaks the INT8 that the target prefers.

    Raises:
        TargetError: the target, or the recipe, has no INT8.
        ModelError: the network could not be written in INT8.
    """
    if context.origin.given:
        raise ModelError("nothing to blame: the model is built as it is, and nothing of it was quantized here")
    if not any(has_pairs(spec) for spec in candidate_specs(context.target, context.recipe.quantize)):
        raise TargetError(
            f"target '{context.target.name}' is built without INT8 of Q/DQ pairs here, such as that of 'qdq': there is "
            "nothing to blame"
        )
    context, _ = agree(context)
    candidates, quantized = write_candidates(context)
    int8 = next((candidate for candidate in candidates if has_pairs(candidate.spec)), None)
    if int8 is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in quantized.refused.items())
        raise ModelError(f"nothing to blame: no INT8 could be written ({reasons})")
    return blame_candidate(context, int8).result


def _repair(context: Context, candidates: Sequence[EvaluatedCandidate]) -> tuple[list[Evaluation], list[str]]:
    """Repair the INT8 that the gate rejects; return the evaluations of what it was repaired to, and notes for the user.

    First the layers that hurt most go back to float, one by one, until the gate lets the network through. Where they
    are not enough, the network is fine-tuned with fake quantization and quantized again. A student that learned
    nothing, and a float network that is rejected itself, are no matter of INT8: then nothing is tuned.
    """
    mode = context.recipe.quantize.repair
    int8 = next((candidate for candidate in candidates if has_pairs(candidate.prepared.spec)), None)
    if int8 is None or mode == "off":
        return [], []
    if int8.ledger.verdict != "fail":
        return _improve(context, int8) if mode == "best" else ([], [])
    quick = None if context.recipe.quantize.mends else "quantize.effort is 'quick'"
    if reason := quick or _beyond_repair(int8):
        return [], [f"{int8.name} was not repaired: {reason}."]
    returned, ended = _return_layers(context, int8.prepared, "")
    notes = [f"{ended}."] if ended else []
    evaluations = _evaluate(context, returned, "repaired")
    if _passes(evaluations):
        return evaluations, notes
    student = context.origin.fine_tune_for_int8(context.target.scheme)
    if student is None:
        return evaluations, notes or [
            f"{int8.name} could not be repaired: a network imported from ONNX is not trained here."
        ]
    again = requantize(context, student, int8.prepared)
    evaluations += _evaluate(context, again, "qat")
    ran = evaluations[-1].candidates  # none where the device refuses it
    if ran and not _passes(evaluations) and not _float_fails(ran[0]):
        evaluations += _evaluate(context, _return_layers(context, again, "qat")[0], "qat repaired")
    passes = _passes(evaluations)
    return evaluations, [] if passes else [f"{int8.name} could not be repaired; every attempt is in the table."]


def _improve(context: Context, int8: EvaluatedCandidate) -> tuple[list[Evaluation], list[str]]:
    """Return to float what costs no time."""
    if not context.timed:
        return [], ["repair = 'best' needs a device to time on; INT8 was left as it is."]
    blamed = blame_candidate(context, int8.prepared)
    repaired, _ = return_layers(context, int8.prepared, blamed, "best")
    notes = [] if repaired else ["No layer of INT8 went back to float: none that helps is as fast there."]
    return _evaluate(context, repaired, "repaired"), notes


def _return_layers(
    context: Context, candidate: PreparedCandidate, label: str
) -> tuple[PreparedCandidate | None, str | None]:
    """Return layers to float until the gate lets the candidate through, as :func:`return_layers` does."""
    begin = time.monotonic()
    blamed = blame_candidate(context, candidate, label, thorough=context.recipe.quantize.effort == "best")
    return return_layers(context, candidate, blamed, "auto", label, time.monotonic() - begin)


def _evaluate(context: Context, candidate: PreparedCandidate | None, label: str) -> list[Evaluation]:
    return [evaluate(context, [candidate], label)] if candidate else []


def _passes(evaluations: Sequence[Evaluation]) -> bool:
    candidates = (candidate for evaluation in evaluations for candidate in evaluation.candidates)
    return any(candidate.ledger.verdict != "fail" for candidate in candidates)


def _beyond_repair(candidate: EvaluatedCandidate) -> str | None:
    """Explain why no change of INT8 can mend what the gate rejects; None where one might."""
    if any(answer.question == "learned" and answer.verdict == "fail" for answer in candidate.ledger.questions):
        return "the student learned nothing"
    return "the pruned network is rejected in float already" if _float_fails(candidate) else None


def _float_fails(candidate: EvaluatedCandidate) -> bool:
    """Whether the gate rejects the very network that was quantized: no return to float can mend that."""
    floats = [row for row in candidate.ledger.rows if row.stage in (FINETUNED, "qat")]
    return bool(floats) and floats[-1].verdict == "fail"
