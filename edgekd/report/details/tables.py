"""The details of an output as tables and sentences, for the page and for Markdown alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.format import NOTHING, number, percent, significant
from edgekd.report.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from edgekd.report.details.content import OutputDetails, SampleDetails


def detail_lines(details: OutputDetails) -> Iterator[str]:
    """Yield sentences on how good the answers are, and on how many are not the reference's any more."""
    models = details.models
    if details.truth == "labels":
        scores = ", ".join(f"{model} {number(details.mean_score.get(model))}" for model in models)
        counted = (
            f"{details.labelled:,} of {details.samples:,} samples"
            if details.labelled < details.samples
            else (f"{details.samples:,} samples")
        )
        yield f"{_sentence(details.score)}, mean over {counted}: {scores}."
    elif details.score:
        yield f"No sample has a label: what ships is held against the answers of the {details.reference}."
    yield _change_line(details)


def _change_line(details: OutputDetails) -> str:
    changes, count = details.changes, f"{details.samples:,} samples"
    if changes.count is None:
        return f"{_sentence(details.flips_by)}, mean over {count}: {number(changes.mean)}."
    if not changes.count:
        return f"The answers for all of {count} are those of the {details.reference}."
    how = {"for the worse": changes.broken, "for the better": changes.mended, "no better and no worse": changes.alike}
    how |= {"of unknown truth": changes.unknown}
    told = ", ".join(f"{part:,} {what}" for what, part in how.items() if part)
    return (
        f"The answers for {changes.count:,} of {count} ({percent(changes.count / details.samples)}) are not those of "
        f"the {details.reference}{f': {told}' if details.truth == 'labels' else ''}."
    )


def detail_tables(details: OutputDetails) -> Iterator[Table]:
    """Yield every table that the output has."""
    tables = (
        *(
            make(details)
            for make in (class_table, confused_table, number_table, recall_table, token_table, group_table)
        ),
        sample_table(details, details.worst, "The worst samples"),
        sample_table(details, details.flips, "Answers that changed most"),
    )
    yield from filter(None, tables)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def class_table(details: OutputDetails) -> Table | None:
    """Return each class with its precision and recall by model; None where the output has none."""
    figures = details.classes
    if figures is None:
        return None
    models = details.models
    shown: dict[str, Callable[[int], Mapping[str, float | None]]] = {
        "precision": lambda at: figures.rows[at].precision,
        "recall": lambda at: figures.rows[at].recall,
    }
    if figures.unit == "pixels":
        shown["IoU"] = lambda at: figures.rows[at].overlap
    if figures.unit == "labels":
        shown["AP"] = lambda at: figures.rows[at].average_precision
    columns = _columns("label" if figures.unit == "labels" else "class", figures.unit, shown, models)
    rows = tuple(
        (
            row.name,
            f"{row.support:,}",
            *(number(value(at).get(model), ".3f") for value in shown.values() for model in models),
        )
        for at, row in enumerate(figures.rows)
    )
    left = figures.count - len(rows)
    notes = [f"Of {figures.count:,} classes those that are found least; {left:,} are left out."] if left else []
    notes += ["AP: average precision, the mean of the precision over all recalls."] if "AP" in shown else []
    return Table("Classes", columns, rows, tuple(notes))


def _columns(first: str, counted: str, figures: Iterable[str], models: tuple[str, ...]) -> tuple[Column, ...]:
    """Return the columns of a table with some figures of each model; a lone model needs no name."""
    named = (f"{figure}, {model}" if len(models) > 1 else figure for figure in figures for model in models)
    return (Column(first, right=False), Column(counted), *map(Column, named))


def confused_table(details: OutputDetails, most: int = 20) -> Table | None:
    """Return the ``most`` pairs of classes that what ships confuses most often; None where there are none."""
    figures = details.classes
    if figures is None or not figures.confused:
        return None
    columns = (Column("true", right=False), Column("said", right=False), *(Column(model) for model in details.models))
    rows = tuple(
        (pair.true, pair.said, *(f"{pair.counts.get(model, 0):,}" for model in details.models))
        for pair in figures.confused[:most]
    )
    return Table("Most confused", columns, rows, (f"How many {figures.unit} of one class were said to be of another.",))


def number_table(details: OutputDetails) -> Table | None:
    """Return each number of an output with its errors; None where there are none, or too many."""
    figures = details.numbers
    if figures is None or not figures.rows:
        return None
    models = details.models
    shown = ("error", "bias", "R²")
    columns = _columns("number", "deviation", shown, models)
    rows = tuple(
        (
            str(row.element),
            significant(row.deviation),
            *(_figure(row.error.get(model)) for model in models),
            *(_figure(row.bias.get(model)) for model in models),
            *(number(row.r2.get(model), ".3f") for model in models),
        )
        for row in figures.rows
    )
    notes = ("Error: root mean square, in the unit of the output. Deviation: of what is true.",)
    return Table("Numbers", columns, rows, notes)


def _figure(value: float | None) -> str:
    return NOTHING if value is None else significant(value)


def recall_table(details: OutputDetails) -> Table | None:
    """Return the retrieval of all samples and of each class; None where nothing is retrieved, or has no class."""
    if not details.retrieval:
        return None
    models = details.models
    columns = _columns("class", "samples", ("recall@1", "recall@5"), models)
    rows = tuple(
        (
            row.name,
            f"{row.support:,}",
            *(number(row.first.get(model), ".3f") for model in models),
            *(number(row.five.get(model), ".3f") for model in models),
        )
        for row in details.retrieval
    )
    return Table("Retrieval", columns, rows)


def token_table(details: OutputDetails) -> Table | None:
    """Return the errors in sequences by model; None where the output is of none."""
    errors = details.tokens
    if errors is None:
        return None
    columns = (
        Column("model", right=False),
        *map(Column, ("wrong", "left out", "added", "errors a token", "sequences right")),
    )
    rows = tuple(
        (
            model,
            f"{errors.substituted.get(model, 0):,}",
            f"{errors.deleted.get(model, 0):,}",
            f"{errors.inserted.get(model, 0):,}",
            number(
                _share(
                    errors.substituted.get(model, 0) + errors.deleted.get(model, 0) + errors.inserted.get(model, 0),
                    errors.tokens,
                )
            ),
            number(errors.whole.get(model)),
        )
        for model in details.models
    )
    return Table("Token errors", columns, rows, (f"Of {errors.tokens:,} tokens.",))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def group_table(details: OutputDetails) -> Table | None:
    """Return the groups that are served worst; None where there are none."""
    groups = details.groups
    if groups is None:
        return None
    models = details.models
    columns = (Column("group", right=False), Column("samples"), *(Column(model) for model in models))
    rows = tuple(
        (row.name or f"#{place}", f"{row.samples:,}", *(number(row.score.get(model)) for model in models))
        for place, row in enumerate(groups.rows, 1)
    )
    notes = (f"{_sentence(details.score)}; {len(rows)} of {groups.count} groups, the worst first.",)
    return Table("Groups", columns, rows, notes)


def sample_table(details: OutputDetails, samples: tuple[SampleDetails, ...], title: str) -> Table | None:
    """Return some samples with what is true and what was said of them; None where there are none."""
    if not samples:
        return None
    said = tuple(samples[0].said)
    known = any(sample.true for sample in samples)
    columns = (
        Column("sample", right=False),
        *([Column("true", right=False)] if known else []),
        *(Column(model, right=False) for model in said),
        Column("figure"),
    )
    rows = tuple(
        (
            sample.id,
            *([sample.true or NOTHING] if known else []),
            *(sample.said.get(model) or NOTHING for model in said),
            figure_words(sample),
        )
        for sample in samples
    )
    by = details.worst_by if samples is details.worst else details.flips_by
    return Table(title, columns, rows, (f"Figure: {by}.",))


def figure_words(sample: SampleDetails) -> str:
    """Write the figure by which a sample stands where it does in its list."""
    return "no answer" if sample.figure is None else number(sample.figure, ".3f")


def who_is_right(details: OutputDetails, sample: SampleDetails) -> str:
    """Say which of what ships and what it was made of is nearer to what is true; "" where nothing is known."""
    mine, theirs = sample.score.get(next(iter(details.models), "")), sample.score.get(details.reference)
    if mine is None or theirs is None:
        return ""
    if mine == theirs:
        alike = {1.0: "Both are right.", 0.0: "Both are wrong."} if details.higher_is_better else {}
        return alike.get(mine, "Neither is better.")
    better = "What ships" if (mine > theirs) == details.higher_is_better else f"The {details.reference}"
    right = details.higher_is_better and max(mine, theirs) >= 1
    return f"{better} is {'right' if right else 'nearer'}."
