"""Torch-pruning's maps of channels through views and concatenations, of which one that fails costs only itself."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgekd.training.pruning.refusals import FAILURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def single_mappings() -> Iterator[None]:
    """Within the context a node of a graph whose channels torch-pruning cannot map has no map.

    It fails where it does not find how wide a tensor is, and with it would the graph of the whole network. Channels
    that go through such a node are then mapped as if it left them in their places; what is cut wrongly for it is
    refused by the proof.
    """
    functions = vars(import_module("torch_pruning.dependency.index_mapping"))
    before = {
        name: function
        for name, function in functions.items()
        if name.startswith("update_") and name != "update_index_mapping"
    }
    functions.update({name: partial(_try, function) for name, function in before.items()})
    try:
        yield
    finally:
        functions.update(before)


def _try(function: Callable[..., object], *arguments: Any) -> None:
    try:
        function(*arguments)
    except FAILURES:
        return
