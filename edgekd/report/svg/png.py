"""Pictures of pixels as PNG in a data URI: a page can hold them, and they need no library."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GREY, _RGB, _PALETTE = 0, 2, 3


def png_uri(pixels: NDArray[np.uint8], palette: bytes = b"") -> str:
    """Return pixels as a PNG in a data URI.

    Args:
        pixels: Grey [H, W] or colours [H, W, 3]; with a palette, the indices of its colours [H, W].
        palette: Three bytes for each colour; empty where the pixels are colours themselves.
    """
    height, width = pixels.shape[:2]
    kind = _RGB if pixels.ndim == 3 else _PALETTE if palette else _GREY
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    parts = [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        *([_chunk(b"PLTE", palette)] if palette else []),
        _chunk(b"IDAT", zlib.compress(rows, 9)),
        _chunk(b"IEND", b""),
    ]
    return "data:image/png;base64," + base64.b64encode(b"".join(parts)).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
