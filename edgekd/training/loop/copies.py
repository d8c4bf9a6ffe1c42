"""Copies of networks, whatever they hold."""

from __future__ import annotations

from copy import Error, deepcopy
from functools import partial
from pickle import PicklingError
from types import FunctionType
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What a copy fails by, such as of an open file that a network holds.
_FAILURES = (Error, PicklingError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def copy_network(model: nn.Module) -> nn.Module:
    """Return a copy of a network.

    Torch copies no tensor that was computed, such as the weight that ``torch.nn.utils.weight_norm`` puts in its layer's
    place, or an LSTM's list of its weights; the layer computes it again in its next run.
    """
    for layer in model.modules():
        for name, value in list(vars(layer).items()):
            if isinstance(value, Tensor):
                vars(layer)[name] = _given(value)
            elif isinstance(value, list) and any(isinstance(each, Tensor) for each in value):
                vars(layer)[name] = [_given(each) for each in value]
    return deepcopy(model)


def copy_where_possible(model: nn.Module) -> nn.Module:
    """Return a copy of a network that holds nothing of it, or the network itself where there can be none.

    A function that a network holds and that reads the network, as ``self.act = lambda x: self.scale * x`` does, would
    read the first one in a copy, too.
    """
    if any(_reads(function, model) for function in _functions(model)):
        return model
    try:
        return copy_network(model)
    except _FAILURES:
        return model


def _given(value: object) -> object:
    return value.detach() if isinstance(value, Tensor) and value.grad_fn is not None else value


def _functions(model: nn.Module) -> Iterator[FunctionType]:
    """Yield the functions that a network holds as attributes and as hooks."""
    for module in model.modules():
        for value in vars(module).values():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            for part in parts:
                function = part
                while isinstance(function, partial):
                    function = function.func
                if isinstance(function, FunctionType):
                    yield function


def _reads(function: FunctionType, model: nn.Module) -> bool:
    """Whether a function is bound to a part of a network, or to a tensor."""
    own = set(model.modules())
    bound = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    bound += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return any(isinstance(value, Tensor) or (isinstance(value, nn.Module) and value in own) for value in bound)


def _is_filled(cell: object) -> bool:
    try:
        cell.cell_contents  # type: ignore[attr-defined]  # noqa: B018  (it raises where it is empty)
    except ValueError:
        return False
    return True
