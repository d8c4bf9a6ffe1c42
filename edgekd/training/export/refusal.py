"""Say in one line why torch cannot export a network, and which line of the user's it is about."""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING

import torch

from edgekd.errors import own_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What the exporter's errors mean. The first that fits counts.
_MEANINGS = (
    (r"No ONNX function found for <OpOverload\(op='([\w.]+)'", r"ONNX has no operator for \1"),
    (r"data-dependent|DataDependent",
     "values of the inputs decide what is computed, or the size of something, which a graph cannot hold; compute all "
     "and choose with torch.where, or take the size from shapes"),
    (r"Constraints violated|constant or specialized|\(batch\)\W+was inferred to be a constant",
     "its code fixes the number of samples; let it read x.shape[0]"),
)  # fmt: skip


def explain(error: Exception, folder: Path | None) -> str:
    """Return why torch cannot export a network, with the line of the user's code where it is known.

    Args:
        error: The exporter's error, whose own message is a page of advice for torch's developers.
        folder: Folder of the user's files; None where there are none.
    """
    causes = list(_causes(error))
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in causes)
    meaning = next((match.expand(what) for pattern, what in _MEANINGS if (match := re.search(pattern, text))), None)
    said = meaning or next(filter(None, (_first_line(cause) for cause in reversed(causes))), type(error).__name__)
    line = own_line(error, folder) or _line_of_node(causes, folder)
    return f"{said} ({line})" if line else said


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, the outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _line_of_node(causes: list[BaseException], folder: Path | None) -> str | None:
    """Return the line of the user's that the node comes from which the exporter was translating."""
    frames = [frame for cause in causes for frame, _ in traceback.walk_tb(cause.__traceback__)]
    nodes = [node for frame in frames if isinstance(node := frame.f_locals.get("node"), torch.fx.Node)]
    stacks = [node.stack_trace for node in nodes if node.stack_trace]
    return own_line(RuntimeError(stacks[-1]), folder) if stacks else None
