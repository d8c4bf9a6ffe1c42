"""Stages compile, engine and check: prove candidates' graphs, run them on the device, and judge them."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edgekd.compress.quantize import DEPLOY, ENGINE
from edgekd.devices.local import LocalDevice
from edgekd.devices.select import Absent
from edgekd.errors import ModelError
from edgekd.gram.gate import Ledger, LedgerRow, StageMetrics, keep_ledger
from edgekd.gram.probe import Probe
from edgekd.pipeline.target.context import OUTPUTS, Context, EvaluatedCandidate, PreparedCandidate
from edgekd.pipeline.target.outputs import probe_variants
from edgekd.pipeline.target.quantize import leave_out
from edgekd.runtime.backends.registry import PACKAGES
from edgekd.runtime.session import open_arrays
from edgekd.stages.stage import Done, library_versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgekd.config.target import Target
    from edgekd.stages.progress import StageReporter

LAYERS = "layers.json"


@dataclass(frozen=True)
class Compiled:
    """Engines that were built ahead of time; they and their layers lie in folders of the candidates' names.

    Attributes:
        library: which library built them, with its version.
        layers: for each candidate the number of layers of ``deploy``.
        sizes: for each candidate the bytes of ``deploy.plan``.
        messages: for each candidate what the library warned of.
    """

    library: str
    layers: dict[str, int]
    sizes: dict[str, int]
    messages: dict[str, list[str]]


@dataclass(frozen=True)
class DeviceOutputs:
    """The candidates ran on the device; their outputs lie in folders of their names.

    Attributes:
        deploy_logit_error: for each candidate the largest |difference| of a logit between its two variants.
        refused: for each candidate that the device could not run, why not.
    """

    deploy_logit_error: dict[str, float]
    refused: dict[str, str]


@dataclass(frozen=True)
class CheckedLedgers:
    """One ledger for each candidate."""

    ledgers: dict[str, Ledger]


@dataclass(frozen=True)
class Evaluation:
    """What became of some offers.

    Attributes:
        tried: those that the device could run.
        compiled: what was built ahead of time, if the target has that.
        refused: for each offer that the device could not run, why not.
    """

    tried: tuple[EvaluatedCandidate, ...]
    compiled: Compiled | None
    refused: dict[str, str]


def compiles(target: Target) -> bool:
    """Whether engines are built ahead of time here: a mere proof is done without where the library cannot be had."""
    if target.compile is None:
        return False
    return target.compile.ship or (sys.platform, platform.machine()) == ("linux", "x86_64")


def attempt(context: Context, offers: Sequence[PreparedCandidate], batch: str = "") -> Evaluation:
    """Compile, run and judge some offers.

    Args:
        context: the target.
        offers: candidates that were written.
        batch: tells the stages from those of other offers, "" for the first.
    """
    compiled = _compile(context, offers, batch) if compiles(context.target) else None
    ran = None if isinstance(context.device, Absent) else _engine(context, offers, compiled, batch)
    running = [offer for offer in offers if ran is None or offer.name in ran.result.deploy_logit_error]
    checked = _check(context, running, ran, batch)
    keys = tuple(done.key for done in (compiled, ran) if done)
    tried = tuple(
        EvaluatedCandidate(
            offer,
            checked.result.ledgers[offer.name],
            _engine_file(context, offer, compiled, DEPLOY),
            compiled.folder / offer.name / LAYERS if compiled else None,
            ran.folder / offer.name / OUTPUTS if ran else offer.folder / OUTPUTS,
            ran.result.deploy_logit_error[offer.name] if ran else offer.deploy_logit_error,
            (offer.key, *keys),
            checked.key,
        )
        for offer in running
    )
    return Evaluation(tried, compiled.result if compiled else None, ran.result.refused if ran else {})


def _engine_file(context: Context, offer: PreparedCandidate, compiled: Done[Compiled] | None, variant: str) -> Path:
    """Return the file that the runtime is given: an engine that was built ahead of time, or ONNX."""
    wanted = context.target.compile
    if compiled and wanted and wanted.ship:
        return (compiled.folder / offer.name / variant).with_suffix(".plan")
    return offer.folder / variant


def _compile(context: Context, offers: Sequence[PreparedCandidate], batch: str) -> Done[Compiled]:
    wanted = context.target.compile
    assert wanted is not None  # the caller has looked
    # A DLA is the board's: what is proved here is the graph.
    told = {name: value for name, value in context.target.options.items() if name != "dla"}
    options = {**told, "compute_capabilities": wanted.compute_capabilities}

    def run(folder: Path, report: StageReporter) -> Compiled:
        layers, sizes, messages, library = {}, {}, {}, ""
        jobs = [(offer, variant) for offer in offers for variant in (ENGINE, DEPLOY)]
        for done, (offer, variant) in enumerate(jobs, 1):
            place = folder / offer.name
            place.mkdir(exist_ok=True)
            plan = (place / variant).with_suffix(".plan")
            built = LocalDevice().compile(offer.folder / variant, plan, place / LAYERS, wanted.library, options)
            library, layers[offer.name], messages[offer.name] = built["library"], built["layers"], built["messages"]
            sizes[offer.name] = plan.stat().st_size
            report.advance(done, len(jobs), f"{offer.name}: {built['layers']} layers")
        return Compiled(library, layers, sizes, messages)

    depends = {
        "compile": msgspec.to_builtins(wanted),
        "options": options,
        "offers": _keys(offers),
        "versions": library_versions(PACKAGES[wanted.library], "build"),
    }
    return context.stage("compile", batch, depends, Compiled, run, _describe_compiled)


def _engine(
    context: Context, offers: Sequence[PreparedCandidate], compiled: Done[Compiled] | None, batch: str
) -> Done[DeviceOutputs]:
    device, threads = context.present, context.recipe.profile.threads

    def run(folder: Path, report: StageReporter) -> DeviceOutputs:
        errors, refused = {}, {}
        for done, offer in enumerate(offers, 1):
            place = folder / offer.name
            place.mkdir()

            def tell(note: str, before: int = done - 1, name: str = offer.name) -> None:
                report.advance(before, len(offers), f"{name}: {note}")

            def on_device(
                variant: str, offer: PreparedCandidate = offer, place: Path = place, tell: Any = tell
            ) -> Mapping[str, Any]:
                outputs = place / f"{variant}.npz"
                engine = _engine_file(context, offer, compiled, variant)
                device.evaluate(engine, context.runtime, context.test, outputs, threads, tell)
                with open_arrays(outputs) as arrays:
                    return {key: arrays[key] for key in arrays}

            try:
                probe, errors[offer.name] = probe_variants(on_device, context.test, str(place))
            except ModelError as error:
                refused[offer.name] = leave_out(context, offer.name, error, offer.folder.parent, report)
                continue
            probe.save(place / OUTPUTS)
            report.advance(done, len(offers), offer.name)
        return DeviceOutputs(errors, refused)

    depends = {
        **context.where(),
        "offers": _keys(offers),
        "compiled": compiled.key if compiled else None,
        "threads": threads,
    }
    return context.stage("engine", batch, depends, DeviceOutputs, run, _describe_ran)


def _check(
    context: Context, offers: Sequence[PreparedCandidate], ran: Done[DeviceOutputs] | None, batch: str
) -> Done[CheckedLedgers]:
    def run(_folder: Path, report: StageReporter) -> CheckedLedgers:
        with open_arrays(context.test) as test:
            labels, groups = test.get("labels"), test.get("groups")
        ledgers: dict[str, Ledger] = {}
        before = context.origin.probes()
        common: list[LedgerRow] = []
        for done, offer in enumerate(offers, 1):
            probes = {**before, **{step.stage: Probe.load(step.probe) for step in offer.steps}}
            if ran:
                probes["engine"] = Probe.load(ran.folder / offer.name / OUTPUTS)
            metrics = context.metrics(probes, labels)
            notes = {step.stage: step.note for step in offer.steps}
            ledger = keep_ledger(
                probes,
                StageMetrics(context.exported.result.facts.metric, metrics),
                groups,
                context.limits,
                context.bootstrap,
                common,
                notes,
            )
            common = [row for row in ledger.rows if row.stage in before]
            ledgers[offer.name] = ledger
            report.advance(done, len(offers), offer.name)
        return CheckedLedgers(ledgers)

    depends = {
        **msgspec.to_builtins(context.recipe.gate),
        "seed": context.recipe.seed,
        "offers": _keys(offers),
        "engine": ran.key if ran else None,
    }
    return context.stage("check", batch, depends, CheckedLedgers, run, _describe_checked)


def _keys(offers: Sequence[PreparedCandidate]) -> dict[str, str]:
    return {offer.name: offer.key for offer in offers}


def _describe_compiled(compiled: Compiled) -> str:
    counts = ", ".join(f"{name} {layers} layers" for name, layers in compiled.layers.items())
    return f"{compiled.library}: {counts}"


def _describe_ran(ran: DeviceOutputs) -> str:
    return ", ".join(f"{name} deploy within {error:.1g} of engine" for name, error in ran.deploy_logit_error.items())


def _describe_checked(checked: CheckedLedgers) -> str:
    told = []
    for name, ledger in checked.ledgers.items():
        drift = ledger.rows[-1].to_reference
        told.append(f"{name} {ledger.verdict}" + (f", drift ≤ {drift.bound:.4f}" if drift else ""))
    return "; ".join(told)
