"""How a command ends of whose targets or devices some refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.errors import TargetRefused

if TYPE_CHECKING:
    from collections.abc import Iterable


def require_all(refused: Iterable[str], done: str) -> None:
    """Check that no target, or device, refused.

    Args:
        refused: The names of those that did; their reasons were shown already.
        done: What became of the others, e.g. "cpu is published".

    Raises:
        TargetRefused: Some did.
    """
    names = ", ".join(refused)
    if names:
        raise TargetRefused(f"{names} refused, for the reason above; {done}")


def also_refused(refused: Iterable[str]) -> str:
    """Return the end of an error about other targets that names those that refused; "" where none did."""
    names = ", ".join(refused)
    return f"; refused: {names}" if names else ""
