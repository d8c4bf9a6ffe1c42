"""Inputs of every type, shorter samples, masks that are derived, and targets of any form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import SmallTask, reporter
from torch import nn

from edgekd.config.recipe import DistillConfig, ExportConfig, LossConfig, Recipe, Tap, TaskConfig, TeacherConfig, Term
from edgekd.errors import TaskError
from edgekd.runtime.session import read_arrays
from edgekd.stages.artifacts import TEST
from edgekd.training.distillation import distill, teacher
from edgekd.training.export import stage as export
from edgekd.training.export.onnx import ExportNetwork
from edgekd.training.loop.evaluate import batches, ground_truth
from edgekd.training.loop.weights import build
from edgekd.training.preflight.check import check
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps
from edgekd.training.task.checked_split import checked_split
from edgekd.training.task.checks import check_task
from edgekd.training.task.loading import LoadedTask
from edgekd.training.task.protocol import SPLITS, ArraySplit, Batch, Modality, Sample, collate

WORDS = Modality("words", (6,), dtype="int64", pad=0)
MASK = Modality("mask", (6,), dtype="bool", of="words")


class Reader(nn.Module):
    """Words to embeddings, their mean where the mask is true; a GRU would do as well."""

    def __init__(self, rows=20):
        super().__init__()
        self.table = nn.Embedding(rows, 8)
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, words, mask):
        there = mask[..., None].float()
        return self.head(self.encoder((self.table(words) * there).sum(1) / there.sum(1).clamp(min=1)))


class Sentences(SmallTask):
    """One modality, of unlike lengths, and its mask: the label is the first word's remainder."""

    def __init__(self, network=Reader, longest=6):
        self.modalities, self.network, self.longest = [WORDS, MASK], network, longest

    def splits(self):
        random = np.random.default_rng(0)
        made = {}
        for name, count in zip(SPLITS, (90, 20, 20, 30), strict=True):
            words = [random.integers(1, 20, random.integers(1, self.longest + 1)) for _ in range(count)]
            made[name] = ArraySplit(
                [f"{name}-{i}" for i in range(count)], {"words": words}, [int(w[0]) % 3 for w in words]
            )
        return made


WORD_TAPS = {"words": Tap(module="encoder")}


def loaded(task):
    check_task("the task", task)
    splits = {name: checked_split(f"split '{name}'", task, split) for name, split in task.splits().items()}
    return LoadedTask(task, splits, ())


def recipe():
    return Recipe(task=TaskConfig("words"))


def one(modalities, inputs, **fields):
    """Read a split of one sample, of these modalities."""
    task = SmallTask()
    task.modalities = modalities

    class Lone:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Sample("lone", inputs, 0, **fields)

    return checked_split("split 'train'", task, Lone())[0]


def test_words_are_padded_and_their_mask_is_derived_in_memory_and_sample_by_sample():
    given = {"words": torch.tensor([4, 7, 2])}
    sample = one([WORDS, MASK], given)
    assert sample.inputs["words"].tolist() == [4, 7, 2, 0, 0, 0]
    assert sample.inputs["mask"].tolist() == [True, True, True, False, False, False]
    assert list(sample.inputs) == ["words", "mask"]
    task = loaded(Sentences())
    assert (task.modalities, task.inputs) == (["words"], ["words", "mask"])
    batch = next(iter(batches(task.splits["train"])))
    assert batch.inputs["words"].shape == batch.inputs["mask"].shape == (90, 6)
    assert torch.equal(batch.inputs["mask"], batch.inputs["words"] != 0)


def test_a_mask_of_steps_is_derived_from_steps_of_several_values():
    steps = Modality("steps", (4, 2), pad=-1)
    x = torch.tensor([[0.5, -1.0], [-1.0, -1.0]])
    sample = one([steps, Modality("mask", (4,), dtype="bool", of="steps")], {"steps": x})
    assert sample.inputs["steps"].shape == (4, 2)
    assert sample.inputs["mask"].tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("dtype", "given", "expected"),
    [
        ("int64", torch.tensor([1, 2], dtype=torch.int32), torch.int64),
        ("int32", torch.tensor([1, 2]), torch.int32),
        ("uint8", torch.tensor([0, 255]), torch.uint8),
        ("bool", torch.tensor([0, 1]), torch.bool),
        ("float32", torch.tensor([0.5, 1], dtype=torch.float16), torch.float32),
        ("float16", torch.tensor([0.5, 1], dtype=torch.float16), torch.float16),
    ],
)
def test_a_type_that_holds_every_value_is_converted(dtype, given, expected):
    x = one([Modality("x", (2,), dtype=dtype)], {"x": given}).inputs["x"]
    assert x.dtype == expected
    assert x.tolist() == given.tolist()


@pytest.mark.parametrize(
    ("modality", "given", "said"),
    [
        ({}, torch.tensor([1, 2]), 'is torch.int64, must be a tensor of float32; .* say dtype="int64" in the modality'),
        ({}, torch.tensor([True, False]), 'say dtype="bool"'),
        ({}, torch.zeros(2).double(), r"is torch.float64, must be a tensor of float32; convert it with .float\(\)"),
        ({"dtype": "int64"}, torch.zeros(2), 'is torch.float32, must be a tensor of int64; .*dtype="float32"'),
        (
            {"dtype": "uint8"},
            torch.tensor([1, 256]),
            "input 'x' of sample 'lone' holds 256, which .* uint8 does not hold",
        ),
        ({"dtype": "bool"}, torch.tensor([1, 2]), "holds 2, which the modality's dtype bool does not hold"),
        (
            {"dtype": "int64"},
            torch.tensor([1]),
            r"has inputs .*; samples that are shorter need .*Modality\('x', ..., pad=0\)",
        ),
        ({"pad": 0.0}, torch.zeros(3), r"has the shape \(3,\), longer than the modality's \(2,\): cut it"),
    ],
)
def test_other_values_are_refused_with_what_to_do(modality, given, said):
    with pytest.raises(TaskError, match=f"split 'train': .*{said}"):
        one([Modality("x", (2,), **modality)], {"x": given})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "float64"}, "has the dtype 'float64', must be one of float32, .*did you mean"),
        ({"dtype": "uint8", "pad": -1}, "its pad is -1, which uint8 does not hold"),
        ({"dtype": "int64", "absent": 0.5}, "its absent is 0.5, which int64 does not hold"),
        ({"pad": float("nan")}, "its pad is nan, must be a finite number"),
        ({"of": 3}, "its of is an int, must be the name of another modality"),
    ],
)
def test_a_modality_that_cannot_be_is_refused(fields, said):
    with pytest.raises(TaskError, match=f"modality 'x'.*{said}"):
        Modality("x", (2,), **fields)


def test_numpys_and_torchs_own_types_are_names_of_types():
    assert [Modality("x", (2,), dtype=kind).dtype for kind in (np.int64, torch.int64, np.dtype("bool"), bool)] == [
        "int64", "int64", "bool", "bool",
    ]  # fmt: skip


def test_a_mask_that_cannot_be_derived_is_asked_for():
    with pytest.raises(
        TaskError, match="has no 'mask', which can be derived only if it is of bools, 'words' has a pad"
    ):
        one([Modality("words", (2,), dtype="int64"), Modality("mask", (2,), dtype="bool", of="words")],
            {"words": torch.tensor([1, 2])})  # fmt: skip


def test_lists_of_arrays_of_unlike_length_need_a_pad():
    split = ArraySplit(["a", "b"], {"words": [np.arange(3), np.arange(5)]}, [0, 1])
    task = SmallTask()
    task.modalities = [Modality("words", (5,), dtype="int64")]
    with pytest.raises(TaskError, match=r"sample 'a' has inputs .*pad=0"):
        checked_split("split 'train'", task, split)


def test_one_modality_of_words_is_trained_distilled_and_exported(tmp_path):
    task = loaded(Sentences())
    told = Recipe(
        task=TaskConfig("words"),
        teacher=TeacherConfig(epochs=3, batch_size=16),
        distill=DistillConfig(epochs=1, batch_size=16),
    )
    check(task, Taps(WORD_TAPS, WORD_TAPS), told, reporter())
    trained = teacher.run(task, WORD_TAPS, told.teacher, StageRun(0, tmp_path / "teacher", reporter()))
    assert len(trained.history) == 3
    network = build(Reader, 0)
    distill.run(task, network, Taps(WORD_TAPS, WORD_TAPS), told.distill, StageRun(0, tmp_path / "student", reporter()))
    networks = {"student": ExportNetwork(build(Reader, 1), WORD_TAPS)}
    result = export.run(task, networks, ExportConfig(), 18, tmp_path, reporter())
    assert result.parity["student"] < 1e-5
    assert [(spec["name"], spec["dtype"]) for spec in result.facts.inputs] == [("words", "int64"), ("mask", "bool")]
    assert result.facts.modalities == ["words"]
    arrays = read_arrays(tmp_path / TEST, ["input.words", "input.mask"])
    assert [x.dtype.name for x in arrays.values()] == ["int64", "bool"]


def test_a_loss_between_modalities_is_refused_where_it_was_asked_for(tmp_path):
    task = loaded(Sentences())
    config = DistillConfig(epochs=1, batch_size=16, loss=LossConfig(extra={"sample": Term()}))
    with pytest.raises(TaskError, match="'sample' is of two modalities or more, but is given words alone"):
        distill.run(task, build(Reader, 0), Taps(WORD_TAPS, WORD_TAPS), config, StageRun(0, tmp_path, reporter()))


def test_an_id_beyond_the_table_is_named_before_training():
    class Rare(Sentences):
        def splits(self):
            made = super().splits()
            made["test"].inputs["words"][7][0] = 21
            return made

    task = loaded(Rare())
    with pytest.raises(
        TaskError,
        match=r"split 'test': input 'words' of sample 'test-7' holds the id 21, but 'table' of the .*, Reader, has 20 "
        "rows: ids go from 0 to 19",
    ):
        check(task, Taps(WORD_TAPS, WORD_TAPS), recipe(), reporter())


def test_an_id_beyond_the_table_in_the_first_batch_is_no_index_error():
    task = loaded(Sentences(lambda: Reader(rows=5)))
    with pytest.raises(TaskError, match=r"split 'train': input 'words' of sample 'train-.* has 5 rows"):
        check(task, Taps(WORD_TAPS, WORD_TAPS), recipe(), reporter())


def test_what_stands_in_for_words_that_are_missing_is_a_row_of_their_table():
    sentences = Sentences()
    sentences.modalities = [
        replace(modality, absent=20) if modality.name == "words" else modality for modality in sentences.modalities
    ]
    with pytest.raises(TaskError, match=r"20 stands in for 'words' where it is missing, but 'table' of .* has 20 rows"):
        check(loaded(sentences), Taps(WORD_TAPS, WORD_TAPS), recipe(), reporter())


def test_targets_of_any_nest_are_stacked_flattened_and_part_of_the_fingerprint(tmp_path):
    def task_of(value):
        class Boxes(SmallTask):
            def splits(self):
                made = super().splits()
                boxes = {name: np.arange(4.0) + value for name in ("first", "second")}
                return {
                    name: ArraySplit(s.ids, s.inputs, targets={
                        "boxes": [np.tile(boxes["first"], (len(s), 1)), np.zeros((len(s), 2), np.int32)],
                        "score": torch.ones(len(s), dtype=torch.float64),
                    })
                    for name, s in made.items()
                }  # fmt: skip

        return loaded(Boxes())

    task = task_of(0)
    batch = next(iter(batches(task.splits["val"])))
    assert batch.targets["boxes"][0].shape == (20, 4)
    assert (batch.targets["boxes"][0].dtype, batch.targets["boxes"][1].dtype) == (torch.float32, torch.int64)
    assert batch.labels.tolist() == [-100] * 20
    truth = ground_truth(task.splits["test"])
    assert truth.targets["boxes"][0].shape == (30, 4)
    assert truth.part(np.array([3, 5])).targets["score"].tolist() == [1, 1]
    export.save_samples(task.splits["test"], tmp_path / "test.npz")
    stored = read_arrays(tmp_path / "test.npz", ["target.boxes.0", "target.boxes.1", "target.score", "labels"])
    assert stored["target.boxes.1"].shape == (30, 2)
    assert task.fingerprint() == task_of(0).fingerprint() != task_of(1).fingerprint()


def test_samples_targets_are_read_and_stacked_like_those_in_memory():
    samples = [Sample(f"s{i}", {"x": torch.zeros(2)}, target={"y": float(i), "z": [i, i + 1]}) for i in range(3)]
    batch = collate(samples)
    assert batch.targets["y"].tolist() == [0, 1, 2]
    assert batch.targets["z"].tolist() == [[0, 1], [1, 2], [2, 3]]
    moved = batch.part(torch.tensor([2, 0]))
    assert moved.targets["y"].tolist() == [2, 0]
    assert collate([Sample("s", {"x": torch.zeros(2)}, 1)]).targets.tolist() == [1]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("cat", r" is a str \('cat'\), must be a tensor, an array or a number"),
        ({"a.b": 1}, ": the key 'a.b' may be no number, and hold no '.' or '/'"),
        ({"box": object()}, ".box is an object"),
        ({3: 1}, ": a key is an int"),
    ],
)
def test_a_target_that_cannot_be_kept_is_refused(target, said):
    with pytest.raises(TaskError, match=f"split 'train': the target of sample 'lone'{said}"):
        one([Modality("x", (2,))], {"x": torch.zeros(2)}, target=target)


class Ragged(SmallTask):
    """Targets of unlike length."""

    def splits(self):
        def listed(whole):
            class Listed:
                def __len__(self):
                    return len(whole)

                def __getitem__(self, index):
                    sample = whole[index]
                    return Sample(
                        sample.id, sample.inputs, sample.label, target={"boxes": torch.ones(1 + index % 3, 4)}
                    )

            return Listed()

        return {name: listed(split) for name, split in super().splits().items()}


def test_targets_of_unlike_shapes_are_refused_without_a_collate():
    with pytest.raises(
        TaskError,
        match=r"sample 'train-1': its target.boxes has the shape \(2, 4\), but in the split's first sample has the "
        r"shape \(1, 4\); .*give the task a function collate",
    ):
        list(batches(loaded(Ragged()).splits["train"]))


def test_a_tasks_own_collate_makes_every_batch():
    class Padded(Ragged):
        def collate(self, samples):
            boxes = torch.stack(
                [nn.functional.pad(s.target["boxes"], (0, 0, 0, 3 - len(s.target["boxes"]))) for s in samples]
            )
            inputs = {name: torch.stack([s.inputs[name] for s in samples]) for name in samples[0].inputs}
            labels = torch.tensor([s.label for s in samples])
            return Batch([s.id for s in samples], inputs, labels, [""] * len(samples), targets={"boxes": boxes})

    task = loaded(Padded())
    assert ground_truth(task.splits["train"]).targets["boxes"].shape == (90, 3, 4)
    broken = Padded()
    broken.collate = lambda samples: None
    with pytest.raises(TaskError, match="the task's collate returned None, must return"):
        list(batches(loaded(broken).splits["train"]))


def test_a_split_without_labels_and_targets_says_so():
    with pytest.raises(TaskError, match="a split has neither labels nor targets"):
        ArraySplit(["a"], {"x": torch.zeros(1, 2)})
    with pytest.raises(TaskError, match=r"a split has 1 ids, but 2 of 'target\.y'"):
        ArraySplit(["a"], {"x": torch.zeros(1, 2)}, targets={"y": np.zeros(2)})
    with pytest.raises(TaskError, match=r"a split's target\.y is a single number"):
        ArraySplit(["a"], {"x": torch.zeros(1, 2)}, targets={"y": 3.0})
