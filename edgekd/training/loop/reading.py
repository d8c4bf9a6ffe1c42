"""Reading the batches of a training, here or in other processes: the same samples either way.

What a split's augmentation draws is seeded for each batch by the training's seed, the epoch and the batch's number, so
that neither a resumed run nor the number of workers makes a difference.
"""

from __future__ import annotations

import io
import pickle
import random
import sys
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from edgekd.errors import EdgekdError, ModelError, TaskError
from edgekd.plugins import converted
from edgekd.training.loop import distributed
from edgekd.training.task.imports import import_task_file
from edgekd.training.task.protocol import ArraySplit, Batch, collate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.training.loop.batches import BatchOrder
    from edgekd.training.task.protocol import Split


class BatchDraw(NamedTuple):
    """What is read for one batch.

    Attributes:
        seed: Seed of all that is random in reading it.
        indices: Its samples.
    """

    seed: int
    indices: list[int]


class BatchDraws(Sampler[BatchDraw]):
    """The batches of an order, each with a seed of its own."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order

    def __iter__(self) -> Iterator[BatchDraw]:
        order = self.order
        for number, indices in enumerate(order):
            source = np.random.SeedSequence([order.seed, order.epoch, number, distributed.rank()])
            yield BatchDraw(int(source.generate_state(1)[0]), indices)

    def __len__(self) -> int:
        return len(self.order)


class BatchReader(Dataset["Batch | EdgekdError"]):
    """Reads whole batches of a split.

    Args:
        split: The split.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, drawn: BatchDraw) -> Batch | EdgekdError:
        """Return a batch, or the error of reading it, which would lose its type on its way between processes."""
        try:
            if isinstance(self.split, ArraySplit):  # draws nothing
                return self._read(drawn.indices)
            with _seeded(drawn.seed):
                return self._read(drawn.indices)
        except EdgekdError as error:
            return type(error)(str(error))

    def _read(self, indices: list[int]) -> Batch:
        several = getattr(self.split, "__getitems__", None)
        return collate(several(indices) if several else [self.split[index] for index in indices])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pack the reader for a worker."""
        return _unpacked, (_packed(self.split),)


class _Packer(pickle.Pickler):
    """Packs a split with whatever is of a task's file, which no other process finds by the name that it has here."""

    def reducer_override(self, value: Any) -> Any:
        """Pack a class or a function of a task's file by the file's path and its own name."""
        if not isinstance(value, type | FunctionType) or not value.__module__.endswith(".py"):
            return NotImplemented
        if "<" in value.__qualname__:
            raise pickle.PicklingError(f"{value.__qualname__} is defined inside of a function")
        return _find, (value.__module__, value.__qualname__)


def _packed(split: Split) -> bytes:
    """Return a split as bytes.

    Raises:
        TaskError: It holds what cannot leave its process.
    """
    stream = io.BytesIO()
    with converted(
        "workers: the split 'train' cannot be given to other processes; define its classes at the top of their files "
        "and open files when a sample is read, or leave workers = 0",
        TaskError,
    ):
        _Packer(stream).dump(split)
    return stream.getvalue()


def _unpacked(content: bytes) -> BatchReader:
    return BatchReader(pickle.loads(content))


def _find(file: str, name: str) -> object:
    """Return a class or function of a task's file, which is imported once in each worker."""
    module = sys.modules.get(file) or import_task_file(Path(file))
    return attrgetter(name)(module)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators within the context, and leave them as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # alone: what a GPU draws is the network's
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@contextmanager
def _worker_errors() -> Iterator[None]:
    """Say in one line that a worker ended."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ModelError(
            "a process that reads samples (workers) ended: its memory may be used up, which fewer workers spare, or "
            "the code that reads a sample ends its process"
        ) from error


@contextmanager
def _unknown_script() -> Iterator[None]:
    """Start processes within the context that do not run again the script that runs now, as spawned ones would."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _as_it_is(batch: Any) -> Any:  # torch's annotation has it be a list
    return batch


class TrainingBatches:
    """The batches of a training, epoch by epoch.

    Args:
        train: The training split.
        order: Its order.
        device: Where the batches will be computed with.
        workers: Number of processes that read them; a split in memory is read here.
    """

    def __init__(self, train: Split, order: BatchOrder, device: torch.device, workers: int) -> None:
        workers = 0 if isinstance(train, ArraySplit) else workers
        self._loader: DataLoader[Batch | EdgekdError] = DataLoader(
            BatchReader(train),
            batch_size=None,
            sampler=BatchDraws(order),
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own, from which it draws what nobody reads
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the order's present epoch.

        Raises:
            EdgekdError: A sample cannot be read, or a worker ended.
        """
        with _worker_errors():
            with _unknown_script():
                batches = iter(self._loader)
            for batch in batches:
                if isinstance(batch, EdgekdError):
                    raise batch
                yield batch
