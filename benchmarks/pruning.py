"""Importances at equal multiply-accumulates: what each keeps of the modality Gram and of the task.

Every student is cut to half of its multiply-accumulates and fine-tuned in the same way, but that BatchNorm keeps its
statistics where the importance is ``gram``. Drift is to the unpruned student, on the test split, before and after that
fine-tune. ``uniform`` is magnitude pruning as it is known: the same share of every layer, the smallest that meets the
budget. ``made-up`` removes what ``magnitude`` does and lets the weights that stay make up for it as ``gram`` does: it
tells the two halves of ``gram`` apart.

The goal: drift at most half of magnitude pruning's, metric no lower beyond noise, on every task.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from common import CACHE, TASKS, arguments, parse, write_result

import edgekd
from edgekd.config.recipe import PruneBudget
from edgekd.files import write_text
from edgekd.gram.drift import flips, measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.stages.artifacts import CUT_PROBE, PROBE, REMOVED, WEIGHTS
from edgekd.stages.cache import ROUNDS, Cache
from edgekd.stages.progress import Silent, StageReporter
from edgekd.stages.stage import Runner
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import ground_truth, probe
from edgekd.training.loop.weights import build, load_weights, save_weights
from edgekd.training.pruning import stage as prune
from edgekd.training.pruning.budget import count_macs
from edgekd.training.pruning.candidates import Candidates
from edgekd.training.pruning.curvature import ImportanceInputs
from edgekd.training.pruning.cutter import Cutter
from edgekd.training.pruning.groups import remove_channels, traceable
from edgekd.training.pruning.obs import GramImportance
from edgekd.training.pruning.samples import DrawnBatches
from edgekd.training.stage_run import StageRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from edgekd.config.recipe import PruneConfig
    from edgekd.training.taps.taps import Taps

BUDGET = 0.5
METHODS = ("gram", "magnitude", "uniform", "made-up", "taylor", "fpgm", "random")
BASELINES = ("magnitude", "uniform")
_KEPT = Path("build/benchmarks/pruning")
_OPSET = 20
#: Student's t for a 95 % interval of a mean of 5 pairs.
_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


@dataclass(frozen=True)
class Result:
    """One student, cut and tuned: metric, drift to the unpruned student and flips of it, and its share of the MACs."""

    macs: float
    metric_cut: float
    metric: float
    drift_cut: float
    drift: float
    flips_cut: float
    flips: float


@dataclass(frozen=True)
class Case:
    """A task with one seed's trained networks."""

    project: Project
    taps: Taps
    seed: int
    config: PruneConfig
    weights: dict[str, Path]

    def network(self, name: str) -> nn.Module:
        """Return a fresh copy of the trained ``teacher`` or ``student``."""
        task = self.project.loaded.task
        return load_weights(build(getattr(task, name), self.seed), self.weights[name]).to(compute_device())

    @property
    def samples(self) -> DrawnBatches:
        """Return the training samples that a prune stage would look at."""
        return DrawnBatches(self.project.loaded.splits["train"], self.config.batch_size, self.seed, compute_device())


def case(task: str, seed: int, epochs: int, recipe_settings: Sequence[str]) -> Case:
    """Train the teacher and the student, or read them from the cache; they are not pruned yet."""
    settings = (*recipe_settings, f"seed={seed}", "prune.ratio=0", f"prune.epochs={epochs}")
    recipe = edgekd.load_recipe(task, (*settings, f"prune.round_to={edgekd.load_target('cpu').round_to}"))
    project = Project(recipe.task, CACHE)
    learned = TrainingStages(Runner(Cache(CACHE), Silent()), project, recipe, _OPSET).run()
    weights = {"teacher": learned.teacher.folder / WEIGHTS, "student": learned.student.folder / WEIGHTS}
    return Case(project, learned.stages.taps, seed, recipe.prune, weights)


def method_config(given: Case, method: str) -> PruneConfig:
    if method != "uniform":
        importance = "magnitude" if method == "made-up" else method
        return msgspec.structs.replace(given.config, importance=importance, budget=PruneBudget(macs=BUDGET))
    student = given.network("student")
    inputs = list(next(iter(given.samples)).inputs.values())
    for percent in range(5, 100, 5):
        config = msgspec.structs.replace(given.config, importance="magnitude", ratio=percent / 100)
        model = deepcopy(student)
        Cutter(model, given.taps.student, given.samples, config, [], given.seed).cut()
        if count_macs(model, inputs) <= BUDGET * count_macs(student, inputs):
            return config
    raise SystemExit("no ratio meets the budget")


def make_up(given: Case, config: PruneConfig, place: Path) -> None:
    """Leave a cut for the stage to take up: magnitude's, with what stays changed as ``gram`` would."""
    model = given.network("student").eval()
    inputs = list(next(iter(given.samples)).inputs.values())
    removed = Cutter(deepcopy(model), given.taps.student, given.samples, config, [], given.seed).cut().removed
    candidates = Candidates(model, given.taps.student, inputs, config, [])
    with traceable(model):
        evidence = ImportanceInputs(model, given.taps.student, given.samples, given.seed)
        surgeon = GramImportance(evidence, [each.members for each in candidates.find()])
    surgeon.compensate((model.get_submodule(root), channels) for root, _, channels in removed)
    remove_channels(model, candidates.ends.trace, removed)
    save_weights(model, place / WEIGHTS)
    write_text(place / REMOVED, json.dumps(removed))


def measure(given: Case, method: str, folder: Path) -> Result:
    shutil.rmtree(folder, ignore_errors=True)
    config = method_config(given, method)
    if method == "made-up":
        make_up(given, config, folder / ROUNDS / "0")
    networks = prune.PruningNetworks(*(given.network(name) for name in ("teacher", "student", "student")))
    task = given.project.loaded
    inputs = list(next(iter(given.samples)).inputs.values())
    trained = prune.run(
        task, networks, given.taps, config, StageRun(given.seed, folder, StageReporter(Silent(), "prune"))
    )
    student = probe(networks.student, given.taps.student, task.splits["test"])
    cut, tuned = Probe.load(folder / CUT_PROBE), Probe.load(folder / PROBE)
    known = ground_truth(task.splits["test"])
    drifts = [measure_drift(each, student, known.groups, Bootstrap(resamples=200)).mean for each in (cut, tuned)]
    return Result(
        macs=count_macs(networks.pruned, inputs) / count_macs(networks.student, inputs),
        metric_cut=task.metric(cut.answer, known.labels),
        metric=trained.metric,
        drift_cut=drifts[0],
        drift=drifts[1],
        flips_cut=flips(cut, student),
        flips=flips(tuned, student),
    )


def kept(given: Case, task: str, method: str) -> Result:
    """Measure, or read what was measured before: a benchmark that was stopped goes on."""
    name = f"{task}-{given.seed}-{method}-{given.config.epochs}"
    record = _KEPT / f"{name}.json"
    if not record.is_file():
        write_text(record, json.dumps(asdict(measure(given, method, _KEPT / name))))
    return Result(**json.loads(record.read_text(encoding="utf-8")))


def paired(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return the mean of the seeds' differences with its 95 % interval (Student's t)."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    half = _T[len(differences)] * statistics.stdev(differences) / math.sqrt(len(differences))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def judge(columns: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Compare ``gram`` with each baseline, and say whether the goal is met against all of them."""
    ours = columns["gram"]
    against = {}
    for name in BASELINES:
        ratio = statistics.fmean(ours["drift"]) / statistics.fmean(columns[name]["drift"])
        metric = paired(ours["metric"], columns[name]["metric"])
        met = ratio <= 0.5 and metric["high"] >= 0
        against[name] = {
            "drift_ratio": ratio,
            "drift": paired(ours["drift"], columns[name]["drift"]),
            "metric": metric,
            "met": met,
        }
    return {"against": against, "met": all(each["met"] for each in against.values())}


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--seeds", type=int, default=5, help="pairs, each a teacher and a student of its own")
    parser.add_argument("--epochs", type=int, default=10, help="of the fine-tune; the recipes have more")
    options = parse(parser, tasks=["digits"], seeds=2, epochs=1)
    torch.set_num_threads(1)
    tasks = {}
    for task in options.tasks:
        cases = [case(task, seed, options.epochs, options.recipe) for seed in range(options.seeds)]
        columns = {}
        for method in METHODS:
            results = [asdict(kept(given, task, method)) for given in cases]
            columns[method] = {name: [each[name] for each in results] for name in results[0]}
            figures = "  ".join(
                f"{name} {statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"
                for name, values in columns[method].items()
            )
            print(f"{task}  {method:10} {figures}", flush=True)
        student = [
            given.project.loaded.metric(
                probe(given.network("student"), given.taps.student, given.project.loaded.splits["test"]).answer,
                ground_truth(given.project.loaded.splits["test"]).labels,
            )
            for given in cases
        ]
        tasks[task] = {"student_metric": student, "methods": columns, "goal": judge(columns)}
        print(json.dumps(tasks[task]["goal"], indent=1))
    settings = {"budget_macs": BUDGET, "epochs": options.epochs, "seeds": options.seeds}
    write_result(__file__, {**settings, "tasks": tasks}, options)


if __name__ == "__main__":
    main()
