"""Check that ids are rows of the tables that networks look them up in: a rare word may be in one sample alone."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgekd.training.preflight.networks import BuiltNetwork
    from edgekd.training.task.protocol import Batch, Modality

_IDS = (torch.int64, torch.int32, torch.uint8)


@dataclass(frozen=True)
class _IdTable:
    """Where an input's ids are looked up.

    Attributes:
        input: Name of the input.
        place: The module and its network, as an error calls them.
        rows: Number of the table's rows.
    """

    input: str
    place: str
    rows: int


@dataclass
class IdTables:
    """The tables in which networks look the inputs' ids up."""

    _tables: set[_IdTable] = field(default_factory=set)

    @contextmanager
    def watching(self, networks: Sequence[BuiltNetwork], batch: Batch) -> Iterator[None]:
        """Look meanwhile which inputs the networks look up in a table; they are run on the first samples of a batch.

        Raises:
            TaskError: An id of theirs is no row of the table. What torch raises there names none, and on a GPU the
                process is done for.
        """
        with ExitStack() as stack:
            for network in networks:
                for path, module in network.model.named_modules():
                    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                        place = f"'{path}' of {network.title}"
                        hook = self._hook(place, module.num_embeddings, batch)
                        stack.callback(module.register_forward_pre_hook(hook).remove)
            yield

    def _hook(self, place: str, rows: int, batch: Batch) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def look(_module: nn.Module, given: tuple[object, ...]) -> None:
            for name, x in batch.inputs.items():
                if given and x.dtype in _IDS and _is_same(given[0], x):
                    self._tables.add(_IdTable(name, place, rows))
            self.check("split 'train'", batch)

        return look

    def check(self, where: str, batch: Batch) -> None:
        """Check that every id of a batch is a row of its tables.

        Raises:
            TaskError: One is none.
        """
        for table in self._tables:
            x = batch.inputs[table.input].reshape(len(batch.ids), -1)
            wrong = ((x < 0) | (x >= table.rows)).nonzero()
            if len(wrong):
                sample, place = wrong[0].tolist()
                raise TaskError(
                    f"{where}: input '{table.input}' of sample '{batch.ids[sample]}' holds the id "
                    f"{int(x[sample, place])}, but {table.place}, has {table.rows} rows: ids go from 0 to "
                    f"{table.rows - 1}"
                )

    def check_stand_ins(self, inputs: Sequence[Modality]) -> None:
        """Check that what stands in for a modality that is missing is a row of its tables.

        Raises:
            TaskError: It is none.
        """
        known = {modality.name: modality.absent if modality.of else modality.stand_in for modality in inputs}
        for table in self._tables:
            value = known[table.input]
            if value is not None and not 0 <= value < table.rows:
                raise TaskError(
                    f"{value:g} stands in for '{table.input}' where it is missing, but {table.place}, has {table.rows} "
                    f"rows: say absent = 0 to {table.rows - 1} in its Modality, or give the table a row for it"
                )


def _is_same(given: object, x: Tensor) -> bool:
    """Whether a module is given the first samples of an input, in whatever type of whole numbers."""
    if not isinstance(given, Tensor) or given.shape[1:] != x.shape[1:] or len(given) > len(x):
        return False
    return torch.equal(given.cpu(), x[: len(given)].to(given.dtype))
