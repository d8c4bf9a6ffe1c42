"""The stages that train: teacher, distil, prune, export. They import torch only where a stage must run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edgekd.config.recipe import without_teacher
from edgekd.errors import ModelError
from edgekd.files import sha256_file
from edgekd.gram.gate import CUT, FINETUNED
from edgekd.pipeline.preflight import check_task
from edgekd.pipeline.pruning import PRUNE, PRUNE_CHECK, prune_until_released
from edgekd.pipeline.source import QatStudent
from edgekd.pipeline.threads import choose_threads
from edgekd.runtime.corruption import Robustness
from edgekd.stages.artifacts import CUT_PROBE, PROBE, WEIGHTS, Exported, validation_probe
from edgekd.stages.cache import digest
from edgekd.stages.judging import gate_limits, gate_rules
from edgekd.stages.stage import Done, Runner, StageSpec
from edgekd.stages.trained import KEPT, Trained
from edgekd.training.distillation.loss_registry import check_losses, own_loss_sources
from edgekd.training.loop.settings import check_training, own_training_sources
from edgekd.training.stage_run import Resources, StageRun, computing

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import nn

    from edgekd.config.recipe import DistillConfig, LossConfig, PruneConfig, QatConfig, Recipe
    from edgekd.config.target import Scheme
    from edgekd.files import JsonObject
    from edgekd.gram.metric import Metric
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer, Probe
    from edgekd.gram.verdict import GateLimits
    from edgekd.pipeline.preflight import Preflight
    from edgekd.pipeline.project import Project
    from edgekd.pipeline.source import JudgingSplit
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.trained import PruneAttempt, PruneCheck
    from edgekd.training.pruning.attempts import PrunePlan
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask

R = TypeVar("R")

LIBRARIES = ("torch", "torch-pruning", "onnx", "onnxscript", "onnxruntime")

#: Version of the files in which a teacher's outputs are kept.
_OUTPUTS_VERSION = 2


def _describe(trained: Trained) -> str:
    said = [f"metric {trained.metric:.4f}, {trained.parameters:,} parameters"]
    kept = [number for number, epoch in enumerate(trained.history, 1) if epoch[KEPT]]
    if len(kept) == 1 and kept[0] != len(trained.history):
        said.append(f"of epoch {kept[0]} of {len(trained.history)}")
    return ", ".join(filter(None, (*said, trained.longer)))


def _describe_export(exported: Exported) -> str:
    return f"{len(exported.sizes)} ONNX graphs, within {max(exported.parity.values()):.0e} of torch"


def _describe_robustness(robustness: Robustness) -> str:
    return f"{len(robustness.networks)} networks, noise {robustness.noise:g}"


TEACHER: StageSpec[Trained] = StageSpec("teacher", 6, Trained, ("torch",), "train the teacher, or load it", _describe)
DISTILL: StageSpec[Trained] = StageSpec(
    "distill", 6, Trained, (), "train the student from the teacher, or load it", _describe
)
EXPORT: StageSpec[Exported] = StageSpec(
    "export", 10, Exported, ("onnx", "onnxscript", "onnxruntime"), "write the networks as ONNX", _describe_export
)
QAT: StageSpec[Trained] = StageSpec(
    "qat", 6, Trained, (), "fine-tune the pruned student with fake quantization", _describe
)
ROBUSTNESS: StageSpec[Robustness] = StageSpec(
    "robustness",
    3,
    Robustness,
    (),
    "measure the trained networks with each modality dropped or noisy",
    _describe_robustness,
)


@dataclass(frozen=True)
class TrainedOrigin:
    """The networks that were trained: the :class:`~edgekd.pipeline.source.Origin` of a recipe with a task.

    Attributes:
        stages: The stages that trained them.
        teacher: The finished teacher; None where the task has none.
        student: The finished student, not pruned.
        pruned: The finished pruned student.
        exported: The export of all three.
    """

    stages: TrainingStages
    teacher: Done[Trained] | None
    student: Done[Trained]
    pruned: Done[Trained]
    exported: Done[Exported]

    network = "pruned"
    given = None

    @property
    def baselines(self) -> tuple[str, ...]:
        """The networks before the pruned one; the teacher need not be exported, and a task may have none."""
        return tuple(name for name in self.trained if name != self.network)

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.stages.project.config.name.rpartition("/")[2]

    @property
    def trained(self) -> dict[str, Done[Trained]]:
        """The trained networks, by name."""
        teacher = {"teacher": self.teacher} if self.teacher else {}
        return {**teacher, "student": self.student, "pruned": self.pruned}

    def probes(self, split: JudgingSplit) -> dict[str, Probe]:
        """Read each network's probe on a split; of the pruned one on the test split "cut" is before its fine-tune."""
        from edgekd.gram.probe import Probe

        if split == "validation":
            names = [name for name in self.trained if name != "pruned"]
            files = {name: self.exported.folder / validation_probe(name) for name in names}
            if self.pruned.result.history:
                files[FINETUNED] = self.exported.folder / validation_probe("pruned")
        else:
            files = {name: done.folder / PROBE for name, done in self.trained.items() if name != "pruned"}
            if self.pruned.result.history:
                files |= {CUT: self.pruned.folder / CUT_PROBE, FINETUNED: self.pruned.folder / PROBE}
        return {name: Probe.load(path) for name, path in files.items()}

    @property
    def metric(self) -> Metric:
        """The task's metric."""
        return self.stages.project.loaded.scoring

    def same(self, outputs: Answer, reference: Answer) -> Array:
        """Return the task's own word on which share of each sample's answer changed [N]."""
        return self.stages.project.loaded.same(outputs, reference)

    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Return for each network that was trained here one entry for each epoch."""
        return {name: done.result.history for name, done in self.trained.items() if done.result.history}

    @property
    def pruning(self) -> tuple[PruneAttempt, ...]:
        """The attempts at pruning the student, the last of which is the network."""
        return self.pruned.result.attempts

    @cached_property
    def robustness(self) -> Done[Robustness] | None:
        """What losing or spoiling a modality costs the trained networks; None where the recipe does not ask for it."""
        return self.stages.measure_robustness(self) if self.stages.recipe.robustness.measure else None

    def fine_tune_for_int8(self, scheme: Scheme) -> QatStudent:
        """Fine-tune the pruned network with fake quantization, held by the unpruned student, and export it."""
        return self.stages.fine_tune_for_int8(self, scheme)


@dataclass(frozen=True)
class TrainingStages:
    """Runs the stages of a recipe that train.

    Attributes:
        runner: Runs the stages.
        project: The task.
        recipe: What to train.
        opset: ONNX opset of the export.
        export_label: What tells the exports of a build with several opsets apart, e.g. "opset 18"; "" for the first.
        teachers: Task that the teacher is trained for, where it is not ``project``. Its data and its teacher are the
            same, so that students of many sizes learn from one teacher.
    """

    runner: Runner
    project: Project
    recipe: Recipe
    opset: int
    export_label: str = ""
    teachers: Project | None = None

    def __post_init__(self) -> None:
        check_losses(self.recipe)
        check_training(self.recipe)

    def run(self) -> TrainedOrigin:
        """Run every stage, or read its result."""
        teacher, student, pruned = self.train()
        return TrainedOrigin(self, teacher, student, pruned, self._export(teacher, student, pruned))

    def train(self) -> tuple[Done[Trained] | None, Done[Trained], Done[Trained]]:
        """Run or read the stages before the export; return teacher, student and pruned student."""
        teacher = self.teacher() if self.has_teacher else None
        student = self.student(teacher)
        return teacher, student, self._prune(teacher, student)

    def _run(
        self,
        spec: StageSpec[R],
        *,
        label: str = "",
        config: JsonObject,
        inputs: JsonObject,
        run: Callable[[Path, StageReporter], R],
    ) -> Done[R]:
        """Run a stage of the recipe's threads, in which what the task's code raises is one line."""

        def run_task(folder: Path, report: StageReporter) -> R:
            with self.project.loaded.errors_in(f"stage '{spec.name}'"), self.computing():
                return run(folder, report)

        return self.runner(spec, label=label, config=config, inputs=inputs, run=run_task)

    def computing(self) -> AbstractContextManager[None]:
        """Return a context in which torch computes with the recipe's threads and device."""
        return computing(Resources(self.threads, self.recipe.device, self.recipe.workers))

    @cached_property
    def threads(self) -> int:
        """The number of threads that train: the recipe's, or the one that a short timing finds to be faster."""
        if self.recipe.threads != "auto":
            return self.recipe.threads
        return choose_threads(self.runner, self.teachers or self.project, self.recipe, self.taps)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Run or read the stages before the export; return the trained teacher and the trained pruned student."""
        teacher = self.teacher()
        pruned = self._prune(teacher, self.student(teacher))
        return self.load_teacher(teacher), self._load_pruned(pruned.folder)

    def qat(
        self, teacher: Done[Trained] | None, student: Done[Trained], pruned: Done[Trained], scheme: Scheme
    ) -> Done[Trained]:
        """Fine-tune the pruned student for a scheme of INT8, held by the unpruned student."""
        config = msgspec.structs.replace(self.recipe.quantize.qat, loss=self._fine_tuned(self.recipe.quantize.qat.loss))

        def run(folder: Path, report: StageReporter) -> Trained:
            from edgekd.training.qat import stage as qat

            networks = qat.QatNetworks(
                self._load_reference(teacher, student),
                self._load_student(student),
                self._load_pruned(pruned.folder),
                self._outputs(teacher, config.loss, report),
            )
            return qat.run(
                self.project.loaded, networks, self.taps, scheme, config, StageRun(self.recipe.seed, folder, report)
            )

        settings = {**_plain(config), **_own_sources(config), "scheme": _plain(scheme)}
        return self._run(QAT, config=settings, inputs={"pruned": pruned.key}, run=run)

    def fine_tune_for_int8(self, origin: TrainedOrigin, scheme: Scheme) -> QatStudent:
        """Fine-tune the pruned network for a scheme of INT8, and export it alone."""
        fine_tuned = self.qat(origin.teacher, origin.student, origin.pruned, scheme)

        def export_student(folder: Path, report: StageReporter) -> Exported:
            from edgekd.training.export import stage as export
            from edgekd.training.export.onnx import ExportNetwork
            from edgekd.training.loop.weights import load_weights

            model = load_weights(self._load_pruned(origin.pruned.folder), fine_tuned.folder / WEIGHTS)
            networks = {origin.network: ExportNetwork(model, self.taps.student)}
            return export.run(self.project.loaded, networks, self.recipe.export, self.opset, folder, report)

        exported = self._run(
            EXPORT,
            label=f"{self.export_label} qat".lstrip(),
            config={**_plain(self.recipe.export), "opset": self.opset},
            inputs={"qat": fine_tuned.key},
            run=export_student,
        )
        probes = {
            "validation": exported.folder / validation_probe(origin.network),
            "test": fine_tuned.folder / PROBE,
        }
        return QatStudent(exported, probes, fine_tuned.result.history)

    def measure_robustness(self, origin: TrainedOrigin) -> Done[Robustness]:
        """Measure the trained networks with each modality dropped, and with each noisy."""
        config = self.recipe.robustness

        def run(folder: Path, report: StageReporter) -> Robustness:
            from edgekd.training import robustness

            models = {
                **({"teacher": self.load_teacher(origin.teacher)} if origin.teacher else {}),
                "student": self._load_student(origin.student),
                "pruned": self._load_pruned(origin.pruned.folder),
            }
            networks = {
                name: robustness.MeasuredNetwork(model, origin.trained[name].result.metric)
                for name, model in models.items()
            }
            return robustness.run(self.project.loaded, networks, config, StageRun(self.recipe.seed, folder, report))

        settings = {**_plain(config), "seed": self.recipe.seed}
        return self._run(ROBUSTNESS, config=settings, inputs={"pruned": origin.pruned.key}, run=run)

    def teacher_weights(self) -> Path | None:
        """Return the file of the teacher's weights, where the recipe names one.

        Raises:
            ModelError: There is no such file.
        """
        weights = Path(self.recipe.teacher.weights) if self.recipe.teacher.weights else None
        if weights is not None and not weights.is_file():
            raise ModelError(f"[teacher] weights: {weights}: no such file")
        return weights

    def student_weights(self) -> Path | None:
        """Return the file of the student's weights, where the recipe names one.

        Raises:
            ModelError: There is no such file.
        """
        weights = Path(self.recipe.student.weights) if self.recipe.student.weights else None
        if weights is not None and not weights.is_file():
            raise ModelError(f"[student] weights: {weights}: no such file")
        return weights

    @cached_property
    def has_teacher(self) -> bool:
        """Whether the task has a teacher, once it was checked."""
        return self.preflight().result.teacher

    def teacher(self) -> Done[Trained]:
        """Check the task; then train the teacher, or load the user's.

        Raises:
            TaskError: It has none.
        """
        weights = self.teacher_weights()
        self.preflight()
        config, project = self.recipe.teacher, self.teachers or self.project

        def run(folder: Path, report: StageReporter) -> Trained:
            from edgekd.training.distillation import teacher

            stage = StageRun(self.recipe.seed, folder, report)
            trained = teacher.run(project.loaded, self.taps.teacher, config, stage)
            return _tell_lesson(project.loaded, "teacher", trained, stage)

        settings = {
            **_plain(msgspec.structs.replace(config, precision="float32")),  # it matters to those that learn from it
            "weights": sha256_file(weights) if weights else None,
            "seed": self.recipe.seed,
            "threads": self.threads,
            "device": self.recipe.device.partition(":")[0],
            **own_training_sources(config),
        }
        return self._run(TEACHER, config=settings, inputs={"task": project.identity}, run=run)

    def student(self, teacher: Done[Trained] | None) -> Done[Trained]:
        """Load the student that is trained already, or distil it from the teacher.

        Args:
            teacher: The finished teacher; None where the task has none.
        """
        weights = self.student_weights()
        if weights is None:
            return self._distill(self.teacher() if teacher is None else teacher)

        def run(folder: Path, report: StageReporter) -> Trained:
            from edgekd.training.distillation import distill

            return distill.load(self.project.loaded, self.taps, weights, StageRun(self.recipe.seed, folder, report))

        settings = {
            "weights": sha256_file(weights),
            "taps": _plain(self.recipe.student.taps),
            "precision": self.recipe.teacher.precision,
            "seed": self.recipe.seed,
            "threads": self.recipe.threads,
        }
        inputs = {"task": self.project.identity, **({"teacher": teacher.key} if teacher else {})}
        return self._run(DISTILL, config=settings, inputs=inputs, run=run)

    def _distill(self, teacher: Done[Trained]) -> Done[Trained]:
        config = self.recipe.distill

        def run(folder: Path, report: StageReporter) -> Trained:
            trained = self.distil(teacher, config, self.recipe.seed, folder, report)
            return _tell_lesson(self.project.loaded, "student", trained, StageRun(self.recipe.seed, folder, report))

        settings = {
            **_plain(config),
            **_own_sources(config),
            "taps": _plain(self.recipe.student.taps),
            "precision": self.recipe.teacher.precision,
        }
        inputs = {"teacher": teacher.key}
        if self.teachers is not None:  # then the teacher's key does not stand for the student's task
            inputs["task"] = self.project.identity
        return self._run(DISTILL, config=settings, inputs=inputs, run=run)

    def distil(
        self, teacher: Done[Trained], config: DistillConfig, seed: int, folder: Path, report: StageReporter
    ) -> Trained:
        """Distil a student into a folder, with a config and a seed that need not be the recipe's.

        Args:
            teacher: The finished teacher.
            config: How to distil.
            seed: Seed of the training.
            folder: Folder for the student's files.
            report: Receives progress.
        """
        from edgekd.training.distillation import distill

        with self.computing():
            outputs, model = self._outputs(teacher, config.loss, report), self.load_teacher(teacher)
            return distill.run(self.project.loaded, model, self.taps, config, StageRun(seed, folder, report), outputs)

    def _fine_tuned(self, loss: LossConfig) -> LossConfig:
        """Return the losses of a fine-tune, in which the student takes the place of a teacher that there is not."""
        return loss if self.has_teacher else without_teacher(loss)

    def _prune(self, teacher: Done[Trained] | None, student: Done[Trained]) -> Done[Trained]:
        return prune_until_released(_StudentPruning(self, teacher, student), self.recipe.prune)

    def prune_once(
        self, teacher: Done[Trained] | None, student: Done[Trained], plan: PrunePlan, label: str = ""
    ) -> Done[Trained]:
        """Prune and fine-tune the student as one plan says, or read the result.

        Args:
            teacher: The finished teacher; None where the task has none.
            student: The finished student.
            plan: How to prune.
            label: What tells the attempt from the others; "" for the first.
        """
        config = msgspec.structs.replace(self.recipe.prune, loss=self._fine_tuned(self.recipe.prune.loss))

        def run(folder: Path, report: StageReporter) -> Trained:
            from edgekd.training.pruning import stage as prune

            networks = prune.PruningNetworks(
                self._load_reference(teacher, student),
                self._load_student(student),
                self._load_student(student),
                self._outputs(teacher, config.loss, report),
            )
            stage = StageRun(self.recipe.seed, folder, report)
            return prune.run(self.project.loaded, networks, self.taps, config, stage, plan)

        decides = msgspec.structs.replace(config, repair="auto", repair_s=0.0)  # these tell whether one follows
        settings = {**_plain(decides), **_own_sources(config), "plan": plan.identity()}
        return self._run(PRUNE, label=label, config=settings, inputs={"student": student.key}, run=run)

    def check_pruned(
        self, student: Done[Trained], pruned: Done[Trained], label: str, tell: Callable[[PruneCheck], str]
    ) -> Done[PruneCheck]:
        """Judge a pruned network on the validation split, or read the verdict.

        Args:
            student: The finished student.
            pruned: The finished pruned network.
            label: What tells the attempt from the others; "" for the first.
            tell: Returns what the user is warned of; "" for nothing.
        """

        def run(_folder: Path, report: StageReporter) -> PruneCheck:
            from edgekd.training.pruning.judge import judge_pruned

            task = self.project.loaded
            rules = gate_rules(
                self.recipe.gate,
                task.metric_name,
                task.outputs,
                higher_is_better=task.higher_is_better,
                seed=self.recipe.seed,
                same=task.own_same,
            )
            networks = self._load_student(student), self._load_pruned(pruned.folder)
            checked = judge_pruned(task, *networks, self.taps.student, rules)
            if warning := tell(checked):
                report.warn(warning)
            return checked

        settings = {**_plain(self.recipe.gate), "seed": self.recipe.seed}
        return self._run(PRUNE_CHECK, label=label, config=settings, inputs={"pruned": pruned.key}, run=run)

    def _export(self, teacher: Done[Trained] | None, student: Done[Trained], pruned: Done[Trained]) -> Done[Exported]:
        config = self.recipe.export

        def run(folder: Path, report: StageReporter) -> Exported:
            from edgekd.training.distillation.ensemble import taps_of
            from edgekd.training.export import stage as export
            from edgekd.training.export.onnx import ExportNetwork

            networks = {}
            if teacher is not None:
                model = self.load_teacher(teacher)
                networks["teacher"] = ExportNetwork(model, taps_of(model, self.taps.teacher), optional=True)
            networks |= {
                "student": ExportNetwork(self._load_student(student), self.taps.student),
                "pruned": ExportNetwork(self._load_pruned(pruned.folder), self.taps.student),
            }
            return export.run(self.project.loaded, networks, config, self.opset, folder, report)

        settings = {**_plain(config), "opset": self.opset}
        return self._run(EXPORT, label=self.export_label, config=settings, inputs={"pruned": pruned.key}, run=run)

    def _outputs(self, teacher: Done[Trained] | None, loss: LossConfig, report: StageReporter) -> Path | None:
        """Return the folder of the teacher's outputs on the training split, written once; None where it is to run."""
        if teacher is None or not self.recipe.distill.cache_teacher:
            return None
        from edgekd.training.distillation import cached_teacher
        from edgekd.training.distillation.loss_taps import taps_with_losses
        from edgekd.training.loop import distributed

        read = taps_with_losses(self.taps.teacher, loss, "teacher")
        depends = {"version": _OUTPUTS_VERSION, "teacher": teacher.key, "places": list(_plain(read).items())}
        name, cache = f"outputs-{digest(depends)}", self.runner.cache

        def wait() -> None:
            report.warn("another build is writing the teacher's outputs; waiting for them")

        if distributed.is_main():
            with cache.claim(name, wait) as folder:
                if folder is not None:
                    split = self.project.loaded.splits["train"]
                    cached_teacher.write_outputs(self.load_teacher(teacher), read, split, folder, report)
                    cache.finish(name, {})
        distributed.barrier()
        return cache.root / name

    @cached_property
    def taps(self) -> Taps:
        """The taps of both networks, from the recipe and the task."""
        return self.project.taps(self.recipe)

    def preflight(self) -> Done[Preflight]:
        """Check the task, or read that it was checked.

        Raises:
            TaskError: Something in the task is wrong.
        """
        return check_task(self.runner, self.project, self.recipe)

    def load_teacher(self, done: Done[Trained]) -> nn.Module:
        """Return the finished teacher."""
        factory, count = self.project.loaded.task.teacher, self.recipe.teacher.members
        if count == 1:
            return self._load(factory, done)
        from edgekd.training.distillation.ensemble import Ensemble
        from edgekd.training.loop.weights import build

        def members() -> nn.Module:
            return Ensemble([build(factory, self.recipe.seed) for _ in range(count)], self.taps.teacher)

        return self._load(members, done)

    def _load_reference(self, teacher: Done[Trained] | None, student: Done[Trained]) -> nn.Module:
        """Return what fine-tunes learn from: the finished teacher, or the student where the task has none."""
        return self._load_student(student) if teacher is None else self.load_teacher(teacher)

    def _load_student(self, done: Done[Trained]) -> nn.Module:
        return self._load(self.project.loaded.task.student, done)

    def _load(self, factory: Callable[[], nn.Module], done: Done[Trained]) -> nn.Module:
        from edgekd.training.loop.weights import build, load_weights

        return load_weights(build(factory, self.recipe.seed), done.folder / WEIGHTS)

    def _load_pruned(self, folder: Path) -> nn.Module:
        from edgekd.training.loop.weights import build
        from edgekd.training.pruning.stage import rebuild

        return rebuild(build(self.project.loaded.task.student, self.recipe.seed), self.project.loaded, folder)


@dataclass(frozen=True)
class _StudentPruning:
    """The :class:`~edgekd.pipeline.pruning.PruningStages` of a student."""

    stages: TrainingStages
    teacher: Done[Trained] | None
    student: Done[Trained]

    @property
    def limits(self) -> GateLimits:
        """The limits of the gate; what depends on the task's metric is not asked of them here."""
        return gate_limits(self.stages.recipe.gate, higher_is_better=True)

    def prune(self, plan: PrunePlan, label: str) -> Done[Trained]:
        """Prune and fine-tune the student."""
        return self.stages.prune_once(self.teacher, self.student, plan, label)

    def check(self, pruned: Done[Trained], label: str, tell: Callable[[PruneCheck], str]) -> Done[PruneCheck]:
        """Judge a pruned network."""
        return self.stages.check_pruned(self.student, pruned, label, tell)


def _own_sources(config: DistillConfig | PruneConfig | QatConfig) -> JsonObject:
    """Return the digests of the user's own code that a training runs beside the task's."""
    return {**own_loss_sources(config.loss), **own_training_sources(config)}


def _tell_lesson(task: LoadedTask, name: str, trained: Trained, stage: StageRun) -> Trained:
    """Warn at once where a network learned nothing; return its result with the warning."""
    from edgekd.training.loop import distributed
    from edgekd.training.loop.lesson import describe_lesson

    warnings = describe_lesson(task, name, trained, stage.folder) if distributed.is_main() else ()
    for warning in warnings:
        stage.report.warn(warning)
    return dataclasses.replace(trained, warnings=warnings)


def _plain(config: object) -> JsonObject:
    """Return a config as JSON."""
    content: JsonObject = msgspec.to_builtins(config)
    return content
