"""What the four examples share: real digits in three views, a trained teacher, an untrained student, the losses.

Nothing here is edgekd's to ask for: these are the networks and the data of a project that has its own training.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # an example that reads plainly

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgekd.tasks.digits import Digits

TASK = Digits()
VIEWS = [modality.name for modality in TASK.modalities]

#: Where both networks have the embedding of each view. A pair of paths says it of the teacher and the student.
TAPS = {view: f"encoders.{view}" for view in VIEWS}

#: The table [distill.loss] of a recipe.
LOSSES = {"ce": 0.1, "kd": 0.9, "temperature": 4.0, "extra": {"intra": 3.0, "sample": 0.1, "fd": 0.5}}


def dataset(split: str) -> TensorDataset:
    """Return a split whose samples are tuples: a tensor for each view, and the label."""
    part = TASK.splits()[split]
    return TensorDataset(*part.inputs.values(), part.labels)


def loader(split: str, batch_size: int = 64) -> DataLoader[tuple[Tensor, ...]]:
    """Return the batches of a split."""
    return DataLoader(dataset(split), batch_size, shuffle=split == "train")


def trained_teacher(epochs: int) -> nn.Module:
    """Return a teacher that has learned from the labels."""
    teacher = TASK.teacher().train()
    optimizer = torch.optim.AdamW(teacher.parameters(), 2e-3)
    for _ in range(epochs):
        for *views, labels in loader("train"):
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(*views), labels).backward()
            optimizer.step()
    return teacher


def accuracy(network: nn.Module) -> float:
    """Return the share of the test split's digits that a network knows."""
    *views, labels = dataset("test").tensors
    network.eval().cpu()
    with torch.no_grad():
        return float((network(*views).argmax(1) == labels).float().mean())


def finish(student: nn.Module, file: Path) -> float:
    """Write the student's weights, for ``[student] weights`` of a recipe, and return its accuracy."""
    reached = accuracy(student)
    save_file({name: value.contiguous() for name, value in student.state_dict().items()}, file)
    print(f"{file}: the student knows {reached:.1%} of the test split")
    return reached
