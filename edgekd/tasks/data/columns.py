"""Columns of a CSV table as a modality: numbers, words, choices, or paths of files."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import DataError, nearest
from edgekd.tasks.data.files import Arrays, Images, Sounds, read_files
from edgekd.tasks.data.words import told_tokens, word_tokens
from edgekd.training.task.protocol import Modality

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.tasks.data.files import FileReader


@dataclass(frozen=True)
class Words:
    """A column of text as token ids, which :func:`edgekd.word_tokens` makes.

    Attributes:
        column: The column; or several, whose texts are put together.
        length: Number of words that are kept.
        buckets: Number of different ids, 0 among them, which fills up: the rows of an embedding table.
    """

    column: str | Sequence[str]
    length: int = 16
    buckets: int = 1024

    def __post_init__(self) -> None:
        if self.length < 1 or self.buckets < 2:
            raise DataError(
                f"words of '{self.column}': length = {self.length}, buckets = {self.buckets}; must be 1 and 2 or more"
            )


@dataclass(frozen=True)
class Categories:
    """Columns of names as class indices, int64, for an embedding table or one-hot vectors.

    Attributes:
        columns: One column, or several, each with names of its own.
    """

    columns: str | Sequence[str]


@dataclass(frozen=True)
class CsvTable:
    """A table of texts.

    Attributes:
        path: Its file.
        columns: Names of the columns.
        rows: The cells of each row, without spaces around them.
        lines: Line of the file at which each row ends.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def line(self, row: int) -> str:
        """Return the place of a row, for errors."""
        return f"{self.path}, line {self.lines[row]}"

    def cells(self, column: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            DataError: There is no such column.
        """
        if column not in self.columns:
            raise DataError(f"{self.path}: has no column '{column}'{nearest(column, self.columns)}")
        index = self.columns.index(column)
        return [row[index] for row in self.rows]

    def texts(self, column: str) -> list[str]:
        """Return the cells of a column, none of which is empty.

        Raises:
            DataError: There is no such column, or a cell is empty.
        """
        cells = self.cells(column)
        if "" in cells:
            raise DataError(f"{self.line(cells.index(''))}: column '{column}' is empty; fill it, or leave the row out")
        return cells


@dataclass(frozen=True)
class InputColumn:
    """One modality of all rows.

    Attributes:
        modality: The modality.
        values: Its values [N, ...]; zeros where a row lacks it.
        present: Whether a row has it [N].
        files: The files that were read.
    """

    modality: Modality
    values: NDArray[np.generic]
    present: NDArray[np.bool_]
    files: list[Path] = field(default_factory=list)


def read_table(path: Path) -> CsvTable:
    """Read a table.

    Raises:
        DataError: It cannot be read, has no rows, or a row has more or fewer cells than there are columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            rows, lines = [], []
            for row in reader:
                if row:  # a line with nothing in it is no row
                    rows.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not in UTF-8: {error.reason}") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: is no CSV: {error}") from error
    if len(rows) < 2:
        raise DataError(f"{path}: has no rows; the first line names the columns, and each further one is a sample")
    columns = tuple(rows[0])
    twice = [name for index, name in enumerate(columns) if name in columns[:index]]
    if twice:
        raise DataError(f"{path}: has two columns '{twice[0]}'")
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(columns):
            raise DataError(f"{path}, line {line}: has {len(row)} cells, and the first line {len(columns)} columns")
    return CsvTable(path, columns, rows[1:], lines[1:])


def floats(table: CsvTable, column: str) -> NDArray[np.float32]:
    """Return a column of numbers, none of which is empty.

    Raises:
        DataError: There is no such column, or a cell is empty or no number.
    """
    return _floats(table, column, np.ones(len(table.rows), bool))


def input_of(
    table: CsvTable, name: str, columns: str | Sequence[str] | Words | Categories | Images | Sounds | Arrays
) -> InputColumn:
    """Return columns of a table as a modality.

    Raises:
        DataError: A column is not there, or a cell is not as it must be.
    """
    if isinstance(columns, Words):
        return _words(table, name, columns)
    if isinstance(columns, Categories):
        return _choices(table, name, _several(columns.columns))
    if isinstance(columns, Images | Sounds | Arrays):
        return _files(table, name, columns)
    names = _several(columns)
    present = _present(table, names)
    values = np.stack([_floats(table, column, present) for column in names], axis=1)
    return InputColumn(Modality(name, (len(names),), ", ".join(names)), values, present)


def _several(columns: str | Sequence[str]) -> list[str]:
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names:
        raise DataError("a modality has no columns; name one or more")
    return names


def _present(table: CsvTable, columns: Sequence[str]) -> NDArray[np.bool_]:
    """Return which rows have a modality: any of its cells is filled."""
    filled = np.array([[cell != "" for cell in table.cells(column)] for column in columns])
    present: NDArray[np.bool_] = np.logical_or.reduce(filled, axis=0)
    return present


def _floats(table: CsvTable, column: str, present: NDArray[np.bool_]) -> NDArray[np.float32]:
    values = np.zeros(len(table.rows), np.float32)
    for row, cell in enumerate(table.cells(column)):
        if not present[row]:
            continue
        if not cell:
            raise DataError(
                f"{table.line(row)}: column '{column}' is empty; fill it, leave the row out, or empty all columns of "
                "the modality, which the sample then lacks"
            )
        try:
            values[row] = float(cell)
        except ValueError as error:
            raise DataError(
                f"{table.line(row)}: column '{column}' is '{cell}', which is no number; for text there is Words, for "
                "names Categories"
            ) from error
        if not np.isfinite(values[row]):
            raise DataError(f"{table.line(row)}: column '{column}' is '{cell}', which is not finite")
    return values


def _words(table: CsvTable, name: str, words: Words) -> InputColumn:
    columns = _several(words.column)
    texts = [" ".join(cells) for cells in zip(*(table.cells(column) for column in columns), strict=True)]
    values = np.stack([word_tokens(text, words.length, words.buckets) for text in texts])
    told = f"{', '.join(columns)}: {told_tokens(words.buckets)}"
    present: NDArray[np.bool_] = np.logical_or.reduce(values != 0, axis=1)
    return InputColumn(Modality(name, (words.length,), told, dtype="int64", pad=0), values, present)


def _choices(table: CsvTable, name: str, columns: list[str]) -> InputColumn:
    present, indices, told = _present(table, columns), [], []
    for column in columns:
        cells = table.cells(column)
        if any(there and not cell for there, cell in zip(present, cells, strict=True)):
            row = next(row for row, cell in enumerate(cells) if present[row] and not cell)
            raise DataError(f"{table.line(row)}: column '{column}' is empty; fill it, or leave the row out")
        names = sorted({cell for cell in cells if cell})
        told.append(f"{column}: {', '.join(f'{index} {choice}' for index, choice in enumerate(names))}")
        indices.append([names.index(cell) if cell else 0 for cell in cells])
    values = np.array(indices, np.int64).T
    return InputColumn(Modality(name, (len(columns),), "; ".join(told), dtype="int64"), values, present)


def _files(table: CsvTable, name: str, reader: FileReader) -> InputColumn:
    cells = table.cells(reader.source)
    present = np.array([cell != "" for cell in cells])
    paths = [table.path.parent / cell for cell in cells if cell]
    if not paths:
        raise DataError(f"{table.path}: column '{reader.source}' names no file")
    read = read_files(reader, paths)
    values = np.zeros((len(cells), *read.shape[1:]), read.dtype)
    values[present] = read
    return InputColumn(reader.modality(name, values), values, present, paths)
