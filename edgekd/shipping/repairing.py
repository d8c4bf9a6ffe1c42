"""Stages blame and repair: find what breaks INT8, and mend it where the gate rejects it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekd.compress import quantize
from edgekd.compress.blame import blame
from edgekd.compress.examine import SAMPLES, Examiner, Judging
from edgekd.compress.quantize import DEPLOY, PREPARED, QDQ, Candidate
from edgekd.compress.repair import free_steps, repair_steps
from edgekd.compress.switches import undo
from edgekd.errors import ModelError, TargetError
from edgekd.evidence import probe_variants, run_on_host
from edgekd.files import need
from edgekd.gram.blame import Blame
from edgekd.gram.gate import Verdict, keep_ledger
from edgekd.learn.score import UNLABELLED
from edgekd.runtime.session import open_arrays
from edgekd.shipping.context import OUTPUTS, Context, Offer, Step, Tried
from edgekd.shipping.trying import Trial, attempt
from edgekd.shipping.writing import write, write_again
from edgekd.stages import Done, library_versions
from edgekd.target import load_calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.compress.quantize import Way
    from edgekd.gram.probe import Probe
    from edgekd.progress import StageReporter

#: Suspects whose time is measured, the worst first; engines that take turns in one run; inferences of each.
_TIMED, _SIDE_BY_SIDE = 24, 8
_FEWEST, _MOST, _TYPICAL_MS = 50, 500, 1000


@dataclass(frozen=True)
class Repaired:
    """What returning layers to float came to; each step's probe lies in ``<number>.npz``, the graphs in a folder.

    Attributes:
        candidate: the last step's; None where there was nothing to return.
        deploy_logit_error: of its two variants.
        notes: what each step returned.
        verdict: the gate's on this host, of the last step.
    """

    candidate: Candidate | None
    deploy_logit_error: float
    notes: tuple[str, ...]
    verdict: Verdict


def repair(context: Context, tried: Sequence[Tried]) -> tuple[list[Trial], list[str]]:
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
    trials: list[Trial] = []
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


def _improve(context: Context, plain: Tried) -> tuple[list[Trial], list[str]]:
    """Return to float what costs no time."""
    if not context.timed:
        return [], ["repair = 'best' needs a device to time on; INT8 was left as it is."]
    offer = _return_layers(context, plain.offer, "best", "")
    told = [] if offer else ["No layer of INT8 is as fast in float: none was returned."]
    return _attempt(context, offer, "repaired"), told


def _attempt(context: Context, offer: Offer | None, batch: str) -> list[Trial]:
    return [attempt(context, [offer], batch)] if offer else []


def _passes(trials: Sequence[Trial]) -> bool:
    return any(one.ledger.verdict != "fail" for trial in trials for one in trial.tried)


def _float_fails(tried: Tried) -> bool:
    """Whether the gate rejects the very network that was quantized: no return to float can mend that."""
    floats = [row for row in tried.ledger.rows if row.stage in ("tuned", "qat")]
    return bool(floats) and floats[-1].verdict == "fail"


def find_blame(context: Context) -> Blame:
    """Find out what breaks the INT8 that the target prefers.

    Raises:
        TargetError: the target, or the recipe, has no INT8.
        ModelError: the network could not be written in INT8.
    """
    if not any(way.quantizer for way in quantize.ways(context.target, context.recipe.quantize.precision)):
        raise TargetError(f"target '{context.target.name}' is built without INT8 here: there is nothing to blame")
    offers, refused = write(context)
    plain = next((offer for offer in offers if offer.way.quantizer), None)
    if plain is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ModelError(f"nothing to blame: no INT8 could be written ({reasons})")
    found: Blame = _blame(context, plain, "").result
    return found


def _blame(context: Context, offer: Offer, batch: str) -> Done[Blame]:
    def run(folder: Path, report: StageReporter) -> Blame:
        examiner = _examiner(context, offer)

        def time(found: Blame) -> dict[str, float]:
            return _times(context, offer.way, examiner, found, folder, report)

        def tell(done: int, total: int) -> None:
            report.advance(done, total, "parts quantized and undone alone")

        return blame(examiner, time if context.timed else None, tell)

    depends = {
        "offer": [offer.key, offer.name],
        "calibration": context.exported.key,
        "device": context.where() if context.timed else None,
        "threads": context.recipe.profile.threads,
        "versions": library_versions(["onnx", "onnxruntime", "numpy"], "build"),
    }
    return context.stage("blame", batch, depends, Blame, run, _describe_blame)


def _times(
    context: Context, way: Way, examiner: Examiner, found: Blame, folder: Path, report: StageReporter
) -> dict[str, float]:
    """Return for the worst suspects how much slower the network is where only they are float, in ms."""
    scheme = context.target.scheme
    worst = sorted(found.suspects, key=lambda suspect: -suspect.relief.value)[:_TIMED]
    times: dict[str, float] = {}
    with TemporaryDirectory(dir=folder) as temporary:
        work = Path(temporary)
        quantize.finish(examiner.qdq, way, scheme, work / "int8")
        whole = work / "int8" / DEPLOY
        iterations = _iterations(context, whole, work)
        for start in range(0, len(worst), _SIDE_BY_SIDE):
            group = worst[start : start + _SIDE_BY_SIDE]
            engines = {"int8": whole}
            for index, suspect in enumerate(group, start):
                place = work / str(index)
                quantize.finish(undo(examiner.qdq, examiner.floats, suspect.tensors), way, scheme, place)
                engines[suspect.name] = place / DEPLOY
            p50 = _p50(context, engines, iterations, work)
            times |= {suspect.name: p50[suspect.name] - p50["int8"] for suspect in group}
            report.advance(start + len(group), len(worst), f"{group[-1].name} timed")
    return times


def _iterations(context: Context, engine: Path, work: Path) -> int:
    p50 = _p50(context, {"int8": engine}, _FEWEST, work)["int8"]
    return int(np.clip(_TYPICAL_MS / p50, _FEWEST, _MOST))


def _p50(context: Context, engines: dict[str, Path], iterations: int, work: Path) -> dict[str, float]:
    config = msgspec.structs.replace(context.recipe.profile, iterations=iterations, warmup=20, cold_starts=1)
    numbered = {str(index): engine for index, engine in enumerate(engines.values())}  # names of files, not of layers
    measured = context.present.profile(numbered, context.runtime, context.test, work, config, lambda *_: None)
    medians = {one.name: float(np.median(np.load(work / one.raw_file))) / 1e6 for one in measured.engines}
    return dict(zip(engines, (medians[name] for name in numbered), strict=True))


def _return_layers(context: Context, offer: Offer, how: str, batch: str) -> Offer | None:
    """Return layers to float; None where there was none to return."""
    blamed = _blame(context, offer, batch)
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

        examiner = _examiner(context, offer)
        rejected = how == "auto"
        steps = repair_steps(examiner, judge, latency_ms) if rejected else free_steps(examiner, latency_ms)
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
        Step(f"{prefix} {number}", note, repaired.folder / f"{number - 1}.npz")
        for number, note in enumerate(found.notes, 1)
    )
    folder = repaired.folder / way.name
    return Offer(found.candidate, way, folder, repaired.key, found.deploy_logit_error, (*offer.steps, *steps))


def _judge(context: Context, found: Probe) -> Verdict:
    """Return what the gate says on this host of one step."""
    reference = context.origin.baselines[-1]
    probes = {reference: context.origin.probes()[reference], "repaired": found}
    with open_arrays(context.test) as test:
        labels, groups = test.get("labels"), test.get("groups")
    name = context.exported.result.facts.metric
    metrics = context.metrics(probes, labels)
    return keep_ledger(probes, metrics, name, groups, context.limits, context.bootstrap).verdict


def _examiner(context: Context, offer: Offer) -> Examiner:
    """Open an INT8 candidate on calibration samples: the gate's are not what a repair may look at."""
    onnx = need("onnx", "build")
    qdq, floats = (onnx.load(str(offer.folder / name)) for name in (QDQ, PREPARED))
    calibration = load_calibration(context.recipe.quantize.calibration)
    few = msgspec.structs.replace(calibration, samples=min(calibration.samples, SAMPLES))
    samples = quantize.open_samples(offer.folder / PREPARED, context.calibration, few)
    with open_arrays(context.calibration) as arrays:
        labels, groups = (arrays[key][samples.rows] if key in arrays else None for key in ("labels", "groups"))
    if labels is not None and (labels == UNLABELLED).all():
        labels = None
    metric = None if labels is None else context.origin.metric
    judging = Judging(labels, groups, metric, context.exported.result.facts.higher_is_better)
    return Examiner(qdq, floats, samples, judging)


def _describe_blame(found: Blame) -> str:
    worst = found.of("branch")[0] if found.of("branch") else None
    return f"drift {found.quantized.drift:.4f}" + (f", of which undoing {worst.name} relieves most" if worst else "")


def _describe_repaired(found: Repaired) -> str:
    if found.candidate is None:
        return "no layer to return"
    return f"{len(found.notes)} layers to float, {found.verdict}"
