"""The standard streams, as whoever started the command left them: closed, full, or read no more."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: A signal's number, as shells count it into an exit code: that of a program whose output nobody reads.
READER_GONE = 128 + 13


def open_streams() -> None:
    """Give a command streams that cannot end it: for one that is closed, the next file would take its place."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that the terminal cannot show must not end a command


def discard_output() -> None:
    """Throw away what stdout did not take, which Python would try to write once more at its end."""
    with suppress(OSError, ValueError):  # a stream of a test's has no descriptor
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def write_through(path: Path, text: str) -> None:
    """Write a text into what is no file: a device, or a named pipe that somebody reads.

    Raises:
        OSError: It is a folder or a socket, or nobody reads the pipe, which would be waited for without an end.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(error.errno, "nobody reads it", str(path)) from error
        raise
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
