"""The observers, on real streams: the live view runs under a pseudo-terminal, in a process of its own."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from edgekd.cli.terminal import Json, LiveView, Plain, Quiet, choose_observer
from edgekd.cli.terminal.live import shorten_note
from edgekd.stages.progress import SerialObserver

STAGES = ("teacher", "distil", "prune", "quantize cpu", "quantize a-target-with-a-very-long-name", "profile cpu")

BUILD = f"""
import time
from edgekd.cli.terminal import choose_observer
STAGES = {STAGES!r}
with choose_observer(json=False, quiet=False, verbose=False, terminal=True) as observer:
    observer.plan(STAGES)
    observer.finish(STAGES[0], 0.0, True, "accuracy 0.97")
    for stage in STAGES[1:]:
        observer.start(stage)
        for step in range(5):
            observer.advance(stage, step + 1, 5, "loss 0.1, " + "a long note " * 12)
            time.sleep(0.03)
        if stage == "prune":
            observer.warn(stage, "fewer channels than asked for " * 4)
            print_or_raise()
        observer.finish(stage, 61.0, False, "outcome " * 20)
"""


def on_terminal(source, interrupt_after=None, rows=24, env=None):
    """Run Python on an 80-column pseudo-terminal; return what it wrote."""
    master, end = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
    # Not pty.fork: Python and libraries' handlers would go on in a copy of a process of many threads.
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", **(env or {})},
    )
    os.close(end)
    written = b""
    while True:
        try:
            written += os.read(master, 65536)
        except OSError:  # the other end is closed: how Linux says end of file
            break
        if interrupt_after and interrupt_after in written:
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    code = process.wait()
    os.close(master)
    assert written, f"it wrote nothing and ended with {code}"
    return written.decode()


def screen(written):
    """Replay what a terminal shows: the few codes that the live view uses."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.endswith("A") and token[0] == "\x1b":
            row = max(0, row - int(token[2:-1]))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token[0] != "\x1b":
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines]


def test_the_live_view_ends_with_every_stage_on_one_line():
    shown = screen(on_terminal(BUILD.replace("print_or_raise()", "pass")))
    assert max(map(len, shown)) <= 80
    assert [line for line in shown if line.startswith("=")] == [
        shown[shown.index(next(x for x in shown if x[:1] == "="))]
    ]
    marked = [line for line in shown if line[:1] in "=✓✗·" and line]
    assert [line[0] for line in marked] == ["="] + ["✓"] * 5
    assert [line[2:].split("  ")[0] for line in marked[:4]] == list(STAGES[:4])
    assert "up to date  accuracy 0.97" in marked[0]
    assert all("1 min 01 s  outcome outcome" in line and line.endswith("…") for line in marked[1:])


def test_at_80_columns_the_validation_metric_is_not_cut_off():
    note = '"loss 0.123, validation 0.917, drift 0.0123"'
    source = BUILD.replace("print_or_raise()", "pass").replace('"loss 0.1, " + "a long note " * 12', note)
    shown = on_terminal(source)
    running = [line for line in re.split(r"[\r\n]", shown) if "%" in line]
    assert len(running) > 5
    assert all("validation 0.917" in line for line in running)


@pytest.mark.parametrize(
    ("columns", "short"),
    [
        (42, "loss 0.123, validation 0.917, drift 0.0123"),
        (41, "loss 0.123, validation 0.917"),
        (27, "validation 0.917"),
        (16, "validation 0.917"),
        (15, "loss 0.123"),
        (5, "loss 0.123, validation 0.917, drift 0.0123"),
    ],
)
def test_a_note_is_shortened_by_whole_parts_and_keeps_the_metric(columns, short):
    assert shorten_note("loss 0.123, validation 0.917, drift 0.0123", columns) == short


def test_a_warning_stands_above_the_stages_and_is_whole():
    shown = screen(on_terminal(BUILD.replace("print_or_raise()", "pass")))
    warned = next(index for index, line in enumerate(shown) if line.startswith("warning: prune:"))
    assert warned < next(index for index, line in enumerate(shown) if line.startswith("="))
    assert " ".join(shown).count("fewer channels than asked for") == 4


@pytest.mark.parametrize("leave", ["raise RuntimeError('broken')", "time.sleep(300)"], ids=["exception", "ctrl-c"])
def test_left_early_the_terminal_is_restored_and_the_stage_marked(leave):
    interrupt = b"warning: prune" if "sleep" in leave else None
    began = time.monotonic()
    written = on_terminal(BUILD.replace("print_or_raise()", leave), interrupt_after=interrupt)
    assert time.monotonic() - began < 150
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    shown = screen(written)
    marks = [line[:1] for line in shown if line[:1] and line[0] in "=✓✗·"]
    assert marks == ["=", "✓", "✗", "·", "·", "·"]
    stopped = next(line for line in shown if line.startswith("✗"))
    assert "prune" in stopped
    assert "stopped" in stopped


def test_more_stages_than_lines_keep_the_running_one_in_sight():
    many = tuple(f"stage {index}" for index in range(40))
    source = BUILD.replace(repr(STAGES), repr(many)).replace("time.sleep(0.03)", "time.sleep(0.01)")
    written = on_terminal(source, rows=10)
    running = {int(index) for index in re.findall(r"stage (\d+)\x1b[^\n]*%", written)}
    assert any(index > 20 for index in running)
    assert [line[2:10].strip() for line in screen(written) if line] == list(many)


def test_no_color_leaves_the_marks():
    written = on_terminal(BUILD.replace("print_or_raise()", "pass"), env={"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[\d;]*3\dm", written)
    assert "✓" in written


def run(observer, stages=("distil",)):
    with observer:
        observer.plan(("teacher", *stages))
        observer.finish("teacher", 0.0, True, "accuracy 0.97")
        for stage in stages:
            observer.start(stage)
            for step in range(3):
                observer.advance(stage, step + 1, 3, f"loss {step}")
            observer.warn(stage, "mind")
            observer.finish(stage, 61.0, False, "accuracy 0.96")


def test_plain_lines(capsys):
    run(Plain())
    assert capsys.readouterr().out.splitlines() == [
        "teacher: up to date, accuracy 0.97",
        "distil: started",
        "warning: distil: mind",
        "distil: done in 1 min 01 s, accuracy 0.96",
    ]


def test_plain_reports_progress_every_two_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("edgekd.cli.terminal.plain.time.monotonic", lambda: now[0])
    observer = Plain()
    observer.start("distil")
    for step in range(20):
        now[0] += 0.25
        observer.advance("distil", step + 1, 20, "")
    assert capsys.readouterr().out.splitlines() == ["distil: started", "distil: 8/20", "distil: 16/20"]


def test_verbose_tells_every_note(capsys):
    run(Plain(verbose=True))
    assert capsys.readouterr().out.count("distil: 2/3, loss 1\n") == 1


def test_plain_and_json_name_the_stage_that_was_left(capsys):
    for observer in (Plain(), Json()):
        with observer:
            observer.start("prune")
    *_, plain, _, last = capsys.readouterr().out.splitlines()
    assert plain == "prune: stopped after 0.0 s"
    assert json.loads(last)["event"] == "stopped"


def test_json_is_one_object_a_line(capsys):
    run(Json())
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["plan", "finish", "start", *["advance"] * 3, "warn", "finish"]
    assert events[0] == {"event": "plan", "stages": ["teacher", "distil"]}
    assert events[-1] == {
        "event": "finish",
        "stage": "distil",
        "seconds": 61.0,
        "cached": False,
        "summary": "accuracy 0.96",
    }


def test_quiet_warns_on_stderr_only(capsys):
    run(Quiet())
    assert capsys.readouterr() == ("", "warning: distil: mind\n")


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"json": True, "quiet": True, "terminal": True}, Json),
        ({"json": False, "quiet": True, "terminal": True}, Quiet),
        ({"json": False, "quiet": False, "terminal": False}, Plain),
        ({"json": False, "quiet": False, "terminal": True}, LiveView),
    ],
    ids=["json wins", "quiet", "no terminal", "terminal"],
)
def test_the_observer_that_fits(asked, kind, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert type(choose_observer(verbose=False, **asked)) is kind


def test_a_dumb_terminal_gets_plain_lines():
    source = BUILD.replace("print_or_raise()", "pass")
    written = on_terminal(source, env={"TERM": "dumb"})
    assert "\x1b" not in written
    assert "prune: done in 1 min 01 s" in written


def test_stages_that_run_at_once_each_tell_their_progress(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("edgekd.cli.terminal.plain.time.monotonic", lambda: now[0])
    observer = SerialObserver(Plain())
    for stage in ("profile a", "profile b"):
        observer.start(stage)
    for step in range(10):
        now[0] += 0.5
        for stage in ("profile a", "profile b"):
            observer.advance(stage, step + 1, 10, "")
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("profile a")] == [
        "profile a: started", "profile a: 4/10", "profile a: 8/10",
    ]  # fmt: skip
    assert [line for line in told if line.startswith("profile b: ")][1:] == ["profile b: 4/10", "profile b: 8/10"]


LONG = """
import time
from edgekd.cli.terminal import choose_observer
with choose_observer(json=False, quiet=False, verbose=False, terminal=True) as observer:
    observer.plan(("blame cpu",))
    observer.start("blame cpu")
    time.sleep(0.5)
    observer.advance("blame cpu", 1, 20, "a part")
    time.sleep(0.5)
    observer.advance("blame cpu", 19, 20, "another")
    time.sleep(0.5)
    observer.finish("blame cpu", 1.5, False, "done")
"""


def test_a_stage_tells_how_long_it_goes_on():
    """At a pace of a twentieth in half a second nine seconds are left; at the end none is told."""
    told = re.findall(r" (\d+)%, ([\d.]+) s left", re.sub(r"\x1b\[[\d;]*m", "", on_terminal(LONG)))
    assert {share for share, _ in told} == {"5"}
    assert all(2 <= float(seconds) <= 60 for _, seconds in told)
