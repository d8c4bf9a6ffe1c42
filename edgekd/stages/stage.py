"""Stages of a build: what one is, and how it is run under the cache and reported to the observer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

import msgspec

from edgekd.files import disk_errors, missing
from edgekd.stages.cache import Cache, digest
from edgekd.stages.progress import Observer, StageReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from edgekd.files import JsonObject

R = TypeVar("R")


@dataclass(frozen=True)
class StageSpec(Generic[R]):
    """One kind of stage, declared once.

    Attributes:
        name: The stage's name, one word without a hyphen, e.g. "quantize". Names of results begin with it.
        version: Version of the stage's code. A higher one makes older results stale.
        result: Type of the result, a frozen dataclass.
        libraries: Packages whose installed versions the result depends on.
        purpose: What the stage does, as a phrase for the documentation.
        summary: Describes a result in a few words.
    """

    name: str
    version: int
    result: type[R]
    libraries: tuple[str, ...] = ()
    purpose: str = ""
    summary: Callable[[R], str] = str


@dataclass(frozen=True)
class StageTime:
    """One finished stage of a build.

    Attributes:
        name: The stage's name in the build, e.g. "quantize cpu".
        seconds: Time that it took; 0 where it was up to date.
        cached: Whether it was up to date.
        summary: The result in a few words.
        warnings: What its result says that the user should know.
    """

    name: str
    seconds: float
    cached: bool
    summary: str
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Warned(Protocol):
    """A result that says what the user should know, also of a later build in which its stage is up to date."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences, each of which the stage reported as a warning when it ran."""


@dataclass(frozen=True)
class Done(Generic[R]):
    """A finished stage.

    Attributes:
        key: Name of the result: a digest over all that the result depends on.
        folder: Folder of the result's files.
        result: The result itself.
    """

    key: str
    folder: Path
    result: R


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One stage of one build, ready to run.

    Attributes:
        spec: The kind of stage.
        label: What tells it from the build's other stages of this kind, e.g. the target's name; "" for the only one.
        depends: All that the result depends on beside the kind, as JSON. The label is not among it: two targets that
            ask for the same share the result.
        run: Function that does the work in a folder.
    """

    spec: StageSpec[R]
    label: str
    depends: JsonObject
    run: Callable[[Path, StageReporter], R]

    @property
    def name(self) -> str:
        """The stage's name, unique within a build, e.g. "quantize cpu"."""
        return f"{self.spec.name} {self.label}".rstrip()

    @property
    def key(self) -> str:
        """Name of the result."""
        identity = {"stage": self.spec.name, "version": self.spec.version, **self.depends}
        return f"{self.spec.name}-{digest(identity)}"


@dataclass
class Runner:
    """Runs stages in order, each at most once ever.

    Attributes:
        cache: The finished results.
        observer: Receives each stage's events.
        times: The stages that are finished, in their order.
    """

    cache: Cache
    observer: Observer
    times: list[StageTime] = field(default_factory=list)

    def __call__(
        self,
        spec: StageSpec[R],
        *,
        label: str = "",
        config: Mapping[str, object] | None = None,
        inputs: Mapping[str, object] | None = None,
        run: Callable[[Path, StageReporter], R],
    ) -> Done[R]:
        """Run a stage, or read its result where it is up to date; either way it is reported once in a build.

        Args:
            spec: Kind of stage.
            label: What tells it from the build's other stages of this kind; the result does not depend on it.
            config: Settings that the result depends on, as JSON.
            inputs: Keys of the results that it is computed from, by name, as JSON.
            run: Function that does the work in a folder and returns the result.

        Raises:
            MissingDependency: One of the spec's libraries is not installed.
        """
        depends = {
            "config": dict(config or {}),
            "inputs": dict(inputs or {}),
            "versions": library_versions(spec.libraries, "build"),
        }
        return self.execute(Stage(spec, label, depends, run))

    def execute(self, stage: Stage[R]) -> Done[R]:
        """Run a stage that is ready, or read its result."""
        key, result_type = stage.key, stage.spec.result
        record = self.cache.find(key)
        started = time.monotonic()
        cached = record is not None and _fits(record, result_type)
        if not cached:
            with self.cache.claim(
                key, lambda: self._wait(stage.name), lambda record: _fits(record, result_type)
            ) as folder:
                if folder is None:
                    record, cached = self.cache.find(key), True
                else:
                    self.observer.start(stage.name)
                    record = msgspec.to_builtins(self._work(stage, folder))
                    self.cache.finish(key, record)
        result = msgspec.convert(record, result_type)
        for kept in self.cache.set_aside(key) if cached else ():
            self.observer.warn(stage.name, f"edgekd did not write {kept.name} into its cache; it is now {kept}")
        if not cached or all(spent.name != stage.name for spent in self.times):
            seconds = 0.0 if cached else time.monotonic() - started
            warnings = result.warnings if isinstance(result, Warned) else ()
            for warning in warnings if cached else ():
                self.observer.warn(stage.name, warning)
            self._report(StageTime(stage.name, seconds, cached, stage.spec.summary(result), warnings))
        return Done(key, self.cache.root / key, result)

    def _work(self, stage: Stage[R], folder: Path) -> R:
        """Run the stage's function; a full disk is said to be that, whatever a library makes of it."""
        with self.cache.errors(), disk_errors(folder):
            return stage.run(folder, StageReporter(self.observer, stage.name))

    def _report(self, spent: StageTime) -> None:
        self.times.append(spent)
        self.observer.finish(spent.name, spent.seconds, spent.cached, spent.summary)

    def _wait(self, name: str) -> None:
        self.observer.warn(name, "another build is at this very stage; waiting for its result")


def _fits(record: JsonObject, result: type[object]) -> bool:
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
