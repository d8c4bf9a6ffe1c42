"""Find a task's outputs in what its network returns: a tensor, a tuple or list, a dict, or an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgekd.errors import TaskError, nearest
from edgekd.training.taps.outputs import describe_output, named_parts

if TYPE_CHECKING:
    from edgekd.gram.output_kind import OutputKind, OutputName

#: The layout of each kind of output, and its least and largest number of dimensions.
_LAYOUTS: dict[OutputName, tuple[str, int, int]] = {
    "classes": ("[batch, classes]", 2, 2),
    "multilabel": ("[batch, labels]", 2, 2),
    "regression": ("[batch, ...]", 1, 99),
    "dense-classes": ("[batch, classes, height, width]", 3, 99),
    "sequence-classes": ("[batch, steps, classes]", 3, 3),
    "embedding": ("[batch, width]", 2, 2),
    "custom": ("[batch, ...]", 1, 99),
}


def read_answers(output: object, kinds: Mapping[str, OutputKind]) -> dict[str, Tensor]:
    """Return a network's outputs by name, in the task's order.

    Args:
        output: What the network returned. One output may be the tensor itself, or the first of a tuple; several are the
            items of a tuple or list in order, or have their names in a dict or an object.
        kinds: What each output of the task is, by name.

    Raises:
        TaskError: One is not there, or is no tensor of numbers of its kind's layout.
    """
    found = _found(output, list(kinds))
    return {name: _checked(name, kind, found[name]) for name, kind in kinds.items()}


def _found(output: object, names: list[str]) -> Mapping[str, object]:
    if isinstance(output, Tensor) and len(names) == 1:
        return {names[0]: output}
    parts = {} if isinstance(output, Tensor) else named_parts(output)
    absent = [name for name in names if name not in parts]
    if not absent:
        return parts
    # Of a namedtuple with some of the names, the places may well be others.
    unnamed = len(absent) == len(names)
    if isinstance(output, tuple | list) and unnamed and (len(output) == len(names) or (len(names) == 1 and output)):
        return dict(zip(names, output, strict=False))
    if len(names) == 1 and not isinstance(output, Mapping | tuple | list) and not parts:
        hint = "; is the 'return' of its forward missing?" if output is None else ""
        raise TaskError(f"the model must give {_wanted(names)}, but gave {describe_output(output)}{hint}")
    hint = nearest(absent[0], parts) if parts else ""
    raise TaskError(
        f"the model must give {_wanted(names)}, but gave {describe_output(output)}: "
        f"'{absent[0]}' is not there{hint}; the task names its outputs in 'outputs'"
    )


def _wanted(names: list[str]) -> str:
    if len(names) == 1:
        return f"'{names[0]}', as a tensor or under that name"
    return f"{', '.join(repr(name) for name in names)}, in a tuple in this order or by name"


def _checked(name: str, kind: OutputKind, x: object) -> Tensor:
    """Return an output as floats, which all losses and measures take."""
    layout, least, most = _LAYOUTS[kind.name]
    if not isinstance(x, Tensor):
        hint = "; is the 'return' of its forward missing?" if x is None else ""
        raise TaskError(f"output '{name}' of the model is {describe_output(x)}, must be a tensor{hint}")
    if not least <= x.dim() <= most:
        raise TaskError(f"output '{name}' of the model is of shape {tuple(x.shape)}, but {kind.name} are {layout}")
    if x.is_complex() or (not x.is_floating_point() and kind.name != "custom"):
        raise TaskError(
            f"output '{name}' of the model is {x.dtype}, but {kind.name} are floats: give scores, not what is decided "
            "by them, such as their argmax"
        )
    return x if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x.float()
