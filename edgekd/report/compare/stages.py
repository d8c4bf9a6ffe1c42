"""The ledger as pictures: drift, flips and the metric of each stage, against the gate's limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgekd.report.compare.checks import stage_verdicts
from edgekd.report.escape import escape
from edgekd.report.format import number, percent
from edgekd.report.svg.draw import WIDTH, Frame, picture, shorten, text, x_axis
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekd.gram.gate import Ledger
    from edgekd.gram.verdict import Verdict

_ROW, _TOP, _LABEL, _FIGURE = 24.0, 26.0, 104, 66
#: Characters of a stage's name that fit beside the plot.
_NAME = 15


def drift_svg(name: str, ledger: Ledger) -> str | None:
    """Return the picture of each stage's drift from the reference, mean and bound; None where no stage has one."""
    drifts = {row.stage: row.to_reference for row in ledger.rows if row.to_reference}
    drifts = {stage: drift for stage, drift in drifts.items() if math.isfinite(drift.bound)}
    if not drifts:
        return None
    limits = ledger.limits
    scale = AxisScale.of([0.0, limits.tau_fail, *(drift.bound for drift in drifts.values())], log=False, zero=True)
    frame = _frame(len(drifts))
    parts = [*x_axis(frame, scale, f"drift from the {ledger.reference}")]
    lines = {"pass": (limits.tau_pass, "limit soft"), "fail": (limits.tau_fail, "limit")}
    parts += _limits({f"{what} ≤ {tau:g}": (tau, kind) for what, (tau, kind) in lines.items()}, scale, frame)
    for index, (stage, drift) in enumerate(drifts.items()):
        y = _middle(index)
        mean, bound = (frame.x(scale.share(value) or 0.0) for value in (drift.mean, drift.bound))
        colour, sign = _look(stage_verdicts(ledger, ledger.row(stage)).get("bound"), "c0")
        parts += [
            f"<g><title>{escape(f'{stage}: mean {number(drift.mean)}, bound {number(drift.bound)}')}</title>",
            text(_LABEL - 8, y + 4, shorten(stage, _NAME), "end"),
            f'<path class="interval {colour}" d="M{mean:.1f} {y:.1f} H{bound:.1f}"/>',
            f'<circle class="dot {colour}" cx="{mean:.1f}" cy="{y:.1f}" r="4"/>',
            f'<path class="interval {colour}" d="M{bound:.1f} {y - 6:.1f} v12"/>',
            text(WIDTH - 4, y + 4, f"{sign}{number(drift.bound)}", "end", f"mark {colour}"),
            "</g>",
        ]
    description = f"Bound of the Gram drift by stage; the gate passes up to {limits.tau_pass:g} and fails above "
    description += f"{limits.tau_fail:g}. " + "; ".join(
        f"{stage} {number(drift.bound)}" for stage, drift in drifts.items()
    )
    return picture(name, description, frame.bottom + 40, parts)


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
        look = _look(stage_verdicts(ledger, ledger.row(stage)).get("change"), "c1")
        parts += _dot(stage, (frame.x(scale.share(value) or 0.0), _middle(index)), number(value), look)
    description = f"{ledger.metric} by stage. " + "; ".join(
        f"{stage} {number(value)}" for stage, value in values.items()
    )
    return picture(name, description, frame.bottom + 40, parts)


def flips_svg(name: str, ledger: Ledger) -> str | None:
    """Return the picture of each stage's share of flipped classes; None where no stage has one."""
    flips = {row.stage: row.flips for row in ledger.rows if row.flips is not None and math.isfinite(row.flips)}
    if not flips:
        return None
    most = ledger.limits.max_flips
    points = {stage: 100 * value for stage, value in flips.items()}
    scale = AxisScale.of([0.0, 100 * most, *points.values()], log=False, zero=True)
    frame = _frame(len(flips))
    parts = [*x_axis(frame, scale, "% of samples whose class changed")]
    parts += _limits({f"fail ≤ {100 * most:.3g}%": (100 * most, "limit")}, scale, frame)
    for index, (stage, value) in enumerate(points.items()):
        look = _look(stage_verdicts(ledger, ledger.row(stage)).get("flips"), "c3")
        parts += _dot(stage, (frame.x(scale.share(value) or 0.0), _middle(index)), percent(flips[stage]), look)
    description = f"Flipped classes by stage; the gate fails above {most * 100:.3g}%. "
    description += "; ".join(f"{stage} {percent(value)}" for stage, value in flips.items())
    return picture(name, description, frame.bottom + 40, parts)


def _look(verdict: Verdict | None, colour: str) -> tuple[str, str]:
    """Return the colour of a stage's mark, and the sign before its figure: those beyond a limit stand out."""
    return (verdict, "✗ ") if verdict in ("warn", "fail") else (colour, "")


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
