"""The tasks and regimes in which distillation losses are compared, and the teachers that they learn from."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgekd.config.recipe import TaskConfig, TeacherConfig
from edgekd.gram.matrix import pair_names
from edgekd.stages.artifacts import WEIGHTS
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.progress import Silent, StageReporter
from edgekd.training.distillation import teacher as teacher_stage
from edgekd.training.distillation.outputs import NetworkOutputs
from edgekd.training.distillation.references import LiveReference, ReferenceOutputs
from edgekd.training.loop.evaluate import batches, ground_truth, probe
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, resolve_taps
from edgekd.training.task.loading import LoadedTask, load_task
from edgekd.training.task.protocol import SPLITS, ArraySplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.training.task.protocol import Batch, Split

FOLDER = Path("build/benchmarks/distill")
#: Where nothing is said, teachers are trained as the shipped recipes do.
_TEACHER_EPOCHS = {"digits-3": 10, "digits-6": 15, "gestures": 12, "av-digits": 10}

_NAMES = {"digits-3": "digits", "digits-6": "digits", "gestures": "gestures", "av-digits": "av-digits"}
_VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")
#: All six views saturate; with noise of two standard deviations on each, they do not.
_NOISE = {"digits-6": 2.0}
_NOISE_SEED = 7


@dataclass(frozen=True)
class Case:
    """One task in one regime.

    Attributes:
        task: which; digits-3 and digits-6 are `digits` with three and with six views.
        regime: "full" (the recipe's student, all labels), "few" (less data, one label in ten) or "tiny" (a student of
            few channels, all labels).
        samples: how many of the training split the student sees; None for all.
        labelled: share of them whose label it sees.
        student: fields of the task's `Size`; empty for the recipe's student.
        epochs: of the student.
    """

    task: str
    regime: str
    epochs: int
    samples: int | None = None
    labelled: float = 1.0
    student: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the case."""
        return f"{self.task} {self.regime}"


_SMALL = {"hidden": [16], "width": 16, "head": 16, "channels": [4]}
_NARROW = {"hidden": [8], "width": 4, "head": 8, "channels": [4]}

CASES = (
    Case("digits-3", "full", 30),
    Case("digits-3", "few", 40, 500, 0.1, _SMALL),
    Case("digits-3", "tiny", 30, None, 1.0, _NARROW),
    Case("digits-6", "full", 30),
    Case("digits-6", "few", 40, 500, 0.1, _SMALL),
    Case("digits-6", "tiny", 30, None, 1.0, _NARROW),
    Case("gestures", "full", 10, 1200),
    Case("gestures", "few", 30, 600, 0.1, {"channels": [16, 32], "width": 16, "head": 16}),
    Case("gestures", "tiny", 15, None, 1.0, {"channels": [8, 8], "width": 4, "head": 8}),
    Case("av-digits", "full", 12, 1200),
    Case("av-digits", "few", 80, 500, 0.1, {"image": [8, 16], "audio": [8, 16], "width": 16, "head": 16}),
    Case("av-digits", "tiny", 20, 2000, 1.0, {"image": [4, 8], "audio": [4, 8], "width": 8, "head": 8}),
)
#: Of a quick run alone, whose teacher is trained for as long.
QUICK = Case("digits-3", "quick", 2, 200, 0.5, _SMALL)


@dataclass(frozen=True)
class Scene:
    """A case with one seed's samples and teacher.

    Attributes:
        case: which.
        seed: of teacher, labels, initial weights and batches.
        task: its training split is what the student sees.
        taps: the same in both networks.
        teacher: trained.
    """

    case: Case
    seed: int
    task: LoadedTask
    taps: Mapping[str, Tap]
    teacher: nn.Module


@functools.lru_cache(maxsize=2)
def _splits(task: str) -> dict[str, ArraySplit]:
    """Return the task's splits; what no network here is tuned or calibrated on is in "test"."""
    loaded = load_task(TaskConfig(name=_NAMES[task], options=_options(task)))
    splits = {name: split for name, split in loaded.splits.items() if isinstance(split, ArraySplit)}
    if task in _NOISE:
        splits = _noisy(splits, _NOISE[task])
    return {**splits, "test": _join(splits["test"], splits["calibration"])}


def _options(task: str) -> dict[str, Any]:
    return {"views": _VIEWS} if task == "digits-6" else {}


def _noisy(splits: Mapping[str, ArraySplit], deviations: float) -> dict[str, ArraySplit]:
    spread = {name: x.std(0, keepdim=True) for name, x in splits["train"].inputs.items()}
    noisy = {}
    for index, name in enumerate(SPLITS):
        generator = torch.Generator().manual_seed(_NOISE_SEED + index)
        inputs = {
            key: x + deviations * spread[key] * torch.randn(x.shape, generator=generator)
            for key, x in splits[name].inputs.items()
        }
        noisy[name] = ArraySplit(splits[name].ids, inputs, splits[name].labels, splits[name].groups)
    return noisy


def _join(first: ArraySplit, second: ArraySplit) -> ArraySplit:
    return ArraySplit(
        [*first.ids, *second.ids],
        {name: torch.cat([x, second.inputs[name]]) for name, x in first.inputs.items()},
        torch.cat([first.labels, second.labels]),
        None if first.groups is None or second.groups is None else [*first.groups, *second.groups],
    )


def _seen(split: ArraySplit, case: Case, seed: int) -> ArraySplit:
    """Return the samples that the student sees, most of them without a label where the case says so."""
    random = np.random.RandomState(1000 + seed)
    rows = random.permutation(len(split))[: case.samples or len(split)]
    labels = split.labels[rows].clone()
    hidden = random.permutation(len(rows))[round(case.labelled * len(rows)) :]
    labels[hidden] = UNLABELLED
    groups = None if split.groups is None else [split.groups[row] for row in rows]
    return ArraySplit([split.ids[row] for row in rows], {n: x[rows] for n, x in split.inputs.items()}, labels, groups)


def load_scene(case: Case, seed: int) -> Scene:
    """Return a case with one seed; its teacher is trained, or read where it was."""
    options = {**_options(case.task), **({"student": case.student} if case.student else {})}
    made = load_task(TaskConfig(name=_NAMES[case.task], options=options))
    whole = LoadedTask(made.task, _splits(case.task), ())
    taps = resolve_taps("teacher", {}, made.task.teacher_taps, made.modalities)  # type: ignore[attr-defined]
    folder = FOLDER / "teachers" / f"{case.task}-{seed}"
    if not (folder / WEIGHTS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        config = TeacherConfig(epochs=QUICK.epochs if case == QUICK else _TEACHER_EPOCHS[case.task], keep="last")
        teacher_stage.run(whole, taps, config, StageRun(seed, folder, StageReporter(Silent(), "teacher")))
    teacher = load_weights(build(made.task.teacher, seed), folder / WEIGHTS)
    seen = {**whole.splits, "train": _seen(_splits(case.task)["train"], case, seed)}
    return Scene(case, seed, LoadedTask(made.task, seen, ()), taps, teacher)


class Remembered:
    """A teacher whose outputs on the student's samples were computed once.

    Args:
        model: the network.
        taps: where it is read.
        split: the samples.
        shuffled: give each sample the embeddings of another of its batch, for a control.
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, Tap], split: ArraySplit, *, shuffled: bool = False) -> None:
        with TappedModel(model, taps) as tapped:
            live = LiveReference(tapped)
            known = [live(batch) for batch in batches(split)]
        self._logits = torch.cat([each.logits for each in known])
        self._embeddings = {name: torch.cat([each.networks[0].embeddings[name] for each in known]) for name in taps}
        self._rows = {name: row for row, name in enumerate(split.ids)}
        self._shuffled = shuffled

    def __call__(self, batch: Batch) -> ReferenceOutputs:
        """Look the batch up."""
        rows = torch.tensor([self._rows[name] for name in batch.ids])
        given = rows[torch.randperm(len(rows))] if self._shuffled else rows
        logits = self._logits[rows]
        return ReferenceOutputs(
            logits, [NetworkOutputs(logits, {name: z[given] for name, z in self._embeddings.items()}, {})]
        )


class Dropping(ArraySplit):
    """A split whose samples lose modalities at random, never all; what is lost is the split's mean.

    Args:
        split: the whole samples.
        probability: of each modality, each time that a sample is read.
        seed: of what is lost.
    """

    def __init__(self, split: ArraySplit, probability: float, seed: int) -> None:
        super().__init__(split.ids, split.inputs, split.labels, split.groups)
        object.__setattr__(self, "_means", {name: x.mean(0, keepdim=True) for name, x in split.inputs.items()})
        object.__setattr__(self, "_probability", probability)
        object.__setattr__(self, "_generator", torch.Generator().manual_seed(seed))

    def __getitems__(self, indices: list[int]) -> Batch:
        batch = super().__getitems__(indices)
        lost = torch.rand(len(batch.inputs), len(indices), generator=self._generator) < self._probability
        lost[:, lost.all(0)] = False
        for gone, (name, x) in zip(lost, batch.inputs.items(), strict=True):
            rows = gone.view(-1, *[1] * (x.dim() - 1))
            batch.inputs[name] = torch.where(rows, self._means[name], x)
        return batch


def missing_metric(scene: Scene, student: nn.Module) -> float:
    """Return the metric on the test split with one modality replaced by its training mean, mean over modalities."""
    split, train = scene.task.splits["test"], scene.task.splits["train"]
    assert isinstance(split, ArraySplit)
    assert isinstance(train, ArraySplit)
    found = []
    for name in split.inputs:
        neutral = train.inputs[name].mean(0, keepdim=True).expand_as(split.inputs[name]).contiguous()
        changed = ArraySplit(split.ids, {**split.inputs, name: neutral}, split.labels)
        found.append(metric_on(scene.task, student, scene.taps, changed))
    return float(np.mean(found))


def metric_on(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap], split: Split) -> float:
    """Return the task's metric of a model on a split."""
    return task.metric(probe(model, taps, split).answer, ground_truth(split).labels)


def pairing(scene: Scene) -> dict[str, dict[str, float]]:
    """Return what the teacher's embeddings know of who belongs to whom, for each pair of modalities, on test samples.

    ``matched`` is the mean cosine of a sample's two embeddings, each modality centred, ``error`` its standard error,
    ``shuffled`` the mean cosine of those of different samples: where matched is no larger, the Gram between
    the two modalities holds nothing of the pairs.
    """
    found = probe(scene.teacher, scene.taps, scene.task.splits["test"])
    units = {}
    for name, z in found.embeddings.items():
        centred = z - z.mean(0)
        units[name] = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    pairs = {}
    for name, (i, j) in zip(pair_names(list(units)), itertools.combinations(units.values(), 2), strict=True):
        cosines = i @ j.T
        matched = np.diagonal(cosines)
        pairs[name] = {
            "matched": float(matched.mean()),
            "error": float(matched.std(ddof=1) / len(matched) ** 0.5),
            "shuffled": float((cosines.sum() - matched.sum()) / (cosines.size - len(matched))),
        }
    return pairs
