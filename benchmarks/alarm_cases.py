"""The float networks of the alarm study: classifiers of the shipped tasks, regressions, and pairs of towers."""

from __future__ import annotations

import re
import shutil
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from common import CACHE
from torch import Tensor, nn
from torch.nn import functional

import edgekd
from edgekd.config.recipe import PruneBudget, PruneConfig, Tap
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.stages.artifacts import WEIGHTS
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Silent, StageReporter
from edgekd.stages.stage import Runner
from edgekd.tasks.digits import Digits
from edgekd.tasks.gestures import Gestures
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.pruning import stage as prune
from edgekd.training.pruning.cutter import Cutter
from edgekd.training.pruning.samples import DrawnBatches
from edgekd.training.stage_run import StageRun
from edgekd.training.task.models import Conv1dEncoder, LateFusion, MlpEncoder, Standardize
from edgekd.training.task.protocol import ArraySplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from edgekd.gram.output_kind import OutputName

Array = np.ndarray[Any, Any]

PROBED, HELD_OUT = ("val", "calibration"), ("test",)
OPSET = 20
_SMALL = "task.options.student={channels=[16,32,32]}"
#: What the recipes of the classifiers say otherwise: less training, and small networks, since hundreds are run.
_RECIPES = {
    "digits": ("digits", ()),
    "digits-6": ("digits", ('task.options.views=["fac","fou","kar","mor","pix","zer"]',)),
    "gestures": (
        "gestures", ("task.options.teacher={channels=[32,64]}", _SMALL, "teacher.epochs=8", "distill.epochs=20"),
    ),
    "av-digits": ("av-digits", ("teacher.epochs=6", "distill.epochs=12")),
}  # fmt: skip
_BATCH, _RATE, _DECAY = 64, 2e-3, 1e-2
_TEMPERATURE = 0.07
_WIDTH = 32
#: Recall is at so many of a pool of so many.
_NEAREST, _POOL = 5, 100


@dataclass(frozen=True)
class Case:
    """One trained float network.

    Attributes:
        name: Name of the task.
        kind: What its output is.
        seed: Seed of its training.
        model: The network.
        taps: For each modality where its embedding is.
        splits: The samples.
        targets: For each split what the metric takes beside outputs: labels or numbers; empty for towers.
        prune: Cuts a copy of the network and fine-tunes it: importance, share of the multiply-accumulates, epochs.
    """

    name: str
    kind: OutputName
    seed: int
    model: nn.Module
    taps: Mapping[str, Tap]
    splits: Mapping[str, ArraySplit]
    targets: Mapping[str, Array]
    prune: Callable[[str, float, int], nn.Module]

    def feeds(self, *names: str) -> dict[str, Array]:
        """Return the inputs of some splits, one after another, by modality."""
        found = [self.splits[name].inputs for name in names]
        return {key: np.concatenate([inputs[key].numpy() for inputs in found]) for key in found[0]}

    def ids(self, *names: str) -> Array:
        """Return the samples' names."""
        return np.array([each for name in names for each in self.splits[name].ids])

    def units(self, *names: str) -> Array:
        """Return for each sample the number of the unit that it belongs to: its recording, or itself."""
        ids = self.ids(*names)
        found = [re.search(r"-r(?:ecording-)?\d+", each) for each in ids]
        labels = [match[0] if match and self.name != "digits" else each for match, each in zip(found, ids, strict=True)]
        return np.unique(labels, return_inverse=True)[1]

    def target(self, *names: str) -> Array | None:
        """Return what the metric takes beside outputs; None for towers."""
        return np.concatenate([self.targets[name] for name in names]) if self.targets else None

    @cached_property
    def seed_of(self) -> str:
        """Name and seed, for files."""
        return f"{self.name}-{self.seed}"


def load_case(name: str, seed: int, quick: Sequence[str], work: Path) -> Case:
    """Train a network, or read it from the cache.

    Args:
        name: Name of the task.
        seed: Seed of the training.
        quick: What recipes say otherwise in a quick run; nothing in a real one.
        work: Folder for what is kept between runs.
    """
    torch.set_num_threads(1)
    if name in _RECIPES:
        return _classifier(name, seed, quick)
    data, what = name.split("-")
    return _own(name, data, what, seed, 1 if quick else 30, work)


def _classifier(name: str, seed: int, quick: Sequence[str]) -> Case:
    task, settings = _RECIPES[name]
    recipe = edgekd.load_recipe(task, (*settings, *quick, f"seed={seed}", "prune.ratio=0"))
    project = Project(recipe.task, CACHE)
    learned = TrainingStages(Runner(Cache(CACHE), Silent()), project, recipe, OPSET).run()
    loaded = project.loaded
    places = {"teacher": learned.teacher.folder / WEIGHTS, "student": learned.student.folder / WEIGHTS}

    def network(which: str) -> nn.Module:
        return load_weights(build(getattr(loaded.task, which), seed), places[which]).eval()

    def pruned(importance: str, macs: float, epochs: int) -> nn.Module:
        given = {"importance": importance, "budget": PruneBudget(macs=macs), "epochs": epochs, "round_to": 1}
        config = msgspec.structs.replace(recipe.prune, **given)
        networks = prune.PruningNetworks(network("teacher"), network("student"), network("student"))
        folder = CACHE.parent / "alarm-prune"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run = StageRun(seed, folder, StageReporter(Silent(), "prune"))
        prune.run(loaded, networks, learned.stages.taps, config, run)
        return networks.pruned.eval()

    splits = loaded.task.splits()
    labels = {key: split.labels.numpy() for key, split in splits.items()}
    return Case(name, "classes", seed, network("student"), learned.stages.taps.student, splits, labels, pruned)


class Towers(nn.Module):
    """Two encoders whose embeddings are compared by their direction: [B, 2 * width], the query's and the other's."""

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embed the inputs [B, ...], in order."""
        given = zip(self.encoders.values(), inputs, strict=True)
        return torch.cat([functional.normalize(encoder(x)) for encoder, x in given], 1)


def _own(name: str, data: str, what: str, seed: int, epochs: int, work: Path) -> Case:
    """Train a network without a teacher."""
    splits, targets = _data(data, what)
    torch.manual_seed(seed)
    train = splits["train"].inputs
    encoders = {key: nn.Sequential(Standardize(x), _encoder(x)) for key, x in train.items()}
    model: nn.Module = Towers(encoders)
    if what == "values":
        model = LateFusion(encoders, _WIDTH, 32, targets["train"].shape[1])
    kept = work / f"{name}-{seed}.pt"
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
    else:
        wanted = torch.from_numpy(targets["train"]) if targets else None
        _train(
            model,
            list(train.values()),
            lambda out, rows: _loss(out, None if wanted is None else wanted[rows]),
            epochs,
            seed,
        )
        torch.save(model.state_dict(), kept)
    model.eval()
    taps = {key: Tap(f"encoders.{key}") for key in train}

    def pruned(importance: str, macs: float, epochs: int) -> nn.Module:
        small = deepcopy(model)
        config = PruneConfig(importance=importance, budget=PruneBudget(macs=macs), round_to=1)
        samples = DrawnBatches(splits["train"], _BATCH, seed, torch.device("cpu"))
        Cutter(small, taps, samples, config, [], seed).cut()
        with torch.inference_mode():
            answers = model(*train.values())
        answers = answers.clone()
        scale = answers.var()
        _train(small, list(train.values()), lambda out, rows: ((out - answers[rows]) ** 2).mean() / scale, epochs, seed)
        return small.eval()

    kind: OutputName = "regression" if what == "values" else "embedding"
    return Case(name, kind, seed, model, taps, splits, targets, pruned)


def _data(data: str, what: str) -> tuple[dict[str, ArraySplit], dict[str, Array]]:
    """Return the splits, and for each the standardised numbers of a regression."""
    if data == "digits":
        views = ("fac", "zer") if what == "towers" else ("fou", "zer", "mor")
        source: Any = Digits(views).splits()
        inputs = {key: {view: split.inputs[view] for view in views[:2]} for key, split in source.items()}
        numbers = {key: split.inputs[views[-1]].numpy() for key, split in source.items()}
    else:
        source = Gestures().splits()
        half = slice(None) if what == "towers" else slice(0, 50)
        inputs = {
            key: {name: x[..., half].contiguous() for name, x in split.inputs.items()} for key, split in source.items()
        }
        numbers = {
            key: np.concatenate([x[..., 50:].mean(-1).numpy() for x in split.inputs.values()], 1)
            for key, split in source.items()
        }
    splits = {
        key: ArraySplit(split.ids, inputs[key], torch.zeros(len(split), dtype=torch.int64))
        for key, split in source.items()
    }
    if what == "towers":
        return splits, {}
    mean, deviation = numbers["train"].mean(0), numbers["train"].std(0)
    return splits, {key: ((x - mean) / deviation).astype(np.float32) for key, x in numbers.items()}


def _encoder(x: Tensor) -> nn.Module:
    if x.dim() == 2:
        return MlpEncoder(x.shape[1], (64,), _WIDTH)
    return Conv1dEncoder((x.shape[1], 16, 32, 32), _WIDTH)


def _loss(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """Return the squared error, or for towers the symmetric InfoNCE."""
    if targets is not None:
        return functional.mse_loss(outputs, targets)
    a, b = outputs.chunk(2, 1)
    scores, own = a @ b.T / _TEMPERATURE, torch.arange(len(a))
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


def _train(
    model: nn.Module, inputs: Sequence[Tensor], loss_of: Callable[[Tensor, Tensor], Tensor], epochs: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=_DECAY)
    steps = len(inputs[0]) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=epochs * steps + 1)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs[0]), generator=draw)[: steps * _BATCH].split(_BATCH):
            loss = loss_of(model(*(x[rows] for x in inputs)), rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def metric(kind: OutputName, outputs: Array, targets: Array | None, index: Array | None = None) -> Array:
    """Return the metric's terms of each sample [N]; the metric is their mean.

    Args:
        kind: What the output is.
        outputs: The output [N, D]; of towers the queries'.
        targets: Labels [N] or numbers [N, D].
        index: Of towers the other tower's embeddings [N, D]: a query's own is to be among the five nearest of the
            hundred of its pool.
    """
    if kind == "classes":
        return (outputs.argmax(1) == targets).astype(np.float64)
    if kind == "regression":
        assert targets is not None
        power = ((targets - targets.mean(0)) ** 2).mean()
        return 1 - ((outputs - targets) ** 2).mean(1) / power
    assert index is not None
    pool = np.arange(len(outputs)) // _POOL
    cosines = np.where(pool[:, None] == pool, outputs @ index.T, -np.inf)
    own = np.diag(cosines)[:, None]
    return ((cosines > own).sum(1) < _NEAREST).astype(np.float64)
