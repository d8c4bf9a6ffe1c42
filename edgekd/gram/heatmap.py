"""The Gram of a few samples as a picture shows it: the cosines between all of their embeddings, for each model."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from edgekd.files import atomic_path
from edgekd.gram.matrix import normalize
from edgekd.gram.npz import EMBEDDING_PREFIX, Array
from edgekd.gram.streaming import hash_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgekd.gram.probe import Probe

#: Number of samples in a picture.
SAMPLES = 16

_COSINES = "cosines."
_NAMES = ("ids", "classes", "modalities")
#: Number of samples of a probe that are read at a time.
_CHUNK = 4096


@dataclass(frozen=True)
class FewGrams:
    """The joint Grams of the same few samples, by model.

    Attributes:
        ids: Names of the samples [S], those of one class beside each other.
        classes: Names of the samples' classes [S]; "" where there is none.
        modalities: Names of the modalities [M].
        cosines: For each model the cosines [M*S, M*S], all samples of the first modality first; NaN between modalities
            that have no inner product with each other.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    cosines: dict[str, Array]

    def save(self, path: Path) -> None:
        """Write an ``.npz`` of plain arrays atomically."""
        arrays = {name: np.array(getattr(self, name), np.str_) for name in _NAMES}
        cosines = {_COSINES + name: values.astype(np.float32) for name, values in self.cosines.items()}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays, **cosines)  # type: ignore[arg-type]  # numpy's stub: allow_pickle

    @classmethod
    def load(cls, path: Path) -> FewGrams:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: The file is no such file.
            OSError: The file cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                ids, classes, modalities = (tuple(map(str, archive[name])) for name in _NAMES)
                models = [key for key in archive.files if key.startswith(_COSINES)]
                cosines = {key.removeprefix(_COSINES): archive[key] for key in models}
        except (BadZipFile, zlib.error, KeyError, EOFError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: holds no Grams of samples: {error}") from error
        side = len(ids) * len(modalities)
        if not side or any(values.shape != (side, side) for values in cosines.values()):
            raise ValueError(f"{path}: its Grams are not of {len(ids)} samples of {len(modalities)} modalities")
        return cls(ids, classes, modalities, cosines)


def few_grams(probes: Mapping[str, Probe], classes: Array | None, names: Sequence[str]) -> FewGrams:
    """Return the Grams of a few samples, the same for every model.

    The samples are chosen by a hash of their names, from every class in turn.

    Args:
        probes: The outputs of each model for N samples.
        classes: Class of each sample [N], from 0; None where there are none.
        names: Names of the classes.
    """
    first = next(iter(probes.values()))
    rows = choose_samples(first.ids, classes)
    named = ["" if classes is None or not 0 <= classes[row] < len(names) else names[int(classes[row])] for row in rows]
    cosines = {name: _cosines(probe, rows) for name, probe in probes.items()}
    return FewGrams(tuple(map(str, first.ids[rows])), tuple(named), tuple(first.modalities), cosines)


def choose_samples(ids: Array, classes: Array | None, count: int = SAMPLES) -> Array:
    """Return the indices [S] of the ``count`` samples to show out of N, by class and hash; fewer where N is less."""
    order = np.argsort(hash_names(ids), kind="stable")
    kinds = np.zeros(len(ids), np.int64) if classes is None else classes
    turns = np.empty(len(ids), np.int64)
    for kind in np.unique(kinds):  # the first of every class, then the second of every class
        members = order[kinds[order] == kind]
        turns[members] = np.arange(len(members))
    chosen = order[np.argsort(turns[order], kind="stable")][:count]
    return chosen[np.argsort(kinds[chosen], kind="stable")]


def _cosines(probe: Probe, rows: Array) -> Array:
    """Return the joint Gram [M*S, M*S] of the samples ``rows`` [S]."""
    keys = [EMBEDDING_PREFIX + name for name in probe.modalities]
    read: dict[str, list[Array]] = {key: [] for key in keys}
    by_row = np.argsort(rows, kind="stable")
    for index, chunk in enumerate(probe.chunks(keys, _CHUNK)):
        here = rows[by_row] - index * _CHUNK
        inside = here[(here >= 0) & (here < _CHUNK)]
        for key in keys:
            read[key].append(chunk[key][inside])
    unit = []
    for key in keys:
        z = np.empty((len(rows), probe.shapes[key][-1]))
        z[by_row] = np.concatenate(read[key])
        unit.append(normalize(z))
    if probe.comparable:
        stacked = np.concatenate(unit)
        return np.asarray(stacked @ stacked.T)
    count = len(rows)
    gram = np.full((len(keys) * count, len(keys) * count), np.nan)
    for index, z in enumerate(unit):
        block = slice(index * count, (index + 1) * count)
        gram[block, block] = z @ z.T
    return gram
