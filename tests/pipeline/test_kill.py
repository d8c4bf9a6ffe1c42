"""A build that is killed, at whatever stage, comes to the same result when it is called again."""

import signal

import pytest
from commands import (
    STAGES,
    build_arguments,
    copy_cache,
    edgekd,
    edgekd_begun,
    events,
    outcome,
    signal_at,
    started,
)

#: For each stage the event at which the build is killed.
MOMENTS = {
    "teacher": ("advance", "teacher", 2),
    "distill": ("advance", "distill", 2),
    "prune": ("advance", "prune", 1),
    "export": ("advance", "export", 1),
    "quantize": ("start", "quantize cpu", None),
    "evaluate": ("start", "evaluate cpu", None),
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
    return copy_cache(finished, folder, without=set(later) - ({"export"} if stage != "export" else set()))


@pytest.mark.parametrize("stage", MOMENTS)
def test_a_killed_build_comes_to_the_same_result(built, tmp_path, stage):
    cache = cache_before(stage, built.cache, tmp_path / "cache")
    arguments = build_arguments(tmp_path / "out", cache)
    with edgekd_begun(*arguments, "--json", cwd=tmp_path) as process:
        signal_at(process, MOMENTS[stage], signal.SIGKILL)
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "report.json").exists()

    again = edgekd(*arguments, "--json", cwd=tmp_path)

    assert again.returncode == 0, again.stderr
    assert outcome(cache) == outcome(built.cache)
    assert not list(cache.glob("*.partial"))
    assert not set(started(again.stdout)) & set(STAGES[: STAGES.index(stage)])
    if stage in ("teacher", "distill", "prune"):
        epochs = [e["done"] for e in events(again.stdout) if e["event"] == "advance" and e["stage"] == stage]
        assert not set(epochs) & set(range(1, MOMENTS[stage][2] + 1)), "finished epochs are not trained again"
