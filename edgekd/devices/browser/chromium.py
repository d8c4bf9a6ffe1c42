"""Chromium as a process, without a window and with a profile of its own, which leaves no trace."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import DeviceError

if TYPE_CHECKING:
    from types import TracebackType

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: No window, no GPU, and nothing that Chromium does on its own: updates, sync, crash reports, telemetry.
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-breakpad",
    "--no-first-run",
    "--no-default-browser-check",
    "--password-store=basic",
)
#: Chromium quits at the end of its DevTools pipe (file 3), also when this process is killed; a shell opens it there.
_SHELL = ("/bin/sh", "-c", 'exec "$0" "$@" 3<&0 4>&1')
_PIPE = "--remote-debugging-pipe"
#: Not $TMPDIR: Chromium binds a socket below its profile, and crashes where that makes a path of over 107 bytes.
_PROFILES = "/tmp"
PROFILE_PREFIX = "edgekd-chromium-"
#: The name of a worker's thread, as far as Linux keeps it.
_WORKER = "DedicatedWorker"

#: The time that it has to quit before it is killed, and to end after its page did.
_GRACE_SECONDS = 5.0
_END_SECONDS = 1.0
_VERSION_SECONDS = 30.0
#: The part of its stderr that an error quotes, without its complaints about a missing desktop.
_QUOTED_LINES = 3
_QUOTED_BYTES = 8192
_NOISE = "ERROR:dbus/"


def find_chromium() -> str:
    """Return the path of Chromium: ``$EDGEKD_CHROMIUM``, else the first of :data:`NAMES` in PATH.

    Raises:
        DeviceError: there is none.
    """
    if chosen := os.environ.get("EDGEKD_CHROMIUM"):
        if path := shutil.which(chosen):
            return path
        raise DeviceError(f"EDGEKD_CHROMIUM: {chosen} is no program that can be run; name Chromium's or unset it")
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise DeviceError(
        f"no Chromium in PATH, under none of the names {', '.join(NAMES)}; install it, or name it with EDGEKD_CHROMIUM"
    )


@functools.cache  # a build asks in several stages, and each answer is a process
def version(program: str) -> str:
    """Return a Chromium's name and version, e.g. "Chromium 156.0.8078.79".

    Raises:
        DeviceError: it cannot be run, or is no Chromium.
    """
    try:
        output = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, errors="replace", timeout=_VERSION_SECONDS, check=False,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"{program}: cannot be run: {error}") from error
    match = re.match(r"[^\d\n]*\d+(\.\d+)+", output)
    if match is None:
        raise DeviceError(f"{program}: is no Chromium, to --version it says {output.strip()[:200]!r}")
    return match[0]


class Chromium:
    """A running Chromium with one page. Use it as a context manager: at the end nothing of it is left.

    If this process itself is killed, Chromium reads the end of its pipe and quits; its profile then stays in /tmp.

    Raises:
        DeviceError: it cannot be started.
    """

    def __init__(self, program: str, url: str) -> None:
        self._program = program
        self._profile = tempfile.TemporaryDirectory(prefix=PROFILE_PREFIX, dir=_PROFILES)
        # A file, since a pipe that nobody reads would fill and block Chromium; close() closes it.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        flags = [*FLAGS, _PIPE, f"--user-data-dir={self._profile.name}"]
        if os.geteuid() == 0:  # its sandbox does not work for root, and it refuses to start with it
            flags.append("--no-sandbox")
        self._process = subprocess.Popen(
            [*_SHELL, program, *flags, url],
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,  # all its processes get one group
        )

    @property
    def ended(self) -> bool:
        """Whether it no longer runs."""
        return self._process.poll() is not None

    def end(self) -> str:
        """Return how it ended, with its last output; for a browser that still runs, that its page crashed."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "the page crashed"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{self._program} ended ({how}); {self._last_words()}"

    def peak_rss_bytes(self) -> dict[int, int]:
        """Return the peak resident memory of each of its living processes, by pid; none where there is no /proc."""
        peaks = {}
        for pid in self._living():
            with suppress(OSError):  # it has just ended
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
                if match := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
                    peaks[pid] = int(match[1]) * 1024
        return peaks

    def processes_with_worker(self) -> list[int]:
        """Return the pids of its processes in which a page runs a worker, by the name of the worker's thread."""
        pids = []
        for pid in self._living():
            with suppress(OSError):  # it has just ended
                if any(path.read_text().strip() == _WORKER for path in Path(f"/proc/{pid}/task").glob("*/comm")):
                    pids.append(pid)
        return pids

    def close(self) -> None:
        """Make it quit, kill its processes that do not, and remove its profile."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        with suppress(ProcessLookupError):  # the helpers of one that was killed itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._living() and time.monotonic() < deadline:  # what still dies may still write
            time.sleep(0.01)
        self._log.close()
        self._profile.cleanup()

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _environment(self) -> dict[str, str]:
        """Return an environment in which caches, settings and temporary files go into the profile."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        return {**kept, "HOME": self._profile.name, "TMPDIR": self._profile.name}

    def _living(self) -> list[int]:
        """Return the pids of its processes that have not ended; none where there is no /proc."""
        pids = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has just ended
                # After the name, which may hold anything: state, parent, group.
                state, _, group = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:3]
                if int(group) == self._process.pid and state != "Z":
                    pids.append(int(path.parent.name))
        return pids

    def _last_words(self) -> str:
        size = self._log.seek(0, 2)
        self._log.seek(max(0, size - _QUOTED_BYTES))
        lines = [line for line in self._log.read().decode("utf-8", "replace").splitlines() if _NOISE not in line]
        return "it last said: " + " / ".join(lines[-_QUOTED_LINES:]) if lines else "it said nothing on stderr"
