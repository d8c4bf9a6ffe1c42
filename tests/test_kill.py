"""A build that is killed, at whatever stage, comes to the same result when it is called again."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from commands import STAGES, build_arguments, edgekd, environment, events, outcome, started

#: For each stage the event at which the build is killed.
MOMENTS = {
    "teacher": ("advance", "teacher", 2),
    "distill": ("advance", "distill", 2),
    "prune": ("advance", "prune", 1),
    "export": ("advance", "export", 1),
    "quantize": ("start", "quantize cpu", None),
    "engine": ("advance", "engine cpu", 1),
    "check": ("start", "check cpu", None),
    "profile": ("advance", "profile cpu", 5),
    "bundle": ("start", "bundle cpu", None),
}


def cache_before(stage, finished, folder):
    """Copy what an undisturbed build left before a stage.

    The export comes along: it takes most of a build's time, and is right only if what is made before it comes out as
    it did. Where it is killed itself it is left out.
    """
    later = STAGES[STAGES.index(stage) :]
    without = set(later) - ({"export"} if stage != "export" else set())
    shutil.copytree(finished, folder, ignore=lambda _, names: [n for n in names if n.split("-")[0] in without])
    return folder


def kill_at(moment, arguments, cwd):
    """Start a build and kill it, and all that it started, as soon as it says that it is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekd", *map(str, arguments), "--json"],
        cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    with process.stdout:
        for line in process.stdout:
            event = json.loads(line)
            if (event["event"], event.get("stage"), event.get("done")) == moment:
                os.killpg(process.pid, signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("stage", MOMENTS)
def test_a_killed_build_comes_to_the_same_result(built, tmp_path, stage):
    cache = cache_before(stage, built.cache, tmp_path / "cache")
    arguments = build_arguments(tmp_path / "out", cache)
    kill_at(MOMENTS[stage], arguments, tmp_path)
    assert not (tmp_path / "out" / "report.json").exists()

    again = edgekd(*arguments, "--json", cwd=tmp_path)

    assert again.returncode == 0, again.stderr
    assert outcome(cache) == outcome(built.cache)
    assert not list(cache.glob("*.partial"))
    assert started(again.stdout)[:1] in ([stage], [STAGES[min(STAGES.index(stage) + 1, 8)]], [])
    if stage in ("teacher", "distill", "prune"):
        epochs = [e["done"] for e in events(again.stdout) if e["event"] == "advance" and e["stage"] == stage]
        assert not set(epochs) & set(range(1, MOMENTS[stage][2] + 1)), "finished epochs are not trained again"
