"""Stage repair: return layers of an INT8 candidate to float."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec

from edgekd.compress.candidate import Candidate  # noqa: TC001  # msgspec reads the annotations of a result
from edgekd.compress.mixed_precision import ALL_HARM, repair_steps, spare_steps
from edgekd.compress.oracles.identity import RewriteError
from edgekd.compress.oracles.rounding_aside import require_same
from edgekd.compress.variants import write_variants
from edgekd.gram.nest import targets_of
from edgekd.gram.verdict import Verdict  # noqa: TC001  # msgspec reads the annotations of Repaired
from edgekd.pipeline.target.context import OUTPUTS, LedgerStep, PreparedCandidate
from edgekd.pipeline.target.examine import open_examiner, time_beside_int8
from edgekd.pipeline.target.outputs import probe_variants, run_on_host
from edgekd.runtime.session import open_arrays
from edgekd.stages.judging import keep_choosing_ledger
from edgekd.stages.stage import StageSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import onnx

    from edgekd.compress.mixed_precision import RepairStep
    from edgekd.compress.partial import Examiner
    from edgekd.compress.variants import CandidateSpec
    from edgekd.gram.blame import Blame, Suspect
    from edgekd.gram.probe import Probe
    from edgekd.pipeline.target.context import Context
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done


@dataclass(frozen=True)
class Repaired:
    """An INT8 candidate some of whose layers are float again.

    Each step's probe lies in ``<number>.npz``, the last step's graphs in a folder.

    Attributes:
        candidate: The candidate after the last step; None where there was nothing to return.
        deploy_logit_error: Largest |difference| of a logit between its two variants.
        notes: For each step what it returned to float.
        verdict: Verdict of the gate on this host after the last step.
    """

    candidate: Candidate | None
    deploy_logit_error: float
    notes: tuple[str, ...]
    verdict: Verdict


def _describe(repaired: Repaired) -> str:
    if repaired.candidate is None:
        return "no layer to return"
    return f"{len(repaired.notes)} layers to float, {repaired.verdict}"


REPAIR: StageSpec[Repaired] = StageSpec(
    "repair", 8, Repaired, (), "return layers of INT8 to float until the gate lets it through", _describe
)


def return_layers(
    context: Context,
    candidate: PreparedCandidate,
    blamed: Done[Blame],
    mode: Literal["auto", "best"],
    label: str = "",
) -> PreparedCandidate | None:
    """Return layers of a candidate to float.

    Args:
        context: The target.
        candidate: The INT8 candidate.
        blamed: What each of its layers does to the output, and costs.
        mode: "auto" returns layers until the gate lets the candidate through; "best" as far as that costs no time.
        label: What tells the stage from that of another candidate; "" for the first.

    Returns:
        The candidate after the last step; None where there was no layer to return.
    """
    suspects = blamed.result.suspects
    spec, name = candidate.spec, f"{candidate.name}-repaired"

    def run(folder: Path, report: StageReporter) -> Repaired:
        done = Repaired(None, candidate.deploy_logit_error, (), "fail")
        examiner = open_examiner(context, candidate)

        def judge(graph: onnx.ModelProto) -> Verdict:
            nonlocal done
            require_same(graph, examiner.floats, examiner.few)
            written = write_variants(graph, spec, context.target.scheme, folder / spec.name)
            probe, error = probe_variants(
                lambda variant: run_on_host(folder / spec.name / variant, context.validation), context.validation, name
            )
            for path in (folder / f"{len(done.notes)}.npz", folder / spec.name / OUTPUTS):
                probe.save(path)
            verdict = _judge(context, probe)
            done = Repaired(replace(written, name=name), error, done.notes, verdict)
            return verdict

        try:
            steps = (
                repair_steps(examiner, judge, suspects)
                if mode == "auto"
                else _judged(_free_steps(context, spec, examiner, suspects, folder, report), judge)
            )
            for number, step in enumerate(steps, 1):
                note = f"{step.name} to {context.target.scheme.rest}"
                done = replace(done, notes=(*done.notes, note))
                report.advance(number, len(blamed.result.layers), note)
        except RewriteError as error:
            report.warn(f"{name}: no further layer is returned to float: {error}")
        return done

    config = {
        **msgspec.to_builtins(context.recipe.gate),
        "mode": mode,
        "slack": context.recipe.quantize.slack if mode == "best" else 0,
        "seed": context.recipe.seed,
        "scheme": msgspec.to_builtins(context.target.scheme),
    }
    repaired = context.stage(REPAIR, label, config=config, inputs={"blamed": blamed.key}, run=run)
    return _prepared(candidate, repaired, f"{label} repair".lstrip())


def _prepared(candidate: PreparedCandidate, repaired: Done[Repaired], prefix: str) -> PreparedCandidate | None:
    """Return the repaired candidate with its rows of the ledger, whose names begin with ``prefix``."""
    result, spec = repaired.result, candidate.spec
    if result.candidate is None:
        return None
    steps = tuple(
        LedgerStep(f"{prefix} {number}", note, repaired.folder / f"{number - 1}.npz")
        for number, note in enumerate(result.notes, 1)
    )
    return PreparedCandidate(
        result.candidate,
        spec,
        repaired.folder / spec.name,
        repaired.key,
        result.deploy_logit_error,
        (*candidate.steps, *steps),
    )


def _judged(steps: Iterable[RepairStep], judge: Callable[[onnx.ModelProto], Verdict]) -> Iterator[RepairStep]:
    """Yield steps, each after it was judged."""
    for step in steps:
        judge(step.graph)
        yield step


def _free_steps(
    context: Context,
    spec: CandidateSpec,
    examiner: Examiner,
    suspects: Sequence[Suspect],
    folder: Path,
    report: StageReporter,
) -> list[RepairStep]:
    """Return the steps of a repair that cost no time, or no more than the recipe allows.

    Layers that are float side by side need no conversion between them, so what several cost together is measured, not
    added up; it costs time where the intervals of p50 are apart. Of the rows of steps that are cheap enough it is the
    one that leaves the least harm.
    """
    steps = list(spare_steps(examiner, suspects))
    named = {f"{number} layers to float": step for number, step in enumerate(steps, 1)}
    graphs = {name: partial(getattr, step, "graph") for name, step in named.items()}
    timed = time_beside_int8(context, spec, examiner, graphs, folder, report)
    allowed = 1 + context.recipe.quantize.slack
    cheap = [named[name] for name, (own, int8) in timed.items() if own.low_ms <= int8.high_ms * allowed]
    mending = [step for step in cheap if step.harm < ALL_HARM]
    if not mending:
        return []
    best = min(mending, key=lambda step: step.harm)
    return steps[: steps.index(best) + 1]


def _judge(context: Context, probe: Probe) -> Verdict:
    """Return the gate's verdict on this host after one step."""
    reference = context.origin.baselines[-1]
    probes = {reference: context.origin.probes("validation")[reference], "repaired": probe}
    with open_arrays(context.validation) as samples:
        targets, groups = targets_of(samples), samples.get("groups")
    return keep_choosing_ledger(probes, targets, groups, context.origin.metric, context.rules).verdict
