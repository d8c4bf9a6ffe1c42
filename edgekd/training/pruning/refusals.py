"""Why a group of layers keeps its width, with the layer's path and the line of the user's file."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgekd.errors import EdgekdError
from edgekd.training.loop.autograd_layers import WEIGHTED
from edgekd.training.pruning.recurrent import SEQUENCES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

#: What torch-pruning raises on a network that it cannot follow, and a network that was cut where it should not be.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EdgekdError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

#: Where no line is the user's: the code that runs the network, torch, and Python's own library.
_TRAINING = str(Path(__file__).parents[1])
_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(traceback.__file__).parent / "copy.py"), "<")


@dataclass(frozen=True)
class Refusal:
    """Layers that keep their width.

    Attributes:
        paths: Paths of the layers, the first of which names them.
        width: Their number of channels; None where they are all those of the network.
        reason: Why they keep it, as the rest of a sentence.
    """

    paths: tuple[str, ...]
    width: int | None
    reason: str

    def __str__(self) -> str:
        """Return the warning."""
        others = f", and {', '.join(self.paths[1:4])} with it" if len(self.paths) > 1 else ""
        more = " and others" if len(self.paths) > 4 else ""
        channels = "all channels" if self.width is None else f"its {self.width} channels"
        return f"'{self.paths[0]}' keeps {channels}{others}{more}: {self.reason}"


def weights_not_to_cut(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers whose weight is not a parameter of their own, and why."""
    paths = {layer: path for path, layer in model.named_modules()}
    owners: dict[int, list[nn.Module]] = {}
    for layer in paths:
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(layer)
    reasons = {}
    for layer, path in paths.items():
        own = dict(layer.named_parameters(recurse=False))
        twins = [twin for parameter in own.values() for twin in owners[id(parameter)] if twin is not layer]
        if twins:
            reasons[layer] = f"'{path}' shares its weight with '{paths[twins[0]]}'"
        elif parametrize.is_parametrized(layer) or _weight_name(layer) not in {None, *own}:
            reasons[layer] = (
                f"the weight of '{path}' is computed from other parameters, as weight_norm and spectral_norm do"
            )
    return reasons


def _weight_name(layer: nn.Module) -> str | None:
    """Return the name of the parameter that would lose channels, of layers that have one."""
    if isinstance(layer, SEQUENCES):
        return "weight_ih_l0"
    return "weight" if isinstance(layer, (*WEIGHTED, nn.Embedding)) else None


def calling_line(hook: FrameType) -> str:
    """Return the file and line that calls a module, as " (task.py:12)", given the frame of one of its hooks."""
    frames = traceback.walk_stack(hook.f_back)
    return _line((frame.f_code.co_filename, number) for frame, number in frames)


def _line(frames: Iterable[tuple[str, int]]) -> str:
    """Return the first of some frames that is not in a library, if it comes before the code that runs the network."""
    for name, number in frames:
        if name.startswith(_TRAINING):
            break
        if not name.startswith(_LIBRARIES) and "torch_pruning" not in name:
            return f" ({Path(name).name}:{number})"
    return ""


def described(error: BaseException) -> str:
    """Return the first line of an error's message, and the innermost line of the user's that it comes from."""
    cause = error.__cause__ or error
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(cause.__traceback__)]
    lines = str(cause).strip().splitlines()
    return (lines[0] if lines else type(cause).__name__) + _line(reversed(frames))
