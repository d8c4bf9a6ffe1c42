"""Where a node of an exported graph comes from, in the user's own code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeOrigin:
    """Where a node of an exported graph comes from.

    Attributes:
        module: Path of the module in the network; "" for the network itself.
        line: Line of the user's code, "file:number"; "" where it is not known.
    """

    module: str
    line: str

    def __str__(self) -> str:
        """Return the origin in words, e.g. ``"module 'image.gru', task.py:49"``."""
        return ", ".join(filter(None, (f"module '{self.module}'" if self.module else "", self.line)))
