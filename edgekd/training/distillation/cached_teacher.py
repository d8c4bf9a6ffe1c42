"""The teacher's outputs on the training split, computed once and read from disk while training.

Arrays are memory-mapped both when written and when read, so memory does not grow with the split. A sample is found by
its id, and its stored outputs hold only for the inputs that the teacher saw: for other inputs, as of a split that
augments, the teacher itself runs.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.files import disk_errors
from edgekd.training.distillation.ensemble import members
from edgekd.training.distillation.outputs import NetworkOutputs
from edgekd.training.distillation.references import LiveReference, ReferenceOutputs, combine_outputs
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import batches
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.config.recipe import Tap
    from edgekd.stages.progress import StageReporter
    from edgekd.training.task.protocol import Batch, Split

#: Whole numbers of as many bytes as a float.
_BITS = {2: torch.int16, 4: torch.int32}

#: Names of the arrays of sorted ids, of the row of each id, and of the digest of each row's inputs.
_IDS, _ROWS, _INPUTS = "ids", "rows", "inputs"


def write_outputs(model: nn.Module, taps: Mapping[str, Tap], split: Split, folder: Path, report: StageReporter) -> None:
    """Run a teacher over a split, in order and in float32, and write its outputs into ``folder``.

    Args:
        model: The teacher.
        taps: The taps at which its embeddings are read, by name.
        split: The training split.
        folder: Folder to write into; it is whole when this has returned.
        report: Receives each batch.
    """
    device = compute_device()
    with ExitStack() as stack:
        live = LiveReference(*(stack.enter_context(TappedModel(member, taps)) for member in members(model.to(device))))
        _write(live, split, device, folder, report)


def _write(live: LiveReference, split: Split, device: torch.device, folder: Path, report: StageReporter) -> None:
    ids: list[str] = []
    files: dict[str, np.memmap[tuple[int, ...], np.dtype[np.generic]]] = {}
    for batch in batches(split):
        moved = batch.to(device)
        first, last = len(ids), len(ids) + len(batch.ids)
        columns = {_INPUTS: digests(moved.inputs), **_columns(live(moved).networks)}
        for name, x in columns.items():
            values = x.cpu().numpy()
            if name not in files:
                files[name] = _allocate(_path(folder, name), values.dtype, (len(split), *values.shape[1:]))
            files[name][first:last] = values
        ids += batch.ids
        report.advance(last, len(split), "outputs of the teacher")
    for file in files.values():
        file.flush()
    names = np.array(ids)
    order = np.argsort(names)
    np.save(_path(folder, _IDS), names[order])
    np.save(_path(folder, _ROWS), order)


def _allocate(
    path: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    """Return a new array in a file, for which the disk has set room aside: a full one would kill this process later.

    Raises:
        DiskFullError: There is not as much room.
    """
    with disk_errors(path, alone=True, wanted_bytes=math.prod(shape) * dtype.itemsize):
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with path.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, max(path.stat().st_size, 1))
    return array


@dataclass(frozen=True)
class _StoredRows:
    """Where a batch's samples are stored.

    Attributes:
        rows: Row of each sample [B].
        same: Whether the sample is stored there with the same inputs [B].
    """

    rows: NDArray[np.int64]
    same: NDArray[np.bool_]


class CachedReference:
    """A reference whose outputs are read from disk: a :class:`~edgekd.training.distillation.references.Reference`.

    Args:
        live: The networks whose outputs are stored; they run for samples with other inputs.
        folder: Folder that :func:`write_outputs` wrote for these networks.
        report: Receives one warning if the networks have to run.
    """

    def __init__(self, live: LiveReference, folder: Path, report: StageReporter) -> None:
        self.live, self.report = live, report
        self.tap_names = list(live.networks[0].taps)
        self.outputs = list(live.kinds)
        names = [_answer(n, i) for n in range(len(live.networks)) for i in range(len(self.outputs))]
        names += [_embedding(n, i) for n in range(len(live.networks)) for i in range(len(self.tap_names))]
        self._columns = {name: np.load(_path(folder, name), mmap_mode="r") for name in names}
        self._ids, self._rows, self._inputs = (
            np.load(_path(folder, name), mmap_mode="r") for name in (_IDS, _ROWS, _INPUTS)
        )
        self._warned = False

    def __call__(self, batch: Batch) -> ReferenceOutputs:
        """Return the stored outputs, and those of the networks for samples whose inputs are not the stored ones."""
        stored = self._find(batch)
        device = batch.labels.device
        columns = {name: torch.from_numpy(file[stored.rows]).to(device) for name, file in self._columns.items()}
        if not stored.same.all():
            self._warn(batch.ids[int(np.argmin(stored.same))])
            other = torch.from_numpy(np.flatnonzero(~stored.same)).to(device)
            for name, x in _columns(self.live(batch.part(other)).networks).items():
                columns[name][other] = x
        return combine_outputs(
            [self._side(columns, network) for network in range(len(self.live.networks))], self.live.kinds
        )

    def _find(self, batch: Batch) -> _StoredRows:
        # In the stored dtype, so that the sorted ids are searched on disk and are not converted as a whole.
        wanted = np.array(batch.ids, self._ids.dtype)
        at = np.searchsorted(self._ids, wanted).clip(max=len(self._ids) - 1)
        known = np.array([a == b for a, b in zip(self._ids[at].tolist(), batch.ids, strict=True)])
        rows = self._rows[at]
        return _StoredRows(rows, known & (self._inputs[rows] == digests(batch.inputs).cpu().numpy()))

    def _side(self, columns: Mapping[str, Tensor], network: int) -> NetworkOutputs:
        embeddings = {tap: columns[_embedding(network, index)] for index, tap in enumerate(self.tap_names)}
        answers = {name: columns[_answer(network, index)] for index, name in enumerate(self.outputs)}
        return NetworkOutputs(answers, embeddings, {})

    def _warn(self, sample: str) -> None:
        if not self._warned:
            self._warned = True
            self.report.warn(
                f"the inputs of sample '{sample}' are not those that the teacher's cached outputs are of, as where a "
                "split augments: the teacher runs for such samples; cache_teacher saves nothing there"
            )


def digests(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return a digest of each sample's inputs, int64 [B], the same on every device.

    It is the sum over all values of their bits times an odd random number each, modulo 2^64. The sum is exact in any
    order, always another where a single value differs, and elsewhere the same by chance once in some 2^33.

    Args:
        inputs: Each input [B, ...].
    """
    total: Tensor | int = 0
    for index, x in enumerate(inputs.values()):
        values = x.contiguous().view(_BITS[x.element_size()]) if x.is_floating_point() else x
        bits = values.reshape(len(x), -1).long()
        total = total + (bits * _factors(index, bits.shape[1], x.device)).sum(1)
    assert isinstance(total, Tensor)
    return total


@lru_cache(maxsize=64)
def _factors(seed: int, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator) | 1).to(device)


def _columns(sides: Sequence[NetworkOutputs]) -> dict[str, Tensor]:
    """Return the outputs that are stored for a batch, by the names of their files."""
    columns: dict[str, Tensor] = {}
    for network, side in enumerate(sides):
        columns |= {_answer(network, index): x for index, x in enumerate(side.answers.values())}
        columns |= {_embedding(network, index): z for index, z in enumerate(side.embeddings.values())}
    return columns


def _answer(network: int, index: int) -> str:
    return f"answer-{network}-{index}"


def _embedding(network: int, index: int) -> str:
    return f"embedding-{network}-{index}"  # by number, since a module's path may be longer than a file name


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"
