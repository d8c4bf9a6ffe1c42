"""The user's task as the pipeline sees it: loaded only where a stage must run, so that an idle build needs no torch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import TaskError
from edgekd.files import need, sha256_file
from edgekd.stages.cache import digest
from edgekd.stages.sealed import read_sealed, write_sealed
from edgekd.stages.user_code import source_digests

if TYPE_CHECKING:
    from edgekd.config.recipe import Recipe, TaskConfig
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask


class Project:
    """A task by name, and the digest that stands for its code and data.

    A task that names the ``files`` it reads is remembered: while its code and those files are unchanged, the digest is
    known without importing anything. A task that names none is loaded each time.

    Args:
        config: Name and options of the task.
        folder: Folder in which digests are remembered.
    """

    def __init__(self, config: TaskConfig, folder: Path) -> None:
        self.config = config
        self._memory = folder / f"task-{digest({'name': config.name, 'options': config.options})}.json"

    @cached_property
    def loaded(self) -> LoadedTask:
        """The loaded task; loading it imports torch.

        Raises:
            MissingDependency: torch is not installed.
            TaskError: The task cannot be loaded, or its data differ from those of its remembered digest.
        """
        need("torch", "build")
        from edgekd.training.task.loading import load_task

        known = self._known
        task = load_task(self.config)
        if known is not None and task.fingerprint() != known["fingerprint"]:
            raise TaskError(
                f"task {self.config.name}: splits() gives other samples than when the task was last loaded, though its "
                "code and files are the same; seed what is random in it"
            )
        return task

    def taps(self, recipe: Recipe) -> Taps:
        """Return the taps of both networks, from the recipe and the task.

        Raises:
            TaskError: A modality has no tap, or a tap names no modality.
        """
        from edgekd.training.taps.taps import Taps, resolve_taps

        task, names, outputs = self.loaded.task, self.loaded.modalities, self.loaded.outputs
        student = resolve_taps("student", recipe.student.taps, getattr(task, "student_taps", {}), names, outputs)
        if not self.loaded.has_teacher:  # the student takes its place
            return Taps(student, student)
        teacher = resolve_taps("teacher", recipe.teacher.taps, getattr(task, "teacher_taps", {}), names, outputs)
        return Taps(teacher, student, recipe.teacher.precision)

    @cached_property
    def identity(self) -> str:
        """Digest of the task's code, options and data."""
        return self._identify() if self._known is None else self._known["identity"]

    @cached_property
    def _known(self) -> dict[str, str] | None:
        """Remembered identity and fingerprint; None where code or files have changed."""
        try:
            memory = read_sealed(self._memory) or {}
            known = {name: str(memory[name]) for name in ("identity", "fingerprint")}
            sources, files = source_digests(Path(memory["module"])), _stamps(memory["files"])
            same = memory["sources"] == sources and memory["stamps"] == files
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return known if same else None

    def _identify(self) -> str:
        task = self.loaded
        module, files = task.sources[0], [str(path) for path in task.files or ()]
        sources, fingerprint = source_digests(module), task.fingerprint()
        try:
            contents, stamps = [sha256_file(Path(path)) for path in _listed(files)], _stamps(files)
        except OSError as error:
            raise TaskError(
                f"task {self.config.name}: names {error.filename} in its files, which cannot be read: {error.strerror}"
            ) from error
        identity = digest([sources, contents, self.config.options, fingerprint])
        if task.files is not None:
            memory = {
                "module": str(module),
                "sources": sources,
                "files": files,
                "stamps": stamps,
                "fingerprint": fingerprint,
                "identity": identity,
            }
            write_sealed(self._memory, memory)
        return identity


def _listed(paths: list[str]) -> list[str]:
    """Return the files that a task lists; a folder stands for every file below it."""
    return [
        str(file)
        for path in map(Path, paths)
        for file in (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
    ]


def _stamps(paths: list[str]) -> dict[str, list[int]]:
    """Return size and time of change of each file: as make does, so that large data sets are not read for it."""
    stats = {path: Path(path).stat() for path in _listed(paths)}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}
