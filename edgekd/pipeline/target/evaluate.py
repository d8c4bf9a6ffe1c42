"""Stages evaluate and check: run candidates on the device, and judge them, on the validation samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edgekd.devices.base import Absent
from edgekd.errors import ModelError
from edgekd.gram.gate import DEVICE, Ledger, LedgerRow
from edgekd.gram.nest import targets_of
from edgekd.gram.probe import Probe
from edgekd.pipeline.target.agreement import find_disagreement
from edgekd.pipeline.target.compile import compile_candidates, compiles
from edgekd.pipeline.target.context import (
    LAYERS,
    OUTPUTS,
    Context,
    EvaluatedCandidate,
    PreparedCandidate,
    require_one,
)
from edgekd.pipeline.target.outputs import probe_on_device
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import DEPLOY
from edgekd.stages.judging import keep_choosing_ledger
from edgekd.stages.stage import Done, StageSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.pipeline.target.compile import Compiled
    from edgekd.stages.progress import StageReporter


@dataclass(frozen=True)
class DeviceOutputs:
    """The candidates ran on the device; their outputs lie in folders of their names.

    Attributes:
        deploy_logit_error: For each candidate the largest |difference| of a logit between its two variants.
        refused: For each candidate that the device could not run, the reason.
    """

    deploy_logit_error: dict[str, float]
    refused: dict[str, str]


@dataclass(frozen=True)
class CheckedLedgers:
    """The ledger of each candidate, by name.

    Attributes:
        ledgers: The ledgers.
        disagreements: For each candidate whose engine computes something else than its graph says, a sentence on it.
    """

    ledgers: dict[str, Ledger]
    disagreements: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """The candidates after evaluation, and those that were refused.

    Attributes:
        candidates: The candidates that the device could run.
        compiled: What was built ahead of time; None where the target has no such step.
        refused: For each candidate that the device could not run, the reason.
        disagreements: For each candidate whose engine computes something else than its graph says, a sentence on it.
    """

    candidates: tuple[EvaluatedCandidate, ...]
    compiled: Compiled | None
    refused: dict[str, str]
    disagreements: dict[str, str]


def _describe_outputs(outputs: DeviceOutputs) -> str:
    errors = outputs.deploy_logit_error.items()
    return ", ".join(f"{name} deploy within {error:.1g} of probe" for name, error in errors)


def _describe_ledgers(checked: CheckedLedgers) -> str:
    parts = []
    for name, ledger in checked.ledgers.items():
        drift = ledger.rows[-1].to_reference
        parts.append(f"{name} {ledger.verdict}" + (f", drift ≤ {drift.bound:.4f}" if drift else ""))
    return "; ".join(parts)


EVALUATE: StageSpec[DeviceOutputs] = StageSpec(
    "evaluate", 9, DeviceOutputs, (), "run the candidates on the device and probe them", _describe_outputs
)
CHECK: StageSpec[CheckedLedgers] = StageSpec(
    "check", 13, CheckedLedgers, (), "keep each candidate's ledger and judge it", _describe_ledgers
)


def evaluate(context: Context, candidates: Sequence[PreparedCandidate], label: str = "") -> Evaluation:
    """Compile, run and judge some candidates.

    Args:
        context: The target.
        candidates: Candidates whose graphs are written.
        label: What tells these stages from those of other candidates; "" for the first.
    """
    compiled = compile_candidates(context, candidates, label) if compiles(context.target) else None
    built = [candidate for candidate in candidates if compiled is None or candidate.name in compiled.result.layers]
    ran = None if isinstance(context.device, Absent) else _run_on_device(context, built, compiled, label)
    running = [candidate for candidate in built if ran is None or candidate.name in ran.result.deploy_logit_error]
    checked = _check(context, running, ran, label)
    keys = tuple(done.key for done in (compiled, ran) if done)
    evaluated = tuple(
        EvaluatedCandidate(
            candidate,
            checked.result.ledgers[candidate.name],
            _engine_file(context, candidate, compiled, DEPLOY),
            compiled.folder / candidate.name / LAYERS if compiled else None,
            ran.folder / candidate.name / OUTPUTS if ran else candidate.folder / OUTPUTS,
            ran.result.deploy_logit_error[candidate.name] if ran else candidate.deploy_logit_error,
            (candidate.key, *keys),
            checked.key,
        )
        for candidate in running
    )
    refused = {name: reason for done in (compiled, ran) if done for name, reason in done.result.refused.items()}
    return Evaluation(evaluated, compiled.result if compiled else None, refused, checked.result.disagreements)


def _engine_file(context: Context, candidate: PreparedCandidate, compiled: Done[Compiled] | None, variant: str) -> Path:
    """Return the file that the runtime is given: an engine that was built ahead of time, or ONNX."""
    wanted = context.target.compile
    if compiled and wanted and wanted.ship:
        return (compiled.folder / candidate.name / variant).with_suffix(".plan")
    return candidate.folder / variant


def _run_on_device(
    context: Context, candidates: Sequence[PreparedCandidate], compiled: Done[Compiled] | None, label: str
) -> Done[DeviceOutputs]:
    def run(folder: Path, report: StageReporter) -> DeviceOutputs:
        errors, refused = {}, {}
        for done, candidate in enumerate(candidates, 1):
            name, place = candidate.name, folder / candidate.name
            place.mkdir()

            def notify(note: str, before: int = done - 1, name: str = name) -> None:
                report.advance(before, len(candidates), f"{name}: {note}")

            try:
                engine = partial(_engine_file, context, candidate, compiled)
                probe, errors[name] = probe_on_device(context, engine, context.validation, place, notify)
            except ModelError as error:
                refused[name] = context.leave_out(name, error, candidate.folder.parent, report)
                continue
            probe.save(place / OUTPUTS)
            report.advance(done, len(candidates), name)
        if not label:
            require_one(errors, refused)
        return DeviceOutputs(errors, refused)

    config = {**context.device_identity(), "threads": context.recipe.profile.threads}
    inputs = {"candidates": _keys(candidates), "compiled": compiled.key if compiled else None}
    return context.stage(EVALUATE, label, config=config, inputs=inputs, run=run)


def _check(
    context: Context, candidates: Sequence[PreparedCandidate], ran: Done[DeviceOutputs] | None, label: str
) -> Done[CheckedLedgers]:
    def run(_folder: Path, report: StageReporter) -> CheckedLedgers:
        with open_arrays(context.validation) as samples:
            targets, groups = targets_of(samples), samples.get("groups")
        ledgers: dict[str, Ledger] = {}
        disagreements: dict[str, str] = {}
        before = context.origin.probes("validation")
        common: list[LedgerRow] = []
        for done, candidate in enumerate(candidates, 1):
            probes = {**before, **{step.stage: Probe.load(step.probe) for step in candidate.steps}}
            if ran:
                probes[DEVICE] = Probe.load(ran.folder / candidate.name / OUTPUTS)
            ledger = keep_choosing_ledger(
                probes,
                targets,
                groups,
                context.origin.metric,
                context.rules,
                common,
                {step.stage: step.note for step in candidate.steps},
            )
            common = [row for row in ledger.rows if row.stage in before]
            ledgers[candidate.name] = ledger
            if disagreement := find_disagreement(context, candidate, probes.get(DEVICE)):
                report.warn(f"{candidate.name}: {disagreement}")
                disagreements[candidate.name] = disagreement
            report.advance(done, len(candidates), candidate.name)
        return CheckedLedgers(ledgers, disagreements)

    inputs = {"candidates": _keys(candidates), "evaluated": ran.key if ran else None}
    return context.stage(CHECK, label, config=context.gate_identity(), inputs=inputs, run=run)


def _keys(candidates: Sequence[PreparedCandidate]) -> dict[str, str]:
    return {candidate.name: candidate.key for candidate in candidates}
