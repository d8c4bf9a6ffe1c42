"""Every option of every command with values that nobody should give: one line, no traceback, and an end.

The commands and their options are asked of click, so that a new one is tested without being named here.
"""

import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from commands import edgekd

from edgekd import errors
from edgekd.cli import main

#: What a command needs besides the option in question to begin, and to end soon: there is no such task.
ENDS = ["--recipe", "digits", "--set", "task.name=none.py:Mine"]
NEEDS = {
    **dict.fromkeys(("build", "check", "blame", "search", "advise"), ENDS),
    "verify": ["none"], "profile": ["none"], "report": ["none"], "init": ["folder"], "targets show": ["cpu"],
    "device install": ["none"], "device probe": ["ssh://"], "device clean": ["ssh://"],
}  # fmt: skip

NUMBERS = ["nan", "inf", "-inf", "0", "-1", "1e400", "9" * 5000, "", "x", "0s", "999999999h", "\udcff"]
PATHS = [
    "", "/", "folder", "folder.toml", "pipe", "pipe.toml", "pipe.onnx", "loop", "loop.toml", "socket.toml", "zero.toml",
    "bytes.toml", "empty.toml", "pipes", "/dev/zero", "/proc/none/none", "x" * 5000, "x" * 300 + ".toml", "x/" * 3000,
    "\udcff", "\udcff.toml", "a\nb.toml", "a\x1b[31mb.toml", "pipe:name", "none.py:name",
]  # fmt: skip


def commands(command, path=()):
    """Yield every command with the words that call it."""
    yield " ".join(path), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def _parameters():
    for words, command in commands(main):
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False):
                yield pytest.param(words, parameter, id=f"{words} {parameter.opts[-1]}")


@contextmanager
def at_most(seconds):
    """Fail a command that hangs, e.g. as it reads a pipe that nobody writes."""

    def hangs(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which every kind of path lies that is no file to read."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("folder", "folder.toml", "pipes"):
        (folder / name).mkdir()
    for name in ("pipe", "pipe.toml", "pipe.onnx", "pipes/manifest.json", "pipes/report.json", "pipes/edgekd.toml"):
        os.mkfifo(folder / name)
    for name in ("loop", "loop.toml"):
        (folder / name).symlink_to(name)
    (folder / "zero.toml").symlink_to("/dev/zero")
    (folder / "bytes.toml").write_bytes(bytes(range(256)))
    (folder / "empty.toml").touch()
    before = Path.cwd()
    os.chdir(folder)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.toml")
        yield folder
    os.chdir(before)


@pytest.mark.parametrize(("words", "parameter"), list(_parameters()))
def test_a_bad_value_is_one_line(place, words, parameter):
    number = isinstance(parameter.type, click.IntRange | click.FloatRange) or parameter.type.name == "time"
    for value in NUMBERS if number else PATHS:
        given = ["--", value] if isinstance(parameter, click.Argument) else [parameter.opts[-1], value]
        needed = [] if isinstance(parameter, click.Argument) else NEEDS.get(words, [])
        with at_most(120):
            ended = CliRunner().invoke(main, [*words.split(), *needed, *given])
        assert isinstance(ended.exception, SystemExit | None), (value[:99], ended.exception)
        if ended.exit_code == 2:
            assert ended.stderr.startswith("Usage: ")
        elif ended.exit_code:
            (line,) = ended.stderr.splitlines()
            assert line.startswith("error: ")
        assert ended.exit_code or not number, f"{value[:99]} was taken"
        assert "\x1b" not in ended.stderr


def test_a_number_has_bounds(built, tmp_path):
    for option in ("--rate=nan", "--rate=0.01", "--threads=100000", "--iterations=100000000", "--sustained=25h"):
        found = edgekd("profile", built.bundle, option, cwd=tmp_path)
        assert (found.returncode, found.stdout) == (2, ""), option


@pytest.mark.parametrize(
    ("output", "said"),
    [("folder", "folder: Is a directory"), ("pipe", "pipe: nobody reads it"), ("/dev/full", "No space left on device")],
)
def test_report_into_what_is_no_file_is_refused(built, place, output, said):
    found = edgekd("report", built.output, "--format", "csv", "--output", output, cwd=place)
    assert found.returncode == errors.OutputError.exit_code
    assert said in found.stderr


def test_report_into_a_device_writes_to_it_and_leaves_it_there(built, place):
    found = edgekd("report", built.output, "--format", "csv", "--output", "/dev/null", cwd=place)
    assert (found.returncode, found.stderr) == (0, "")
    assert not Path("/dev/null").is_file()
