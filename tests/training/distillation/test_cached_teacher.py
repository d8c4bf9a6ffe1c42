import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small import TAPS, Remembers, TwoTowers, loaded, reporter, split

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import DistillConfig
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.stages.cache import Cache
from edgekd.stages.stage import Runner
from edgekd.training.distillation import cached_teacher, distill
from edgekd.training.distillation.cached_teacher import CachedReference, digests
from edgekd.training.distillation.references import LiveReference
from edgekd.training.loop.weights import build
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps
from edgekd.training.task.protocol import ArraySplit, collate

SAMPLES = 600  # three batches


class Counts:
    """Counts a network's forward calls."""

    def __init__(self, model):
        self.calls = 0
        model.register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1


@pytest.fixture(scope="module")
def teacher():
    return build(lambda: TwoTowers(width=12, dropout=0.3), 1)


@pytest.fixture(scope="module")
def train():
    return split("train", SAMPLES)


@pytest.fixture(scope="module")
def outputs(teacher, train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    cached_teacher.write_outputs(teacher, TAPS, train, folder, reporter())
    return folder


@pytest.fixture
def live(teacher):
    with TappedModel(teacher, TAPS) as tapped:
        yield LiveReference(tapped)


def drawn(train, rows):
    return collate([train[row] for row in rows])


def check_same(found, expected):
    torch.testing.assert_close(found.answers, expected.answers)
    for ours, theirs in zip(found.networks, expected.networks, strict=True):
        torch.testing.assert_close(ours.answers, theirs.answers)
        assert list(ours.embeddings) == list(theirs.embeddings)
        for name, z in theirs.embeddings.items():
            torch.testing.assert_close(ours.embeddings[name], z)


def test_it_says_what_the_teacher_says_in_any_order_and_without_it(teacher, train, outputs, live):
    reference, count = CachedReference(live, outputs, reporter()), Counts(teacher)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3)).tolist()
    found = [(rows, reference(drawn(train, rows))) for rows in (order[:64], order[64:65], list(reversed(range(300))))]
    assert count.calls == 0
    for rows, known in found:
        check_same(known, live(drawn(train, rows)))


def test_of_several_networks_each_is_kept(train, tmp_path):
    networks = [build(partial(TwoTowers, width=width), width) for width in (6, 10)]
    with TappedModel(networks[0], TAPS) as first, TappedModel(networks[1], TAPS) as second:
        live = LiveReference(first, second)
        cached_teacher._write(live, train, torch.device("cpu"), tmp_path, reporter())
        batch = drawn(train, range(40, 8, -1))
        check_same(CachedReference(live, tmp_path, reporter())(batch), live(batch))


def test_the_arrays_are_mapped_and_not_read(outputs, live):
    reference = CachedReference(live, outputs, reporter())
    mapped = [*reference._columns.values(), reference._ids, reference._rows, reference._inputs]
    assert all(type(array) is np.memmap and array.mode == "r" for array in mapped)
    assert len(mapped) == len(list(outputs.iterdir())) == 6
    assert all(array.dtype == np.float32 for array in reference._columns.values())


def test_samples_that_an_augmentation_changed_go_to_the_teacher(teacher, train, outputs, live):
    observer, count = Remembers(), Counts(teacher)
    reference = CachedReference(live, outputs, reporter(observer))
    batch = drawn(train, range(10, 20))
    batch.inputs["a"][3] *= 1.01
    batch.inputs["b"][7, 0] += 1e-6
    known = reference(batch)
    assert count.calls == 1
    check_same(known, live(batch))
    assert len(observer.warnings) == 1
    assert "the inputs of sample 'train-13' are not those" in observer.warnings[0]
    reference(batch)
    assert len(observer.warnings) == 1


def test_a_sample_that_is_not_stored_goes_to_the_teacher(train, outputs, live):
    reference = CachedReference(live, outputs, reporter(Remembers()))
    batch = drawn(train, [4, 5])
    for name in ("other", "train-40-and-more", ""):
        batch.ids[1] = name
        batch.inputs["a"][1] = 0.5
        check_same(reference(batch), live(batch))


def test_a_digest_tells_inputs_apart(train):
    batch = drawn(train, range(4))
    numbers = digests(batch.inputs)
    assert numbers.dtype == torch.int64
    assert len(set(numbers.tolist())) == 4
    assert torch.equal(digests({name: x[1:3] for name, x in batch.inputs.items()}), numbers[1:3])
    swapped = {"a": batch.inputs["a"].flip(1), "b": batch.inputs["b"]}
    assert not (digests(swapped) == numbers).any()


def run(folder, teacher, train, outputs=None, observer=None):
    task = replace(loaded(), splits={**loaded().splits, "train": train})
    config = DistillConfig(epochs=3, batch_size=64)
    folder.mkdir()
    taps = Taps(TAPS, TAPS)
    return distill.run(task, teacher, taps, config, StageRun(0, folder, reporter(observer)), outputs).history


def test_distilling_from_the_cache_is_distilling_from_the_teacher(teacher, train, outputs, tmp_path):
    count = Counts(teacher)
    read = run(tmp_path / "read", teacher, train, outputs)
    once = count.calls
    ran = run(tmp_path / "ran", teacher, train)
    assert once == 1  # on the validation split, for the drift
    assert count.calls - once > 3 * SAMPLES // 64
    for ours, theirs in zip(read, ran, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


class Augmented:
    """A split of a user's own that adds noise to each sample that it gives."""

    def __init__(self, split: ArraySplit):
        self.split, self.ids = split, split.ids

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        sample = self.split[index]
        noisy = {name: x + 0.1 * torch.randn(x.shape) for name, x in sample.inputs.items()}
        return replace(sample, inputs=noisy)


def test_a_split_that_augments_distils_as_from_the_teacher(teacher, train, tmp_path):
    (tmp_path / "outputs").mkdir()
    observer = Remembers()
    augmented = Augmented(train)
    cached_teacher.write_outputs(teacher, TAPS, augmented, tmp_path / "outputs", reporter())
    read = run(tmp_path / "read", teacher, augmented, tmp_path / "outputs", observer)
    assert read == run(tmp_path / "ran", teacher, augmented)
    assert len(observer.warnings) == 1


SETTINGS = ("distill.cache_teacher=true", "teacher.epochs=1", "distill.epochs=2", "prune.epochs=1", "prune.round_to=8")


def learner(cache, observer=None, **changes):
    """The first half of a build of digits, small."""
    torch.set_num_threads(1)
    overrides = tuple(f"{key.replace('__', '.')}={value}" for key, value in changes.items())
    recipe = load_recipe("digits", (*SETTINGS, *overrides))
    runner = Runner(Cache(Path(cache)), observer or Remembers())
    return TrainingStages(runner, Project(recipe.task, Path(cache)), recipe, 18)


def folders(cache):
    return sorted(path.name for path in cache.glob("outputs-*") if path.is_dir())


def train_all(one):
    teacher = one.teacher()
    student = one._distill(teacher)
    return teacher, student, one._prune(teacher, student)


def test_a_build_writes_once_for_distilling_and_pruning_and_anew_for_another_teacher(tmp_path):
    observer = Remembers()
    _, student, _ = train_all(learner(tmp_path, observer))
    assert [step[:2] for step in observer.steps if "outputs" in step[2]] == [
        (256, 1200), (512, 1200), (768, 1200), (1024, 1200), (1200, 1200)
    ]  # fmt: skip
    first = folders(tmp_path)
    assert len(first) == 1
    _, other, _ = train_all(learner(tmp_path, distill__learning_rate=1e-3))
    assert other.key != student.key
    assert folders(tmp_path) == first
    train_all(learner(tmp_path, seed=1))
    assert len(folders(tmp_path)) == 2
    live = learner(tmp_path / "live", distill__cache_teacher="false")
    _, taught, _ = train_all(live)
    assert folders(tmp_path / "live") == []
    assert student.result.metric == pytest.approx(taught.result.metric, abs=0.02)


class KillsItself(Remembers):
    def advance(self, stage, done, total, note):
        if "outputs" in note and done > 500:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_build_killed_while_it_writes_goes_on(tmp_path):
    script = "import sys, test_cached_teacher as t; t.train_all(t.learner(sys.argv[1], t.KillsItself()))"
    path = os.pathsep.join([str(Path(__file__).parents[n]) for n in (0, 1, 3)])
    environment = {**os.environ, "PYTHONPATH": path}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (partial,) = folders(tmp_path)
    assert partial.endswith(".partial")
    teacher, student, _ = train_all(learner(tmp_path))
    assert folders(tmp_path) == [partial.removesuffix(".partial")]
    undisturbed = train_all(learner(tmp_path / "undisturbed"))
    assert (teacher.result, student.result) == (undisturbed[0].result, undisturbed[1].result)
