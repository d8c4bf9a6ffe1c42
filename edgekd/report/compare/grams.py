"""Gram matrices of a few samples as heat maps: the teacher's, the student's, what ships, and what that lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ReportError
from edgekd.gram.heatmap import FewGrams
from edgekd.report.compare.former import modern_grams
from edgekd.report.escape import escape
from edgekd.report.results import SHIPPED
from edgekd.report.svg.draw import DIVERGING, GRADIENT, picture, shorten, text
from edgekd.report.svg.png import png_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgekd.report.compare.rows import Entry

    _Array = NDArray[np.float64]

#: Levels of the palette but for the last, which is what has no inner product.
_LEVELS, _NOTHING = 255, (128, 128, 128)
_SIDE, _LEFT, _TOP = 322.0, 34.0, 42.0
#: A difference of cosines below is rounding: the scale of the difference ends no earlier.
_LEAST = 0.01


def read_grams(entry: Entry) -> FewGrams | None:
    """Read the Gram matrices beside a report; None where there are none.

    Raises:
        ReportError: The file of the matrices is broken.
    """
    try:
        return modern_grams(FewGrams.load(entry.grams))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ReportError(f"{error}; run the build again") from error


def heat_maps(name: str, grams: FewGrams) -> dict[str, str]:
    """Return the pictures by name: the Gram matrix of each model, and the reference less what ships on its own scale.

    Args:
        name: An id that no other picture of the page has; the ids of the pictures begin with it.
        grams: The cosines between the samples.
    """
    pictures = {
        model: _picture(f"{name}-{index}", model, _summary(model, values), grams, values, 1.0)
        for index, (model, values) in enumerate(grams.cosines.items())
    }
    references = [model for model in grams.cosines if model not in ("teacher", SHIPPED)]
    if references and SHIPPED in grams.cosines:
        reference = references[-1]
        lost = grams.cosines[reference] - grams.cosines[SHIPPED]
        most = max(float(np.nanmax(np.abs(lost))), _LEAST)
        description = f"Cosines of the {reference} less those of what ships: at most {most:.3f} apart."
        pictures[f"{reference} − shipped"] = _picture(
            f"{name}-lost", f"{reference} − shipped", description, grams, lost, most
        )
    return pictures


def _summary(model: str, values: _Array) -> str:
    return f"Cosines between embeddings, {model}: from {np.nanmin(values):.2f} to {np.nanmax(values):.2f}."


def _picture(name: str, head: str, description: str, grams: FewGrams, values: _Array, most: float) -> str:
    samples, modalities = len(grams.ids), len(grams.modalities)
    block = _SIDE / modalities
    parts = [
        text(_LEFT, 15, head, kind="head"),
        f'<image href="{png(values / most)}" x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" '
        'preserveAspectRatio="none"/>',
    ]
    for index, modality in enumerate(grams.modalities):
        middle = (index + 0.5) * block
        shown = shorten(modality, max(3, int(block / 7.5)))
        parts.append(text(_LEFT + middle, _TOP - 7, shown, "middle"))
        y = _TOP + middle
        parts.append(
            f'<text x="{_LEFT - 9}" y="{y:.1f}" text-anchor="middle" '
            f'transform="rotate(-90 {_LEFT - 9} {y:.1f})">{escape(shown)}</text>'
        )
        if index:
            at = index * block
            parts.append(
                f'<path class="block" d="M{_LEFT + at:.1f} {_TOP} v{_SIDE} M{_LEFT} {_TOP + at:.1f} h{_SIDE}"/>'
            )
    parts += _scale(most, _TOP + _SIDE + 12)
    description += f" {samples} samples of {modalities} modalities: {', '.join(grams.modalities)}."
    return picture(name, description, _TOP + _SIDE + 46, parts)


def _scale(most: float, y: float) -> Iterator[str]:
    """Draw the scale of colours from ``-most`` to ``most``."""
    width = 180.0
    x = _LEFT + (_SIDE - width) / 2
    yield f'<rect fill="url(#{GRADIENT})" x="{x}" y="{y}" width="{width}" height="11"/>'
    for value, at in ((-most, x), (0.0, x + width / 2), (most, x + width)):
        yield text(at, y + 26, f"{value:.3g}".replace("-", "−"), "middle", "tick")


def png(values: _Array) -> str:
    """Return values [H, W] from -1 to 1 as a PNG in a data URI, one pixel each; a value that is not finite is grey."""
    whole = np.where(np.isfinite(values), values, 0.0)
    levels = np.rint((whole.clip(-1, 1) + 1) / 2 * (_LEVELS - 1)).astype(np.uint8)
    levels[~np.isfinite(values)] = _LEVELS
    return png_uri(levels, _palette())


def _palette() -> bytes:
    """Return the colours of all levels, three bytes each."""
    low, middle, high = (np.array(colour, float) for colour in DIVERGING)
    share = np.linspace(-1, 1, _LEVELS)[:, None]
    colours = middle + np.abs(share) * (np.where(share < 0, low, high) - middle)
    return bytes(np.rint(np.concatenate([colours, [_NOTHING]])).astype(np.uint8))
