"""What a teacher says of the training split, computed once and read from disk while training.

Arrays are memory-mapped on both ways, so memory does not grow with the set. A sample is found by its id, and what is
stored of it holds only for the inputs that the teacher saw: others, of a split that augments, go to the teacher itself.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.training.distillation.ensemble import members
from edgekd.training.distillation.outputs import NetworkOutputs
from edgekd.training.distillation.references import LiveReference, ReferenceOutputs, combine_outputs
from edgekd.training.loop.evaluate import batches
from edgekd.training.loop.loop import compute_device
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.protocol import Batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgekd.config.recipe import Tap
    from edgekd.stages.progress import StageReporter
    from edgekd.training.task.protocol import Split

#: The ids in sorted order, the row of each, and of each row the digest of its inputs.
_IDS, _ROWS, _INPUTS = "ids", "rows", "inputs"


def write_outputs(
    model: nn.Module, places: Mapping[str, Tap], split: Split, folder: Path, report: StageReporter
) -> None:
    """Run a teacher over a split, in order and in fp32, and write what it gives into ``folder``.

    Args:
        model: the teacher.
        places: where its embeddings are read.
        split: the training split.
        folder: must be given its name only when this has returned.
        report: hears of each batch.
    """
    device = compute_device()
    with ExitStack() as stack:
        live = LiveReference(
            *(stack.enter_context(TappedModel(member, places)) for member in members(model.to(device)))
        )
        _write(live, split, device, folder, report)


def _write(live: LiveReference, split: Split, device: torch.device, folder: Path, report: StageReporter) -> None:
    ids: list[str] = []
    files: dict[str, Any] = {}
    for batch in batches(split):
        there = batch.to(device)
        first, last = len(ids), len(ids) + len(batch.ids)
        for name, x in {_INPUTS: digests(there.inputs), **_columns(live(there).networks)}.items():
            values = x.cpu().numpy()
            if name not in files:
                shape = (len(split), *values.shape[1:])
                files[name] = np.lib.format.open_memmap(_path(folder, name), "w+", values.dtype, shape)
            files[name][first:last] = values
        ids += batch.ids
        report.advance(last, len(split), "outputs of the teacher")
    for file in files.values():
        file.flush()
    names = np.array(ids)
    order = np.argsort(names)
    np.save(_path(folder, _IDS), names[order])
    np.save(_path(folder, _ROWS), order)


@dataclass(frozen=True)
class _StoredRows:
    """Where a batch's samples are stored [B], and whether they are, with these very inputs [B]."""

    rows: np.ndarray[Any, Any]
    same: np.ndarray[Any, Any]


class CachedReference:
    """A reference that is read from disk: a :class:`~edgekd.training.distillation.references.Reference`.

    Args:
        live: the networks whose outputs these are; they run for samples of other inputs.
        folder: what :func:`write_outputs` wrote of these networks.
        report: is told, once, that they must run after all.
    """

    def __init__(self, live: LiveReference, folder: Path, report: StageReporter) -> None:
        self.live, self.report = live, report
        self.places = list(live.networks[0].taps)
        names = [_logits(n) for n in range(len(live.networks))]
        names += [_embedding(n, i) for n in range(len(live.networks)) for i in range(len(self.places))]
        self._columns = {name: np.load(_path(folder, name), mmap_mode="r") for name in names}
        self._ids, self._rows, self._inputs = (
            np.load(_path(folder, name), mmap_mode="r") for name in (_IDS, _ROWS, _INPUTS)
        )
        self._warned = False

    def __call__(self, batch: Batch) -> ReferenceOutputs:
        """Return what is stored, and what the networks give of samples whose inputs are not those stored."""
        found = self._find(batch)
        device = batch.labels.device
        columns = {name: torch.from_numpy(file[found.rows]).to(device) for name, file in self._columns.items()}
        if not found.same.all():
            self._warn(batch.ids[int(np.argmin(found.same))])
            other = torch.from_numpy(np.flatnonzero(~found.same)).to(device)
            for name, x in _columns(self.live(_part(batch, other)).networks).items():
                columns[name][other] = x
        return combine_outputs([self._side(columns, network) for network in range(len(self.live.networks))])

    def _find(self, batch: Batch) -> _StoredRows:
        # In the stored width, so that the sorted ids are searched where they lie and are not converted as a whole.
        wanted = np.array(batch.ids, self._ids.dtype)
        at = np.searchsorted(self._ids, wanted).clip(max=len(self._ids) - 1)
        there = np.array([a == b for a, b in zip(self._ids[at].tolist(), batch.ids, strict=True)])
        rows = self._rows[at]
        return _StoredRows(rows, there & (self._inputs[rows] == digests(batch.inputs).cpu().numpy()))

    def _side(self, columns: Mapping[str, Tensor], network: int) -> NetworkOutputs:
        embeddings = {place: columns[_embedding(network, index)] for index, place in enumerate(self.places)}
        return NetworkOutputs(columns[_logits(network)], embeddings, {})

    def _warn(self, sample: str) -> None:
        if not self._warned:
            self._warned = True
            self.report.warn(
                f"the inputs of sample '{sample}' are not those that the teacher's cached outputs are of, as where a "
                "split augments: the teacher runs for such samples; cache_teacher saves nothing there"
            )


def digests(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return for each sample a number that stands for its inputs, int64 [B], the same on every device.

    The sum over all values of their 32 bits times an odd random number each, modulo 2^64: exact in any order of
    summation, never the same where one value alone differs, and by chance the same once in some 2^33 elsewhere.

    Args:
        inputs: for each modality float32 [B, ...].
    """
    total: Tensor | int = 0
    for index, x in enumerate(inputs.values()):
        bits = x.contiguous().view(torch.int32).reshape(len(x), -1).long()
        total = total + (bits * _factors(index, bits.shape[1], x.device)).sum(1)
    assert isinstance(total, Tensor)
    return total


@lru_cache(maxsize=64)
def _factors(seed: int, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator) | 1).to(device)


def _columns(sides: Sequence[NetworkOutputs]) -> dict[str, Tensor]:
    """Return by their files' names what is stored of a batch."""
    columns = {}
    for network, side in enumerate(sides):
        columns[_logits(network)] = side.logits
        columns |= {_embedding(network, index): z for index, z in enumerate(side.embeddings.values())}
    return columns


def _logits(network: int) -> str:
    return f"logits-{network}"


def _embedding(network: int, index: int) -> str:
    return f"embedding-{network}-{index}"  # of a place by its number: a module's path may be longer than a file's name


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _part(batch: Batch, chosen: Tensor) -> Batch:
    inputs, present = ({name: x[chosen] for name, x in table.items()} for table in (batch.inputs, batch.present))
    rows = chosen.tolist()
    return Batch([batch.ids[i] for i in rows], inputs, batch.labels[chosen], [batch.groups[i] for i in rows], present)
