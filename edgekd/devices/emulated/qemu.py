"""QEMU's user-mode emulation: the emulator of a processor, and commands that must succeed."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.devices.npm import FETCH_SECONDS
from edgekd.errors import DeviceError

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.devices.emulated.processors import Processor

#: The oldest version that emulates AVX2 and knows the Cortex-A76.
_OLDEST = (7, 2)


@dataclass(frozen=True)
class Qemu:
    """The emulator: its path, and its version such as "7.2.22"."""

    path: str
    version: str


def find_qemu(processor: Processor) -> Qemu:
    """Return the emulator of a processor's architecture.

    Raises:
        DeviceError: it is missing or too old.
    """
    path = which_qemu(processor)
    if path is None:
        raise DeviceError(
            f"emulating {processor.name} needs qemu-{processor.arch}-static, which is not installed: "
            "apt-get install qemu-user-static"
        )
    match = re.search(r"version (\d+)\.(\d+)[.\d]*", _ask_version(path))
    if match is None or (int(match[1]), int(match[2])) < _OLDEST:
        raise DeviceError(f"{path}: emulating {processor.name} needs QEMU {_OLDEST[0]}.{_OLDEST[1]} or newer")
    return Qemu(path, match[0].removeprefix("version "))


@functools.cache
def _ask_version(path: str) -> str:
    return run_command([path, "--version"], "QEMU does not tell its version")


def which_qemu(processor: Processor) -> str | None:
    """Return the path of the emulator of a processor's architecture; None where it is not installed."""
    return shutil.which(f"qemu-{processor.arch}-static") or shutil.which(f"qemu-{processor.arch}")


def run_command(
    command: list[str], failed: str, environment: dict[str, str] | None = None, folder: Path | None = None
) -> str:
    """Run a command to its end and return its stdout.

    Args:
        command: The program and its arguments.
        failed: The beginning of the error, without the last line that the command wrote to stderr.
        environment: Its environment; None for this process's.
        folder: The working directory; None for this process's.

    Raises:
        DeviceError: the command cannot be started, or failed.
    """
    try:
        process = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{failed}: {command[0]} did not end in {FETCH_SECONDS / 60:g} min") from error
    except OSError as error:
        raise DeviceError(f"{failed}: {command[0]}: {error.strerror}") from error
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise DeviceError(f"{failed}: {lines[-1]}")
    return process.stdout
