"""A task's data out of a CSV table: columns become modalities and targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import DataError, nearest
from edgekd.tasks.data.columns import Categories, CsvTable, Words, floats, input_of, read_table
from edgekd.tasks.data.division import Division, divide
from edgekd.tasks.data.task_data import Samples, TargetKind, Targets, TaskData, divided
from edgekd.training.task.protocol import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgekd.tasks.data.files import Arrays, Images, Sounds

_KINDS: tuple[TargetKind, ...] = ("classes", "regression", "multilabel")


def from_csv(
    path: str | Path,
    modalities: Mapping[str, str | Sequence[str] | Words | Categories | Images | Sounds | Arrays],
    target: str | Sequence[str],
    kind: TargetKind = "classes",
    *,
    group: str = "",
    division: Division | str | None = None,
) -> TaskData:
    """Read a table with one sample a row, and columns for its inputs and targets.

    Args:
        path: The table, in UTF-8, its first row the names of the columns; comma, semicolon or tab between them.
        modalities: For each modality its columns of numbers, which become one float vector; or :class:`edgekd.Words`,
            :class:`edgekd.Categories`, or files by their paths beside the table: :class:`edgekd.Images`,
            :class:`edgekd.Sounds`, :class:`edgekd.Arrays`. A row in which all cells of a modality are empty lacks it.
        target: Column of the class's name; columns of numbers for a regression; or columns of 0 and 1, one for each
            label, for "multilabel".
        kind: What is to be learned: "classes", "regression" or "multilabel".
        group: Column of what makes samples dependent, e.g. a subject: its samples are put into one split.
        division: What share each split gets, and the seed; or the column that names each row's split.

    Raises:
        DataError: The table cannot be read, lacks a column, or a cell is empty or not as it must be; a class has too
            few samples.
    """
    table = read_table(Path(path))
    targets = _targets(table, [target] if isinstance(target, str) else list(target), kind)
    groups = table.texts(group) if group else None
    inputs, present, described, files = {}, {}, [], [table.path]
    for name, columns in modalities.items():
        column = input_of(table, name, columns)
        described.append(column.modality)
        inputs[name] = column.values
        files += column.files
        if not column.present.all():
            present[name] = column.present
    if isinstance(division, str):
        parts = _parts(table, division)
    else:
        parts = divide(str(path), division or Division(), targets.strata(), groups)
    ids = [f"{table.path.stem}-{row:06d}" for row in range(len(table.rows))]
    return divided(Samples(ids, described, inputs, present, groups, targets), parts, files)


def _targets(table: CsvTable, columns: list[str], kind: TargetKind) -> Targets:
    if kind not in _KINDS:
        raise DataError(f"{table.path}: there is no kind of target '{kind}'{nearest(kind, _KINDS)}")
    if kind == "classes":
        if len(columns) != 1:
            raise DataError(
                f"{table.path}: target = {columns}; for classes it is one column, with a class's name a row"
            )
        names = table.texts(columns[0])
        classes = tuple(sorted(set(names)))
        return Targets(kind, np.array([classes.index(name) for name in names]), classes)
    values = np.stack([floats(table, column) for column in columns], axis=1)
    if kind == "multilabel" and not np.isin(values, (0, 1)).all():
        row, label = np.argwhere(~np.isin(values, (0, 1)))[0]
        raise DataError(
            f"{table.line(row)}: column '{columns[label]}' is {values[row, label]:g}; a label's column holds 0 and 1"
        )
    return Targets(kind, values, tuple(columns))


def _parts(table: CsvTable, column: str) -> dict[str, NDArray[np.int64]]:
    """Return the splits that a column names."""
    names = table.texts(column)
    for row, name in enumerate(names):
        if name not in SPLITS:
            raise DataError(
                f"{table.line(row)}: column '{column}' is '{name}', must be one of "
                f"{', '.join(SPLITS)}{nearest(name, SPLITS)}"
            )
    for name in SPLITS:
        if name not in names:
            raise DataError(
                f"{table.path}: column '{column}' has no row '{name}'; there must be all of {', '.join(SPLITS)}"
            )
    return {name: np.flatnonzero(np.array(names) == name) for name in SPLITS}
