"""Check every sample of a task, in one pass over each split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekd.errors import TaskError, nearest
from edgekd.training.loop.evaluate import ground_truth
from edgekd.training.preflight.data import SplitFacts
from edgekd.training.preflight.outputs import check_targets
from edgekd.training.task.checks import check_shapes
from edgekd.training.task.protocol import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.training.loop.evaluate import GroundTruth
    from edgekd.training.preflight.ids import IdTables
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch


def check_samples(
    task: LoadedTask, shapes: Mapping[str, tuple[int, ...]], tables: IdTables
) -> tuple[dict[str, GroundTruth], dict[str, SplitFacts]]:
    """Read every sample of every split once.

    Args:
        task: The user's task.
        shapes: Shape of each output of the networks, without the batch.
        tables: The tables in which the networks look ids up.

    Returns:
        The ground truth of each split, and what else was seen of it.

    Raises:
        TaskError: A sample's shapes are wrong, an input is not finite, an id is no row of its table, a label is out of
            range, or a group is in two splits.
    """
    facts = {name: SplitFacts() for name in SPLITS}
    truths = {name: _read(task, name, shapes, tables, facts[name]) for name in SPLITS}
    _check_groups(truths)
    return truths, facts


def check_batch_shapes(where: str, task: LoadedTask, batch: Batch) -> None:
    """Check the names, order and shapes of a batch's inputs.

    Raises:
        TaskError: They are not those of the task's modalities.
    """
    check_shapes(where, task.task, {key: tuple(x.shape[1:]) for key, x in batch.inputs.items()})


def _read(
    task: LoadedTask, name: str, shapes: Mapping[str, tuple[int, ...]], tables: IdTables, facts: SplitFacts
) -> GroundTruth:
    """Check every sample of a split, in one pass, and return their ground truth."""
    where = f"split '{name}'"

    def check_batch(batch: Batch) -> None:
        check_batch_shapes(where, task, batch)
        _check_finite(where, batch)
        tables.check(where, batch)
        _check_present(where, task, batch)
        check_targets(where, task, batch, shapes)
        facts.add(batch)

    with task.running(f"reading {where}"):
        return ground_truth(task.splits[name], check_batch)


def _check_groups(truths: Mapping[str, GroundTruth]) -> None:
    owner: dict[str, str] = {}
    for name, known in truths.items():
        if known.groups is None:
            continue
        lone = known.ids[known.groups == ""]
        if len(lone):
            raise TaskError(f"split '{name}': sample '{lone[0]}' has no group, but others have; give all one, or none")
        for group in np.unique(known.groups).tolist():
            if group in owner:
                raise TaskError(
                    f"group '{group}' is in split '{owner[group]}' and in '{name}'; samples of one group are alike, so "
                    "it must be in one split only, or every measured number is too good"
                )
            owner[group] = name


def _check_finite(where: str, batch: Batch) -> None:
    for name, x in batch.inputs.items():
        wrong = (~torch.isfinite(x)).reshape(len(x), -1).any(1).nonzero()
        if len(wrong):
            raise TaskError(
                f"{where}: input '{name}' of sample '{batch.ids[int(wrong[0])]}' holds NaN or infinite values"
            )


def _check_present(where: str, task: LoadedTask, batch: Batch) -> None:
    for name in batch.present:
        if name not in task.modalities:
            raise TaskError(
                f"{where}: samples are said to lack '{name}', which is no modality of the task"
                + nearest(name, task.modalities)
            )
