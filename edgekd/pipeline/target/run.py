"""The order of the second half, and what is reported of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.devices.base import Absent, Verifier
from edgekd.pipeline.publish import BUNDLE, ENGINES, REJECTED, Files, files_below
from edgekd.pipeline.target.evaluate import attempt, compiles
from edgekd.pipeline.target.package import BUNDLED, bundle, named, profile
from edgekd.pipeline.target.quantize import write
from edgekd.pipeline.target.repair import repair
from edgekd.pipeline.target.robustness import measure_shipped
from edgekd.pipeline.target.select import choose
from edgekd.pipeline.target.verify import verify
from edgekd.report.results import ENGINE, GRAM, LATENCY, CandidateResult, TargetResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.gram.gate import Ledger
    from edgekd.pipeline.target.context import Context, EvaluatedCandidate
    from edgekd.pipeline.target.evaluate import Evaluation
    from edgekd.runtime.measure.results import Profile


@dataclass(frozen=True)
class Shipped:
    """What to report of a target, and what to show in the output.

    Attributes:
        result: the report's.
        shown: files by folder.
        history: of the fine-tune for INT8, one entry an epoch; empty where there was none.
    """

    result: TargetResult
    shown: dict[str, Files]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class TargetCheck:
    """Every candidate with its ledger, and what the user should know of how they came about."""

    tried: tuple[EvaluatedCandidate, ...]
    trials: tuple[Evaluation, ...]
    facts: tuple[str, ...]


def stages(target: Target, device: Device | Absent, disturbed: bool) -> tuple[str, ...]:
    """Return the kinds of the stages that a target runs, in order; a repair adds its own where it has work to do.

    Args:
        target: the target.
        device: where its engines run.
        disturbed: whether what ships is measured with modalities dropped and noisy.
    """
    present = not isinstance(device, Absent)
    wanted = {
        "quantize": True,
        "compile": compiles(target),
        "engine": present,
        "check": True,
        "profile": not isinstance(device, Absent) and device.no_latency is None,
        "disturb": disturbed,
        "bundle": True,
        "verify": isinstance(device, Verifier),
    }
    return tuple(name for name, needed in wanted.items() if needed)


def check(context: Context) -> TargetCheck:
    """Write every candidate, run it where the device can, judge it, and repair what the gate rejects."""
    offers, refused = write(context)
    first = attempt(context, offers)
    more, told = repair(context, first.tried)
    trials = (first, *more)
    left_out = {**refused, **{name: reason for trial in trials for name, reason in trial.refused.items()}}
    facts = (*(f"{name} was left out: {reason}" for name, reason in left_out.items()), *told)
    return TargetCheck(tuple(one for trial in trials for one in trial.tried), trials, facts)


def ship(context: Context) -> Shipped:
    """Run or read every stage of the target."""
    checked = check(context)
    profiled = profile(context, checked.tried) if context.timed else None
    candidates = _results(checked.tried, profiled.result if profiled else None)
    choice = choose(candidates, context.target.budgets, context.recipe.quantize.slack)
    shipped = next(one for one in checked.tried if one.name == choice.name)
    disturbed = measure_shipped(context, shipped)
    bundled = bundle(context, shipped, profiled)
    verified = verify(context, bundled)
    ledger = shipped.ledger
    released = ledger.verdict != "fail"
    shown = BUNDLE if released else REJECTED
    result = TargetResult(
        target=context.target.name,
        device="no device" if isinstance(context.device, Absent) else context.device.name,
        runtime=context.target.runtime,
        precision=shipped.offer.candidate.precision,
        ledger=ledger,
        baselines=context.origin.baselines,
        profile=named(profiled.result, choice.name) if profiled else None,
        profile_reason=_no_latency(context, shown),
        sizes={**context.exported.result.sizes, ENGINE: shipped.engine.stat().st_size},
        bundle=f"{context.target.name}/{BUNDLE}" if released else None,
        budgets=context.target.budgets,
        deploy_logit_error=shipped.deploy_logit_error,
        candidates=candidates,
        chosen=choice.name,
        choice=choice.reason,
        facts=(*checked.facts, *_facts(context, checked.trials, choice.name, ledger)),
        robustness=disturbed,
    )
    raw = {path.name: path for path in sorted(profiled.folder.glob("*.npy"))} if profiled else {}
    history = next((list(one.offer.history) for one in checked.tried if one.offer.history), [])
    folders = {
        shown: files_below(bundled.folder / BUNDLED),
        LATENCY: raw,
        GRAM: files_below(bundled.folder / GRAM),
        ENGINES: files_below(verified.folder / ENGINES) if verified else {},
    }
    return Shipped(result, folders, history)


def _no_latency(context: Context, shown: str) -> str | None:
    """Say why no latency is measured, and what measures that of the bundle in the folder ``shown``."""
    device, target, threads = context.device, context.target, context.recipe.profile.threads
    if isinstance(device, Absent):
        runtime = f" --runtime {context.public_runtime}" if context.runtime.custom else ""
        wanted = f" --threads {threads}" if threads > 1 else ""
        return (
            f"not measured: no device ({device.reason}); with the bundle on one, run: "
            f"edgekd profile {target.name}/{shown}{runtime}{wanted}"
        )
    return device.no_latency


def _facts(context: Context, trials: Sequence[Evaluation], chosen: str, ledger: Ledger) -> tuple[str, ...]:
    facts = []
    wanted = context.target.compile
    compiled = next((t.compiled for t in trials if t.compiled and chosen in t.compiled.layers), None)
    if wanted and not compiled:
        facts.append("Not proved by NVIDIA's parser on this host: TensorRT-RTX is for Linux on x86-64.")
    if compiled and wanted:
        proof = "is a proof alone; the board builds its own from deploy.onnx, whose size is given"
        what = "ships" if wanted.ship else proof
        gpus = ", ".join(wanted.compute_capabilities)
        facts.append(
            f"{compiled.library} parsed and built {chosen} for {gpus} on this host "
            f"({compiled.layers[chosen]} layers); that engine {what}."
        )
        facts += [f"{compiled.library} said of {chosen}: {line}" for line in compiled.messages[chosen]]
    if isinstance(context.device, Absent):
        last = ledger.rows[-1].stage
        facts.append(f"No device ran the engine: '{last}' is the very same graph in ONNX Runtime on this host.")
    return tuple(facts)


def _results(tried: Sequence[EvaluatedCandidate], profiled: Profile | None) -> tuple[CandidateResult, ...]:
    """Join what is known of each candidate."""
    measured = {engine.name: engine for engine in profiled.engines} if profiled else {}
    results = []
    for one in tried:
        engine, last = measured.get(one.name), one.ledger.rows[-1]
        results.append(
            CandidateResult(
                name=one.name,
                precision=one.offer.candidate.precision,
                verdict=one.ledger.verdict,
                metric=last.metric,
                bound=last.to_reference.bound if last.to_reference else math.nan,
                flips=last.flips,
                p50=engine.latency.p50 if engine else None,
                size_bytes=one.engine.stat().st_size,
                peak_rss_bytes=engine.peak_rss_bytes if engine else None,
            )
        )
    return tuple(results)
