import dataclasses
import random as stdlib_random
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from small import SmallTask, split
from torch.utils.data import DataLoader

from edgekd.config.recipe import TaskConfig
from edgekd.errors import DataError, TaskError
from edgekd.stages.metrics import accuracy
from edgekd.stages.user_code import source_digests
from edgekd.training.loop.evaluate import ground_truth
from edgekd.training.task.loading import LoadedTask, load_task
from edgekd.training.task.protocol import SPLITS, UNLABELLED, ArraySplit, Modality, Sample, collate, resized

USERS_FILE = """
import torch
from torch import nn
from edgekd.training.task.protocol import ArraySplit, Modality

class Mine:
    modalities = [Modality("a", (2,)), Modality("b", (3,))]

    def __init__(self, count: int = 4, *, scale=1.0):
        self.count, self.scale = count, scale

    def splits(self):
        return {name: self.split(name) for name in ("train", "val", "calibration", "test")}

    def split(self, name):
        inputs = {m.name: self.scale * torch.ones(self.count, *m.shape) for m in self.modalities}
        return ArraySplit([f"{name}-{i}" for i in range(self.count)], inputs, torch.zeros(self.count).long())

    def teacher(self):
        return nn.Linear(2, 2)

    student = teacher
"""


@pytest.fixture(autouse=True)
def _imports_are_undone(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    def write(text=USERS_FILE, name="mine.py", more=""):
        path = tmp_path / name
        path.write_text(text + textwrap.dedent(more), encoding="utf-8")
        return path

    return write


def load(path, name="Mine", **options):
    return load_task(TaskConfig(name=f"{path}:{name}", options=options))


def test_a_task_from_a_file(write):
    path = write()
    loaded = load(path, count=5)
    assert loaded.modalities == ["a", "b"]
    assert len(loaded.splits["train"]) == 5
    assert loaded.sources == (path.resolve(),)
    assert (loaded.files, loaded.metric_name, loaded.higher_is_better) == (None, "accuracy", True)


def test_a_task_from_a_module(write, monkeypatch):
    path = write(name="a_module_of_mine.py")
    monkeypatch.syspath_prepend(str(path.parent))
    assert load_task(TaskConfig(name="a_module_of_mine:Mine")).sources == (path.resolve(),)


def test_a_task_from_a_function(write):
    path = write(more="\ndef make(count):\n    return Mine(count)\n")
    assert len(load(path, "make", count=3).splits["val"]) == 3


def test_a_shipped_task():
    loaded = load_task(TaskConfig(name="digits"))
    assert loaded.modalities == ["fou", "mor", "zer"]
    assert len(loaded.splits["train"]) == 1200


def test_a_tasks_own_metric(write):
    more = """
        class Error(Mine):
            metric_name, higher_is_better = "error", False
            files = ["data.bin"]
            def metric(self, logits, labels):
                return (logits.argmax(-1) != labels).mean()
    """
    loaded = load(write(more=more), "Error")
    assert (loaded.metric_name, loaded.higher_is_better) == ("error", False)
    assert loaded.metric(torch.eye(2).numpy(), torch.tensor([0, 0]).numpy()) == 0.5
    assert [str(file) for file in loaded.files] == ["data.bin"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "no task 'digit'; did you mean 'digits'.*'path/to/file.py:Name'"),
        ("no_such_package_here.tasks:Mine", "task module 'no_such_package_here.tasks' is not installed"),
        ("{folder}/other.py:Mine", "other.py: no such task file"),
        ("{folder}/mine.py:Mein", "mine.py: defines no 'Mein'; did you mean 'Mine'"),
    ],
)
def test_a_wrong_name_is_explained(write, name, message):
    folder = write().parent
    with pytest.raises(TaskError, match=message):
        load_task(TaskConfig(name=name.format(folder=folder)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cuont": 3}, "unexpected keyword argument 'cuont'"), ({"count": 3, "more": 1}, "'more'")],
)
def test_a_wrong_option_is_explained(write, options, message):
    with pytest.raises(TaskError, match=f"cannot be made with options .*{message}"):
        load(write(), **options)


def test_a_lacking_option_is_explained(write):
    with pytest.raises(TaskError, match="missing a required argument: 'count'"):
        load(write(more="\ndef make(count):\n    return Mine(count)\n"), "make")


@pytest.mark.parametrize(
    "method", ["def __init__(self):", "def splits(self):", "def split(self, name):", "def __init__(self, x=1):"]
)
def test_an_error_inside_the_users_own_code_is_one_line_with_its_place(write, method):
    path = write(more=f"\nclass Broken(Mine):\n    {method}\n        torch.ones(2) @ torch.ones(3)\n")
    line = path.read_text().splitlines().index("        torch.ones(2) @ torch.ones(3)") + 1
    with pytest.raises(TaskError, match=rf"RuntimeError: .*size.* \({path}:{line}\)$") as caught:
        load(path, "Broken")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_error_while_reading_a_sample_names_the_users_line(write):
    more = """
        class Split(list):
            def __getitem__(self, i):
                return {}["signal"]
        class Broken(Mine):
            def split(self, name):
                return Split([1])
    """
    path = write(more=more)
    with pytest.raises(TaskError, match=rf"KeyError: 'signal' \({path}:\d+\)$"):
        load(path, "Broken")


def test_an_error_of_edgekd_stays_what_it_is(write):
    path = write(more="\nfrom edgekd.errors import DataError\ndef make():\n    raise DataError('gone')\n")
    with pytest.raises(DataError, match=r"^gone$"):
        load(path, "make")


def test_a_syntax_error_is_placed(write):
    path = write("x = 1\ndef broken(:\n")
    with pytest.raises(TaskError, match=rf"SyntaxError: invalid syntax \({path}:2\)$"):
        load(path)


def test_an_import_that_the_file_lacks_is_placed(write, monkeypatch):
    path = write("\nimport no_such_package_here\n")
    with pytest.raises(TaskError, match=rf"No module named 'no_such_package_here' \({path}:2\)$"):
        load(path)
    importer = write("import no_such_package_here\n", "importer_of_mine.py")
    monkeypatch.syspath_prepend(str(importer.parent))
    with pytest.raises(TaskError, match=rf"No module named 'no_such_package_here' \({importer}:1\)$"):
        load_task(TaskConfig(name="importer_of_mine:Mine"))


@pytest.mark.parametrize("attribute", ["modalities", "splits", "student"])
def test_a_missing_attribute_is_named(write, attribute):
    text = USERS_FILE.replace("def teacher", "def make_teacher").replace("    student = teacher", "")
    present = {
        "modalities": "modalities = ()",
        "splits": "splits = 1",
        "teacher": "teacher = 1",
        "student": "student = 1",
    }
    del present[attribute]
    more = "\nclass Partial:\n" + "".join(f"    {line}\n" for line in present.values())
    with pytest.raises(TaskError, match=f"lacks {attribute}$"):
        load(write(text + more), "Partial")


BROKEN = {
    "overlap": (
        "def splits(self):\n        return {**super().splits(), 'test': self.split('train')}",
        "sample 'train-0' is in split 'train' and again in 'test'; splits must be disjoint",
    ),
    "repeated id": (
        "def split(self, name):\n        s = super().split(name)\n        s.ids[1] = s.ids[0]\n        return s",
        "sample 'train-0' is in split 'train' and again in 'train'",
    ),
    "missing split": (
        "def splits(self):\n        return {'train': self.split('train'), 'test': self.split('test')}",
        r"splits\(\) lacks val, calibration; it needs train, val, calibration, test",
    ),
    "splits without return": (
        "def splits(self):\n        super().splits()",
        r"splits\(\) returned None, must return a dict of train, val, calibration, test; is its 'return' missing\?",
    ),
    "splits in a list": (
        "def splits(self):\n        return list(super().splits().values())",
        r"splits\(\) returned a list, must return a dict of train, val, calibration, test$",
    ),
    "empty split": (
        "def splits(self):\n        self.count = 4\n        s = super().splits()\n        self.count = 0\n"
        "        return {**s, 'val': self.split('val')}",
        "split 'val': is empty",
    ),
    "wrong shape": (
        "modalities = [Modality('a', (2,)), Modality('b', (3,))]\n    def split(self, name):\n"
        "        return ArraySplit([name], {'a': torch.ones(1, 2), 'b': torch.ones(1, 4)}, torch.zeros(1).long())",
        r"split 'train': sample 'train' has inputs \{'a': \(2,\), 'b': \(4,\)\}, but .* modalities are .*'b': \(3,\)",
    ),
    "wrong modality": (
        "modalities = [Modality('a', (2,)), Modality('c', (3,))]\n    def split(self, name):\n"
        "        return ArraySplit([name], {'a': torch.ones(1, 2), 'b': torch.ones(1, 3)}, torch.zeros(1).long())",
        r"inputs \{'a': \(2,\), 'b': \(3,\)\}, but the task's modalities are \{'a': \(2,\), 'c'",
    ),
    "another order": (
        "def split(self, name):\n        s = super().split(name)\n        if name != 'test':\n            return s\n"
        "        return ArraySplit(s.ids, dict(reversed(s.inputs.items())), s.labels)",
        r"split 'test': sample 'test-0' has its inputs in the order \['b', 'a'\], but .* in the order \['a', 'b'\]",
    ),
    "labels of text": (
        "def split(self, name):\n        return ArraySplit([name], {'a': torch.ones(1, 2)}, ['x'])",
        "a split's labels must be class indices",
    ),
    "wrong dtype": (
        "def split(self, name):\n        return ArraySplit([name], {'a': torch.ones(1, 2), "
        "'b': torch.ones(1, 3).double()}, torch.zeros(1).long())",
        "split 'train': input 'b' of sample 'train' is torch.float64, must be a tensor of float32",
    ),
    "numpy": (
        "def split(self, name):\n        return ArraySplit([name], {'a': torch.ones(1, 2), "
        "'b': torch.ones(1, 3).double().numpy()}, torch.zeros(1).long())",
        "a split's input 'b' is an array of float64, must be one of float32; convert it",
    ),
    "not a sample": (
        "def split(self, name):\n        return [(torch.ones(2), 1)]",
        "its __getitem__ returned a tuple, must return an edgekd.Sample",
    ),
    "lengths": (
        "def split(self, name):\n        return ArraySplit([name], {'a': torch.ones(2, 2), 'b': torch.ones(1, 3)}, "
        "torch.zeros(1).long())",
        "a split has 1 ids, but 2 of 'a'",
    ),
    "labels": (
        "def split(self, name):\n        return ArraySplit([name], {'a': torch.ones(1, 2), 'b': torch.ones(1, 3)}, "
        "torch.zeros(1))",
        "a split's labels are torch.float32 of shape .*must be one int64",
    ),
    "foreign ids": (
        "def split(self, name):\n        class Whole(list):\n            ids = ['x', 'y', 'z']\n"
        "        s = super().split(name)\n        return Whole([s[0], s[1]])",
        "its attribute 'ids' must hold the id of each of its 2 samples, in order",
    ),
    "no modality": ("modalities = []", "has no modality; it needs one at least"),
    "a mask alone": ("modalities = [Modality('a', (2,), of='a')]", "has no modality that is not of another"),
    "a mask of nothing": (
        "modalities = [Modality('words', (2,)), Modality('mask', (2,), of='word')]",
        "'mask' is of 'word', which is no modality of the task; did you mean 'words'",
    ),
    "named twice": ("modalities = [Modality('a', (2,))] * 2", "each is to be named once"),
}


@pytest.mark.parametrize(("body", "message"), BROKEN.values(), ids=BROKEN)
def test_a_task_that_does_not_keep_the_protocol_is_refused(write, body, message):
    with pytest.raises(TaskError, match=message):
        load(write(more=f"\nclass Broken(Mine):\n    {body}\n"), "Broken")


class Lazy:
    """A map-style dataset that makes samples one by one and knows no ids without them."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_any_map_style_dataset_will_do():
    array = split("train", 7)
    lazy = Lazy([array[index] for index in range(7)])
    ours, theirs = (list(DataLoader(s, 3, collate_fn=collate)) for s in (lazy, array))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.ids, one.groups) == (other.ids, other.groups)
        assert torch.equal(one.labels, other.labels)
        assert one.labels.dtype == torch.int64
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in "ab")
    assert ground_truth(lazy).ids.tolist() == ground_truth(array).ids.tolist()


def test_a_task_of_map_style_datasets_loads_and_overlap_is_seen(write):
    more = """
        from edgekd.training.task.protocol import Sample
        class Lazy:
            def __init__(self, name): self.name = name
            def __len__(self): return 3
            def __getitem__(self, i):
                return Sample(f"{self.name}-{i}", {"a": torch.ones(2), "b": torch.ones(3)}, 1, "g")
        class Of(Mine):
            def __init__(self, last="test"): self.last = last
            def splits(self):
                return {"test": Lazy(self.last), **{n: Lazy(n) for n in ("train", "val", "calibration")}}
    """
    path = write(more=more)
    assert ground_truth(load(path, "Of").splits["train"]).groups.tolist() == ["g"] * 3
    with pytest.raises(TaskError, match="sample 'val-0' is in split 'val' and again in 'test'"):
        load(path, "Of", last="val")


def fingerprint(splits):
    return LoadedTask(SmallTask(), splits, ()).fingerprint()


def changed(array, **columns):
    fields = {"ids": array.ids, "inputs": array.inputs, "labels": array.labels, "groups": array.groups, **columns}
    return ArraySplit(**fields)


@pytest.mark.parametrize("lazy", [False, True], ids=["in memory", "map-style"])
@pytest.mark.parametrize("row", [0, 6, 299])  # the inputs of row 6 are not digested when it is map-style
@pytest.mark.parametrize("what", ["ids", "labels", "groups"])
def test_the_fingerprint_covers_every_sample(lazy, row, what):
    def finger(array):
        return fingerprint({"train": Lazy([array[i] for i in range(len(array))]) if lazy else array})

    array = changed(split("train", 300), groups=["g"] * 300)
    other = list(getattr(array, what))
    other[row] = {"ids": "renamed", "labels": torch.tensor(7), "groups": "h"}[what]
    assert finger(array) == finger(changed(array))
    assert finger(array) != finger(changed(array, **{what: torch.stack(other) if what == "labels" else other}))


@pytest.mark.parametrize("lazy", [False, True], ids=["in memory", "map-style"])
def test_the_fingerprint_covers_the_data(lazy):
    def finger(array):
        return fingerprint({"train": Lazy([array[i] for i in range(len(array))]) if lazy else array})

    array = split("train", 40)
    moved = array.inputs["b"].clone()
    moved[17, 2] += 1e-3
    assert finger(array) != finger(changed(array, inputs={**array.inputs, "b": moved}))


def test_the_fingerprint_covers_every_input_in_memory():
    array = split("train", 1000)
    moved = array.inputs["b"].clone()
    moved[501, 2] += 1e-3
    assert fingerprint({"train": array}) != fingerprint({"train": changed(array, inputs={**array.inputs, "b": moved})})


def test_the_fingerprint_covers_which_split_a_sample_is_in():
    one, other = split("train", 5), split("val", 5)
    assert fingerprint({"train": one, "val": other}) != fingerprint({"train": other, "val": one})


def test_a_file_named_like_a_module_does_not_take_its_place(write):
    for name in ("random.py", "task.py", "colorsys.py"):
        assert load(write(name=name)).modalities == ["a", "b"]
    assert sys.modules["random"] is stdlib_random
    assert "task" not in sys.modules
    import colorsys

    assert hasattr(colorsys, "rgb_to_hls")


def test_two_files_of_one_name_are_two_tasks(write, tmp_path):
    (tmp_path / "other").mkdir()
    write(USERS_FILE.replace('Modality("b"', 'Modality("z"'), "other/mine.py")
    assert load(write()).modalities == ["a", "b"]
    assert load(tmp_path / "other" / "mine.py").modalities == ["a", "z"]


def test_a_file_may_hold_dataclasses_and_import_its_neighbours_now_and_later(write):
    write("WIDTH = 2\n", "neighbour_of_mine.py")
    write("from torch import nn\n", "late_neighbour_of_mine.py")
    more = """
        from dataclasses import dataclass
        from neighbour_of_mine import WIDTH
        @dataclass
        class Data(Mine):
            count: "int" = 3
            scale: float = 1.0
            def student(self):
                from late_neighbour_of_mine import nn
                return nn.Linear(WIDTH, 1)
    """
    path = write("from __future__ import annotations\n" + USERS_FILE, more=more)
    loaded = load(path, "Data")
    assert loaded.task.student().in_features == 2
    assert [source.name for source in loaded.sources] == [
        "mine.py", "late_neighbour_of_mine.py", "neighbour_of_mine.py",
    ]  # fmt: skip


def test_neighbours_of_one_name_are_each_tasks_own(write, tmp_path):
    more = """
        import nets_of_mine
        class Uses(Mine):
            width = nets_of_mine.WIDTH
            def student(self):
                import late_nets_of_mine
                return nn.Linear(2, late_nets_of_mine.WIDTH)
    """
    loaded = []
    for width in (2, 3):
        folder = tmp_path / f"project-{width}"
        folder.mkdir()
        for name in ("nets_of_mine.py", "late_nets_of_mine.py"):
            (folder / name).write_text(f"WIDTH = {width}\n")
        loaded.append(load(write(more=more, name=f"{folder.name}/mine.py"), "Uses"))
        assert loaded[-1].task.student().out_features == width
    assert [task.task.width for task in loaded] == [2, 3]


def test_a_changed_neighbour_is_read_again_and_others_modules_stay(write, tmp_path):
    path = write("import nets_of_mine\n" + USERS_FILE, more="\nclass Uses(Mine):\n    width = nets_of_mine.WIDTH\n")
    write("WIDTH = 2\n", "nets_of_mine.py")
    assert load(path, "Uses").task.width == 2
    write("WIDTH = 30\n", "nets_of_mine.py")
    before = sys.modules["edgekd.training.task.protocol"], sys.modules["torch"], sys.modules[__name__]
    assert load(path, "Uses").task.width == 30
    assert before == (sys.modules["edgekd.training.task.protocol"], sys.modules["torch"], sys.modules[__name__])


def test_sources_are_the_folders_python_files_and_a_shipped_tasks_own(write, tmp_path):
    for name in (".hidden", "build", "__pycache__", "env", "inner"):
        (tmp_path / name).mkdir()
        write("", f"{name}/code.py")
    (tmp_path / "env" / "pyvenv.cfg").touch()
    (tmp_path / "gone.py").symlink_to("nowhere.py")
    assert list(source_digests(write().resolve())) == ["mine.py", "inner/code.py"]
    assert [path.name for path in load_task(TaskConfig(name="digits")).sources] == ["digits.py", "models.py"]


def test_a_split_takes_lists_and_numpy_arrays(tmp_path):
    x = np.ones((3, 2), np.float32)
    x.flags.writeable = False
    for labels in ([0, 1, 2], (0, 1, 2), np.array([0, 1, 2], np.int16), torch.tensor([0, 1, 2], dtype=torch.uint8)):
        made = ArraySplit([tmp_path / str(i) for i in range(3)], {"a": x}, labels, np.array(["g", "g", "h"]))
        assert made.labels.dtype == torch.int64
        assert made.labels.tolist() == [0, 1, 2]
        assert made.ids[2] == str(tmp_path / "2")
        assert made.groups == ["g", "g", "h"]
        assert (made[2].group, type(made[2].group)) == ("h", str)
        assert made[0].inputs["a"].dtype == torch.float32
        assert made.__getitems__([0, 2]).groups == ["g", "h"]


def test_a_shape_is_of_plain_integers():
    assert [type(size) for size in Modality("a", np.array([3, 4])).shape] == [int, int]


@pytest.mark.parametrize("classes", [range(3), np.arange(3), ["0", "1", "2"], None])
def test_names_of_the_classes(classes):
    task = SmallTask()
    if classes is not None:
        task.classes = classes
    assert LoadedTask(task, {}, ()).class_names("logits", 3) == ["0", "1", "2"]


def test_packages_installed_beneath_the_file_are_not_its_sources(write, tmp_path):
    package = tmp_path / "venv" / "lib" / "site-packages"
    package.mkdir(parents=True)
    (package / "installed_near_mine.py").write_text("x = 1\n")
    path = write(f"import sys\nsys.path.append({str(package)!r})\nimport installed_near_mine\n" + USERS_FILE)
    assert load(path).sources == (path.resolve(),)


def test_accuracy_is_of_labelled_samples():
    logits = torch.eye(4).numpy()
    assert accuracy(logits, torch.tensor([0, 0, UNLABELLED, 3]).numpy()) == pytest.approx(2 / 3)
    assert accuracy(logits, torch.tensor([UNLABELLED] * 4).numpy()) != accuracy(logits, torch.arange(4).numpy())


def test_a_sample_without_label_or_group():
    sample = Sample("x", {"a": torch.zeros(2)})
    assert collate([sample]).labels.tolist() == [UNLABELLED]
    assert collate([sample]).groups == [""]
    assert set(SPLITS) == {"train", "val", "calibration", "test"}


@dataclass(frozen=True)
class Size:
    hidden: int = 8
    width: int = 4


def test_options_replace_the_fields_of_a_size():
    assert resized(Size(), None) == Size()
    assert resized(Size(), {"width": 16}) == Size(width=16)
    with pytest.raises(TaskError, match="a network's size has no 'hiden'; did you mean 'hidden'"):
        resized(Size(), {"hiden": 3})


def lacking():
    """Three samples, the second without b and the third without either."""
    inputs = {"a": torch.zeros(3, 2), "b": torch.ones(3, 4)}
    present = {"a": np.array([True, True, False]), "b": [True, False, False]}
    return ArraySplit(["x", "y", "z"], inputs, [0, 1, UNLABELLED], present=present)


def test_what_a_sample_lacks_is_in_the_batch_however_it_is_made():
    split = lacking()
    assert [split[index].missing for index in range(3)] == [(), ("b",), ("a", "b")]
    whole = split.__getitems__([2, 0, 1])
    assert {name: there.tolist() for name, there in whole.present.items()} == {"a": [0, 1, 1], "b": [0, 1, 0]}
    stacked = collate([split[index] for index in (2, 0, 1)])
    assert {name: there.tolist() for name, there in stacked.present.items()} == {"a": [0, 1, 1], "b": [0, 1, 0]}
    assert {there.dtype for batch in (whole, stacked) for there in batch.present.values()} == {torch.float32}
    assert collate([split[0], split[1]]).present.keys() == {"b"}
    assert collate([split[0]]).present == {}
    moved = whole.to(torch.device("meta"))
    assert {x.device.type for x in [*moved.inputs.values(), *moved.present.values(), moved.labels]} == {"meta"}


def test_a_split_says_of_each_sample_what_it_lacks():
    with pytest.raises(TaskError, match="a split has 3 ids, but 2 of 'b'"):
        dataclasses.replace(lacking(), present={"b": [True, False]})


@pytest.mark.parametrize("lazy", [False, True], ids=["in memory", "one by one"])
def test_the_fingerprint_covers_what_is_missing(lazy):
    def fingerprint(present):
        split = dataclasses.replace(lacking(), present=present)
        return LoadedTask(None, {"train": [split[i] for i in range(3)] if lazy else split}, ()).fingerprint()

    found = [fingerprint(present) for present in ({}, {"a": [1, 0, 1]}, {"b": [1, 0, 1]}, {"a": [1, 1, 0]})]
    assert len(set(found)) == 4
    assert fingerprint({"a": [True, False, True]}) == found[1]
