"""Running one stage under the cache, and telling the observer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from edgekd.files import missing
from edgekd.stages.cache import Cache, digest
from edgekd.stages.progress import Observer, StageReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

R = TypeVar("R")


@dataclass(frozen=True)
class StageTime:
    """One stage of the build: how long it took, and what came out in a few words."""

    name: str
    seconds: float
    cached: bool
    summary: str


@dataclass(frozen=True)
class Done(Generic[R]):
    """A finished stage.

    Attributes:
        key: names the result; a digest over all that it depends on.
        folder: where its files are.
        result: what it found.
    """

    key: str
    folder: Path
    result: R


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One stage, ready to run.

    Attributes:
        name: unique within a build, e.g. "quantize cpu".
        version: of the stage's code; a higher one makes older results stale.
        depends: all that the result depends on: config, keys of the inputs, library versions. JSON.
        result: type of the result, a frozen dataclass.
        run: does the work in a folder.
        summary: says in a few words what came out.
    """

    name: str
    version: int
    depends: dict[str, Any]
    result: type[R]
    run: Callable[[Path, StageReporter], R]
    summary: Callable[[R], str]

    @property
    def key(self) -> str:
        """What names its result."""
        kind = self.name.split()[0]
        return f"{kind}-{digest({'stage': kind, 'version': self.version, **self.depends})}"


@dataclass
class Runner:
    """Runs stages in order, each at most once ever."""

    cache: Cache
    observer: Observer
    times: list[StageTime] = field(default_factory=list)

    def __call__(self, stage: Stage[R]) -> Done[R]:
        """Run a stage, or read its result where it is up to date; either way it is reported once in a build."""
        key = stage.key
        record = self.cache.find(key)
        started = time.monotonic()
        cached = record is not None and _fits(record, stage.result)
        if not cached:
            with self.cache.claim(
                key, lambda: self._wait(stage.name), lambda found: _fits(found, stage.result)
            ) as folder:
                if folder is None:
                    record, cached = self.cache.find(key), True
                else:
                    self.observer.start(stage.name)
                    record = msgspec.to_builtins(stage.run(folder, StageReporter(self.observer, stage.name)))
                    self.cache.finish(key, record)
        result = msgspec.convert(record, stage.result)
        if not cached or all(spent.name != stage.name for spent in self.times):
            self._report(
                StageTime(stage.name, 0.0 if cached else time.monotonic() - started, cached, stage.summary(result))
            )
        return Done(key, self.cache.root / key, result)

    def _report(self, spent: StageTime) -> None:
        self.times.append(spent)
        self.observer.finish(spent.name, spent.seconds, spent.cached, spent.summary)

    def _wait(self, name: str) -> None:
        self.observer.warn(name, "another build is at this very stage; waiting for its result")


def _fits(record: dict[str, Any], result: type[Any]) -> bool:
    """Whether a record is of this very result type, and not of one that an older edgekd had."""
    try:
        msgspec.convert(record, result)
    except msgspec.ValidationError:
        return False
    return True


def library_versions(names: Iterable[str], extra: str) -> dict[str, str]:
    """Return the installed versions of packages, without importing them.

    Raises:
        MissingDependency: one is not installed.
    """
    try:
        return {name: version(name) for name in names}
    except PackageNotFoundError as error:
        raise missing(str(error.name), extra) from error
