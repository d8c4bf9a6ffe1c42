"""The command line under torchrun: two processes train, one builds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from commands import LEARNING, SHIPPING, build_arguments, edgekd, environment, events, started

from edgekd.stages.cache import CHECKPOINT

QUICK = {
    "teacher__epochs": 1, "prune__epochs": 1, "quantize__calibration": "minmax", "quantize__repair": "off",
    "distill__cache_teacher": "true", "distill__epochs": 15,
}  # fmt: skip
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "edgekd")


def arguments(**changes):
    return [*build_arguments("out", "cache", **{**QUICK, **changes}), "--json"]


def begun(folder, *extra):
    # A session of its own: in the end nothing of it is left.
    return subprocess.Popen(
        [*TORCHRUN, *map(str, extra)], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def second(parent):
    """Return the process of rank 1 that torchrun started."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            told = dict(item.partition("=")[::2] for item in (entry / "environ").read_text().split("\0"))
            mine = (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(parent)
        except OSError:
            continue
        if mine and told.get("RANK") == "1":
            return int(entry.name)
    raise AssertionError


def test_a_build_of_two_processes_one_of_which_is_killed_goes_on_and_is_that_of_one(tmp_path):
    process = begun(tmp_path, *arguments())
    try:
        while not list((tmp_path / "cache").glob(f"distill-*.partial/{CHECKPOINT}")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        os.kill(second(process.pid), signal.SIGKILL)
        killed_at = time.monotonic()
        _, errors = process.communicate(timeout=120)
        assert time.monotonic() - killed_at < 60
        assert process.returncode != 0
        assert "Signal 9 (SIGKILL)" in errors or "another process of this build ended" in errors
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    ended = subprocess.run(
        [*TORCHRUN, *map(str, arguments())], cwd=tmp_path, env=environment(), capture_output=True, text=True,
        check=False, timeout=500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = events(ended.stdout)  # of one process, or the same line would stand there twice
    assert [event["event"] for event in told].count("plan") == 1
    assert started(ended.stdout) == [*LEARNING[1:], *SHIPPING]
    epochs = [event["done"] for event in told if event["event"] == "advance" and event["stage"] == "distill"]
    assert epochs[0] > 1
    assert epochs == list(range(epochs[0], 16))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["targets"]
    again = edgekd(*arguments(), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert started(again.stdout) == []
