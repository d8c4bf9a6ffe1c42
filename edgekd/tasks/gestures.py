"""Shoulder exercises from the accelerometer and gyroscope of a watch: the data of seglearn."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from edgekd.errors import DataError
from edgekd.tasks.catalogue import GESTURES, SEGLEARN
from edgekd.tasks.packages import fetch, read_member
from edgekd.training.task.models import Conv1dEncoder, LateFusion, Standardize
from edgekd.training.task.protocol import ArraySplit, Modality, resized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.files import JsonObject


@dataclass(frozen=True)
class GesturesSize:
    """The size of a network.

    Attributes:
        channels: Output channels of each stride-2 convolution over time.
        width: Width of every embedding.
        head: Hidden units of the head.
    """

    channels: Sequence[int]
    width: int
    head: int


TEACHER = GesturesSize(channels=(128, 256, 256), width=64, head=64)
STUDENT = GesturesSize(channels=(32, 64, 64), width=32, head=32)

#: Subjects of each split, chosen by number and not by result. Windows of one subject are alike, so a subject is in one
#: split only; three are for the test, since a confidence bound over subjects needs several.
SUBJECTS = {"train": (1, 2, 3, 4, 5), "val": (6,), "calibration": (7,), "test": (8, 9, 10)}

#: Seed of the order of windows within a split.
ORDER_SEED = 20

#: Length and step of windows, in samples at 50 Hz: they last 2 s and overlap by half.
WINDOW = 100
STEP = 50

#: Columns of each modality in a recording.
CHANNELS = {"accel": slice(0, 3), "gyro": slice(3, 6)}

# The package names no units. The magnitude of the accelerometer is about 1 at rest; and the turning of its gravity is
# explained by the gyroscope with factors of about 1, where degrees would give 0.02.
MODALITIES = (
    Modality("accel", (3, WINDOW), "acceleration with gravity along x, y, z in g, 50 Hz, 2 s"),
    Modality("gyro", (3, WINDOW), "angular velocity around x, y, z in rad/s, 50 Hz, 2 s"),
)


class Gestures:
    """Windows of 140 recordings: 10 subjects, 7 exercises, 2 sides. Meets :class:`edgekd.training.task.protocol.Task`.

    The splits are disjoint by subject, and a window's ``group`` is its subject.

    Args:
        teacher: Fields of :class:`GesturesSize` that replace those of ``TEACHER``.
        student: Fields of :class:`GesturesSize` that replace those of ``STUDENT``.

    Raises:
        TaskError: A size has an unknown field.
        DataError: The data cannot be fetched or read.
    """

    modalities: Sequence[Modality] = MODALITIES
    licence = GESTURES.licence
    citation = GESTURES.citation

    def __init__(
        self, teacher: Mapping[str, object] | None = None, student: Mapping[str, object] | None = None
    ) -> None:
        self.teacher_taps = self.student_taps = {name: f"encoders.{name}" for name in CHANNELS}
        self._teacher_size = resized(TEACHER, teacher)
        self._student_size = resized(STUDENT, student)
        archive = fetch(SEGLEARN)
        self.files: Sequence[Path] = (archive,)
        content = read_recordings(read_member(archive, "seglearn/data/watch_dataset.npy"))
        self.classes = tuple(content["y_labels"])
        self._splits = {name: _split(content, subjects) for name, subjects in SUBJECTS.items()}

    def splits(self) -> dict[str, ArraySplit]:
        """Return the windows of 5, 1, 1 and 3 subjects for train, val, calibration and test."""
        return self._splits

    def teacher(self) -> nn.Module:
        """Return the untrained teacher: logits [B, 7] of raw windows."""
        return self._network(self._teacher_size)

    def student(self) -> nn.Module:
        """Return the untrained student: logits [B, 7] of raw windows."""
        return self._network(self._student_size)

    def _network(self, size: GesturesSize) -> nn.Module:
        train = self._splits["train"].inputs
        encoders = {
            modality.name: nn.Sequential(
                Standardize(train[modality.name]),
                Conv1dEncoder((modality.shape[0], *size.channels), size.width),
            )
            for modality in self.modalities
        }
        return LateFusion(encoders, size.width, size.head, len(self.classes))


def _split(content: JsonObject, subjects: Sequence[int]) -> ArraySplit:
    windows, ids, labels, groups = [], [], [], []
    for recording in np.flatnonzero(np.isin(content["subject"], subjects)):
        subject = content["subject"][recording]
        cut = cut_windows(content["X"][recording])
        windows.append(cut)
        ids += [f"gestures-s{subject:02d}-r{recording:03d}-w{window:03d}" for window in range(len(cut))]
        labels += [int(content["y"][recording])] * len(cut)
        groups += [f"subject-{subject:02d}"] * len(cut)
    # Shuffled, so that the first windows of a split are not all of one recording; RandomState's stream is frozen.
    order = np.random.RandomState(ORDER_SEED).permutation(len(ids))
    stacked = np.concatenate(windows)[order]
    return ArraySplit(
        ids=[ids[index] for index in order],
        inputs={name: torch.from_numpy(stacked[:, columns].copy()) for name, columns in CHANNELS.items()},
        labels=torch.tensor(labels)[order],
        groups=[groups[index] for index in order],
    )


def cut_windows(recording: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cut a recording [T, 6] into overlapping windows, float32 [N, 6, WINDOW]; a shorter rest is left out."""
    return np.lib.stride_tricks.sliding_window_view(recording.astype(np.float32), WINDOW, axis=0)[::STEP]


def read_recordings(raw: bytes) -> JsonObject:
    """Read seglearn's ``.npy`` file, which is a pickle, without the power of a pickle to run code.

    Returns:
        ``X``: 140 arrays float64 [T, 6]; ``y``, ``subject``, ``side``: arrays [140]; ``y_labels``: 7 names.

    Raises:
        DataError: It holds anything but numpy arrays, lists, dicts and plain values, or is damaged.
    """
    stream = io.BytesIO(raw)
    try:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        content: JsonObject = _ArrayUnpickler(stream).load().item()
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"watch_dataset.npy: is damaged: {error}") from error
    return content


def _latin1(text: str, encoding: str) -> bytes:
    """Encode as ``codecs.encode`` does for Python 2's pickles of bytes, and in no other way."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding '{encoding}'")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays, lists, dicts and plain values; refuses every other name before it is imported."""

    _known: ClassVar[Mapping[tuple[str, str], object]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module_name: str, global_name: str, /) -> object:
        """Return one of the few names that an array needs."""
        if (module_name, global_name) not in self._known:
            raise DataError(f"watch_dataset.npy: asks for '{module_name}.{global_name}', which is no part of an array")
        return self._known[module_name, global_name]
