import numpy as np
import pytest

from edgekd.config.recipe import ProfileConfig
from edgekd.devices.schedule import Schedule
from edgekd.runtime.measure.results import Quantile

WIDE, NARROW = Quantile(100, 90, 110), Quantile(100, 99.5, 100.5)


def run(config, inference_s, medians=WIDE):
    """Go through a schedule; return it, and for each process the turns."""
    schedule, turns = Schedule(config, len(inference_s), 0), []
    while True:
        schedule.open(inference_s)
        turns.append(schedule.blocks)
        if schedule.close([medians] * len(inference_s)):
            return schedule, turns


def test_fast_engines_have_all_that_is_asked_for():
    config = ProfileConfig(iterations=2003, cold_starts=8)
    schedule, turns = run(config, {"a": 5e-5, "b": 2e-4})
    assert (schedule.processes, schedule.block, schedule.lead_in) == (8, 50, 5)
    assert [sum(process) for process in turns] == [len(part) for part in np.array_split(range(2003), 8)]
    assert (schedule.warmup("a"), schedule.layer_runs("a")) == (100, 100)


@pytest.mark.parametrize("inference_s", [0.04, 0.4, 4.0, 40.0])
def test_slow_engines_keep_the_limit(inference_s):
    config = ProfileConfig(limit_s=60)
    engines = {"a": inference_s, "b": inference_s / 2}
    schedule, turns = run(config, engines)
    inferences = sum(map(sum, turns))
    assert inferences >= 6  # fewer tell no interval
    untimed = schedule.processes * sum(schedule.warmup(name) * t for name, t in engines.items())
    untimed += sum(schedule.lead_in for process in turns for _ in process) * 1.5 * inference_s * 2
    layers = sum(schedule.layer_runs(name) * t for name, t in engines.items())
    whole_s = inferences * 1.5 * inference_s * 2 + untimed + layers
    least_s = (6 * 2 + 2 + 2 + 5) * 1.5 * inference_s  # six timed, one lead-in for both, a warm-up, five for layers
    assert whole_s <= 60 * 1.05 + least_s
    assert len({sum(process) for process in turns}) == 1
    assert all(block <= schedule.block for process in turns for block in process)


def test_a_limit_of_0_is_none():
    config = ProfileConfig(limit_s=0, iterations=300)
    schedule, turns = run(config, {"a": 10.0}, NARROW)
    assert (sum(map(sum, turns)), schedule.warmup("a"), schedule.layer_runs("a")) == (300, 100, 100)


def test_a_long_profile_ends_when_every_median_is_known(monkeypatch):
    config = ProfileConfig(limit_s=1000)
    assert run(config, {"a": 0.1}, NARROW)[0].processes == 8  # it did not take long
    monkeypatch.setattr("edgekd.devices.schedule._ENOUGH_S", 0)
    assert run(config, {"a": 0.1}, NARROW)[0].processes == 3
    assert run(config, {"a": 0.1}, WIDE)[0].processes == 8
    assert run(config, {"a": 0.1}, None)[0].processes == 8
