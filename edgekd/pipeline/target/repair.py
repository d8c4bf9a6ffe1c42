"""Stage repair: return layers of INT8 to float, or tune it, where the gate rejects it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from edgekd.compress import quantize
from edgekd.compress.mixed_precision import ALL_HARM, repair_steps, spare_steps
from edgekd.gram.gate import StageMetrics, Verdict, keep_ledger
from edgekd.pipeline.target.blame import blame_stage, open_examiner, time_beside_int8
from edgekd.pipeline.target.context import OUTPUTS, Context, EvaluatedCandidate, LedgerStep, PreparedCandidate
from edgekd.pipeline.target.evaluate import Evaluation, attempt
from edgekd.pipeline.target.outputs import probe_variants, run_on_host
from edgekd.pipeline.target.quantize import write_again
from edgekd.runtime.session import open_arrays

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from edgekd.compress.mixed_precision import RepairStep
    from edgekd.compress.partial import Examiner
    from edgekd.compress.quantize import CandidateSpec
    from edgekd.gram.probe import Probe
    from edgekd.stages.progress import StageReporter


@dataclass(frozen=True)
class Repaired:
    """What returning layers to float came to; each step's probe lies in ``<number>.npz``, the graphs in a folder.

    Attributes:
        candidate: the last step's; None where there was nothing to return.
        deploy_logit_error: of its two variants.
        notes: what each step returned.
        verdict: the gate's on this host, of the last step.
    """

    candidate: quantize.Candidate | None
    deploy_logit_error: float
    notes: tuple[str, ...]
    verdict: Verdict


def repair(context: Context, tried: Sequence[EvaluatedCandidate]) -> tuple[list[Evaluation], list[str]]:
    """Mend the INT8 that the gate rejects; return what was tried, and what the user should know.

    First the layers that hurt most go back to float, one by one, until the gate lets the network through. Where half of
    them are not enough, or where the float network itself is rejected, it is tuned with fake quantization and quantized
    again.
    """
    how = context.recipe.quantize.repair
    plain = next((one for one in tried if one.offer.way.quantizer), None)
    if plain is None or how == "off":
        return [], []
    if plain.ledger.verdict != "fail":
        return _improve(context, plain) if how == "best" else ([], [])
    trials: list[Evaluation] = []
    if not _float_fails(plain):
        trials = _attempt(context, _return_layers(context, plain.offer, "auto", ""), "repaired")
        if _passes(trials):
            return trials, []
    tuned = context.origin.tune(context.target.scheme)
    if tuned is None:
        return trials, [f"{plain.name} could not be repaired: a network that is brought as ONNX is not trained here."]
    again = write_again(context, tuned, plain.offer)
    trials += _attempt(context, again, "tuned")
    ran = trials[-1].tried  # none where the device refuses it
    if ran and not _passes(trials) and not _float_fails(ran[0]):
        trials += _attempt(context, _return_layers(context, again, "auto", "tuned"), "tuned repaired")
    return trials, [] if _passes(trials) else [f"{plain.name} could not be repaired; every attempt is in the table."]


def _improve(context: Context, plain: EvaluatedCandidate) -> tuple[list[Evaluation], list[str]]:
    """Return to float what costs no time."""
    if not context.timed:
        return [], ["repair = 'best' needs a device to time on; INT8 was left as it is."]
    offer = _return_layers(context, plain.offer, "best", "")
    told = [] if offer else ["No layer of INT8 went back to float: none that helps is as fast there."]
    return _attempt(context, offer, "repaired"), told


def _attempt(context: Context, offer: PreparedCandidate | None, batch: str) -> list[Evaluation]:
    return [attempt(context, [offer], batch)] if offer else []


def _passes(trials: Sequence[Evaluation]) -> bool:
    return any(one.ledger.verdict != "fail" for trial in trials for one in trial.tried)


def _float_fails(tried: EvaluatedCandidate) -> bool:
    """Whether the gate rejects the very network that was quantized: no return to float can mend that."""
    floats = [row for row in tried.ledger.rows if row.stage in ("tuned", "qat")]
    return bool(floats) and floats[-1].verdict == "fail"


def _free_steps(
    context: Context,
    way: CandidateSpec,
    examiner: Examiner,
    latency_ms: Mapping[str, float],
    folder: Path,
    report: StageReporter,
) -> list[RepairStep]:
    """Return layers to float as far as that costs no time, or no more than the recipe allows.

    Layers that are float side by side need no conversion between them, so what several cost together is measured, not
    added up; it costs time where the intervals of p50 are apart. Of the rows of steps that are cheap enough it is the
    one that leaves the least harm.
    """
    steps = list(spare_steps(examiner, latency_ms))
    graphs = {f"{number} layers to float": partial(getattr, step, "graph") for number, step in enumerate(steps, 1)}
    timed = time_beside_int8(context, way, examiner, graphs, folder, report).values()
    allowed = 1 + context.recipe.quantize.slack
    cheap = [step for step, (own, int8) in zip(steps, timed, strict=True) if own.low_ms <= int8.high_ms * allowed]
    mending = [step for step in cheap if step.harm < ALL_HARM]
    if not mending:
        return []
    best = min(mending, key=lambda step: step.harm)
    return steps[: steps.index(best) + 1]


def _return_layers(context: Context, offer: PreparedCandidate, how: str, batch: str) -> PreparedCandidate | None:
    """Return layers to float; None where there was none to return."""
    blamed = blame_stage(context, offer, batch)
    latency_ms = {s.name: s.latency_ms for s in blamed.result.suspects if s.latency_ms is not None}
    way, name = offer.way, f"{offer.name}-repaired"

    def run(folder: Path, report: StageReporter) -> Repaired:
        done = Repaired(None, offer.deploy_logit_error, (), "fail")

        def judge(graph: Any) -> Verdict:
            nonlocal done
            candidate = quantize.finish(graph, way, context.target.scheme, folder / way.name)
            found, error = probe_variants(
                lambda variant: run_on_host(folder / way.name / variant, context.test), context.test, name
            )
            for path in (folder / f"{len(done.notes)}.npz", folder / way.name / OUTPUTS):
                found.save(path)
            verdict = _judge(context, found)
            done = Repaired(replace(candidate, name=name), error, done.notes, verdict)
            return verdict

        examiner = open_examiner(context, offer)
        rejected = how == "auto"
        steps: Iterable[RepairStep] = (
            repair_steps(examiner, judge, latency_ms)
            if rejected
            else _free_steps(context, way, examiner, latency_ms, folder, report)
        )
        for number, step in enumerate(steps, 1):
            if not rejected:
                judge(step.graph)
            note = f"{step.name} to {context.target.scheme.rest}"
            done = replace(done, notes=(*done.notes, note))
            report.advance(number, len(blamed.result.layers), note)
        return done

    depends = {
        **msgspec.to_builtins(context.recipe.gate),
        "how": how,
        "slack": context.recipe.quantize.slack if how == "best" else 0,
        "seed": context.recipe.seed,
        "blamed": blamed.key,
        "scheme": msgspec.to_builtins(context.target.scheme),
    }
    repaired = context.stage("repair", batch, depends, Repaired, run, _describe_repaired)
    found = repaired.result
    if found.candidate is None:
        return None
    prefix = "repair" if not batch else f"{batch} repair"
    steps = tuple(
        LedgerStep(f"{prefix} {number}", note, repaired.folder / f"{number - 1}.npz")
        for number, note in enumerate(found.notes, 1)
    )
    folder = repaired.folder / way.name
    return PreparedCandidate(
        found.candidate, way, folder, repaired.key, found.deploy_logit_error, (*offer.steps, *steps)
    )


def _judge(context: Context, found: Probe) -> Verdict:
    """Return what the gate says on this host of one step."""
    reference = context.origin.baselines[-1]
    probes = {reference: context.origin.probes()[reference], "repaired": found}
    with open_arrays(context.test) as test:
        labels, groups = test.get("labels"), test.get("groups")
    name = context.exported.result.facts.metric
    metrics = context.metrics(probes, labels)
    return keep_ledger(probes, StageMetrics(name, metrics), groups, context.limits, context.bootstrap).verdict


def _describe_repaired(found: Repaired) -> str:
    if found.candidate is None:
        return "no layer to return"
    return f"{len(found.notes)} layers to float, {found.verdict}"
