"""Stage judge: hold what ships against the test split, which nothing has been chosen by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekd.devices.base import Absent
from edgekd.gram.gate import DEVICE, Ledger, keep_ledger, rejected_before
from edgekd.gram.nest import targets_of
from edgekd.gram.probe import Probe
from edgekd.pipeline.target.context import OUTPUTS
from edgekd.pipeline.target.missing import measure_missing
from edgekd.pipeline.target.outputs import probe_on_device, probe_variants, run_on_host
from edgekd.runtime.session import open_arrays
from edgekd.stages.judging import measure_metrics
from edgekd.stages.stage import StageSpec

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.pipeline.target.context import Context, EvaluatedCandidate
    from edgekd.stages.progress import StageReporter


@dataclass(frozen=True)
class Judged:
    """What ships was judged on the test samples; the outputs for them lie in the stage's folder.

    Attributes:
        ledger: The same probe after every step that matters, and the verdict.
        deploy_logit_error: Largest |difference| of a logit between the two variants, where they ran last.
    """

    ledger: Ledger
    deploy_logit_error: float


def _describe(judged: Judged) -> str:
    return f"{judged.ledger.verdict} on {judged.ledger.rows[-1].samples} samples"


JUDGE: StageSpec[Judged] = StageSpec("judge", 7, Judged, (), "judge what ships on the test split", _describe)


def judge_shipped(context: Context, chosen: EvaluatedCandidate) -> tuple[EvaluatedCandidate, tuple[str, ...]]:
    """Run the candidate that was chosen on the test samples and judge it; one that was rejected before stays so.

    Args:
        context: The target.
        chosen: The candidate, judged on the validation samples.

    Returns:
        The candidate, judged on the test samples, and sentences for the user on what was not measured.
    """
    absent = measure_missing(context, chosen.prepared, context.test)

    def run(folder: Path, report: StageReporter) -> Judged:
        with open_arrays(context.test) as test:
            targets, groups = targets_of(test), test.get("groups")
        known = {step.stage: step.test_probe for step in chosen.prepared.steps}
        probes = {
            **context.origin.probes("test"),
            **{stage: Probe.load(path) for stage, path in known.items() if path is not None},
        }
        last = chosen.prepared.steps[-1].stage
        probe, error = probe_variants(
            lambda variant, steps: run_on_host(chosen.prepared.folder / variant, steps), context.test, chosen.name
        )
        probes[last] = probe
        if not isinstance(context.device, Absent):
            report.advance(1, 2, f"{chosen.name} on this host")
            probe, error = probe_on_device(
                context, chosen.engine_of, context.test, folder, lambda note: report.advance(1, 2, note)
            )
            probes[DEVICE] = probe
        probe.save(folder / OUTPUTS)
        metrics = measure_metrics(probes, targets, groups, context.origin.metric, context.rules)
        notes = {step.stage: step.note for step in chosen.prepared.steps}
        ledger = keep_ledger(probes, metrics, context.rules, groups, notes=notes, missing=absent.result.changed)
        if chosen.ledger.verdict == "fail":
            ledger = rejected_before(ledger, chosen.ledger)
        return Judged(ledger, error)

    config = {
        **context.gate_identity(),
        "device": None if isinstance(context.device, Absent) else context.device_identity(),
        "threads": context.recipe.profile.threads,
    }
    inputs = {"chosen": [*chosen.keys, chosen.check_key, chosen.name], "missing": absent.key}
    judged = context.stage(JUDGE, config=config, inputs=inputs, run=run)
    shipped = replace(
        chosen,
        ledger=judged.result.ledger,
        outputs=judged.folder / OUTPUTS,
        deploy_logit_error=judged.result.deploy_logit_error,
        keys=(*chosen.keys, judged.key),
    )
    return shipped, absent.result.notes
