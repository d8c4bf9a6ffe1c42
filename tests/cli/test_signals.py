"""Signals that end a command: on a real build under a pseudo-terminal, and where a library gets in their way."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, build_arguments, copy_cache, edgekd, environment

#: What shells make of a signal, and the line that says so.
ENDINGS = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated"), "SIGHUP": (129, "hung up")}


def on_terminal(arguments, cwd, signum, at, times=1, **changes):
    """Run the command line on a pseudo-terminal and send it a signal once it has written ``at``.

    Returns:
        Its exit code, and what it wrote.
    """
    master, end = pty.openpty()
    # Not pty.fork: Python and libraries' handlers would go on in a copy of a process of many threads.
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekd", *map(str, arguments)],
        cwd=cwd,
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        env=environment(TERM="xterm", **changes),
    )
    os.close(end)
    written = b""
    while True:
        try:
            written += os.read(master, 65536)
        except OSError:  # the other end is closed: how Linux says end of file
            break
        if at and at in written:
            at = None
            for _ in range(times):
                process.send_signal(signum)
    code = process.wait()
    os.close(master)
    return code, written.decode()


@pytest.mark.parametrize(("name", "times"), [("SIGINT", 3), ("SIGTERM", 1), ("SIGHUP", 2)])
def test_a_signal_is_one_line_and_leaves_nothing_behind(built, tmp_path, name, times):
    cache = copy_cache(built.cache, tmp_path / "cache", without=["profile"])
    (tmp_path / "tmp").mkdir()
    arguments = build_arguments("out", cache, profile__iterations=200_000)
    code, written = on_terminal(
        arguments, tmp_path, getattr(signal, name), b"opened in", times, TMPDIR=str(tmp_path / "tmp")
    )
    expected, word = ENDINGS[name]
    assert code == expected, written
    assert written.endswith(f"{word}; the same command goes on from here\r\n")
    assert "Traceback" not in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is shown again"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert agents_of(tmp_path) == []
    assert edgekd(*build_arguments("out", cache), cwd=tmp_path).returncode == 0


def agents_of(folder):
    """Return the processes whose working directory is a folder; none where there is no /proc."""
    return [path.name for path in Path("/proc").glob("[0-9]*") if _cwd(path) == folder]


def _cwd(process):
    try:
        return (process / "cwd").readlink()
    except OSError:  # it has ended, or is not ours
        return None


def run(code, signum, nohup=False):
    """Run Python on code that prints ``ready``, and send it a signal then; return its exit code and what it said."""
    program = ["nohup", sys.executable] if nohup else [sys.executable]
    process = subprocess.Popen(
        [*program, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


#: A command of which one line is replaced.
COMMAND = """
import sys, time
from edgekd.cli import signals
from edgekd.cli.main import main
signals._GRACE_SECONDS = 0.2
def wait():
    print("ready", flush=True)
    time.sleep(60)
@main.command()
def wait_for_a_signal():
    WORK
main(["wait-for-a-signal"])
"""


def command(*lines):
    return COMMAND.replace("WORK", "\n    ".join(lines))


def test_what_a_library_makes_of_a_signal_is_not_told():
    code = command(
        "try: wait()", "except KeyboardInterrupt as error:",
        "    from edgekd.errors import ModelError; raise ModelError('torch cannot export it') from error",
    )  # fmt: skip
    assert run(code, signal.SIGINT) == (130, "", "interrupted\n")


def test_a_signal_that_is_swallowed_ends_the_build_at_its_next_event():
    code = command(
        "from edgekd.cli.options import Printing",
        "with Printing(False, False, False).observer() as observer:",
        "    try: wait()", "    except KeyboardInterrupt: pass",
        "    observer.warn('quantize', 'int8 is left out')",
    )  # fmt: skip
    assert run(code, signal.SIGTERM) == (143, "", "terminated\n")


def test_a_signal_that_python_only_prints_is_raised_again():
    code = command("class Dying:", "    def __del__(self): wait()", "Dying()", "time.sleep(60)")
    assert run(code, signal.SIGINT) == (130, "", "interrupted\n")


def test_a_command_that_a_library_keeps_busy_is_ended():
    code = command(
        "import ctypes", "mutex = ctypes.create_string_buffer(64)", "lock = ctypes.CDLL(None).pthread_mutex_lock",
        "lock(mutex)", "print('ready', flush=True)", "lock(mutex)",
    )  # fmt: skip
    exit_code, _, said = run(code, signal.SIGTERM)
    # On a busy machine the signal may come before the library is called, and then it is told.
    assert (exit_code, said) in ((143, ""), (143, "terminated\n"))


def test_under_nohup_a_command_outlives_its_terminal():
    code = command("print('ready', flush=True)", "time.sleep(1)", "print('done')")
    assert run(code, signal.SIGHUP, nohup=True) == (0, "done\n", "")
    assert run(code, signal.SIGHUP) == (129, "", "hung up\n")
