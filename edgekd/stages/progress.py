"""Events that a running build reports to its observer. Stages report; only the command line prints."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Observer(Protocol):
    """Receives a build's events, in order. A stage's name is unique within a build, e.g. ``quantize cpu``."""

    def plan(self, stages: tuple[str, ...]) -> None:
        """Receive the names of the stages that the build will go through."""

    def start(self, stage: str) -> None:
        """Receive that a stage begins to work; it is not called for a stage that is up to date."""

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Receive that ``done`` of ``total`` steps are over; ``note`` says what came out so far."""

    def epoch(self, stage: str, number: int, figures: Mapping[str, float]) -> None:
        """Receive the figures of a training's epoch, whose number is from 1, such as "loss" and "validation"."""

    def warn(self, stage: str, message: str) -> None:
        """Receive something that the user should know and that does not stop the build."""

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Receive that a stage is over; ``cached`` where it was up to date and did nothing."""

    def refuse(self, target: str, reason: str) -> None:
        """Receive that nothing is built for a target, whose stages end, while the build goes on for the others."""


class SerialObserver:
    """Passes on what several threads report, one event after the other.

    Args:
        observer: Receives all events.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()

    def plan(self, stages: tuple[str, ...]) -> None:
        """Pass the event on."""
        with self._lock:
            self._observer.plan(stages)

    def start(self, stage: str) -> None:
        """Pass the event on."""
        with self._lock:
            self._observer.start(stage)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Pass the event on."""
        with self._lock:
            self._observer.advance(stage, done, total, note)

    def epoch(self, stage: str, number: int, figures: Mapping[str, float]) -> None:
        """Pass the event on."""
        with self._lock:
            self._observer.epoch(stage, number, figures)

    def warn(self, stage: str, message: str) -> None:
        """Pass the event on."""
        with self._lock:
            self._observer.warn(stage, message)

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Pass the event on."""
        with self._lock:
            self._observer.finish(stage, seconds, cached, summary)

    def refuse(self, target: str, reason: str) -> None:
        """Pass the event on."""
        with self._lock:
            self._observer.refuse(target, reason)


@dataclass(frozen=True)
class StageReporter:
    """Reports the events of one stage.

    Attributes:
        observer: Receives the events.
        stage: Name of the stage.
    """

    observer: Observer
    stage: str

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Report progress."""
        self.observer.advance(self.stage, done, total, note)

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Report the figures of a training's epoch."""
        self.observer.epoch(self.stage, number, figures)

    def warn(self, message: str) -> None:
        """Report a warning."""
        self.observer.warn(self.stage, message)


@dataclass(frozen=True)
class PartialReporter(StageReporter):
    """Reports one of several trainings of a stage as a part of all of them.

    Attributes:
        before: Number of steps of the trainings before it.
        total: Number of steps of all trainings.
    """

    before: int
    total: int

    def advance(self, done: int, total: int, note: str = "") -> None:  # noqa: ARG002  (the part's own total)
        """Report progress."""
        super().advance(self.before + done, self.total, note)

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Report an epoch of the part."""
        super().epoch(self.before + number, figures)


class Silent:
    """An observer that ignores every event."""

    def plan(self, stages: tuple[str, ...]) -> None:
        """Ignore the event."""

    def start(self, stage: str) -> None:
        """Ignore the event."""

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Ignore the event."""

    def epoch(self, stage: str, number: int, figures: Mapping[str, float]) -> None:
        """Ignore the event."""

    def warn(self, stage: str, message: str) -> None:
        """Ignore the event."""

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Ignore the event."""

    def refuse(self, target: str, reason: str) -> None:
        """Ignore the event."""
