"""What losing or spoiling a modality costs: real digits in two views, against the same computed by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import Remembers, loaded, reporter
from torch import nn

from edgekd.config.recipe import DistillConfig, RobustnessConfig, TaskConfig, TeacherConfig
from edgekd.runtime.corruption import (
    ChannelStatistics,
    add_noise,
    count_changes,
    drop_modality,
    load_statistics,
    measure_robustness,
    save_statistics,
)
from edgekd.stages.artifacts import CHANNELS
from edgekd.training import robustness
from edgekd.training.distillation import distill, teacher
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps, resolve_taps
from edgekd.training.task.loading import load_task

VIEWS = ["fou", "zer"]


def evaluate(task, model, **changed):
    test = task.splits["test"]
    with torch.inference_mode():
        logits = model.eval()(*(changed.get(name, test.inputs[name]) for name in VIEWS))
    return float((logits.argmax(1) == test.labels).float().mean())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The task, and for each probability of modality dropout the student, its metric, and what the stage found."""
    folder = tmp_path_factory.mktemp("digits")
    task = load_task(TaskConfig(name="digits", options={"views": VIEWS}))
    taps = resolve_taps("student", {}, task.task.student_taps, VIEWS)
    places = {name: folder / name for name in ("teacher", "0.0", "0.4")}
    for place in places.values():
        place.mkdir()
    teacher.run(task, taps, TeacherConfig(epochs=6), StageRun(0, places["teacher"], reporter()))
    found = {}
    for p in (0.0, 0.4):
        taught = load_weights(build(task.task.teacher, 0), places["teacher"] / "model.safetensors")
        config = DistillConfig(epochs=10, modality_dropout=p)
        trained = distill.run(task, taught, Taps(taps, taps), config, StageRun(0, places[str(p)], reporter()))
        student = load_weights(build(task.task.student, 0), places[str(p)] / "model.safetensors")
        networks = {"student": robustness.MeasuredNetwork(student, trained.metric)}
        observer = Remembers()
        measured = robustness.run(task, networks, RobustnessConfig(), StageRun(3, places[str(p)], reporter(observer)))
        found[p] = SimpleNamespace(
            student=student, trained=trained, networks=networks, measured=measured, folder=places[str(p)],
            steps=observer.steps,
        )  # fmt: skip
    return task, found


def test_a_dropped_modality_is_its_training_mean(digits):
    task, found = digits
    measured = found[0.0].measured.networks["student"]
    assert measured.clean == found[0.0].trained.metric
    for name in VIEWS:
        mean = task.splits["train"].inputs[name].double().mean(0).float().expand_as(task.splits["test"].inputs[name])
        assert measured.dropped[name] == pytest.approx(evaluate(task, found[0.0].student, **{name: mean}), abs=0.003)
        assert measured.dropped[name] < measured.clean - 0.05


def test_a_noisy_modality_has_one_training_deviation_of_noise(digits):
    task, found = digits
    measured = found[0.0].measured.networks["student"]
    for index, name in enumerate(VIEWS):
        rows, deviation = task.splits["test"].inputs[name], task.splits["train"].inputs[name].std(0, correction=0)
        noise = torch.from_numpy(np.random.default_rng((3, index)).standard_normal(rows.shape, np.float32))
        by_hand = evaluate(task, found[0.0].student, **{name: rows + deviation * noise})
        assert measured.noisy[name] == pytest.approx(by_hand, abs=0.003)


def test_the_same_seed_gives_the_same_and_more_noise_costs_more(digits, tmp_path):
    task, found = digits

    def run(**config):
        return robustness.run(task, found[0.0].networks, RobustnessConfig(**config), StageRun(3, tmp_path, reporter()))

    assert run() == found[0.0].measured
    loud = run(noise=8.0)
    assert loud.noise == 8.0
    assert loud.networks["student"].dropped == found[0.0].measured.networks["student"].dropped
    for name in VIEWS:
        assert loud.networks["student"].noisy[name] < found[0.0].measured.networks["student"].noisy[name] - 0.05


def test_each_pass_is_reported_and_the_statistics_are_kept(digits):
    _, found = digits
    assert [(done, total) for done, total, _ in found[0.0].steps] == [(step, 4) for step in range(1, 5)]
    assert list(load_statistics(found[0.0].folder / CHANNELS)) == VIEWS


def test_modality_dropout_helps_where_one_is_missing(digits):
    _, found = digits
    lost = {p: np.mean(list(one.measured.networks["student"].dropped.values())) for p, one in found.items()}
    assert lost[0.4] > lost[0.0] + 0.03


def test_noise_does_not_depend_on_how_rows_are_divided():
    rows = np.random.default_rng(0).normal(size=(50, 3, 4)).astype(np.float32)
    channels = ChannelStatistics(np.zeros((3, 1), np.float32), np.float32([[1], [0], [100]]))
    whole = add_noise(channels, 0.5, (1, 0))(rows)
    change = add_noise(channels, 0.5, (1, 0))
    assert np.array_equal(whole, np.concatenate([change(part) for part in np.split(rows, [7, 20, 49])]))
    assert whole.dtype == np.float32
    added = (whole - rows).std((0, 2))
    assert added == pytest.approx([0.5, 0, 50], rel=0.2)
    assert np.array_equal(whole[:, 1], rows[:, 1]), "a channel that never changes is left alone"


def test_dropping_fills_every_place_of_a_channel():
    channels = ChannelStatistics(np.float32([[1], [2]]), np.float32([[0], [0]]))
    assert drop_modality(channels)(np.zeros((2, 2, 3), np.float32)).tolist() == [[[1, 1, 1], [2, 2, 2]]] * 2


def test_measure_asks_for_each_modality_dropped_and_noisy():
    known = {name: ChannelStatistics(np.float32(5), np.float32(1)) for name in "ab"}
    rows = np.zeros(1000, np.float32)
    asked = []

    def score(name, change):
        asked.append(name)
        return float(change({"a": rows, "b": rows})[name].mean())

    found = measure_robustness(0.9, score, known, 1.0, 0)
    assert asked == ["a", "b", "a", "b"]
    assert found.clean == 0.9
    assert found.dropped == {"a": 5.0, "b": 5.0}
    assert abs(found.noisy["a"]) < 0.2
    assert found.noisy["a"] != found.noisy["b"]


def test_ids_take_no_noise_and_go_with_their_mask():
    known = {
        "words": ChannelStatistics(np.int64(7), None, {"mask": np.bool_(False)}),
        "v": ChannelStatistics(np.float16([2, 2]), np.float32([1, 1])),
    }
    inputs = {"words": np.ones((3, 4), np.int64), "mask": np.ones((3, 4), bool), "v": np.zeros((3, 2), np.float16)}
    changes = []

    def score(name, change):
        changes.append((name, change(inputs)))
        return 0.0

    found = measure_robustness(0.9, score, known, 1.0, 0)
    assert (list(found.dropped), list(found.noisy)) == (["words", "v"], ["v"])
    assert len(changes) == count_changes(known) == 3
    for _, changed in changes:
        assert {name: x.dtype for name, x in changed.items()} == {name: x.dtype for name, x in inputs.items()}
    without_words, without_v, noisy = (changed for _, changed in changes)
    assert (without_words["words"] == 7).all()
    assert not without_words["mask"].any()
    assert without_v["mask"].all()
    assert noisy["mask"].all()
    assert (noisy["v"] != 0).any()


def test_statistics_are_read_as_they_were_written(tmp_path):
    known = {
        "a.b": ChannelStatistics(np.float32([[1], [2]]), np.float32([[3], [4]])),
        "c": ChannelStatistics(np.float32(1), np.float32(2)),
        "words": ChannelStatistics(np.asarray(7), None, {"mask.a": np.asarray(False)}),
    }
    save_statistics(known, tmp_path / "channels.npz")
    read = load_statistics(tmp_path / "channels.npz")
    assert list(read) == ["a.b", "c", "words"]
    for name, channels in known.items():
        assert np.array_equal(read[name].mean, channels.mean)
        assert read[name].mean.dtype == channels.mean.dtype
        assert np.array_equal(read[name].deviation, channels.deviation)
        assert read[name].companions == channels.companions


class ByOne(nn.Module):
    """Knows by one modality alone what is to be known, and makes of the other as much as it is told to."""

    def __init__(self, share):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, a, b):
        total = a[:, 0] + self.share * b[:, 0]
        return torch.stack([-2 * total - 0.5, 0 * total, 2 * total - 0.5], 1)


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (1.0, 0)])
def test_a_modality_of_which_the_student_makes_nothing_is_named(tmp_path, share, count):
    task, model, observer = loaded(), ByOne(share), Remembers()
    with torch.inference_mode():
        right = model(*task.splits["test"].inputs.values()).argmax(1) == task.splits["test"].labels
    networks = {"student": robustness.MeasuredNetwork(model, float(right.float().mean()))}
    found = robustness.run(task, networks, RobustnessConfig(), StageRun(0, tmp_path, reporter(observer)))
    assert len(found.warnings) == count
    assert list(found.warnings) == observer.warnings
    assert all(warning.startswith("the student makes nothing of 'b': its accuracy is ") for warning in found.warnings)
