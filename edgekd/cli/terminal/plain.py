"""Observers that write lines: for logs, for programs, and for users who want warnings alone."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from edgekd.cli.terminal.text import say
from edgekd.report.escape import json_text
from edgekd.report.format import duration
from edgekd.stages.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self, TypeVar

    V = TypeVar("V")

_INTERVAL_S = 2.0


def join(*parts: str) -> str:
    """Join the parts that are not empty with commas."""
    return ", ".join(part for part in parts if part)


def of_target(target: str, stages: Mapping[str, V]) -> dict[str, V]:
    """Return those stages that work for a target, whose name follows their kind, e.g. "quantize cpu"."""
    return {stage: value for stage, value in stages.items() if stage.split()[1:2] == [target]}


class _Closing(Silent):
    """An observer that reports which stage was running when the build was left early."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for stage, since in self._since.items():
            self.stopped(stage, time.monotonic() - since)

    def start(self, stage: str) -> None:
        """Remember that the stage runs."""
        self._since[stage] = time.monotonic()

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:  # noqa: ARG002 - the protocol's
        """Forget the stage."""
        self._since.pop(stage, None)

    def refuse(self, target: str, reason: str) -> None:  # noqa: ARG002 - the protocol's
        """Report the target's stage that was running as stopped."""
        for stage, since in of_target(target, self._since).items():
            del self._since[stage]
            self.stopped(stage, time.monotonic() - since)

    def stopped(self, stage: str, seconds: float) -> None:
        """Report a stage that was running when the build was left."""


class Plain(_Closing):
    """Writes a line when a stage starts and ends, and a line of its progress at most every two seconds."""

    def __init__(self, verbose: bool = False) -> None:
        super().__init__()
        self._verbose = verbose
        self._told: dict[str, float] = {}

    def start(self, stage: str) -> None:
        """Write that the stage starts."""
        super().start(stage)
        self._told[stage] = time.monotonic()
        say(f"{stage}: started")

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Write how far the stage is, unless that was written a moment ago."""
        if self._verbose or time.monotonic() - self._told.get(stage, 0.0) >= _INTERVAL_S:
            self._told[stage] = time.monotonic()
            say(f"{stage}: {join(f'{done}/{total}', note)}")

    def warn(self, stage: str, message: str) -> None:
        """Write the warning among the other lines."""
        say(f"warning: {stage}: {message}")

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Write how the stage ended."""
        super().finish(stage, seconds, cached, summary)
        say(f"{stage}: {join('up to date' if cached else f'done in {duration(seconds)}', summary)}")

    def refuse(self, target: str, reason: str) -> None:
        """Write why nothing is built for the target."""
        super().refuse(target, reason)
        print(f"refused: {target}: {reason}", flush=True)

    def stopped(self, stage: str, seconds: float) -> None:
        """Write that the stage did not finish."""
        say(f"{stage}: stopped after {duration(seconds)}")


class Quiet(_Closing):
    """Writes nothing but warnings, on stderr."""

    def warn(self, stage: str, message: str) -> None:
        """Write the warning."""
        say(f"warning: {stage}: {message}", sys.stderr)

    def refuse(self, target: str, reason: str) -> None:
        """Write why nothing is built for the target."""
        super().refuse(target, reason)
        print(f"refused: {target}: {reason}", file=sys.stderr, flush=True)


class Json(_Closing):
    """Writes one JSON object a line for each event."""

    def emit(self, event: str, **fields: object) -> None:
        """Write one event; the command line ends with ``emit("report", report=...)``."""
        print(json_text({"event": event, **fields}), flush=True)

    def plan(self, stages: tuple[str, ...]) -> None:
        """Write ``plan``."""
        self.emit("plan", stages=stages)

    def start(self, stage: str) -> None:
        """Write ``start``."""
        super().start(stage)
        self.emit("start", stage=stage)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Write ``advance``."""
        self.emit("advance", stage=stage, done=done, total=total, note=note)

    def warn(self, stage: str, message: str) -> None:
        """Write ``warn``."""
        self.emit("warn", stage=stage, message=message)

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Write ``finish``."""
        super().finish(stage, seconds, cached, summary)
        self.emit("finish", stage=stage, seconds=seconds, cached=cached, summary=summary)

    def refuse(self, target: str, reason: str) -> None:
        """Write ``refuse``: nothing is built for the target, and the build goes on."""
        super().refuse(target, reason)
        self.emit("refuse", target=target, reason=reason)

    def stopped(self, stage: str, seconds: float) -> None:
        """Write ``stopped``: the build was left before this stage finished."""
        self.emit("stopped", stage=stage, seconds=seconds)
