"""A build that is killed, at whatever stage, comes to the same result when it is called again."""

import signal

from commands import STAGES, build_arguments, edgekd, edgekd_begun, events, outcome, signal_at

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


def test_a_build_that_is_killed_at_one_stage_after_another_comes_to_the_same_result(built, tmp_path):
    cache = tmp_path / "cache"
    arguments = [*build_arguments(tmp_path / "out", cache), "--json"]
    before = None
    for stage, moment in MOMENTS.items():
        with edgekd_begun(*arguments, cwd=tmp_path) as process:
            told = signal_at(process, moment, signal.SIGKILL)
            process.wait(timeout=60)
        assert process.returncode == -signal.SIGKILL, stage
        assert not (tmp_path / "out" / "report.json").exists()
        _assert_it_went_on(told, before)
        before = stage

    last = edgekd(*arguments, cwd=tmp_path)

    assert last.returncode == 0, last.stderr
    _assert_it_went_on(events(last.stdout), before)
    assert outcome(cache) == outcome(built.cache)
    assert not list(cache.glob("*.partial"))


def _assert_it_went_on(told, stage):
    """Check that a build that was killed at a stage does nothing again that it had finished."""
    if stage is None:
        return
    again = {event["stage"].split()[0] for event in told if event["event"] == "start"}
    assert stage in again
    assert not again & set(STAGES[: STAGES.index(stage)])
    if stage in ("teacher", "distill", "prune"):
        epochs = [event["done"] for event in told if event["event"] == "advance" and event["stage"] == stage]
        assert not set(epochs) & set(range(1, MOMENTS[stage][2] + 1)), "finished epochs are not trained again"
