"""Read one file as one modality of one sample: an image, a recording, or an array."""

from __future__ import annotations

import importlib.util
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekd.errors import DataError
from edgekd.tasks.data.png import PngError, decode_png, is_png
from edgekd.training.task.protocol import Modality

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Values: TypeAlias = NDArray[np.generic]

#: Weights of red, green and blue in a grey value: ITU-R BT.601.
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Images:
    """Files of images: PNG by edgekd itself, other formats by Pillow, where it is installed.

    Attributes:
        source: Folder of the files for :func:`edgekd.from_folder`, column of their paths for :func:`edgekd.from_csv`.
        size: Height and width to which each is resampled; None where all have one size already.
        channels: 3 for colour, 1 for grey. Transparent pixels are laid on white.
    """

    source: str
    size: tuple[int, int] | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise DataError(
                f"images of '{self.source}': channels = {self.channels}, must be 1 for grey or 3 for colour"
            )

    def read(self, path: Path) -> Values:
        """Return an image, float32 [channels, height, width], 0 to 1."""
        image = as_colours(_pixels(path))
        image = resampled(image, self.size) if self.size else image
        return image if self.channels == 3 else np.tensordot(_GREY, image, 1)[None]

    def modality(self, name: str, values: Values) -> Modality:
        """Return the modality of images [N, channels, height, width]."""
        return Modality(name, values.shape[1:], f"image, {'RGB' if self.channels == 3 else 'grey'}, 0 to 1")


@dataclass(frozen=True)
class Sounds:
    """Files of sound in WAV, of whole numbers of 8, 16 or 32 bits.

    Attributes:
        source: Folder of the files for :func:`edgekd.from_folder`, column of their paths for :func:`edgekd.from_csv`.
        frames: Number of values for each channel: a longer recording is cut, and a shorter one ends in zeros. None
            where all have one length already.
    """

    source: str
    frames: int | None = None

    def read(self, path: Path) -> Values:
        """Return a recording, float32 [channels, frames], -1 to 1."""
        try:
            with wave.open(str(path)) as opened:
                width, channels = opened.getsampwidth(), opened.getnchannels()
                raw = opened.readframes(opened.getnframes())
        except (wave.Error, EOFError) as error:
            raise DataError(f"{path}: cannot be read as WAV: {error or 'it ends too soon'}") from error
        if width not in (1, 2, 4):
            raise DataError(f"{path}: has {8 * width} bits a value, and 8, 16 and 32 can be read; convert it")
        whole = np.frombuffer(raw, {1: "u1", 2: "<i2", 4: "<i4"}[width]).reshape(-1, channels).T
        sound = (whole.astype(np.float32) - (128 if width == 1 else 0)) / np.float32(2 ** (8 * width - 1))
        if self.frames is None:
            return sound
        sound = sound[:, : self.frames]
        return np.pad(sound, ((0, 0), (0, self.frames - sound.shape[1])))

    def modality(self, name: str, values: Values) -> Modality:
        """Return the modality of recordings [N, channels, frames]."""
        return Modality(name, values.shape[1:], "sound, -1 to 1")


@dataclass(frozen=True)
class Arrays:
    """Files of arrays in numpy's ``.npy``.

    Attributes:
        source: Folder of the files for :func:`edgekd.from_folder`, column of their paths for :func:`edgekd.from_csv`.
    """

    source: str

    def read(self, path: Path) -> Values:
        """Return an array; doubles become float32, and whole numbers of other sizes int64."""
        try:
            values: Values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as an array: {error}") from error
        if values.dtype.kind not in "biuf":
            raise DataError(f"{path}: is an array of {values.dtype}, must be one of numbers")
        if values.dtype.name in ("float32", "float16", "uint8", "int32", "int64", "bool"):
            return values
        return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)

    def modality(self, name: str, values: Values) -> Modality:
        """Return the modality of arrays [N, ...]."""
        return Modality(name, values.shape[1:], "array", dtype=values.dtype.name)


FileReader: TypeAlias = "Images | Sounds | Arrays"

#: How a file is read whose reader is not named, by its suffix.
_BY_SUFFIX: dict[str, type[Images] | type[Sounds] | type[Arrays]] = {
    ".npy": Arrays,
    ".wav": Sounds,
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"), Images),
}


def reader_of(source: str, path: Path) -> FileReader:
    """Return the reader for files like this one.

    Raises:
        DataError: Its suffix is of no kind that is known.
    """
    suffix = path.suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise DataError(f"{path}: files ending in '{suffix}' are not read, but {', '.join(sorted(_BY_SUFFIX))}")
    return _BY_SUFFIX[suffix](source)


def read_files(reader: FileReader, paths: list[Path]) -> Values:
    """Return the values of all files, stacked.

    Raises:
        DataError: A file cannot be read, or two differ in shape.
    """
    values = []
    for path in paths:
        try:
            values.append(reader.read(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        first, last = values[0], values[-1]
        if (last.shape, last.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"{path}: has the shape {last.shape} of {last.dtype}, and {paths[0]} {first.shape} of {first.dtype}; "
                f"all must be alike{_REMEDIES[type(reader)]}"
            )
    return np.stack(values)


_REMEDIES = {
    Images: ": give Images(..., size=(height, width))",
    Sounds: ": give Sounds(..., frames=...), and files of as many channels",
    Arrays: "",
}


def _pixels(path: Path) -> NDArray[np.uint8]:
    raw = path.read_bytes()
    if is_png(raw):
        try:
            return decode_png(raw)
        except PngError as error:
            if "damaged" in str(error):
                raise DataError(f"{path}: is damaged, and no PNG image") from error
    return _by_pillow(path)


def _by_pillow(path: Path) -> NDArray[np.uint8]:
    if importlib.util.find_spec("PIL") is None:
        raise DataError(
            f"{path}: is no PNG image that edgekd reads by itself; pip install pillow, or convert it to PNG"
        )
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGBA"), np.uint8)
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from error


def as_colours(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return pixels [height, width, 1 to 4 channels] as colours, float32 [3, height, width], 0 to 1, on white."""
    values = pixels.astype(np.float32) / 255
    colours = values[..., :3] if values.shape[2] > 2 else np.repeat(values[..., :1], 3, axis=2)
    if values.shape[2] in (2, 4):
        colours = colours * values[..., -1:] + 1 - values[..., -1:]
    return np.ascontiguousarray(colours.transpose(2, 0, 1))


def resampled(image: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resample an image [channels, height, width]: each new pixel is the mean of a triangle over those below it."""
    rows, columns = (_weights(old, new) for old, new in zip(image.shape[1:], size, strict=True))
    return np.ascontiguousarray(rows @ image @ columns.T)


def _weights(old: int, new: int) -> NDArray[np.float32]:
    """Return what each of ``old`` pixels counts in each of ``new``, [new, old]: a triangle as wide as needed."""
    scale = max(1.0, old / new)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.maximum(0, 1 - abs(centres[:, None] - np.arange(old)) / scale)
    shares: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return shares
