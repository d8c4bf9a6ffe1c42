"""The three questions of the gate on a page: a card for each, with its verdict, its reasons and pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgekd.gram.verdict import QUESTIONS
from edgekd.report.compare.html import limit_sign, reason_list, verdict_badge
from edgekd.report.escape import escape
from edgekd.report.format import small
from edgekd.report.questions import evidence_of, least_metric
from edgekd.report.svg.draw import WIDTH, Frame, picture, shorten, text, x_axis
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekd.gram.gate import Ledger
    from edgekd.gram.verdict import Answered
    from edgekd.report.questions import Evidence

#: Height of a figure with its track, and of one in words alone; the place of the track's limit, the middle of it.
_TRACKED, _PLAIN = 66.0, 30.0
_EDGE, _MIDDLE = 6.0, WIDTH / 2
#: Beside the plot of metrics: the name, and the figure behind.
_LABEL, _FIGURE, _ROW, _TOP = 128, 62, 24.0, 26.0


def question_cards(index: int, ledger: Ledger) -> str:
    """Return a card for each question that was asked about what ships, under a heading; "" where none was."""
    cards = [_card(index, ledger, answered) for answered in ledger.questions if answered.verdict]
    head = "<h3>Three questions, answered apart</h3>"
    return f'{head}<ul class="questions">{"".join(cards)}</ul>' if cards else ""


def _card(index: int, ledger: Ledger, answered: Answered) -> str:
    assert answered.verdict is not None  # the caller has looked
    figures = evidence_of(ledger, answered)
    name = f"{answered.question}-{index}"
    metric = metric_marks_svg(f"{name}-metric", ledger) if answered.question == "learned" else None
    shown = [figure for figure in figures if metric is None or figure.name == "gain"]
    pictures = (metric, evidence_svg(name, shown))
    return (
        f'<li class="question {answered.verdict}"><h4>{escape(QUESTIONS[answered.question])} '
        f"{verdict_badge(answered.verdict)}</h4>{reason_list(answered.reasons, 'why')}"
        f"{''.join(filter(None, pictures))}</li>"
    )


def evidence_svg(name: str, figures: Sequence[Evidence]) -> str | None:
    """Return the picture of figures with their bounds, all of whose limits are in one line; None where there is none.

    Each figure has a scale of its own, from 0, or as far below 0 as the limit is above it, to twice as far; what is
    beyond is drawn at the end, as an arrow.
    """
    if not figures:
        return None
    parts: list[str] = []
    y = 0.0
    for figure in figures:
        parts += _head(figure, y)
        if figure.limit is None:
            y += _PLAIN
        else:
            parts += _track(figure, figure.limit, y + 31)
            y += _TRACKED
    told = "; ".join(f"{figure.label} {figure.write(figure.value)}, {_words(figure)}" for figure in figures)
    return picture(name, f"Figures with their bounds and limits. {told}.", y + 4, parts)


def _words(figure: Evidence) -> str:
    return f"bounds {figure.bounds}, limit {figure.wanted}"


def _head(figure: Evidence, y: float) -> Iterator[str]:
    """Write what a figure is, and the figure."""
    yield text(_EDGE, y + 16, shorten(figure.label, 40))
    kind = f"mark {figure.verdict}" if figure.verdict else "mark"
    yield text(WIDTH - _EDGE, y + 16, f"{limit_sign(figure.verdict)}{figure.write(figure.value)}", "end", kind)


def _track(figure: Evidence, limit: float, y: float) -> Iterator[str]:
    """Draw a figure's bounds on a line whose middle is its limit; the side that keeps the limit is filled."""
    right = WIDTH - _EDGE
    kept = (_EDGE, _MIDDLE) if figure.upper else (_MIDDLE, right)
    yield f'<rect class="kept" x="{kept[0]:.1f}" y="{y - 6:.1f}" width="{kept[1] - kept[0]:.1f}" height="12"/>'
    yield f'<path class="axis" d="M{_EDGE:.1f} {y:.1f} H{right:.1f}"/>'
    yield f'<path class="limit" d="M{_MIDDLE:.1f} {y - 9:.1f} v18"/>'
    if math.isfinite(figure.value):
        yield from _marks(figure, limit, y)
    yield text(_EDGE, y + 23, figure.bounds, kind="tick")
    yield text(_MIDDLE, y + 23, figure.wanted, "middle", "tick")


def _marks(figure: Evidence, limit: float, y: float) -> Iterator[str]:
    """Draw a figure, its bounds, and where it warns; a figure beyond the end of the line is an arrow."""
    low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
    finite = [end for end in (low, figure.value, high) if math.isfinite(end)]
    unit = abs(limit) or max(map(abs, finite)) or 1.0
    half = unit * (2 if min(finite) < limit - unit else 1)

    def place(value: float) -> float:
        share = (value - limit) / half
        return _MIDDLE + min(max(share, -1.0), 1.0) * (_MIDDLE - _EDGE)

    colour = figure.verdict or "quiet"
    if figure.warns is not None:
        yield f'<path class="limit soft" d="M{place(figure.warns):.1f} {y - 9:.1f} v18"/>'
    yield f"<g><title>{escape(f'{figure.label}: {figure.write(figure.value)}, {_words(figure)}')}</title>"
    yield f'<path class="band {colour}" d="M{place(low):.1f} {y:.1f} H{place(high):.1f}"/>'
    x = place(figure.value)
    if figure.value > limit + half:
        yield f'<path class="{colour} arrow" d="M{x:.1f} {y:.1f} l-13 -7 v14 z"/>'
    else:
        yield f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    yield "</g>"


def metric_marks_svg(name: str, ledger: Ledger) -> str | None:
    """Return the picture of the student's metric between the best constant answer's and the teacher's.

    None where there is neither a teacher nor a constant answer.
    """
    values = {row.stage: row.metric for row in ledger.rows if row.stage in ("teacher", ledger.reference)}
    known = {stage: value for stage, value in values.items() if value is not None and math.isfinite(value)}
    if ledger.constant is not None:
        known[f"always {ledger.constant.answer}"] = ledger.constant.metric
    if len(known) < 2 or ledger.reference not in known:
        return None
    least = least_metric(ledger)
    scale = AxisScale.of([*known.values(), *([] if least is None else [least])], log=False)
    frame = Frame(_LABEL, _TOP, WIDTH - _FIGURE, _TOP + _ROW * len(known))
    parts = [*x_axis(frame, scale, ledger.metric)]
    if least is not None:
        x, sign = frame.x(scale.share(least) or 0.0), "≥" if ledger.limits.higher_is_better else "≤"
        words = f"the student {sign} {small(least)}"
        half = 3.4 * len(words)
        parts.append(f'<path class="limit soft" d="M{x:.1f} {frame.top - 4:.0f} V{frame.bottom:.0f}"/>')
        parts.append(text(min(max(x, half), WIDTH - half), frame.top - 10, words, "middle", "tick"))
    verdict = next((a.verdict for a in ledger.questions if a.question == "learned"), None)
    for index, (stage, value) in enumerate(known.items()):
        y = _TOP + _ROW * (index + 0.5)
        colour = (verdict or "c1") if stage == ledger.reference else "c5"
        parts += [
            text(_LABEL - 8, y + 4, shorten(stage, 18), "end"),
            f'<circle class="dot {colour}" cx="{frame.x(scale.share(value) or 0.0):.1f}" cy="{y:.1f}" r="5"/>',
            text(WIDTH - 4, y + 4, small(value), "end", "mark"),
        ]
    told = "; ".join(f"{stage} {small(value)}" for stage, value in known.items())
    return picture(name, f"{ledger.metric} of what was learned. {told}.", frame.bottom + 40, parts)
