"""Figures of epochs in files that TensorBoard shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_epoch(folder: Path, epoch: int, figures: Mapping[str, float]) -> None:
    """Write the figures of one epoch into a folder, in a file of its own.

    So whoever looks on sees it at once, and a killed build leaves whole files.
    """
    with SummaryWriter(str(folder)) as writer:
        for name, value in figures.items():
            writer.add_scalar(name, value, epoch)
