"""Whatever a task does or returns, it works or ends as one line that says what is wrong."""

import itertools
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, edgekd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small import TAPS, TwoTowers, reporter, split

from edgekd.config.recipe import TaskConfig, Training
from edgekd.errors import EdgekdError, TaskError
from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.objective import SupervisedObjective
from edgekd.training.loop.evaluate import ground_truth, probe
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.weights import build
from edgekd.training.taps.taps import TappedModel, resolve_taps
from edgekd.training.task.loading import load_task
from edgekd.training.task.protocol import SPLITS, ArraySplit, Modality, Sample

#: What the task of the test does at each place, by name: a function of what it would have returned.
DOES = {}

TASK = """
from test_broken_tasks import Breakable, at
at("import")

class Task(Breakable):
    pass
"""

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def at(place, value=None):
    """Do what the task does at a place, and return what it returns there."""
    return DOES[place](value) if place in DOES else value


class Network(TwoTowers):
    def forward(self, a, b):
        return at("forward", super().forward(a, b))


class Data:
    """A dataset that reads one sample at a time."""

    def __init__(self, name):
        self.name, self.whole = name, split(name, 8)

    def __len__(self):
        return at("len", len(self.whole))

    def __getitem__(self, index):
        sample = self.whole[index]
        return at("sample", Sample(**{key: at(f"sample.{key}", getattr(sample, key)) for key in SAMPLE}))


SAMPLE = ("id", "inputs", "label", "group", "missing")
COLUMNS = ("ids", "inputs", "labels", "groups", "present")
ATTRIBUTES = ("modalities", "classes", "files", "metric_name", "higher_is_better", "teacher_taps")


class Breakable:
    """A task that is right where nothing is done at a place."""

    def __init__(self):
        at("init")
        self.modalities = [Modality("a", at("shape", (6,))), Modality(at("name", "b"), (5,))]
        self.classes, self.files, self.metric_name, self.higher_is_better = ["x", "y", "z"], [__file__], "score", True
        self.teacher_taps = {name: tap.module for name, tap in TAPS.items()}
        for name in ATTRIBUTES:
            setattr(self, name, at(name, getattr(self, name)))

    def splits(self):
        made = {name: Data(name) for name in SPLITS}
        whole = split("val", 8)
        columns = {name: at(f"columns.{name}", getattr(whole, name)) for name in COLUMNS}
        return at("splits", {**made, "val": at("split", ArraySplit(**columns))})

    def teacher(self):
        return at("teacher", Network())

    def student(self):
        return at("student", Network())

    def metric(self, logits, labels):
        return at("metric", (logits.argmax(1) == labels).mean())


@pytest.fixture
def exercise(tmp_path):
    """Load the task, read all of its samples, and train its teacher."""
    file = tmp_path / "task.py"
    file.write_text(TASK)

    def exercise():
        loaded = load_task(TaskConfig(name=f"{file}:Task"))
        for samples in loaded.splits.values():
            ground_truth(samples)
        loaded.fingerprint()
        loaded.class_names("logits", 3)
        taps = resolve_taps("teacher", {}, loaded.task.teacher_taps, loaded.modalities)
        with loaded.errors_in("stage 'teacher'"):
            build(loaded.task.student, 0)
            model = build(loaded.task.teacher, 0)
            with TappedModel(model, taps) as tapped:
                run = Fit(Training(epochs=1, batch_size=8), 0, tmp_path / "work", reporter())
                fit(model, SupervisedObjective(tapped), loaded.splits["train"], lambda: {"validation": 0.0}, run)
            loaded.metric(probe(model, taps, loaded.splits["val"]).answer, ground_truth(loaded.splits["val"]).labels)
        (tmp_path / "work" / "checkpoint.pt").unlink()

    return exercise


def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    torch_state = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    return Path.cwd(), np.geterr(), sys.stdout, sys.stderr, handlers, torch_state, torch.get_num_threads()


def told(exercise, **does):
    """Return the line that a task ends as; "" where it works."""
    before = state()
    DOES.clear()
    DOES.update(does)
    line = ""
    try:
        exercise()
    except EdgekdError as error:
        line, code = str(error), error.exit_code
    finally:
        DOES.clear()
        assert state() == before
    assert not line or ("\n" not in line and code == TaskError.exit_code)
    return line


def test_a_right_task_works(exercise):
    assert told(exercise) == ""


PLACES = ["import", "init", "splits", "len", "sample", "teacher", "student", "forward", "metric"]


class Strange(BaseException):
    """What a user's library may raise that is no Exception."""


def raises(error):
    def does(_):
        raise error

    return does


ERRORS = [
    (SystemExit(0), "calls sys.exit(0) ("),
    (SystemExit(), "calls sys.exit() ("),
    (Strange("gone"), "Strange: gone ("),
    (OSError(5, "broken"), "OSError: [Errno 5] broken ("),
    (StopIteration(), "StopIteration ("),
    (RuntimeError("two\nlines"), "RuntimeError: two lines ("),
]


@pytest.mark.parametrize("place", PLACES)
def test_what_a_task_raises_is_one_line_with_its_place(exercise, place):
    for error, said in ERRORS:
        line = told(exercise, **{place: raises(error)})
        assert said in line
        assert ("task.py:" if place == "import" else "test_broken_tasks.py:") in line


@pytest.mark.parametrize("place", ["import", "sample", "forward"])
def test_the_users_own_interrupt_passes_through(exercise, place):
    with pytest.raises(KeyboardInterrupt):
        told(exercise, **{place: raises(KeyboardInterrupt())})


def disturbs(change):
    def does(value):
        change()
        return value

    return does


def disturb():
    np.seterr(all="raise")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout, sys.stderr = sys.stderr, sys.stdout


@pytest.mark.parametrize("place", ["import", "init", "teacher", "student", "metric"])
def test_what_a_task_changes_in_the_process_is_undone(exercise, place):
    assert told(exercise, **{place: disturbs(disturb)}) == ""


def test_a_thread_that_would_not_let_the_command_end_is_named(exercise):
    end = threading.Event()

    def starts(**options):
        return disturbs(lambda: threading.Thread(target=lambda: end.wait(30), name="feeder", **options).start())

    assert "starts the thread 'feeder', which is still running" in told(exercise, teacher=starts())
    assert told(exercise, teacher=starts(daemon=True)) == ""
    end.set()
    assert told(exercise, teacher=starts()) == "", "it ends in time"


def test_a_closed_stream_is_named(exercise, monkeypatch):
    with open(os.devnull, "w") as stream:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", stream)
        before = sys.stderr
        DOES["teacher"] = disturbs(stream.close)
        with pytest.raises(TaskError, match=r"^teacher\(\): closes sys.stderr$"):
            exercise()
        DOES.clear()
        assert sys.stderr is not before
        sys.stderr.write("")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.just("\udc80"),
    st.just("a\0b"),
    st.just("x" * 100_000),
    st.binary(max_size=3),
    st.sampled_from([object(), TwoTowers, len, torch.zeros(2), torch.zeros(2, 3), np.zeros(4), np.array([None, 1])]),
    st.sampled_from([torch.zeros(8, 6, dtype=torch.float64), np.ma.masked_array(np.zeros((8, 6), np.float32), True)]),
    st.builds(itertools.count),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=2), st.binary(max_size=2)), max_size=9),
    st.dictionaries(st.text(max_size=2), st.one_of(st.none(), st.integers()), max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([torch.zeros(6), torch.ones(5), np.zeros(6)]), max_size=3),
    st.sets(st.text(max_size=2), max_size=3),
)
WHERE = st.sampled_from(
    [
        *("splits", "split", "sample", "teacher", "student", "forward", "metric", "shape", "name", *ATTRIBUTES),
        *(f"sample.{name}" for name in SAMPLE),
        *(f"columns.{name}" for name in COLUMNS),
    ]
)


@QUICK
@given(place=WHERE, junk=JUNK, late=st.booleans())
@example(place="files", junk=[5], late=False)
@example(place="classes", junk=3, late=False)
@example(place="sample.label", junk=2**70, late=True)
@example(place="columns.labels", junk=np.full(8, 2**40), late=False)
@example(place="columns.ids", junk=["\udc80", *"abcdefg"], late=False)
@example(place="metric", junk=np.zeros(2), late=False)
def test_whatever_a_task_returns_it_works_or_says_what_is_wrong(exercise, place, junk, late):
    calls = itertools.count()
    told(exercise, **{place: lambda right: right if late and next(calls) < 9 else junk})


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("classes", 3, "its classes is an int, must be a list of the classes' names"),
        ("classes", "xyz", "its classes is a str, must be a list"),
        ("classes", {"x", "y", "z"}, "its classes is a set, must be a list"),
        ("classes", ["x", "x", "z"], "its classes have 'x' twice"),
        ("classes", ["x", "", "z"], "a name in its classes is empty"),
        ("classes", ["x", None, "z"], "its classes hold None, each must be a name"),
        ("classes", ["x", "\udc80", "z"], "a name in its classes is '\\udc80', which holds half a surrogate pair"),
        ("classes", ["x", "y"], "names 2 classes, but its networks give 3 in 'logits'"),
        ("files", [5], "its files hold an int (5), each must be a path"),
        ("files", "data.npz", "its files is a str, must be a list of paths"),
        ("files", ["/dev/zero"], "its files hold /dev/zero, which is a device; each must be a file or a folder"),
        ("shape", 6, "modality 'a' has the shape 6, must be a tuple of whole numbers"),
        ("shape", (-1,), "modality 'a' has the shape (-1,), must be"),
        ("shape", (6.0,), "modality 'a' has the shape (6.0,), must be"),
        ("modalities", ["a", "b"], "its modalities hold a str, each must be an edgekd.Modality"),
        ("split", iter([]), "split 'val': is a list_iterator, must be an edgekd.ArraySplit or a dataset"),
        ("splits", {"train": [], "valid": [], "test": []}, "lacks val, calibration; it has valid"),
        ("sample.id", b"train-0", "split 'train': the id of sample 0 is a bytes (b'train-0'), must be a text (str)"),
        ("sample.id", "\udc80", "split 'train': the id of sample 0 is '\\udc80', which holds half a surrogate pair"),
        ("sample.label", 1.0, "split 'train': sample 'train-0' has the label 1.0, a float; must be a class number"),
        (
            "sample.label",
            -1,
            "sample 'train-0' has the label -1; classes are numbered from 0, and -100 stands for none",
        ),
        ("sample.missing", "ab", "sample 'train-0' lacks 'ab', must be a tuple of modalities' names"),
        ("sample.inputs", {"a": torch.zeros(6), "b": torch.zeros(4)}, "split 'train': sample 'train-0' has inputs"),
        ("sample.inputs", {"a": torch.zeros(6), "bb": torch.zeros(5)}, "did you mean 'b'?"),
        ("columns.ids", [b"x"] * 8, "a split's ids hold a bytes (b'x'), each must be a text"),
        ("columns.ids", itertools.count(), "a split's ids are a count, must be a list of texts"),
        ("columns.labels", ["x"] * 8, "a split's labels must be class indices"),
        ("columns.labels", [0] * 7 + [-5], "split 'val': sample 'val-7' has the label -5"),
        ("columns.labels", np.zeros(8), "a split's labels are torch.float64"),
        ("columns.inputs", {"a": np.array([np.zeros(2), np.zeros(3)], object), "b": np.zeros(5)}, "unlike shapes make"),
        ("columns.inputs", {"a": [None] * 8, "b": np.zeros(5)}, "a split's input 'a' is a list, must be one tensor"),
        ("columns.present", {"a": [3] * 8}, "a split's present 'a' is torch.int64 of shape (8,), must be one truth"),
        ("metric", None, "the task's score returned None, must return a number; is its 'return' missing?"),
        ("metric", "good", "the task's score: ValueError: could not convert string to float: 'good'"),
        ("forward", None, "but gave a NoneType; is the 'return' of its forward missing?"),
        ("teacher_taps", ["a"], "its teacher_taps is a list, must be a dict with a tap for each modality"),
    ],
)
def test_what_is_wrong_is_named(exercise, place, value, said):
    assert said in told(exercise, **{place: lambda _: value})


def test_a_sample_that_goes_wrong_later_is_named(exercise):
    calls = itertools.count()
    line = told(exercise, **{"sample.inputs": lambda x: x if next(calls) < 52 else {**x, "b": torch.zeros(9)}})
    assert "has inputs {'a': (6,), 'b': (9,)}, but the task's modalities are {'a': (6,), 'b': (5,)}" in line
    assert "sample 'train-" in line


def test_a_pipe_among_the_files_is_refused_and_not_waited_for(exercise, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "which is a pipe; each must be a file" in told(exercise, files=lambda _: [tmp_path / "pipe"])


def test_big_endian_and_transposed_arrays_are_what_they_say(exercise):
    x = np.arange(48, dtype=np.float32).reshape(6, 8)
    made = ArraySplit(
        list("abcdefgh"), {"a": np.asfortranarray(x.T), "b": x.T.astype(">f4")}, [0] * 7 + [UNLABELLED], ["g"] * 8
    )
    assert torch.equal(made.inputs["a"], torch.from_numpy(x.T.copy()))
    assert torch.equal(made.inputs["a"], made.inputs["b"])


def test_other_splits_are_left_alone(exercise):
    assert told(exercise, splits=lambda splits: {**splits, "unlabelled": None, 5: object()}) == ""


def test_a_dataset_of_a_library_that_reads_several_samples_at_once(exercise):
    subset = torch.utils.data.Subset(Data("test"), range(6))
    assert told(exercise, splits=lambda splits: {**splits, "test": subset}) == ""
    subset = torch.utils.data.Subset([*Data("test"), 3], [8, 0])
    assert "__getitem__ returned an int, must return an edgekd.Sample" in told(
        exercise, splits=lambda splits: {**splits, "test": subset}
    )


def test_a_command_never_ends_well_because_a_task_says_so(tmp_path):
    (tmp_path / "task.py").write_text(
        "from small import TAPS, SmallTask\n"
        "class Task(SmallTask):\n"
        "    teacher_taps = student_taps = TAPS\n"
        "    def metric(self, logits, labels):\n"
        "        raise SystemExit(0)\n"
    )
    (tmp_path / "edgekd.toml").write_text('[task]\nname = "task.py:Task"\n')
    shutil.copy(ROOT / "tests" / "training" / "small.py", tmp_path)
    done = edgekd("build", "--output", "out", "--cache", "cache", cwd=tmp_path)
    assert done.returncode == TaskError.exit_code, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the task's metric: calls sys.exit(0) (")
    assert "Traceback" not in done.stderr
