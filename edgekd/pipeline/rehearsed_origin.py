"""What a rehearsal leaves for the stages of a target: the networks, untrained, as those would come from training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.gram.gate import FINETUNED
from edgekd.runtime.corruption import Robustness  # noqa: TC001  # msgspec reads the annotations of Rehearsed
from edgekd.stages.artifacts import Exported, validation_probe
from edgekd.stages.stage import Done

if TYPE_CHECKING:
    from edgekd.config.target import Scheme
    from edgekd.gram.metric import Metric
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer, Probe
    from edgekd.pipeline.project import Project
    from edgekd.pipeline.source import JudgingSplit, QatStudent
    from edgekd.stages.trained import PruneAttempt


@dataclass(frozen=True)
class Rehearsed:
    """Untrained networks went through every stage that trains.

    In the stage's folder lie the graphs of the student and of the pruned student, a few samples, and the probes.

    Attributes:
        exported: The export of the pruned student.
        robustness: What a lost modality costs; None where the recipe does not ask for it.
        stages: Names of the stages.
        warnings: What was warned of.
    """

    exported: Exported
    robustness: Robustness | None
    stages: tuple[str, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Describe the result in words."""
        return f"{len(self.stages)} stages run: {', '.join(self.stages)}"


@dataclass(frozen=True)
class RehearsedOrigin:
    """The networks of a rehearsal: an :class:`~edgekd.pipeline.source.Origin`.

    Attributes:
        done: The rehearsal.
        project: The task.
    """

    done: Done[Rehearsed]
    project: Project

    network = "pruned"
    baselines = ("student",)
    given = None

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.project.config.name.rpartition("/")[2]

    @property
    def exported(self) -> Done[Exported]:
        """The graphs and the samples, in a folder."""
        return Done(self.done.key, self.done.folder, self.done.result.exported)

    def probes(self, split: JudgingSplit) -> dict[str, Probe]:
        """Read the probes on a split."""
        from edgekd.gram.probe import Probe

        teacher = {"teacher": "teacher"} if "teacher" in self.done.result.stages else {}
        rows = {**teacher, "student": "student", FINETUNED: "pruned"}
        named = validation_probe if split == "validation" else rehearsed_probe
        files = {row: self.done.folder / named(network) for row, network in rows.items()}
        return {row: Probe.load(path) for row, path in files.items() if path.is_file()}  # a task may have no teacher

    @property
    def metric(self) -> Metric:
        """The same number for all: of untrained networks the metric tells nothing."""
        return lambda _answer, _targets: 0.5

    def same(self, outputs: Answer, reference: Answer) -> Array:
        """Return the task's own word on which share of each sample's answer changed [N]."""
        return self.project.loaded.same(outputs, reference)

    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Return nothing."""
        return {}

    @property
    def pruning(self) -> tuple[PruneAttempt, ...]:
        """Nothing."""
        return ()

    @property
    def robustness(self) -> Done[Robustness] | None:
        """What losing or spoiling a modality costs the networks."""
        measured = self.done.result.robustness
        return None if measured is None else Done(self.done.key, self.done.folder, measured)

    def fine_tune_for_int8(self, _scheme: Scheme) -> QatStudent | None:
        """Return None: the fine-tune was tried along with the other trainings."""


def rehearsed_probe(network: str) -> str:
    """Return the name of the file with a network's probe on the test samples of a rehearsal."""
    return f"test.{network}.npz"
