"""Sessions: what every engine library looks like to edgekd, named tensors in and named tensors out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, runtime_checkable
from zipfile import BadZipFile

import numpy as np

from edgekd.errors import ModelError, nearest
from edgekd.files import atomic_path
from edgekd.gram.npz import INPUT_PREFIX

if TYPE_CHECKING:
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


_ndarray = np.ndarray  # looked up for every input of every inference


class FeedCheck:
    """The check that feeds fit an engine's inputs. It runs before each inference, so it costs a few µs at most.

    Args:
        specs: The engine's inputs.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        # Everything is prepared that can be: comparing with a dtype's name takes four times as long as with the dtype.
        self._plan = [
            (
                spec,
                np.dtype(spec.dtype),
                [(axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, int)],
                [(axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, str)],
            )
            for spec in specs
        ]
        self._fitted: list[tuple[str, np.dtype[Any], tuple[int, ...]]] | None = None

    def __call__(self, feeds: Feeds) -> None:
        """Check the feeds of one inference.

        Raises:
            ModelError: they are no mapping, a name is missing or unknown, or a type, rank or size is wrong; the message
                says what was expected.
        """
        if type(feeds) is not dict:
            check_mapping(feeds, self._specs)
        # Most feeds are like the last that fitted, and to see that takes a fraction of the time.
        if self._fitted is not None and len(feeds) == len(self._fitted):
            for name, dtype, shape in self._fitted:
                array = feeds.get(name)
                if type(array) is not _ndarray or array.dtype is not dtype or array.shape != shape:
                    break
            else:
                return
        self._check(feeds)
        self._fitted = [(name, array.dtype, array.shape) for name, array in feeds.items()]

    def _check(self, feeds: Feeds) -> None:
        sizes: dict[str, int] = {}
        for spec, dtype, fixed, named in self._plan:
            array = feeds.get(spec.name)
            if array is None:
                raise _wrong_names(self._specs, feeds)
            if not isinstance(array, np.ndarray):
                raise ModelError(f"input '{spec.name}' must be a numpy array, {spec}, but is a {type(array).__name__}")
            shape = array.shape
            if array.dtype != dtype or len(shape) != len(spec.shape):
                raise _wrong_tensor(spec, array)
            for axis, size in fixed:
                if shape[axis] != size:
                    raise _wrong_tensor(spec, array)
            for axis, name in named:
                if sizes.setdefault(name, shape[axis]) != shape[axis]:
                    raise ModelError(
                        f"inputs must agree on the size of '{name}', but it is {sizes[name]} before input "
                        f"'{spec.name}' and {shape[axis]} in it"
                    )
        if len(feeds) != len(self._plan):
            raise _wrong_names(self._specs, feeds)


def check_mapping(feeds: object, specs: Sequence[TensorSpec]) -> None:
    """Check that feeds are arrays by name at all.

    Args:
        feeds: What the caller gave.
        specs: The engine's inputs.

    Raises:
        ModelError: they are no mapping; the message says what was expected, with an example.
    """
    if not isinstance(feeds, Mapping):
        given = "None" if feeds is None else f"a value of type {type(feeds).__name__}"
        raise ModelError(f"the engine was given {given} instead of its inputs by name; {_expected(specs)}")


def _expected(specs: Sequence[TensorSpec]) -> str:
    inputs = "; ".join(f"'{spec.name}', {spec}" for spec in specs)
    return f"feed a dict of numpy arrays: {inputs}; e.g. run({{{', '.join(map(_example, specs))}}})"


def _example(spec: TensorSpec) -> str:
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    return f"'{spec.name}': np.zeros({shape}, '{spec.dtype}')"


def _wrong_names(specs: Sequence[TensorSpec], feeds: Mapping[Any, Array]) -> ModelError:
    known = [spec.name for spec in specs]
    for name in feeds:
        if not isinstance(name, str):
            return ModelError(f"the engine has no input {name!r}: its inputs have names; {_expected(specs)}")
        if name not in known:
            return ModelError(f"the engine has no input '{name}'{nearest(name, known)}")
    missing = "; ".join(f"'{spec.name}', {spec}" for spec in specs if spec.name not in feeds)
    return ModelError(f"the engine was not given all of its inputs, feed also: {missing}")


def _wrong_tensor(spec: TensorSpec, array: Array) -> ModelError:
    return ModelError(f"input '{spec.name}' must be {spec}, but is {array.dtype} {list(array.shape)}")


def read_feeds(source: Path | BinaryIO, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Read an engine's inputs, a row a sample, from an ``.npz`` with a key ``input.<name>`` for each.

    Args:
        source: The file; its other keys are ignored, and pickled arrays refused.
        specs: The engine's inputs.

    Raises:
        ModelError: it is not such a file, lacks an input, has no rows, or does not fit ``specs``.
    """
    arrays = read_arrays(source, [INPUT_PREFIX + spec.name for spec in specs])
    feeds = {key[len(INPUT_PREFIX) :]: array for key, array in arrays.items()}
    FeedCheck(specs)({name: array[:1] for name, array in feeds.items()} if takes_one_row(specs) else feeds)
    counts = {name: len(array) for name, array in feeds.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ModelError(f"{_label(source)}: every input needs the same number of rows, at least one, but has {counts}")
    return feeds


def read_arrays(source: Path | BinaryIO, keys: Sequence[str]) -> dict[str, Array]:
    """Read these arrays of an ``.npz``; pickled ones are refused.

    Raises:
        ModelError: it is not an ``.npz`` of plain arrays, or lacks one of ``keys``.
    """
    with open_arrays(source) as archive:
        missing = [key for key in keys if key not in archive]
        if missing:
            raise ModelError(f"{_label(source)}: has no array '{missing[0]}'{nearest(missing[0], archive)}")
        return {key: archive[key] for key in keys}


@contextmanager
def open_arrays(source: Path | BinaryIO) -> Iterator[Mapping[str, Array]]:
    """Open an ``.npz`` to read arrays from, each when it is asked for; pickled ones are refused.

    Raises:
        ModelError: it is not an ``.npz`` of plain arrays.
    """
    try:
        archive = np.load(source, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ModelError(f"{_label(source)}: is a single array, not an .npz; write it with np.savez")
        with archive:
            yield archive
    except (OSError, ValueError, EOFError, BadZipFile, NotImplementedError, zlib.error) as error:
        raise ModelError(f"{_label(source)}: cannot be read as an .npz of plain arrays: {error}") from error


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an ``.npz`` atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes every keyword for allow_pickle


def _label(source: Path | BinaryIO) -> str:
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
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows_at_once(most: int, row_bytes: int) -> int:
    """Return how many rows to run at a time: at most ``most``, fewer where a row is large, and at least one."""
    return max(1, min(most, _INPUTS_AT_ONCE_BYTES // max(row_bytes, 1)))


def takes_one_row(specs: Sequence[TensorSpec]) -> bool:
    """Return whether an engine takes one row at a time, since the batch of one of its inputs is fixed at one."""
    return any(spec.shape[:1] == (1,) for spec in specs)
