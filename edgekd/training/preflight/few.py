"""A task of a few of its samples, with which whole stages are tried before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from edgekd.training.task.protocol import read_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch, Sample, Split, Task

#: Number of samples of each split.
FEW = 8


def few_task(task: LoadedTask, count: int = FEW) -> LoadedTask:
    """Return a task of a few samples of each split, spread over it, whose metric is the same whatever is answered.

    A metric may have no value of a few samples, as the area under a curve has none without both classes; it is tried
    on whole splits elsewhere. Each modality that some sample of a split has is in one of the few.
    """
    splits = {name: _few(split, count, task.modalities) for name, split in task.splits.items()}
    return replace(task, task=cast("Task", _Unmeasured(task.task)), splits=splits)


@dataclass(frozen=True)
class _Few:
    """Some samples of a split."""

    split: Split
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.split[self.indices[index]]

    def __getitems__(self, places: Sequence[int]) -> Batch:
        return read_batch(self.split, [self.indices[place] for place in places])


class _Unmeasured:
    """A user's task with a metric that says nothing."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> object:
        """Return an attribute of the task."""
        return getattr(self._task, name)

    def metric(self, _outputs: object, _targets: object) -> float:
        """Return a number."""
        return 0.5


def _few(split: Split, count: int, modalities: Sequence[str]) -> _Few:
    spread = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)).tolist()
    for name in modalities:
        if all(name in split[index].missing for index in spread):
            having = (index for index in range(len(split)) if name not in split[index].missing)
            spread += [index for index in [next(having, None)] if index is not None]
    return _Few(split, spread)
