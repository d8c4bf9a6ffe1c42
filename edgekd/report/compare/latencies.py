"""The picture of every timed inference of a target's engines: the share that took no longer than a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ReportError
from edgekd.report.escape import escape
from edgekd.report.format import milliseconds
from edgekd.report.svg.draw import WIDTH, Frame, legend, looks, picture, text, x_axis
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.report.compare.rows import Entry
    from edgekd.report.svg.draw import Look
    from edgekd.runtime.measure.results import EngineProfile

    _Array = NDArray[np.float64]

#: Shares at which a curve is drawn; the last is the slowest of all.
_SHARES = np.concatenate([np.linspace(0, 0.98, 99), [0.985, 0.99, 0.993, 0.996, 0.998, 0.999, 1.0]])
_HEIGHT = 180
_MARKS = ("p50", "p90", "p99")


def latency_svg(name: str, entry: Entry) -> str | None:
    """Return the picture; None where nothing was timed, or the raw timings are no longer beside the report.

    Raises:
        ReportError: A file of raw timings is broken.
    """
    if entry.profile is None:
        return None
    timings = {engine.name: _read(entry.timings / engine.raw_file) for engine in entry.profile.engines}
    curves = {
        engine: np.quantile(ms, _SHARES, method="inverted_cdf") for engine, ms in timings.items() if ms is not None
    }
    if not curves:
        return None
    drawn = looks(curves)
    keys, top = legend(curves, lambda engine, x, y: _line(drawn[engine], f"M{x:.0f} {y:.0f} h20"))
    frame = Frame(44, top + 14, WIDTH - 14, top + 14 + _HEIGHT)
    across = AxisScale.of([float(end) for curve in curves.values() for end in (curve[0], curve[-1])])
    parts = [*keys, *_shares(frame), *x_axis(frame, across, "ms of one inference")]
    engines = [engine for engine in entry.profile.engines if engine.name in curves]
    for engine in engines:
        parts += _curve(engine, curves[engine.name], drawn[engine.name], across, frame)
    description = "Share of inferences that took no longer than so many ms. " + "; ".join(map(_describe, engines))
    return picture(name, description, frame.bottom + 42, parts)


def _read(path: Path) -> _Array | None:
    """Return the raw timings [N] in ms; None where there is no such file."""
    try:
        ns = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError) as error:
        raise ReportError(f"{path}: holds no raw timings: {error}") from error
    if ns.ndim != 1 or not len(ns) or not np.issubdtype(ns.dtype, np.integer) or ns.min() <= 0:
        raise ReportError(f"{path}: holds no raw timings, [n] whole numbers of ns")
    return np.asarray(ns / 1e6)


def _describe(engine: EngineProfile) -> str:
    known = [(mark, getattr(engine.latency, mark)) for mark in _MARKS]
    quantiles = [f"{mark} {milliseconds(quantile.value_ms)} ms" for mark, quantile in known if quantile]
    return f"{engine.name}: {', '.join([*quantiles, f'slowest {milliseconds(engine.latency.max_ms)} ms'])}"


def _shares(frame: Frame) -> Iterator[str]:
    for share in (0, 0.5, 0.9, 1):
        y = frame.y(share)
        yield f'<path class="grid" d="M{frame.left:.0f} {y:.1f} H{frame.right:.0f}"/>'
        yield text(frame.left - 6, y + 4, f"{share:.0%}", "end", "tick")


def _line(look: Look, path: str) -> str:
    return f'<path class="line {look.colour}"{look.dash} d="{path}"/>'


def _curve(engine: EngineProfile, curve: _Array, look: Look, across: AxisScale, frame: Frame) -> Iterator[str]:
    points = [
        f"{frame.x(across.share(float(ms)) or 0.0):.1f} {frame.y(float(share)):.1f}"
        for ms, share in zip(curve, _SHARES, strict=True)
    ]
    yield f"<g><title>{escape(_describe(engine))}</title>"
    yield _line(look, f"M{' L'.join(dict.fromkeys(points))}")
    for mark in _MARKS:
        quantile = getattr(engine.latency, mark)
        if quantile:
            x, y = frame.x(across.share(quantile.value_ms) or 0.0), frame.y(int(mark[1:]) / 100)
            yield f'<circle class="dot {look.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    yield "</g>"
