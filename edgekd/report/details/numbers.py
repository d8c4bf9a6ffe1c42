"""Outputs of numbers, as of a regression or a map: errors, their spread, and predicted against true values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.report.details.classes import NOT_FINITE
from edgekd.report.details.compared import Findings, cut, mean_of, shown_change
from edgekd.report.details.content import DetailCurve, ElementRow, InputPicture, NumberFigures
from edgekd.report.details.pictures import grey_picture

if TYPE_CHECKING:
    from edgekd.gram.npz import Array
    from edgekd.report.details.compared import ComparedOutput

#: More numbers than this have no row each, as those of a map.
_MOST_ROWS = 64
_BINS, _POINTS, _SPOKEN = 31, 300, 4


def describe_numbers(compared: ComparedOutput) -> Findings:
    """Describe numbers [N, ...], held against true ones of that shape, or else against the reference's.

    True values that are NaN are not known.
    """
    shape = compared.outputs[compared.shipped].shape
    outputs = {model: output.reshape(shape[0], -1).astype(np.float32) for model, output in compared.outputs.items()}
    targets = _targets(compared.targets, shape)
    by_labels = targets is not None and not np.isnan(targets).all()
    true = targets if targets is not None and by_labels else outputs[compared.reference]
    judged = tuple(outputs) if by_labels else (compared.shipped,)
    scale = _deviations(true)
    errors = {model: (outputs[model] - true) / scale for model in judged}
    scores = {model: _root_mean_square(error) for model, error in errors.items()}
    apart = _root_mean_square((outputs[compared.shipped] - outputs[compared.reference]) / scale)
    threshold = compared.kind.threshold
    moved, decides = shown_change(apart), threshold is not None
    if threshold is not None:
        sides = [outputs[model] >= threshold for model in (compared.shipped, compared.reference)]
        moved = (sides[0] != sides[1]).sum(1).astype(np.float64)
    broken = ~np.isfinite(outputs[compared.shipped]).all(1) & ~np.isnan(true).all(1)

    def words(values: Array) -> str:
        if len(values) > _MOST_ROWS:
            return ""
        spoken = ", ".join(f"{value:.4g}" for value in values[:_SPOKEN])
        return cut(f"{spoken}, …" if len(values) > _SPOKEN else spoken)

    def say(model: str, row: int) -> str:
        return words(outputs[model][row]) if np.isfinite(outputs[model][row]).all() else NOT_FINITE

    def maps(row: int) -> tuple[InputPicture, ...]:
        shown = {"true": true[row]} if by_labels else {}
        shown |= {model: outputs[model][row] for model in (compared.reference, compared.shipped)}
        plane = shape[-2:]
        values = np.concatenate(list(shown.values()))
        return tuple(grey_picture(name, value.reshape(plane), values) for name, value in shown.items())

    return Findings(
        judged=judged,
        by_labels=by_labels,
        score="root mean squared error in standard deviations",
        worst_by="error in standard deviations",
        flips_by="numbers that changed sides of the threshold" if decides else "change in standard deviations",
        scores=scores,
        bad=np.where(broken, np.inf, scores[compared.shipped]) if by_labels else np.zeros(shape[0]),
        moved=moved,
        say=say,
        true=lambda row: words(true[row]) if by_labels and not np.isnan(true[row]).all() else "",
        higher_is_better=False,
        decides=decides,
        maps=maps if _is_map(shape) else None,
        numbers=_figures(errors, true, scale, outputs),
    )


def _targets(targets: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Return true values [N, D]; None where there are none of the output's shape."""
    if targets is None or targets.size != math.prod(shape) or targets.dtype.kind not in "fiu":
        return None
    return targets.reshape(shape[0], -1).astype(np.float32)


def _is_map(shape: tuple[int, ...]) -> bool:
    """Whether an output [N, H, W] or [N, 1, H, W] is a picture."""
    return len(shape) >= 3 and min(shape[-2:]) >= 8 and math.prod(shape[1:-2]) == 1


def _deviations(true: Array) -> Array:
    """Return the standard deviation [D] of each number; its size where it does not vary, and 1 where it is always 0."""
    spread = np.sqrt(_variances(true))
    known = np.isfinite(true)
    size = np.sqrt(np.where(known, true.astype(np.float64) ** 2, 0).sum(0) / np.maximum(known.sum(0), 1))
    return np.asarray(np.where(spread > 0, spread, np.where(size > 0, size, 1.0)))


def _variances(true: Array) -> Array:
    """Return the variance [D] of each number over the samples of which it is known; 0 where that is rounding."""
    known = np.isfinite(true)
    values = np.where(known, true, 0).astype(np.float64)
    count = np.maximum(known.sum(0), 1)
    mean = values.sum(0) / count
    variance = np.where(known, (values - mean) ** 2, 0).sum(0) / count
    return np.asarray(np.where(variance > 1e-12 * mean**2, variance, 0.0))


def _root_mean_square(errors: Array) -> Array:
    """Return the root mean square of each row [N], over what is known; NaN where nothing is."""
    known = ~np.isnan(errors)
    squares = np.where(known, errors, 0).astype(np.float64) ** 2
    count = known.sum(1)
    return np.asarray(np.where(count > 0, np.sqrt(squares.sum(1) / np.maximum(count, 1)), np.nan))


def _figures(errors: dict[str, Array], true: Array, scale: Array, outputs: dict[str, Array]) -> NumberFigures:
    count = true.shape[1]
    largest = [np.abs(error[np.isfinite(error)]) for error in errors.values()]
    ends = [float(np.quantile(values, 0.995)) for values in largest if values.size]
    end = max(ends, default=1.0) or 1.0
    edges = np.linspace(-end, end, _BINS + 1)
    step = -(-len(true) // _POINTS)
    variances = _variances(true)

    def row(element: int) -> ElementRow:
        own = {model: error[:, element] * scale[element] for model, error in errors.items()}
        squared = {model: mean_of(error**2) for model, error in own.items()}
        variance = float(variances[element])
        return ElementRow(
            element=element,
            deviation=math.sqrt(variance),
            error={model: None if mean is None else math.sqrt(mean) for model, mean in squared.items()},
            bias={model: mean_of(error) for model, error in own.items()},
            r2={
                model: None if mean is None or not variance else 1 - mean / variance for model, mean in squared.items()
            },
        )

    def points(model: str) -> DetailCurve:
        pairs = np.stack([true[::step, 0], outputs[model][::step, 0]])
        pairs = pairs[:, np.isfinite(pairs).all(0)]
        x, y = (tuple(float(f"{value:.4g}") for value in values) for values in pairs)
        return DetailCurve(x, y)

    return NumberFigures(
        count=count,
        rows=tuple(map(row, range(count))) if count <= _MOST_ROWS else (),
        edges=tuple(float(f"{edge:.4g}") for edge in edges),
        histogram={
            model: tuple(np.histogram(error[np.isfinite(error)].clip(-end, end), edges)[0].tolist())
            for model, error in errors.items()
        },
        points={model: points(model) for model in errors} if count <= _MOST_ROWS else {},
    )
