from dataclasses import dataclass, replace

import pytest

from edgekd.errors import MissingDependency
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Silent
from edgekd.stages.stage import Runner, Stage, StageSpec, library_versions


@dataclass(frozen=True)
class Weighed:
    grams: float
    parts: dict[str, list[int]]


@dataclass(frozen=True)
class Counted:
    pieces: int


WEIGH = StageSpec("weigh", 1, Weighed, summary=lambda weighed: f"{weighed.grams} g")


class Recorder(Silent):
    def __init__(self):
        self.events = []

    def start(self, stage):
        self.events.append(("start", stage))

    def advance(self, stage, done, total, note):
        self.events.append(("advance", stage, done, total, note))

    def warn(self, stage, message):
        self.events.append(("warn", stage, message))

    def finish(self, stage, seconds, cached, summary):
        self.events.append(("finish", stage, cached, summary))


@pytest.fixture
def observer():
    return Recorder()


@pytest.fixture
def runner(tmp_path, observer):
    return Runner(Cache(tmp_path), observer)


@pytest.fixture
def runs():
    return []


@pytest.fixture
def stage(runs):
    def run(folder, report):
        runs.append(folder)
        (folder / "file").write_text("content")
        report.advance(1, 2, "half")
        report.warn("heavy")
        return Weighed(0.1, {"a": [1]})

    return Stage(WEIGH, "cpu", {"config": {"x": 1}, "inputs": {"scale": "key"}}, run)


def test_runs_once_and_tells_the_observer(runner, stage, runs, observer):
    first, again = runner.execute(stage), runner.execute(stage)
    assert len(runs) == 1
    assert first == again
    assert first.result == Weighed(0.1, {"a": [1]})
    assert (first.folder / "file").read_text() == "content"
    assert first.folder.name == first.key
    assert first.key.startswith("weigh-")
    assert observer.events == [
        ("start", "weigh cpu"),
        ("advance", "weigh cpu", 1, 2, "half"),
        ("warn", "weigh cpu", "heavy"),
        ("finish", "weigh cpu", False, "0.1 g"),
    ]
    assert [(time.cached, time.summary) for time in runner.times] == [(False, "0.1 g")]


def test_a_later_build_finds_it(runner, stage, runs, tmp_path):
    done = runner.execute(stage)
    later = Recorder()
    assert Runner(Cache(tmp_path), later).execute(stage) == done
    assert later.events == [("finish", "weigh cpu", True, "0.1 g")]
    assert len(runs) == 1


def test_a_record_of_another_shape_is_stale(runner, stage, runs, tmp_path):
    runner.execute(stage)
    spec = replace(WEIGH, result=Counted, summary=str)
    narrower = replace(stage, spec=spec, run=lambda _folder, _report: Counted(3))
    assert Runner(Cache(tmp_path), Silent()).execute(narrower).result == Counted(3)
    assert Runner(Cache(tmp_path), Silent()).execute(stage).result == Weighed(0.1, {"a": [1]})
    assert len(runs) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"spec": replace(WEIGH, version=2)},
        {"depends": {"config": {"x": 2}, "inputs": {"scale": "key"}}},
        {"depends": {"config": {"x": 1}, "inputs": {"scale": "other"}}},
        {"depends": {"config": {"x": 1}}},
        {"spec": replace(WEIGH, name="measure")},
    ],
    ids=["version", "config", "input", "fewer keys", "kind"],
)
def test_whatever_it_depends_on_makes_it_run_again(runner, stage, runs, change):
    first = runner.execute(stage)
    assert runner.execute(replace(stage, **change)).key != first.key
    assert len(runs) == 2


def test_a_label_alone_does_not(runner, stage, runs):
    """Two targets that ask for the same share the result: what differs is in ``depends``."""
    runner.execute(stage)
    runner.execute(replace(stage, label="board"))
    assert len(runs) == 1


def test_a_runner_makes_a_stage_of_a_spec_its_settings_and_its_inputs(runner, observer, runs):
    def run(folder, _report):
        runs.append(folder)
        return Weighed(0.1, {})

    spec = replace(WEIGH, libraries=("msgspec",))
    first = runner(spec, label="cpu", config={"x": 1}, inputs={"scale": "key"}, run=run)
    assert runner(spec, label="board", config={"x": 1}, inputs={"scale": "key"}, run=run) == first
    assert [event[:2] for event in observer.events] == [
        ("start", "weigh cpu"),
        ("finish", "weigh cpu"),
        ("finish", "weigh board"),
    ]
    changed = [
        runner(spec, config={"x": 2}, inputs={"scale": "key"}, run=run),
        runner(spec, config={"x": 1}, inputs={"scale": "other"}, run=run),
        runner(replace(spec, libraries=("msgspec", "click")), config={"x": 1}, inputs={"scale": "key"}, run=run),
    ]
    assert len({first.key, *(done.key for done in changed)}) == len(runs) == 4
    with pytest.raises(MissingDependency, match="'no-such-package'"):
        runner(replace(spec, libraries=("no-such-package",)), run=run)


def test_a_stage_that_fails_runs_again(runner, stage, runs, observer):
    def fail(folder, report):
        (folder / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        runner.execute(replace(stage, run=fail))
    assert observer.events == [("start", "weigh cpu")]
    runner.execute(stage)
    assert len(runs) == 1
    assert not (runs[0] / "half").exists()


def test_an_altered_artefact_is_made_again(runner, stage, runs):
    done = runner.execute(stage)
    (done.folder / "file").write_text("altered")
    assert runner.execute(stage) == done
    assert (done.folder / "file").read_text() == "content"
    assert len(runs) == 2


def test_library_versions_need_the_libraries():
    assert set(library_versions(["msgspec", "click"], "build")) == {"msgspec", "click"}
    with pytest.raises(MissingDependency, match=r"'no-such-package'.*pip install \"edgekd\[build\]\""):
        library_versions(["click", "no-such-package"], "build")
