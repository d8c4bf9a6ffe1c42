"""One training of the comparison, kept on disk, so that a stopped benchmark goes on; many of them side by side."""

from __future__ import annotations

import functools
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from distill_cases import CASES, FOLDER, QUICK, Dropping, Remembered, Scene, load_scene, metric_on, missing_metric
from distill_methods import BY_NAME

from edgekd.config.recipe import DistillConfig
from edgekd.files import write_text
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.stages.progress import Silent, StageReporter
from edgekd.training.distillation.loss_taps import LossTaps, taps_with_losses
from edgekd.training.distillation.objective import DistillationObjective
from edgekd.training.loop.evaluate import example_batch, probe
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.weights import build
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from edgekd.config.recipe import LossConfig
    from edgekd.training.loop.loop import Epoch

_RUNS = FOLDER / "runs"
_BY_CASE = {case.name: case for case in (*CASES, QUICK)}


@dataclass(frozen=True)
class Job:
    """One training: a case by name, a method by name with a setting, KD's temperature, and a seed."""

    case: str
    method: str
    setting: float
    temperature: float
    seed: int

    @property
    def loss(self) -> LossConfig:
        """What is minimised."""
        modalities = load(self.case, self.seed).task.modalities
        return BY_NAME[self.method].loss(self.setting, self.temperature, modalities)


@dataclass(frozen=True)
class Outcome:
    """What came of it, after the last epoch.

    Attributes:
        validation: metric on the validation split.
        metric: on the test split.
        missing: on the test split with one modality replaced by its training mean, mean over modalities.
        drift: of the per-sample Gram from the teacher's, on the test split.
        seconds: of the training alone.
        steps: of it.
        shares: of each loss, the gradient's norm as a multiple of the logit losses', in the last epoch.
    """

    validation: float
    metric: float
    missing: float
    drift: float
    seconds: float
    steps: int
    shares: dict[str, float]


@functools.lru_cache(maxsize=2)
def load(case: str, seed: int) -> Scene:
    """Return a case with one seed."""
    return load_scene(_BY_CASE[case], seed)


def run(job: Job) -> Outcome:
    """Train and measure."""
    method, scene = BY_NAME[job.method], load(job.case, job.seed)
    student = build(scene.task.task.student, job.seed)
    history, seconds = _train(job, scene, student)
    task, taps, test = scene.task, scene.taps, scene.task.splits["test"]
    drift = measure_drift(probe(student, taps, test), probe(scene.teacher, taps, test), None, Bootstrap(resamples=1))
    last = history[-1]
    return Outcome(
        validation=metric_on(task, student, taps, task.splits["val"]),
        metric=metric_on(task, student, taps, test),
        missing=missing_metric(scene, student),
        drift=drift.mean,
        seconds=seconds,
        steps=-(-len(task.splits["train"]) // DistillConfig().batch_size) * scene.case.epochs * method.longer,
        shares={name.partition(".")[2]: value for name, value in last.items() if name.startswith("share.")},
    )


def _train(job: Job, scene: Scene, student: nn.Module) -> tuple[list[Epoch], float]:
    method, loss, taps = BY_NAME[job.method], job.loss, scene.taps
    train = scene.task.splits["train"]
    read = taps_with_losses(taps, loss, "teacher")
    teacher = anchor = Remembered(scene.teacher, read, train)
    if method.anchor == "shuffled":
        anchor = Remembered(scene.teacher, read, train, shuffled=True)
    elif method.anchor == "random":
        anchor = Remembered(build(scene.task.task.teacher, 10_000 + job.seed), read, train)
    report = StageReporter(Silent(), job.method)
    where = LossTaps(scene.task.modalities, taps, taps, "teacher")
    config = DistillConfig(epochs=scene.case.epochs * method.longer, keep="last")
    with (
        TappedModel(student, taps_with_losses(taps, loss, "student")) as tapped,
        TemporaryDirectory(dir=_scratch()) as folder,
    ):
        objective = DistillationObjective(tapped, teacher, anchor, loss, where, report)
        objective.prepare(example_batch(scene.task, torch.device("cpu")), job.seed)
        split = Dropping(train, job.setting, job.seed) if method.drops else train
        start = time.perf_counter()
        history = fit(
            student, objective, split, lambda: {"validation": 0.0}, Fit(config, job.seed, Path(folder), report)
        )
        return history, time.perf_counter() - start


def _scratch() -> Path | None:
    """Return a folder in memory where there is one: a checkpoint by epoch would take as long as an epoch."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def kept(job: Job) -> Outcome:
    """Return what was found before, or find it."""
    config = msgspec.to_builtins(job.loss)
    case = asdict(_BY_CASE[job.case])
    key = sha256(json.dumps([case, asdict(job), config], sort_keys=True).encode()).hexdigest()[:20]
    path = _RUNS / f"{key}.json"
    if not path.is_file():
        write_text(path, json.dumps(asdict(run(job))))
    return Outcome(**json.loads(path.read_text(encoding="utf-8")))


def _all_of(jobs: Sequence[Job]) -> list[Outcome]:
    torch.set_num_threads(1)
    return [kept(job) for job in jobs]


def run_all(jobs: Iterable[Job], workers: int, what: str) -> dict[Job, Outcome]:
    """Run jobs in several processes; those of one case and seed share one, for they share samples and teacher."""
    groups: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.case, job.seed), []).append(job)
    found: dict[Job, Outcome] = {}
    start = time.monotonic()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for number, (group, outcomes) in enumerate(
            zip(groups.values(), pool.map(_all_of, groups.values()), strict=True), start=1
        ):
            found |= dict(zip(group, outcomes, strict=True))
            print(
                f"{what}: {number}/{len(groups)} done, {time.monotonic() - start:.0f} s, last {group[0].case}",
                flush=True,
            )
    return found


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the raw figures of several seeds, a list for each."""
    rows = [asdict(outcome) for outcome in outcomes]
    return {name: [row[name] for row in rows] for name in rows[0]}
