"""Real tasks that ship with edgekd. Each lies in a module of its name; their data is fetched when first used."""

from __future__ import annotations

from edgekd.tasks.catalogue import CATALOGUE, TaskInfo

__all__ = ["TaskInfo", "describe"]


def describe() -> list[TaskInfo]:
    """Return the facts about each shipped task, without loading torch or fetching data."""
    return list(CATALOGUE)
