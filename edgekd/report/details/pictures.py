"""Small pictures of what a sample holds: images, spectrograms and masks as PNG, series as a few whole numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.npz import INPUT_PREFIX, PRESENT_PREFIX, read_headers, stream_rows
from edgekd.report.details.content import InputPicture
from edgekd.report.svg.png import png_uri

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.gram.npz import Array

#: Pixels of a picture's longer side, and values of a series, at most.
SIDE, _VALUES = 40, 64
#: Channels of a series that are drawn, and those up to which a [C, T] is a series and not a picture.
_DRAWN, _CHANNELS = 3, 16
#: Fewer pixels or values are no picture, or no series.
_LEAST, _LEAST_VALUES = 8, 8

#: Samples that are read at a time.
_READ = 64

#: Colours of classes in masks: Okabe and Ito's, then the same darker, and again lighter.
_BASE = (
    (40, 40, 40),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_UNKNOWN = (255, 255, 255)
_MASK_COLOURS = 255


def input_picture(name: str, values: Array, every: Array) -> InputPicture | None:
    """Return a picture of one sample's input; None where it is neither an image nor a series.

    Args:
        name: Name of the modality.
        values: The input of one sample, without the batch.
        every: Inputs of some samples, which the brightness is scaled by.
    """
    if values.dtype.kind not in "fu" or not values.size:
        return None
    values = values.astype(np.float32)
    drawn = None
    if values.ndim == 3 and values.shape[2] in (1, 3) and values.shape[0] > 3:
        values = values.transpose(2, 0, 1)
    if values.ndim == 3 and values.shape[0] in (1, 3) and min(values.shape[1:]) >= _LEAST:
        drawn = _image(name, values, every)
    elif values.ndim < 3 and len(np.atleast_2d(values)) <= _CHANNELS and values.shape[-1] >= _LEAST_VALUES:
        drawn = _series(name, np.atleast_2d(values))
    elif values.ndim == 2 and min(values.shape) >= _LEAST:
        drawn = grey_picture(name, values, every)
    return drawn


def read_pictures(samples: Path, rows: Sequence[int]) -> dict[int, tuple[InputPicture, ...]]:
    """Read the inputs of some samples, and return pictures of those that are images or series.

    Args:
        samples: An ``.npz`` of samples, as stages hand it on.
        rows: Which samples.
    """
    wanted = np.unique(np.array(rows, np.int64))
    headers = read_headers(samples)
    pictures: dict[int, list[InputPicture]] = {row: [] for row in rows}
    for key in (key for key in headers if key.startswith(INPUT_PREFIX)):
        name = key.removeprefix(INPUT_PREFIX)
        held = _rows(samples, PRESENT_PREFIX + name, wanted) if PRESENT_PREFIX + name in headers else None
        values = _rows(samples, key, wanted)
        for place, row in enumerate(wanted.tolist()):
            drawn = input_picture(name, values[place], values) if held is None or held[place] else None
            if drawn:
                pictures[row].append(drawn)
    return {row: tuple(drawn) for row, drawn in pictures.items()}


def _rows(samples: Path, key: str, wanted: Array) -> Array:
    """Return some rows of an array, in their order, without holding the whole."""
    kept, start = [], 0
    for chunk in stream_rows(samples, [key], _READ):
        here = wanted[(wanted >= start) & (wanted < start + len(chunk[key]))] - start
        kept.append(chunk[key][here])
        start += len(chunk[key])
    return np.concatenate(kept)


def grey_picture(name: str, plane: Array, every: Array) -> InputPicture:
    """Return one plane [H, W] in grey, scaled by the range of ``every``."""
    return InputPicture(name, png_uri(_bytes(_smaller(plane), every)))


def mask_picture(name: str, classes: Array) -> InputPicture:
    """Return a map of classes [H, W] in colours; what is below 0 is white."""
    step = -(-max(classes.shape) // SIDE)
    colours = [mask_colour(index) for index in range(_MASK_COLOURS)] + [_UNKNOWN]
    shown = classes[::step, ::step]
    levels = np.where(shown < 0, _MASK_COLOURS, shown % _MASK_COLOURS).astype(np.uint8)
    return InputPicture(name, png_uri(levels, bytes(part for colour in colours for part in colour)))


def mask_colour(index: int) -> tuple[int, int, int]:
    """Return the colour of a class in masks, red, green and blue from 0 to 255."""
    turn, place = divmod(index, len(_BASE))
    red, green, blue = (
        round(part * 0.62) if turn % 3 == 1 else round(part + (255 - part) * 0.5) if turn % 3 == 2 else part
        for part in _BASE[place]
    )
    return red, green, blue


def _image(name: str, planes: Array, every: Array) -> InputPicture:
    """Return an image [1|3, H, W]."""
    levels = np.stack([_bytes(_smaller(plane), every) for plane in planes], axis=-1)
    return InputPicture(name, png_uri(levels[..., 0] if len(planes) == 1 else levels))


def _smaller(plane: Array) -> Array:
    """Return a plane [H, W] of at most :data:`SIDE` pixels a side, each the mean of those that it stands for."""
    step = -(-max(plane.shape) // SIDE)
    if step == 1:
        return plane
    rows, columns = (np.arange(0, size, step) for size in plane.shape)
    sums = np.add.reduceat(np.add.reduceat(plane.astype(np.float64), rows, 0), columns, 1)
    counts = np.outer(
        *(np.diff(np.append(starts, size)) for starts, size in zip((rows, columns), plane.shape, strict=True))
    )
    return np.asarray(sums / counts)


def _bytes(plane: Array, every: Array) -> Array:
    """Return levels from 0 to 255: of the whole range from 0 to 1 or 255 where values fill it, else of their own."""
    known = every[np.isfinite(every)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if low >= 0 and (0.5 < high <= 1 or 128 < high <= 255):
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scaled = (np.nan_to_num(plane, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    return np.asarray(np.rint(scaled.clip(0, 1) * 255).astype(np.uint8))


def _series(name: str, channels: Array) -> InputPicture:
    """Return a series [C, T], of each stretch of it the value that is farthest from the channel's mean."""
    channels = np.nan_to_num(channels[:_DRAWN].astype(np.float64), posinf=0.0, neginf=0.0)
    width = math.ceil(channels.shape[1] / _VALUES)
    low, high = channels.min(), channels.max()
    drawn = []
    for channel in channels:
        mean = channel.mean()
        stretches = (channel[start : start + width] for start in range(0, len(channel), width))
        kept = np.array([part[np.abs(part - mean).argmax()] for part in stretches])
        levels = np.rint((kept - low) / ((high - low) or 1.0) * 100).astype(int)
        drawn.append(" ".join(map(str, levels.tolist())))
    return InputPicture(name, series=tuple(drawn))
