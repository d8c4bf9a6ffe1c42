"""Find the first operation of a network that gives two results for one input, and the user's line that calls it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgekd.errors import is_own

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

    from torch import nn


def first_random(model: nn.Module, inputs: Sequence[Tensor], folder: Path | None) -> str:
    """Run a network twice, operation by operation, and return in words where the two runs part; "" where nowhere.

    Args:
        model: The network, in the mode in which it gives two results.
        inputs: Its inputs.
        folder: Folder of the user's code; None where it has none.
    """
    runs = []
    for _ in range(2):
        with _Operations() as operations, torch.no_grad():
            model(*inputs)
        runs.append(operations.results)
    at = next((index for index, (one, other) in enumerate(zip(*runs, strict=False)) if one != other), None)
    if at is None:
        return ""
    with _Operations(at, folder) as operations, torch.no_grad():
        model(*inputs)
    name = runs[0][at][0]
    return f"{name} ({operations.line})" if operations.line else name


class _Operations(TorchFunctionMode):
    """Keeps what each of torch's operations is called, and a sum of what it gives.

    Args:
        stop: Number of the operation whose line is kept.
        folder: Folder of the user's code.
    """

    def __init__(self, stop: int = -1, folder: Path | None = None) -> None:
        super().__init__()
        self.results: list[tuple[str, str]] = []
        self.line = ""
        self._stop, self._folder = stop, folder

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation."""
        if len(self.results) == self._stop:
            self.line = _own_line(self._folder)
        result = func(*args, **(kwargs or {}))
        self.results.append((getattr(func, "__name__", str(func)), _sum(result)))
        return result


def _sum(result: object) -> str:
    if isinstance(result, Tensor):
        with torch._C.DisableTorchFunction():
            return f"{result.detach().double().sum().item()!r}" if result.numel() and not result.is_complex() else ""
    return "".join(map(_sum, result)) if isinstance(result, tuple | list) else ""


def _own_line(folder: Path | None) -> str:
    """Return the innermost line of the user's that led here."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if is_own(frame.f_code.co_filename, folder):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
