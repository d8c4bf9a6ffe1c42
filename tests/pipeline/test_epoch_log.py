"""The figures of epochs reach whoever the recipe names, and an observer."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edgekd.errors import MissingDependency, RecipeError, TaskError
from edgekd.pipeline.epoch_log import logged
from edgekd.stages.progress import Silent, StageReporter

FIGURES = {"loss": 0.5, "validation": 0.75}


class Remembers(Silent):
    def __init__(self):
        self.epochs, self.warnings = [], []

    def epoch(self, stage, number, figures):
        self.epochs.append((stage, number, figures))

    def warn(self, stage, message):
        self.warnings.append(message)


def report(tmp_path, name, count=2):
    """Report some epochs through the recipe's log; return what the observer behind it heard."""
    observer = Remembers()
    reporter = StageReporter(logged(observer, name, tmp_path / "cache"), "qat cpu")
    for number in range(1, count + 1):
        reporter.epoch(number, {**FIGURES, "loss": number / 4})
    assert [number for _, number, _ in observer.epochs] == list(range(1, count + 1))
    return observer


def own(tmp_path, body):
    file = tmp_path / "mylog.py"
    file.write_text(f"def log(stage, epoch, figures):\n    {body}\n")
    return f"{file}:log"


def test_a_function_of_ones_own_is_called_with_each_epoch(tmp_path):
    name = own(tmp_path, f"open({str(tmp_path / 'told')!r}, 'a').write(repr((stage, epoch, figures)) + '\\n')")
    assert report(tmp_path, name).warnings == []
    assert (tmp_path / "told").read_text().splitlines() == [
        repr(("qat cpu", number, {"loss": number / 4, "validation": 0.75})) for number in (1, 2)
    ]


def test_its_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "beside_mylog.py").write_text("LINES = []\n")
    name = own(tmp_path, "import beside_mylog; beside_mylog.LINES.append(epoch)")
    assert report(tmp_path, name).warnings == []


def test_one_that_fails_is_told_once_and_ends_no_training(tmp_path):
    (warning,) = report(tmp_path, own(tmp_path, "raise ConnectionError('no server')")).warnings
    assert warning.startswith(f"log {tmp_path}/mylog.py:log: ConnectionError: ")
    assert "no server" in warning
    assert warning.endswith("; it is called no more, and training goes on")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("log = 3", "log", "is an int, must be a function of a stage, an epoch and figures"),
        ("import nowhere_at_all", "log", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def log(): ...", "lock", "has no 'lock'; did you mean 'log'"),
    ],
)
def test_what_is_no_function_is_refused_before_anything_is_trained(tmp_path, text, name, message):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises((RecipeError, TaskError)) as refused:
        logged(Silent(), f"{tmp_path / 'bad.py'}:{name}", tmp_path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tensorboard_finds_the_figures_of_each_stage_in_the_cache(tmp_path):
    report(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "cache" / "tensorboard").glob("*/qat-cpu")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.25), (2, 0.5)]
    assert [event.value for event in events.Scalars("validation")] == [0.75, 0.75]


def test_without_tensorboard_it_is_said_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependency, match=r"'tensorboard', which is not installed: .*edgekd\[tensorboard\]"):
        logged(Silent(), "tensorboard", tmp_path)
