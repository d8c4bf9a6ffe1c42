"""The live view: one line for each planned stage, redrawn in place."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rich.live import Live
from rich.spinner import Spinner

from edgekd.cli.terminal.plain import join, of_target
from edgekd.cli.terminal.text import shown
from edgekd.report.escape import one_line
from edgekd.report.format import duration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

State = Literal["waiting", "running", "done", "cached", "stopped"]

#: Columns of a stage's bar: at most, and where its note needs the room.
_BAR, _BAR_MIN = 16, 4
#: What a note of a training says of the validation split.
_FIRST = "validation "
_NAME_MAX = 26
#: Least seconds that a stage still takes for them to be told.
_TOLD_S = 2.0
_TIME = len("12 min 05 s")
_STYLES: dict[State, str] = {"waiting": "dim", "running": "cyan", "done": "green", "cached": "dim", "stopped": "red"}
_MARKS: dict[State, str] = {"waiting": "·", "done": "✓", "cached": "=", "stopped": "✗"}
_ASCII_MARKS: dict[State, str] = {"waiting": ".", "done": "+", "cached": "=", "stopped": "x"}


@dataclass(frozen=True)
class _StageLine:
    """The state of one stage.

    Attributes:
        state: Whether the stage waits, runs, is done, was up to date, or was stopped.
        since: Monotonic time at which it began, in seconds.
        seconds: Seconds that it took.
        done: Steps that are done.
        total: Steps in all; 0 where they are not known.
        reached: Monotonic time at which so many were done, in seconds.
        text: Its last note, or its outcome.
    """

    state: State = "waiting"
    since: float = 0.0
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    reached: float = 0.0
    text: str = ""


def shorten_note(note: str, columns: int) -> str:
    """Return those parts of a note, separated by commas, that fit; the validation metric before the others.

    A note of which no part fits is returned as it is.
    """
    if len(note) <= columns:
        return note
    parts = note.split(", ")
    kept: list[str] = []
    for part in sorted(parts, key=lambda part: not part.startswith(_FIRST)):
        if len(", ".join([*kept, part])) <= columns:
            kept.append(part)
    return ", ".join(part for part in parts if part in kept) or note


class LiveView:
    """Shows every stage with its mark, time, progress and outcome; restores the terminal however the build ends."""

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose
        self._lines: dict[str, _StageLine] = {}
        unicode = console.encoding.startswith("utf")
        self._marks = _MARKS if unicode else _ASCII_MARKS
        self._bar = "━─" if unicode else "=-"
        self._spinner = Spinner("dots" if unicode else "line")
        self._open = True
        self._live = Live(self, console=console, refresh_per_second=10, redirect_stdout=False, redirect_stderr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for stage, line in self._lines.items():
            if line.state == "running":
                self._lines[stage] = self._stopped(line)
        self._open = False
        self._live.stop()

    def plan(self, stages: tuple[str, ...]) -> None:
        """Show all stages as waiting."""
        self._live.start()
        self._lines = dict.fromkeys(stages, _StageLine())

    def start(self, stage: str) -> None:
        """Show the stage as running."""
        self._set(stage, _StageLine("running", since=time.monotonic()))

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Show how far the stage is, and its note."""
        self._lines[stage] = replace(self._lines[stage], done=done, total=total, text=note, reached=time.monotonic())
        if self._verbose:
            self._say("dim", f"{stage}: {join(f'{done}/{total}', note)}")

    def epoch(self, stage: str, number: int, figures: Mapping[str, float]) -> None:
        """Ignore the event: the note of its advance says enough."""

    def warn(self, stage: str, message: str) -> None:
        """Print the warning above the stages."""
        self._say("yellow", f"warning: {stage}: {message}")

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Show the outcome of the stage."""
        self._set(stage, _StageLine("cached" if cached else "done", seconds=seconds, text=summary))

    def refuse(self, target: str, reason: str) -> None:
        """Print the reason above the stages; show where the target stopped, and no more what it will not come to."""
        self._say("red", f"refused: {target}: {reason}")
        ended = of_target(target, self._lines)
        self._lines = {
            stage: self._stopped(line) if stage in ended and line.state == "running" else line
            for stage, line in self._lines.items()
            if stage not in ended or line.state != "waiting"
        }

    def _set(self, stage: str, line: _StageLine) -> None:
        """Set the state of a stage; a stage that was not planned, as of a repair, comes before those that wait."""
        self._live.start()
        if stage not in self._lines:
            waiting = {name: rest for name, rest in self._lines.items() if rest.state == "waiting"}
            over = {name: rest for name, rest in self._lines.items() if name not in waiting}
            self._lines = {**over, stage: line, **waiting}
        self._lines[stage] = line

    def _say(self, style: str, message: str) -> None:
        self._console.print(shown(message, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the stages; while more are planned than the terminal has lines, those around the running one."""
        lines = list(self._lines.items())
        first, last = 0, len(lines)
        room = console.height - 1
        if self._open and len(lines) > room:
            at = next((index for index, (_, line) in enumerate(lines) if line.state in ("waiting", "running")), last)
            first = min(max(0, at - room // 2), last - room)
            last = first + room
        width = min(_NAME_MAX, max((len(stage) for stage, _ in lines), default=0))
        for stage, line in lines[first:last]:
            text = self._draw(stage, line, width, options.max_width)
            text.truncate(options.max_width, overflow="ellipsis")
            yield text

    def _draw(self, stage: str, line: _StageLine, width: int, columns: int) -> Text:
        """Draw one stage on one line.

        Args:
            stage: Name of the stage.
            line: State of the stage.
            width: Columns for the name.
            columns: Columns of the terminal.
        """
        style = _STYLES[line.state]
        text = shown("")
        text.no_wrap = True
        if line.state == "running":
            frame = self._spinner.render(time.monotonic())
            text.append(str(frame), style)
        else:
            text.append(self._marks[line.state], style)
        name = shown(f" {stage}", "bold" if line.state == "running" else "dim" if line.state == "waiting" else "")
        name.truncate(width + 1, overflow="ellipsis", pad=True)
        text.append_text(name)
        text.append(f"  {self._time(line):>{_TIME}}  ", "dim")
        note = one_line(" ".join(line.text.split()))
        if line.state in ("running", "stopped") and line.total:
            text.append_text(self._progress(line, columns - len(text) - len(note)))
        if line.state == "stopped":
            text.append("stopped", "red").append(" · " if note else "")
        note = shorten_note(note, columns - len(text))
        return text.append(note, "dim" if line.state in ("cached", "running") else "")

    @staticmethod
    def _left(line: _StageLine, share: float) -> str:
        """Return how long a running stage goes on at the pace of its steps so far; "" where it is about to end."""
        left_s = (line.reached - line.since) / share - (time.monotonic() - line.since) if share else 0.0
        return f", {duration(left_s)} left" if line.state == "running" and left_s >= _TOLD_S else ""

    def _progress(self, line: _StageLine, room: int) -> Text:
        """Draw the share that is done, the bar as wide as there is room for it beside the note."""
        share = min(1.0, line.done / line.total)
        told = f" {share:4.0%}{self._left(line, share)}  "
        width = max(_BAR_MIN, min(_BAR, room - len(told)))
        full = round(share * width)
        bar = shown(self._bar[0] * full, _STYLES[line.state])
        return bar.append(self._bar[1] * (width - full), "dim").append(told)

    @staticmethod
    def _stopped(line: _StageLine) -> _StageLine:
        return replace(line, state="stopped", seconds=time.monotonic() - line.since)

    @staticmethod
    def _time(line: _StageLine) -> str:
        if line.state == "waiting":
            return ""
        if line.state == "cached":
            return "up to date"
        return duration(time.monotonic() - line.since if line.state == "running" else line.seconds)
