"""A task whose samples are read one by one and augmented, as a user's file has it."""

import random

import numpy as np
import torch
from torch import nn

from edgekd import Modality, Sample

SHAPES = {"a": (6,), "b": (5,)}


class Augmented:
    """Draws from every global generator when a sample is read."""

    def __init__(self, name, count, fails_at=None):
        self.ids = [f"{name}-{index}" for index in range(count)]
        self.fails_at = fails_at

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        if index == self.fails_at:
            raise OSError("the disk is gone")
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        inputs = {key: torch.full(shape, noise + index) for key, shape in SHAPES.items()}
        return Sample(self.ids[index], inputs, index % 3)


def inner_class():
    class Inner:
        pass

    return Inner


class Task:
    modalities = tuple(Modality(name, shape) for name, shape in SHAPES.items())

    def __init__(self, fails=False, opened=False, inner=False):
        self.fails = fails
        if inner:
            self.inner = inner_class()
        if opened:
            self.opened = (number for number in range(3))  # as an open file, it cannot leave its process

    def splits(self):
        counts = {"train": 40, "val": 6, "calibration": 6, "test": 6}
        return {
            name: Augmented(name, count, 33 if self.fails and name == "train" else None)
            for name, count in counts.items()
        }

    def teacher(self):
        return nn.Bilinear(6, 5, 3)

    student = teacher
