"""The user's task as the pipeline sees it: loaded only when a stage must run, so that an idle build needs no torch."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.cache import digest
from edgekd.files import need, sha256_file, write_text

if TYPE_CHECKING:
    from edgekd.learn.task import LoadedTask
    from edgekd.recipe import TaskConfig


class Project:
    """A task by name, and the digest that stands for its code and data.

    A task that names the ``files`` it reads is remembered: while its code and those files are as they were, the digest
    is known without importing anything. A task that does not is loaded each time.

    Args:
        config: which task, with which options.
        folder: where digests are remembered.
    """

    def __init__(self, config: TaskConfig, folder: Path) -> None:
        self.config = config
        self._memory = folder / f"task-{digest({'name': config.name, 'options': config.options})}.json"

    @cached_property
    def loaded(self) -> LoadedTask:
        """The task itself; importing it imports torch.

        Raises:
            MissingDependency: torch is not installed.
            TaskError: the task cannot be loaded.
        """
        need("torch", "build")
        from edgekd.learn.task import load_task

        return load_task(self.config)

    @cached_property
    def identity(self) -> str:
        """Digest of the task's code, options and data."""
        return self._remembered() or self._identify()

    def _remembered(self) -> str | None:
        try:
            memory = json.loads(self._memory.read_text(encoding="utf-8"))
            identity, sources, files = str(memory["identity"]), memory["sources"], memory["files"]
            same = sources == _digests(sources) and files == _stamps(files)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return identity if same else None

    def _identify(self) -> str:
        task = self.loaded
        sources = _digests(str(path) for path in task.sources)
        identity = digest([sorted(sources.values()), self.config.options, task.fingerprint()])
        if task.files is not None:
            files = _stamps(str(path) for path in task.files)
            write_text(self._memory, json.dumps({"sources": sources, "files": files, "identity": identity}))
        return identity


def _digests(paths: Any) -> dict[str, str]:
    return {path: sha256_file(Path(path)) for path in paths}


def _stamps(paths: Any) -> dict[str, list[int]]:
    """Size and time of change: as make does, so that large data sets are not read for it."""
    stats = {path: Path(path).stat() for path in paths}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}
