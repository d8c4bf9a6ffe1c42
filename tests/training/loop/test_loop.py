import io
import math
import os
import random
import signal
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from small import TAPS, Remembers, TwoTowers, loaded, reporter, split
from stopping import Stopped, StopsAfter, stop
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from edgekd.config.recipe import LossConfig, Training
from edgekd.errors import ModelError
from edgekd.stages.cache import CHECKPOINT
from edgekd.training.distillation.loss_taps import LossTaps
from edgekd.training.distillation.objective import DistillationObjective, SupervisedObjective
from edgekd.training.distillation.references import LiveReference
from edgekd.training.loop.evaluate import Validation, example_batch, probe
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.weights import build
from edgekd.training.loop.weights_file import read_checkpoint
from edgekd.training.taps.taps import TappedModel

EPOCHS = 6
DEFAULT = LossConfig()


def distil(folder, observer=None, config=None, loss=DEFAULT):
    """Train a student with all that a checkpoint must carry: dropout, batch statistics, balanced Gram weights."""
    torch.set_num_threads(1)
    task = loaded()
    student = build(lambda: TwoTowers(dropout=0.3, norm=True), 0)
    teacher = build(lambda: TwoTowers(width=12), 1)
    with TappedModel(student, TAPS) as tapped, TappedModel(teacher, TAPS) as frozen:
        reference, where = LiveReference(frozen), LossTaps(task.modalities, TAPS, TAPS, "teacher")
        objective = DistillationObjective(tapped, reference, reference, loss, where, reporter(observer))
        objective.prepare(example_batch(task, torch.device("cpu")), 5)
        validation = Validation(task, student, TAPS, probe(teacher, TAPS, task.splits["val"]))
        run = Fit(config or Training(epochs=EPOCHS, batch_size=16), 5, Path(folder), reporter(observer))
        history = fit(student, objective, task.splits["train"], validation, run)
    return student.state_dict(), history


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return distil(tmp_path_factory.mktemp("undisturbed"))


def check_same(result, expected):
    assert result[1] == expected[1]
    assert list(result[0]) == list(expected[0])
    for key, value in expected[0].items():
        assert torch.equal(result[0][key], value), key


def test_an_undisturbed_run_learns_and_leaves_its_checkpoint_alone(undisturbed, tmp_path):
    result = distil(tmp_path)
    check_same(result, undisturbed)
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    assert len(result[1]) == EPOCHS
    assert result[1][-1]["loss"] < result[1][0]["loss"]
    assert set(result[1][0]) == {
        "loss", "ce", "kd", "validation", "drift", "loss.intra", "loss.sample", "weight.intra", "weight.sample",
        "share.intra", "share.sample", "kept",
    }  # fmt: skip


def test_a_stopped_run_goes_on_as_if_never_stopped(undisturbed, tmp_path):
    with pytest.raises(Stopped):
        distil(tmp_path, StopsAfter(3, stop))
    torch.manual_seed(12345)  # whatever the new process has drawn already
    observer = Remembers()
    check_same(distil(tmp_path, observer), undisturbed)
    assert [done for done, _, _ in observer.steps] == [4, 5, 6]
    assert observer.warnings == []


@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "cosine", "warm_up": 0.2, "clip_norm": 0.5},
        {"ema": 0.9, "keep": "last", "optimizer": "adam", "schedule": "linear"},
        {"ema": 0.5, "clip_norm": 1.0, "patience": 2, "schedule": "constant", "learning_rate": 0.05},
    ],
    ids=["sgd", "average", "patience"],
)
def test_whatever_the_recipe_says_a_stopped_run_goes_on_as_if_never_stopped(undisturbed, tmp_path, config):
    config = Training(epochs=12 if "patience" in config else EPOCHS, batch_size=16, **config)
    expected = distil(tmp_path / "undisturbed", config=config)
    with pytest.raises(Stopped):
        distil(tmp_path / "stopped", StopsAfter(3, stop), config)
    check_same(distil(tmp_path / "stopped", config=config), expected)
    check_same(distil(tmp_path / "stopped", config=config), expected)  # finished but for the last word
    assert not torch.equal(expected[0]["head.1.weight"], undisturbed[0]["head.1.weight"])


def test_a_killed_process_is_resumed(undisturbed, tmp_path):
    script = (
        "import os, signal, sys; import stopping, test_loop as t; "
        "t.distil(sys.argv[1], stopping.StopsAfter(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[n]) for n in (0, 1, 3)])
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    check_same(distil(tmp_path), undisturbed)


def test_the_checkpoint_holds_no_code(tmp_path):
    with pytest.raises(Stopped):
        distil(tmp_path, StopsAfter(2, stop))
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert len(state["history"]) == 2
    assert set(state) == {"model", "optimizer", "schedule", "objective", "kept", "history"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bytes of what a run leaves that was stopped after its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        distil(folder, StopsAfter(2, stop))
    return (folder / CHECKPOINT).read_bytes()


def in_place_of(content, at, new):
    return content[:at] + new + content[at + len(new) :]


def a_weight(content):
    """Return the place of a byte in the largest tensor of a checkpoint, which is a zip of uncompressed files."""
    with ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    name, extra = struct.unpack_from("<HH", content, largest.header_offset + 26)
    return largest.header_offset + 30 + name + extra + largest.file_size // 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"x" * 300,
        lambda b: in_place_of(b, len(b) // 2, bytes(64)),
        lambda b: in_place_of(b, a_weight(b), bytes([b[a_weight(b)] ^ 1])),
    ],
    ids=["cut", "empty", "other", "64 bytes", "one bit"],
)
def test_a_damaged_checkpoint_is_reported_and_training_starts_over(undisturbed, checkpoint, tmp_path, damage):
    (tmp_path / CHECKPOINT).write_bytes(damage(checkpoint))
    observer = Remembers()
    check_same(distil(tmp_path, observer), undisturbed)
    assert observer.warnings == [f"{tmp_path / CHECKPOINT}: the checkpoint is damaged, so training starts over"]


def test_no_damaged_byte_of_a_checkpoint_is_trusted(checkpoint, tmp_path):
    """What is read back is refused, or is what was written: some bytes of the file, such as times, mean nothing."""
    file, draw = tmp_path / CHECKPOINT, random.Random(0)
    file.write_bytes(checkpoint)
    whole, refused = flat(read_checkpoint(file, torch.device("cpu"))), 0
    for _ in range(200):
        at = draw.randrange(len(checkpoint))
        file.write_bytes(in_place_of(checkpoint, at, bytes([checkpoint[at] ^ 1 << draw.randrange(8)])))
        try:
            assert flat(read_checkpoint(file, torch.device("cpu"))) == whole
        except ModelError:
            refused += 1
    assert refused > 100


def flat(state):
    """Return a state as text in which every bit of a tensor shows."""
    if isinstance(state, dict):
        return repr([(key, flat(value)) for key, value in state.items()])
    if isinstance(state, list | tuple):
        return repr([flat(value) for value in state])
    return state.numpy().tobytes().hex() if isinstance(state, torch.Tensor) else repr(state)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("optimizer"),
        lambda state: state["model"].pop("head.1.bias"),
        lambda state: state["model"].update({"head.1.weight": torch.zeros(3, 3)}),
        lambda state: state.update(objective={}),
        lambda state: state.update(history=[{}] * (EPOCHS + 1)),
    ],
    ids=["no optimizer", "no bias", "another shape", "another objective", "more epochs"],
)
def test_a_checkpoint_of_another_version_leaves_nothing_behind(undisturbed, checkpoint, tmp_path, change):
    (tmp_path / CHECKPOINT).write_bytes(checkpoint)
    state = read_checkpoint(tmp_path / CHECKPOINT, torch.device("cpu"))
    change(state)
    torch.save(state, tmp_path / CHECKPOINT)
    observer = Remembers()
    check_same(distil(tmp_path, observer), undisturbed)
    (warning,) = observer.warnings
    assert warning.endswith("the checkpoint is of another network or version, so training starts over")


def test_another_seed_gives_other_weights(tmp_path):
    results = []
    for seed in (1, 2):
        model = build(TwoTowers, 0)
        supervised(model, tmp_path / str(seed), seed=seed, epochs=1)
        results.append(model.state_dict()["head.1.weight"])
    assert not torch.equal(*results)


def supervised(model, folder, train=None, observer=None, seed=0, validate=lambda: {"validation": 0.0}, **config):
    with TappedModel(model, TAPS) as tapped:
        run = Fit(Training(**{"epochs": 2, "batch_size": 16, **config}), seed, folder, reporter(observer))
        return fit(model, SupervisedObjective(tapped), train or split("train", 50), validate, run)


@pytest.mark.parametrize(
    ("keep", "scores", "kept"),
    [
        ("last", [0.9, 0.5, 0.1], 2),
        ("best", [0.5, 0.9, 0.1], 1),
        ("best", [0.9, 0.9, 0.1], 1),
        ("best", [0.5, math.nan, 0.1], 0),
        ("best", [math.nan, math.nan, math.nan], 2),
    ],
    ids=["last", "best", "the latest of equals", "never what is no number", "none is a number"],
)
def test_the_epoch_that_the_recipe_asks_for_is_kept(tmp_path, keep, scores, kept):
    model, seen = TwoTowers(), []
    scores_left = iter(scores)

    def validate():
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        assert not model.training
        return {"validation": next(scores_left)}

    history = supervised(model, tmp_path, validate=validate, epochs=3, keep=keep)
    assert [epoch["kept"] for epoch in history] == [float(index == kept) for index in range(3)]
    assert all(torch.equal(seen[kept][key], value) for key, value in model.state_dict().items())
    assert len({tuple(state["head.1.bias"].tolist()) for state in seen}) == 3


@pytest.mark.parametrize("higher", [True, False])
def test_a_lower_metric_may_be_the_better_one(tmp_path, higher):
    scores, model = iter([0.9, 0.1, 0.5]), TwoTowers()
    with TappedModel(model, TAPS) as tapped:
        run = Fit(Training(epochs=3, batch_size=16), 0, tmp_path, reporter(), higher)
        history = fit(model, SupervisedObjective(tapped), split("train", 50), lambda: {"validation": next(scores)}, run)
    assert [epoch["kept"] for epoch in history].index(1.0) == (0 if higher else 1)


def test_training_ends_when_nothing_gets_better_and_says_so(tmp_path):
    observer, scores = Remembers(), iter([0.5, 0.9, 0.9, 0.8, 0.7])
    history = supervised(
        TwoTowers(), tmp_path, observer=observer, validate=lambda: {"validation": next(scores)}, epochs=9, patience=3
    )
    assert [epoch["kept"] for epoch in history] == [0, 0, 1, 0, 0]
    assert observer.steps[-1] == (5, 9, "ended, since no epoch of the last 3 was better than before")


@pytest.mark.parametrize(("values", "said"), [(range(10), 1), ([0.5] * 10, 0)], ids=["rising", "level"])
def test_a_metric_that_was_still_rising_is_a_hint(tmp_path, values, said):
    observer, scores = Remembers(), iter(values)
    supervised(TwoTowers(), tmp_path, observer=observer, validate=lambda: {"validation": next(scores)}, epochs=10)
    hint = "from 6.5000 to 8.5000 over the last 4 of 10 epochs: more epochs may help"
    expected = f"the metric on the validation split was still improving when training ended, {hint}"
    assert observer.warnings == [expected] * said


def test_of_a_small_split_the_usual_length_is_longer_and_said_to_be(tmp_path):
    observer = Remembers()
    history = supervised(TwoTowers(), tmp_path, observer=observer, epochs="auto", min_steps=130)
    assert len(history) == 33
    assert observer.steps[0] == (0, 33, "33 epochs instead of 30, since 50 samples make few steps: 132 of them")


def test_the_average_is_what_is_validated_and_kept_and_training_goes_on_from_the_weights(tmp_path):
    """By hand: the average of the weights after each step, which the network itself never has while it is trained."""
    decay, shadows, live = 0.8, [], []
    model, plain = build(TwoTowers, 0), build(TwoTowers, 0)
    supervised(plain, tmp_path / "plain", epochs=1, validate=lambda: {"validation": 0.0})

    def validate():
        shadows.append(model.head[1].weight.detach().clone())
        return {"validation": 0.0}

    hook = register_optimizer_step_post_hook(lambda *_: live.append(model.head[1].weight.detach().clone()))
    try:
        expected = model.head[1].weight.detach().clone()
        supervised(model, tmp_path / "average", epochs=1, ema=decay, validate=validate)
    finally:
        hook.remove()
    for step, weight in enumerate(live, 1):
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * weight
    torch.testing.assert_close(shadows[0], expected)
    assert torch.equal(model.head[1].weight, shadows[0])
    assert torch.equal(live[-1], plain.head[1].weight)


def test_clipped_gradients_are_no_longer_than_asked(tmp_path):
    norms, model = [], build(TwoTowers, 0)
    hook = register_optimizer_step_pre_hook(
        lambda *_: norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
    )
    try:
        supervised(model, tmp_path / "free")
        free, norms[:] = list(norms), []
        model = build(TwoTowers, 0)
        supervised(model, tmp_path / "clipped", clip_norm=0.01)
    finally:
        hook.remove()
    assert min(free) > 0.01
    assert norms == pytest.approx([0.01] * len(free), rel=1e-3)


def accuracy_of(task, model):
    test = task.splits["test"]
    return task.metric(probe(model, TAPS, test).answer, test.labels.numpy())


def test_training_learns(tmp_path):
    task = loaded()
    model = build(TwoTowers, 0)
    before = accuracy_of(task, model)
    supervised(model, tmp_path, task.splits["train"], epochs=20, learning_rate=1e-2)
    assert accuracy_of(task, model) > before + 0.2


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    train = split("train", 50)
    train.inputs["a"][7, 0] = float("nan")
    with pytest.raises(
        ModelError, match=r"the loss is nan from the first step: input 'a' of sample 'train-7' holds NaN"
    ):
        supervised(TwoTowers(), tmp_path, train, batch_size=64)


def test_a_loss_that_grows_out_of_all_numbers_stops_training(tmp_path):
    with pytest.raises(ModelError, match=r"training diverged: .*'loss': nan.*learning_rate.*clip_norm.*check the data"):
        supervised(TwoTowers(), tmp_path, optimizer="sgd", learning_rate=10, weight_decay=100, epochs=20)


def test_a_weight_that_is_no_number_is_named(tmp_path):
    model = build(TwoTowers, 0)
    with torch.no_grad():
        model.head[1].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"the loss is nan from the first step: 'head.1.weight' holds NaN before it"):
        supervised(model, tmp_path)


def test_frozen_parameters_stay_as_they_are(tmp_path):
    model = build(TwoTowers, 0)
    model.encoders["a"].requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    supervised(model, tmp_path)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if not key.startswith("encoders.a")}


@dataclass
class Watches:
    """An objective that keeps what it was given."""

    model: TwoTowers

    def __post_init__(self):
        self.batches, self.draws, self.progress = [], [], []

    def __call__(self, batch, progress):
        assert self.model.training
        self.progress.append(progress)
        self.batches.append(batch.ids)
        self.draws.append(torch.rand(1).item())
        return self.model(*batch.inputs.values()).square().mean(), {}

    def parameters(self):
        return []

    def state(self):
        return {}

    def restore(self, state):
        pass


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"),
    [(50, 16, 4), (48, 16, 3), (49, 16, 4), (5, 2, 2), (3, 2, 1), (10, 64, 1), (1, 64, 1)],
)
def test_every_sample_is_seen_once_an_epoch_in_a_new_order(tmp_path, count, batch_size, steps):
    model = TwoTowers()
    watcher = Watches(model)
    run = Fit(Training(epochs=2, batch_size=batch_size), 0, tmp_path, reporter())
    train = split("train", count)
    fit(model, watcher, train, lambda: {"validation": 0.0}, run)
    first, second = watcher.batches[:steps], watcher.batches[steps:]
    assert len(second) == steps
    for epoch in (first, second):
        assert Counter(name for ids in epoch for name in ids) == Counter(train.ids)
        sizes = {len(ids) for ids in epoch}
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(2, count)
        assert max(sizes) <= max(batch_size, 3)
    assert count < 4 or first != second
    assert watcher.progress == pytest.approx([step / (2 * steps) for step in range(2 * steps)])


def test_each_epoch_and_seed_draws_its_own_dropout(tmp_path):
    def draws(seed, folder):
        model = TwoTowers()
        watcher = Watches(model)
        fit(
            model,
            watcher,
            split("train", 8),
            lambda: {"validation": 0.0},
            Fit(Training(epochs=3, batch_size=8), seed, tmp_path / folder, reporter()),
        )
        return watcher.draws

    first, again, other = draws(1, "first"), draws(1, "again"), draws(2, "other")
    assert first == again
    assert len({*first, *other}) == 6


def test_an_augmentation_draws_the_same_from_any_generator(tmp_path):
    class Augmented(list):
        def __getitem__(self, index):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
            return super().__getitem__(index)

    train = split("train", 8)
    runs = []
    for folder in ("first", "again"):
        drawn = []
        supervised(TwoTowers(), tmp_path / folder, Augmented(train[i] for i in range(8)), epochs=2)
        runs.append(drawn)
    assert runs[0] == runs[1]
    assert len({value for draws in runs[0] for value in draws}) == 3 * 16


def test_one_sample_over_does_not_break_batch_statistics(tmp_path):
    history = supervised(TwoTowers(norm=True), tmp_path, split("train", 33), batch_size=16)
    assert len(history) == 2


def test_progress_is_reported(tmp_path):
    observer = Remembers()
    history = supervised(TwoTowers(), tmp_path, observer=observer, validate=lambda: {"validation": 0.25})
    assert [(done, total) for done, total, _ in observer.steps] == [(1, 2), (2, 2)]
    assert observer.steps[1][2] == f"loss {history[1]['loss']:.3f}, validation 0.250"
