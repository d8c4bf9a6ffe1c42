"""Run a command and watch what it costs: seconds, and memory of the process with all that it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from edgekd.runtime.measure.machine import read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PROC = Path("/proc")
#: Seconds between two looks at the memory.
_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        wall_s: Seconds from its start to its end.
        peak_bytes: The most resident memory that it and the processes below it held together, as seen twenty times a
            second: what each has for itself, and the pages that the one with most of them shares with any other.
        failed: Why it did not succeed: its last words; None where it did.
        output: All that it wrote to its standard output.
    """

    wall_s: float
    peak_bytes: int
    failed: str | None
    output: str

    @property
    def cost(self) -> dict[str, Any]:
        """The figures, by name."""
        return {"wall_s": self.wall_s, "peak_tree_bytes": self.peak_bytes}


def watch(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    timeout_s: float | None = None,
    success: Sequence[int] = (0,),
) -> Ended:
    """Run a command to its end, or kill it with all below it when its time is over.

    Args:
        command: The program and its arguments.
        environment: All environment variables.
        timeout_s: Seconds that it may take; None for ever.
        success: The exit codes that are no failure.
    """
    with TemporaryFile() as said, TemporaryFile() as erred:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), env=dict(environment), stdout=said, stderr=erred, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        memory = _Memory(process.pid)
        memory.start()
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            seconds = time.perf_counter() - start
            peak = memory.stop()
            _kill(process)
        texts = []
        for stream in (said, erred):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    return Ended(seconds, peak, _failure(code, success, texts[1], timeout_s), texts[0])


def _failure(code: int | None, success: Sequence[int], errors: str, timeout_s: float | None) -> str | None:
    if code is None:
        return f"not finished in {timeout_s:g} s"
    if code in success:
        return None
    lines = errors.strip().splitlines()
    return lines[-1] if lines else f"ended with {code}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the session that the command leads, if any of it is still there."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    process.wait()


class _Memory(threading.Thread):
    """Looks at the memory of a process and those below it, again and again."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._peak, self._done = pid, 0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            held = [_resident(pid) for pid in _tree(self._pid)]
            together = sum(private for private, _ in held) + max(shared for _, shared in held)
            self._peak = max(self._peak, together)

    def stop(self) -> int:
        """Return the most that was seen, in bytes."""
        self._done.set()
        self.join()
        return self._peak


def _tree(root: int) -> list[int]:
    """Return a process and all below it."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for children in (_PROC / str(pid) / "task").glob("*/children"):
            waiting += map(int, read(children).split())
    return found


def _resident(pid: int) -> tuple[int, int]:
    """Return the bytes that a process has for itself, and those that others have too; zeros where it has ended."""
    lines = (line.split() for line in read(_PROC / str(pid) / "smaps_rollup").splitlines()[1:])
    sizes = {words[0]: int(words[1]) * 1024 for words in lines}
    private, shared = (
        sum(sizes.get(f"{kind}_{state}:", 0) for state in ("Clean", "Dirty")) for kind in ("Private", "Shared")
    )
    return private, shared
