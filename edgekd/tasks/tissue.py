"""The tissue at each pixel of a slice of a brain, from a noisy scan: the ICBM 152 template."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekd.errors import DataError, TaskError
from edgekd.tasks.catalogue import NILEARN, TISSUE
from edgekd.tasks.networks import TwoScales
from edgekd.tasks.packages import fetch, read_members
from edgekd.training.task.models import Standardize
from edgekd.training.task.output import Output
from edgekd.training.task.protocol import SPLITS, ArraySplit, Modality, resized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    _Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class TissueSize:
    """The size of a network.

    Attributes:
        width: Channels at the half and the quarter resolution, at which both modalities' embeddings are; at the full
            there are half as many.
    """

    width: int


TEACHER = TissueSize(width=32)
STUDENT = TissueSize(width=16)

TISSUES = ("outside", "grey matter", "white matter", "fluid")

#: Side of a patch in pixels, which are 1 mm wide, and how much wider its surroundings are.
SIDE, WIDER = 32, 3

#: Shape of the template in mm: from left to right, from back to front, from below to above.
SHAPE = (197, 233, 189)
#: Bytes before the first value of a file.
_HEADER = 352

#: A block of slices belongs to one split; between blocks a gap is left out. The splits of the blocks from below.
BLOCK, GAP = 9, 3
BLOCKS = ("train", "test", "train", "val", "train", "test", "train", "calibration", "train", "test", "train", "train")
FIRST_SLICE = 20

#: Share of a patch that must be brain.
LEAST_BRAIN = 0.3

#: Seed of the noise and of the samples' order, which never changes: every seed of a recipe is measured on the same.
NOISE_SEED = 21

MODALITIES = (
    Modality("detail", (1, SIDE, SIDE), "T1-weighted scan of 32 x 32 mm, 1 mm a pixel, brightness 0 to 255 and noise"),
    Modality("surroundings", (1, SIDE, SIDE), "the 96 x 96 mm around it, 3 mm a pixel, each the mean of 3 x 3"),
)


class Tissue:
    """Patches of slices of the left half of one brain. Meets :class:`edgekd.training.task.protocol.Task`.

    The brain is a template, the mean of 152 people's, and the same on both sides; so half of it is taken, and blocks of
    neighbouring slices are put into one split, with 3 mm between blocks. The tissue of a pixel is what the template's
    own maps say is the likeliest. The scan is real, and spoilt for edgekd by noise as of a fast scan. So nothing
    measured here holds for another person's brain, and no published number compares.

    Args:
        noise: Standard deviation of the noise in both channels of the scanner; brightness is 0 to 255.
        teacher: Fields of :class:`TissueSize` that replace those of ``TEACHER``.
        student: Fields of :class:`TissueSize` that replace those of ``STUDENT``.

    Raises:
        TaskError: The noise is out of its range, or a size has an unknown field.
        DataError: The data cannot be fetched or read.
    """

    modalities: Sequence[Modality] = MODALITIES
    outputs = (Output("tissue", "dense-classes", classes=TISSUES),)
    licence = TISSUE.licence
    citation = TISSUE.citation

    def __init__(
        self,
        noise: float = 40.0,
        teacher: Mapping[str, object] | None = None,
        student: Mapping[str, object] | None = None,
    ) -> None:
        if not 0 <= noise <= 255:
            raise TaskError(f"task tissue: noise = {noise}; it is from 0 to 255")
        self.teacher_taps = self.student_taps = {
            modality.name: {"module": modality.name, "pool": "spatial"} for modality in MODALITIES
        }
        self._teacher_size = resized(TEACHER, teacher)
        self._student_size = resized(STUDENT, student)
        archive = fetch(NILEARN)
        self.files: Sequence[Path] = (archive,)
        self._splits = _split(*read_brain(archive), noise)

    def splits(self) -> dict[str, ArraySplit]:
        """Return the patches of 7, 1, 1 and 3 blocks of slices for train, val, calibration and test."""
        return self._splits

    def teacher(self) -> nn.Module:
        """Return the untrained teacher: logits [B, 4, 32, 32] of raw patches."""
        return self._network(self._teacher_size)

    def student(self) -> nn.Module:
        """Return the untrained student: logits [B, 4, 32, 32] of raw patches."""
        return self._network(self._student_size)

    def _network(self, size: TissueSize) -> nn.Module:
        train = self._splits["train"].inputs
        return TwoScales(
            (size.width // 2, size.width), len(TISSUES), [Standardize(train[modality.name]) for modality in MODALITIES]
        )


def read_brain(archive: Path) -> tuple[_Bytes, _Bytes]:
    """Read the left half of the template.

    Returns:
        Brightness uint8 [98, 233, 189], and the index of the tissue of each place, uint8 of the same shape.

    Raises:
        DataError: The archive lacks it, or it is damaged.
    """
    names = [
        f"nilearn/datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")
    ]
    try:
        volumes = [
            # From the first column on, as the format NIfTI-1 has them.
            np.frombuffer(gzip.decompress(raw), np.uint8, offset=_HEADER).reshape(SHAPE, order="F")
            for raw in read_members(archive, names)
        ]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{archive}: the brain in it is damaged: {error}") from error
    brightness, grey, white = (volume[: SHAPE[0] // 2] for volume in volumes)
    inside = np.where(white > np.maximum(grey, 127), 2, np.where(grey > 127, 1, 3))
    return brightness, np.where(brightness == 0, 0, inside).astype(np.uint8)


def _split(brightness: _Bytes, tissue: _Bytes, noise: float) -> dict[str, ArraySplit]:
    # RandomState, since its stream is frozen: a Generator's may change with numpy's version.
    random = np.random.RandomState(NOISE_SEED)
    places: dict[str, list[tuple[int, int, int]]] = {name: [] for name in SPLITS}
    slices: dict[int, NDArray[np.float32]] = {}
    for block, name in enumerate(BLOCKS):
        first = FIRST_SLICE + block * (BLOCK + GAP)
        for height in range(first, first + BLOCK, 2):  # neighbours are nearly alike
            slices[height] = noisy(brightness[:, :, height], noise, random)
            places[name] += [(height, row, column) for row, column in _patches(brightness[:, :, height])]
    return {name: _patches_split(slices, tissue, places[name], random) for name in places}


def noisy(brightness: _Bytes, noise: float, random: np.random.RandomState) -> NDArray[np.float32]:
    """Return a slice as a scanner gives it: the length of a vector with noise on both of its parts."""
    real, imaginary = (noise * random.standard_normal(brightness.shape) for _ in range(2))
    return np.round(np.hypot(brightness + real, imaginary)).astype(np.float32)


def _patches(brightness: _Bytes) -> list[tuple[int, int]]:
    """Return the corners of the patches of a slice that hold enough brain; neighbours overlap by half."""
    corners = [
        (row, column)
        for row in range(0, brightness.shape[0] - SIDE + 1, SIDE // 2)
        for column in range(0, brightness.shape[1] - SIDE + 1, SIDE // 2)
    ]
    return [
        (row, column)
        for row, column in corners
        if (brightness[row : row + SIDE, column : column + SIDE] > 0).mean() >= LEAST_BRAIN
    ]


def _patches_split(
    slices: Mapping[int, NDArray[np.float32]],
    tissue: _Bytes,
    places: Sequence[tuple[int, int, int]],
    random: np.random.RandomState,
) -> ArraySplit:
    chosen = [places[index] for index in random.permutation(len(places))]
    margin = SIDE * (WIDER - 1) // 2
    details, around, truth = [], [], []
    for height, row, column in chosen:
        wide = np.pad(slices[height], margin)[row : row + WIDER * SIDE, column : column + WIDER * SIDE]
        details.append(slices[height][row : row + SIDE, column : column + SIDE])
        around.append(wide.reshape(SIDE, WIDER, SIDE, WIDER).mean((1, 3)))
        truth.append(tissue[row : row + SIDE, column : column + SIDE, height])
    return ArraySplit(
        ids=[f"tissue-z{height:03d}-y{column:03d}-x{row:03d}" for height, row, column in chosen],
        inputs={
            "detail": torch.from_numpy(np.stack(details)[:, None]),
            "surroundings": torch.from_numpy(np.stack(around)[:, None].astype(np.float32)),
        },
        targets=torch.from_numpy(np.stack(truth).astype(np.int64)),
        groups=[f"slice-{height:03d}" for height, _, _ in chosen],
    )
