"""The outputs of one model for the probe's samples: the material of the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekd.files import atomic_path
from edgekd.gram.npz import EMBEDDING_PREFIX, Array, read_headers, stream_rows, write_npz

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.gram.nest import Nest

Floats: TypeAlias = "NDArray[np.float32]"

#: What a network answered for N samples: the array [N, ...] of its one output, or arrays by the outputs' names.
Answer: TypeAlias = "Nest"

_IDS = "ids"

#: Number of values in a chunk of one probe: 4 MiB in double precision.
_CHUNK_VALUES = 1 << 19


class Probe:
    """A network's outputs and embeddings of the same samples, after one stage.

    A loaded probe reads an array whole when it is first asked for, and keeps it; :func:`side_by_side` keeps a chunk.

    Args:
        ids: Names of the samples [N], all different.
        outputs: For each output of the network, in order, its values [N, ...].
        embeddings: For each modality the embeddings [N, D].

    Attributes:
        shapes: The shape of every array, by its name in the file: ``ids``, the outputs' own, ``embedding.<modality>``.
    """

    def __init__(self, ids: Array, outputs: Mapping[str, Floats], embeddings: Mapping[str, Floats]) -> None:
        self._arrays: dict[str, Array] = {
            _IDS: ids,
            **outputs,
            **{EMBEDDING_PREFIX + name: z for name, z in embeddings.items()},
        }
        self.shapes: dict[str, tuple[int, ...]] = {key: array.shape for key, array in self._arrays.items()}

    def __len__(self) -> int:
        return self.shapes[_IDS][0]

    @property
    def ids(self) -> Array:
        """The names of the samples [N]."""
        return self._array(_IDS)

    @property
    def output_names(self) -> list[str]:
        """The names of the network's outputs, in order."""
        return [key for key in self.shapes if key != _IDS and not key.startswith(EMBEDDING_PREFIX)]

    @property
    def outputs(self) -> dict[str, Floats]:
        """For each output of the network its values [N, ...]."""
        return {name: self._array(name) for name in self.output_names}

    @property
    def answer(self) -> Answer:
        """What a metric is given: the array of the one output, or all by name where there are several."""
        return answer_of(self.outputs)

    @property
    def embeddings(self) -> dict[str, Floats]:
        """For each modality the embeddings [N, D]."""
        return {name: self._array(EMBEDDING_PREFIX + name) for name in self.modalities}

    @property
    def modalities(self) -> list[str]:
        """The names of the modalities, in order."""
        return [key.removeprefix(EMBEDDING_PREFIX) for key in self.shapes if key.startswith(EMBEDDING_PREFIX)]

    @property
    def comparable(self) -> bool:
        """Whether modalities have inner products with each other: there are two or more, of one width."""
        widths = [self.shapes[EMBEDDING_PREFIX + name][-1] for name in self.modalities]
        return len(widths) > 1 and len(set(widths)) == 1

    def classifies(self, output: str) -> bool:
        """Whether an output has the shape of a classifier's, [N, C] with two classes or more; a vector has it too."""
        shape = self.shapes[output]
        return len(shape) == 2 and shape[1] > 1

    def chunks(self, keys: Sequence[str], rows: int) -> Iterator[dict[str, Array]]:
        """Yield the arrays with these names, as in :attr:`shapes`, ``rows`` samples at a time."""
        for start in range(0, len(self), rows):
            yield {key: self._arrays[key][start : start + rows] for key in keys}

    def save(self, path: Path) -> None:
        """Write an ``.npz`` atomically."""
        arrays = {key: self._array(key) for key in self.shapes}
        with (
            atomic_path(path, sum(array.nbytes for array in arrays.values())) as temporary,
            temporary.open("wb") as stream,
        ):
            write_npz(stream, arrays)

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Open a file that :meth:`save` wrote.

        Raises:
            ValueError: The file holds pickled arrays, or is no ``.npz``.
        """
        return _SavedProbe(path)

    def _array(self, key: str) -> Array:
        return self._arrays[key]


class _SavedProbe(Probe):
    """A probe that is read from a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays = {}
        self.shapes = {key: header.shape for key, header in read_headers(path).items()}

    def chunks(self, keys: Sequence[str], rows: int) -> Iterator[dict[str, Array]]:
        return stream_rows(self._path, keys, rows)

    def _array(self, key: str) -> Array:
        if key not in self._arrays:
            with np.load(self._path, allow_pickle=False) as archive:
                self._arrays[key] = archive[key]
        return self._arrays[key]


def answer_of(outputs: Mapping[str, Array]) -> Answer:
    """Return what a metric is given: the array of the one output, or all by name where there are several."""
    return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


def top1(logits: Floats) -> Array:
    """Return the top-1 classes [N] of logits [N, C]."""
    classes: Array = logits.argmax(-1)
    return classes


def in_chunks(probe: Probe, keys: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Yield the ids and the arrays ``keys`` of one probe, a chunk of samples at a time."""
    return probe.chunks([_IDS, *keys], _chunk_rows([probe], keys))


def _chunk_rows(probes: Sequence[Probe], keys: Sequence[str]) -> int:
    values = max(sum(int(np.prod(p.shapes[key][1:])) for key in keys) for p in probes)
    return max(1, _CHUNK_VALUES // max(1, values))


def side_by_side(
    probe: Probe, reference: Probe, keys: Sequence[str]
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Yield the ids and the arrays ``keys`` of two probes, a chunk of samples at a time.

    Raises:
        ValueError: The probes are not of the same samples, in the same order, with the same modalities, or have none.
    """
    if probe.modalities != reference.modalities:
        raise ValueError(f"the two probes have modalities {probe.modalities} and {reference.modalities}")
    if len(probe) != len(reference):
        raise ValueError(f"the two probes are not of the same samples: {len(probe)} and {len(reference)}")
    if not len(probe):
        raise ValueError("the two probes have no samples")
    rows, keys = _chunk_rows([probe, reference], keys), [_IDS, *keys]
    for ours, theirs in zip(probe.chunks(keys, rows), reference.chunks(keys, rows), strict=True):
        if not np.array_equal(ours[_IDS], theirs[_IDS]):
            raise ValueError("the two probes are not of the same samples in the same order")
        yield ours, theirs
