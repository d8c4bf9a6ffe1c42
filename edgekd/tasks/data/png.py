"""Read PNG images with numpy alone.

The format is W3C's Portable Network Graphics, https://www.w3.org/TR/png-3/, of which interlaced images and those of 16
bits are left out.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    _Bytes = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
#: Channels of each type of colour: grey, colour, an index into the palette, grey with alpha, colour with alpha.
_CHANNELS = {0: 1, 2: 3, _PALETTE: 1, 4: 2, 6: 4}


class PngError(ValueError):
    """An image is damaged, or of a kind that is not read here."""


@dataclass(frozen=True)
class _PngHeader:
    width: int
    height: int
    depth: int
    colour: int

    @property
    def channels(self) -> int:
        return _CHANNELS[self.colour]

    @property
    def row_bytes(self) -> int:
        return (self.width * self.channels * self.depth + 7) // 8

    @property
    def pixel_bytes(self) -> int:
        """Number of bytes from a byte to the one that a row's filter compares it with."""
        return max(1, self.channels * self.depth // 8)


def is_png(raw: bytes) -> bool:
    """Return whether a file begins as a PNG image does."""
    return raw.startswith(_SIGNATURE)


def decode_png(raw: bytes) -> _Bytes:
    """Return the pixels of an image, uint8 [height, width, channels] with 1 to 4 channels; a palette is looked up.

    Raises:
        PngError: The image is damaged, interlaced or of 16 bits.
    """
    try:
        chunks = list(_chunks(raw))
        header = _header(next(content for kind, content in chunks if kind == b"IHDR"))
        data = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
        pixels = _unpacked(_unfiltered(data, header), header)
        return _looked_up(pixels, dict(chunks)) if header.colour == _PALETTE else pixels
    except (zlib.error, struct.error, StopIteration, IndexError, KeyError, ValueError) as error:
        raise error if isinstance(error, PngError) else PngError("is damaged") from error


def _chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at < len(raw):
        (length,) = struct.unpack_from(">I", raw, at)
        yield raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        at += length + 12  # with its length, kind and checksum


def _header(content: bytes) -> _PngHeader:
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content)
    if interlaced or depth > 8:
        raise PngError("is interlaced" if interlaced else "has 16 bits a channel")
    return _PngHeader(width, height, depth, colour)


def _unfiltered(data: bytes, header: _PngHeader) -> _Bytes:
    """Undo the rows' filters: uint8 [height, bytes of a row].

    A byte depends on the byte to its left, the one above it, and the one above that to the left. All pixels of one
    diagonal, from the right above to the left below, are found at once, so the loop is over diagonals and not over
    pixels.
    """
    rows = np.frombuffer(data, np.uint8).reshape(header.height, 1 + header.row_bytes)
    filters, step = rows[:, 0], header.pixel_bytes
    if filters.max() > 4:
        raise PngError("is damaged")
    height, width = header.height, header.row_bytes // step
    filtered = rows[:, 1:].reshape(height, width, step)
    # Diagonals are rows here, so that what is read together lies together. Two of zeros and a row of zeros come first.
    skewed = np.zeros((height + width + 1, height + 1, step), np.int16)
    for row in range(height):
        skewed[row + 2 : row + 2 + width, row + 1] = filtered[row]
    for diagonal in range(height + width - 1):
        first, last = max(0, diagonal - width + 1), min(height, diagonal + 1)
        here, above = slice(first + 1, last + 1), slice(first, last)
        left, upper, corner = skewed[diagonal + 1, here], skewed[diagonal + 1, above], skewed[diagonal, above]
        predicted = _predicted(filters[first:last, None], left, upper, corner)
        skewed[diagonal + 2, here] = (skewed[diagonal + 2, here] + predicted) & 255
    plain = np.stack([skewed[row + 2 : row + 2 + width, row + 1] for row in range(height)])
    return plain.reshape(height, -1).astype(np.uint8)


def _predicted(
    filters: _Bytes, left: NDArray[np.int16], above: NDArray[np.int16], corner: NDArray[np.int16]
) -> NDArray[np.int16]:
    """Return what the filter of each row expects: nothing, the left, the one above, their mean, or Paeth's choice."""
    to_left, to_above, to_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    paeth = np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
    )
    return np.choose(filters, [np.zeros_like(left), left, above, (left + above) >> 1, paeth])


def _unpacked(rows: _Bytes, header: _PngHeader) -> _Bytes:
    """Return pixels [height, width, channels] of rows whose bytes may hold several pixels."""
    if header.depth < 8:
        bits = np.unpackbits(rows, axis=1).reshape(header.height, -1, header.depth)
        rows = (bits << np.arange(header.depth - 1, -1, -1, dtype=np.uint8)).sum(2, dtype=np.uint8)[:, : header.width]
        if header.colour != _PALETTE:
            rows = rows * np.uint8(255 // (2**header.depth - 1))
    return rows.reshape(header.height, header.width, header.channels)


def _looked_up(indices: _Bytes, chunks: dict[bytes, bytes]) -> _Bytes:
    colours = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    alpha = np.frombuffer(chunks.get(b"tRNS", b""), np.uint8)
    if len(alpha):
        opaque = np.full(len(colours), 255, np.uint8)
        opaque[: len(alpha)] = alpha
        colours = np.concatenate([colours, opaque[:, None]], axis=1)
    return colours[indices[:, :, 0]]
