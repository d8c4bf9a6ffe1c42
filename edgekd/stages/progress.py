"""What a running build tells its observer. Stages report; only the command line prints."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol


class Observer(Protocol):
    """Receives a build's events, in order. A stage's name is unique within a build, e.g. ``quantize cpu``."""

    def plan(self, stages: tuple[str, ...]) -> None:
        """The stages that the build will go through."""

    def start(self, stage: str) -> None:
        """A stage begins to work; not called for one that is up to date."""

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """``done`` of ``total`` steps are over; ``note`` says what came out so far."""

    def warn(self, stage: str, message: str) -> None:
        """Something that the user should know and that does not stop the build."""

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """A stage is over; ``cached`` when it was up to date and did nothing."""


class InTurn:
    """Passes on what several threads report, one event after the other.

    Args:
        observer: hears it all.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()

    def plan(self, stages: tuple[str, ...]) -> None:
        """Pass it on."""
        with self._lock:
            self._observer.plan(stages)

    def start(self, stage: str) -> None:
        """Pass it on."""
        with self._lock:
            self._observer.start(stage)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Pass it on."""
        with self._lock:
            self._observer.advance(stage, done, total, note)

    def warn(self, stage: str, message: str) -> None:
        """Pass it on."""
        with self._lock:
            self._observer.warn(stage, message)

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Pass it on."""
        with self._lock:
            self._observer.finish(stage, seconds, cached, summary)


@dataclass(frozen=True)
class StageReporter:
    """One stage's end of the observer."""

    observer: Observer
    stage: str

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Report progress."""
        self.observer.advance(self.stage, done, total, note)

    def warn(self, message: str) -> None:
        """Report a warning."""
        self.observer.warn(self.stage, message)


@dataclass(frozen=True)
class PartialReporter(StageReporter):
    """Reports one of several trainings in a stage as a part of them all.

    Attributes:
        before: steps of those before it.
        total: steps of all.
    """

    before: int
    total: int

    def advance(self, done: int, total: int, note: str = "") -> None:  # noqa: ARG002  (of this part)
        """Report progress."""
        super().advance(self.before + done, self.total, note)


class Silent:
    """An observer that ignores everything."""

    def plan(self, stages: tuple[str, ...]) -> None:
        """Ignore."""

    def start(self, stage: str) -> None:
        """Ignore."""

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Ignore."""

    def warn(self, stage: str, message: str) -> None:
        """Ignore."""

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Ignore."""
