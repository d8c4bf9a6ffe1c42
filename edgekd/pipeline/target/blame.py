"""Stage blame: find what breaks an INT8 candidate, and what each part of it costs in float."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekd.compress import quantize
from edgekd.compress.blame import blame
from edgekd.compress.partial import SAMPLES, Examiner, SampleFacts
from edgekd.compress.quantize import DEPLOY, QDQ
from edgekd.compress.quantizers.prepare import PREPARED
from edgekd.compress.switchboard import restore_float
from edgekd.config.recipe import ProfileConfig
from edgekd.config.target import load_calibration
from edgekd.errors import ModelError, TargetError
from edgekd.files import need
from edgekd.gram.blame import Blame
from edgekd.pipeline.target.quantize import write
from edgekd.runtime.session import open_arrays
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.stage import Done, library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.compress.quantize import CandidateSpec
    from edgekd.pipeline.target.context import Context, PreparedCandidate
    from edgekd.runtime.measure.results import Quantile
    from edgekd.stages.progress import StageReporter

#: Suspects whose time is measured, the worst first; engines that take turns in one run; inferences of each.
_TIMED, _SIDE_BY_SIDE = 24, 8
_FEWEST, _MOST, _TYPICAL_MS = 50, 500, 1000


def find_blame(context: Context) -> Blame:
    """Find out what breaks the INT8 that the target prefers.

    Raises:
        TargetError: the target, or the recipe, has no INT8.
        ModelError: the network could not be written in INT8.
    """
    if not any(way.quantizer for way in quantize.candidate_specs(context.target, context.recipe.quantize.precision)):
        raise TargetError(f"target '{context.target.name}' is built without INT8 here: there is nothing to blame")
    offers, refused = write(context)
    plain = next((offer for offer in offers if offer.way.quantizer), None)
    if plain is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ModelError(f"nothing to blame: no INT8 could be written ({reasons})")
    found: Blame = blame_stage(context, plain, "").result
    return found


def blame_stage(context: Context, offer: PreparedCandidate, batch: str) -> Done[Blame]:
    """Run stage blame on an INT8 candidate; ``batch`` tells it from that of another."""

    def run(folder: Path, report: StageReporter) -> Blame:
        examiner = open_examiner(context, offer)

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
    context: Context, way: CandidateSpec, examiner: Examiner, found: Blame, folder: Path, report: StageReporter
) -> dict[str, float]:
    """Return for the worst suspects how much slower the network is where only they are float, in ms."""
    worst = sorted(found.suspects, key=lambda suspect: -suspect.relief.value)[:_TIMED]
    graphs = {s.name: partial(restore_float, examiner.qdq, examiner.floats, s.tensors) for s in worst}
    timed = time_beside_int8(context, way, examiner, graphs, folder, report)
    return {name: own.value_ms - int8.value_ms for name, (own, int8) in timed.items()}


def time_beside_int8(
    context: Context,
    way: CandidateSpec,
    examiner: Examiner,
    graphs: Mapping[str, Callable[[], Any]],
    folder: Path,
    report: StageReporter,
) -> dict[str, tuple[Quantile, Quantile]]:
    """Time graphs in turns with the network that is INT8 throughout; return each p50, and that of INT8 beside it."""
    scheme, names = context.target.scheme, list(graphs)
    timed: dict[str, tuple[Quantile, Quantile]] = {}
    with TemporaryDirectory(dir=folder) as temporary:
        work = Path(temporary)
        quantize.write_variants(examiner.qdq, way, scheme, work / "int8")
        whole = work / "int8" / DEPLOY
        iterations = _iterations(context, whole, work)
        for start in range(0, len(names), _SIDE_BY_SIDE):
            group = names[start : start + _SIDE_BY_SIDE]
            engines = [whole]
            for index, name in enumerate(group, start):
                quantize.write_variants(graphs[name](), way, scheme, work / str(index))
                engines.append(work / str(index) / DEPLOY)
            int8, *others = _p50(context, engines, iterations, work)
            timed |= {name: (own, int8) for name, own in zip(group, others, strict=True)}
            report.advance(start + len(group), len(names), f"{group[-1]} timed")
    return timed


def _iterations(context: Context, engine: Path, work: Path) -> int:
    (p50,) = _p50(context, [engine], _FEWEST, work)
    return int(np.clip(_TYPICAL_MS / p50.value_ms, _FEWEST, _MOST))


def _p50(context: Context, engines: Sequence[Path], iterations: int, work: Path) -> list[Quantile]:
    config = ProfileConfig(
        threads=context.recipe.profile.threads,
        iterations=iterations, warmup=20, cold_starts=1, compute=False, layers=False, energy_s=0,
    )  # fmt: skip
    numbered = {str(index): engine for index, engine in enumerate(engines)}  # names of files, not of layers
    measured = context.present.profile(numbered, context.runtime, context.test, work, config, lambda *_: None)
    found = {one.name: one.latency.p50 for one in measured.engines}
    return [p50 for name in numbered if (p50 := found[name])]  # of _FEWEST there always is one


def open_examiner(context: Context, offer: PreparedCandidate) -> Examiner:
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
    judging = SampleFacts(labels, groups, metric, context.exported.result.facts.higher_is_better)
    return Examiner(qdq, floats, samples, judging)


def _describe_blame(found: Blame) -> str:
    worst = found.of("branch")[0] if found.of("branch") else None
    return f"drift {found.quantized.drift:.4f}" + (f", of which undoing {worst.name} relieves most" if worst else "")
