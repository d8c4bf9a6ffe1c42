"""The ledger as two pictures: drift against the gate's limits, and the metric, stage by stage."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from edgekd.report.format import number
from edgekd.report.svg.draw import WIDTH, Frame, picture, shorten, text, x_axis
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekd.gram.gate import Ledger

_ROW, _TOP, _LABEL, _FIGURE = 24.0, 26.0, 104, 54
#: Characters of a stage's name that fit beside the plot.
_NAME = 15


def drift_svg(name: str, ledger: Ledger) -> str | None:
    """Return each stage's drift from the reference, mean and bound; None where no stage has one."""
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
        parts += [
            f"<g><title>{escape(f'{stage}: mean {number(drift.mean)}, bound {number(drift.bound)}')}</title>",
            text(_LABEL - 8, y + 4, shorten(stage, _NAME), "end"),
            f'<path class="interval c0" d="M{mean:.1f} {y:.1f} H{bound:.1f}"/>',
            f'<circle class="dot c0" cx="{mean:.1f}" cy="{y:.1f}" r="4"/>',
            f'<path class="interval c0" d="M{bound:.1f} {y - 6:.1f} v12"/>',
            text(WIDTH - 4, y + 4, number(drift.bound), "end", "mark"),
            "</g>",
        ]
    told = f"Bound of the Gram drift by stage; the gate passes up to {limits.tau_pass:g} and fails above "
    told += f"{limits.tau_fail:g}. " + "; ".join(f"{stage} {number(drift.bound)}" for stage, drift in drifts.items())
    return picture(name, told, frame.bottom + 40, parts)


def metric_svg(name: str, ledger: Ledger) -> str | None:
    """Return each stage's metric; None where it was not measured."""
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
        x, y = frame.x(scale.share(value) or 0.0), _middle(index)
        parts += [
            f"<g><title>{escape(f'{stage}: {number(value)}')}</title>",
            text(_LABEL - 8, y + 4, shorten(stage, _NAME), "end"),
            f'<circle class="dot c1" cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
            text(WIDTH - 4, y + 4, number(value), "end", "mark"),
            "</g>",
        ]
    told = f"{ledger.metric} by stage. " + "; ".join(f"{stage} {number(value)}" for stage, value in values.items())
    return picture(name, told, frame.bottom + 40, parts)


def _frame(rows: int) -> Frame:
    return Frame(_LABEL, _TOP, WIDTH - _FIGURE, _TOP + _ROW * rows)


def _middle(index: int) -> float:
    return _TOP + _ROW * (index + 0.5)


def _limits(limits: dict[str, tuple[float, str]], scale: AxisScale, frame: Frame) -> Iterator[str]:
    """Draw upright lines with what they are above them, beside each other where they are near."""
    free: Sequence[float] = (0.0,)
    for told, (value, kind) in limits.items():
        x, half = frame.x(scale.share(value) or 0.0), 3.4 * len(told)
        yield f'<path class="{kind}" d="M{x:.1f} {frame.top - 4:.0f} V{frame.bottom:.0f}"/>'
        at = min(max(x, half, free[0] + half), WIDTH - half)
        yield text(at, frame.top - 10, told, "middle", "tick")
        free = (at + half + 6,)
