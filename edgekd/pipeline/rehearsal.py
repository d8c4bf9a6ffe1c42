"""Stage rehearsal: take untrained networks and a few samples through every stage that trains, before any training.

The very stages of the build run, in a cache of their own that is removed in the end, so whatever one of them would
refuse after a night is refused now, in its own words. What a target's stages need of it is kept, without weights.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from edgekd.compress.quantize import candidate_specs, has_pairs
from edgekd.config.recipe import GateConfig, RobustnessConfig
from edgekd.errors import EdgekdError
from edgekd.files import scratch_folder, sha256_file
from edgekd.pipeline.preflight import Preflight, training_settings
from edgekd.pipeline.project import Project
from edgekd.pipeline.pruning import PRUNE
from edgekd.pipeline.rehearsed_origin import Rehearsed, rehearsed_probe
from edgekd.pipeline.trained_source import EXPORT, QAT, TrainingStages
from edgekd.stages.artifacts import CHANNELS, PROBE, UNTRAINED, Exported, onnx_name, validation_probe
from edgekd.stages.cache import RECORD, Cache
from edgekd.stages.progress import Silent
from edgekd.stages.stage import Done, Runner, StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Scheme, Target
    from edgekd.runtime.corruption import Robustness
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.trained import Trained
    from edgekd.training.task.loading import LoadedTask

#: Number of stages that are reported, at most.
_STEPS = 9

#: How much more an untrained network may differ from torch than a trained one: its answers may be small beside what
#: they are the sum of.
_SLACK = 100

#: The stages whose warnings concern the networks, and not what little an untrained one learned.
_TELLING = (PRUNE.name, QAT.name)


REHEARSAL: StageSpec[Rehearsed] = StageSpec(
    "rehearsal",
    1,
    Rehearsed,
    ("torch", "torch-pruning", "onnx", "onnxscript", "onnxruntime"),
    "take untrained networks and a few samples through every stage that trains",
)


def rehearse(
    runner: Runner, stages: TrainingStages, untrained: Done[Exported], targets: Iterable[Target]
) -> Done[Rehearsed]:
    """Take untrained networks through every stage that trains, or read that it was done.

    Args:
        runner: Runs the stage.
        stages: The stages that train.
        untrained: The export of the untrained student.
        targets: The targets of these stages' opset, for whose INT8 the student may be fine-tuned.

    Raises:
        EdgekdError: What a stage would refuse after others were trained.
    """
    recipe = stages.recipe
    schemes = _schemes(recipe, targets)

    known = stages.preflight().result.warnings

    def run(folder: Path, report: StageReporter) -> Rehearsed:
        with scratch_folder(folder) as scratch:
            observer = _RehearsalObserver(report, known)
            inner = _RehearsedStages(
                Runner(Cache(scratch), observer),
                _FewOf(stages.project, scratch),
                shorten(recipe),
                stages.opset,
                stages.export_label,
                untrained=untrained.folder,
            )
            with tried_before(observer):
                exported, robustness = inner.rehearse(folder, schemes)
            return Rehearsed(exported, robustness, tuple(observer.stages), tuple(observer.warnings))

    config = {
        **training_settings(recipe),
        "opset": stages.opset,
        "tolerance": recipe.export.tolerance,
        "cache_teacher": recipe.distill.cache_teacher,
        "robustness": recipe.robustness.measure,
        "schemes": [msgspec.to_builtins(scheme) for scheme in schemes],
        "weights": [sha256_file(path) for path in (stages.teacher_weights(), stages.student_weights()) if path],
    }
    inputs = {"task": stages.project.identity, "untrained": untrained.key}
    return runner(REHEARSAL, label=stages.export_label, config=config, inputs=inputs, run=run)


def shorten(recipe: Recipe) -> Recipe:
    """Return a recipe whose every training takes one step of a few samples; its gate's limits are nobody's."""
    short = {"epochs": 1, "accumulate": 1}
    quantize = recipe.quantize
    return replace(
        recipe,
        threads=1,
        workers=0,
        log="",
        teacher=replace(recipe.teacher, **short),
        distill=replace(recipe.distill, **short),
        prune=replace(recipe.prune, **short, steps=1, repair="off"),
        quantize=replace(quantize, qat=replace(quantize.qat, **short)),
        export=replace(recipe.export, tolerance=recipe.export.tolerance * _SLACK),
        gate=GateConfig(),
        robustness=RobustnessConfig(measure=recipe.robustness.measure),
    )


def _schemes(recipe: Recipe, targets: Iterable[Target]) -> list[Scheme]:
    """Return the schemes of INT8 for which the student may be fine-tuned, each once."""
    if recipe.quantize.repair == "off":
        return []
    found: list[Scheme] = []
    for target in targets:
        int8 = any(has_pairs(spec) for spec in candidate_specs(target, recipe.quantize))
        if int8 and target.scheme not in found:
            found.append(target.scheme)
    return found


class _FewOf(Project):
    """A few samples of a task.

    Args:
        whole: The task.
        folder: A folder for its files.
    """

    def __init__(self, whole: Project, folder: Path) -> None:
        super().__init__(whole.config, folder)
        self._whole = whole

    @cached_property
    def loaded(self) -> LoadedTask:
        """The loaded task."""
        from edgekd.training.preflight.few import few_task

        return few_task(self._whole.loaded)

    @cached_property
    def identity(self) -> str:
        """Digest of the task."""
        return self._whole.identity


@dataclass(frozen=True)
class _RehearsedStages(TrainingStages):
    """The stages that train, for a rehearsal.

    Attributes:
        untrained: Folder of the export of the untrained student, with a few samples.
    """

    untrained: Path = Path()

    def preflight(self) -> Done[Preflight]:
        """Return that the task is in order: the whole of it was checked."""
        return Done("", self.untrained, Preflight((), self.project.loaded.has_teacher))

    def rehearse(self, folder: Path, schemes: Iterable[Scheme]) -> tuple[Exported, Robustness | None]:
        """Run every stage, and leave in a folder what the stages of a target need."""
        origin = self.run()
        robustness = origin.robustness
        for scheme in schemes:
            self.qat(origin.teacher, origin.student, origin.pruned, scheme)
        shutil.copytree(origin.exported.folder, folder, dirs_exist_ok=True, ignore=lambda *_: [RECORD])
        for name, done in origin.trained.items():
            shutil.copyfile(done.folder / PROBE, folder / rehearsed_probe(name))
        if robustness:
            shutil.copyfile(robustness.folder / CHANNELS, folder / CHANNELS)
        return origin.exported.result, robustness.result if robustness else None

    def _export(self, teacher: Done[Trained] | None, student: Done[Trained], pruned: Done[Trained]) -> Done[Exported]:
        """Export the pruned student, and put the untrained one's graph, of the same network, in the student's place."""

        def run(folder: Path, report: StageReporter) -> Exported:
            from edgekd.training.distillation.ensemble import taps_of
            from edgekd.training.export import stage as export
            from edgekd.training.export.onnx import ExportNetwork
            from edgekd.training.loop.evaluate import probe

            models = {
                **({"teacher": self.load_teacher(teacher)} if teacher else {}),
                "student": self._load_student(student),
                "pruned": self._load_pruned(pruned.folder),
            }
            taps = {"teacher": taps_of(models["teacher"], self.taps.teacher)} if teacher else {}
            networks = {name: ExportNetwork(model, taps.get(name, self.taps.student)) for name, model in models.items()}
            task, own = self.project.loaded, {"pruned": networks["pruned"]}
            exported = export.run(task, own, self.recipe.export, self.opset, folder, report)
            for name, network in networks.items():
                probe(network.model, network.taps, task.splits["val"]).save(folder / validation_probe(name))
            shutil.copyfile(self.untrained / onnx_name(UNTRAINED), folder / onnx_name("student"))
            return exported

        return self._run(EXPORT, config={"opset": self.opset}, inputs={"pruned": pruned.key}, run=run)


class _RehearsalObserver(Silent):
    """Reports each stage of a rehearsal as a step of it.

    Args:
        report: The reporter of the rehearsal.
        known: What the preflight warned of already.

    Attributes:
        stages: Names of the stages that began.
        warnings: What they warned of, of the networks.
    """

    def __init__(self, report: StageReporter, known: Sequence[str]) -> None:
        self._report, self._known = report, known
        self.stages: list[str] = []
        self.warnings: list[str] = []

    def start(self, stage: str) -> None:
        """Report the stage as begun."""
        self._report.advance(len(self.stages), max(_STEPS, len(self.stages) + 1), stage)
        self.stages.append(stage)

    def warn(self, stage: str, message: str) -> None:
        """Keep a warning of the networks, and none of how little they learned."""
        if stage.partition(" ")[0] in _TELLING and message not in (*self._known, *self.warnings):
            self.warnings.append(message)
            self._report.warn(message)


@contextmanager
def tried_before(observer: _RehearsalObserver) -> Iterator[None]:
    """Say of an error in which stage it would have come up, had all before it been trained."""
    try:
        yield
    except EdgekdError as error:
        stage = observer.stages[-1] if observer.stages else "teacher"
        raise type(error)(f"stage '{stage}', tried before anything is trained: {error}") from error
