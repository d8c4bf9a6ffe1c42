"""Pillow, which development installs bring, is the oracle."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from edgekd.tasks.data.png import PngError, decode_png, is_png


def written(image, **options):
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def smooth(shape):
    """Return pixels whose neighbours are alike, for which Pillow's writer takes all five filters."""
    steps = np.random.RandomState(0).randint(0, 30, shape)
    return (np.cumsum(steps, axis=0) + np.cumsum(steps, axis=1)).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (7, 5), (1, 9), (9, 1), (60, 33)])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_pixels_are_those_that_were_written(mode, channels, size):
    pixels = smooth((*size, channels))
    raw = written(Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels, mode))
    assert is_png(raw)
    np.testing.assert_array_equal(decode_png(raw), pixels)


def test_the_image_of_the_test_has_every_filter():
    raw = written(Image.fromarray(smooth((60, 33, 3)), "RGB"))
    start = raw.index(b"IDAT")
    data = zlib.decompressobj().decompress(raw[start + 4 :])
    assert len({data[row * 100] for row in range(60)}) >= 3


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_are_looked_up(bits):
    random = np.random.RandomState(0)
    image = Image.fromarray(random.randint(0, 2**bits, (9, 13)).astype(np.uint8), "P")
    image.putpalette(random.randint(0, 256, 3 * 2**bits).tolist())
    np.testing.assert_array_equal(decode_png(written(image, bits=bits)), np.asarray(image.convert("RGB")))


def test_a_palette_may_be_transparent():
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), "P")
    image.putpalette([0, 0, 0, 10, 10, 10, 20, 20, 20, 30, 30, 30])
    raw = written(image, transparency=bytes([0, 128]))
    np.testing.assert_array_equal(decode_png(raw)[..., 3], [[0, 128], [255, 255]])


def test_black_and_white_reach_from_0_to_255():
    image = Image.fromarray(np.eye(9, dtype=bool))
    np.testing.assert_array_equal(decode_png(written(image))[..., 0], 255 * np.eye(9))


def test_what_is_not_read_says_why():
    deep = written(Image.fromarray(np.arange(9, dtype=np.uint16).reshape(3, 3)))
    with pytest.raises(PngError, match="has 16 bits"):
        decode_png(deep)
    plain = bytearray(written(Image.fromarray(smooth((4, 4, 3)))))
    plain[28] = 1  # the header's last byte
    with pytest.raises(PngError, match="is interlaced"):
        decode_png(bytes(plain))


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:40], lambda raw: raw[:45] + b"\0\0\0" + raw[48:], lambda raw: raw[:8]]
)
def test_a_damaged_image_is_said_to_be(damage):
    raw = written(Image.fromarray(smooth((30, 30, 3))))
    with pytest.raises(PngError, match="is damaged"):
        decode_png(damage(raw))
