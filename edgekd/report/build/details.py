"""The part of a build's page that shows classes, samples and groups: what goes wrong, and whether it went before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.compare.html import figure_html, table_html
from edgekd.report.details.pictures import mask_colour
from edgekd.report.details.tables import (
    class_table,
    confused_table,
    detail_lines,
    figure_words,
    group_table,
    number_table,
    recall_table,
    token_table,
    who_is_right,
)
from edgekd.report.escape import escape
from edgekd.report.format import number
from edgekd.report.svg.confusion import confusion_svg
from edgekd.report.svg.draw import figure_svg
from edgekd.report.svg.plots import histogram_svg, precision_recall_svg, scatter_svg

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgekd.report.details.content import InputPicture, OutputDetails, Retrieved, SampleDetails
    from edgekd.report.table import Table

#: Rows of a table that a reader need not unfold, pairs beside a picture of all of them, and classes whose colours are
#: told.
_UNFOLDED, _BESIDE_PICTURE, _TOLD_COLOURS = 25, 10, 20

#: Width and height of a series, and the classes of the style sheet for its channels.
_SERIES, _CHANNELS = (88.0, 48.0), ("c1", "c0", "c2")


def details_html(index: int, details: Mapping[str, OutputDetails]) -> Iterator[str]:
    """Yield what the page shows of each output of a target.

    Args:
        index: Number of the target's row.
        details: The details of each output, by its name.
    """
    for place, (name, output) in enumerate(details.items()):
        heading = "Classes and samples" if output.classes else "Samples and errors"
        yield f"<h3>{heading}{f': {escape(name)}' if len(details) > 1 else ''}</h3>"
        yield "".join(f"<p>{escape(line)}</p>" for line in detail_lines(output))
        yield from _figures(f"{index}-{place}", output)
        yield from _samples(f"{index}-{place}", output)


def _figures(key: str, details: OutputDetails) -> Iterator[str]:
    """Yield the tables and pictures of the whole split."""
    yield from _plots(key, details)
    if table := class_table(details):
        yield _folded(table, f"Classes {key}")
    drawn = details.classes and details.classes.confusion
    if details.classes and drawn:
        svg, width = confusion_svg(
            f"confusion-{key}",
            [row.name for row in details.classes.rows],
            details.classes.confusion,
            details.classes.unit,
        )
        caption = "Each row is a class that is true, each column one that was said; colour is the share of the row."
        if details.truth == "reference":
            caption = caption.replace("is true", "the model that it was made of says")
        yield f'<div style="max-width:{width:.0f}px">{figure_html(caption, svg)}</div>'
    named = {
        "Most confused": confused_table(details, _UNFOLDED if not drawn else _BESIDE_PICTURE),
        "Errors by number": number_table(details),
        "Retrieval": recall_table(details),
        "Errors by token": token_table(details),
        "Groups": group_table(details),
    }
    told = (f"<div><h4>{head}</h4>{_folded(table, f'{head} {key}')}</div>" for head, table in named.items() if table)
    if parts := "".join(told):
        yield f'<div class="tables">{parts}</div>'


def _plots(key: str, details: OutputDetails) -> Iterator[str]:
    plots = []
    if details.curves:
        curves = {model: (curve.x, curve.y) for model, curve in details.curves.items()}
        plots.append(figure_html("All labels together.", precision_recall_svg(f"recall-{key}", curves)))
    if details.numbers:
        counts = details.numbers.histogram
        plots.append(figure_html("Errors.", histogram_svg(f"errors-{key}", details.numbers.edges, counts)))
        points = {model: (points.x, points.y) for model, points in details.numbers.points.items()}
        if any(x for x, _ in points.values()):
            which = "" if details.numbers.count == 1 else " The first number."
            plots.append(figure_html(f"Predicted against true.{which}", scatter_svg(f"predicted-{key}", points)))
    if plots:
        yield f'<div class="pictures">{"".join(plots)}</div>'


def _folded(table: Table, name: str) -> str:
    content = table_html(table, name)
    if len(table.rows) <= _UNFOLDED:
        return content
    return f"<details><summary>All {len(table.rows)} rows</summary>{content}</details>"


def _samples(key: str, details: OutputDetails) -> Iterator[str]:
    """Yield the lists of samples, or why there are none."""
    if not details.shown:
        yield "<p>Samples are left out, as the recipe says (report.samples).</p>"
        return
    if details.worst:
        yield f"<h4>The worst samples</h4><p>Figure: {escape(details.worst_by)}.</p>"
        yield _list(f"worst-{key}", details, details.worst)
    if details.flips:
        yield f"<h4>Answers that changed most</h4><p>Figure: {escape(details.flips_by)}.</p>"
        yield _list(f"flip-{key}", details, details.flips)
    if details.kind == "dense-classes" and details.classes:
        yield _colours([row.name for row in details.classes.rows[:_TOLD_COLOURS]])


def _list(key: str, details: OutputDetails, samples: tuple[SampleDetails, ...]) -> str:
    cards = "".join(f"<li>{''.join(_card(f'{key}-{at}', details, one))}</li>" for at, one in enumerate(samples))
    return f'<ul class="samples">{cards}</ul>'


def _card(key: str, details: OutputDetails, sample: SampleDetails) -> Iterator[str]:
    if sample.pictures:
        drawn = "".join(_picture(f"{key}-{at}", sample.id, one) for at, one in enumerate(sample.pictures))
        yield f'<div class="inputs">{drawn}</div>'
    group = f" ({escape(sample.group)})" if sample.group else ""
    yield f"<p><b>{escape(sample.id)}</b>{group}</p><dl>"
    if sample.true:
        yield f"<dt>true</dt><dd>{escape(sample.true)}</dd>"
    for model, said in sample.said.items():
        if said:
            yield f"<dt>{escape(model)}</dt><dd>{escape(said)}{_score(details, sample, model)}</dd>"
    yield f"<dt>figure</dt><dd>{escape(figure_words(sample))}</dd></dl>"
    if details.truth == "labels" and (verdict := who_is_right(details, sample)):
        yield f"<p>{escape(verdict)}</p>"
    for model, found in sample.retrieved.items():
        yield f"<p>{escape(model)} finds</p><ol>{''.join(map(_retrieved, found))}</ol>"


def _score(details: OutputDetails, sample: SampleDetails, model: str) -> str:
    """Return a sign for an answer that is right or wrong, or its score where that is neither."""
    score = sample.score.get(model)
    if score is None or details.kind == "embedding":
        return ""
    if details.higher_is_better and score in (0.0, 1.0):
        word, sign = ("right", "✓") if score else ("wrong", "✗")
        return f' <span class="away">{word}</span><span aria-hidden="true">{sign}</span>'
    return f" ({number(score, '.3f')})"


def _retrieved(one: Retrieved) -> str:
    sign = "" if one.right is None else " ✓" if one.right else " ✗"
    label = f" ({escape(one.label)})" if one.label else ""
    return f"<li>{escape(one.id)}{label} {one.cosine:.3f}{sign}</li>"


def _picture(key: str, sample: str, shown: InputPicture) -> str:
    """Return a picture with its name below."""
    what = f"{shown.name} of {sample}"
    if shown.png:
        drawn = f'<img src="{escape(shown.png)}" alt="{escape(what)}">'
    else:
        width, height = _SERIES
        lines = (
            f'<path class="line {_CHANNELS[at % len(_CHANNELS)]}" d="M{_points(channel)}"/>'
            for at, channel in enumerate(shown.series)
        )
        drawn = figure_svg(key, what, (width, height), lines, kind="series")
    return f"<div>{drawn}<span>{escape(shown.name)}</span></div>"


def _points(channel: str) -> str:
    levels = [float(level) for level in channel.split()]
    width, height = _SERIES
    step = width / max(len(levels) - 1, 1)
    return " L".join(
        f"{at * step:.1f} {height - 2 - level / 100 * (height - 4):.1f}" for at, level in enumerate(levels)
    )


def _colours(names: list[str]) -> str:
    """Return what the colours of masks stand for."""
    keys = "".join(
        f'<li><span class="key" style="background:rgb{mask_colour(at)}"></span> {escape(name)}</li>'
        for at, name in enumerate(names)
    )
    return f'<h4>Colours of the masks</h4><ul class="keys">{keys}<li>white: not labelled</li></ul>'
