"""The checks of an engine's inputs: that they are what it takes, and that they are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import ModelError, nearest
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.runtime.session import read_arrays, source_label, takes_one_row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

    from edgekd.runtime.session import Array, Feeds, TensorSpec

_ndarray, _vdot = np.ndarray, np.vdot  # looked up for every input of every inference


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


#: The most numbers whose squares are summed in one thread: OpenBLAS takes more threads for more.
_SUMMED = 10_000
_HALF = np.dtype("float16")


class FiniteCheck:
    """The check that feeds are finite numbers: an engine in INT8 makes plausible logits of what is not a number.

    It says nothing of feeds that do not fit the engine otherwise, which :class:`FeedCheck` refuses.

    Args:
        specs: The engine's inputs.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        dtypes = ((spec.name, np.dtype(spec.dtype)) for spec in specs)
        self._floats = [(name, dtype) for name, dtype in dtypes if dtype.kind == "f"]

    def __call__(self, feeds: object) -> None:
        """Check what the caller gave as feeds of one inference.

        Raises:
            ModelError: a value is not finite; the message names the input and the sample.
        """
        if type(feeds) is not dict and not isinstance(feeds, Mapping):
            return
        for name, dtype in self._floats:
            array = feeds.get(name)
            if type(array) is not _ndarray or (array.dtype is not dtype and array.dtype != dtype):
                continue
            # The sum of squares is finite where all are, unless it overflows, of which vdot() alone does not warn; it
            # takes a third of the time of looking.
            summed = array.size <= _SUMMED and dtype is not _HALF
            if not (summed and isfinite(_vdot(array, array))) and not np.isfinite(array).all():
                raise _not_finite(name, array)


def _not_finite(name: str, array: Array) -> ModelError:
    place = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
    sample = f" of sample {place[0]}" if place else ""
    return ModelError(
        f"input '{name}'{sample} is not finite: it has {array[tuple(place)]} at {place}; feed finite numbers, or load "
        "the bundle with check_finite=False"
    )


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
        label = source_label(source)
        raise ModelError(f"{label}: every input needs the same number of rows, at least one, but has {counts}")
    return feeds
