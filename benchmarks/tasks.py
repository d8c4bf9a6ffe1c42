"""Tasks that are more than classes: does the distilled student beat plain distillation, and a usual model?

On each task one teacher is trained, and from it students with several seeds: with the loss of the recipe, and with
Hinton's alone, for as many epochs, from the same first weights and in the same order of samples. The metric is the
task's own, on the test split. scikit-learn's usual model of the task is trained on the same samples.

A difference is told as won or lost where the 95 % interval over the pairs of seeds (Student's t) leaves out zero, else
as a tie. The interval is over students: another teacher may do otherwise.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import CACHE, arguments, keep, kept, parse, write_result
from pruning import paired

import edgekd
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.stages.artifacts import WEIGHTS
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Silent, StageReporter
from edgekd.stages.stage import Runner
from edgekd.training.loop.evaluate import ground_truth, probe
from edgekd.training.loop.weights import build, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from edgekd.config.recipe import DistillConfig
    from edgekd.training.task.loading import LoadedTask

TASKS = ("emoji", "icons", "solar", "tissue")
METHODS = ("edgekd", "KD")
_OPSET = 20
_KEPT = Path("build/benchmarks/tasks.json")
_RUNS = Path("build/benchmarks/tasks")


class Case:
    """A task with its trained teacher.

    Args:
        task: Name of the shipped task.
        settings: What its recipe says otherwise.
    """

    def __init__(self, task: str, settings: tuple[str, ...]) -> None:
        self.recipe = edgekd.load_recipe(task, (*settings, "threads=1"))
        self.plain = edgekd.load_recipe(task, (*settings, "threads=1", "distill.loss.extra={}"))
        self.project = Project(self.recipe.task, CACHE)
        self.stages = TrainingStages(Runner(Cache(CACHE), Silent()), self.project, self.recipe, _OPSET)
        self.loaded: LoadedTask = self.project.loaded
        start = time.perf_counter()
        self.teacher = self.stages.teacher()
        self.teacher_seconds = time.perf_counter() - start

    def metric(self, network: nn.Module, which: str) -> float:
        """Return the task's metric of a network on the test split."""
        taps = getattr(self.stages.taps, which)
        test = self.loaded.splits["test"]
        return self.loaded.metric(probe(network, taps, test).answer, ground_truth(test).targets)

    def student(self, method: str, seed: int) -> dict[str, float]:
        """Distil a student, and measure it."""
        config: DistillConfig = (self.recipe if method == "edgekd" else self.plain).distill
        folder = _RUNS / f"{self.recipe.task.name}-{method}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # a stopped run's, which a new one would take up
        folder.mkdir(parents=True)
        start = time.perf_counter()
        self.stages.distil(self.teacher, config, seed, folder, StageReporter(Silent(), "distill"))
        seconds = time.perf_counter() - start
        network = load_weights(build(self.loaded.task.student, seed), folder / WEIGHTS)
        return {"metric": self.metric(network, "student"), "seconds": seconds}


def words_and_pixels(loaded: LoadedTask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for train and test the words as a bag of their ids, and 60 principal components of the pictures."""
    from sklearn.decomposition import PCA

    train, test = (loaded.splits[name].inputs for name in ("train", "test"))
    pixels = PCA(60, random_state=0).fit(train["picture"].flatten(1).numpy())
    parts = []
    for inputs in (train, test):
        tokens = inputs["words"].numpy()
        bag = np.zeros((len(tokens), 1024))
        np.put_along_axis(bag, tokens, 1.0, axis=1)
        bag[:, 0] = 0  # which only fills up
        components = pixels.transform(inputs["picture"].flatten(1).numpy())
        # As large as a word, so that the penalty treats both alike.
        parts.append(np.concatenate([bag, components / np.sqrt(pixels.explained_variance_[0])], axis=1))
    return parts[0], parts[1]


def emoji_baseline(loaded: LoadedTask) -> dict[str, float]:
    """Classify by logistic regression; match pictures and names by canonical correlation of what it reads."""
    from sklearn.cross_decomposition import PLSCanonical
    from sklearn.linear_model import LogisticRegression

    from edgekd.tasks.emoji import found_names

    train, test = words_and_pixels(loaded)
    labels = [loaded.splits[name].labels.numpy() for name in ("train", "test")]
    accuracy = LogisticRegression(max_iter=1000).fit(train, labels[0]).score(test, labels[1])
    matching = PLSCanonical(32).fit(train[:, 1024:], train[:, :1024])
    found = found_names(*matching.transform(test[:, 1024:], test[:, :1024]))
    return {"logistic regression and PLS": (accuracy + found) / 2, "accuracy alone": accuracy, "recall@5 alone": found}


def icons_baseline(loaded: LoadedTask) -> dict[str, float]:
    """Tag by a logistic regression for each tag, of both modalities and of the words alone."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    train, test = words_and_pixels(loaded)
    targets = [loaded.splits[name].targets.numpy() for name in ("train", "test")]
    found = {}
    for name, columns in {"logistic regression": slice(None), "logistic regression, words alone": slice(1024)}.items():
        model = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(train[:, columns], targets[0])
        scores = np.asarray(model.predict_proba(test[:, columns]))
        found[name] = loaded.metric(np.log(scores / (1 - scores)).astype(np.float32), targets[1])
    return found


def solar_baseline(loaded: LoadedTask) -> dict[str, float]:
    """Foretell by ridge regression, and by boosted trees for each hour."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = (
        np.concatenate([x.flatten(1).numpy() for x in loaded.splits[name].inputs.values()], axis=1)
        for name in ("train", "test")
    )
    targets = [loaded.splits[name].targets.numpy() for name in ("train", "test")]
    models = {
        "ridge regression": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))),
        "gradient boosting": MultiOutputRegressor(HistGradientBoostingRegressor(random_state=0)),
    }
    return {
        name: loaded.metric(model.fit(train, targets[0]).predict(test).astype(np.float32), targets[1])
        for name, model in models.items()
    }


def tissue_baseline(loaded: LoadedTask) -> dict[str, float]:
    """Classify each pixel by the 5 x 5 pixels around it, without the surroundings, by two models."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    random = np.random.RandomState(0)
    train, test = (loaded.splits[name] for name in ("train", "test"))
    pixels = pixel_features(train.inputs["detail"].numpy()[:, 0])
    chosen = random.permutation(len(pixels))[:60_000]  # of three quarters of a million, which would take long
    truth = train.targets.numpy().reshape(-1)
    told, shape = pixel_features(test.inputs["detail"].numpy()[:, 0]), test.targets.shape
    models = {
        "logistic regression": LogisticRegression(max_iter=1000),
        "gradient boosting": HistGradientBoostingClassifier(random_state=0),
    }
    found = {}
    for name, model in models.items():
        scores = model.fit(pixels[chosen], truth[chosen]).predict_proba(told)
        maps = np.log(scores + 1e-9).reshape(*shape, -1).transpose(0, 3, 1, 2).astype(np.float32)
        found[name] = loaded.metric(maps, test.targets.numpy())
    return found


def pixel_features(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return for each pixel of patches [N, S, S] the 5 x 5 pixels around it, [N * S * S, 25], in hundreds."""
    padded = np.pad(patches, ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    return windows.reshape(-1, 25) / np.float32(100)


BASELINES: dict[str, Callable[[LoadedTask], dict[str, float]]] = {
    "emoji": emoji_baseline,
    "icons": icons_baseline,
    "solar": solar_baseline,
    "tissue": tissue_baseline,
}


def verdict(difference: dict[str, float]) -> str:
    """Return whether a difference and its interval are a win, a loss or a tie."""
    if difference["low"] > 0:
        return "won"
    return "lost" if difference["high"] < 0 else "tie"


def compare(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of edgekd's students to plain distillation's, and to the best usual model."""
    ours, theirs = ([run["metric"] for run in raw[method]] for method in METHODS)
    best = max(value for name, value in raw["baselines"].items() if not name.endswith("alone") or "words" in name)
    against = {"KD": paired(ours, theirs), "usual model": paired(ours, [best] * len(ours))}
    return {name: {**difference, "verdict": verdict(difference)} for name, difference in against.items()}


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--seeds", type=int, default=5, help="students of each method")
    options = parse(parser, tasks=["solar"], seeds=2)
    found = kept(_KEPT)
    for name in options.tasks:
        case = Case(name, options.recipe)
        raw = found.setdefault(name, {method: [] for method in METHODS})
        if "baselines" not in raw:
            raw["baselines"] = BASELINES[name](case.loaded)
            raw["teacher"] = {"metric": case.metric(case.stages.load_teacher(case.teacher), "teacher")}
            raw["metric"] = case.loaded.metric_name
            keep(_KEPT, found)
            print(name, json.dumps({"teacher": raw["teacher"], "baselines": raw["baselines"]}), flush=True)
        for seed in range(options.seeds):
            for method in METHODS:
                if len(raw[method]) <= seed:
                    raw[method].append(case.student(method, seed))
                    keep(_KEPT, found)
                    print(name, method, seed, raw[method][-1], flush=True)
        if options.seeds > 1:
            raw["against"] = compare(raw)
            means = {method: statistics.fmean(run["metric"] for run in raw[method]) for method in METHODS}
            print(name, means, json.dumps(raw["against"]), flush=True)
    write_result(__file__, {"seeds": options.seeds, "tasks": {name: found[name] for name in options.tasks}}, options)


if __name__ == "__main__":
    main()
