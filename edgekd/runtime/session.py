"""Sessions: what every engine library looks like to edgekd, named tensors in and named tensors out."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, runtime_checkable

import numpy as np

from edgekd.errors import ModelError, nearest
from edgekd.files import atomic_path
from edgekd.gram.npz import UNREADABLE, MeasuredArrays, write_npz

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from edgekd.files import JsonObject

Array: TypeAlias = "NDArray[Any]"
#: An engine's inputs by their names, a row a sample.
Feeds: TypeAlias = "Mapping[str, Array]"

#: The most bytes of inputs that are run at once: intermediate results may take a hundred times as much memory.
_INPUTS_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes:
        name: The tensor's name.
        dtype: Numpy's name of its type, e.g. "float32".
        shape: An int for each fixed dimension, a name for each dynamic one; inputs that share a name share a size.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that a library compiled for one machine; it fits that kind of machine and this version alone.

    Attributes:
        files: The names of its files.
        library: The library's name and version.
        open_with: Keyword arguments, as JSON values, that the library's own call that opens the first file must be
            given besides the file, so that it computes as it did here.
        build_s: The time of compiling in seconds; None where an earlier edgekd compiled it and did not record that.
    """

    files: tuple[str, ...]
    library: str
    open_with: JsonObject
    build_s: float | None


def engine_label(engine: Path | bytes, name: str | None = None) -> str:
    """Return an engine's name in errors: the one given, or its path."""
    return name or (str(engine) if isinstance(engine, Path) else "the given bytes")


@contextmanager
def readable_names(engine: str) -> Iterator[None]:
    """Refuse an engine whose inputs or outputs have names that are not UTF-8, where its library gives them.

    Args:
        engine: The engine's name in errors.

    Raises:
        ModelError: a name is no text.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{engine}: has an input or output named {error.object!r}, which is not UTF-8; rename it"
        ) from error


class Session(Protocol):
    """An open engine. Close it, or use it as a context manager."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that :meth:`run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that :meth:`run` returns, in this order."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Facts of how the library runs the engine, for a report; may be empty."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return every output by its name; the caller owns the arrays.

        Raises:
            ModelError: the feeds do not fit :attr:`inputs`, or the engine failed.
        """

    def close(self) -> None:
        """Free the engine; it cannot be run again."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class ComputeTimer(Protocol):
    """A :class:`Session` that can time computing alone, without moving arrays in and out."""

    def bind_inputs(self, feeds: Feeds) -> Callable[[], int] | None:
        """Put the feeds, one row each, where the library reads them, and return a function that computes on them.

        Returns:
            A function that computes once and returns the time of that in ns; it may be called again and again until the
            session is given other feeds. None where this engine, unlike others of its library, cannot be timed so.

        Raises:
            ModelError: as of :meth:`Session.run`.
        """


def read_arrays(source: Path | BinaryIO, keys: Sequence[str]) -> dict[str, Array]:
    """Read these arrays of an ``.npz``; pickled ones are refused.

    Raises:
        ModelError: it is not an ``.npz`` of plain arrays, or lacks one of ``keys``.
    """
    with open_arrays(source) as archive:
        missing = [key for key in keys if key not in archive]
        if missing:
            raise ModelError(f"{source_label(source)}: has no array '{missing[0]}'{nearest(missing[0], archive)}")
        return {key: archive[key] for key in keys}


@contextmanager
def open_arrays(source: Path | BinaryIO) -> Iterator[Mapping[str, Array]]:
    """Open an ``.npz`` to read arrays from, each when it is asked for; pickled ones are refused.

    Raises:
        ModelError: it is not an ``.npz`` of plain arrays.
    """
    if isinstance(source, Path) and source.exists() and not source.is_file():  # a pipe would be waited for
        raise ModelError(f"{source}: is no file")
    try:
        archive = np.load(source, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ModelError(f"{source_label(source)}: is a single array, not an .npz; write it with np.savez")
        with archive:
            yield MeasuredArrays(archive)
    except (OSError, *UNREADABLE) as error:
        raise ModelError(f"{source_label(source)}: cannot be read as an .npz of plain arrays: {error}") from error


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an ``.npz`` atomically."""
    with atomic_path(path, sum(array.nbytes for array in arrays.values())) as temporary, temporary.open("wb") as stream:
        write_npz(stream, arrays)


def source_label(source: Path | BinaryIO) -> str:
    """Return an archive's name in errors."""
    return str(source) if isinstance(source, Path) else "the arrays"


def run_rows(session: Session, feeds: Feeds, batch: int) -> dict[str, Array]:
    """Run all rows of ``feeds``, at most ``batch`` at a time, and return all rows of every output.

    An engine whose batch is fixed at one gets one row at a time, whatever ``batch``; others fewer than ``batch`` where
    rows are large.
    """
    rows = len(next(iter(feeds.values())))
    row_bytes = sum(array.nbytes // max(rows, 1) for array in feeds.values())
    step = 1 if takes_one_row(session.inputs) else rows_at_once(batch, row_bytes)
    parts = [
        session.run({name: array[start : start + step] for name, array in feeds.items()})
        for start in range(0, rows, step)
    ]
    if len(parts) == 1:  # whose outputs need not have a dimension for the batch
        return parts[0]
    for name in parts[0]:
        _require_one_size(name, parts, rows)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _require_one_size(name: str, parts: Sequence[Mapping[str, Array]], rows: int) -> None:
    """Raise ModelError unless an output has a row for each sample, all of one size."""
    shapes = {part[name].shape[1:]: None for part in parts}
    if len(shapes) > 1:
        seen = " and ".join(str(["batch", *shape]) for shape in list(shapes)[:2])
        raise ModelError(f"output '{name}' is {seen} for samples of one size: data decide its size")
    if sum(len(part[name]) for part in parts) != rows:
        raise ModelError(f"output '{name}' has {sum(len(part[name]) for part in parts)} rows for {rows} samples")


def run_behind(rest: Session, known: Mapping[str, Array]) -> dict[str, Array]:
    """Run what takes an engine's outputs, and maybe its inputs, all of which are among ``known``."""
    return rest.run({spec.name: known[spec.name] for spec in rest.inputs})


def rows_at_once(most: int, row_bytes: int) -> int:
    """Return how many rows to run at a time: at most ``most``, fewer where a row is large, and at least one."""
    return max(1, min(most, _INPUTS_AT_ONCE_BYTES // max(row_bytes, 1)))


def takes_one_row(specs: Sequence[TensorSpec]) -> bool:
    """Return whether an engine takes one row at a time, since the batch of one of its inputs is fixed at one."""
    return any(spec.shape[:1] == (1,) for spec in specs)
