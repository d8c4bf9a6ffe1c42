"""Signals that end a command: what it began is put in order, no second signal disturbs that, and it does end.

Ctrl-C, SIGTERM, and SIGHUP where nohup does not hold it off, are raised as ``KeyboardInterrupt`` in the main thread, so
that every ``with`` and ``finally`` on the way removes its temporaries and ends its processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType, TracebackType
    from typing import Self

    from edgekd.stages.progress import Observer

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}

#: The time in which a command that got a signal ends, or is ended: a library may be busy for very long.
_GRACE_SECONDS = 20.0
#: The time after which a signal is sent again that was lost.
_AGAIN_SECONDS = 0.01
_SHOW_CURSOR = b"\x1b[?25h"


class Signals:
    """Raises the first signal that ends a command, and remembers it. A context manager.

    Attributes:
        received: The signal; None while there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, object] = {}
        self._unraisable = sys.unraisablehook
        self._wake: tuple[int, int] | None = None

    @property
    def word(self) -> str:
        """How the command ended, in a word or two."""
        return _WORDS[self.received.name] if self.received else _WORDS["SIGINT"]

    @property
    def exit_code(self) -> int:
        """The exit code that shells give a command which a signal ended."""
        return 128 + (self.received or signal.SIGINT)

    def check(self) -> None:
        """Raise a signal once more where the code that was interrupted went on as if nothing had been."""
        if self.received is not None:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        # What is ignored stays so: SIGHUP under nohup, SIGINT in the background of a shell.
        held = [each for each in _SIGNALS if signal.getsignal(each) not in (signal.SIG_IGN, None)]
        self._before = {each: signal.signal(each, self._receive) for each in held}
        sys.unraisablehook = self._raise_again
        self._wake = os.pipe()
        os.set_blocking(self._wake[1], False)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._wake[0],), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._wake is None:
            return
        if self.received is not None:  # this process ends, and it is still ended if it does not
            for each in self._before:
                signal.signal(each, signal.SIG_IGN)
            return
        signal.set_wakeup_fd(-1)
        for each, handler in self._before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]  # it is what signal.signal returned
        sys.unraisablehook = self._unraisable
        os.close(self._wake[1])  # which ends the thread

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            raise KeyboardInterrupt

    def _raise_again(self, ignored: sys.UnraisableHookArgs) -> None:
        """Receive a signal again that was raised where Python only prints what is raised, e.g. as an object died."""
        if self.received is None or not issubclass(ignored.exc_type, KeyboardInterrupt):
            self._unraisable(ignored)
            return
        number, self.received = self.received, None
        # Not before this function has returned, where it would only be printed once more.
        again = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (threading.main_thread().ident, number))
        again.daemon = True
        again.start()

    def _watch(self, wake: int) -> None:
        """End the process by force where a signal does not, because a library keeps the main thread."""
        known = {int(each) for each in self._before}
        while (told := os.read(wake, 1)) and told[0] not in known:
            pass
        if not told:
            os.close(wake)
            return
        threading.Event().wait(_GRACE_SECONDS)
        for stream in (1, 2):
            with suppress(OSError):
                os.write(stream, _SHOW_CURSOR if os.isatty(stream) else b"")
        os._exit(128 + told[0])


class StoppableObserver:
    """Passes a build's events on; a signal that some code swallowed is raised again at the next of them.

    Args:
        observer: Receives all events.
        signals: The signals of this command.
    """

    def __init__(self, observer: Observer, signals: Signals) -> None:
        self._observer = observer
        self._signals = signals

    def plan(self, stages: tuple[str, ...]) -> None:
        """Pass the event on."""
        self._signals.check()
        self._observer.plan(stages)

    def start(self, stage: str) -> None:
        """Pass the event on."""
        self._signals.check()
        self._observer.start(stage)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Pass the event on."""
        self._signals.check()
        self._observer.advance(stage, done, total, note)

    def epoch(self, stage: str, number: int, figures: Mapping[str, float]) -> None:
        """Pass the event on."""
        self._signals.check()
        self._observer.epoch(stage, number, figures)

    def warn(self, stage: str, message: str) -> None:
        """Pass the event on."""
        self._signals.check()
        self._observer.warn(stage, message)

    def finish(self, stage: str, seconds: float, cached: bool, summary: str) -> None:
        """Pass the event on."""
        self._signals.check()
        self._observer.finish(stage, seconds, cached, summary)

    def refuse(self, target: str, reason: str) -> None:
        """Pass the event on."""
        self._signals.check()
        self._observer.refuse(target, reason)
