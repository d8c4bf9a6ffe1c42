"""What blame and repair share: an INT8 candidate opened on calibration samples, and variants of it timed beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgekd.compress.partial import Examiner, SampleFacts, enough_samples
from edgekd.compress.qdq_map import list_layers
from edgekd.compress.quantizers.prepare import open_samples
from edgekd.compress.variants import write_variants
from edgekd.config.recipe import ProfileConfig
from edgekd.config.target import load_calibration
from edgekd.errors import ModelError
from edgekd.files import need, scratch_folder
from edgekd.gram.nest import known_rows, take_rows, targets_of
from edgekd.gram.output_kind import OutputKind
from edgekd.runtime.session import open_arrays
from edgekd.stages.artifacts import DEPLOY, PREPARED, QDQ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnx

    from edgekd.compress.variants import CandidateSpec
    from edgekd.pipeline.target.context import Context, PreparedCandidate
    from edgekd.runtime.measure.results import Quantile
    from edgekd.stages.progress import StageReporter

#: Engines that take turns in one run; inferences of each, and seconds for each, its opening included.
_SIDE_BY_SIDE = 8
_INFERENCES, _SECONDS = 500, 2.5


def open_examiner(context: Context, candidate: PreparedCandidate) -> Examiner:
    """Open an INT8 candidate on calibration samples: the gate's are not what a repair may look at."""
    onnx = need("onnx", "build")
    qdq, floats = (onnx.load(str(candidate.folder / name)) for name in (QDQ, PREPARED))
    calibration = load_calibration(context.recipe.quantize.ranges_and_rounding)
    enough = enough_samples(len(list_layers(floats)))
    few = msgspec.structs.replace(calibration, samples=min(calibration.samples, enough))
    samples = open_samples(candidate.folder / PREPARED, context.calibration, few)
    with open_arrays(context.calibration) as arrays:
        targets = targets_of(arrays)
        groups = arrays["groups"][samples.rows] if "groups" in arrays else None
    targets = None if targets is None else take_rows(targets, samples.rows)
    targets = None if targets is None or not known_rows(targets).any() else targets  # of these few
    metric = None if targets is None else context.origin.metric
    facts = context.exported.result.facts
    # What a step does to a state shows in the answers of later steps, which are not looked at here.
    kinds = {**facts.outputs, **{name: OutputKind("custom") for name in facts.states.values()}}
    judging = SampleFacts(targets, groups, metric, facts.higher_is_better, kinds)
    return Examiner(qdq, floats, samples, judging)


def time_beside_int8(
    context: Context,
    spec: CandidateSpec,
    examiner: Examiner,
    graphs: Mapping[str, Callable[[], onnx.ModelProto]],
    folder: Path,
    report: StageReporter,
) -> dict[str, tuple[Quantile, Quantile]]:
    """Time graphs in turns with the network that is INT8 throughout; return each p50, and that of INT8 beside it.

    Graphs that the device refuses are left out: it may take INT8 and no mixture of precisions.

    Args:
        context: The target.
        spec: In which precision and by which quantizer the candidate was written.
        examiner: The INT8 candidate.
        graphs: For each name a function that makes a QDQ graph.
        folder: Folder for temporary files.
        report: Receives progress.
    """
    scheme, names = context.target.scheme, list(graphs)
    timed: dict[str, tuple[Quantile, Quantile]] = {}
    with scratch_folder(folder) as work:
        write_variants(examiner.qdq, spec, scheme, work / "int8")
        whole = work / "int8" / DEPLOY
        for start in range(0, len(names), _SIDE_BY_SIDE):
            group = names[start : start + _SIDE_BY_SIDE]
            engines = {}
            for index, name in enumerate(group, start):
                write_variants(graphs[name](), spec, scheme, work / str(index))
                engines[name] = work / str(index) / DEPLOY
            timed |= _beside(context, whole, engines, work, report)
            report.advance(start + len(group), len(names), f"{group[-1]} timed")
    return timed


def _beside(
    context: Context,
    whole: Path,
    engines: Mapping[str, Path],
    work: Path,
    report: StageReporter,
) -> dict[str, tuple[Quantile, Quantile]]:
    """Time engines in turns with INT8; where the device refuses one of them, each by itself, without those refused."""
    try:
        int8, *others = time_engines(context, [whole, *engines.values()], work)
    except ModelError as error:
        if len(engines) == 1:
            (name,) = engines
            context.leave_out(f"the time of {name}", error, work, report)
            return {}
        alone = (_beside(context, whole, {name: path}, work, report) for name, path in engines.items())
        return {name: p50 for found in alone for name, p50 in found.items()}
    return {name: (own, int8) for name, own in zip(engines, others, strict=True)}


def time_engines(context: Context, engines: Sequence[Path], work: Path) -> list[Quantile]:
    """Return the p50 of some engines that take turns on the device, in one process each.

    Args:
        context: The target, which has a device to time on.
        engines: The engine files.
        work: An existing folder for temporary files.

    Raises:
        ModelError: The device refuses one of them.
    """
    config = ProfileConfig(
        threads=context.recipe.profile.threads, limit_s=_SECONDS * len(engines),
        iterations=_INFERENCES, warmup=20, cold_starts=1, compute=False, layers=False, energy_s=0,
    )  # fmt: skip
    numbered = {str(index): engine for index, engine in enumerate(engines)}  # names of files, not of layers
    measured = context.present.profile(numbered, context.runtime, context.test, work, config, lambda *_: None)
    by_number = {engine.name: engine.latency.p50 for engine in measured.engines}
    return [p50 for name in numbered if (p50 := by_number[name])]  # with as few as a profile has, there always is one
