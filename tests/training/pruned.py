"""Cutting small networks: what the tests of pruning share."""

import torch
from small import CLASSES, TwoTowers, mlp
from torch import nn

from edgekd.config.recipe import PruneConfig, Tap
from edgekd.training.pruning.cutter import Cutter
from edgekd.training.pruning.stage import ignored_layers
from edgekd.training.task.protocol import Batch


def pruning(**changes):
    return PruneConfig(**{"round_to": 8, **changes})


class Wide(TwoTowers):
    """Branches of two widths, so that a branch that is pruned with the other shows."""

    def __init__(self):
        super().__init__(width=16)
        self.encoders["a"] = mlp(6, 32, 16)
        self.encoders["b"] = mlp(5, 64, 16)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, CLASSES))


def taps(a, b, **more):
    return {"a": Tap(module=a), "b": Tap(module=b, **more)}


def batch(shapes, count=8):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(count, *shape, generator=generator) for shape in shapes]
    return inputs, torch.arange(count) % CLASSES


def cutter(model, taps, inputs, labels, config):
    examples = Batch([""] * len(labels), dict(zip("ab", inputs, strict=True)), labels, [""] * len(labels))
    return Cutter(model, taps, [examples], config, ignored_layers(model, config.ignore), 0)


def remove_channels(model, taps, inputs, labels, config):
    return cutter(model, taps, inputs, labels, config).cut().removed


def widths(model):
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return {name: m.weight.shape[0] for name, m in model.named_modules() if isinstance(m, layers)}
