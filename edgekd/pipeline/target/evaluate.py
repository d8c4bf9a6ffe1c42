"""Stages compile, evaluate and check: build candidates' engines ahead of time, run them on the device, judge them."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from edgekd.devices.base import Absent
from edgekd.devices.local import LocalDevice
from edgekd.errors import ModelError
from edgekd.gram.gate import DEVICE, Ledger, LedgerRow, keep_ledger
from edgekd.gram.probe import Probe
from edgekd.pipeline.target.context import (
    LAYERS,
    OUTPUTS,
    Context,
    EvaluatedCandidate,
    PreparedCandidate,
    require_one,
)
from edgekd.pipeline.target.outputs import probe_variants
from edgekd.runtime.backends.registry import find_backend
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import DEPLOY, PROBE_GRAPH
from edgekd.stages.stage import Done, StageSpec, library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgekd.config.target import Target
    from edgekd.files import JsonObject
    from edgekd.pipeline.target.outputs import Outputs
    from edgekd.stages.progress import StageReporter


@dataclass(frozen=True)
class Compiled:
    """Engines that were built ahead of time; they and their layers lie in folders of the candidates' names.

    Attributes:
        library: Name and version of the library that built them.
        layers: For each candidate the number of layers of ``deploy``.
        sizes: For each candidate the bytes of ``deploy.plan``.
        messages: For each candidate what the library warned of.
        refused: For each candidate that the library could not build, the reason.
    """

    library: str
    layers: dict[str, int]
    sizes: dict[str, int]
    messages: dict[str, list[str]]
    refused: dict[str, str]


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
    """The ledger of each candidate, by name."""

    ledgers: dict[str, Ledger]


@dataclass(frozen=True)
class Evaluation:
    """The candidates after evaluation, and those that were refused.

    Attributes:
        candidates: The candidates that the device could run.
        compiled: What was built ahead of time; None where the target has no such step.
        refused: For each candidate that the device could not run, the reason.
    """

    candidates: tuple[EvaluatedCandidate, ...]
    compiled: Compiled | None
    refused: dict[str, str]


def _describe_compiled(compiled: Compiled) -> str:
    counts = ", ".join(f"{name} {layers} layers" for name, layers in compiled.layers.items())
    return f"{compiled.library}: {counts}"


def _describe_outputs(outputs: DeviceOutputs) -> str:
    errors = outputs.deploy_logit_error.items()
    return ", ".join(f"{name} deploy within {error:.1g} of probe" for name, error in errors)


def _describe_ledgers(checked: CheckedLedgers) -> str:
    parts = []
    for name, ledger in checked.ledgers.items():
        drift = ledger.rows[-1].to_reference
        parts.append(f"{name} {ledger.verdict}" + (f", drift ≤ {drift.bound:.4f}" if drift else ""))
    return "; ".join(parts)


COMPILE: StageSpec[Compiled] = StageSpec(
    "compile", 4, Compiled, (), "parse and build each candidate with TensorRT-RTX on this host", _describe_compiled
)
EVALUATE: StageSpec[DeviceOutputs] = StageSpec(
    "evaluate", 7, DeviceOutputs, (), "run the candidates on the device and probe them", _describe_outputs
)
CHECK: StageSpec[CheckedLedgers] = StageSpec(
    "check", 5, CheckedLedgers, (), "keep each candidate's ledger and judge it", _describe_ledgers
)


def compiles(target: Target) -> bool:
    """Whether engines are built ahead of time here: a mere proof is done without where the library cannot be had."""
    if target.compile is None:
        return False
    return target.compile.ship or (sys.platform, platform.machine()) == ("linux", "x86_64")


def evaluate(context: Context, candidates: Sequence[PreparedCandidate], label: str = "") -> Evaluation:
    """Compile, run and judge some candidates.

    Args:
        context: The target.
        candidates: Candidates whose graphs are written.
        label: What tells these stages from those of other candidates; "" for the first.
    """
    compiled = _compile(context, candidates, label) if compiles(context.target) else None
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
    return Evaluation(evaluated, compiled.result if compiled else None, refused)


def _engine_file(context: Context, candidate: PreparedCandidate, compiled: Done[Compiled] | None, variant: str) -> Path:
    """Return the file that the runtime is given: an engine that was built ahead of time, or ONNX."""
    wanted = context.target.compile
    if compiled and wanted and wanted.ship:
        return (compiled.folder / candidate.name / variant).with_suffix(".plan")
    return candidate.folder / variant


def build_ahead(target: Target, graph: Path, plan: Path) -> JsonObject:
    """Build an engine of a graph as the target's ``[compile]`` says, with a description of its layers beside it.

    Raises:
        MissingDependency: The library is not installed.
        ModelError: The library refuses the graph, or would get it wrong.
        DeviceError: The library crashed or hung.
    """
    wanted = target.compile
    assert wanted is not None  # the caller has looked
    return LocalDevice().compile(graph, plan, plan.parent / LAYERS, wanted.library, _build_options(target))


def _build_options(target: Target) -> dict[str, object]:
    wanted = target.compile
    assert wanted is not None  # the caller has looked
    # A DLA is the board's: what is proved here is the graph.
    portable = {name: value for name, value in target.options.items() if name != "dla"}
    return {**portable, "compute_capabilities": wanted.compute_capabilities}


def _compile(context: Context, candidates: Sequence[PreparedCandidate], label: str) -> Done[Compiled]:
    wanted = context.target.compile
    assert wanted is not None  # the caller has looked

    def run(folder: Path, report: StageReporter) -> Compiled:
        layers: dict[str, int] = {}
        sizes: dict[str, int] = {}
        messages: dict[str, list[str]] = {}
        refused: dict[str, str] = {}
        library = ""
        for done, candidate in enumerate(candidates, 1):
            name, place = candidate.name, folder / candidate.name
            place.mkdir(exist_ok=True)
            try:
                built = [
                    build_ahead(context.target, candidate.folder / variant, (place / variant).with_suffix(".plan"))
                    for variant in (PROBE_GRAPH, DEPLOY)
                ][-1]
            except ModelError as error:
                refused[name] = context.leave_out(name, error, candidate.folder, report)
                continue
            library, layers[name], messages[name] = built["library"], built["layers"], built["messages"]
            sizes[name] = (place / DEPLOY).with_suffix(".plan").stat().st_size
            report.advance(done, len(candidates), f"{name}: {built['layers']} layers")
        if not label:
            require_one(layers, refused)
        return Compiled(library, layers, sizes, messages, refused)

    config = {
        "compile": msgspec.to_builtins(wanted),
        "options": _build_options(context.target),
        "versions": library_versions(find_backend(wanted.library).packages, "build"),
    }
    return context.stage(COMPILE, label, config=config, inputs={"candidates": _keys(candidates)}, run=run)


def _run_on_device(
    context: Context, candidates: Sequence[PreparedCandidate], compiled: Done[Compiled] | None, label: str
) -> Done[DeviceOutputs]:
    device, threads = context.present, context.recipe.profile.threads

    def outputs_of(candidate: PreparedCandidate, variant: str, folder: Path, notify: Callable[[str], None]) -> Outputs:
        outputs = folder / f"{variant}.npz"
        engine = _engine_file(context, candidate, compiled, variant)
        device.evaluate(engine, context.runtime, context.test, outputs, threads, notify)
        with open_arrays(outputs) as arrays:
            return {key: arrays[key] for key in arrays}

    def run(folder: Path, report: StageReporter) -> DeviceOutputs:
        errors, refused = {}, {}
        for done, candidate in enumerate(candidates, 1):
            name, place = candidate.name, folder / candidate.name
            place.mkdir()

            def notify(note: str, before: int = done - 1, name: str = name) -> None:
                report.advance(before, len(candidates), f"{name}: {note}")

            try:
                probe, errors[name] = probe_variants(
                    partial(outputs_of, candidate, folder=place, notify=notify), context.test, str(place)
                )
            except ModelError as error:
                refused[name] = context.leave_out(name, error, candidate.folder.parent, report)
                continue
            probe.save(place / OUTPUTS)
            report.advance(done, len(candidates), name)
        if not label:
            require_one(errors, refused)
        return DeviceOutputs(errors, refused)

    config = {**context.device_identity(), "threads": threads}
    inputs = {"candidates": _keys(candidates), "compiled": compiled.key if compiled else None}
    return context.stage(EVALUATE, label, config=config, inputs=inputs, run=run)


def _check(
    context: Context, candidates: Sequence[PreparedCandidate], ran: Done[DeviceOutputs] | None, label: str
) -> Done[CheckedLedgers]:
    def run(_folder: Path, report: StageReporter) -> CheckedLedgers:
        with open_arrays(context.test) as test:
            labels, groups = test.get("labels"), test.get("groups")
        ledgers: dict[str, Ledger] = {}
        before = context.origin.probes()
        common: list[LedgerRow] = []
        for done, candidate in enumerate(candidates, 1):
            probes = {**before, **{step.stage: Probe.load(step.probe) for step in candidate.steps}}
            if ran:
                probes[DEVICE] = Probe.load(ran.folder / candidate.name / OUTPUTS)
            ledger = keep_ledger(
                probes,
                context.metrics(probes, labels),
                context.rules,
                groups,
                common,
                {step.stage: step.note for step in candidate.steps},
            )
            common = [row for row in ledger.rows if row.stage in before]
            ledgers[candidate.name] = ledger
            report.advance(done, len(candidates), candidate.name)
        return CheckedLedgers(ledgers)

    config = {**msgspec.to_builtins(context.recipe.gate), "seed": context.recipe.seed}
    inputs = {"candidates": _keys(candidates), "evaluated": ran.key if ran else None}
    return context.stage(CHECK, label, config=config, inputs=inputs, run=run)


def _keys(candidates: Sequence[PreparedCandidate]) -> dict[str, str]:
    return {candidate.name: candidate.key for candidate in candidates}
