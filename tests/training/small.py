"""A task of two random vectors, networks that are small, and an observer that remembers."""

import copy

import torch
from torch import nn

from edgekd.config.recipe import Tap
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.progress import Silent, StageReporter
from edgekd.training.task.loading import LoadedTask
from edgekd.training.task.protocol import SPLITS, ArraySplit, Modality

SHAPES = {"a": (6,), "b": (5,)}
CLASSES = 3


class Remembers(Silent):
    def __init__(self):
        self.warnings, self.steps = [], []

    def warn(self, stage, message):
        self.warnings.append(message)

    def advance(self, stage, done, total, note):
        self.steps.append((done, total, note))


def reporter(observer=None):
    return StageReporter(observer or Silent(), "test")


def mlp(inputs, hidden, width):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, width))


class TwoTowers(nn.Module):
    """Two encoders, their embeddings concatenated, a head: the shape of network that edgekd is for."""

    def __init__(self, hidden=16, width=8, dropout=0.0, norm=False):
        super().__init__()
        self.encoders = nn.ModuleDict({name: mlp(shape[0], hidden, width) for name, shape in SHAPES.items()})
        self.norm = nn.BatchNorm1d(2 * width) if norm else nn.Identity()
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, a, b):
        z = torch.cat([self.encoders["a"](a), self.encoders["b"](b)], 1)
        return self.head(self.norm(z))


class ConvTowers(nn.Module):
    """Taps that are pooled: what the network reads on is the map, not the embedding."""

    def __init__(self, channels=8):
        super().__init__()
        self.a, self.b = nn.Conv1d(6, channels, 1), nn.Conv1d(5, channels, 1)
        self.fc = nn.Linear(2 * channels * 4, CLASSES)

    def forward(self, a, b):
        maps = [conv(x[..., None].expand(-1, -1, 4).cumsum(2)) for conv, x in ((self.a, a), (self.b, b))]
        return self.fc(torch.cat(maps, 1).flatten(1))


CONV_TAPS = {name: Tap(module=name, pool="spatial") for name in SHAPES}


class Beside(TwoTowers):
    """The tapped modules lie beside the way to the logits."""

    def __init__(self):
        super().__init__()
        self.aside = nn.ModuleDict({name: nn.Linear(8, 4) for name in "ab"})

    def forward(self, a, b):
        for name, x in (("a", a), ("b", b)):
            self.aside[name](self.encoders[name](x))
        return super().forward(a, b)


TAPS = {name: Tap(module=f"encoders.{name}") for name in SHAPES}


def split(name, count, shapes=None, seed=0):
    """A split whose label is where the sum of both modalities' first features lies."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {key: torch.randn(count, *shape, generator=generator) for key, shape in (shapes or SHAPES).items()}
    total = sum(x.flatten(1)[:, 0] for x in inputs.values())
    labels = (total > -0.6).long() + (total > 0.6).long()
    return ArraySplit([f"{name}-{index}" for index in range(count)], inputs, labels)


class SmallTask:
    """Meets the protocol; networks and sizes are as given."""

    def __init__(self, network=TwoTowers, counts=(90, 20, 20, 30), shapes=None):
        self.shapes = shapes or SHAPES
        self.modalities = [Modality(name, shape) for name, shape in self.shapes.items()]
        self.network, self.counts = network, counts

    def splits(self):
        return {
            name: split(name, count, self.shapes, seed)
            for seed, (name, count) in enumerate(zip(SPLITS, self.counts, strict=True))
        }

    def teacher(self):
        return self.network()

    def student(self):
        return self.network()


class Late(nn.Module):
    """Two wider encoders, and one layer for a head."""

    def __init__(self, hidden=32, width=8):
        super().__init__()
        self.encoders = nn.ModuleDict({name: mlp(shape[0], hidden, width) for name, shape in SHAPES.items()})
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.encoders["a"](a), self.encoders["b"](b)], 1))


class Scarce(SmallTask):
    """Few samples, fewer labels, and a teacher that knows: the labels are its own."""

    def __init__(self):
        super().__init__(Late, (60, 300, 20, 30))
        generator = torch.Generator().manual_seed(5)
        self.oracle = Late()
        with torch.no_grad():
            for parameter in self.oracle.parameters():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
            self.oracle.head.bias.sub_(self._logits(split("", 500, seed=9)).mean(0))

    def _logits(self, split):
        with torch.no_grad():
            return self.oracle(*split.inputs.values())

    def splits(self):
        made = {}
        for name, unlabelled in super().splits().items():
            labels = self._logits(unlabelled).argmax(1)
            labels[12 if name == "train" else len(labels) :] = UNLABELLED
            made[name] = ArraySplit(unlabelled.ids, unlabelled.inputs, labels)
        return made

    def teacher(self):
        return copy.deepcopy(self.oracle)


class Easy(SmallTask):
    """Any network solves it."""

    def splits(self):
        made = {}
        for name, whole in super().splits().items():
            labels = torch.arange(len(whole)) % CLASSES
            inputs = {key: x + 4 * torch.eye(CLASSES, x.shape[1])[labels] for key, x in whole.inputs.items()}
            made[name] = ArraySplit(whole.ids, inputs, labels)
        return made


class Unlabelled(SmallTask):
    """Its validation split has no labels."""

    def splits(self):
        made = super().splits()
        val = made["val"]
        return {**made, "val": ArraySplit(val.ids, val.inputs, torch.full_like(val.labels, UNLABELLED))}


def loaded(**options):
    task = SmallTask(**options)
    return LoadedTask(task, task.splits(), ())
