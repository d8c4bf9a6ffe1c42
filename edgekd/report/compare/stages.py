"""The ledger as pictures: what each stage's answers, metric and drift are, against the gate's limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from edgekd.gram.output_kind import MEASURES
from edgekd.report.compare.html import limit_sign
from edgekd.report.escape import escape
from edgekd.report.format import number, percent, small
from edgekd.report.questions import row_verdicts
from edgekd.report.svg.draw import WIDTH, Frame, picture, shorten, text, x_axis
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekd.gram.gate import Ledger
    from edgekd.gram.verdict import Verdict

_ROW, _TOP, _LABEL, _FIGURE = 24.0, 26.0, 104, 66
#: Characters of a stage's name that fit beside the plot.
_NAME = 15


def divergence_svg(name: str, ledger: Ledger) -> str | None:
    """Return the picture of each stage's divergence from the reference, mean and bound; None where none has one."""
    values = {row.stage: (row.first.divergence.mean, row.first.divergence.high) for row in ledger.rows if row.first}
    most = ledger.limits.divergence(ledger.kind)
    return _bounds_svg(name, ledger, values, {f"≤ {most:g}": (most, "limit")}, "divergence")


def drift_svg(name: str, ledger: Ledger) -> str | None:
    """Return the picture of each stage's drift from the reference, mean and bound; None where no stage has one."""
    values = {row.stage: (row.to_reference.mean, row.to_reference.bound) for row in ledger.rows if row.to_reference}
    limits = ledger.limits
    lines = {
        f"pass ≤ {limits.tau_pass:g}": (limits.tau_pass, "limit soft"),
        f"≤ {limits.tau_fail:g}": (limits.tau_fail, "limit"),
    }
    return _bounds_svg(name, ledger, values, lines, "drift")


def _bounds_svg(
    name: str,
    ledger: Ledger,
    values: dict[str, tuple[float, float]],
    lines: dict[str, tuple[float, str]],
    figure: Literal["divergence", "drift"],
) -> str | None:
    """Return the picture of a mean and its upper bound by stage, against limits; None where no bound is finite."""
    values = {stage: ends for stage, ends in values.items() if all(map(math.isfinite, ends))}
    if not values:
        return None
    limits = [limit for limit, _ in lines.values()]
    scale = AxisScale.of([0.0, *limits, *(bound for _, bound in values.values())], log=False, zero=True)
    frame = _frame(len(values))
    what = MEASURES[ledger.kind] if figure == "divergence" else "Gram drift"
    parts = [*x_axis(frame, scale, f"{what}, from the {ledger.reference}"), *_limits(lines, scale, frame)]
    colour_of = {"divergence": "c3", "drift": "c0"}
    for index, (stage, (mean, bound)) in enumerate(values.items()):
        verdict = row_verdicts(ledger, ledger.row(stage)).get(figure)
        parts += _interval(stage, (mean, bound), (scale, frame), _middle(index), _look(verdict, colour_of[figure]))
    told = "; ".join(f"{stage} {small(bound)}" for stage, (_, bound) in values.items())
    description = f"{what} by stage, upper bounds, the limit {' and '.join(lines)}. {told}"
    return picture(name, description, frame.bottom + 40, parts)


def _interval(
    stage: str, ends: tuple[float, float], axes: tuple[AxisScale, Frame], y: float, look: tuple[str, str]
) -> Iterator[str]:
    """Draw a dot at a stage's mean and a bar to its bound, with the bound behind it."""
    (mean, bound), (scale, frame), (colour, sign) = ends, axes, look
    start, end = (frame.x(scale.share(value) or 0.0) for value in ends)
    yield f"<g><title>{escape(f'{stage}: mean {small(mean)}, bound {small(bound)}')}</title>"
    yield text(_LABEL - 8, y + 4, shorten(stage, _NAME), "end")
    yield f'<path class="interval {colour}" d="M{start:.1f} {y:.1f} H{end:.1f}"/>'
    yield f'<circle class="dot {colour}" cx="{start:.1f}" cy="{y:.1f}" r="4"/>'
    yield f'<path class="interval {colour}" d="M{end:.1f} {y - 6:.1f} v12"/>'
    yield text(WIDTH - 4, y + 4, f"{sign}{small(bound)}", "end", f"mark {colour}")
    yield "</g>"


def metric_svg(name: str, ledger: Ledger) -> str | None:
    """Return the picture of each stage's metric; None where it was not measured."""
    values = {row.stage: row.metric for row in ledger.rows if row.metric is not None and math.isfinite(row.metric)}
    if not values:
        return None
    limits, before = ledger.limits, values.get(ledger.reference)
    drop = limits.max_metric_drop if limits.higher_is_better else -limits.max_metric_drop
    least = [] if before is None else [before - drop]
    scale = AxisScale.of([*values.values(), *least], log=False)
    frame = _frame(len(values))
    parts = [*x_axis(frame, scale, f"{ledger.metric}, {'higher' if limits.higher_is_better else 'lower'} is better")]
    sign = "≥" if limits.higher_is_better else "≤"
    parts += _limits({f"{sign} {number(value)}": (value, "limit") for value in least}, scale, frame)
    for index, (stage, value) in enumerate(values.items()):
        look = _look(row_verdicts(ledger, ledger.row(stage)).get("loss"), "c1")
        parts += _dot(stage, (frame.x(scale.share(value) or 0.0), _middle(index)), number(value), look)
    description = f"{ledger.metric} by stage. " + "; ".join(
        f"{stage} {number(value)}" for stage, value in values.items()
    )
    return picture(name, description, frame.bottom + 40, parts)


def flips_svg(name: str, ledger: Ledger) -> str | None:
    """Return the picture of each stage's share of changed answers; None where no stage has one."""
    flips = {row.stage: row.flips for row in ledger.rows if row.flips is not None and math.isfinite(row.flips)}
    if not flips:
        return None
    most = ledger.limits.max_flips
    points = {stage: 100 * value for stage, value in flips.items()}
    scale = AxisScale.of([0.0, 100 * most, *points.values()], log=False, zero=True)
    frame = _frame(len(flips))
    parts = [*x_axis(frame, scale, "% of the answers that changed")]
    parts += _limits({f"≤ {100 * most:.3g}%": (100 * most, "limit")}, scale, frame)
    for index, (stage, value) in enumerate(points.items()):
        look = _look(row_verdicts(ledger, ledger.row(stage)).get("changed"), "c3")
        parts += _dot(stage, (frame.x(scale.share(value) or 0.0), _middle(index)), percent(flips[stage]), look)
    description = f"Changed answers by stage, the limit {most * 100:.3g}%. "
    description += "; ".join(f"{stage} {percent(value)}" for stage, value in flips.items())
    return picture(name, description, frame.bottom + 40, parts)


def _look(verdict: Verdict | None, colour: str) -> tuple[str, str]:
    """Return the colour of a stage's mark, and the sign before its figure: those beyond a limit stand out."""
    sign = limit_sign(verdict)
    return (verdict or colour, sign) if sign else (colour, "")


def _dot(stage: str, at: tuple[float, float], figure: str, look: tuple[str, str]) -> Iterator[str]:
    """Draw the dot of a stage, with its name before it and its figure behind it."""
    (x, y), (colour, sign) = at, look
    yield f"<g><title>{escape(f'{stage}: {figure}')}</title>"
    yield text(_LABEL - 8, y + 4, shorten(stage, _NAME), "end")
    yield f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    yield text(WIDTH - 4, y + 4, f"{sign}{figure}", "end", f"mark {colour}")
    yield "</g>"


def _frame(rows: int) -> Frame:
    return Frame(_LABEL, _TOP, WIDTH - _FIGURE, _TOP + _ROW * rows)


def _middle(index: int) -> float:
    return _TOP + _ROW * (index + 0.5)


def _limits(limits: dict[str, tuple[float, str]], scale: AxisScale, frame: Frame) -> Iterator[str]:
    """Draw limits as upright lines with their names above, which stand beside each other where the lines are near."""
    free: Sequence[float] = (0.0,)
    for description, (value, kind) in limits.items():
        x, half = frame.x(scale.share(value) or 0.0), 3.4 * len(description)
        yield f'<path class="{kind}" d="M{x:.1f} {frame.top - 4:.0f} V{frame.bottom:.0f}"/>'
        at = min(max(x, half, free[0] + half), WIDTH - half)
        yield text(at, frame.top - 10, description, "middle", "tick")
        free = (at + half + 6,)
